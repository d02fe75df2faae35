//! What the two sides of a connection have agreed on and what each stream holds, without a socket. The driver feeds it
//! what came in (see `events`) and collects what goes out; stream handles read from it and write to it. It is locked for
//! a few instructions at a time; wakers are called after that.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Waker},
};

use bytes::Bytes;

use super::{
    frame::{self, Code, MAX_WINDOW_BYTES, kind, setting},
    head::{RequestHead, ResponseHead},
};
use crate::{
    Limits,
    budget::Charge,
    limits::{FREE_BYTES, SMALL_PIECE_BYTES},
};

/// A connection's state, shared by its driver and its streams.
pub(crate) struct Shared(Mutex<State>);

pub(super) struct State {
    pub(super) role: Role,
    pub(super) config: Config,
    pub(super) streams: HashMap<u32, Stream>,
    /// The highest stream begun, by us (client) or by the peer (server).
    pub(super) last: u32,
    /// Frames to send before any DATA.
    pub(super) control: Vec<u8>,
    /// Streams with something to send and room for it.
    pub(super) sendable: VecDeque<u32>,
    pub(super) send_window: i64,
    /// What the peer may still send.
    pub(super) recv_window: i64,
    /// Bytes taken in and not yet given back to the peer.
    pub(super) credit: u32,
    pub(super) peer: Peer,
    /// Requests that nobody has taken yet; each has its stream.
    pub(super) requests: VecDeque<u32>,
    pub(super) acceptor: Option<Waker>,
    pub(super) drain: Drain,
    /// The peer takes no more streams.
    pub(super) going_away: bool,
    pub(super) ended: Option<Ended>,
    /// Those who may still open (client) or accept (server) streams.
    pub(super) users: usize,
    pub(super) driver: Option<Waker>,
    pub(super) wakes: Vec<Waker>,
    /// What is queued in all streams.
    pub(super) queued: usize,
    /// What is on its way to the socket.
    pub(super) sealed: usize,
    /// Counts what is held for those who don't read.
    pub(super) memory: Charge,
    /// Nothing is read from the socket until somebody has read what is here.
    pub(super) paused: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

/// Our own settings.
pub(super) struct Config {
    pub(super) stream_window: u32,
    pub(super) connection_window: u32,
    pub(super) max_frame: u32,
    pub(super) header_list: u32,
    pub(super) max_accepted: u32,
    pub(super) send_buffer: usize,
}

/// The peer's settings.
pub(super) struct Peer {
    pub(super) window: u32,
    pub(super) max_frame: u32,
    pub(super) max_streams: Option<u32>,
}

/// How far a server has come with ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drain {
    No,
    /// The peer was told that the end is near, and to answer a ping.
    Announced,
    /// The peer was told which streams are the last.
    Last,
}

/// How a connection ended.
#[derive(Clone, Debug)]
pub(crate) enum Ended {
    /// Nothing was left to do.
    Finished,
    Failed(Arc<str>),
}

/// Why a stream carries no more bytes.
#[derive(Clone, Debug)]
pub(crate) enum Broken {
    /// The peer reset it.
    Peer(Code),
    /// We reset it.
    Local(Code),
    /// The peer has not looked at it: it may be tried elsewhere.
    Unprocessed,
    /// Its connection is gone.
    Connection(Arc<str>),
}

#[derive(Default)]
pub(super) struct Stream {
    pub(super) received: VecDeque<Bytes>,
    /// Small pieces that came, together: after all of `received`.
    pub(super) tail: Vec<u8>,
    pub(super) unread: usize,
    pub(super) recv_window: i64,
    pub(super) credit: u32,
    /// END_STREAM came.
    pub(super) recv_closed: bool,
    pub(super) queue: VecDeque<Bytes>,
    pub(super) queued: usize,
    pub(super) send_window: i64,
    /// END_STREAM is to follow the queue.
    pub(super) finishing: bool,
    pub(super) send_closed: bool,
    /// It stands in `sendable`.
    pub(super) listed: bool,
    pub(super) broken: Option<Broken>,
    /// Somebody holds it.
    pub(super) held: bool,
    pub(super) request: Option<Box<RequestHead>>,
    pub(super) response: Option<Box<ResponseHead>>,
    /// The response has come.
    pub(super) answered: bool,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

// === impl Shared ===

impl Shared {
    pub(super) fn new(role: Role, limits: &Limits) -> Self {
        Self(Mutex::new(State::new(role, limits)))
    }

    /// Works on the state, then wakes those whom the change concerns.
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        let mut state: MutexGuard<'_, State> = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut state);
        state.charge();
        let wakes = std::mem::take(&mut state.wakes);
        drop(state);
        wakes.into_iter().for_each(Waker::wake);
        result
    }
}

// === impl State ===

impl State {
    fn new(role: Role, limits: &Limits) -> Self {
        let client = role == Role::Client;
        let config = Config {
            stream_window: limits.stream_window_bytes,
            connection_window: limits.connection_window_bytes.max(frame::DEFAULT_WINDOW_BYTES),
            max_frame: limits.max_frame_bytes,
            header_list: if client { limits.client_header_bytes } else { limits.server_header_bytes },
            max_accepted: limits.max_accepted_streams,
            send_buffer: if client { limits.client_send_buffer_bytes } else { limits.server_send_buffer_bytes },
        };
        let recv_window = i64::from(config.connection_window);
        let peer =
            Peer { window: frame::DEFAULT_WINDOW_BYTES, max_frame: frame::DEFAULT_MAX_FRAME_BYTES, max_streams: None };
        let mut state = Self {
            role,
            config,
            streams: HashMap::new(),
            last: 0,
            control: Vec::new(),
            sendable: VecDeque::new(),
            send_window: i64::from(frame::DEFAULT_WINDOW_BYTES),
            recv_window,
            credit: 0,
            peer,
            requests: VecDeque::new(),
            acceptor: None,
            drain: Drain::No,
            going_away: false,
            ended: None,
            users: 1,
            driver: None,
            wakes: Vec::new(),
            queued: 0,
            sealed: 0,
            memory: Charge::new(limits.budget.memory.clone(), FREE_BYTES),
            paused: false,
        };
        state.greet();
        state
    }

    /// What is sent first.
    fn greet(&mut self) {
        let own = match self.role {
            Role::Client => {
                self.control.extend_from_slice(frame::PREFACE);
                (setting::ENABLE_PUSH, 0)
            }
            Role::Server => (setting::MAX_CONCURRENT_STREAMS, self.config.max_accepted),
        };
        let settings = [
            own,
            (setting::INITIAL_WINDOW_SIZE, self.config.stream_window),
            (setting::MAX_FRAME_SIZE, self.config.max_frame),
            (setting::MAX_HEADER_LIST_SIZE, self.config.header_list),
        ];
        let mut payload = Vec::with_capacity(24);
        for (id, value) in settings {
            payload.extend_from_slice(&id.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        frame::write(&mut self.control, kind::SETTINGS, 0, 0, &payload);
        let more = self.config.connection_window - frame::DEFAULT_WINDOW_BYTES;
        if more > 0 {
            frame::write(&mut self.control, kind::WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        }
    }

    pub(super) fn wake(&mut self, waker: Option<Waker>) {
        self.wakes.extend(waker);
    }

    pub(super) fn wake_driver(&mut self) {
        let driver = self.driver.take();
        self.wake(driver);
    }

    /// What came in and nobody has read.
    fn unread(&self) -> usize {
        let taken_in = i64::from(self.config.connection_window) - self.recv_window - i64::from(self.credit);
        usize::try_from(taken_in).unwrap_or(0)
    }

    /// Has what is held counted.
    fn charge(&mut self) {
        self.memory.hold(self.unread() + self.queued + self.sealed);
    }

    /// Whether to read nothing from the socket for now: memory is short, and more than a little of it is held here. Who
    /// takes of it wakes the driver.
    pub(super) fn pause(&mut self, cx: &Context<'_>) -> bool {
        self.paused = self.memory.is_short() && self.unread() > FREE_BYTES;
        if self.paused {
            self.driver = Some(cx.waker().clone());
        }
        self.paused
    }

    /// Ends a pause.
    pub(super) fn resume(&mut self) {
        if std::mem::take(&mut self.paused) {
            self.wake_driver();
        }
    }

    /// A stream that was just begun.
    pub(super) fn insert(&mut self, id: u32, stream: Stream) {
        let send_window = i64::from(self.peer.window);
        // Until it has read our settings, the peer goes by the default.
        let recv_window = i64::from(self.config.stream_window.max(frame::DEFAULT_WINDOW_BYTES));
        self.streams.insert(id, Stream { send_window, recv_window, held: true, ..stream });
    }

    /// Removes a stream that nobody holds and on which nothing can happen any more.
    pub(super) fn reap(&mut self, id: u32) {
        let Some(stream) = self.streams.get(&id) else { return };
        if !stream.held && (stream.broken.is_some() || (stream.recv_closed && stream.send_closed)) {
            let unread = stream.unread;
            self.queued -= stream.queued;
            self.streams.remove(&id);
            self.give_back(unread);
            if self.streams.is_empty() {
                self.wake_driver();
            }
        }
    }

    /// Lets the peer send `bytes` more on the connection. They are told in portions.
    pub(super) fn give_back(&mut self, bytes: usize) {
        self.credit = self.credit.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if self.credit >= self.config.connection_window / 4 {
            frame::write(&mut self.control, kind::WINDOW_UPDATE, 0, 0, &self.credit.to_be_bytes());
            self.recv_window += i64::from(self.credit);
            self.credit = 0;
            self.wake_driver();
        }
    }

    /// Resets a stream, whatever it was about to do, unless it is over.
    pub(super) fn reset(&mut self, id: u32, code: Code) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.broken.is_none()
            && !(stream.recv_closed && stream.send_closed)
        {
            self.queued -= stream.queued;
            stream.fail(Broken::Local(code));
            let wakers = [stream.reader.take(), stream.writer.take()];
            self.wakes.extend(wakers.into_iter().flatten());
            frame::write(&mut self.control, kind::RST_STREAM, 0, id, &code.0.to_be_bytes());
            self.wake_driver();
        }
        self.reap(id);
    }

    /// Breaks a stream for whoever holds it.
    pub(super) fn fail(&mut self, id: u32, broken: Broken) {
        if let Some(stream) = self.streams.get_mut(&id) {
            if stream.broken.is_none() {
                self.queued -= stream.queued;
                stream.fail(broken);
            }
            let wakers = [stream.reader.take(), stream.writer.take()];
            self.wakes.extend(wakers.into_iter().flatten());
        }
        self.reap(id);
    }

    /// Puts a stream in the queue of those that send, if it has something to send and room for it.
    pub(super) fn list(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.listed
            && stream.wants_to_send()
        {
            stream.listed = true;
            self.sendable.push_back(id);
            self.wake_driver();
        }
    }

    /// Whether there is nothing that can be sent.
    pub(super) fn is_flushed(&self) -> bool {
        self.control.is_empty() && (self.sendable.is_empty() || self.send_window <= 0)
    }

    /// Whether all is done, so that the connection can be closed.
    pub(super) fn is_finished(&self) -> bool {
        let closing = self.users == 0 || self.going_away || self.drain == Drain::Last;
        self.streams.is_empty() && self.requests.is_empty() && closing
    }

    /// Ends everything; the first reason stays.
    pub(super) fn end(&mut self, ended: Ended) {
        if self.ended.is_none() {
            let reason = match &ended {
                Ended::Finished => Arc::from("the connection was closed"),
                Ended::Failed(reason) => Arc::clone(reason),
            };
            self.ended = Some(ended);
            self.sealed = 0;
            self.requests.clear();
            let streams: Vec<u32> = self.streams.keys().copied().collect();
            for id in streams {
                self.fail(id, Broken::Connection(Arc::clone(&reason)));
            }
            let acceptor = self.acceptor.take();
            self.wake(acceptor);
            self.wake_driver();
        }
    }
}

// === impl Stream ===

impl Stream {
    fn wants_to_send(&self) -> bool {
        self.broken.is_none()
            && !self.send_closed
            && (self.queued == 0 && self.finishing || self.queued > 0 && self.send_window > 0)
    }

    fn fail(&mut self, broken: Broken) {
        self.broken = Some(broken);
        self.queue = VecDeque::new();
        self.queued = 0;
    }

    /// Takes in what came. A large piece is `shared`; small ones are gathered, so that many don't cost much.
    pub(super) fn receive(&mut self, piece: &[u8], shared: impl FnOnce() -> Option<Bytes>) {
        self.unread += piece.len();
        if piece.len() > SMALL_PIECE_BYTES {
            let tail = std::mem::take(&mut self.tail);
            if !tail.is_empty() {
                self.received.push_back(tail.into());
            }
            self.received.push_back(shared().unwrap_or_else(|| Bytes::copy_from_slice(piece)));
        } else {
            if self.tail.len() + piece.len() > 4 * SMALL_PIECE_BYTES {
                self.received.push_back(std::mem::take(&mut self.tail).into());
            }
            self.tail.extend_from_slice(piece);
        }
    }

    /// Hands out what came, about `max` bytes of it.
    pub(super) fn take(&mut self, chunks: &mut VecDeque<Bytes>, max: usize) -> usize {
        let mut taken = 0;
        while taken < max
            && let Some(chunk) = self.received.pop_front()
        {
            taken += chunk.len();
            chunks.push_back(chunk);
        }
        if self.received.is_empty() && !self.tail.is_empty() && taken < max {
            taken += self.tail.len();
            chunks.push_back(std::mem::take(&mut self.tail).into());
        }
        self.unread -= taken;
        taken
    }

    /// Changes the send window; `false` when it grows too large.
    pub(super) fn widen(&mut self, by: i64) -> bool {
        self.send_window += by;
        self.send_window <= MAX_WINDOW_BYTES
    }
}
