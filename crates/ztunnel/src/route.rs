//! Where an outbound connection goes (`spec/ztunnel.md` 4). Pure: a snapshot, a source and a destination in, a route out.
//!
//! An address of a pod is that pod's, whatever services claim it; then services count, then other workloads. (The
//! spec's two look-ups in different order would let a connection past the waypoint of a service that shares its address
//! with a workload.)

mod gateway;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ambit_api::SpiffeId;
use ambit_mesh::{
    View,
    view::{Families, Gateway, Mode, Service, WaypointRef, Workload},
};
use ipnet::IpNet;

use crate::balance::Choice;

/// Port on which a workload's node proxy terminates HBONE.
pub(crate) const HBONE_PORT: u16 = 15008;

/// Ports of the node proxy itself. Nobody is let through to them: outbound it would be a loop, inbound a way around.
pub(crate) const PROXY_PORTS: [u16; 5] = [15001, 15006, HBONE_PORT, 15053, 15080];

/// Who connects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'s> {
    /// Address of the pod.
    pub(crate) ip: IpAddr,
    /// Its namespace.
    pub(crate) namespace: &'s str,
    /// The pod as the control plane describes it; nothing is known of one outside the mesh.
    pub(crate) workload: Option<&'s Workload>,
    /// It is in the mesh; otherwise it speaks plain TCP only.
    pub(crate) captured: bool,
}

/// The address ranges that belong to the mesh.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ranges {
    pub(crate) pods: IpNet,
    pub(crate) services: IpNet,
}

/// What has to be known to find a route.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query<'q> {
    pub(crate) view: &'q View,
    pub(crate) source: Source<'q>,
    /// Ranges whose addresses have an owner in the mesh or nobody. Without them, what the mesh doesn't know is somebody
    /// else's, as on a cluster's node, where the ranges aren't known.
    pub(crate) ranges: Option<Ranges>,
    pub(crate) choice: Choice<'q>,
}

/// A decision about one outbound connection.
#[derive(Debug)]
pub(crate) enum Route {
    /// To a workload of the mesh.
    Mesh(Box<Mesh>),
    /// Not ours: on as it is, to where it was sent.
    Passthrough(Option<Arc<Service>>),
    /// No safe way.
    Refuse(Refusal),
}

/// A destination inside the mesh.
#[derive(Debug)]
pub(crate) struct Mesh {
    /// The service asked for; nothing if a workload was asked for by its address.
    pub(crate) service: Option<Arc<Service>>,
    /// The waypoint that it goes to.
    pub(crate) waypoint: Option<WaypointRef>,
    /// Where it goes: an endpoint, or one of the waypoint's.
    pub(crate) workload: Arc<Workload>,
    pub(crate) way: Way,
    /// There are others to turn to if this one can't be had.
    pub(crate) others: bool,
}

/// How a workload is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By plain TCP.
    Plain(Target),
    /// By a tunnel.
    Hbone(Tunnel),
    /// By a tunnel to the gateway of its network, and one inside that to somebody of these identities. Both have the
    /// same authority.
    Double { gateway: Tunnel, inner: Vec<SpiffeId> },
}

/// A tunnel to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tunnel {
    pub(crate) peer: Target,
    /// The peer has to be one of these.
    pub(crate) expected: Vec<SpiffeId>,
    pub(crate) authority: Authority,
}

/// Where TCP connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Address(SocketAddr),
    /// A name that only external resolvers know.
    Name(Arc<str>, u16),
}

/// What a CONNECT asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Authority {
    Address(SocketAddr),
    /// A port of the peer, whose address isn't known yet.
    PortOfPeer(u16),
    Name(Arc<str>, u16),
}

/// Why there is no route.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) reason: String,
    pub(crate) service: Option<Arc<Service>>,
}

/// What an address stands for.
pub(crate) enum Found<'v> {
    Workload(&'v Arc<Workload>),
    Service(&'v Arc<Service>),
    Unknown,
}

/// Finds the route of a connection to this address.
pub(crate) fn route(query: &Query<'_>, destination: SocketAddr) -> Route {
    let ip = destination.ip().to_canonical();
    let destination = SocketAddr::new(ip, destination.port());
    let own = query.source.workload.is_some_and(|workload| workload.addresses.contains(&ip));
    if (ip.is_loopback() || ip == query.source.ip || own) && PROXY_PORTS.contains(&destination.port()) {
        return refuse(format!("`{destination}` is the pod's own node proxy, not a destination"), None);
    }
    let found = match find(query.view, query.source, ip) {
        Found::Workload(workload) => query.to_workload(workload, destination),
        Found::Service(service) => query.to_service(service, destination),
        Found::Unknown => return query.to_unknown(ip, None),
    };
    found.unwrap_or_else(Route::Refuse)
}

/// The waypoint that a connection to this address has to use now, if it isn't the one it uses.
pub(crate) fn rebound<'v>(
    view: &'v View,
    source: Source<'_>,
    destination: SocketAddr,
    used: Option<&WaypointRef>,
) -> Option<&'v WaypointRef> {
    match find(view, source, destination.ip().to_canonical()) {
        Found::Workload(workload) => {
            let waypoint = workload_waypoint(view, source, workload)?;
            (used != Some(waypoint)).then_some(waypoint)
        }
        Found::Service(service) => {
            let any = service.waypoints().next()?;
            service.waypoints().all(|waypoint| used != Some(waypoint)).then_some(any)
        }
        Found::Unknown => None,
    }
}

/// `namespace/name` of a waypoint, from its own service, or its address.
pub(crate) fn waypoint_name(waypoint: &WaypointRef) -> String {
    match &waypoint.destination {
        Gateway::Service(key) => {
            format!("{}/{}", key.namespace, key.hostname.split('.').next().unwrap_or_default())
        }
        Gateway::Address(address) => address.ip.to_string(),
    }
}

/// What this address stands for to who connects.
pub(crate) fn find<'v>(view: &'v View, source: Source<'_>, ip: IpAddr) -> Found<'v> {
    let workload = view.workload_by_ip(ip);
    if let Some(pod) = workload.filter(|workload| workload.is_pod()) {
        return Found::Workload(pod);
    }
    let service = view.service_for(ip, source.namespace).map(Found::Service);
    service.or(workload.map(Found::Workload)).unwrap_or(Found::Unknown)
}

/// The waypoint for connections to the workload's own address. The waypoint itself goes on to the workload.
fn workload_waypoint<'v>(view: &View, source: Source<'_>, workload: &'v Workload) -> Option<&'v WaypointRef> {
    let waypoint = workload.waypoint.as_ref()?;
    let is_from_it = source.workload.is_some_and(|source| view.is_gateway(waypoint, source));
    (!is_from_it).then_some(waypoint)
}

// === impl Query ===

impl Query<'_> {
    fn to_workload(self, workload: &Arc<Workload>, destination: SocketAddr) -> Result<Route, Refusal> {
        if let Some(reason) = &workload.rejected {
            return Err(Refusal { reason: reason.to_string(), service: None });
        }
        if let Some(waypoint) = workload_waypoint(self.view, self.source, workload).filter(|_| self.source.captured) {
            let of = format!("workload `{}/{}`", workload.namespace, workload.name);
            return self.to_waypoint(waypoint, &of, None, destination);
        }
        let way = self.direct(workload, Target::Address(destination), destination.port(), &[]);
        Ok(mesh(None, None, workload, way, false))
    }

    fn to_service(self, service: &Arc<Service>, destination: SocketAddr) -> Result<Route, Refusal> {
        let (name, port) = (format!("{}/{}", service.key.namespace, service.name), destination.port());
        let refusal = |reason| Refusal { reason, service: Some(Arc::clone(service)) };
        let known = service.ports.contains_key(&port);
        let transparent = service.balancing.mode == Mode::Passthrough;
        if let Some(reason) = &service.rejected {
            return Err(refusal(reason.to_string()));
        }
        if !known && !transparent {
            return Err(refusal(format!("service `{name}` has no port {port}")));
        }
        let waypoint = service.waypoint_for(self.choice.for_waypoint()).filter(|_| self.source.captured);
        if let Some(waypoint) = waypoint {
            return self.to_waypoint(waypoint, &format!("service `{name}`"), Some(service), destination);
        }
        if transparent {
            return Ok(self.to_unknown(destination.ip(), Some(service)));
        }
        let tiers = self.view.tiers(&service.key, self.source.workload, Some(port));
        let Some(picked) = self.choice.pick(&tiers) else {
            return Err(refusal(format!("service `{name}` has no ready endpoint for port {port}")));
        };
        let workload = picked.workload;
        let Some(target) = workload.target_port(service, port) else {
            return Err(refusal(format!("`{}/{}` has no such port", workload.namespace, workload.name)));
        };
        let way = if self.is_remote(workload) {
            self.across(workload, service, service, port).map_err(refusal)?
        } else {
            let host = host(workload, destination.ip(), service.families, target).map_err(refusal)?;
            self.direct(workload, host, target, &service.identities)
        };
        Ok(mesh(Some(service), None, workload, way, picked.others))
    }

    /// The way to one port of a workload of this network: by HBONE when both ends are in the mesh.
    fn direct(&self, workload: &Workload, host: Target, port: u16, identities: &[SpiffeId]) -> Way {
        if !workload.hbone || !self.source.captured {
            return Way::Plain(host);
        }
        let (peer, authority) = match host {
            Target::Address(at) => (Target::Address(SocketAddr::new(at.ip(), HBONE_PORT)), Authority::Address(at)),
            Target::Name(name, _) => (Target::Name(name, HBONE_PORT), Authority::PortOfPeer(port)),
        };
        Way::Hbone(Tunnel { peer, expected: expected(workload, identities), authority })
    }

    /// An address that nobody in the mesh has, or that a service wants left as it is.
    fn to_unknown(self, ip: IpAddr, service: Option<&Arc<Service>>) -> Route {
        let nobody = || format!("no workload or service of the mesh has address `{ip}`; it may be gone");
        let is_own = |ranges: Ranges| ranges.pods.contains(&ip) || ranges.services.contains(&ip);
        if self.ranges.is_some_and(is_own) {
            return refuse(nobody(), service);
        }
        // With ranges the way out is the host's, and its loopback isn't for pods; otherwise it is the pod's own.
        if !is_address(ip) || (self.ranges.is_some() && ip.is_loopback()) {
            return refuse(format!("`{ip}` is not an address that a connection can go to"), service);
        }
        Route::Passthrough(service.cloned())
    }

    fn is_remote(&self, workload: &Workload) -> bool {
        workload.network != *self.view.network()
    }
}

fn mesh(
    service: Option<&Arc<Service>>,
    waypoint: Option<&WaypointRef>,
    workload: &Arc<Workload>,
    way: Way,
    others: bool,
) -> Route {
    let (service, waypoint, workload) = (service.cloned(), waypoint.cloned(), Arc::clone(workload));
    Route::Mesh(Box::new(Mesh { service, waypoint, workload, way, others }))
}

/// Who may be at the other end: the workload itself, or whoever its service says.
fn expected(workload: &Workload, identities: &[SpiffeId]) -> Vec<SpiffeId> {
    let mut expected = identities.to_vec();
    if !expected.contains(&workload.identity) {
        expected.push(workload.identity.clone());
    }
    expected
}

/// The host of a workload that was asked for under this address.
fn host(workload: &Workload, asked: IpAddr, families: Families, port: u16) -> Result<Target, String> {
    let address = workload.address_for(asked, families).map(|ip| Target::Address(SocketAddr::new(ip, port)));
    let name = || workload.hostname.as_ref().map(|name| Target::Name(Arc::clone(name), port));
    address
        .or_else(name)
        .ok_or_else(|| format!("`{}/{}` has no address that its service admits", workload.namespace, workload.name))
}

/// Not one that means this machine itself, or many.
pub(crate) fn is_address(ip: IpAddr) -> bool {
    let none = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast() || ip.octets()[0] == 0);
    !(ip.is_unspecified() || ip.is_multicast() || none)
}

fn refuse(reason: String, service: Option<&Arc<Service>>) -> Route {
    Route::Refuse(Refusal { reason, service: service.cloned() })
}

// === impl Target ===

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

// === impl Way ===

impl Way {
    /// Where TCP connects to.
    pub(crate) fn target(&self) -> &Target {
        match self {
            Self::Plain(target) => target,
            Self::Hbone(tunnel) | Self::Double { gateway: tunnel, .. } => &tunnel.peer,
        }
    }
}
