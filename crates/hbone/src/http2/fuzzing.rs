//! A connection's state without a connection, for fuzzers and property tests.

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
    state::{Role, Shared},
    stream::{Session, Stream},
};
use crate::Limits;

/// Plays `bytes` to a server or a client in pieces of `piece` bytes. Streams are answered, echoed and dropped as they
/// come.
pub(crate) fn frames(server: bool, piece: usize, bytes: &[u8]) {
    let limits = Limits {
        max_accepted_streams: 8,
        stream_window_bytes: 70_000,
        connection_window_bytes: 100_000,
        ..Limits::default()
    };
    let shared = Arc::new(Shared::new(if server { Role::Server } else { Role::Client }, &limits));
    let mut parser = Parser::new(server, limits.max_frame_bytes, limits.server_header_bytes as usize);
    let mut streams = Vec::new();
    let session = (!server).then(|| Session::new(&shared));
    let mut events = Vec::new();
    if server {
        parser.parse(frame::PREFACE, 0, &mut events).expect("INVARIANT: the preface is sound");
    }
    // Every connection begins like this; the fuzzer need not find it out.
    parser.parse(&frame::head(0, kind::SETTINGS, 0, 0), 0, &mut events).expect("INVARIANT: empty settings are sound");
    for (turn, part) in bytes.chunks(piece).enumerate() {
        if parser.parse(part, 0, &mut events).is_err() {
            return;
        }
        let sound = shared.with(|state| {
            let applied = events.drain(..).try_for_each(|event| state.apply(event, &Received::Lent(part)).map(drop));
            assert!(state.streams.len() <= 8 + turn, "more streams than allowed");
            applied.is_ok()
        });
        if !sound {
            return;
        }
        step(&shared, session.as_ref(), &mut streams, turn);
        shared.with(|state| {
            let mut batch = Batch::default();
            state.collect(&mut batch);
        });
    }
}

/// What the tasks of a proxy might do meanwhile.
fn step(shared: &Arc<Shared>, session: Option<&Session>, streams: &mut Vec<Stream>, turn: usize) {
    let cx = &mut Context::from_waker(Waker::noop());
    if let Some(session) = session {
        let head = RequestHead { method: Method::CONNECT, authority: None, headers: HeaderMap::new() };
        if streams.len() < 8
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
