//! Where an inbound stream goes (`spec/ztunnel.md` 5.2 and 5.3): whether this pod is meant at all, and to which of its ports.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use ambit_hbone::socket;
use ambit_mesh::{
    View,
    view::{ApplicationTunnel, Service, Workload},
};
use http::{StatusCode, uri::Authority};

use crate::{pod::PodProxy, route::PROXY_PORTS};

/// Where a stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NextHop {
    /// Address and port of the pod that policies judge and that records show.
    pub(crate) destination: SocketAddr,
    /// The destination to tell the application in a PROXY header; nothing if none is sent.
    pub(crate) tunnelled: Option<SocketAddr>,
    /// The application is reached at its loopback, not at the pod's address.
    pub(crate) at_loopback: bool,
}

/// Why a stream goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Misdirected {
    /// What the CONNECT is answered with.
    pub(crate) status: StatusCode,
    /// The destination as far as it is known.
    pub(crate) destination: Option<SocketAddr>,
    pub(crate) reason: String,
}

/// What a CONNECT asks for.
enum Asked<'a> {
    Address(SocketAddr),
    Name(&'a str, u16),
}

/// The pod that a stream has come to.
#[derive(Clone, Copy)]
pub(crate) struct Here<'a> {
    pub(crate) pod: &'a PodProxy,
    pub(crate) workload: &'a Workload,
    pub(crate) view: &'a View,
    /// The address that the tunnel was opened to.
    pub(crate) local: IpAddr,
}

impl Here<'_> {
    /// Where a CONNECT for `authority` goes.
    pub(crate) fn next_hop(&self, authority: Option<&Authority>) -> Result<NextHop, Misdirected> {
        let asked = authority.and_then(|authority| Asked::read(authority.as_str()));
        let asked = asked.ok_or_else(|| {
            bad(None, "the authority of the CONNECT is neither `ip:port` nor `hostname:port`".to_owned())
        })?;
        let (destination, asked) = match asked {
            Asked::Address(at) => (self.validate(at)?, at),
            Asked::Name(host, port) => self.named(host, port)?,
        };
        if PROXY_PORTS.contains(&destination.port()) || destination.port() == 0 {
            let reason = format!("port {} belongs to the node proxy itself", destination.port());
            return Err(unavailable(Some(destination), reason));
        }
        let Some(ApplicationTunnel { proxy, port }) = self.workload.application_tunnel else {
            return Ok(NextHop { destination, tunnelled: None, at_loopback: false });
        };
        Ok(NextHop {
            destination: SocketAddr::new(destination.ip(), port.unwrap_or(destination.port())),
            tunnelled: proxy.then_some(asked),
            at_loopback: proxy && self.pod.shared.config.tunnel_to_loopback,
        })
    }

    /// This pod's address and the port, if it is meant by this address.
    fn validate(&self, asked: SocketAddr) -> Result<SocketAddr, Misdirected> {
        if self.pod.is_address(asked.ip()) {
            return Ok(asked);
        }
        // What has its own tunnel is told what was asked for, and decides itself.
        if self.workload.application_tunnel.is_some() || self.is_waypoint_of(asked.ip()) {
            return Ok(SocketAddr::new(self.ip(), asked.port()));
        }
        let ip = asked.ip();
        Err(bad(
            Some(asked),
            format!("`{ip}` is not the address of this pod, nor is the pod its waypoint; the caller's view is stale"),
        ))
    }

    /// True if whoever has this address has this workload as its waypoint. A pod's address is the pod's, whatever services
    /// claim it, as on the way out.
    fn is_waypoint_of(&self, ip: IpAddr) -> bool {
        let named = |waypoint| self.view.is_gateway(waypoint, self.workload);
        let workload = self.view.workload_by_ip(ip);
        if let Some(pod) = workload.filter(|workload| workload.is_pod()) {
            return pod.waypoint.as_ref().is_some_and(named);
        }
        match self.view.service_for(ip, &self.workload.namespace) {
            Some(service) => service.waypoints().any(named),
            None => workload.and_then(|workload| workload.waypoint.as_ref()).is_some_and(named),
        }
    }

    /// The target port here of a service by its name, and the service's address.
    fn named(&self, host: &str, port: u16) -> Result<(SocketAddr, SocketAddr), Misdirected> {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let unknown = || unavailable(None, format!("`{host}` is no service that is known here"));
        let service = self.service(&host).ok_or_else(unknown)?;
        let target = self.workload.target_port(service, port).filter(|target| *target != 0);
        let target = target.ok_or_else(|| {
            let name = format!("{}/{}", service.key.namespace, service.name);
            unavailable(None, format!("service `{name}` has no port {port} here"))
        })?;
        let destination = SocketAddr::new(self.ip(), target);
        let tunnel = self.workload.application_tunnel.is_some_and(|tunnel| tunnel.proxy);
        match address_of(service) {
            Some(ip) => Ok((destination, SocketAddr::new(ip, port))),
            None if !tunnel => Ok((destination, destination)),
            None => Err(unavailable(
                Some(destination),
                format!("service `{host}` has no address to tell the application behind its tunnel"),
            )),
        }
    }

    /// Of the services with this name that this pod may know the one of its own namespace, else the canonical one.
    fn service(&self, host: &str) -> Option<&Service> {
        let own = &*self.workload.namespace;
        let visible = || {
            let named = self.view.services_by_hostname(host);
            named.filter(|service| service.is_visible_to(own) && service.rejected.is_none())
        };
        let service = visible().find(|service| *service.key.namespace == *own);
        service.or_else(|| visible().find(|service| service.canonical)).or_else(|| visible().next()).map(|s| &**s)
    }

    /// The address of this pod to go on to.
    fn ip(&self) -> IpAddr {
        if self.pod.is_address(self.local) { self.local.to_canonical() } else { self.pod.pod.ip.to_canonical() }
    }
}

/// A virtual address of a service: one of the own network if there is one, IPv4 if there is a choice.
fn address_of(service: &Service) -> Option<IpAddr> {
    let own = service.vips.iter().copied().min_by_key(IpAddr::is_ipv6);
    own.or_else(|| service.remote_vips.iter().map(|address| address.ip).min_by_key(IpAddr::is_ipv6))
}

fn bad(destination: Option<SocketAddr>, reason: String) -> Misdirected {
    Misdirected { status: StatusCode::BAD_REQUEST, destination, reason }
}

fn unavailable(destination: Option<SocketAddr>, reason: String) -> Misdirected {
    Misdirected { status: StatusCode::SERVICE_UNAVAILABLE, destination, reason }
}

// === impl Asked ===

impl<'a> Asked<'a> {
    fn read(authority: &'a str) -> Option<Self> {
        if let Ok(address) = SocketAddr::from_str(authority) {
            return Some(Self::Address(socket::fold_mapped(address)));
        }
        let (host, port) = authority.rsplit_once(':')?;
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._*".contains(&byte);
        // What consists of digits and dots alone is an address that can't be read.
        let is_host = host.bytes().all(is_name) && host.bytes().any(|byte| byte.is_ascii_alphabetic());
        let is_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        (is_host && is_port).then(|| port.parse().ok().map(|port| Self::Name(host, port))).flatten()
    }
}

// === impl NextHop ===

impl NextHop {
    /// To this address as it is.
    pub(crate) fn direct(destination: SocketAddr) -> Self {
        Self { destination, tunnelled: None, at_loopback: false }
    }

    /// Where TCP connects to.
    pub(crate) fn target(&self) -> SocketAddr {
        let loopback = match self.destination.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        if self.at_loopback { SocketAddr::new(loopback, self.destination.port()) } else { self.destination }
    }
}
