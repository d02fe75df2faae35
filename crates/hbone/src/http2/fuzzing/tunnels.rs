//! Two ends of a connection, and what their tasks and the network may do in any order.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};

use super::{
    super::{
        events::Received,
        frame::Code,
        head::{RequestHead, ResponseHead},
        parser::Parser,
        state::{Role, Shared},
        stream::{Session, Stream},
    },
    collect, wire,
};
use crate::Limits;

/// Streams at once.
const MAX_OPEN: usize = 6;
/// Bytes one end of one stream gives in all: several windows.
const MAX_GIVEN_BYTES: usize = 300_000;
/// Rounds in which everything that still can move moves.
const MAX_ROUNDS: usize = 4096;

/// One end of the connection.
struct End {
    shared: Arc<Shared>,
    parser: Parser,
    /// What the other end has sent and the network not yet brought.
    coming: VecDeque<u8>,
    streams: BTreeMap<u32, Tunnel>,
}

/// One end of a stream.
struct Tunnel {
    /// None once dropped.
    stream: Option<Stream>,
    given: usize,
    taken: usize,
    finished: bool,
    /// It read to the end.
    ended: bool,
    /// It was dropped before it had said all, reset, refused, or came too late.
    broken: bool,
}

/// Plays a script: who opens, answers, writes, reads, ends, resets and drops what, and how many bytes the network brings.
///
/// # Panics
/// When a byte is lost, altered or doubled, when something stalls or leaks, or when the two ends disagree.
pub(crate) fn tunnels(script: &[u8]) {
    let Some((&setup, steps)) = script.split_first() else { return };
    let limits = Limits {
        stream_window_bytes: [1000, 65_535, 70_000, 200_000][usize::from(setup & 3)],
        connection_window_bytes: [65_535, 100_000][usize::from(setup >> 2 & 1)],
        server_send_buffer_bytes: 10_000,
        client_send_buffer_bytes: 10_000,
        ..Limits::default()
    };
    let mut ends = [Role::Client, Role::Server].map(|role| End::new(role, &limits));
    let session = Session::new(&ends[0].shared);
    for step in steps.chunks(3) {
        let [op, which, amount] = [step[0], *step.get(1).unwrap_or(&0), *step.get(2).unwrap_or(&0)];
        play(&mut ends, &session, op, which, usize::from(amount));
    }
    settle(&mut ends);
    for (near, far) in [(0, 1), (1, 0)] {
        for (id, tunnel) in &ends[near].streams {
            complete(*id, tunnel, ends[far].streams.get(id));
        }
    }
    // With nobody left to use them, nothing is left of them.
    ends.iter_mut().for_each(|end| end.streams.values_mut().for_each(|tunnel| drop(tunnel.stream.take())));
    settle(&mut ends);
    for end in &ends {
        end.shared.with(|state| assert!(state.streams.is_empty(), "{:?} holds on to streams", state.role));
    }
}

fn play(ends: &mut [End; 2], session: &Session, op: u8, which: u8, amount: usize) {
    let near = usize::from(op >> 7);
    let ids: Vec<u32> = ends[near].streams.keys().copied().collect();
    let id = ids.get(usize::from(which) % ids.len().max(1)).copied();
    let tunnel = id.and_then(|id| ends[near].streams.get_mut(&id).map(|tunnel| (id, tunnel)));
    match (op & 0x0f, tunnel) {
        (0 | 1, _) => open(&mut ends[0], session),
        (2 | 3, _) => accept(ends, which == 0xff),
        (4 | 5, Some((id, tunnel))) => tunnel.give(near, id, 1 + amount * if which & 0x80 == 0 { 1 } else { 256 }),
        (6 | 7, Some((id, tunnel))) => tunnel.take(1 - near, id),
        (8, Some((_, tunnel))) => tunnel.finish(),
        (9, Some((_, tunnel))) if amount == 0 => tunnel.reset(),
        (9 | 10, Some((_, tunnel))) if amount < 64 => tunnel.leave(),
        (11, _) if amount == 0xff => {
            // What wasn't accepted yet may come too late.
            let [client, server] = ends;
            client.streams.iter_mut().for_each(|(id, tunnel)| tunnel.broken |= !server.streams.contains_key(id));
            server.shared.drain();
        }
        _ => bring(ends, near, amount * 64),
    }
}

fn open(client: &mut End, session: &Session) {
    let open = client.streams.values().filter(|tunnel| tunnel.stream.is_some()).count();
    let head = RequestHead { method: Method::CONNECT, authority: Some(authority()), headers: HeaderMap::new() };
    if open < MAX_OPEN
        && let Ok(stream) = session.open(&head)
    {
        client.streams.insert(stream.id(), Tunnel::new(stream));
    }
}

fn accept(ends: &mut [End; 2], refuse: bool) {
    let cx = &mut Context::from_waker(Waker::noop());
    while let Poll::Ready(Ok(incoming)) = ends[1].shared.poll_accept(cx) {
        assert_eq!((&incoming.head.method, incoming.head.authority.as_ref()), (&Method::CONNECT, Some(&authority())));
        if refuse {
            let _ = incoming.refuse(StatusCode::UNAUTHORIZED);
        } else if let Ok(stream) = incoming.accept(&ResponseHead { status: StatusCode::OK, headers: HeaderMap::new() })
        {
            ends[1].streams.insert(stream.id(), Tunnel::new(stream));
        }
    }
}

/// Moves what one end has to send onto the network, and what of that comes now to the other end.
fn bring(ends: &mut [End; 2], near: usize, most: usize) {
    let sent = collect(&ends[near].shared);
    let far = &mut ends[1 - near];
    far.coming.extend(wire(&sent));
    let part: Vec<u8> = far.coming.drain(..most.min(far.coming.len())).collect();
    let mut events = Vec::new();
    far.parser.parse(&part, 0, &mut events).expect("INVARIANT: our own frames are sound");
    far.shared.with(|state| {
        for event in events {
            state.apply(event, &Received::Lent(&part)).expect("INVARIANT: our own frames break no rule");
        }
    });
}

/// Lets everything happen that still can.
fn settle(ends: &mut [End; 2]) {
    for _ in 0..MAX_ROUNDS {
        bring(ends, 0, usize::MAX);
        accept(ends, false);
        bring(ends, 1, usize::MAX);
        let mut moved = false;
        for (near, end) in ends.iter_mut().enumerate() {
            for (id, tunnel) in &mut end.streams {
                let before = tunnel.taken;
                tunnel.take(1 - near, *id);
                moved |= tunnel.taken > before;
            }
        }
        let quiet = |end: &End| end.coming.is_empty() && end.shared.with(|state| state.is_flushed());
        if !moved && ends.iter().all(quiet) {
            return;
        }
    }
    panic!("it never comes to rest");
}

/// All that a far end gave has come, where nobody broke it off.
fn complete(id: u32, near: &Tunnel, far: Option<&Tunnel>) {
    let Some(far) = far else {
        return assert!(near.taken == 0, "stream {id} has {} bytes of nobody", near.taken);
    };
    assert!(near.taken <= far.given, "stream {id}: {} of {} bytes came", near.taken, far.given);
    if near.stream.is_some() && !near.broken && !far.broken {
        assert_eq!(near.taken, far.given, "stream {id} stalls");
        assert!(!far.finished || near.ended, "stream {id} doesn't end");
    }
}

/// The byte at this place of what an end says on a stream.
fn byte(end: usize, id: u32, place: usize) -> u8 {
    (place.wrapping_mul(31) ^ place >> 8 ^ end << 7 ^ id as usize) as u8
}

fn authority() -> http::uri::Authority {
    http::uri::Authority::from_static("10.0.0.1:80")
}

// === impl End ===

impl End {
    fn new(role: Role, limits: &Limits) -> Self {
        let server = role == Role::Server;
        let header_bytes = if server { limits.server_header_bytes } else { limits.client_header_bytes };
        Self {
            shared: Arc::new(Shared::new(role, limits)),
            parser: Parser::new(server, limits.max_frame_bytes, header_bytes as usize),
            coming: VecDeque::new(),
            streams: BTreeMap::new(),
        }
    }
}

// === impl Tunnel ===

impl Tunnel {
    fn new(stream: Stream) -> Self {
        Self { stream: Some(stream), given: 0, taken: 0, finished: false, ended: false, broken: false }
    }

    fn give(&mut self, end: usize, id: u32, amount: usize) {
        let Some(stream) = self.stream.as_mut().filter(|_| !self.finished && self.given < MAX_GIVEN_BYTES) else {
            return;
        };
        let bytes: Vec<u8> = (self.given..self.given + amount).map(|place| byte(end, id, place)).collect();
        let mut chunks = VecDeque::from([Bytes::from(bytes)]);
        if let Poll::Ready(Ok(given)) = stream.poll_give(&mut Context::from_waker(Waker::noop()), &mut chunks) {
            assert_eq!(given, amount, "a part of what was given was taken");
            self.given += given;
        }
    }

    fn take(&mut self, end: usize, id: u32) {
        let Some(stream) = self.stream.as_mut().filter(|_| !self.ended) else { return };
        let cx = &mut Context::from_waker(Waker::noop());
        let mut chunks = VecDeque::new();
        if let Poll::Ready(Ok(head)) = stream.poll_response(cx) {
            self.broken |= head.status != StatusCode::OK;
        }
        match stream.poll_take(cx, &mut chunks) {
            Poll::Ready(Ok(taken)) => {
                self.ended |= taken == 0;
                assert_eq!(taken, chunks.iter().map(Bytes::len).sum::<usize>(), "bytes that aren't there");
                for (place, is) in (self.taken..).zip(chunks.iter().flatten()) {
                    assert_eq!(*is, byte(end, id, place), "stream {id}, byte {place}");
                }
                self.taken += taken;
            }
            Poll::Ready(Err(_)) => self.ended = true,
            Poll::Pending => {}
        }
    }

    fn finish(&mut self) {
        self.finished |= self.stream.as_mut().is_some_and(|stream| stream.finish().is_ok());
    }

    fn reset(&mut self) {
        if let Some(stream) = &mut self.stream {
            self.broken = true;
            stream.reset(Code::CANCEL);
        }
    }

    fn leave(&mut self) {
        self.broken |= !self.finished;
        self.stream = None;
    }
}
