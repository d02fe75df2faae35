//! A CONNECT stream as a byte stream (`spec/ztunnel.md` 2.7).

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{client::Lease, copy::Reset, limits::MAX_WRITE_BYTES};

/// The bytes inside one CONNECT stream.
///
/// Shutting it down sends END_STREAM, and END_STREAM received reads as the end. A stream that the peer resets, or whose
/// connection dies, reads and writes as [`io::ErrorKind::ConnectionReset`]: a broken stream never looks like a finished
/// one. Dropping it before both directions have ended resets it with CANCEL.
///
/// It moves only while its connection is driven: the server's by [`Connection::next`](crate::Connection::next), the
/// pool's by a task of its own.
pub struct Tunnel {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// Received and not yet read. Its share of the window is given back as it is read, so a slow reader slows the peer.
    received: Bytes,
    /// END_STREAM is sent, or the stream is reset: nothing more can be written.
    finished: bool,
    headers: HeaderMap,
    /// Counts this stream on its pooled connection.
    _lease: Option<Lease>,
}

impl Tunnel {
    pub(crate) fn new(send: SendStream<Bytes>, recv: RecvStream, headers: HeaderMap, lease: Option<Lease>) -> Self {
        Self { send, recv, received: Bytes::new(), finished: false, headers, _lease: lease }
    }

    /// What the peer answered the CONNECT with; empty on the side that accepted it.
    #[must_use]
    pub fn response_headers(&self) -> &HeaderMap {
        &self.headers
    }
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

// === impl Tunnel ===

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        while self.received.is_empty() {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(data)) => self.received = data,
                // How a server says that it has answered in full and needs no more; not a failure.
                Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) && error.is_reset() => {
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = buf.remaining().min(self.received.len());
        buf.put_slice(&self.received.split_to(length));
        // Fails only when the stream is gone already, which the next read will tell.
        let _ = self.recv.flow_control().release_capacity(length);
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
        let wanted = buf.len().min(MAX_WRITE_BYTES);
        self.send.reserve_capacity(wanted);
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => {
                    let message = "the peer reset the tunnel";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, message)));
                }
            }
        }
        let length = wanted.min(self.send.capacity());
        self.send.send_data(Bytes::copy_from_slice(&buf[..length]), false).map_err(broken)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's driver writes out what is queued.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.finished {
            self.finished = true;
            // What was reserved and not used goes back to the connection's other streams.
            self.send.reserve_capacity(0);
            self.send.send_data(Bytes::new(), true).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Reset for Tunnel {
    fn reset(&mut self) {
        self.finished = true;
        self.send.send_reset(Reason::CANCEL);
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("stream", &self.recv.stream_id()).finish_non_exhaustive()
    }
}
