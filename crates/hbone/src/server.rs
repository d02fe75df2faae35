//! The accepting end: mutual TLS, HTTP/2, and the CONNECT requests that come in (`spec/ztunnel.md` 2 and 5.1).

use std::{
    fmt,
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use ambit_identity::{Distrust, SpiffeId, WorkloadCertificate, peer_identity};
use http::{HeaderMap, Method, StatusCode, uri::Authority};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

use crate::{
    Limits, Tunnel,
    headers::{ConnectHeaders, HeaderError},
    http2::{Driver, Ended, Incoming, ResponseHead, Shared},
    refusal,
    socket::fold_mapped,
    tls,
    trusted::{Peer, TrustChanges, Trusted},
};

/// An accepted HBONE connection. Dropping it ends all its tunnels.
pub struct Connection {
    http2: Arc<Shared>,
    peer: SpiffeId,
    certificates: Arc<[CertificateDer<'static>]>,
    peer_addr: SocketAddr,
    local_addr: SocketAddr,
    /// Why it was ended, if the peer is no longer trusted.
    distrust: Arc<OnceLock<Distrust>>,
    ended: bool,
}

/// A request on a connection that waits for its answer. Dropping it unanswered resets the stream.
pub struct ConnectRequest {
    incoming: Incoming,
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
}

/// What ended a connection, or kept an answer from being sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection failed, or the peer is dead.
    #[error("the connection with `{peer}` failed: {reason}")]
    Connection {
        /// The peer's address.
        peer: SocketAddr,
        /// What failed.
        reason: Arc<str>,
    },
    /// The peer is no longer trusted: revoked, or the root that vouched for it is gone.
    #[error("the connection with `{peer}` was ended, since it is no longer trusted: {distrust}")]
    Distrusted {
        /// The peer's address.
        peer: SocketAddr,
        /// What has changed.
        distrust: Distrust,
    },
    /// The stream was reset before it was answered.
    #[error("the tunnel is gone: {reason}")]
    Stream {
        /// What ended it.
        reason: String,
    },
}

/// Does the TLS handshake of the accepting side on `stream` as the workload of `certificate`, and begins with HTTP/2.
/// The client must show a valid certificate of the same trust domain; once that is no longer trusted, the connection
/// ends. A client that doesn't begin with HTTP/2 within [`Limits::handshake_timeout`] is dropped afterwards.
///
/// The connection's bytes are moved by a task that this starts.
///
/// # Errors
/// When the client doesn't, or doesn't finish within [`Limits::handshake_timeout`], or `certificate` is expired.
pub async fn accept(
    stream: TcpStream,
    certificate: Arc<WorkloadCertificate>,
    limits: &Limits,
) -> Result<Connection, AcceptError> {
    let peer_addr = fold_mapped(stream.peer_addr()?);
    let local_addr = fold_mapped(stream.local_addr()?);
    stream.set_nodelay(true)?;
    accept_over(stream, certificate, limits, peer_addr, local_addr).await
}

/// As [`accept`], over any byte stream: a tunnel that carries a tunnel. The addresses are what the connection will say.
///
/// # Errors
/// As [`accept`].
pub async fn accept_over<T>(
    mut stream: T,
    certificate: Arc<WorkloadCertificate>,
    limits: &Limits,
    peer_addr: SocketAddr,
    local_addr: SocketAddr,
) -> Result<Connection, AcceptError>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    if !certificate.is_valid_now() {
        return Err(AcceptError::Expired { identity: certificate.identity().clone() });
    }
    let after = limits.handshake_timeout;
    let config = tls::server_config(&certificate);
    let changes = TrustChanges::begin(&certificate);
    let handshake = async move {
        let tls = tls::accept(&mut stream, config).await;
        (stream, tls)
    };
    let done = timeout(after, limits.budget.turns.run(handshake)).await;
    let done = done.map_err(|_| AcceptError::Timeout { peer: peer_addr, after })?;
    let (stream, tls) = done.map_err(|ended| io::Error::other(ended.to_string()))?;
    let tls = tls.map_err(|error| AcceptError::Tls { peer: peer_addr, error: error.into() })?;
    if tls.protocol.as_deref() != Some(b"h2") {
        return Err(AcceptError::Peer { peer: peer_addr, reason: "it doesn't speak `h2`" });
    }
    let identity = peer_identity(&tls.peer);
    let peer = identity.ok_or(AcceptError::Peer { peer: peer_addr, reason: "it has no workload identity" })?;
    let certificates: Arc<[_]> = tls.peer.as_slice().into();
    let (driver, http2) = Driver::server(stream, tls, limits);
    let distrust = Arc::new(OnceLock::new());
    let shown = Peer { certificate, chain: Arc::clone(&certificates), expected: None };
    tokio::spawn(Trusted::new(driver, shown, changes, Arc::clone(&distrust)));
    Ok(Connection { http2, peer, certificates, peer_addr, local_addr, distrust, ended: false })
}

// === impl Connection ===

impl Connection {
    /// Who the peer is, from its certificate.
    #[must_use]
    pub fn peer(&self) -> &SpiffeId {
        &self.peer
    }

    /// The peer's certificates, leaf first: what a revocation list is checked against.
    #[must_use]
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
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

    /// The next request, or `None` when the connection is over. Handle each request in a task of its own, so that the
    /// next one need not wait. Cancel-safe. After an error drop the connection.
    pub async fn next(&mut self) -> Option<Result<ConnectRequest, Error>> {
        if self.ended {
            return None;
        }
        let outcome = poll_fn(|cx| self.http2.poll_accept(cx)).await;
        self.ended = outcome.is_err();
        match outcome {
            Ok(incoming) => Some(Ok(ConnectRequest { incoming })),
            Err(Ended::Finished) => None,
            Err(Ended::Failed(reason)) => {
                let peer = self.peer_addr;
                Some(Err(match self.distrust.get() {
                    Some(distrust) => Error::Distrusted { peer, distrust: distrust.clone() },
                    None => Error::Connection { peer, reason },
                }))
            }
        }
    }

    /// Tells the peer to open no more tunnels here, in two steps, so that none is lost: those it opens before it has
    /// heard of it are still given by [`next`](Self::next), to be answered or refused. Those open live on; keep awaiting
    /// `next`, which gives `None` once all have ended.
    pub fn graceful_shutdown(&mut self) {
        self.http2.drain();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.http2.close();
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
        &self.incoming.head.method
    }

    /// `:authority`: where the tunnel shall lead.
    #[must_use]
    pub fn authority(&self) -> Option<&Authority> {
        self.incoming.head.authority.as_ref()
    }

    /// The request's other headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.incoming.head.headers
    }

    /// The headers that say on whose behalf the tunnel is opened.
    ///
    /// # Errors
    /// When one of them is malformed. They prove nothing, so whether that matters is the caller's to say.
    pub fn connect_headers(&self) -> Result<ConnectHeaders, HeaderError> {
        ConnectHeaders::parse(self.headers())
    }

    /// Answers 200 with `headers`; bytes may flow from now on.
    ///
    /// # Errors
    /// When the peer has reset the stream, or the connection is gone.
    pub fn accept(self, headers: HeaderMap) -> Result<Tunnel, Error> {
        let head = ResponseHead { status: StatusCode::OK, headers };
        let stream = self.incoming.accept(&head).map_err(|broken| Error::Stream { reason: broken.to_string() })?;
        Ok(Tunnel::new(stream, HeaderMap::new(), None))
    }

    /// Answers `status` and ends the stream.
    pub fn refuse(self, status: StatusCode) {
        self.answer(status, HeaderMap::new());
    }

    /// The same, and says why, in one line: it arrives as the reason of
    /// [`ConnectError::Refused`](crate::ConnectError::Refused).
    pub fn refuse_because(self, status: StatusCode, reason: &str) {
        self.answer(status, refusal::headers(reason));
    }

    fn answer(self, status: StatusCode, headers: HeaderMap) {
        if let Err(error) = self.incoming.refuse_with(status, headers) {
            tracing::debug!(%error, "the refused tunnel was gone already");
        }
    }
}

impl fmt::Debug for ConnectRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectRequest")
            .field("method", self.method())
            .field("authority", &self.authority())
            .finish_non_exhaustive()
    }
}
