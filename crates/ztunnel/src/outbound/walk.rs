//! Walks a way: connects, and turns to another endpoint when one can't be had (`spec/ztunnel.md` 2.5, 2.8). The client
//! doesn't notice, since not a byte of it has been read.

use std::{io, net::SocketAddr, sync::Arc};

use ambit_hbone::{
    Connect, ConnectError, Network, Tunnel, connect_within,
    headers::{ConnectHeaders, Forwarded, HeaderError, TraceParent},
    socket::{self, ConnectOptions},
};
use ambit_identity::CertificateError;
use ambit_mesh::{
    loads::InFlight,
    view::{Service, Workload},
};
use ambit_telemetry::{Enforcer, metrics::Flag};
use http::{HeaderMap, StatusCode};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{Call, Failure};
use crate::{
    baggage,
    balance::random,
    budget::refusal,
    limits::{ATTEMPT_TIMEOUT, CONNECT_TIMEOUT, MAX_ATTEMPTS, OPEN_TIMEOUT},
    record::{deny, told, workload_name},
    route::{self, Authority, Mesh, Route, Target, Way, is_address, waypoint_name},
};

/// How the reason begins when a peer's address doesn't answer, and what it contains when the peer is somebody else.
const NO_ANSWER: &str = "no answer within";
const MISMATCH: &str = "identity verification error";

/// The other side, established.
pub(super) enum Upstream {
    Plain(TcpStream),
    Tunnel(Box<Tunnel>),
}

/// A connection that is there.
pub(super) struct Opened {
    pub(super) upstream: Upstream,
    /// The way that led there; nothing outside the mesh.
    pub(super) mesh: Option<Box<Mesh>>,
    /// Where TCP is connected to.
    pub(super) at: SocketAddr,
    /// Counts it at its endpoint.
    pub(super) in_flight: Option<InFlight>,
}

/// Why one try failed.
#[derive(Debug, thiserror::Error)]
enum TryError {
    #[error(transparent)]
    Tcp(#[from] io::Error),
    #[error(transparent)]
    Tunnel(#[from] ConnectError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("no CONNECT can be made: {0}")]
    Header(#[from] HeaderError),
    #[error("no answer in time")]
    Timeout,
    #[error("{0}")]
    Name(String),
}

impl Call<'_> {
    /// Walks the first way, then others as long as there are any and time is left.
    pub(super) async fn walk(&self, first: Option<Box<Mesh>>, seed: u64) -> Result<Opened, Failure> {
        let Some(mut mesh) = first else {
            let connected = plain(&*self.pod.egress, self.destination, None).await;
            let upstream = connected.map_err(|error| {
                Failure::new(format!("`{}` outside the mesh can't be reached: {error}", self.destination))
            })?;
            let (upstream, at) = (Upstream::Plain(upstream), self.destination);
            return Ok(Opened { upstream, mesh: None, at, in_flight: None });
        };
        let deadline = Instant::now() + OPEN_TIMEOUT;
        let mut tried = Vec::new();
        loop {
            let last = !mesh.others || tried.len() + 1 >= MAX_ATTEMPTS;
            let left = deadline.saturating_duration_since(Instant::now());
            let in_flight = self.pod.shared.loads.add(mesh.workload.load_key);
            let budget = if last { left } else { left.min(ATTEMPT_TIMEOUT) };
            let outcome = timeout(budget, self.attempt(&mesh)).await.unwrap_or(Err(TryError::Timeout));
            let error = match outcome {
                Ok((upstream, at)) => {
                    return Ok(Opened { upstream, mesh: Some(mesh), at, in_flight: Some(in_flight) });
                }
                Err(error) => error,
            };
            drop(in_flight);
            let failure = failure(&mesh, &error);
            if last || !error.is_worth_another(mesh.waypoint.is_some()) || Instant::now() >= deadline {
                return Err(failure.on(mesh));
            }
            tried.push(Arc::clone(&mesh.workload.uid));
            let view = self.pod.shared.store.load();
            match self.route(&view, seed, &tried) {
                Route::Mesh(next) if next.waypoint == mesh.waypoint && !tried.contains(&next.workload.uid) => {
                    tracing::debug!(pod = %self.pod.pod.uid, %error, "turning to another endpoint");
                    mesh = next;
                }
                _ => return Err(failure.on(mesh)),
            }
        }
    }

    async fn attempt(&self, mesh: &Mesh) -> Result<(Upstream, SocketAddr), TryError> {
        let pod = &self.pod.pod;
        let mark = self.pod.shared.config.mark;
        let (at, is_named) = self.resolve(mesh.way.target()).await?;
        let (tunnel, inner) = match &mesh.way {
            // A name is outside the mesh, and so is the network that it is reached from.
            Way::Plain(_) if is_named => return Ok((Upstream::Plain(plain(&*self.pod.egress, at, None).await?), at)),
            Way::Plain(_) => return Ok((Upstream::Plain(plain(&*pod.network, at, mark).await?), at)),
            Way::Hbone(tunnel) => (tunnel, None),
            Way::Double { gateway, inner } => (gateway, Some(inner)),
        };
        let Some(workload) = &self.workload else {
            return Err(TryError::Name("a pod outside the mesh has no identity to show".to_owned()));
        };
        let authority = authority(tunnel, at);
        let mut headers = self.headers(workload, mesh.service.as_deref());
        let outer = Connect {
            network: Arc::clone(&pod.network),
            source: workload.identity.clone(),
            peer: at,
            expected: tunnel.expected.clone(),
            authority,
            headers: map(&headers)?,
            mark,
            distant: inner.is_some(),
        };
        let Some(inner) = inner else {
            return Ok((Upstream::Tunnel(Box::new(self.pod.pool.connect(outer).await?)), at));
        };
        headers.network = Some(self.pod.shared.store.load().network().to_string()).filter(|name| !name.is_empty());
        let within = Connect { expected: inner.clone(), headers: map(&headers)?, ..outer.clone() };
        let certificate = self.pod.shared.certificates.get(&workload.identity).await?;
        let gateway = self.pod.pool.connect(outer).await?;
        let limits = self.pod.budget.outbound();
        Ok((Upstream::Tunnel(Box::new(connect_within(gateway, &certificate, within, limits).await?)), at))
    }

    /// Where a target is, and whether only its name was known.
    async fn resolve(&self, target: &Target) -> Result<(SocketAddr, bool), TryError> {
        let (name, port) = match target {
            Target::Address(address) => return Ok((*address, false)),
            Target::Name(name, port) => (name, *port),
        };
        let found = self.pod.shared.names.resolve(self.pod, name, self.origin.is_ipv4()).await;
        let ip = found.map_err(TryError::Name)?;
        // A name must not lead to where no address would.
        let config = &self.pod.shared.config;
        let own = self.pod.pod.in_pod.is_none() && (config.pod_cidr.contains(&ip) || config.service_cidr.contains(&ip));
        if own || ip.is_loopback() || !is_address(ip) {
            return Err(TryError::Name(format!("`{name}` has address `{ip}`, which names outside the mesh must not")));
        }
        Ok((SocketAddr::new(ip, port), true))
    }

    /// The headers of `spec/ztunnel.md` 2.5.
    fn headers(&self, workload: &Workload, service: Option<&Service>) -> ConnectHeaders {
        let trace_id = u128::from(random().max(1)) << 64 | u128::from(random());
        ConnectHeaders {
            baggage: Some(baggage::of(workload)),
            forwarded: Some(Forwarded {
                client: Some(self.origin),
                host: service.map(|service| service.key.hostname.to_string()),
            }),
            trace: Some(TraceParent { trace_id, span_id: random().max(1), flags: 0 }),
            network: None,
        }
    }
}

/// What a tunnel to a peer at this address asks for.
pub(super) fn authority(tunnel: &route::Tunnel, at: SocketAddr) -> String {
    match &tunnel.authority {
        Authority::Address(address) => address.to_string(),
        Authority::PortOfPeer(port) => SocketAddr::new(at.ip(), *port).to_string(),
        Authority::Name(name, port) => format!("{name}:{port}"),
    }
}

fn map(headers: &ConnectHeaders) -> Result<HeaderMap, HeaderError> {
    headers.to_map()
}

async fn plain(network: &dyn Network, address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    socket::connect(network, address, &ConnectOptions { mark, timeout: CONNECT_TIMEOUT, ..ConnectOptions::default() })
        .await
}

fn failure(mesh: &Mesh, error: &TryError) -> Failure {
    let at = mesh.way.target();
    let target = match &mesh.waypoint {
        Some(waypoint) => format!("waypoint `{}` (`{at}`)", waypoint_name(waypoint)),
        None => format!("`{}` (`{at}`)", workload_name(&mesh.workload)),
    };
    match error {
        // The peer's side has recorded its own reason.
        TryError::Tunnel(ConnectError::Refused { status, reason, .. }) => {
            let status_code = status.as_u16();
            let why = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            let is_denial = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(status);
            let generic = || format!("the proxy of {target} refused the connection with status {status_code}");
            Failure {
                told: is_denial.then(|| {
                    reason
                        .as_ref()
                        .map_or_else(|| told(&Enforcer::ZtunnelOutbound, &deny(generic())), |r| r.to_string())
                }),
                flag: if is_denial { Flag::Deny } else { Flag::Connect },
                elsewhere: true,
                refusal: None,
                ..Failure::new(format!("{target} refused the connection with status {status_code}{why}"))
            }
        }
        // There is room elsewhere perhaps, but not for this pod.
        TryError::Tunnel(ConnectError::Budget(over)) => {
            Failure { refusal: Some(refusal(*over)), ..Failure::new(format!("{target} can't be reached: {over}")) }
        }
        _ => Failure {
            flag: error.flag(!matches!(mesh.way, Way::Plain(_))),
            ..Failure::new(format!("{target} can't be reached: {error}"))
        },
    }
}

// === impl TryError ===

impl TryError {
    /// As in the metrics of connections that failed.
    fn flag(&self, hbone: bool) -> Flag {
        match self {
            // Nobody answers on the HBONE port: as a rule something drops what is sent to it.
            Self::Timeout if hbone => Flag::NetworkPolicy,
            Self::Tunnel(ConnectError::Tcp { reason, .. }) if reason.starts_with(NO_ANSWER) => Flag::NetworkPolicy,
            Self::Tunnel(ConnectError::Tls { reason, .. }) if reason.contains(MISMATCH) => Flag::IdentityError,
            Self::Tunnel(ConnectError::Tls { .. } | ConnectError::HandshakeTimeout { .. }) => Flag::TlsFailure,
            Self::Tunnel(ConnectError::Dropped { .. }) => Flag::H2HandshakeFailure,
            Self::Tunnel(ConnectError::Certificate(_)) | Self::Certificate(_) => Flag::IdentityError,
            _ => Flag::Connect,
        }
    }

    /// True if another endpoint may do better. A policy says the same everywhere, and so does a waypoint about what it
    /// doesn't serve.
    fn is_worth_another(&self, waypoint: bool) -> bool {
        match self {
            Self::Tunnel(ConnectError::Refused { status, .. }) if waypoint => {
                *status == StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Tunnel(ConnectError::Refused { status, .. }) => {
                *status != StatusCode::UNAUTHORIZED && *status != StatusCode::FORBIDDEN
            }
            Self::Tunnel(ConnectError::Certificate(_) | ConnectError::Authority { .. }) => false,
            Self::Tunnel(ConnectError::Budget(_) | ConnectError::Closed) => false,
            Self::Certificate(_) | Self::Header(_) => false,
            Self::Tunnel(_) | Self::Tcp(_) | Self::Timeout | Self::Name(_) => true,
        }
    }
}
