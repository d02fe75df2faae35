//! What the tasks that use a connection hold of it: the right to open streams, requests that came in, and streams.

use std::{
    collections::VecDeque,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::StatusCode;

use super::{
    frame::{self, Code},
    head::{RequestHead, ResponseHead},
    state::{Broken, Ended, Role, Shared, State, Stream as StreamState},
};
use crate::limits::{MAX_TAKE_BYTES, SHORT_SEND_BUFFER_BYTES};

/// Opens streams on a client's connection. The connection ends when nobody can open one any more and all are done.
pub(crate) struct Session(Arc<Shared>);

/// A request that waits for its answer. Dropping it unanswered resets the stream.
pub(crate) struct Incoming {
    pub(crate) head: Box<RequestHead>,
    stream: Stream,
}

/// One end of a stream. Dropping it before both directions have ended resets it.
pub(crate) struct Stream {
    shared: Arc<Shared>,
    id: u32,
}

// === impl Session ===

impl Session {
    /// The first one of a connection.
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self(Arc::clone(shared))
    }

    /// Sends a request.
    pub(crate) fn open(&self, head: &RequestHead) -> Result<Stream, Broken> {
        let mut block = Vec::with_capacity(512);
        head.encode(&mut block);
        let id = self.0.with(|state| state.open(&block))?;
        Ok(Stream { shared: Arc::clone(&self.0), id })
    }

    /// Whether streams can be opened at all.
    pub(crate) fn is_open(&self) -> bool {
        self.0.with(|state| state.can_open())
    }

    /// The peer's limit of concurrent streams, once it is known.
    pub(crate) fn peer_max_streams(&self) -> Option<usize> {
        self.0.with(|state| state.peer.max_streams).map(|limit| limit as usize)
    }
}

impl Clone for Session {
    fn clone(&self) -> Self {
        self.0.with(|state| state.users += 1);
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.0.with(State::leave);
    }
}

// === impl Incoming ===

impl Incoming {
    /// Answers without a body to follow.
    pub(crate) fn refuse(self, status: StatusCode) -> Result<(), Broken> {
        self.refuse_with(status, http::HeaderMap::new())
    }

    /// The same, with these headers.
    pub(crate) fn refuse_with(self, status: StatusCode, headers: http::HeaderMap) -> Result<(), Broken> {
        let head = ResponseHead { status, headers };
        self.stream.respond(&head, true)
    }

    /// Answers, and lets bytes flow.
    pub(crate) fn accept(self, head: &ResponseHead) -> Result<Stream, Broken> {
        self.stream.respond(head, false)?;
        Ok(self.stream)
    }
}

// === impl Shared ===

impl Shared {
    /// The next request, or how the connection ended.
    pub(crate) fn poll_accept(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Result<Incoming, Ended>> {
        self.with(|state| {
            while let Some(id) = state.requests.pop_front() {
                let head = state.streams.get_mut(&id).and_then(|stream| stream.request.take());
                if let Some(head) = head {
                    return Poll::Ready(Ok((head, id)));
                }
            }
            if let Some(ended) = &state.ended {
                return Poll::Ready(Err(ended.clone()));
            }
            state.acceptor = Some(cx.waker().clone());
            Poll::Pending
        })
        .map_ok(|(head, id)| Incoming { head, stream: Stream { shared: Arc::clone(self), id } })
    }

    /// Takes no more streams once the peer knows, and ends with the last one.
    pub(crate) fn drain(&self) {
        self.with(State::announce_drain);
    }

    /// Ends the connection with all its streams.
    pub(crate) fn close(&self) {
        self.with(|state| {
            // Nothing is said of single streams any more: what was not answered may be tried elsewhere.
            state.control.clear();
            state.end(Ended::Finished);
        });
    }
}

// === impl State ===

impl State {
    fn can_open(&self) -> bool {
        self.ended.is_none() && !self.going_away && self.last < frame::MAX_WINDOW_BYTES as u32 - 2
    }

    fn open(&mut self, block: &[u8]) -> Result<u32, Broken> {
        if !self.can_open() {
            return Err(Broken::Unprocessed);
        }
        let id = if self.last == 0 { 1 } else { self.last + 2 };
        self.last = id;
        self.insert(id, StreamState::default());
        frame::write_headers(&mut self.control, id, block, false, self.peer.max_frame);
        self.wake_driver();
        Ok(id)
    }

    fn leave(&mut self) {
        self.users -= 1;
        if self.users == 0 {
            self.wake_driver();
        }
    }
}

// === impl Stream ===

impl Stream {
    /// The number, for logs.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// The response to the request that opened this.
    pub(crate) fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Broken>> {
        self.with(|stream| {
            if let Some(head) = stream.response.take() {
                return Poll::Ready(Ok(*head));
            }
            match &stream.broken {
                Some(broken) => Poll::Ready(Err(broken.clone())),
                None => {
                    wait(&mut stream.reader, cx);
                    Poll::Pending
                }
            }
        })
    }

    /// Moves what has come in into `chunks`; 0 is the end. The peer may send as much again.
    pub(crate) fn poll_take(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut VecDeque<Bytes>,
    ) -> Poll<Result<usize, Broken>> {
        let id = self.id;
        self.shared.with(|state| {
            let portion = state.config.stream_window / 4;
            let most = if state.memory.is_short() { 1 } else { MAX_TAKE_BYTES };
            let Some(stream) = state.streams.get_mut(&id) else { return Poll::Ready(Ok(0)) };
            if stream.unread == 0 {
                return match &stream.broken {
                    // How a server says that it has answered in full and needs no more; not a failure.
                    Some(Broken::Peer(Code::NO_ERROR)) => Poll::Ready(Ok(0)),
                    _ if stream.recv_closed => Poll::Ready(Ok(0)),
                    Some(broken) => Poll::Ready(Err(broken.clone())),
                    None => {
                        wait(&mut stream.reader, cx);
                        Poll::Pending
                    }
                };
            }
            let taken = stream.take(chunks, most);
            stream.credit += taken as u32;
            if stream.credit >= portion && !stream.recv_closed && stream.broken.is_none() {
                let credit = std::mem::take(&mut stream.credit);
                stream.recv_window += i64::from(credit);
                frame::write(&mut state.control, frame::kind::WINDOW_UPDATE, 0, id, &credit.to_be_bytes());
                state.wake_driver();
            }
            state.give_back(taken);
            state.resume();
            Poll::Ready(Ok(taken))
        })
    }

    /// Queues all of `chunks` to be sent, once there is room for any.
    pub(crate) fn poll_give(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut VecDeque<Bytes>,
    ) -> Poll<Result<usize, Broken>> {
        let id = self.id;
        self.shared.with(|state| {
            let limit = if state.memory.is_short() { SHORT_SEND_BUFFER_BYTES } else { state.config.send_buffer };
            let Some(stream) = state.streams.get_mut(&id) else { return Poll::Ready(Err(Broken::Local(Code::CANCEL))) };
            if let Some(broken) = &stream.broken {
                return Poll::Ready(Err(broken.clone()));
            }
            if stream.queued >= limit {
                wait(&mut stream.writer, cx);
                return Poll::Pending;
            }
            let given: usize = chunks.iter().map(Bytes::len).sum();
            stream.queued += given;
            chunks.retain(|chunk| !chunk.is_empty());
            if stream.queue.is_empty() {
                std::mem::swap(&mut stream.queue, chunks);
            } else {
                stream.queue.append(chunks);
            }
            state.queued += given;
            state.list(id);
            Poll::Ready(Ok(given))
        })
    }

    /// Ends our direction after what is queued.
    pub(crate) fn finish(&mut self) -> Result<(), Broken> {
        let id = self.id;
        self.shared.with(|state| {
            let Some(stream) = state.streams.get_mut(&id) else { return Ok(()) };
            if let Some(broken) = &stream.broken {
                return Err(broken.clone());
            }
            stream.finishing = !stream.send_closed;
            state.list(id);
            Ok(())
        })
    }

    /// Breaks the stream for the peer.
    pub(crate) fn reset(&mut self, code: Code) {
        let id = self.id;
        self.shared.with(|state| state.reset(id, code));
    }

    fn respond(&self, head: &ResponseHead, end: bool) -> Result<(), Broken> {
        let mut block = Vec::with_capacity(256);
        head.encode(&mut block);
        let id = self.id;
        self.shared.with(|state| {
            let Some(stream) = state.streams.get_mut(&id) else { return Err(Broken::Local(Code::CANCEL)) };
            if let Some(broken) = &stream.broken {
                return Err(broken.clone());
            }
            stream.answered = true;
            stream.send_closed = end;
            frame::write_headers(&mut state.control, id, &block, end, state.peer.max_frame);
            state.wake_driver();
            if end {
                // The peer need not end its direction of a tunnel that isn't there.
                state.reset(id, Code::NO_ERROR);
            }
            Ok(())
        })
    }

    fn with<R>(&self, work: impl FnOnce(&mut StreamState) -> R) -> R {
        self.shared.with(|state| match state.streams.get_mut(&self.id) {
            Some(stream) => work(stream),
            // INVARIANT: a stream stays as long as it is held. A stream that is not there reads as broken.
            None => work(&mut StreamState { broken: Some(Broken::Local(Code::CANCEL)), ..StreamState::default() }),
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let id = self.id;
        self.shared.with(|state| {
            let role = state.role;
            let Some(stream) = state.streams.get_mut(&id) else { return };
            stream.held = false;
            let flushing = stream.finishing;
            let unread = std::mem::take(&mut stream.unread);
            (stream.received, stream.tail) = (VecDeque::new(), Vec::new());
            let done = stream.recv_closed && (stream.send_closed || flushing);
            state.give_back(unread);
            state.resume();
            if done || flushing {
                // What is queued still goes out, then the stream is over.
                return state.reap(id);
            }
            let finished_server =
                role == Role::Server && state.streams.get(&id).is_some_and(|stream| stream.send_closed);
            state.reset(id, if finished_server { Code::NO_ERROR } else { Code::CANCEL });
        });
    }
}

fn wait(slot: &mut Option<std::task::Waker>, cx: &Context<'_>) {
    if !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *slot = Some(cx.waker().clone());
    }
}

// === impl Broken ===

impl Broken {
    /// Whether the peer has certainly not acted upon the stream, or can't have answered it.
    pub(crate) fn may_be_tried_again(&self) -> bool {
        matches!(self, Self::Unprocessed | Self::Connection(_))
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(code) => write!(f, "the peer reset the stream ({code:?})"),
            Self::Local(code) => write!(f, "the stream was reset here ({code:?})"),
            Self::Unprocessed => f.write_str("the peer takes no more streams on this connection"),
            Self::Connection(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for Broken {}
