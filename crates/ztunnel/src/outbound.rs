//! Outbound connections (15001; `spec/ztunnel.md` 4): the way is chosen by [`route`], walked here. Nothing is read from
//! the client before the other side is there, so protocols in which the server speaks first work.

mod demand;
mod names;
mod walk;

use std::{fmt::Display, net::SocketAddr, sync::Arc, time::Instant};

use ambit_hbone::{headers::Baggage, socket};
use ambit_mesh::{
    View,
    loads::InFlight,
    view::{Service, WaypointRef, Workload},
};
use ambit_policy::Decision;
use ambit_telemetry::{
    ConnectionFacts, Destination, Enforcer, Source,
    metrics::{self, Flag, Reporter},
};
use tokio::net::TcpStream;

pub(crate) use self::names::Names;
use self::walk::{Opened, Upstream};
use crate::{
    account::{Account, End, Opening, Verdicted},
    balance::{Choice, random},
    budget::refusal,
    explain::explain,
    inbound::UNKNOWN_POD,
    labels,
    pod::PodProxy,
    record::{self, Report, Timing, allow, deny, service_name, told, workload_name},
    route::{self, Mesh, Query, Ranges, Refusal, Route, Target, Way, rebound, route, waypoint_name},
    splice::join,
    tracking::{Entry, Ticket, What},
};

/// Why strangers get no connection in a pod's name.
pub(crate) const NOT_THE_POD: &str = "only the pod itself may connect through this port";

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
    reason: String,
    /// What the client is told, if it was refused and not just unlucky.
    told: Option<String>,
    service: Option<Arc<Service>>,
    /// The way that was tried last.
    mesh: Option<Box<Mesh>>,
    flag: Flag,
    /// What it counts as; nothing if another proxy has counted it.
    refusal: Option<metrics::Refusal>,
    /// Another proxy has recorded it.
    elsewhere: bool,
    /// It is recorded.
    recorded: bool,
}

/// Serves one captured connection.
pub(crate) async fn accepted(pod: Arc<PodProxy>, client: TcpStream, peer: SocketAddr) {
    let destination = match socket::original_dst(&client) {
        Ok(destination) => destination,
        Err(error) => {
            tracing::debug!(%error, "the connection was gone before it could be looked at");
            return socket::reset_on_close(&client);
        }
    };
    // Captured connections come from the pod itself, or from a machine behind it. Anyone else who gets here would act in
    // the pod's name.
    let is_rerouted = |local| is_rerouted(pod.pod.in_pod.is_some(), destination, socket::fold_mapped(local));
    if !pod.is_own(peer.ip()) && !client.local_addr().is_ok_and(is_rerouted) {
        turn_away(&pod, peer, destination, metrics::Refusal::BadRequest, NOT_THE_POD);
        return socket::reset_on_close(&client);
    }
    serve(&pod, client, pod.origin(peer), destination).await;
}

/// Records that somebody got no connection before it was looked at where it goes; of many at once only some.
pub(crate) fn turn_away(
    pod: &PodProxy,
    peer: SocketAddr,
    destination: SocketAddr,
    refusal: metrics::Refusal,
    reason: impl Display,
) {
    count(pod, refusal);
    let Some(reason) = pod.budget.recordable(reason) else { return };
    Report {
        enforcer: Enforcer::ZtunnelOutbound,
        source: record::source(&pod.shared.store.load(), None, peer),
        destination: Destination { address: Some(destination), ..Destination::default() },
        decision: deny(reason),
        timing: Timing::start(),
    }
    .send(&pod.shared.recorder);
}

/// True if the kernel has redirected a connection that the pod itself didn't make: what comes in by an interface that a
/// node agent's rules treat as the pod's own (`istio.io/reroute-virtual-interfaces`, for virtual machines). No rule
/// redirects anything else from outside to the outbound port.
pub(crate) fn is_rerouted(in_pod: bool, destination: SocketAddr, local: SocketAddr) -> bool {
    in_pod && destination != local
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
    let What::Outbound { destination, waypoint, .. } = &entry.what else { return };
    // Outside the mesh a pod uses no waypoints; guards at the destinations refuse it.
    if !pod.pod.captured {
        return;
    }
    let workload = pod.current(view).cloned();
    let source = source(pod, workload.as_deref());
    if let Some(now) = rebound(view, source, *destination, waypoint.as_ref()) {
        let reason = format!("policy changed: connections have to use waypoint `{}` now", waypoint_name(now));
        let verdict = Verdicted { enforcer: Enforcer::ZtunnelOutbound, decision: deny(reason), changed: true };
        if entry.cut(verdict) {
            count(pod, metrics::Refusal::PolicyChange);
        }
    }
}

fn count(pod: &PodProxy, refusal: metrics::Refusal) {
    pod.shared.config.metrics.refusals.refused(Reporter::Source, refusal);
}

async fn serve(pod: &PodProxy, mut client: TcpStream, origin: SocketAddr, destination: SocketAddr) {
    let mut call = Call { pod, origin, destination, workload: None, timing: Timing::start() };
    let _socket = pod.shared.config.metrics.traffic.socket(Reporter::Source);
    let _slot = match pod.budget.connection() {
        Ok(slot) => slot,
        Err(over) => {
            match pod.budget.recordable(over) {
                Some(reason) => call.record(&Failure { refusal: Some(refusal(over)), ..Failure::new(reason) }),
                None => count(pod, refusal(over)),
            }
            return socket::reset_on_close(&client);
        }
    };
    // Boxed: an idle connection has no use for the room that finding its way took.
    match Box::pin(call.open()).await {
        Ok((ticket, upstream, _in_flight)) => match upstream {
            Upstream::Plain(mut stream) => {
                pod.tune(&stream);
                join(&ticket, pod, &mut client, &mut stream).await;
            }
            Upstream::Tunnel(mut tunnel) => join(&ticket, pod, &mut client, &mut *tunnel).await,
        },
        Err(failure) => {
            if !failure.recorded {
                call.record(&failure);
            }
            match failure.told {
                Some(why) => explain(pod, client, &why).await,
                None => socket::reset_on_close(&client),
            }
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
    async fn open(&mut self) -> Result<(Ticket, Upstream, Option<InFlight>), Failure> {
        let pod = self.pod;
        if pod.pod.captured {
            self.workload = pod.workload().await;
            if self.workload.is_none() {
                let refusal = Some(metrics::Refusal::UnknownWorkload);
                return Err(Failure { refusal, ..Failure::new(UNKNOWN_POD) });
            }
        }
        let seed = random();
        let route = match &pod.shared.config.on_demand {
            None => self.route(&pod.shared.store.load(), seed, &[]),
            Some(on_demand) => self.route_on_demand(on_demand, seed).await?,
        };
        let (mesh, service) = match route {
            Route::Mesh(mesh) => {
                let service = mesh.service.clone();
                (Some(mesh), service)
            }
            Route::Passthrough(service) => (None, service),
            Route::Refuse(Refusal { reason, service }) => {
                return Err(Failure::refused(reason, service));
            }
        };
        let waypoint = mesh.as_ref().and_then(|mesh| mesh.waypoint.clone());
        let ticket = pod.tracked.track(What::Outbound {
            origin: self.origin,
            destination: self.destination,
            waypoint: waypoint.clone(),
        });
        let connecting = Instant::now();
        let opened = tokio::select! {
            biased;
            // The ticket tells why.
            () = ticket.ended() => Err(Failure::new("")),
            opened = self.walk(mesh, seed) => opened,
        };
        self.timing.connect = Some(connecting.elapsed());
        let Opened { mut upstream, mesh, at, in_flight } = match opened {
            Ok(opened) => opened,
            Err(failure) => return Err(self.failed(&ticket, service.as_deref(), failure)),
        };
        let is_across = mesh.as_deref().is_some_and(|mesh| matches!(mesh.way, Way::Double { .. }));
        let headers = match &mut upstream {
            Upstream::Tunnel(tunnel) => Some(tunnel.take_response_headers()),
            Upstream::Plain(_) => None,
        };
        let headers = headers.filter(|_| is_across && pod.shared.config.response_baggage);
        let baggage = headers.and_then(|headers| Baggage::of(&headers).ok().flatten());
        ticket.open(self.account(service.as_deref(), mesh.as_deref(), Some(at), baggage.as_ref(), &allow()));
        // A change between the look at the view and the entry into the table has passed the reviewer by.
        if self.is_rebound(&pod.shared.store.load(), waypoint.as_ref()) {
            let reason = "the service was bound to another waypoint meanwhile; try again";
            let verdict = Verdicted { enforcer: Enforcer::ZtunnelOutbound, decision: deny(reason), changed: true };
            count(pod, metrics::Refusal::PolicyChange);
            ticket.close(End::Refused(verdict));
            return Err(Failure { recorded: true, ..Failure::new(reason) });
        }
        ticket.opened(self.timing);
        Ok((ticket, upstream, in_flight))
    }

    /// Records that the way could not be walked.
    fn failed(&self, ticket: &Ticket, service: Option<&Service>, mut failure: Failure) -> Failure {
        let at = failure.mesh.as_ref().and_then(|mesh| match mesh.way.target() {
            Target::Address(at) => Some(*at),
            Target::Name(..) => None,
        });
        ticket.open(self.account(service, failure.mesh.as_deref(), at, None, &deny("")));
        let Failure { flag, elsewhere, .. } = failure;
        ticket.close(match ticket.ending() {
            Some(verdict) => End::Refused(verdict.clone()),
            None => End::Failed { reason: failure.reason.as_str().into(), flag, elsewhere },
        });
        if let Some(refusal) = failure.refusal.filter(|_| ticket.ending().is_none()) {
            count(self.pod, refusal);
        }
        failure.recorded = true;
        failure
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

    /// The account of a connection that went this way.
    fn account(
        &self,
        service: Option<&Service>,
        mesh: Option<&Mesh>,
        at: Option<SocketAddr>,
        peer: Option<&Baggage>,
        decision: &Decision,
    ) -> Box<Account> {
        let view = self.pod.shared.store.load();
        let own = self.workload.as_ref().or_else(|| self.pod.current(&view));
        let labels = labels::outbound(own.map(|own| &**own), service, mesh, peer);
        let tunnel = mesh.and_then(|mesh| match &mesh.way {
            Way::Plain(_) => None,
            Way::Hbone(tunnel) | Way::Double { gateway: tunnel, .. } => Some(tunnel),
        });
        let facts = ConnectionFacts {
            source_cluster: labels.source.cluster.clone(),
            destination_cluster: labels.destination.cluster.clone(),
            address: at,
            hbone_address: tunnel.zip(at).map(|(tunnel, at)| walk::authority(tunnel, at).into()),
            service_hostname: labels.service.hostname.clone(),
            destination_identity: labels.destination.principal.clone().filter(|_| labels.mutual_tls),
            ..ConnectionFacts::default()
        };
        let opening = Opening {
            labels,
            enforcer: Enforcer::ZtunnelOutbound,
            source: self.source(own),
            destination: Destination {
                service: service.map(service_name),
                workload: mesh.map(|mesh| workload_name(&mesh.workload)),
                address: Some(self.destination),
            },
            decision,
            facts,
        };
        Account::open(&self.pod.shared.config.metrics.traffic, opening, self.timing)
    }

    fn source(&self, own: Option<&Arc<Workload>>) -> Source {
        Source {
            workload: own.map(|own| workload_name(own)),
            identity: self.workload.as_ref().map(|workload| workload.identity.clone()),
            address: Some(self.origin),
        }
    }

    /// Records a refusal before there was a way.
    fn record(&self, failure: &Failure) {
        if let Some(refusal) = failure.refusal {
            count(self.pod, refusal);
        }
        let view = self.pod.shared.store.load();
        let own = self.workload.as_ref().or_else(|| self.pod.current(&view));
        Report {
            enforcer: Enforcer::ZtunnelOutbound,
            source: self.source(own),
            destination: Destination {
                service: failure.service.as_deref().map(service_name),
                workload: None,
                address: Some(self.destination),
            },
            decision: deny(failure.reason.as_str()),
            timing: self.timing,
        }
        .send(&self.pod.shared.recorder);
    }
}

// === impl Failure ===

impl Failure {
    /// The other side could not be reached.
    fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            told: None,
            service: None,
            mesh: None,
            flag: Flag::Connect,
            refusal: Some(metrics::Refusal::Unreachable),
            elsewhere: false,
            recorded: false,
        }
    }

    /// There is no safe way.
    fn refused(reason: String, service: Option<Arc<Service>>) -> Self {
        let told = told(&Enforcer::ZtunnelOutbound, &deny(reason.as_str()));
        let refusal = Some(metrics::Refusal::NoRoute);
        Self { told: Some(told), service, refusal, ..Self::new(reason) }
    }

    /// On this way.
    fn on(self, mesh: Box<Mesh>) -> Self {
        Self { mesh: Some(mesh), ..self }
    }
}
