//! What a proxy knows of the mesh: an immutable snapshot, swapped atomically when configuration arrives.
//!
//! A resource that can't be read is rejected by name and the rest of its push applied. What a rejected resource would
//! have governed is closed, not left as it was: a policy denies what it targets, a service can't be reached, a
//! workload gets no connections.

mod addresses;
mod authentication;
mod authorizers;
mod claims;
mod decode;
pub mod destinations;
mod endpoints;
#[doc(hidden)]
pub mod fuzzing;
mod listing;
mod model;
mod policies;
mod ranking;
pub mod routes;
mod settings;
mod shards;
mod state;
pub mod traffic;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use ambit_policy::Compiled;
use ambit_xds::{DeltaResponse, channel::Nack};

use self::{addresses::Addresses, endpoints::Endpoints, shards::Shards, state::State};
pub use self::{
    authentication::{Authentication, ClaimHeader, Location, TokenRule, bare_audience},
    authorizers::{Ask, Authorizer, CheckedBody, HeaderPatterns, HttpAsk},
    endpoints::{Drawn, Tier, Tiers},
    listing::{BundleRecord, PolicyRecord},
    model::{
        ApplicationTunnel, Balancing, Canonical, Families, Gateway, GatewayRef, GuardedPort, Locality, Mode,
        NetworkAddress, Scope, Service, ServiceKey, ServicePort, WaypointRef, Workload, WorkloadType,
    },
    settings::{Denial, Settings, Tracing},
};

/// What one waypoint fronts.
#[derive(Clone, Debug)]
pub struct WaypointBundle {
    /// Namespace of the Gateway.
    pub namespace: Arc<str>,
    /// Name of the Gateway.
    pub name: Arc<str>,
    /// Policies in force per service bound to this waypoint. A service that isn't here isn't served.
    pub services: HashMap<ServiceKey, Arc<Compiled>>,
    /// Its own service, by which workloads name it; nothing if it fronts none.
    pub own: Option<ServiceKey>,
    /// Policies in force for every workload that it fronts.
    pub workloads: Arc<Compiled>,
    /// Routes of those services that have some.
    pub routes: Arc<routes::Routes>,
    /// How the endpoints of those services are treated where that isn't as usual.
    pub destinations: Arc<destinations::Destinations>,
    /// The external authorizers that these policies name, or why one can't be asked.
    pub authorizers: Arc<Authorizers>,
    /// Whose tokens are believed, per service; none for one without RequestAuthentication.
    pub authentications: Arc<Authentications>,
    /// The same for every workload that it fronts.
    pub workload_authentication: Option<Arc<Authentication>>,
    /// Rate limits and faults per service; none for one without TrafficPolicy.
    pub traffic: Arc<traffic::Traffic>,
    /// The same for every workload that it fronts.
    pub workload_traffic: Option<Arc<traffic::ServiceTraffic>>,
    /// Budgets of retries of those services that have one of their own.
    pub retry_budgets: Arc<traffic::RetryBudgets>,
    /// How it differs from the usual waypoint.
    pub settings: Arc<Settings>,
}

/// The snapshot. A change copies what it touches and shares the rest, so its cost doesn't grow with the mesh.
#[derive(Clone, Debug, Default)]
pub struct View {
    network: Arc<str>,
    workloads: Shards<Arc<str>, Arc<Workload>>,
    workloads_by_hostname: Shards<Arc<str>, Vec<Arc<Workload>>>,
    addresses: Addresses,
    services: Shards<ServiceKey, Arc<Service>>,
    services_by_hostname: Shards<Arc<str>, Vec<Arc<Service>>>,
    endpoints: Shards<ServiceKey, Arc<Endpoints>>,
    waypoints: Arc<Bundles>,
}

/// One version of a service's endpoints.
#[derive(Clone, Debug)]
pub struct EndpointsVersion(Arc<Endpoints>);

/// External authorizers by name.
pub type Authorizers = HashMap<Arc<str>, Result<Arc<Authorizer>, Arc<str>>>;

/// Whose tokens are believed, by service.
pub type Authentications = HashMap<ServiceKey, Arc<Authentication>>;

/// Bundles by the namespace and name of their waypoint's Gateway.
type Bundles = HashMap<(Arc<str>, Arc<str>), Arc<WaypointBundle>>;

/// Holds the current [`View`] and tells when it changes.
#[derive(Debug)]
pub struct Store {
    current: arc_swap::ArcSwap<View>,
    changes: tokio::sync::watch::Sender<u64>,
    state: Mutex<State>,
}

// === impl View ===

impl View {
    /// The network that the proxy is in; empty for the mesh's only one.
    #[must_use]
    pub fn network(&self) -> &Arc<str> {
        &self.network
    }

    /// The workload with this uid.
    #[must_use]
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload with this address in the proxy's own network.
    #[must_use]
    pub fn workload_by_ip(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.addresses.workload(&self.network, ip)
    }

    /// The workload with this address in this network.
    #[must_use]
    pub fn workload_by_address(&self, address: &NetworkAddress) -> Option<&Arc<Workload>> {
        self.addresses.workload(&address.network, address.ip)
    }

    /// Workloads with this hostname (lower case), which have no addresses.
    pub fn workloads_by_hostname(&self, hostname: &str) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads_by_hostname.get(hostname).into_iter().flatten()
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

    /// The service with this virtual address in the proxy's own network, for whoever knows all services.
    #[must_use]
    pub fn service_by_vip(&self, ip: IpAddr) -> Option<&Arc<Service>> {
        self.addresses.service(&self.network, ip, None)
    }

    /// The service that clients of this namespace mean by this address: of those visible to them the one of their
    /// own namespace, else the canonical one, else the first. Ranges count where no service has the address alone,
    /// the narrowest first (`spec/ztunnel.md` 4).
    #[must_use]
    pub fn service_for(&self, ip: IpAddr, namespace: &str) -> Option<&Arc<Service>> {
        self.addresses.service(&self.network, ip, Some(namespace))
    }

    /// The service with this virtual address in this network.
    #[must_use]
    pub fn service_by_address(&self, address: &NetworkAddress) -> Option<&Arc<Service>> {
        self.addresses.service(&address.network, address.ip, None)
    }

    /// True if some workload or service has exactly this address in this network; ranges don't count.
    #[must_use]
    pub fn has_address(&self, network: &str, ip: IpAddr) -> bool {
        self.addresses.has(network, ip)
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

    /// All workloads of a service, healthy or not, by uid. The first call after a change sorts them; who needs one to
    /// connect to asks for [`View::tiers`].
    #[must_use]
    pub fn endpoints(&self, key: &ServiceKey) -> &[Arc<Workload>] {
        self.endpoints.get(key).map_or(&[], |endpoints| endpoints.all())
    }

    /// The endpoints of a service that a client may use, nearest first: those with this service port, or with any if
    /// none is given. Costs the same however many there are.
    #[must_use]
    pub fn tiers(&self, key: &ServiceKey, client: Option<&Workload>, port: Option<u16>) -> Tiers<'_> {
        self.endpoints.get(key).map_or_else(Tiers::none, |endpoints| endpoints.tiers(client, port))
    }

    /// The same for a client that is only looked up if it matters who it is.
    pub fn tiers_for<'c>(
        &self,
        key: &ServiceKey,
        client: impl FnOnce() -> Option<&'c Workload>,
        port: u16,
    ) -> Tiers<'_> {
        let Some(endpoints) = self.endpoints.get(key) else { return Tiers::none() };
        let client = if endpoints.are_ranked() { client() } else { None };
        endpoints.tiers(client, Some(port))
    }

    /// The endpoints of a service as they are now, to ask later whether they still are; nothing if it has none.
    #[must_use]
    pub fn endpoints_version(&self, key: &ServiceKey) -> Option<EndpointsVersion> {
        self.endpoints.get(key).cloned().map(EndpointsVersion)
    }

    /// True if nothing has changed about the endpoints of a service since this version.
    #[must_use]
    pub fn is_version(&self, key: &ServiceKey, version: Option<&EndpointsVersion>) -> bool {
        match (self.endpoints.get(key), version) {
            (None, None) => true,
            (Some(now), Some(version)) => Arc::ptr_eq(now, &version.0),
            _ => false,
        }
    }

    /// True if this workload is what the reference leads to, or one of several.
    #[must_use]
    pub fn is_gateway(&self, gateway: &GatewayRef, workload: &Workload) -> bool {
        match &gateway.destination {
            Gateway::Service(key) => {
                let named = |hostname: &Arc<str>| **hostname == *key.hostname && workload.namespace == key.namespace;
                workload.services.contains_key(key) || workload.hostname.as_ref().is_some_and(named)
            }
            Gateway::Address(address) => {
                let owner = self.workload_by_address(address);
                let service = || self.service_by_address(address);
                owner.is_some_and(|owner| owner.uid == workload.uid)
                    || service().is_some_and(|service| workload.services.contains_key(&service.key))
            }
        }
    }

    /// The bundle of the waypoint of this namespace and name.
    #[must_use]
    pub fn waypoint(&self, namespace: &str, name: &str) -> Option<&Arc<WaypointBundle>> {
        self.waypoints.get(&(Arc::from(namespace), Arc::from(name)))
    }
}

// === impl WaypointBundle ===

impl WaypointBundle {
    /// True if it serves connections to this workload's own addresses.
    #[must_use]
    pub fn fronts(&self, workload: &Workload) -> bool {
        let named = workload.waypoint.as_ref().map(|waypoint| &waypoint.destination);
        matches!((named, &self.own), (Some(Gateway::Service(key)), Some(own)) if key == own)
    }
}

// === impl Store ===

impl Store {
    /// An empty store, for proxies of this trust domain.
    #[must_use]
    pub fn new(options: ambit_policy::Options) -> Arc<Self> {
        Self::in_network(options, "")
    }

    /// The same, for proxies in this network.
    #[must_use]
    pub fn in_network(options: ambit_policy::Options, network: &str) -> Arc<Self> {
        let state = State::new(options, network);
        Arc::new(Self {
            current: arc_swap::ArcSwap::from_pointee(state.view()),
            changes: tokio::sync::watch::Sender::new(0),
            state: Mutex::new(state),
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
        let (view, rejected) = state.apply(responses);
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
