//! Outbound connections (15001; `spec/ztunnel.md` 4): the way is chosen by [`route`], walked here. Nothing is read from
//! the client before the other side is there, so protocols in which the server speaks first work.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use ambit_api::SpiffeId;
use ambit_hbone::{
    Connect, ConnectError, Tunnel,
    socket::{self, ConnectOptions},
};
use ambit_mesh::{
    View,
    view::{Service, WaypointRef, Workload},
};
use ambit_telemetry::{Destination, Enforcer, Source};
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{FORWARDED, InvalidHeaderValue},
};
use tokio::net::TcpStream;

use crate::{
    limits::{CONNECT_TIMEOUT, MAX_ATTEMPTS},
    pod::PodProxy,
    record::{Report, Timing, deny, service_name, workload_name},
    route::{self, Hop, Mesh, Ranges, Refusal, Route, binding, route, waypoint_name},
    splice::join,
    tracking::{Entry, Ticket, What},
};

/// One connection of an application, on its way.
struct Call<'p> {
    pod: &'p PodProxy,
    origin: SocketAddr,
    destination: SocketAddr,
    workload: Option<Arc<Workload>>,
    timing: Timing,
}

/// The other side, established.
enum Upstream {
    Plain(TcpStream),
    Tunnel(Tunnel),
}

/// Why a connection ends before it began.
struct Failure {
    /// Nothing if somebody else has recorded it.
    reason: Option<String>,
    service: Option<Arc<Service>>,
    workload: Option<Arc<Workload>>,
}

/// Serves one captured connection.
pub(crate) async fn accepted(pod: Arc<PodProxy>, client: TcpStream, peer: SocketAddr) {
    // Captured connections come from the pod itself. Anyone else who gets here would act in the pod's name.
    if !pod.is_own(peer.ip()) {
        tracing::warn!(pod = %pod.pod.uid, %peer, "refused a connection from outside to the outbound port");
        return socket::reset_on_close(&client);
    }
    match socket::original_dst(&client) {
        Ok(destination) => serve(&pod, client, SocketAddr::new(pod.pod.ip, peer.port()), destination).await,
        Err(error) => {
            tracing::debug!(%error, "the connection was gone before it could be looked at");
            socket::reset_on_close(&client);
        }
    }
}

/// Serves a connection that was accepted elsewhere in the pod's name.
pub(crate) async fn enter(pod: &Arc<PodProxy>, client: TcpStream, destination: SocketAddr) {
    let port = client.peer_addr().map_or(0, |peer| peer.port());
    let origin = SocketAddr::new(pod.pod.ip, port);
    pod.run(serve(pod, client, origin, socket::fold_mapped(destination))).await;
}

/// Cuts a live connection whose service is bound to another waypoint now: it must not survive on the old way.
pub(crate) fn review(pod: &PodProxy, view: &View, entry: &Entry) {
    let What::Outbound { origin, destination, service, waypoint } = &entry.what else { return };
    if let Some(now) = rebound(view, *destination, waypoint.as_ref())
        && entry.end()
    {
        let workload = view.workload(&pod.pod.uid).cloned();
        let call = Call { pod, origin: *origin, destination: *destination, workload, timing: Timing::start() };
        let reason = format!("policy changed: connections have to use waypoint `{}` now", waypoint_name(now));
        call.record(Failure { reason: Some(reason), service: service.clone(), workload: None });
    }
}

async fn serve(pod: &PodProxy, mut client: TcpStream, origin: SocketAddr, destination: SocketAddr) {
    let mut call = Call { pod, origin, destination, workload: None, timing: Timing::start() };
    let outcome = match pod.slot() {
        Some(slot) => call.open().await.map(|opened| (slot, opened)),
        None => Err(Failure::new("the node proxy is at its limit of connections")),
    };
    match outcome {
        Ok((_slot, (ticket, upstream))) => {
            // Best effort: an option that can't be set costs speed, not safety.
            let _ = socket::tune(&client);
            match upstream {
                Upstream::Plain(mut stream) => join(&ticket, &mut client, &mut stream).await,
                Upstream::Tunnel(mut tunnel) => join(&ticket, &mut client, &mut tunnel).await,
            }
        }
        Err(failure) => {
            socket::reset_on_close(&client);
            call.record(failure);
        }
    }
}

/// The waypoint a connection has to use now, if that isn't the one it uses.
fn rebound<'v>(view: &'v View, destination: SocketAddr, used: Option<&WaypointRef>) -> Option<&'v WaypointRef> {
    binding(view, destination).filter(|now| used != Some(*now))
}

// === impl Call ===

impl Call<'_> {
    /// Finds and walks the way.
    async fn open(&mut self) -> Result<(Ticket, Upstream), Failure> {
        let config = &self.pod.shared.config;
        let captured = self.pod.pod.captured;
        if captured {
            self.workload = self.pod.workload().await;
            if self.workload.is_none() {
                return Err(Failure::new("the control plane does not know this pod; it may be going"));
            }
        }
        let ranges = Ranges { pods: config.pod_cidr, services: config.service_cidr };
        let source = route::Source { ip: self.pod.pod.ip.to_canonical(), captured };
        let view = self.pod.shared.store.load();
        let mesh = match route(&view, ranges, source, self.destination) {
            Route::Mesh(mesh) => Some(mesh),
            Route::Host => None,
            Route::Refuse(Refusal { reason, service }) => {
                return Err(Failure { reason: Some(reason), service, workload: None });
            }
        };
        let ticket = self.pod.tracked.track(What::Outbound {
            origin: self.origin,
            destination: self.destination,
            service: mesh.as_ref().and_then(|mesh| mesh.service.clone()),
            // Outside the mesh a pod uses no waypoints; guards at the destinations refuse it.
            waypoint: match captured {
                true => mesh.as_ref().and_then(|mesh| mesh.waypoint.clone()),
                false => binding(&view, self.destination).cloned(),
            },
        });
        let connecting = Instant::now();
        let opened = tokio::select! {
            biased;
            () = ticket.ended() => Err(Failure { reason: None, service: None, workload: None }),
            opened = self.walk(mesh) => opened,
        };
        self.timing.connect = Some(connecting.elapsed());
        // A change between the look at the view and the entry into the table has passed the reviewer by.
        let waypoint = match &ticket.entry().what {
            What::Outbound { waypoint, .. } => waypoint.as_ref(),
            What::Inbound { .. } => None,
        };
        let now = self.pod.shared.store.load();
        if opened.is_ok() && rebound(&now, self.destination, waypoint).is_some() && ticket.end() {
            return Err(Failure::new("the service was bound to another waypoint meanwhile; try again"));
        }
        opened.map(|upstream| (ticket, upstream))
    }

    async fn walk(&self, mesh: Option<Mesh>) -> Result<Upstream, Failure> {
        let Some(Mesh { service, waypoint, hops }) = mesh else {
            let connected = self.plain(&*self.pod.shared.host, self.destination, None).await;
            return connected.map_err(|error| {
                Failure::new(format!("`{}` outside the mesh can't be reached: {error}", self.destination))
            });
        };
        let mut failure = Failure::new("there is no endpoint to connect to");
        for hop in draw(hops) {
            let target = match &waypoint {
                Some(waypoint) => format!("waypoint `{}` (`{}`)", waypoint_name(waypoint), hop.address),
                None => format!("`{}` (`{}`)", workload_name(&hop.workload), hop.address),
            };
            let (reason, again) = match self.hop(&hop, service.as_deref()).await {
                Ok(upstream) => return Ok(upstream),
                Err(HopError::Plain(error)) => (Some(format!("{target} can't be reached: {error}")), true),
                // The peer's side has recorded the reason. Another endpoint may still take it; a policy won't change.
                Err(HopError::Tunnel(ConnectError::Refused { status, .. })) => {
                    (None, waypoint.is_none() && status != StatusCode::UNAUTHORIZED)
                }
                Err(HopError::Tunnel(error)) => (Some(format!("{target} can't be reached: {error}")), true),
                Err(HopError::Header(error)) => (Some(format!("no CONNECT for {target} can be made: {error}")), false),
            };
            failure = Failure { reason, service: service.clone(), workload: Some(hop.workload) };
            if !again {
                break;
            }
        }
        Err(failure)
    }

    async fn hop(&self, hop: &Hop, service: Option<&Service>) -> Result<Upstream, HopError> {
        let pod = &self.pod.pod;
        let mark = self.pod.shared.config.mark;
        let (Some(authority), Some(workload)) = (hop.authority, &self.workload) else {
            return self.plain(&*pod.network, hop.address, mark).await.map_err(HopError::Plain);
        };
        let connect = Connect {
            network: Arc::clone(&pod.network),
            source: workload.identity.clone(),
            peer: hop.address,
            expected: vec![hop.workload.identity.clone()],
            authority: authority.to_string(),
            headers: self.headers(workload, service).map_err(HopError::Header)?,
            mark,
        };
        self.pod.pool.connect(connect).await.map(Upstream::Tunnel).map_err(HopError::Tunnel)
    }

    async fn plain(
        &self,
        network: &dyn ambit_hbone::Network,
        address: SocketAddr,
        mark: Option<u32>,
    ) -> io::Result<Upstream> {
        let options = ConnectOptions { source: None, mark, timeout: CONNECT_TIMEOUT };
        socket::connect(network, address, &options).await.map(Upstream::Plain)
    }

    /// The headers of `spec/ztunnel.md` 2.5.
    fn headers(&self, workload: &Workload, service: Option<&Service>) -> Result<HeaderMap, InvalidHeaderValue> {
        let mut forwarded = format!("for=\"{}\"", self.origin);
        if let Some(service) = service {
            forwarded.push_str(";host=");
            forwarded.push_str(&service.key.hostname);
        }
        let baggage = format!("k8s.namespace.name={},k8s.pod.name={}", workload.namespace, workload.name);
        let trace = format!("00-{:016x}{:016x}-{:016x}-00", random().max(1), random(), random().max(1));
        let mut headers = HeaderMap::with_capacity(3);
        headers.insert(FORWARDED, HeaderValue::from_str(&forwarded)?);
        headers.insert(HeaderName::from_static("baggage"), HeaderValue::from_str(&baggage)?);
        headers.insert(HeaderName::from_static("traceparent"), HeaderValue::from_str(&trace)?);
        Ok(headers)
    }

    fn record(&self, failure: Failure) {
        let Failure { reason: Some(reason), service, workload } = failure else { return };
        let identity: Option<SpiffeId> = self.workload.as_ref().map(|workload| workload.identity.clone());
        let view = self.pod.shared.store.load();
        let own = self.workload.as_ref().or_else(|| view.workload(&self.pod.pod.uid));
        Report {
            enforcer: Enforcer::ZtunnelOutbound,
            source: Source { workload: own.map(|own| workload_name(own)), identity, address: Some(self.origin) },
            destination: Destination {
                service: service.map(|service| service_name(&service)),
                workload: workload.map(|workload| workload_name(&workload)),
                address: Some(self.destination),
            },
            decision: deny(reason),
            timing: self.timing,
        }
        .send(&self.pod.shared.recorder);
    }
}

/// Why one hop failed.
enum HopError {
    Plain(io::Error),
    Tunnel(ConnectError),
    Header(InvalidHeaderValue),
}

// === impl Failure ===

impl Failure {
    fn new(reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), service: None, workload: None }
    }
}

/// The hops to try, in random order: each is as likely to come first.
fn draw(mut hops: Vec<Hop>) -> Vec<Hop> {
    let tried = hops.len().min(MAX_ATTEMPTS);
    for position in 0..tried {
        let left = (hops.len() - position) as u64;
        // Truncation can't happen: the remainder is below the length of a vector.
        let offset = usize::try_from(random() % left).unwrap_or_default();
        hops.swap(position, position + offset);
    }
    hops.truncate(tried);
    hops
}

/// A random number for spreading load and naming traces. Not for secrets.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
