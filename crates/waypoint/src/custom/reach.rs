//! The way to a provider: through HBONE to a service of the mesh, under the waypoint's own identity, else by plain TCP.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ambit_hbone::{Connect, socket};
use ambit_mesh::{
    View,
    view::{Authorizer, Gateway, GatewayRef, Service, Workload},
};
use http::HeaderMap;

use crate::{
    balance::{self, Endpoint},
    limits::MAX_ENDPOINT_TRIES,
    shared::Shared,
    upstream::Stream,
};

/// Where a connection to a provider leads.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// To an endpoint of its service, or to the workload that has its address.
    Endpoint(Endpoint),
    /// To a pod of the waypoint that its service is bound to.
    Waypoint(Endpoint),
    /// To an address that nobody in the mesh has.
    Outside(SocketAddr),
}

/// Connects to the provider.
///
/// # Errors
/// Why it can't be reached.
pub(super) async fn connect(shared: &Shared, view: &View, authorizer: &Authorizer) -> Result<(Place, Stream), String> {
    let mut tried = Vec::new();
    let mut last = None;
    match find(view, authorizer)? {
        Found::Service(service) => {
            while tried.len() < MAX_ENDPOINT_TRIES {
                let Some(place) = pick(shared, view, service, authorizer.port, &tried)? else { break };
                match open(shared, &place, service.vips.first(), authorizer.port).await {
                    Ok(stream) => return Ok((place, stream)),
                    Err(reason) => last = Some(reason),
                }
                tried.extend(place.address());
            }
            Err(last.unwrap_or_else(|| format!("service `{}` has no healthy endpoint", service.key.hostname)))
        }
        Found::Workload(workload, ip) => {
            let place = at(workload, SocketAddr::new(ip, authorizer.port))?;
            open(shared, &place, None, authorizer.port).await.map(|stream| (place, stream))
        }
        Found::Address(ip) => outside(shared, SocketAddr::new(ip, authorizer.port)).await,
        Found::Name => {
            for address in resolve(view, authorizer).await?.into_iter().take(MAX_ENDPOINT_TRIES) {
                match outside(shared, address).await {
                    Ok(reached) => return Ok(reached),
                    Err(reason) => last = Some(reason),
                }
            }
            Err(last.unwrap_or_else(|| format!("`{}` has no address", authorizer.host)))
        }
    }
}

/// What a provider's host is.
enum Found<'v> {
    Service(&'v Arc<Service>),
    Workload(&'v Arc<Workload>, IpAddr),
    Address(IpAddr),
    Name,
}

fn find<'v>(view: &'v View, authorizer: &Authorizer) -> Result<Found<'v>, String> {
    let host = &*authorizer.host;
    if let Ok(ip) = host.parse::<IpAddr>() {
        let ip = ip.to_canonical();
        // A pod's address is the pod's, whatever services claim it.
        let workload = view.workload_by_ip(ip);
        return Ok(match (workload.filter(|workload| workload.is_pod()), view.service_by_vip(ip), workload) {
            (Some(pod), _, _) => Found::Workload(pod, ip),
            (None, Some(service), _) => Found::Service(known(service, authorizer.port)?),
            (None, None, Some(workload)) => Found::Workload(workload, ip),
            (None, None, None) => Found::Address(ip),
        });
    }
    let wanted = |service: &&Arc<Service>| {
        authorizer.namespace.as_ref().is_none_or(|namespace| service.key.namespace == *namespace)
    };
    let services: Vec<_> = view.services_by_hostname(host).filter(wanted).collect();
    let service = match services[..] {
        [] if authorizer.mesh_only => return Err(format!("there is no service `{host}`")),
        [] => return Ok(Found::Name),
        [only] => only,
        _ => {
            let mut canonical = services.iter().filter(|service| service.canonical);
            match (canonical.next(), canonical.next()) {
                (Some(one), None) => *one,
                _ => {
                    return Err(format!("several services are called `{host}`; name the provider's as NAMESPACE/HOST"));
                }
            }
        }
    };
    known(service, authorizer.port).map(Found::Service)
}

/// The service, if it can be used and has this port.
fn known(service: &Arc<Service>, port: u16) -> Result<&Arc<Service>, String> {
    let host = &service.key.hostname;
    match &service.rejected {
        Some(reason) => Err(reason.to_string()),
        None if !service.ports.contains_key(&port) => Err(format!("service `{host}` has no port {port}")),
        None => Ok(service),
    }
}

/// An endpoint of a service; of its waypoint, unless that is this one. None of those tried.
fn pick(
    shared: &Shared,
    view: &View,
    service: &Service,
    port: u16,
    tried: &[SocketAddr],
) -> Result<Option<Place>, String> {
    match waypoint(shared, view, service) {
        None => Ok(balance::pick(view, &service.key, port, tried, shared).map(Place::Endpoint)),
        Some(GatewayRef { destination: Gateway::Service(key), hbone_port }) => {
            Ok(balance::pick(view, key, *hbone_port, tried, shared).map(Place::Waypoint))
        }
        Some(GatewayRef { destination: Gateway::Address(_), .. }) => {
            Err(format!("the waypoint of service `{}` is named by an address", service.key.hostname))
        }
    }
}

/// The waypoint that stands between this one and a service.
fn waypoint<'v>(shared: &Shared, view: &View, service: &'v Service) -> Option<&'v GatewayRef> {
    let own = view.waypoint(&shared.config.namespace, &shared.config.name);
    let is_own = own.is_some_and(|bundle| bundle.services.contains_key(&service.key));
    service.waypoint_for(shared.random.next()).filter(|_| !is_own)
}

fn at(workload: &Arc<Workload>, address: SocketAddr) -> Result<Place, String> {
    if let Some(reason) = &workload.rejected {
        return Err(reason.to_string());
    }
    if workload.waypoint.is_some() {
        let name = format!("{}/{}", workload.namespace, workload.name);
        return Err(format!("`{name}` has a waypoint of its own; name the provider by its service"));
    }
    Endpoint::at(workload, address).map(Place::Endpoint).ok_or_else(|| format!("nobody has address {}", address.ip()))
}

/// Addresses of a name outside of the mesh. What answers for it can't lead to the mesh or this machine.
async fn resolve(view: &View, authorizer: &Authorizer) -> Result<Vec<SocketAddr>, String> {
    let (host, port) = (&*authorizer.host, authorizer.port);
    let found = tokio::net::lookup_host((host, port)).await.map_err(|error| format!("`{host}`: {error}"))?;
    let is_outside = |address: &SocketAddr| {
        let ip = address.ip().to_canonical();
        let of_mesh = view.workload_by_ip(ip).is_some() || view.service_by_vip(ip).is_some();
        !(of_mesh || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
    };
    let found: Vec<_> = found.take(MAX_ENDPOINT_TRIES).collect();
    let outside: Vec<_> = found.iter().copied().filter(is_outside).collect();
    if outside.is_empty() && !found.is_empty() {
        return Err(format!("the name `{host}` leads to this machine or into the mesh; name a Service"));
    }
    Ok(outside)
}

async fn outside(shared: &Shared, address: SocketAddr) -> Result<(Place, Stream), String> {
    let place = Place::Outside(address);
    open(shared, &place, None, address.port()).await.map(|stream| (place, stream))
}

async fn open(shared: &Shared, place: &Place, vip: Option<&IpAddr>, port: u16) -> Result<Stream, String> {
    let opening = async {
        match place {
            Place::Endpoint(endpoint) if endpoint.workload.hbone => {
                let peer = SocketAddr::new(endpoint.address.ip(), shared.config.hbone_port);
                tunnel(shared, endpoint, peer, endpoint.address.to_string()).await
            }
            Place::Waypoint(endpoint) => {
                let vip = vip.ok_or("a service without a virtual address can't be reached through its waypoint")?;
                tunnel(shared, endpoint, endpoint.address, SocketAddr::new(*vip, port).to_string()).await
            }
            Place::Endpoint(Endpoint { address, .. }) | Place::Outside(address) => {
                let options = socket::ConnectOptions { mark: shared.config.mark, ..Default::default() };
                let stream = socket::connect(&*shared.network, *address, &options).await;
                stream.map(Stream::Plain).map_err(|error| format!("{address}: {error}"))
            }
        }
    };
    let opened = tokio::time::timeout(shared.config.limits.connect_timeout, opening).await;
    opened.unwrap_or_else(|_elapsed| Err("no connection in time".to_owned()))
}

/// A tunnel in the waypoint's own name: it is the waypoint that asks, not its client.
async fn tunnel(shared: &Shared, to: &Endpoint, peer: SocketAddr, authority: String) -> Result<Stream, String> {
    let connect = Connect {
        network: Arc::clone(&shared.network),
        source: shared.config.identity.clone(),
        peer,
        expected: vec![to.workload.identity.clone()],
        authority,
        headers: HeaderMap::new(),
        mark: shared.config.mark,
        distant: false,
    };
    let tunnel = shared.pool.connect(connect).await.map_err(|error| error.to_string())?;
    Ok(Stream::Tunnel(Box::new(tunnel)))
}

// === impl Place ===

impl Place {
    /// The endpoint that answers, if it is one of the mesh.
    pub(super) fn endpoint(&self) -> Option<&Endpoint> {
        match self {
            Self::Endpoint(endpoint) | Self::Waypoint(endpoint) => Some(endpoint),
            Self::Outside(_) => None,
        }
    }

    /// True if it could still be picked.
    pub(super) fn is_usable(&self, shared: &Shared, view: &View, authorizer: &Authorizer) -> bool {
        match (self, find(view, authorizer)) {
            (Self::Endpoint(endpoint), Ok(Found::Service(service))) => {
                waypoint(shared, view, service).is_none() && endpoint.is_usable(view, &service.key, authorizer.port)
            }
            (Self::Waypoint(endpoint), Ok(Found::Service(service))) => match waypoint(shared, view, service) {
                Some(GatewayRef { destination: Gateway::Service(key), hbone_port }) => {
                    endpoint.is_usable(view, key, *hbone_port)
                }
                _ => false,
            },
            (Self::Endpoint(endpoint), Ok(Found::Workload(workload, _))) => {
                at(workload, endpoint.address).is_ok_and(|now| now.endpoint() == Some(endpoint))
            }
            (Self::Outside(address), Ok(Found::Address(ip))) => address.ip() == ip,
            (Self::Outside(address), Ok(Found::Name)) => {
                let ip = address.ip().to_canonical();
                view.workload_by_ip(ip).is_none() && view.service_by_vip(ip).is_none()
            }
            _ => false,
        }
    }

    fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Endpoint(endpoint) | Self::Waypoint(endpoint) => Some(endpoint.address),
            Self::Outside(address) => Some(*address),
        }
    }
}
