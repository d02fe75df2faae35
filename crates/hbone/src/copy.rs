//! Joins two byte streams, with half-closes and resets carried through (`spec/ztunnel.md` 2.7).

use std::{
    fmt,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

use crate::socket::reset_on_close;

/// How long a connection whose one direction has ended may go without a byte in the other.
pub const HALF_CLOSE_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Buffer of a direction at first, in bytes: most connections are short or quiet.
pub const MIN_BUFFER_BYTES: usize = 8 * 1024;
/// Buffer of a direction that keeps filling it, in bytes.
pub const MAX_BUFFER_BYTES: usize = 64 * 1024;
/// Steps a direction takes before other tasks get their turn.
const MAX_STEPS: usize = 64;

/// A byte stream that can end as broken rather than as finished.
pub trait Reset {
    /// Ends the stream so that the peer sees a reset; for a socket that is when it is dropped.
    fn reset(&mut self);
}

/// A copy that ended before both directions were finished.
#[derive(Debug)]
pub struct CopyError {
    /// Bytes moved from the first to the second stream until then.
    pub a_to_b: u64,
    /// Bytes moved from the second to the first stream until then.
    pub b_to_a: u64,
    /// What failed.
    pub error: io::Error,
}

/// Copies from `a` to `b` and from `b` to `a` until both directions have ended, and gives the bytes moved each way. The
/// end of one direction is passed on as the end of that direction only; the other goes on, for as long as it moves a
/// byte every `half_close_idle`. When anything fails, both streams are [reset](Reset), so a connection broken on one
/// side is broken, not finished, on the other.
///
/// The streams stay the caller's: whoever cancels the copy decides how they end.
///
/// # Errors
/// When a stream is reset or fails, or the half-close timeout is over ([`io::ErrorKind::TimedOut`]).
pub async fn bidirectional<A, B>(a: &mut A, b: &mut B, half_close_idle: Duration) -> Result<(u64, u64), CopyError>
where
    A: AsyncRead + AsyncWrite + Reset + Unpin,
    B: AsyncRead + AsyncWrite + Reset + Unpin,
{
    let mut forth = Direction::new();
    let mut back = Direction::new();
    let mut idle: Option<Pin<Box<Sleep>>> = None;
    let mut seen = 0;
    let outcome = poll_fn(|cx| {
        let forth_done = forth.poll(cx, a, b)?.is_ready();
        let back_done = back.poll(cx, b, a)?.is_ready();
        if forth_done && back_done {
            return Poll::Ready(Ok(()));
        }
        if forth_done || back_done {
            let moved = forth.copied + back.copied;
            let timer = idle.get_or_insert_with(|| Box::pin(sleep(half_close_idle)));
            if moved != seen {
                seen = moved;
                timer.as_mut().reset(Instant::now() + half_close_idle);
            }
            ready!(timer.as_mut().poll(cx));
            let message = format!("no byte within {half_close_idle:?} after the other direction had ended");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)));
        }
        Poll::Pending
    })
    .await;
    match outcome {
        Ok(()) => Ok((forth.copied, back.copied)),
        Err(error) => {
            a.reset();
            b.reset();
            Err(CopyError { a_to_b: forth.copied, b_to_a: back.copied, error })
        }
    }
}

/// One direction: bytes read from its source and not yet written to its sink, and how far it has come.
struct Direction {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    copied: u64,
    phase: Phase,
    unflushed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Copying,
    /// The source has ended and all is written; the sink is to be told.
    Ending,
    Ended,
}

// === impl Direction ===

impl Direction {
    fn new() -> Self {
        Self { buffer: vec![0; MIN_BUFFER_BYTES], start: 0, end: 0, copied: 0, phase: Phase::Copying, unflushed: false }
    }

    /// Ready when the source has ended and the sink knows.
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, source: &mut R, sink: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..MAX_STEPS {
            match self.phase {
                Phase::Ended => return Poll::Ready(Ok(())),
                Phase::Ending => {
                    ready!(Pin::new(&mut *sink).poll_shutdown(cx))?;
                    self.phase = Phase::Ended;
                    self.buffer = Vec::new();
                }
                Phase::Copying if self.start < self.end => {
                    let pending = &self.buffer[self.start..self.end];
                    let written = ready!(Pin::new(&mut *sink).poll_write(cx, pending))?;
                    if written == 0 {
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                    self.start += written;
                    self.copied += written as u64;
                    self.unflushed = true;
                }
                Phase::Copying => ready!(self.poll_fill(cx, source, sink))?,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_fill<R, W>(&mut self, cx: &mut Context<'_>, source: &mut R, sink: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.end == self.buffer.len() && self.end < MAX_BUFFER_BYTES {
            self.buffer.resize(self.end * 2, 0);
        }
        let mut buffer = ReadBuf::new(&mut self.buffer);
        match Pin::new(source).poll_read(cx, &mut buffer) {
            Poll::Ready(outcome) => {
                outcome?;
                (self.start, self.end) = (0, buffer.filled().len());
                if self.end == 0 {
                    self.phase = Phase::Ending;
                }
                Poll::Ready(Ok(()))
            }
            Poll::Pending => {
                // Nothing more for now, so what was written must not wait for more.
                if self.unflushed {
                    ready!(Pin::new(sink).poll_flush(cx))?;
                    self.unflushed = false;
                }
                Poll::Pending
            }
        }
    }
}

// === impl Reset ===

impl Reset for TcpStream {
    fn reset(&mut self) {
        reset_on_close(self);
    }
}

// === impl CopyError ===

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection broken after {} bytes there and {} back: {}", self.a_to_b, self.b_to_a, self.error)
    }
}

impl std::error::Error for CopyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}
