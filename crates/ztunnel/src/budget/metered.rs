//! One side of a carried connection, with what waits to be written to it counted as the pod's memory.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use ambit_hbone::{
    budget::{Bound, Charge},
    copy::Reset,
};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::limits::SHORT_READ_BYTES;

/// Counts only what can't go on, so a connection whose both sides read costs nothing.
pub(crate) struct Metered<'s, S> {
    inner: &'s mut S,
    waiting: Charge,
}

impl<'s, S> Metered<'s, S> {
    /// While `memory` is short, little is read of `inner` at once.
    pub(crate) fn new(inner: &'s mut S, memory: &Arc<Bound>) -> Self {
        Self { inner, waiting: Charge::new(Some(Arc::clone(memory)), SHORT_READ_BYTES) }
    }
}

// === impl Metered ===

impl<S: AsyncRead + Unpin> AsyncRead for Metered<'_, S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.inner).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Reset + Unpin> Reset for Metered<'_, S> {
    fn reset(&mut self) {
        self.inner.reset();
    }

    fn poll_take(&mut self, cx: &mut Context<'_>, chunks: &mut VecDeque<Bytes>) -> Poll<io::Result<usize>> {
        if !self.waiting.is_short() {
            return self.inner.poll_take(cx, chunks);
        }
        let mut little = BytesMut::with_capacity(SHORT_READ_BYTES);
        let length = ready!(poll_read_buf(Pin::new(&mut *self.inner), cx, &mut little))?;
        if length > 0 {
            chunks.push_back(little.freeze());
        }
        Poll::Ready(Ok(length))
    }

    fn poll_give(&mut self, cx: &mut Context<'_>, chunks: &mut VecDeque<Bytes>) -> Poll<io::Result<usize>> {
        let outcome = self.inner.poll_give(cx, chunks);
        let waiting = if outcome.is_pending() { chunks.iter().map(Bytes::len).sum() } else { 0 };
        self.waiting.hold(waiting);
        outcome
    }
}
