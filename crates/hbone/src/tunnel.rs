//! A CONNECT stream as a byte stream (`spec/ztunnel.md` 2.7).

use std::{
    collections::VecDeque,
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    client::Lease,
    copy::Reset,
    http2::{Broken, Stream, frame::Code},
    limits::MAX_WRITE_BYTES,
};

/// The bytes inside one CONNECT stream.
///
/// Shutting it down sends END_STREAM, and END_STREAM received reads as the end. A stream that the peer resets, or whose
/// connection dies, reads and writes as [`io::ErrorKind::ConnectionReset`]: a broken stream never looks like a finished
/// one. (A reset with NO_ERROR is no failure: it reads as the end, and writes as [`io::ErrorKind::BrokenPipe`].) Dropping
/// it before both directions have ended resets it with CANCEL; [`Reset::reset`] resets it with CONNECT_ERROR, the code
/// for a reset of the proxied connection (RFC 9113 8.5).
pub struct Tunnel {
    stream: Stream,
    /// Received and not yet read.
    received: VecDeque<Bytes>,
    /// END_STREAM is sent, or the stream is reset: nothing more can be written.
    finished: bool,
    headers: HeaderMap,
    /// Counts this stream on its pooled connection.
    _lease: Option<Lease>,
}

impl Tunnel {
    pub(crate) fn new(stream: Stream, headers: HeaderMap, lease: Option<Lease>) -> Self {
        Self { stream, received: VecDeque::new(), finished: false, headers, _lease: lease }
    }

    /// What the peer answered the CONNECT with; empty on the side that accepted it.
    #[must_use]
    pub fn response_headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The same, and forgets it: a tunnel that is idle for long needs no headers.
    #[must_use]
    pub fn take_response_headers(&mut self) -> HeaderMap {
        std::mem::take(&mut self.headers)
    }
}

fn broken(broken: Broken) -> io::Error {
    let kind = match broken {
        Broken::Peer(Code::NO_ERROR) => io::ErrorKind::BrokenPipe,
        _ => io::ErrorKind::ConnectionReset,
    };
    io::Error::new(kind, broken)
}

// === impl Tunnel ===

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let Self { stream, received, .. } = &mut *self;
        if received.is_empty() {
            ready!(stream.poll_take(cx, received)).map_err(broken)?;
        }
        while buf.remaining() > 0
            && let Some(chunk) = received.front_mut()
        {
            let length = buf.remaining().min(chunk.len());
            buf.put_slice(&chunk.split_to(length));
            if chunk.is_empty() {
                received.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let length = buf.len().min(MAX_WRITE_BYTES);
        // Room is asked for first, so that bytes are copied only once they can go.
        ready!(self.stream.poll_give(cx, &mut VecDeque::new())).map_err(broken)?;
        let mut chunks = VecDeque::from([Bytes::copy_from_slice(&buf[..length])]);
        self.stream.poll_give(cx, &mut chunks).map_err(broken)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's driver writes out what is queued.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.finished {
            self.finished = true;
            self.stream.finish().map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Reset for Tunnel {
    fn reset(&mut self) {
        self.finished = true;
        self.stream.reset(Code::CONNECT_ERROR);
    }

    fn poll_take(&mut self, cx: &mut Context<'_>, chunks: &mut VecDeque<Bytes>) -> Poll<io::Result<usize>> {
        let left: usize = self.received.iter().map(Bytes::len).sum();
        if left > 0 {
            chunks.append(&mut self.received);
            return Poll::Ready(Ok(left));
        }
        self.stream.poll_take(cx, chunks).map_err(broken)
    }

    fn poll_give(&mut self, cx: &mut Context<'_>, chunks: &mut VecDeque<Bytes>) -> Poll<io::Result<usize>> {
        if self.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.stream.poll_give(cx, chunks).map_err(broken)
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("stream", &self.stream.id()).finish_non_exhaustive()
    }
}
