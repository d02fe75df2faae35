//! A second, stricter reader of HTTP/1.1, ahead of the HTTP server's own (`spec/waypoint.md` 5.8).
//!
//! The server accepts some messages that others would read differently: with both `content-length` and
//! `transfer-encoding`, with line feeds alone. Every byte from a client passes [`scan::Scanner`] before the server sees it.
//! INVARIANT: what passes has exactly one framing, and the server finds the same. The end of a head that doesn't pass
//! never reaches the server; it gets a byte that is valid nowhere in a head in its place, and an
//! end, and answers 400.
//!
//! A client that ends its side after a whole request waits for its answer (RFC 9112, 9.6 lets it), and the server would take
//! its end for its leaving. So the end is kept from the server; whoever runs it is told when all is answered.
//!
//! A connection that asks to switch protocols is held where the request ends, until the answer tells whether what
//! follows is HTTP.

mod scan;

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::BytesMut;
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::scan::{Found, Scanner};
use crate::{refusals::Refusal, shared::Shared};

/// A client's stream of HTTP/1.1.
pub(crate) struct Strict<S: AsyncWrite + Unpin> {
    stream: S,
    scanner: Scanner,
    /// What follows a request that asks to switch protocols.
    held: BytesMut,
    state: Arc<State>,
    shared: Arc<Shared>,
    refused: Option<Refused>,
    /// The client has ended its side after a whole request.
    ended: bool,
}

/// What the stream and the HTTP server tell each other.
#[derive(Debug, Default)]
pub(crate) struct State {
    switch: AtomicU8,
    waker: AtomicWaker,
    /// Index of the refusal in [`Refusal::ALL`], plus one.
    refusal: AtomicU8,
    /// Requests that have an answer, or the head of one.
    answers: AtomicU64,
    /// Requests that the client sent before it ended its side; 0 before that.
    last: AtomicU64,
    end: AtomicWaker,
    /// Bytes written since.
    written: AtomicU64,
    draining: AtomicBool,
}

/// Where the stream was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// The server has what makes it answer and end the connection; an error could overtake its answer.
    InHead,
    InBody,
}

/// HTTP.
const READING: u8 = 0;
/// Nothing is read before it is known what is spoken.
const ASKED: u8 = 1;
/// Another protocol.
const SWITCHED: u8 = 2;
/// HTTP goes on once the answer is on its way: an error in what follows would end the connection before it.
const ANSWERED: u8 = 3;

/// In no part of a head is its first byte valid. The server doesn't look before it sees an end of a head.
const POISON: &[u8] = b"\0\r\n\r\n";

// === impl State ===

impl State {
    /// Tells whether a request that asked to switch protocols (had an `upgrade` header) was granted it.
    pub(crate) fn answered(&self, switched: bool) {
        let next = if switched { SWITCHED } else { ANSWERED };
        if self.switch.compare_exchange(ASKED, next, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.waker.wake();
        }
    }

    /// Tells that a request has its answer.
    pub(crate) fn count_answer(&self) {
        self.answers.fetch_add(1, Ordering::AcqRel);
        if self.is_ended() {
            self.end.wake();
        }
    }

    /// Completes when the client has ended its side and each of its requests has an answer, or the head of one.
    pub(crate) async fn all_answered(&self) {
        poll_fn(|cx| {
            self.end.register(cx.waker());
            let last = self.last.load(Ordering::Acquire);
            if last > 0 && self.answers.load(Ordering::Acquire) >= last { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Whether the client has ended its side.
    pub(crate) fn is_ended(&self) -> bool {
        self.last.load(Ordering::Acquire) > 0
    }

    /// Bytes written to the client since it ended its side.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// The next answer is to be the connection's last.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether the next answer is to be the connection's last.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// What was to be written has been. The server writes its answer before it flushes for the first time after that.
    fn flushed(&self) {
        if self.switch.compare_exchange(ANSWERED, READING, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.waker.wake();
        }
    }

    /// Why the stream was refused, if it was.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        let index = usize::from(self.refusal.load(Ordering::Acquire)).checked_sub(1)?;
        Refusal::ALL.get(index).copied()
    }

    fn refuse(&self, refusal: Refusal) {
        // There are far fewer than 255 of them.
        self.refusal.store(refusal as u8 + 1, Ordering::Release);
    }

    fn is_held(&self, cx: &Context<'_>) -> bool {
        let waits = || matches!(self.switch.load(Ordering::Acquire), ASKED | ANSWERED);
        if !waits() {
            return false;
        }
        self.waker.register(cx.waker());
        waits()
    }
}

// === impl Strict ===

impl<S: AsyncWrite + Unpin> Strict<S> {
    pub(crate) fn new(stream: S, shared: Arc<Shared>) -> Self {
        let (scanner, held, state) = (Scanner::default(), BytesMut::new(), Arc::default());
        Self { stream, scanner, held, state, shared, refused: None, ended: false }
    }

    pub(crate) fn state(&self) -> Arc<State> {
        Arc::clone(&self.state)
    }

    fn give_held(&mut self, buffer: &mut ReadBuf<'_>) {
        let held = self.held.split_to(self.held.len().min(buffer.remaining()));
        buffer.put_slice(&held);
    }

    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if self.ended
            && let Poll::Ready(Ok(bytes)) = &written
        {
            self.state.written.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
        written
    }

    /// Looks at what was read past `start`, and takes back what the server may not see.
    fn inspect(&mut self, buffer: &mut ReadBuf<'_>, start: usize) -> io::Result<()> {
        let fresh = &buffer.filled()[start..];
        match self.scanner.scan(fresh) {
            Found::Nothing => {}
            Found::Asked { end } => {
                let rest = &fresh[end..];
                if !rest.is_empty() {
                    let mut held = BytesMut::from(rest);
                    held.unsplit(std::mem::take(&mut self.held));
                    self.held = held;
                }
                self.state.switch.store(ASKED, Ordering::Release);
                buffer.set_filled(start + end);
            }
            Found::Refused { at, in_head, refusal } => {
                self.refused = Some(if in_head { Refused::InHead } else { Refused::InBody });
                self.state.refuse(refusal);
                self.shared.refusals.add(refusal);
                if in_head {
                    buffer.set_filled(start + at);
                    self.held = BytesMut::from(POISON);
                    self.give_held(buffer);
                } else if at > 0 {
                    buffer.set_filled(start + at);
                } else {
                    buffer.set_filled(start);
                    return Err(io::ErrorKind::InvalidData.into());
                }
            }
        }
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Strict<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match this.refused {
            None => {}
            Some(Refused::InHead) if this.held.is_empty() => return Poll::Pending,
            Some(Refused::InHead) => {
                this.give_held(buffer);
                return Poll::Ready(Ok(()));
            }
            Some(Refused::InBody) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
        }
        // The server is told to end by other means, so it needn't be woken.
        if this.ended || this.state.is_held(cx) {
            return Poll::Pending;
        }
        let start = buffer.filled().len();
        if this.held.is_empty() {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        } else {
            this.give_held(buffer);
        }
        if this.state.switch.load(Ordering::Acquire) == READING {
            if buffer.filled().len() > start {
                this.inspect(buffer, start)?;
            } else if buffer.remaining() > 0
                && let Some(requests @ 1..) = this.scanner.whole()
            {
                this.ended = true;
                this.state.last.store(requests, Ordering::Release);
                this.state.end.wake();
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        self.state.flushed();
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: AsyncWrite + Unpin> Drop for Strict<S> {
    fn drop(&mut self) {
        if self.refused == Some(Refused::InHead) {
            // The server drops the stream without ending it where an upgrade was asked for before; what was answered would be
            // lost with it. A tunnel takes the end at once.
            let _ = Pin::new(&mut self.stream).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
    }
}
