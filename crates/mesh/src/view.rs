//! What a proxy knows of the mesh: an immutable snapshot, swapped atomically when configuration arrives.
//!
//! A resource that can't be read is rejected by name and the rest of its push applied. What a rejected resource would
//! have governed is closed, not left as it was: a policy denies what it targets, a service can't be reached, a
//! workload gets no connections.

mod decode;
mod policies;
mod state;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use ambit_api::SpiffeId;
use ambit_policy::Compiled;
use ambit_xds::{DeltaResponse, channel::Nack, workload::AppProtocol};

use self::state::State;

/// `namespace` and fully qualified `hostname` of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Fully qualified name.
    pub hostname: Arc<str>,
}

/// A pod or other endpoint.
#[derive(Debug)]
pub struct Workload {
    /// Primary key, `<cluster>//Pod/<ns>/<name>`.
    pub uid: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
    /// Pod namespace.
    pub namespace: Arc<str>,
    /// Who it is.
    pub identity: SpiffeId,
    /// Its addresses, most preferred first.
    pub addresses: Vec<IpAddr>,
    /// It is reached through HBONE (otherwise by plain TCP).
    pub hbone: bool,
    /// It terminates HBONE itself (a waypoint).
    pub native_tunnel: bool,
    /// It gets new connections.
    pub healthy: bool,
    /// Services it belongs to: service port to container port.
    pub services: BTreeMap<ServiceKey, BTreeMap<u16, u16>>,
    /// Ports that only a waypoint may reach.
    pub guard: Vec<GuardedPort>,
    /// The L4 policies in force for it. Denies everything when one of them is not known or not readable.
    ///
    /// Workloads with the same policies share it: it changes identity only when what it says may have changed.
    pub policies: Arc<Compiled>,
}

/// A port that only one waypoint may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardedPort {
    /// Container port; nothing guards every port.
    pub port: Option<u16>,
    /// `namespace/name` of the Service that asks for it.
    pub service: Arc<str>,
    /// `namespace/name` of the waypoint's Gateway.
    pub waypoint: Arc<str>,
    /// The waypoint's identity.
    pub identity: SpiffeId,
}

/// A service.
#[derive(Debug)]
pub struct Service {
    /// Its key.
    pub key: ServiceKey,
    /// Object name.
    pub name: Arc<str>,
    /// Virtual addresses; none for a headless service.
    pub vips: Vec<IpAddr>,
    /// Its ports by service port.
    pub ports: BTreeMap<u16, ServicePort>,
    /// The waypoint that must be used to reach it.
    pub waypoint: Option<WaypointRef>,
}

/// A port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// What is spoken on it.
    pub protocol: AppProtocol,
}

/// How a service names its waypoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaypointRef {
    /// The waypoint's own service. It may be unknown: then connections fail, they never go direct.
    pub service: ServiceKey,
    /// Its HBONE port.
    pub hbone_port: u16,
}

/// The services of one waypoint.
#[derive(Debug)]
pub struct WaypointBundle {
    /// Namespace of the Gateway.
    pub namespace: Arc<str>,
    /// Name of the Gateway.
    pub name: Arc<str>,
    /// Policies in force per service bound to this waypoint. A service that isn't here isn't served.
    pub services: HashMap<ServiceKey, Arc<Compiled>>,
}

/// The snapshot.
#[derive(Debug, Default)]
pub struct View {
    pub(crate) workloads: HashMap<Arc<str>, Arc<Workload>>,
    pub(crate) workloads_by_ip: HashMap<IpAddr, Arc<Workload>>,
    pub(crate) services: HashMap<ServiceKey, Arc<Service>>,
    pub(crate) services_by_vip: HashMap<IpAddr, Arc<Service>>,
    pub(crate) services_by_hostname: HashMap<Arc<str>, Vec<Arc<Service>>>,
    pub(crate) endpoints: HashMap<ServiceKey, Vec<Arc<Workload>>>,
    pub(crate) waypoints: HashMap<(Arc<str>, Arc<str>), Arc<WaypointBundle>>,
}

/// Holds the current [`View`] and tells when it changes.
#[derive(Debug)]
pub struct Store {
    current: arc_swap::ArcSwap<View>,
    changes: tokio::sync::watch::Sender<u64>,
    state: Mutex<State>,
}

// === impl View ===

impl View {
    /// The workload with this uid.
    #[must_use]
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload with this address.
    #[must_use]
    pub fn workload_by_ip(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads_by_ip.get(&ip)
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// The service with this key.
    #[must_use]
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The service with this virtual address.
    #[must_use]
    pub fn service_by_vip(&self, ip: IpAddr) -> Option<&Arc<Service>> {
        self.services_by_vip.get(&ip)
    }

    /// The services with this fully qualified name (lower case, no trailing dot), by namespace.
    pub fn services_by_hostname(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.services_by_hostname.get(hostname).into_iter().flatten()
    }

    /// The service of this namespace with this object name.
    #[must_use]
    pub fn service_named(&self, namespace: &str, name: &str) -> Option<&Arc<Service>> {
        self.services.values().find(|service| &*service.key.namespace == namespace && &*service.name == name)
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All workloads of a service, healthy or not, by uid.
    #[must_use]
    pub fn endpoints(&self, key: &ServiceKey) -> &[Arc<Workload>] {
        self.endpoints.get(key).map_or(&[], Vec::as_slice)
    }

    /// The bundle of the waypoint of this namespace and name.
    #[must_use]
    pub fn waypoint(&self, namespace: &str, name: &str) -> Option<&Arc<WaypointBundle>> {
        self.waypoints.get(&(Arc::from(namespace), Arc::from(name)))
    }
}

// === impl Store ===

impl Store {
    /// An empty store, for proxies of this trust domain.
    #[must_use]
    pub fn new(options: ambit_policy::Options) -> Arc<Self> {
        Arc::new(Self {
            current: arc_swap::ArcSwap::default(),
            changes: tokio::sync::watch::Sender::new(0),
            state: Mutex::new(State::new(options)),
        })
    }

    /// The current snapshot.
    #[must_use]
    pub fn load(&self) -> Arc<View> {
        self.current.load_full()
    }

    /// A counter that moves after every applied change.
    #[must_use]
    pub fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Applies responses as one change: readers see the snapshot before all of them or after all of them.
    ///
    /// # Errors
    /// Names what couldn't be read; everything else is in force.
    pub fn apply(&self, responses: &[DeltaResponse]) -> Result<(), Nack> {
        // A panic while applying leaves the maps usable: every response is applied name by name.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (view, rejected) = state.apply(responses, &self.current.load());
        self.current.store(Arc::new(view));
        drop(state);
        self.changes.send_modify(|count| *count += 1);
        if rejected.is_empty() { Ok(()) } else { Err(Nack { rejected }) }
    }

    /// Applies pushes until the control plane goes away; the last snapshot stays in force after that.
    pub async fn run(self: Arc<Self>, mut receiver: ambit_xds::channel::Receiver) {
        while let Some(push) = receiver.next().await {
            let result = self.apply(&push.responses);
            if let Err(nack) = &result {
                tracing::warn!(%nack, "configuration rejected");
            }
            push.acknowledge(result);
        }
    }
}
