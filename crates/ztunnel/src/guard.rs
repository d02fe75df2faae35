//! Who may connect to a port of a workload: the waypoint guard first, then the L4 policies. Pure, and the same function
//! for a new connection and for a live one after a change.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ambit_api::SpiffeId;
use ambit_mesh::{
    View,
    view::{GuardedPort, Workload},
};
use ambit_policy::{ConnectionFacts, Decision};
use ambit_telemetry::{Enforcer, metrics::Refusal};

use crate::record::deny;

/// Who asks for a connection, as far as the transport proves it, and what it claims.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// Authenticated by TLS; nothing for plaintext.
    pub(crate) peer: Option<SpiffeId>,
    /// Address of the TCP peer.
    pub(crate) address: SocketAddr,
    /// What the peer says of the client behind it; nothing if that can't be read.
    pub(crate) claims: Option<Claims>,
}

/// What a waypoint says of the client it speaks for. Worth nothing from anyone else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    /// `ambit-source`.
    pub(crate) identity: Option<SpiffeId>,
    /// `forwarded: for=`.
    pub(crate) address: Option<SocketAddr>,
}

/// The outcome for one connection.
#[derive(Debug)]
pub(crate) struct Judgement {
    /// Which part decided.
    pub(crate) enforcer: Enforcer,
    /// The verdict and its reason.
    pub(crate) decision: Decision,
    /// The client: the caller itself, or who its waypoint speaks for.
    pub(crate) client: Client,
    /// A waypoint of this port is in between; it has recorded the request itself.
    pub(crate) through_waypoint: bool,
    /// What a denial counts as.
    pub(crate) refusal: Refusal,
}

/// The client that policies judge and that the application sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    pub(crate) identity: Option<SpiffeId>,
    pub(crate) address: SocketAddr,
}

/// Judges a connection of this caller to this port of this workload.
pub(crate) fn judge(view: &View, workload: &Workload, caller: &Caller, ip: IpAddr, port: u16) -> Judgement {
    let waypoint = caller_waypoint(view, caller);
    let through_waypoint = waypoint.is_some_and(|waypoint| fronts(view, waypoint, workload, port));
    let client = match &caller.claims {
        Some(claims) if through_waypoint => Client {
            identity: claims.identity.clone().or_else(|| caller.peer.clone()),
            address: claims.address.unwrap_or(caller.address),
        },
        _ => Client { identity: caller.peer.clone(), address: caller.address },
    };
    if let Some(reason) = guard(workload, waypoint, caller, port) {
        let decision = deny(reason);
        let (enforcer, refusal) = (Enforcer::WaypointGuard, Refusal::Guard);
        return Judgement { enforcer, decision, client, through_waypoint, refusal };
    }
    if through_waypoint && caller.claims.is_none() {
        let decision = deny("what the waypoint says of its client (`ambit-source`, `forwarded`) can't be read");
        let (enforcer, refusal) = (Enforcer::ZtunnelInbound, Refusal::BadRequest);
        return Judgement { enforcer, decision, client, through_waypoint, refusal };
    }
    let facts = ConnectionFacts::new(client.address.ip().to_canonical(), ip.to_canonical(), port)
        .with_identity(client.identity.clone());
    let residual = workload.policies.for_connection(&facts);
    let decision = residual.with_reason(residual.decide_connection(), None);
    let (enforcer, refusal) = (Enforcer::ZtunnelInbound, Refusal::Policy);
    Judgement { enforcer, decision, client, through_waypoint, refusal }
}

/// The waypoint pod that the caller proves to be: its identity *and* its address. A key stolen from a waypoint opens
/// nothing from elsewhere, and a pod that took over a waypoint's address has not its key.
pub(crate) fn caller_waypoint<'v>(view: &'v View, caller: &Caller) -> Option<&'v Arc<Workload>> {
    let peer = caller.peer.as_ref()?;
    let workload = view.workload_by_ip(caller.address.ip().to_canonical())?;
    (workload.native_tunnel && workload.identity == *peer).then_some(workload)
}

/// True if this port of the workload is guarded by, or belongs to a service bound to, this waypoint, or the whole workload
/// is bound to it.
fn fronts(view: &View, waypoint: &Workload, workload: &Workload, port: u16) -> bool {
    let guards = || guards(workload, port).any(|guarded| guarded.identity == waypoint.identity);
    let bound = || {
        workload.services.iter().filter(|(_, ports)| ports.values().any(|target| *target == port)).any(|(key, _)| {
            let service = view.service(key);
            service.is_some_and(|service| service.waypoints().any(|bound| view.is_gateway(bound, waypoint)))
        })
    };
    let own = || workload.waypoint.as_ref().is_some_and(|bound| view.is_gateway(bound, waypoint));
    guards() || bound() || own()
}

/// The reason why the guard refuses, if it does.
fn guard(workload: &Workload, waypoint: Option<&Arc<Workload>>, caller: &Caller, port: u16) -> Option<String> {
    let first = guards(workload, port).next()?;
    if guards(workload, port).any(|guarded| waypoint.is_some_and(|waypoint| waypoint.identity == guarded.identity)) {
        return None;
    }
    let GuardedPort { service, waypoint: name, .. } = first;
    let impostor = caller.peer.as_ref().is_some_and(|peer| guards(workload, port).any(|g| g.identity == *peer));
    Some(if impostor {
        format!(
            "port {port} of `{}/{}` is reachable only through waypoint `{name}`, and `{}` is not an address of it",
            workload.namespace,
            workload.name,
            caller.address.ip()
        )
    } else if first.port.is_none() && **service == *format!("{}/{}", workload.namespace, workload.name) {
        format!(
            "`{service}` is reachable only through its waypoint `{name}`, from pods of the mesh by its own address; label \
             the pod ambit.dev/waypoint-guard: \"off\" to let others in"
        )
    } else {
        format!(
            "service `{service}` (port {port} of `{}/{}`) is reachable only through waypoint `{name}`; call the \
             service, or label it ambit.dev/waypoint-guard: \"off\"",
            workload.namespace, workload.name
        )
    })
}

fn guards(workload: &Workload, port: u16) -> impl Iterator<Item = &GuardedPort> {
    workload.guard.iter().filter(move |guarded| guarded.port.is_none_or(|guarded| guarded == port))
}
