//! Which endpoint gets the next request: the less busy of two drawn at random, of the nearest that there are.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ambit_mesh::{
    View,
    view::{Drawn, ServiceKey, Tier, Workload},
};

use crate::{destination::Host, shared::Shared};

/// A container port of a workload.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) workload: Arc<Workload>,
    /// Pod address and target port.
    pub(crate) address: SocketAddr,
    /// For a waypoint on the way to a service: what it is asked for.
    pub(crate) beyond: Option<SocketAddr>,
    /// What is known of it, where a rule wants that.
    pub(crate) host: Option<Arc<Host>>,
}

/// An endpoint that is healthy and has this service port, except those already tried.
pub(crate) fn pick(
    view: &View,
    service: &ServiceKey,
    port: u16,
    tried: &[SocketAddr],
    shared: &Shared,
) -> Option<Endpoint> {
    let own = || view.workload_by_ip(shared.config.address.ip()).map(|own| &**own);
    let usable = |drawn: Drawn<'_>| {
        let endpoint = Endpoint::of(view, drawn.workload()?, service, port)?;
        (!tried.contains(&endpoint.address)).then_some(endpoint)
    };
    // Usually the first that is drawn is usable.
    let draw = |tier: Tier<'_>| {
        let drawn = tier.draw(shared.random.next()).and_then(usable);
        drawn.or_else(|| tier.shuffled(shared.random.next()).find_map(usable))
    };
    let near = view.tiers_for(service, own, port).iter().find_map(|tier| {
        let first = draw(tier)?;
        if tier.len() == 1 {
            return Some(first);
        }
        let Some(second) = tier.draw(shared.random.next()).and_then(usable) else { return Some(first) };
        // By capacity: (a + 1) / capacity of a, without a division.
        let load = |one: &Endpoint, other: &Endpoint| {
            (u64::from(shared.loads.of(one.load_key())) + 1) * u64::from(other.workload.capacity)
        };
        Some(if load(&second, &first) < load(&first, &second) { second } else { first })
    });
    // Endpoints are ranked as their service says. One that is known by them alone, as a foreign waypoint may be, has no say.
    let unranked = || {
        let workloads = view.endpoints(service).iter().filter(|_| view.service(service).is_none());
        let healthy = workloads.filter(|workload| workload.healthy);
        let mut usable = healthy.filter_map(|workload| Endpoint::of(view, workload, service, port));
        usable.find(|endpoint| !tried.contains(&endpoint.address))
    };
    near.or_else(unranked)
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
        healthy.filter_map(|workload| Self::of(view, workload, service, port)).any(|endpoint| endpoint == *self)
    }

    /// The workload itself at this address, if it is its own.
    pub(crate) fn at(workload: &Arc<Workload>, address: SocketAddr) -> Option<Self> {
        let own = workload.addresses.contains(&address.ip());
        own.then(|| Self { workload: Arc::clone(workload), address, beyond: None, host: None })
    }

    /// A workload as an endpoint of a service; nothing if it isn't reached directly.
    pub(crate) fn of(view: &View, workload: &Arc<Workload>, service: &ServiceKey, port: u16) -> Option<Self> {
        let target = *workload.services.get(service)?.get(&port)?;
        let ip: IpAddr = *workload.addresses.first()?;
        (target != 0 && workload.network == *view.network()).then(|| Self {
            workload: Arc::clone(workload),
            address: SocketAddr::new(ip, target),
            beyond: None,
            host: None,
        })
    }
}
