//! Walks a way: connects, and turns to another endpoint when one can't be had (`spec/ztunnel.md` 2.5, 2.8). The client
//! doesn't notice, since not a byte of it has been read.

use std::{io, net::SocketAddr, sync::Arc};

use ambit_hbone::{
    Connect, ConnectError, Network, Tunnel, connect_within,
    headers::{Baggage, ConnectHeaders, Forwarded, HeaderError, TraceParent, WorkloadKind},
    socket::{self, ConnectOptions},
};
use ambit_identity::CertificateError;
use ambit_mesh::view::{Service, Workload, WorkloadType};
use http::{HeaderMap, StatusCode};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{Call, Failure};
use crate::{
    balance::{InFlight, random},
    limits::{ATTEMPT_TIMEOUT, CONNECT_TIMEOUT, MAX_ATTEMPTS, OPEN_TIMEOUT},
    record::workload_name,
    route::{Authority, Mesh, Route, Target, Way, is_address, waypoint_name},
};

/// The other side, established.
pub(super) enum Upstream {
    Plain(TcpStream),
    Tunnel(Box<Tunnel>),
}

/// A connection that is there.
pub(super) struct Opened {
    pub(super) upstream: Upstream,
    /// Counts it at its endpoint.
    _in_flight: Option<InFlight>,
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
            return Ok(Opened { upstream: Upstream::Plain(upstream), _in_flight: None });
        };
        let deadline = Instant::now() + OPEN_TIMEOUT;
        let mut tried = Vec::new();
        loop {
            let last = !mesh.others || tried.len() + 1 >= MAX_ATTEMPTS;
            let left = deadline.saturating_duration_since(Instant::now());
            let in_flight = self.pod.shared.loads.add(&mesh.workload);
            let budget = if last { left } else { left.min(ATTEMPT_TIMEOUT) };
            let outcome = timeout(budget, self.attempt(&mesh)).await.unwrap_or(Err(TryError::Timeout));
            let error = match outcome {
                Ok(upstream) => return Ok(Opened { upstream, _in_flight: Some(in_flight) }),
                Err(error) => error,
            };
            drop(in_flight);
            let failure = failure(&mesh, &error);
            if last || !error.is_worth_another(mesh.waypoint.is_some()) || Instant::now() >= deadline {
                return Err(failure);
            }
            tried.push(Arc::clone(&mesh.workload.uid));
            let view = self.pod.shared.store.load();
            match self.route(&view, seed, &tried) {
                Route::Mesh(next) if next.waypoint == mesh.waypoint && !tried.contains(&next.workload.uid) => {
                    tracing::debug!(pod = %self.pod.pod.uid, %error, "turning to another endpoint");
                    mesh = next;
                }
                _ => return Err(failure),
            }
        }
    }

    async fn attempt(&self, mesh: &Mesh) -> Result<Upstream, TryError> {
        let pod = &self.pod.pod;
        let mark = self.pod.shared.config.mark;
        let (at, is_named) = self.resolve(mesh.way.target()).await?;
        let (tunnel, inner) = match &mesh.way {
            // A name is outside the mesh, and so is the network that it is reached from.
            Way::Plain(_) if is_named => return Ok(Upstream::Plain(plain(&*self.pod.egress, at, None).await?)),
            Way::Plain(_) => return Ok(Upstream::Plain(plain(&*pod.network, at, mark).await?)),
            Way::Hbone(tunnel) => (tunnel, None),
            Way::Double { gateway, inner } => (gateway, Some(inner)),
        };
        let Some(workload) = &self.workload else {
            return Err(TryError::Name("a pod outside the mesh has no identity to show".to_owned()));
        };
        let authority = match &tunnel.authority {
            Authority::Address(address) => address.to_string(),
            Authority::PortOfPeer(port) => SocketAddr::new(at.ip(), *port).to_string(),
            Authority::Name(name, port) => format!("{name}:{port}"),
        };
        let mut headers = self.headers(workload, mesh.service.as_deref());
        let outer = Connect {
            network: Arc::clone(&pod.network),
            source: workload.identity.clone(),
            peer: at,
            expected: tunnel.expected.clone(),
            authority,
            headers: map(&headers)?,
            mark,
        };
        let Some(inner) = inner else {
            return Ok(Upstream::Tunnel(Box::new(self.pod.pool.connect(outer).await?)));
        };
        headers.network = Some(self.pod.shared.store.load().network().to_string()).filter(|name| !name.is_empty());
        let within = Connect { expected: inner.clone(), headers: map(&headers)?, ..outer.clone() };
        let certificate = self.pod.shared.certificates.get(&workload.identity).await?;
        let gateway = self.pod.pool.connect(outer).await?;
        let limits = &self.pod.shared.config.transport;
        Ok(Upstream::Tunnel(Box::new(connect_within(gateway, &certificate, within, limits).await?)))
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
        let canonical = &workload.canonical;
        // Who isn't said to have an owner is its own.
        let (kind, name) = match canonical.workload.is_empty() {
            true => (WorkloadType::Pod, &workload.name),
            false => (canonical.kind, &canonical.workload),
        };
        let kind = match kind {
            WorkloadType::Deployment => WorkloadKind::Deployment,
            WorkloadType::Cronjob => WorkloadKind::CronJob,
            WorkloadType::Pod => WorkloadKind::Pod,
            WorkloadType::Job => WorkloadKind::Job,
        };
        let baggage = Baggage {
            cluster: workload.cluster.to_string(),
            namespace: workload.namespace.to_string(),
            workload: Some((kind, name.to_string())),
            service: canonical.name.to_string(),
            revision: canonical.revision.to_string(),
            region: workload.locality.region.to_string(),
            zone: workload.locality.zone.to_string(),
        };
        let trace_id = u128::from(random().max(1)) << 64 | u128::from(random());
        ConnectHeaders {
            baggage: Some(baggage),
            forwarded: Some(Forwarded {
                client: Some(self.origin),
                host: service.map(|service| service.key.hostname.to_string()),
            }),
            trace: Some(TraceParent { trace_id, span_id: random().max(1), flags: 0 }),
            network: None,
        }
    }
}

fn map(headers: &ConnectHeaders) -> Result<HeaderMap, HeaderError> {
    headers.to_map()
}

async fn plain(network: &dyn Network, address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    socket::connect(network, address, &ConnectOptions { source: None, mark, timeout: CONNECT_TIMEOUT }).await
}

fn failure(mesh: &Mesh, error: &TryError) -> Failure {
    let at = mesh.way.target();
    let target = match &mesh.waypoint {
        Some(waypoint) => format!("waypoint `{}` (`{at}`)", waypoint_name(waypoint)),
        None => format!("`{}` (`{at}`)", workload_name(&mesh.workload)),
    };
    // The peer's side has recorded its own reason.
    let reason = (!error.is_refusal()).then(|| format!("{target} can't be reached: {error}"));
    Failure { reason, service: mesh.service.clone(), workload: Some(Arc::clone(&mesh.workload)) }
}

// === impl TryError ===

impl TryError {
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Tunnel(ConnectError::Refused { .. }))
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
            Self::Tunnel(ConnectError::Certificate(_) | ConnectError::Authority { .. } | ConnectError::Closed) => false,
            Self::Certificate(_) | Self::Header(_) => false,
            Self::Tunnel(_) | Self::Tcp(_) | Self::Timeout | Self::Name(_) => true,
        }
    }
}
