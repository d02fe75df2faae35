//! Which endpoint gets the next request: the less busy of two drawn at random.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ambit_mesh::{
    View,
    loads::Loads,
    view::{ServiceKey, Workload},
};

use crate::random::Random;

/// A container port of a workload.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) workload: Arc<Workload>,
    /// Pod address and target port.
    pub(crate) address: SocketAddr,
    /// For a waypoint on the way to a service: what it is asked for.
    pub(crate) beyond: Option<SocketAddr>,
}

/// An endpoint that is healthy and has this service port, except those already tried.
pub(crate) fn pick(
    view: &View,
    service: &ServiceKey,
    port: u16,
    tried: &[SocketAddr],
    loads: &Loads,
    random: &Random,
) -> Option<Endpoint> {
    let workloads = view.endpoints(service);
    // From a random place on, so that the usual case, all of them usable, looks at one.
    let draw = || {
        let (before, after) = workloads.split_at(random.below(workloads.len()));
        let usable = after.iter().chain(before).filter(|workload| workload.healthy);
        usable
            .filter_map(|workload| Endpoint::of(workload, service, port))
            .find(|endpoint| !tried.contains(&endpoint.address))
    };
    let (first, second) = (draw()?, draw()?);
    Some(if loads.of(second.load_key()) < loads.of(first.load_key()) { second } else { first })
}

// === impl Endpoint ===

/// The same pod under the same identity at the same port: an address alone may have been given to another pod.
impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        self.address == other.address
            && self.beyond == other.beyond
            && self.workload.uid == other.workload.uid
            && self.workload.identity == other.workload.identity
    }
}

impl Endpoint {
    /// What its requests in flight are counted under: each port of a workload has its own load.
    pub(crate) fn load_key(&self) -> u32 {
        self.workload.load_key.wrapping_add(u32::from(self.address.port()))
    }

    /// Whether it could still be picked.
    pub(crate) fn is_usable(&self, view: &View, service: &ServiceKey, port: u16) -> bool {
        let healthy = view.endpoints(service).iter().filter(|workload| workload.healthy);
        healthy.filter_map(|workload| Self::of(workload, service, port)).any(|endpoint| endpoint == *self)
    }

    /// The workload itself at this address, if it is its own.
    pub(crate) fn at(workload: &Arc<Workload>, address: SocketAddr) -> Option<Self> {
        let own = workload.addresses.contains(&address.ip());
        own.then(|| Self { workload: Arc::clone(workload), address, beyond: None })
    }

    fn of(workload: &Arc<Workload>, service: &ServiceKey, port: u16) -> Option<Self> {
        let target = *workload.services.get(service)?.get(&port)?;
        let ip: IpAddr = *workload.addresses.first()?;
        (target != 0).then(|| Self {
            workload: Arc::clone(workload),
            address: SocketAddr::new(ip, target),
            beyond: None,
        })
    }
}
