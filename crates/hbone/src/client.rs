//! The connecting end: tunnels over pooled connections (`spec/ztunnel.md` 2 and 3).

use std::{
    fmt,
    net::SocketAddr,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ambit_identity::{CertificateError, CertificateStore, SpiffeId};
use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Method, Request, StatusCode, Uri, Version, uri::Authority};
use rustls::pki_types::{IpAddr, Ipv4Addr, ServerName};
use tokio::{net::TcpStream, sync::watch, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub(crate) use crate::pooled::Lease;
use crate::{
    Limits, Network, Tunnel,
    keepalive::KeepAlive,
    pooled::{self, Key, Peers, Pooled, Slot},
    socket::{self, ConnectOptions},
};

/// Connections to peers, shared by the tunnels that may share them: same network namespace, same source identity, same
/// expected identities, same address, same mark.
pub struct Pool {
    certificates: Arc<CertificateStore>,
    limits: Limits,
    peers: Arc<Peers>,
    /// Numbers the connections, so that a retry can ask for one made after the failure.
    sequence: AtomicU64,
    stop: watch::Sender<Stop>,
}

/// A tunnel to open.
#[derive(Clone, Debug)]
pub struct Connect {
    /// Where the socket is made. Connections are shared only within one `Arc`: keep one per namespace.
    pub network: Arc<dyn Network>,
    /// Whose certificate is presented.
    pub source: SpiffeId,
    /// The peer's HBONE address, `ip:15008`.
    pub peer: SocketAddr,
    /// The peer must be one of these. With none, no peer will do.
    pub expected: Vec<SpiffeId>,
    /// `:authority`, where the tunnel shall lead: `ip:port`, IPv6 in brackets.
    pub authority: String,
    /// Further headers of the CONNECT.
    pub headers: HeaderMap,
    /// `SO_MARK` of the connection's socket.
    pub mark: Option<u32>,
}

/// Why there is no tunnel.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// We have no certificate to show.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The authority can't stand in a request.
    #[error("`{authority}` is not an authority; expected `ip:port`")]
    Authority {
        /// The text.
        authority: String,
    },
    /// No TCP connection.
    #[error("can't connect to `{peer}`: {reason}; is a proxy listening there, or a NetworkPolicy in the way?")]
    Tcp {
        /// The HBONE address.
        peer: SocketAddr,
        /// What the system answered.
        reason: String,
    },
    /// The peer is not who we expect, refuses us, or speaks no TLS 1.3.
    #[error("TLS with `{peer}` failed: {reason}")]
    Tls {
        /// The HBONE address.
        peer: SocketAddr,
        /// What TLS said.
        reason: String,
    },
    /// The handshakes were not done in time.
    #[error("`{peer}` did not finish its handshake within {after:?}")]
    HandshakeTimeout {
        /// The HBONE address.
        peer: SocketAddr,
        /// How long it was waited for.
        after: Duration,
    },
    /// The connection or the stream ended before there was an answer.
    #[error("`{peer}` dropped the tunnel before it answered: {reason}")]
    Dropped {
        /// The HBONE address.
        peer: SocketAddr,
        /// What HTTP/2 said.
        reason: String,
    },
    /// No answer to the CONNECT in time.
    #[error("`{peer}` did not answer within {after:?}")]
    ResponseTimeout {
        /// The HBONE address.
        peer: SocketAddr,
        /// How long it was waited for.
        after: Duration,
    },
    /// The peer answered, but not with 200.
    #[error("`{peer}` refused the tunnel with status {}", status.as_u16())]
    Refused {
        /// The HBONE address.
        peer: SocketAddr,
        /// 400: bad request; 401: denied by policy; 503: the destination can't be reached.
        status: StatusCode,
    },
    /// Every connection to the peer is full.
    #[error("`{peer}` already has {limit} full connections; wait for streams to end")]
    TooManyConnections {
        /// The HBONE address.
        peer: SocketAddr,
        /// How many are allowed.
        limit: usize,
    },
    /// The pool takes no more work.
    #[error("the proxy is shutting down")]
    Closed,
}

/// How far the pool has come with ending.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    No,
    Drain,
    Now,
}

impl Pool {
    /// An empty pool that shows certificates of `certificates`.
    #[must_use]
    pub fn new(certificates: Arc<CertificateStore>, limits: Limits) -> Arc<Self> {
        let (stop, _) = watch::channel(Stop::No);
        Arc::new(Self { certificates, limits, peers: Arc::default(), sequence: AtomicU64::new(0), stop })
    }

    /// Opens a tunnel, over a shared connection when there is one with room, and gives it once the peer answered 200.
    /// When a connection that was already there turns out to be dead, the request is tried once more on a new one; no
    /// byte of the tunnel has been sent by then.
    ///
    /// # Errors
    /// When any step fails; the error names the step and the peer.
    pub async fn connect(&self, request: Connect) -> Result<Tunnel, ConnectError> {
        if *self.stop.borrow() != Stop::No {
            return Err(ConnectError::Closed);
        }
        let Connect { network, source, peer, expected, authority, headers, mark } = request;
        let authority =
            Authority::from_str(&authority).map_err(|_| ConnectError::Authority { authority: authority.clone() })?;
        let key = Key::new(network, source, expected, peer, mark);
        let (lease, reused) = self.lease(&key, 0).await?;
        match self.open(lease, &authority, &headers, peer).await {
            Err(OpenError::Dead(reason)) if reused => {
                tracing::debug!(%peer, reason, "a pooled connection was dead, trying a new one");
                let newest = self.sequence.load(Ordering::Relaxed);
                let (lease, _) = self.lease(&key, newest).await?;
                self.open(lease, &authority, &headers, peer).await
            }
            outcome => outcome,
        }
        .map_err(|error| match error {
            OpenError::Dead(reason) => ConnectError::Dropped { peer, reason },
            OpenError::Final(error) => error,
        })
    }

    /// Refuses new tunnels from now on; each connection ends with its last tunnel.
    pub fn drain(&self) {
        self.stop.send_if_modified(|stop| std::mem::replace(stop, (*stop).max(Stop::Drain)) == Stop::No);
        self.peers.retain(|_| false);
    }

    /// Ends every connection now, tunnels and all.
    pub fn close(&self) {
        self.stop.send_replace(Stop::Now);
        self.peers.retain(|_| false);
    }

    /// Lets go of the connections made in `network`; each ends with its last tunnel.
    pub fn forget_network(&self, network: &Arc<dyn Network>) {
        self.peers.retain(|key| !key.is_in(network));
    }

    /// Room for a stream on a connection numbered above `newer_than`, and whether that connection was there already.
    async fn lease(&self, key: &Key, newer_than: u64) -> Result<(Lease, bool), ConnectError> {
        let slot = self.peers.slot(key);
        if let Some(lease) = slot.checkout(newer_than) {
            return Ok((lease, true));
        }
        let failures = slot.failures();
        let _creating = slot.creating.lock().await;
        if let Some(lease) = slot.checkout(newer_than) {
            return Ok((lease, true));
        }
        // Whoever created before us failed while we waited: its answer is ours, or a queue would wait one timeout each.
        if let Some(error) = slot.failure_since(failures) {
            return Err(error);
        }
        let made = match slot.len() {
            full if full >= self.limits.max_connections_per_peer => {
                Err(ConnectError::TooManyConnections { peer: key.peer, limit: full })
            }
            _ => self.dial(key, &slot).await,
        };
        match made {
            Ok(lease) => Ok((lease, false)),
            Err(error) => {
                slot.fail(error.clone());
                Err(error)
            }
        }
    }

    async fn dial(&self, key: &Key, slot: &Slot) -> Result<Lease, ConnectError> {
        let certificate = self.certificates.get(&key.source).await?;
        let options = ConnectOptions { source: None, mark: key.mark, timeout: self.limits.connect_timeout };
        let peer = key.peer;
        let tcp = socket::connect(key.network(), peer, &options).await;
        let tcp = tcp.map_err(|error| ConnectError::Tcp { peer, reason: error.to_string() })?;
        let after = self.limits.handshake_timeout;
        let connector = TlsConnector::from(certificate.client_config(&key.expected));
        let handshakes = async {
            let tls_failed = |reason: String| ConnectError::Tls { peer, reason };
            // The name is never sent and never checked: who the peer must be is in the configuration.
            let nobody = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0, 0, 0, 0])));
            let tls = connector.connect(nobody, tcp).await.map_err(|error| tls_failed(error.to_string()))?;
            if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
                return Err(tls_failed("the peer doesn't speak `h2`".to_owned()));
            }
            let http2 = builder(&self.limits).handshake::<_, Bytes>(tls).await;
            http2.map_err(|error| ConnectError::Dropped { peer, reason: error.to_string() })
        };
        let outcome = timeout(after, handshakes).await;
        let (send, mut http2) = outcome.map_err(|_| ConnectError::HandshakeTimeout { peer, after })??;
        let keepalive = KeepAlive::new(http2.ping_pong(), &self.limits);
        let id = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let (pooled, lease) = Pooled::new(id, send, certificate, self.limits.max_streams_per_connection);
        // A pool that began to end meanwhile keeps nothing.
        if *self.stop.borrow() != Stop::No {
            return Err(ConnectError::Closed);
        }
        let driver = pooled::Driver::new(&pooled, key.clone(), &self.peers, self.limits.idle_timeout);
        slot.insert(pooled);
        tokio::spawn(drive(http2, keepalive, driver, self.stop.subscribe()));
        Ok(lease)
    }

    async fn open(
        &self,
        mut lease: Lease,
        authority: &Authority,
        headers: &HeaderMap,
        peer: SocketAddr,
    ) -> Result<Tunnel, OpenError> {
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = Uri::from(authority.clone());
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = headers.clone();
        let (response, send) = lease.send.send_request(request, false).map_err(OpenError::from_h2)?;
        let after = self.limits.response_timeout;
        let response = timeout(after, response)
            .await
            .map_err(|_| OpenError::Final(ConnectError::ResponseTimeout { peer, after }))?
            .map_err(|error| OpenError::from_answer(peer, error))?;
        if response.status() != StatusCode::OK {
            return Err(OpenError::Final(ConnectError::Refused { peer, status: response.status() }));
        }
        let (head, recv) = response.into_parts();
        Ok(Tunnel::new(send, recv, head.headers, Some(lease)))
    }
}

fn builder(limits: &Limits) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(limits.stream_window_bytes)
        .initial_connection_window_size(limits.connection_window_bytes)
        .max_frame_size(limits.max_frame_bytes)
        .max_header_list_size(limits.client_header_bytes)
        .max_send_buffer_size(limits.client_send_buffer_bytes)
        .initial_max_send_streams(limits.max_streams_per_connection)
        .enable_push(false);
    builder
}

/// Moves a connection's bytes until it ends, is dead, or is told to end.
async fn drive(
    mut http2: h2::client::Connection<TlsStream<TcpStream>, Bytes>,
    mut keepalive: KeepAlive,
    driver: pooled::Driver,
    mut stop: watch::Receiver<Stop>,
) {
    let peer = driver.peer();
    let stopped = async {
        // A pool that is dropped lets its tunnels live on.
        if stop.wait_for(|stop| *stop == Stop::Now).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            outcome = &mut http2 => {
                if let Err(error) = outcome {
                    tracing::debug!(%peer, %error, "connection ended");
                }
                break;
            }
            () = std::future::poll_fn(|cx| keepalive.poll_dead(cx)) => {
                tracing::warn!(%peer, "connection dropped: no answer to a ping");
                break;
            }
            () = &mut stopped => break,
            () = driver.look_again() => driver.retire_if_idle(),
        }
    }
    // First out of the pool, then the streams fail: a retry can't be given this connection again.
    drop(driver);
    drop(http2);
}

/// Why a stream could not be opened on a connection.
enum OpenError {
    /// The connection is no good; the peer has not answered.
    Dead(String),
    Final(ConnectError),
}

// === impl OpenError ===

impl OpenError {
    fn from_h2(error: h2::Error) -> Self {
        Self::Dead(error.to_string())
    }

    fn from_answer(peer: SocketAddr, error: h2::Error) -> Self {
        // A refused stream was not processed (RFC 9113 8.7). A reset for another reason is the peer's answer.
        if error.is_io() || error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM) {
            Self::Dead(error.to_string())
        } else {
            Self::Final(ConnectError::Dropped { peer, reason: error.to_string() })
        }
    }
}

// === impl Pool ===

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("peers", &self.peers.len()).finish_non_exhaustive()
    }
}
