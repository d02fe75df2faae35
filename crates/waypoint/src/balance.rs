//! Which endpoint gets the next request: the less busy of two drawn at random.

use std::{
    hash::{BuildHasher, RandomState},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use ambit_mesh::{
    View,
    view::{ServiceKey, Workload},
};

use crate::{limits::LOAD_COUNTERS, random::Random};

/// A container port of a workload.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) workload: Arc<Workload>,
    /// Pod address and target port.
    pub(crate) address: SocketAddr,
}

/// Requests and TCP connections in flight per endpoint, without a lock: endpoints hash to counters, and a collision
/// only makes the balance less exact.
#[derive(Debug)]
pub(crate) struct Loads {
    hasher: RandomState,
    counters: Box<[AtomicUsize]>,
}

/// One request in flight at an endpoint, until dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    loads: Arc<Loads>,
    counter: usize,
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
    Some(if loads.of(&second) < loads.of(&first) { second } else { first })
}

// === impl Endpoint ===

/// The same pod under the same identity at the same port: an address alone may have been given to another pod.
impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        self.address == other.address
            && self.workload.uid == other.workload.uid
            && self.workload.identity == other.workload.identity
    }
}

impl Endpoint {
    /// Whether it could still be picked.
    pub(crate) fn is_usable(&self, view: &View, service: &ServiceKey, port: u16) -> bool {
        let healthy = view.endpoints(service).iter().filter(|workload| workload.healthy);
        healthy.filter_map(|workload| Self::of(workload, service, port)).any(|endpoint| endpoint == *self)
    }

    /// The workload itself at this address, if it is its own.
    pub(crate) fn at(workload: &Arc<Workload>, address: SocketAddr) -> Option<Self> {
        let own = workload.addresses.contains(&address.ip());
        own.then(|| Self { workload: Arc::clone(workload), address })
    }

    fn of(workload: &Arc<Workload>, service: &ServiceKey, port: u16) -> Option<Self> {
        let target = *workload.services.get(service)?.get(&port)?;
        let ip: IpAddr = *workload.addresses.first()?;
        (target != 0).then(|| Self { workload: Arc::clone(workload), address: SocketAddr::new(ip, target) })
    }
}

// === impl Loads ===

impl Default for Loads {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            counters: std::iter::repeat_with(AtomicUsize::default).take(LOAD_COUNTERS).collect(),
        }
    }
}

impl Loads {
    /// Counts one more until the guard is dropped.
    pub(crate) fn add(self: &Arc<Self>, endpoint: &Endpoint) -> InFlight {
        let counter = self.counter(endpoint);
        self.counters[counter].fetch_add(1, Ordering::Relaxed);
        InFlight { loads: Arc::clone(self), counter }
    }

    fn of(&self, endpoint: &Endpoint) -> usize {
        self.counters[self.counter(endpoint)].load(Ordering::Relaxed)
    }

    fn counter(&self, endpoint: &Endpoint) -> usize {
        // INVARIANT: less than the number of counters, which fits in a usize.
        (self.hasher.hash_one(endpoint.address) % self.counters.len() as u64) as usize
    }
}

// === impl InFlight ===

impl Drop for InFlight {
    fn drop(&mut self) {
        self.loads.counters[self.counter].fetch_sub(1, Ordering::Relaxed);
    }
}
