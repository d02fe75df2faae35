//! Moves the bytes of a connection, in one task: opens what comes in, seals what goes out.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use super::{
    events::{Received, SHARING_STREAMS},
    frame::{self, Code, Violation, kind},
    outgoing::{Batch, Piece},
    parser::{Event, Parser},
    state::{Ended, Role, Shared, State},
    stream::Session,
};
use crate::{
    Limits,
    budget::Bound,
    buffers,
    keepalive::{Due, KeepAlive},
    limits::{
        CLOSE_LINGER, MAX_GATHERED_STREAMS, MAX_PENDING_CONTROL_BYTES, MAX_TURNS, READ_BYTES, SHARED_PIECE_BYTES,
    },
    tls::{Alert, Established, MAX_PLAINTEXT_BYTES, Opened, RecordError, Records},
};

/// The payload of pings that ask whether the peer is alive.
const ALIVE_PING: [u8; 8] = *b"alive?\0\0";

/// A connection's task. It is done when the connection is over; dropping it ends the connection.
pub(crate) struct Driver<T> {
    io: T,
    records: Records,
    parser: Parser,
    shared: Arc<Shared>,
    memory: Option<Arc<Bound>>,
    /// Received, and not a whole record yet.
    incoming: BytesMut,
    events: Vec<Event>,
    batch: Batch,
    /// Sealed, and not sent from here on.
    out: Vec<u8>,
    sent: usize,
    keepalive: KeepAlive,
    started: bool,
    yielded: bool,
    closing: Closing,
}

#[derive(PartialEq, Eq)]
enum Closing {
    No,
    /// All is said; it has to be sent.
    Flushing,
    /// Waiting for the peer to close as well, so that it gets all of it.
    Lingering,
}

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the socket failed: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Tls(#[from] RecordError),
    #[error(transparent)]
    Http2(#[from] Violation),
    #[error("the peer closed the connection")]
    Closed,
    #[error("the peer did not answer a ping in time")]
    Dead,
    #[error("its streams hold more than the workload's share of memory, and nobody reads them")]
    Unread,
    #[error("the peer did not begin with HTTP/2 in time")]
    Silent,
}

impl<T> Driver<T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    /// The client's end of a connection.
    pub(crate) fn client(io: T, tls: Established, limits: &Limits) -> (Self, Session) {
        let driver = Self::new(io, tls, Role::Client, limits);
        let session = Session::new(&driver.shared);
        (driver, session)
    }

    /// The server's end of a connection.
    pub(crate) fn server(io: T, tls: Established, limits: &Limits) -> (Self, Arc<Shared>) {
        let driver = Self::new(io, tls, Role::Server, limits);
        let shared = Arc::clone(&driver.shared);
        (driver, shared)
    }

    fn new(io: T, tls: Established, role: Role, limits: &Limits) -> Self {
        let header_list = if role == Role::Client { limits.client_header_bytes } else { limits.server_header_bytes };
        Self {
            io,
            records: tls.records,
            parser: Parser::new(role == Role::Server, limits.max_frame_bytes, header_list as usize),
            shared: Arc::new(Shared::new(role, limits)),
            memory: limits.budget.memory.clone(),
            incoming: tls.received,
            events: Vec::new(),
            batch: Batch::default(),
            out: tls.to_send,
            sent: 0,
            keepalive: KeepAlive::new(limits),
            started: false,
            yielded: false,
            closing: Closing::No,
        }
    }

    fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        // What came along with the handshake.
        if !self.incoming.is_empty() && self.closing == Closing::No {
            self.process()?;
        }
        for _ in 0..MAX_TURNS {
            if self.waits_for_others(cx) {
                return self.poll_alive(cx);
            }
            let blocked = self.poll_send(cx)?.is_pending();
            if self.closing != Closing::No && !blocked {
                return self.poll_close(cx);
            }
            if blocked {
                let (ended, full) =
                    self.shared.with(|state| (state.ended.is_some(), state.control.len() > MAX_PENDING_CONTROL_BYTES));
                if ended {
                    return Poll::Ready(Err(Failure::Closed));
                }
                // A peer that makes us answer and doesn't read the answers is not read either.
                if full {
                    return self.poll_alive(cx);
                }
            }
            let short = self.memory.as_deref().is_some_and(Bound::is_used_up);
            if short && self.shared.with(|state| state.pause(cx)) {
                return self.poll_alive(cx);
            }
            match self.poll_receive(cx)? {
                Poll::Ready(()) => {}
                Poll::Pending if self.rest(cx, blocked) => return self.poll_alive(cx),
                Poll::Pending => {}
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether to let the other tasks run first, once per burst: the first stream with something to send wakes us, and
    /// if we sent that at once, each stream would cost a record, a system call and a wake-up of the peer of its own.
    fn waits_for_others(&mut self, cx: &mut Context<'_>) -> bool {
        let more_may_come = self.sent == self.out.len()
            && self.closing == Closing::No
            && self.shared.with(|state| {
                let sending = state.sendable.len();
                sending > 0 && sending < state.streams.len().min(MAX_GATHERED_STREAMS)
            });
        self.yielded = more_may_come && !self.yielded;
        if self.yielded {
            // Polled once, it has us woken when the worker's other tasks have had their turn.
            let _ = std::pin::pin!(tokio::task::yield_now()).poll(cx);
        }
        self.yielded
    }

    /// Whether there is nothing to do until somebody wakes us; they know then whom.
    fn rest(&mut self, cx: &Context<'_>, blocked: bool) -> bool {
        self.shared.with(|state| {
            let idle = blocked || (state.is_flushed() && !state.is_finished() && state.ended.is_none());
            if idle {
                state.driver = Some(cx.waker().clone());
            }
            idle
        })
    }

    /// Sends what there is. Pending when the socket takes no more.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if !self.started {
            // The end of the handshake and the first frames go out together.
            self.started = true;
            self.gather()?;
        }
        loop {
            while self.sent < self.out.len() {
                match Pin::new(&mut self.io).poll_write(cx, &self.out[self.sent..]) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into())),
                    Poll::Ready(Ok(length)) => self.sent += length,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                    Poll::Pending => return Poll::Pending,
                }
            }
            self.sent = 0;
            self.out.clear();
            if self.closing == Closing::No {
                self.gather()?;
            }
            if self.out.is_empty() {
                buffers::give_out(std::mem::take(&mut self.out));
                return Pin::new(&mut self.io).poll_flush(cx).map_err(Failure::Io);
            }
        }
    }

    /// Seals the next batch, or the farewell.
    fn gather(&mut self) -> Result<(), Failure> {
        let batch = &mut self.batch;
        let over = self.shared.with(|state| {
            state.driver = None;
            state.collect(batch);
            state.sealed = batch.bytes + batch.control.len();
            let over = batch.pieces.is_empty() && (state.is_finished() || state.ended.is_some());
            if over {
                state.write_go_away(if state.role == Role::Server { state.last } else { 0 }, Code::NO_ERROR);
                batch.control.append(&mut state.control);
            }
            over
        });
        if self.out.capacity() == 0 && (!batch.control.is_empty() || !batch.pieces.is_empty()) {
            self.out = buffers::take_out();
        }
        self.seal()?;
        if self.records.wants_to_send() {
            self.records.refresh(&mut self.out)?;
        }
        if over {
            self.records.seal_alert(&mut self.out, Alert::CloseNotify)?;
            self.closing = Closing::Flushing;
        }
        Ok(())
    }

    fn seal(&mut self) -> Result<(), Failure> {
        let Batch { control, pieces, bytes } = &mut self.batch;
        let whole = control.len() + *bytes;
        self.out.reserve(whole + (whole / MAX_PLAINTEXT_BYTES + 1) * 32);
        let parts = std::iter::once(&control[..]).chain(pieces.iter().map(Piece::bytes));
        let mut parts = parts.filter(|part| !part.is_empty());
        let mut part: &[u8] = parts.next().unwrap_or_default();
        while !part.is_empty() {
            self.records.seal(&mut self.out, |out| {
                let mut room = MAX_PLAINTEXT_BYTES;
                while room > 0 && !part.is_empty() {
                    let (now, later) = part.split_at(part.len().min(room));
                    out.extend_from_slice(now);
                    room -= now.len();
                    part = if later.is_empty() { parts.next().unwrap_or_default() } else { later };
                }
            })?;
        }
        drop(parts);
        control.clear();
        if control.capacity() > MAX_PLAINTEXT_BYTES {
            *control = Vec::new();
        }
        for piece in pieces.drain(..) {
            if let Piece::Data(bytes) = piece {
                buffers::recycle(bytes);
            }
        }
        *bytes = 0;
        Ok(())
    }

    /// Reads once and takes in what came.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if self.incoming.is_empty() {
            self.incoming = buffers::take_in();
        } else if self.incoming.capacity() - self.incoming.len() < READ_BYTES / 2 {
            let mut larger = buffers::take_in();
            larger.extend_from_slice(&self.incoming);
            buffers::give_in(std::mem::replace(&mut self.incoming, larger));
        }
        match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.incoming) {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(Failure::Closed)),
            Poll::Ready(Ok(_)) => Poll::Ready(self.process()),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            Poll::Pending => {
                self.release_incoming();
                Poll::Pending
            }
        }
    }

    /// Nothing more comes for now, so a large buffer is of more use elsewhere.
    fn release_incoming(&mut self) {
        if self.incoming.capacity() > 2 * self.incoming.len() {
            let rest = BytesMut::from(&self.incoming[..]);
            buffers::give_in(std::mem::replace(&mut self.incoming, rest));
        }
    }

    /// Opens the whole records in `incoming` and hands on what they say.
    fn process(&mut self) -> Result<(), Failure> {
        let mut at = 0;
        let mut data = 0;
        let mut closed = false;
        while !closed && let Some(length) = Records::complete(&self.incoming[at..])? {
            match self.records.open(&mut self.incoming[at..at + length])? {
                Opened::Data(range) => {
                    data += range.len();
                    let range = at + range.start..at + range.end;
                    self.parser.parse(&self.incoming[range.clone()], range.start, &mut self.events)?;
                }
                Opened::Nothing => {}
                Opened::Closed => closed = true,
            }
            at += length;
        }
        // Large parts are handed on where they lie; the buffer is theirs then.
        let sharing = large_parts(&self.events, self.incoming.capacity() / SHARING_STREAMS);
        if data >= SHARED_PIECE_BYTES && sharing != [0; SHARING_STREAMS] {
            let bytes = self.incoming.split_to(at).freeze();
            self.apply(&Received::Shared(&bytes, sharing))?;
        } else {
            let mut bytes = std::mem::take(&mut self.incoming);
            self.apply(&Received::Lent(&bytes))?;
            bytes.advance(at);
            if bytes.is_empty() {
                buffers::give_in(bytes);
            } else {
                self.incoming = bytes;
            }
        }
        if closed { Err(Failure::Closed) } else { Ok(()) }
    }

    fn apply(&mut self, received: &Received<'_>) -> Result<(), Failure> {
        let (events, keepalive) = (&mut self.events, &mut self.keepalive);
        self.shared.with(|state| {
            for event in events.drain(..) {
                if matches!(event, Event::Settings(_)) {
                    keepalive.begun();
                }
                if state.apply(event, received)?.is_some_and(|payload| payload == ALIVE_PING) {
                    keepalive.answered();
                }
            }
            Ok(())
        })
    }

    /// Pending as long as the peer is alive.
    fn poll_alive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        match ready!(self.keepalive.poll_due(cx)) {
            Due::Silent => Poll::Ready(Err(Failure::Silent)),
            Due::Dead if self.shared.with(|state| state.paused) => Poll::Ready(Err(Failure::Unread)),
            Due::Dead => Poll::Ready(Err(Failure::Dead)),
            Due::Ping => {
                self.shared.with(|state| frame::write(&mut state.control, kind::PING, 0, 0, &ALIVE_PING));
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    /// Sends the end, then waits a little for the peer's.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if self.closing == Closing::Flushing {
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
            self.closing = Closing::Lingering;
            self.keepalive.linger(CLOSE_LINGER);
        }
        for _ in 0..MAX_TURNS {
            self.incoming.clear();
            self.incoming.reserve(4096);
            match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.incoming) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => return self.keepalive.poll_due(cx).map(|_| Ok(())),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Tells the peer what is wrong, as far as the socket takes it at once.
    fn say_why(&mut self, failure: &Failure, cx: &mut Context<'_>) {
        let code = match failure {
            Failure::Http2(violation) => violation.code,
            Failure::Unread => Code::ENHANCE_YOUR_CALM,
            Failure::Dead | Failure::Silent | Failure::Tls(_) => Code::NO_ERROR,
            Failure::Io(_) | Failure::Closed => return,
        };
        let alert = match failure {
            Failure::Tls(error) => error.alert(),
            _ => Some(Alert::CloseNotify),
        };
        self.shared.with(|state: &mut State| {
            let last = if state.role == Role::Server { state.last } else { 0 };
            state.write_go_away(last, code);
            self.batch.control.append(&mut state.control);
        });
        if self.seal().is_ok() && alert.is_none_or(|alert| self.records.seal_alert(&mut self.out, alert).is_ok()) {
            let _ = Pin::new(&mut self.io).poll_write(cx, &self.out[self.sent..]);
        }
    }
}

impl<T> Future for Driver<T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let outcome = ready!(self.poll_run(cx));
        let ended = match outcome {
            Ok(()) => Ended::Finished,
            Err(Failure::Closed) if self.shared.with(|state| state.streams.is_empty()) => Ended::Finished,
            Err(failure) => {
                self.say_why(&failure, cx);
                Ended::Failed(Arc::from(failure.to_string()))
            }
        };
        self.shared.with(|state| state.end(ended.clone()));
        Poll::Ready(ended)
    }
}

impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        self.shared.with(|state| state.end(Ended::Failed(Arc::from("the connection was closed"))));
    }
}

/// The streams that each have at least `least` bytes of data in `events`; 0 where there is none.
fn large_parts(events: &[Event], least: usize) -> [u32; SHARING_STREAMS] {
    let mut sums: [(u32, usize); SHARING_STREAMS] = [(0, 0); SHARING_STREAMS];
    for event in events {
        if let Event::Data { stream, range, .. } = event
            && let Some(sum) = sums.iter_mut().find(|(id, _)| *id == *stream || *id == 0)
        {
            *sum = (*stream, sum.1 + range.len());
        }
    }
    sums.map(|(stream, sum)| if sum >= least { stream } else { 0 })
}
