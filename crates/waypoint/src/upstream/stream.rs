//! A byte stream to an endpoint.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use ambit_hbone::{Tunnel, copy::Reset};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// A byte stream to an endpoint.
#[derive(Debug)]
pub(crate) enum Stream {
    /// Through HBONE.
    Tunnel(Box<Tunnel>),
    /// To a workload that isn't in the mesh.
    Plain(TcpStream),
}

// === impl Stream ===

impl Reset for Stream {
    fn reset(&mut self) {
        match self {
            Self::Tunnel(tunnel) => tunnel.reset(),
            Self::Plain(stream) => stream.reset(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tunnel(tunnel) => Pin::new(tunnel).poll_read(cx, buffer),
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tunnel(tunnel) => Pin::new(tunnel).poll_write(cx, bytes),
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tunnel(tunnel) => Pin::new(tunnel).poll_flush(cx),
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tunnel(tunnel) => Pin::new(tunnel).poll_shutdown(cx),
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
