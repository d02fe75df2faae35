//! The accepting end: mutual TLS, HTTP/2, and the CONNECT requests that come in (`spec/ztunnel.md` 2 and 5.1).

use std::{
    fmt,
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use ambit_identity::{SpiffeId, WorkloadCertificate, peer_identity};
use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{HeaderMap, Method, Response, StatusCode, request::Parts, uri::Authority};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{Limits, Tunnel, keepalive::KeepAlive, socket::fold_mapped};

/// An accepted HBONE connection. Dropping it ends all its tunnels.
pub struct Connection {
    http2: h2::server::Connection<TlsStream<TcpStream>, Bytes>,
    keepalive: KeepAlive,
    keepalive_timeout: Duration,
    peer: SpiffeId,
    peer_addr: SocketAddr,
    local_addr: SocketAddr,
    ended: bool,
}

/// A request on a connection that waits for its answer. Dropping it unanswered resets the stream.
pub struct ConnectRequest {
    head: Parts,
    recv: RecvStream,
    respond: SendResponse<Bytes>,
}

/// Why a connection was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The socket failed before TLS began.
    #[error("the connection is gone: {0}")]
    Socket(#[from] io::Error),
    /// Our own certificate's time is over.
    #[error("the certificate of `{identity}` is expired; nothing is served under it")]
    Expired {
        /// Whose certificate.
        identity: SpiffeId,
    },
    /// The handshakes were not done in time.
    #[error("`{peer}` did not finish its handshake within {after:?}")]
    Timeout {
        /// Who connected.
        peer: SocketAddr,
        /// How long it was waited for.
        after: Duration,
    },
    /// TLS failed: no certificate, a foreign one, or not TLS 1.3.
    #[error("TLS with `{peer}` failed: {error}")]
    Tls {
        /// Who connected.
        peer: SocketAddr,
        /// What TLS said.
        error: io::Error,
    },
    /// The client did not offer HTTP/2, or showed no identity.
    #[error("`{peer}` is refused: {reason}")]
    Peer {
        /// Who connected.
        peer: SocketAddr,
        /// What is missing.
        reason: &'static str,
    },
    /// The HTTP/2 preface failed.
    #[error("HTTP/2 with `{peer}` failed: {error}")]
    Http2 {
        /// Who connected.
        peer: SocketAddr,
        /// What HTTP/2 said.
        error: h2::Error,
    },
}

/// What ended a connection, or kept an answer from being sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection failed.
    #[error("the connection with `{peer}` failed: {error}")]
    Connection {
        /// The peer's address.
        peer: SocketAddr,
        /// What HTTP/2 said.
        error: h2::Error,
    },
    /// The peer does not answer pings.
    #[error("`{peer}` did not answer a ping within {after:?}")]
    KeepAlive {
        /// The peer's address.
        peer: SocketAddr,
        /// How long it was waited for.
        after: Duration,
    },
    /// The stream was reset before it was answered.
    #[error("the tunnel is gone: {error}")]
    Stream {
        /// What HTTP/2 said.
        error: h2::Error,
    },
}

/// Does the TLS and HTTP/2 handshakes of the accepting side on `stream` as the workload of `certificate`. The client
/// must show a valid certificate of the same trust domain.
///
/// # Errors
/// When it doesn't, or doesn't finish within [`Limits::handshake_timeout`], or `certificate` is expired.
pub async fn accept(
    stream: TcpStream,
    certificate: Arc<WorkloadCertificate>,
    limits: &Limits,
) -> Result<Connection, AcceptError> {
    if !certificate.is_valid_now() {
        return Err(AcceptError::Expired { identity: certificate.identity().clone() });
    }
    let peer_addr = fold_mapped(stream.peer_addr()?);
    let local_addr = fold_mapped(stream.local_addr()?);
    stream.set_nodelay(true)?;
    let after = limits.handshake_timeout;
    let handshakes = async {
        let tls = TlsAcceptor::from(certificate.server_config()).accept(stream).await;
        let tls = tls.map_err(|error| AcceptError::Tls { peer: peer_addr, error })?;
        let session = tls.get_ref().1;
        if session.alpn_protocol() != Some(b"h2") {
            return Err(AcceptError::Peer { peer: peer_addr, reason: "it doesn't speak `h2`" });
        }
        let identity = session.peer_certificates().and_then(peer_identity);
        let peer = identity.ok_or(AcceptError::Peer { peer: peer_addr, reason: "it has no workload identity" })?;
        let http2 = builder(limits).handshake(tls).await;
        Ok((peer, http2.map_err(|error| AcceptError::Http2 { peer: peer_addr, error })?))
    };
    let outcome = timeout(after, handshakes).await;
    let (peer, mut http2) = outcome.map_err(|_| AcceptError::Timeout { peer: peer_addr, after })??;
    let keepalive = KeepAlive::new(http2.ping_pong(), limits);
    let keepalive_timeout = limits.keepalive_timeout;
    Ok(Connection { http2, keepalive, keepalive_timeout, peer, peer_addr, local_addr, ended: false })
}

fn builder(limits: &Limits) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(limits.stream_window_bytes)
        .initial_connection_window_size(limits.connection_window_bytes)
        .max_frame_size(limits.max_frame_bytes)
        .max_header_list_size(limits.server_header_bytes)
        .max_concurrent_streams(limits.max_accepted_streams)
        .max_send_buffer_size(limits.server_send_buffer_bytes);
    builder
}

// === impl Connection ===

impl Connection {
    /// Who the peer is, from its certificate.
    #[must_use]
    pub fn peer(&self) -> &SpiffeId {
        &self.peer
    }

    /// The peer's address; IPv4 in its plain form.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer_addr
    }

    /// The address the peer connected to; IPv4 in its plain form.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The next request, or `None` when the connection is over. This also drives all tunnels of the connection, so it
    /// must be awaited all the time: handle each request in a task of its own. Cancel-safe. After an error drop the
    /// connection.
    pub async fn next(&mut self) -> Option<Result<ConnectRequest, Error>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<ConnectRequest, Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.keepalive.poll_dead(cx).is_ready() {
            self.ended = true;
            self.http2.abrupt_shutdown(Reason::NO_ERROR);
            // One try to send the GOAWAY; a dead peer must not hold us.
            let _ = self.http2.poll_closed(cx);
            let error = Error::KeepAlive { peer: self.peer_addr, after: self.keepalive_timeout };
            return Poll::Ready(Some(Err(error)));
        }
        match ready!(self.http2.poll_accept(cx)) {
            Some(Ok((request, respond))) => {
                let (head, recv) = request.into_parts();
                Poll::Ready(Some(Ok(ConnectRequest { head, recv, respond })))
            }
            Some(Err(error)) => {
                self.ended = true;
                Poll::Ready(Some(Err(Error::Connection { peer: self.peer_addr, error })))
            }
            None => {
                self.ended = true;
                Poll::Ready(None)
            }
        }
    }

    /// Tells the peer to open no more tunnels here. Those open live on: keep awaiting [`next`](Self::next), which gives
    /// the requests still under way and then `None` once all tunnels have ended.
    pub fn graceful_shutdown(&mut self) {
        self.http2.graceful_shutdown();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.peer)
            .field("peer_addr", &self.peer_addr)
            .finish_non_exhaustive()
    }
}

// === impl ConnectRequest ===

impl ConnectRequest {
    /// The method; anything but CONNECT is to be refused with 400.
    #[must_use]
    pub fn method(&self) -> &Method {
        &self.head.method
    }

    /// `:authority`: where the tunnel shall lead.
    #[must_use]
    pub fn authority(&self) -> Option<&Authority> {
        self.head.uri.authority()
    }

    /// The request's other headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// Answers 200 with `headers`; bytes may flow from now on.
    ///
    /// # Errors
    /// When the peer has reset the stream, or the connection is gone.
    pub fn accept(mut self, headers: HeaderMap) -> Result<Tunnel, Error> {
        let mut response = Response::new(());
        *response.headers_mut() = headers;
        let send = self.respond.send_response(response, false).map_err(|error| Error::Stream { error })?;
        Ok(Tunnel::new(send, self.recv, HeaderMap::new(), None))
    }

    /// Answers `status` and ends the stream.
    pub fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        if let Err(error) = self.respond.send_response(response, true) {
            tracing::debug!(%error, "the refused tunnel was gone already");
        }
    }
}

impl fmt::Debug for ConnectRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectRequest")
            .field("method", &self.head.method)
            .field("authority", &self.head.uri.authority())
            .finish_non_exhaustive()
    }
}
