//! Joins two byte streams, with half-closes and resets carried through (`spec/ztunnel.md` 2.7).

use std::{
    collections::VecDeque,
    fmt,
    future::{Future, poll_fn},
    io::{self, IoSlice},
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::io::poll_read_buf;

use crate::{
    buffers,
    limits::{COPY_STEPS, MAX_SLICES, SHARED_PIECE_BYTES},
    socket::reset_on_close,
};

/// How long a connection whose one direction has ended may go without a byte in the other.
pub const HALF_CLOSE_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long a connection may go without a byte in either direction.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// How long a connection is kept though nothing moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// After one direction has ended.
    pub half_close: Duration,
    /// While both are open.
    pub idle: Duration,
}

/// A byte stream that can end as broken rather than as finished.
pub trait Reset {
    /// Ends the stream so that the peer sees a reset; for a socket that is when it is dropped.
    fn reset(&mut self);

    /// Reads into `chunks` what is there, and gives the number of bytes; 0 is the end. A stream that holds its bytes in
    /// chunks hands them over as they are.
    fn poll_take(&mut self, cx: &mut Context<'_>, chunks: &mut VecDeque<Bytes>) -> Poll<io::Result<usize>>
    where
        Self: AsyncRead + Unpin + Sized,
    {
        read(self, cx, chunks)
    }

    /// Writes from the front of `chunks` what there is room for, takes it out of them, and gives the number of bytes.
    fn poll_give(&mut self, cx: &mut Context<'_>, chunks: &mut VecDeque<Bytes>) -> Poll<io::Result<usize>>
    where
        Self: AsyncWrite + Unpin + Sized,
    {
        write(self, cx, chunks)
    }
}

/// Bytes that a copy has moved so far, for whoever looks while it goes on, or after it was cancelled.
#[derive(Debug, Default)]
pub struct Moved {
    a_to_b: AtomicU64,
    b_to_a: AtomicU64,
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

/// Copies from `a` to `b` and from `b` to `a` until both directions have ended, and gives the bytes moved each way: as
/// [`bidirectional_within`], with [`IDLE_TIMEOUT`].
///
/// # Errors
/// When a stream is reset or fails, or a timeout is over ([`io::ErrorKind::TimedOut`]).
pub async fn bidirectional<A, B>(a: &mut A, b: &mut B, half_close: Duration) -> Result<(u64, u64), CopyError>
where
    A: AsyncRead + AsyncWrite + Reset + Unpin,
    B: AsyncRead + AsyncWrite + Reset + Unpin,
{
    bidirectional_within(a, b, Timeouts { half_close, ..Timeouts::default() }).await
}

/// Copies from `a` to `b` and from `b` to `a` until both directions have ended, and gives the bytes moved each way. The
/// end of one direction is passed on as the end of that direction only; the other goes on. When anything fails, or no
/// byte moves for as long as `timeouts` say, both streams are [reset](Reset), so a connection broken on one side is
/// broken, not finished, on the other.
///
/// The streams stay the caller's: whoever cancels the copy decides how they end.
///
/// # Errors
/// When a stream is reset or fails, or a timeout is over ([`io::ErrorKind::TimedOut`]).
pub async fn bidirectional_within<A, B>(a: &mut A, b: &mut B, timeouts: Timeouts) -> Result<(u64, u64), CopyError>
where
    A: AsyncRead + AsyncWrite + Reset + Unpin,
    B: AsyncRead + AsyncWrite + Reset + Unpin,
{
    bidirectional_counting(a, b, timeouts, &Moved::default()).await
}

/// The same, saying in `moved` how far it has come, each time it has nothing more to do for now.
///
/// # Errors
/// As [`bidirectional_within`].
pub async fn bidirectional_counting<A, B>(
    a: &mut A,
    b: &mut B,
    timeouts: Timeouts,
    moved: &Moved,
) -> Result<(u64, u64), CopyError>
where
    A: AsyncRead + AsyncWrite + Reset + Unpin,
    B: AsyncRead + AsyncWrite + Reset + Unpin,
{
    let mut forth = Direction::default();
    let mut back = Direction::default();
    let mut idle = Idle { timeouts, timer: None, moved: 0, since: Instant::now() };
    let outcome = poll_fn(|cx| {
        let forth_done = forth.poll(cx, a, b)?.is_ready();
        let back_done = back.poll(cx, b, a)?.is_ready();
        moved.set(forth.copied, back.copied);
        if forth_done && back_done {
            return Poll::Ready(Ok(()));
        }
        idle.poll(cx, forth.copied + back.copied, forth_done || back_done)
    })
    .await;
    moved.set(forth.copied, back.copied);
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
#[derive(Default)]
struct Direction {
    chunks: VecDeque<Bytes>,
    copied: u64,
    phase: Phase,
    unflushed: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Copying,
    /// The source has ended and all is written; the sink is to be told.
    Ending,
    Ended,
}

/// Watches that bytes move.
struct Idle {
    timeouts: Timeouts,
    timer: Option<Pin<Box<Sleep>>>,
    moved: u64,
    /// When they last did.
    since: Instant,
}

// === impl Direction ===

impl Direction {
    /// Ready when the source has ended and the sink knows.
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, source: &mut R, sink: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Reset + Unpin,
        W: AsyncWrite + Reset + Unpin,
    {
        for _ in 0..COPY_STEPS {
            match self.phase {
                Phase::Ended => return Poll::Ready(Ok(())),
                Phase::Ending => {
                    ready!(Pin::new(&mut *sink).poll_shutdown(cx))?;
                    self.phase = Phase::Ended;
                }
                Phase::Copying if !self.chunks.is_empty() => match ready!(sink.poll_give(cx, &mut self.chunks)) {
                    Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Ok(written) => {
                        self.copied += written as u64;
                        self.unflushed = true;
                    }
                    // The sink needs no more, which is no failure: a tunnel that was reset with NO_ERROR.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe && error.raw_os_error().is_none() => {
                        self.chunks = VecDeque::new();
                        self.phase = Phase::Ended;
                    }
                    Err(error) => return Poll::Ready(Err(error)),
                },
                Phase::Copying => match source.poll_take(cx, &mut self.chunks) {
                    Poll::Ready(Ok(0)) => self.phase = Phase::Ending,
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        // Idle, it holds no room for chunks either.
                        self.chunks = VecDeque::new();
                        // Nothing more for now, so what was written must not wait for more.
                        if self.unflushed {
                            ready!(Pin::new(&mut *sink).poll_flush(cx))?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                },
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Reads what is there. An idle stream holds no buffer, and a short message only as much as it needs.
fn read<R>(source: &mut R, cx: &mut Context<'_>, chunks: &mut VecDeque<Bytes>) -> Poll<io::Result<usize>>
where
    R: AsyncRead + Unpin,
{
    let mut buffer = buffers::take_in();
    let outcome = poll_read_buf(Pin::new(source), cx, &mut buffer);
    match outcome {
        Poll::Ready(Ok(length)) if length >= SHARED_PIECE_BYTES => chunks.push_back(buffer.freeze()),
        Poll::Ready(Ok(length)) => {
            if length > 0 {
                chunks.push_back(Bytes::copy_from_slice(&buffer));
            }
            buffers::give_in(buffer);
        }
        _ => buffers::give_in(buffer),
    }
    outcome
}

fn write<W>(sink: &mut W, cx: &mut Context<'_>, chunks: &mut VecDeque<Bytes>) -> Poll<io::Result<usize>>
where
    W: AsyncWrite + Unpin,
{
    let written = match chunks.front() {
        Some(only) if chunks.len() == 1 => ready!(Pin::new(sink).poll_write(cx, only))?,
        _ => {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let mut filled = 0;
            for (slice, chunk) in slices.iter_mut().zip(chunks.iter()) {
                *slice = IoSlice::new(chunk);
                filled += 1;
            }
            ready!(Pin::new(sink).poll_write_vectored(cx, &slices[..filled]))?
        }
    };
    let mut left = written;
    while left > 0
        && let Some(mut chunk) = chunks.pop_front()
    {
        if chunk.len() > left {
            chunk.advance(left);
            chunks.push_front(chunk);
            break;
        }
        left -= chunk.len();
        buffers::recycle(chunk);
    }
    Poll::Ready(Ok(written))
}

// === impl Idle ===

impl Idle {
    /// Ready with an error when nothing has moved for too long.
    fn poll(&mut self, cx: &mut Context<'_>, moved: u64, half_closed: bool) -> Poll<io::Result<()>> {
        if moved != self.moved {
            self.moved = moved;
            self.since = Instant::now();
        }
        let limit = if half_closed { self.timeouts.half_close } else { self.timeouts.idle };
        // A limit beyond all time is none.
        let Some(end) = self.since.checked_add(limit) else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        // A timer that is early is moved on when it fires: that is cheaper than to move it with every byte.
        if end < timer.deadline() {
            timer.as_mut().reset(end);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= end {
                let which = if half_closed { " after the other direction had ended" } else { "" };
                let message = format!("no byte within {limit:?}{which}");
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)));
            }
            timer.as_mut().reset(end);
        }
    }
}

// === impl Reset ===

impl Reset for TcpStream {
    fn reset(&mut self) {
        reset_on_close(self);
    }
}

// === impl Moved ===

impl Moved {
    /// From the first to the second stream, and back.
    #[must_use]
    pub fn get(&self) -> (u64, u64) {
        (self.a_to_b.load(Ordering::Relaxed), self.b_to_a.load(Ordering::Relaxed))
    }

    fn set(&self, a_to_b: u64, b_to_a: u64) {
        self.a_to_b.store(a_to_b, Ordering::Relaxed);
        self.b_to_a.store(b_to_a, Ordering::Relaxed);
    }
}

// === impl Timeouts ===

impl Default for Timeouts {
    fn default() -> Self {
        Self { half_close: HALF_CLOSE_IDLE_TIMEOUT, idle: IDLE_TIMEOUT }
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
