//! A connection's state without a connection, for fuzzers and property tests.

mod pieces;
mod tunnels;

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};

use super::{
    events::Received,
    frame::{self, kind},
    head::{RequestHead, ResponseHead},
    outgoing::Batch,
    parser::Parser,
    state::{Role, Shared, State},
    stream::{Session, Stream},
};
use crate::Limits;

pub(crate) use pieces::pieces;
pub(crate) use tunnels::tunnels;

/// Streams that a fuzzed server lets its peer open.
const MAX_STREAMS: usize = 8;
/// About as many pieces come; larger ones, if need be.
const MAX_TURNS: usize = 256;
/// Bytes that a stream queues; small, so that little is looked through again and again.
const SEND_BUFFER_BYTES: usize = 100;
/// Frames other than DATA that are owed for what came, for each byte of it: an answer to a request of ten bytes that is
/// too large takes two frames.
const MAX_CONTROL_PER_BYTE: usize = 4;
/// The same for what is said unasked: the greeting, and what streams do.
const MAX_CONTROL_UNASKED_BYTES: usize = 4096;
/// As large as frames can be.
const ANY_FRAME_BYTES: u32 = (1 << 24) - 1;

/// Plays `bytes` to a server or a client in pieces of `piece` bytes or more. Streams are answered, echoed and dropped as they
/// come.
pub(crate) fn frames(server: bool, piece: usize, bytes: &[u8]) {
    let limits = Limits {
        max_accepted_streams: MAX_STREAMS as u32,
        stream_window_bytes: 70_000,
        connection_window_bytes: 100_000,
        client_send_buffer_bytes: SEND_BUFFER_BYTES,
        server_send_buffer_bytes: SEND_BUFFER_BYTES,
        ..Limits::default()
    };
    let shared = Arc::new(Shared::new(if server { Role::Server } else { Role::Client }, &limits));
    let mut parser = Parser::new(server, limits.max_frame_bytes, limits.server_header_bytes as usize);
    let mut peer = Parser::new(!server, ANY_FRAME_BYTES, usize::MAX);
    let mut streams = Vec::new();
    let session = (!server).then(|| Session::new(&shared));
    let mut events = Vec::new();
    if server {
        parser.parse(frame::PREFACE, 0, &mut events).expect("INVARIANT: the preface is sound");
    }
    // Every connection begins like this; the fuzzer need not find it out.
    parser.parse(&frame::head(0, kind::SETTINGS, 0, 0), 0, &mut events).expect("INVARIANT: empty settings are sound");
    for (turn, part) in bytes.chunks(piece.max(bytes.len() / MAX_TURNS)).enumerate() {
        if parser.parse(part, 0, &mut events).is_err() {
            return;
        }
        let sound = shared.with(|state| {
            let applied = events.drain(..).try_for_each(|event| state.apply(event, &Received::Lent(part)).map(drop));
            assert!(!server || state.streams.len() <= MAX_STREAMS, "more streams than allowed");
            applied.is_ok()
        });
        if !sound {
            return;
        }
        step(&shared, session.as_ref(), &mut streams, turn);
        let sent = collect(&shared);
        let most = MAX_CONTROL_PER_BYTE * part.len() + MAX_CONTROL_UNASKED_BYTES;
        assert!(sent.control.len() <= most, "{} bytes owed for {}", sent.control.len(), part.len());
        let mut said = Vec::new();
        peer.parse(&wire(&sent), 0, &mut said).expect("INVARIANT: what is sent is sound");
    }
}

/// What the tasks of a proxy might do meanwhile.
fn step(shared: &Arc<Shared>, session: Option<&Session>, streams: &mut Vec<Stream>, turn: usize) {
    let cx = &mut Context::from_waker(Waker::noop());
    if let Some(session) = session {
        let head = RequestHead { method: Method::CONNECT, authority: None, headers: HeaderMap::new() };
        if streams.len() < MAX_STREAMS
            && let Ok(stream) = session.open(&head)
        {
            streams.push(stream);
        }
    } else if let std::task::Poll::Ready(Ok(incoming)) = shared.poll_accept(cx) {
        if turn.is_multiple_of(3) {
            let _ = incoming.refuse(StatusCode::UNAUTHORIZED);
        } else if let Ok(stream) = incoming.accept(&ResponseHead { status: StatusCode::OK, headers: HeaderMap::new() })
        {
            streams.push(stream);
        }
    }
    for stream in streams.iter_mut() {
        let mut chunks = VecDeque::from([Bytes::from_static(b"something to send")]);
        let _ = stream.poll_response(cx);
        let _ = stream.poll_take(cx, &mut chunks);
        let _ = stream.poll_give(cx, &mut chunks);
    }
    if turn % 4 == 3
        && let Some(mut stream) = streams.pop()
    {
        let _ = stream.finish();
    }
}

/// Moves out what is to be sent. What must hold of a state is looked at before and after.
fn collect(shared: &Shared) -> Batch {
    shared.with(|state| {
        check(state);
        let mut batch = Batch::default();
        state.collect(&mut batch);
        check(state);
        batch
    })
}

fn wire(batch: &Batch) -> Vec<u8> {
    let mut bytes = batch.control.clone();
    batch.pieces.iter().for_each(|piece| bytes.extend_from_slice(piece.bytes()));
    bytes
}

/// Whatever a peer does: no byte of a window is lost or given twice, no stream with something to send is forgotten.
fn check(state: &State) {
    let unread: usize = state.streams.values().map(|stream| stream.unread).sum();
    let window = state.recv_window + i64::from(state.credit) + unread as i64;
    assert_eq!(window, i64::from(state.config.connection_window), "the connection's window: {unread} bytes are unread");
    assert!(state.send_window >= 0, "more was sent than the connection's window allows");
    assert!(state.recv_window >= 0, "more was taken in than the connection's window allows");
    let initial = i64::from(state.config.stream_window.max(frame::DEFAULT_WINDOW_BYTES));
    for (id, stream) in &state.streams {
        let kept = stream.received.iter().map(Bytes::len).sum::<usize>() + stream.tail.len();
        let queued: usize = stream.queue.iter().map(Bytes::len).sum();
        assert_eq!(queued, stream.queued, "the queue of stream {id}");
        if stream.held {
            assert_eq!(kept, stream.unread, "what stream {id} has received");
        }
        if stream.broken.is_some() {
            assert_eq!(queued, 0, "stream {id} is broken and would send");
            continue;
        }
        if stream.held {
            let window = stream.recv_window + i64::from(stream.credit) + stream.unread as i64;
            assert_eq!(window, initial, "the window of stream {id}");
        }
        let sends = !stream.send_closed && (queued > 0 && stream.send_window > 0 || queued == 0 && stream.finishing);
        assert!(!sends || stream.listed && state.sendable.contains(id), "stream {id} is forgotten");
        assert!(!(stream.send_closed && stream.finishing), "stream {id} ends twice");
    }
}
