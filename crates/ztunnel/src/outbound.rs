//! Outbound connections (15001; `spec/ztunnel.md` 4): the way is chosen by [`route`], walked here. Nothing is read from
//! the client before the other side is there, so protocols in which the server speaks first work.

mod names;
mod walk;

use std::{net::SocketAddr, sync::Arc, time::Instant};

use ambit_api::SpiffeId;
use ambit_hbone::socket;
use ambit_mesh::{
    View,
    view::{Service, WaypointRef, Workload},
};
use ambit_telemetry::{Destination, Enforcer, Source};
use tokio::net::TcpStream;

pub(crate) use self::names::Names;
use self::walk::{Opened, Upstream};
use crate::{
    balance::{Choice, random},
    pod::PodProxy,
    record::{Report, Timing, deny, service_name, workload_name},
    route::{self, Query, Ranges, Refusal, Route, rebound, route, waypoint_name},
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
        Ok(destination) => serve(&pod, client, pod.origin(peer), destination).await,
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

/// Carries a connection whose destination the client has said itself, as if it had been captured.
pub(crate) async fn carry(pod: &PodProxy, client: TcpStream, peer: SocketAddr, destination: SocketAddr) {
    serve(pod, client, pod.origin(peer), socket::fold_mapped(destination)).await;
}

/// Cuts a live connection whose destination is bound to another waypoint now: it must not survive on the old way.
pub(crate) fn review(pod: &PodProxy, view: &View, entry: &Entry) {
    let What::Outbound { origin, destination, service, waypoint } = &entry.what else { return };
    // Outside the mesh a pod uses no waypoints; guards at the destinations refuse it.
    if !pod.pod.captured {
        return;
    }
    let workload = pod.current(view).cloned();
    let source = source(pod, workload.as_deref());
    if let Some(now) = rebound(view, source, *destination, waypoint.as_ref())
        && entry.end()
    {
        let reason = format!("policy changed: connections have to use waypoint `{}` now", waypoint_name(now));
        let call = Call { pod, origin: *origin, destination: *destination, workload, timing: Timing::start() };
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
        Ok((_slot, (ticket, opened))) => {
            pod.tune(&client);
            let idle = pod.shared.config.idle;
            match opened.upstream {
                Upstream::Plain(mut stream) => {
                    pod.tune(&stream);
                    join(&ticket, idle, &mut client, &mut stream).await;
                }
                Upstream::Tunnel(mut tunnel) => join(&ticket, idle, &mut client, &mut *tunnel).await,
            }
        }
        Err(failure) => {
            socket::reset_on_close(&client);
            call.record(failure);
        }
    }
}

/// The pod as the one who connects.
fn source<'s>(pod: &'s PodProxy, workload: Option<&'s Workload>) -> route::Source<'s> {
    route::Source { ip: pod.pod.ip.to_canonical(), namespace: &pod.pod.namespace, workload, captured: pod.pod.captured }
}

// === impl Call ===

impl Call<'_> {
    /// Finds and walks the way.
    async fn open(&mut self) -> Result<(Ticket, Opened), Failure> {
        let pod = self.pod;
        if pod.pod.captured {
            self.workload = pod.workload().await;
            if self.workload.is_none() {
                return Err(Failure::new("the control plane does not know this pod; it may be going"));
            }
        }
        let seed = random();
        let view = pod.shared.store.load();
        let (mesh, service) = match self.route(&view, seed, &[]) {
            Route::Mesh(mesh) => {
                let service = mesh.service.clone();
                (Some(mesh), service)
            }
            Route::Passthrough(service) => (None, service),
            Route::Refuse(Refusal { reason, service }) => {
                return Err(Failure { reason: Some(reason), service, workload: None });
            }
        };
        let waypoint = mesh.as_ref().and_then(|mesh| mesh.waypoint.clone());
        let ticket = pod.tracked.track(What::Outbound {
            origin: self.origin,
            destination: self.destination,
            service,
            waypoint: waypoint.clone(),
        });
        let connecting = Instant::now();
        let opened = tokio::select! {
            biased;
            () = ticket.ended() => Err(Failure { reason: None, service: None, workload: None }),
            opened = self.walk(mesh, seed) => opened,
        };
        self.timing.connect = Some(connecting.elapsed());
        // A change between the look at the view and the entry into the table has passed the reviewer by.
        let now = pod.shared.store.load();
        if opened.is_ok() && self.is_rebound(&now, waypoint.as_ref()) && ticket.end() {
            return Err(Failure::new("the service was bound to another waypoint meanwhile; try again"));
        }
        opened.map(|opened| (ticket, opened))
    }

    /// The way, as this view shows it, past those that have been tried.
    fn route(&self, view: &View, seed: u64, tried: &[Arc<str>]) -> Route {
        let config = &self.pod.shared.config;
        let ranges = Ranges { pods: config.pod_cidr, services: config.service_cidr };
        let workload = self.workload.as_deref();
        let query = Query {
            view,
            source: source(self.pod, workload.or_else(|| self.pod.current(view).map(|own| &**own))),
            ranges: self.pod.pod.in_pod.is_none().then_some(ranges),
            choice: Choice { seed, tried, loads: &self.pod.shared.loads },
        };
        route(&query, self.destination)
    }

    fn is_rebound(&self, view: &View, used: Option<&WaypointRef>) -> bool {
        let source = source(self.pod, self.workload.as_deref());
        self.pod.pod.captured && rebound(view, source, self.destination, used).is_some()
    }

    fn record(&self, failure: Failure) {
        let Failure { reason: Some(reason), service, workload } = failure else { return };
        let identity: Option<SpiffeId> = self.workload.as_ref().map(|workload| workload.identity.clone());
        let view = self.pod.shared.store.load();
        let own = self.workload.as_ref().or_else(|| self.pod.current(&view));
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

// === impl Failure ===

impl Failure {
    fn new(reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), service: None, workload: None }
    }
}
