//! Where an outbound connection goes (`spec/ztunnel.md` 4, rows that a single network has). Pure: a snapshot, a source
//! and a destination in, a route out.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ambit_mesh::{
    View,
    view::{Service, ServiceKey, WaypointRef, Workload},
};
use ipnet::IpNet;

/// Port on which a workload's node proxy terminates HBONE.
pub(crate) const HBONE_PORT: u16 = 15008;

/// Ports of the node proxy itself. Nobody is let through to them: outbound it would be a loop, inbound a way around.
pub(crate) const PROXY_PORTS: [u16; 5] = [15001, 15006, HBONE_PORT, 15053, 15080];

/// Who connects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    /// Address of the pod.
    pub(crate) ip: IpAddr,
    /// It is in the mesh; otherwise it speaks plain TCP only.
    pub(crate) captured: bool,
}

/// The address ranges that belong to the mesh.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ranges {
    pub(crate) pods: IpNet,
    pub(crate) services: IpNet,
}

/// A decision about one outbound connection.
#[derive(Debug)]
pub(crate) enum Route {
    /// One of these hops, in any order; there is at least one.
    Mesh(Mesh),
    /// Not ours: pass through from the host's network.
    Host,
    /// No safe way.
    Refuse(Refusal),
}

/// A destination inside the mesh.
#[derive(Debug)]
pub(crate) struct Mesh {
    /// The service asked for; nothing if a pod was asked for by its address.
    pub(crate) service: Option<Arc<Service>>,
    /// The waypoint the hops belong to.
    pub(crate) waypoint: Option<WaypointRef>,
    /// Where the connection may go.
    pub(crate) hops: Vec<Hop>,
}

/// One place a connection may go to.
#[derive(Clone, Debug)]
pub(crate) struct Hop {
    /// Whose address it is.
    pub(crate) workload: Arc<Workload>,
    /// Where TCP connects to.
    pub(crate) address: SocketAddr,
    /// Authority of the CONNECT; without one the bytes go plain.
    pub(crate) authority: Option<SocketAddr>,
}

/// Why there is no route.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) reason: String,
    pub(crate) service: Option<Arc<Service>>,
}

/// Finds the route of a connection from this source to this address.
pub(crate) fn route(view: &View, ranges: Ranges, source: Source, destination: SocketAddr) -> Route {
    let ip = destination.ip().to_canonical();
    let destination = SocketAddr::new(ip, destination.port());
    if (ip.is_loopback() || ip == source.ip) && PROXY_PORTS.contains(&destination.port()) {
        return refuse(format!("`{destination}` is the pod's own node proxy, not a destination"));
    }
    if let Some(workload) = view.workload_by_ip(ip) {
        let hops = vec![hop(workload, ip, destination.port(), source)];
        return Route::Mesh(Mesh { service: None, waypoint: None, hops });
    }
    if let Some(service) = view.service_by_vip(ip) {
        return to_service(view, source, service, destination);
    }
    if ranges.pods.contains(&ip) || ranges.services.contains(&ip) {
        return refuse(format!("no workload or service of the mesh has address `{ip}`; it may be gone"));
    }
    if !is_host_reachable(ip) {
        return refuse(format!("`{ip}` is not an address that a connection can go to"));
    }
    Route::Host
}

/// The waypoint that a connection to this address has to use, for noticing that a live one uses another.
pub(crate) fn binding(view: &View, destination: SocketAddr) -> Option<&WaypointRef> {
    let ip = destination.ip().to_canonical();
    match view.workload_by_ip(ip) {
        Some(_) => None,
        None => view.service_by_vip(ip).and_then(|service| service.waypoint.as_ref()),
    }
}

/// `namespace/name` of a waypoint, from its own service.
pub(crate) fn waypoint_name(waypoint: &WaypointRef) -> String {
    format!("{}/{}", waypoint.service.namespace, object_name(&waypoint.service))
}

/// Name of the object behind a service key.
fn object_name(key: &ServiceKey) -> &str {
    key.hostname.split('.').next().unwrap_or_default()
}

fn to_service(view: &View, source: Source, service: &Arc<Service>, destination: SocketAddr) -> Route {
    let name = format!("{}/{}", service.key.namespace, service.name);
    let refusal = |reason| Route::Refuse(Refusal { reason, service: Some(Arc::clone(service)) });
    if !service.ports.contains_key(&destination.port()) {
        return refusal(format!("service `{name}` has no port {}", destination.port()));
    }
    let family = destination.ip();
    let ready = |key| view.endpoints(key).iter().filter(|workload| workload.healthy);
    if let Some(waypoint) = service.waypoint.as_ref().filter(|_| source.captured) {
        let hops: Vec<Hop> = ready(&waypoint.service)
            .filter_map(|workload| {
                let address = SocketAddr::new(address_of(workload, family)?, waypoint.hbone_port);
                Some(Hop { workload: Arc::clone(workload), address, authority: Some(destination) })
            })
            .collect();
        if hops.is_empty() {
            let waypoint = waypoint_name(waypoint);
            return refusal(format!("waypoint `{waypoint}` of service `{name}` has no ready endpoint"));
        }
        return Route::Mesh(Mesh { service: Some(Arc::clone(service)), waypoint: Some(waypoint.clone()), hops });
    }
    let hops: Vec<Hop> = ready(&service.key)
        .filter_map(|workload| {
            let port = *workload.services.get(&service.key)?.get(&destination.port())?;
            Some(hop(workload, address_of(workload, family)?, port, source))
        })
        .collect();
    if hops.is_empty() {
        return refusal(format!("service `{name}` has no ready endpoint for port {}", destination.port()));
    }
    Route::Mesh(Mesh { service: Some(Arc::clone(service)), waypoint: None, hops })
}

/// The way to one port of a workload: by HBONE when both ends are in the mesh.
fn hop(workload: &Arc<Workload>, ip: IpAddr, port: u16, source: Source) -> Hop {
    let target = SocketAddr::new(ip, port);
    let (address, authority) = match workload.hbone && source.captured {
        true => (SocketAddr::new(ip, HBONE_PORT), Some(target)),
        false => (target, None),
    };
    Hop { workload: Arc::clone(workload), address, authority }
}

/// The workload's first address of the family that was asked for, else its first.
fn address_of(workload: &Workload, family: IpAddr) -> Option<IpAddr> {
    let same = |ip: &&IpAddr| ip.is_ipv4() == family.is_ipv4();
    workload.addresses.iter().find(same).or(workload.addresses.first()).copied()
}

/// Loopback would be the host's, and unspecified addresses mean the host itself: both are closed to pods.
fn is_host_reachable(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast() || ip.octets()[0] == 0);
    !(ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || broadcast)
}

fn refuse(reason: String) -> Route {
    Route::Refuse(Refusal { reason, service: None })
}
