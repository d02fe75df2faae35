//! The connecting end: tunnels over pooled connections (`spec/ztunnel.md` 2 and 3).

use std::{
    fmt,
    future::poll_fn,
    net::SocketAddr,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ambit_identity::{CertificateError, CertificateStore, SpiffeId, WorkloadCertificate};
use http::{HeaderMap, Method, StatusCode, uri::Authority};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    time::timeout,
};

pub(crate) use crate::pooled::Lease;
use crate::{
    Limits, Network, Tunnel,
    budget::{OverBudget, Places},
    http2::{Broken, Driver, Ended, RequestHead},
    limits::{MAX_OPEN_ATTEMPTS, SPREAD_TIMEOUT},
    pooled::{self, Key, Peers, Pooled, Room, Slot},
    refusal,
    socket::{self, ConnectOptions},
    tls::{self, Established},
    trusted::{Peer, TrustChanges, Trusted},
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
    /// The way leads out of this network: the machine's own congestion control is kept.
    pub distant: bool,
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
    #[error("`{peer}` refused the tunnel with status {}{}", status.as_u16(), because(reason.as_deref()))]
    Refused {
        /// The HBONE address.
        peer: SocketAddr,
        /// 400: bad request; 401: denied by policy; 503: the destination can't be reached.
        status: StatusCode,
        /// What the peer says about it, if it does: one line of visible ASCII and spaces.
        reason: Option<Arc<str>>,
    },
    /// Every connection to the peer is full.
    #[error("`{peer}` already has {limit} full connections; wait for streams to end")]
    TooManyConnections {
        /// The HBONE address.
        peer: SocketAddr,
        /// How many are allowed.
        limit: usize,
    },
    /// The workload has taken what it may have.
    #[error(transparent)]
    Budget(#[from] OverBudget),
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
        let head = request.head()?;
        let Connect { network, source, peer, expected, mark, distant, .. } = request;
        let key = Key::new(network, source, expected, peer, mark, distant);
        let slot = self.peers.slot(&key);
        let mut newest = 0;
        let mut attempts = 1;
        loop {
            let (lease, reused) = self.lease(&key, &slot, newest).await?;
            match self.open(lease, &slot, &head, peer).await {
                Ok(tunnel) => return Ok(tunnel),
                // Also a new connection may refuse: the peer's limit of streams was not known when many were opened.
                Err(OpenError::Dead(reason)) if attempts < MAX_OPEN_ATTEMPTS && (reused || attempts == 1) => {
                    tracing::debug!(%peer, reason, "a pooled connection took no stream, trying another one");
                    newest = self.sequence.load(Ordering::Relaxed);
                    attempts += 1;
                }
                Err(error) => return Err(error.about(peer)),
            }
        }
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
    async fn lease(&self, key: &Key, slot: &Slot, newer_than: u64) -> Result<(Lease, bool), ConnectError> {
        if !self.limits.are_connections_shared() {
            return Ok((self.dial(key, slot).await?, false));
        }
        match slot.checkout(newer_than, &self.limits) {
            Room::Free(lease) => return Ok((lease, true)),
            Room::Crowded(lease) => return Ok(self.spread(key, slot, lease).await),
            Room::None => {}
        }
        let failures = slot.failures();
        let _creating = slot.creating.lock().await;
        if let Room::Free(lease) | Room::Crowded(lease) = slot.checkout(newer_than, &self.limits) {
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
            _ => self.dial(key, slot).await,
        };
        match made {
            Ok(lease) => Ok((lease, false)),
            Err(error) => {
                slot.fail(error.clone());
                Err(error)
            }
        }
    }

    /// A lease on a new connection that shares the load, or else on the crowded one: it serves too, so nobody waits long.
    async fn spread(&self, key: &Key, slot: &Slot, crowded: Lease) -> (Lease, bool) {
        let Ok(_creating) = slot.creating.try_lock() else { return (crowded, true) };
        match timeout(SPREAD_TIMEOUT, self.dial(key, slot)).await {
            Ok(Ok(lease)) => (lease, false),
            outcome => {
                tracing::debug!(peer = %key.peer, error = ?outcome.map(|made| made.err()), "no further connection to share the load");
                slot.spread_failed();
                (crowded, true)
            }
        }
    }

    async fn dial(&self, key: &Key, slot: &Slot) -> Result<Lease, ConnectError> {
        let (places, _making) = self.limits.budget.begin()?;
        let certificate = self.certificates.get(&key.source).await?;
        let options = ConnectOptions {
            mark: key.mark,
            timeout: self.limits.connect_timeout,
            congestion: self.limits.congestion.filter(|_| !key.distant),
            ..ConnectOptions::default()
        };
        let peer = key.peer;
        let tcp = socket::connect(key.network(), peer, &options).await;
        let tcp = tcp.map_err(|error| ConnectError::Tcp { peer, reason: error.to_string() })?;
        let config = tls::client_config(&certificate, &key.expected);
        let changes = TrustChanges::begin(&certificate);
        let (tcp, tls) = shake_hands(tcp, config, &self.limits, peer).await?;
        let shown = peer_of(&certificate, &tls, &key.expected);
        let (http2, session) = Driver::client(tcp, tls, &self.limits);
        let http2 = Trusted::new(http2, shown, changes, Arc::default());
        let id = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let (pooled, lease) = Pooled::new(id, session, certificate);
        // A pool that began to end meanwhile keeps nothing.
        if *self.stop.borrow() != Stop::No {
            return Err(ConnectError::Closed);
        }
        let driver = pooled::Driver::new(&pooled, key.clone(), &self.peers, self.limits.idle_timeout);
        if self.limits.are_connections_shared() {
            slot.insert(pooled);
        }
        tokio::spawn(drive(http2, driver, self.stop.subscribe(), places));
        Ok(lease)
    }

    async fn open(
        &self,
        lease: Lease,
        slot: &Slot,
        request: &RequestHead,
        peer: SocketAddr,
    ) -> Result<Tunnel, OpenError> {
        let session = lease.session.clone();
        let tunnel = open(lease, request, self.limits.response_timeout, peer).await;
        // An answer means that the peer's settings are known. The next connection begins with what this one learned.
        if let Some(limit) = session.peer_max_streams() {
            slot.learn_max_streams(limit);
        }
        tunnel
    }
}

/// Opens one tunnel within another: TLS, HTTP/2 and a CONNECT of their own over the bytes of `outer`, which leads to a
/// network gateway (`spec/ztunnel.md` 2.8). Nobody else shares the inner connection; it ends with its one tunnel, and
/// the outer tunnel with it. [`Connect::peer`] stands for whoever answers in messages only; [`Connect::network`] and
/// [`Connect::mark`] have no meaning here.
///
/// # Errors
/// When any step fails; the error names the step. `outer` is broken then.
pub async fn connect_within<T>(
    outer: T,
    certificate: &Arc<WorkloadCertificate>,
    request: Connect,
    limits: &Limits,
) -> Result<Tunnel, ConnectError>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let peer = request.peer;
    let head = request.head()?;
    let config = tls::client_config(certificate, &request.expected);
    let changes = TrustChanges::begin(certificate);
    let (outer, tls) = shake_hands(outer, config, limits, peer).await?;
    let shown = peer_of(certificate, &tls, &request.expected);
    let (driver, session) = Driver::client(outer, tls, limits);
    tokio::spawn(Trusted::new(driver, shown, changes, Arc::default()));
    let tunnel = open(Lease::alone(session), &head, limits.response_timeout, peer).await;
    tunnel.map_err(|error| error.about(peer))
}

async fn shake_hands<T>(
    mut io: T,
    config: Arc<rustls::ClientConfig>,
    limits: &Limits,
    peer: SocketAddr,
) -> Result<(T, Established), ConnectError>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let after = limits.handshake_timeout;
    let handshake = async move {
        let tls = tls::connect(&mut io, config).await;
        (io, tls)
    };
    let done = timeout(after, limits.budget.turns.run(handshake)).await;
    let done = done.map_err(|_| ConnectError::HandshakeTimeout { peer, after })?;
    let (io, tls) = done.map_err(|_| ConnectError::Closed)?;
    let tls = tls.map_err(|error| ConnectError::Tls { peer, reason: error.to_string() })?;
    if tls.protocol.as_deref() != Some(b"h2") {
        return Err(ConnectError::Tls { peer, reason: "the peer doesn't speak `h2`".to_owned() });
    }
    Ok((io, tls))
}

async fn open(lease: Lease, request: &RequestHead, after: Duration, peer: SocketAddr) -> Result<Tunnel, OpenError> {
    let mut stream = lease.session.open(request).map_err(|broken| OpenError::Dead(broken.to_string()))?;
    let response = timeout(after, poll_fn(|cx| stream.poll_response(cx)))
        .await
        .map_err(|_| OpenError::Final(ConnectError::ResponseTimeout { peer, after }))?
        .map_err(|broken| OpenError::new(peer, &broken))?;
    if response.status != StatusCode::OK {
        let reason = refusal::reason(&response.headers);
        return Err(OpenError::Final(ConnectError::Refused { peer, status: response.status, reason }));
    }
    Ok(Tunnel::new(stream, response.headers, Some(lease)))
}

fn because(reason: Option<&str>) -> String {
    reason.map(|reason| format!(": {reason}")).unwrap_or_default()
}

/// The peer of a connection, as it showed itself.
fn peer_of(certificate: &Arc<WorkloadCertificate>, tls: &Established, expected: &[SpiffeId]) -> Peer {
    Peer { certificate: Arc::clone(certificate), chain: tls.peer.as_slice().into(), expected: Some(expected.into()) }
}

/// Moves a connection's bytes until it ends, is dead, or is told to end.
async fn drive(
    mut http2: Trusted<Driver<TcpStream>>,
    driver: pooled::Driver,
    mut stop: watch::Receiver<Stop>,
    _places: Places,
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
            ended = &mut http2 => {
                if let Ended::Failed(reason) = ended {
                    tracing::debug!(%peer, %reason, "a connection ended with streams open");
                }
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

// === impl Connect ===

impl Connect {
    fn head(&self) -> Result<RequestHead, ConnectError> {
        let authority = Authority::from_str(&self.authority)
            .map_err(|_| ConnectError::Authority { authority: self.authority.clone() })?;
        Ok(RequestHead { method: Method::CONNECT, authority: Some(authority), headers: self.headers.clone() })
    }
}

// === impl OpenError ===

impl OpenError {
    fn new(peer: SocketAddr, broken: &Broken) -> Self {
        // A refused stream was not processed (RFC 9113 8.7). A reset for another reason is the peer's answer.
        if broken.may_be_tried_again() {
            Self::Dead(broken.to_string())
        } else {
            Self::Final(ConnectError::Dropped { peer, reason: broken.to_string() })
        }
    }

    fn about(self, peer: SocketAddr) -> ConnectError {
        match self {
            Self::Dead(reason) => ConnectError::Dropped { peer, reason },
            Self::Final(error) => error,
        }
    }
}

// === impl Pool ===

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("peers", &self.peers.len()).finish_non_exhaustive()
    }
}
