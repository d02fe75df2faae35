//! What the proxy was told, and the view built from it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use ambit_policy::{Compiled, Options, PathNormalization};
use ambit_xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, DeltaResponse, MESH_TYPE, WAYPOINT_TYPE, mesh,
    security::Policy,
    waypoint::{BoundService, Bundle, Provider, RequestAuthentication, TrafficPolicy},
};
use prost::Message;

use super::{
    Gateway, GatewayRef, Service, ServiceKey, View, WaypointBundle, Workload,
    authentication::{authentication, authentications},
    authorizers,
    decode::{self, Address, Names, WorkloadFacts},
    destinations::{self, Destinations},
    endpoints::Slots,
    listing::BundleRecord,
    policies::{Policies, Touched},
    routes::{self, Routes},
    settings, traffic,
};

/// Addresses (workloads and services together) one store holds.
const MAX_ADDRESSES: usize = 200_000;
/// Hostname of the waypoint that a rejected service is given: it resolves to nothing, so connections fail.
const REJECTED: &str = "configuration-rejected.invalid";

/// Resource name and reason.
type Rejected = Vec<(String, String)>;

/// Everything received, by resource name, and the view of it.
#[derive(Debug)]
pub(super) struct State {
    /// What policies mean while no one says otherwise.
    defaults: Options,
    policies: Policies,
    names: Names,
    workloads: HashMap<Arc<str>, Entry>,
    bundles: HashMap<Arc<str>, BundleEntry>,
    slots: HashMap<ServiceKey, Slots>,
    /// As it is handed out after the next [`State::apply`].
    view: View,
    changed: Changed,
}

/// What the view doesn't show yet.
#[derive(Debug, Default)]
struct Changed {
    workloads: BTreeSet<Arc<str>>,
    bundles: bool,
    /// Services whose endpoints are to be ranked anew.
    services: BTreeSet<ServiceKey>,
    /// Endpoints by service and uid; nothing for one that is none any more.
    endpoints: HashMap<ServiceKey, HashMap<Arc<str>, Option<Arc<Workload>>>>,
}

#[derive(Debug)]
struct Entry {
    facts: WorkloadFacts,
    /// Its policies haven't been looked up since it changed.
    stale: bool,
}

#[derive(Debug)]
struct BundleEntry {
    /// As received, to see what changed.
    services: HashMap<ServiceKey, BoundService>,
    workload_policies: Vec<Policy>,
    workload_authentications: Vec<RequestAuthentication>,
    workload_traffic_policies: Vec<TrafficPolicy>,
    providers: Vec<Provider>,
    /// It couldn't be read, so everything is denied.
    closed: bool,
    built: Arc<WaypointBundle>,
}

// === impl State ===

impl State {
    pub(super) fn new(options: Options, network: &str) -> Self {
        let mut names = Names::default();
        let view = View { network: names.get(network), ..View::default() };
        Self {
            defaults: options.clone(),
            policies: Policies::new(options),
            names,
            workloads: HashMap::new(),
            bundles: HashMap::new(),
            slots: HashMap::new(),
            view,
            changed: Changed::default(),
        }
    }

    /// The view as it is now.
    pub(super) fn view(&self) -> View {
        self.view.clone()
    }

    /// The policies.
    pub(super) fn policies(&self) -> &Policies {
        &self.policies
    }

    /// The bundle of this name as it arrived.
    pub(super) fn bundle(&self, name: &str) -> Option<BundleRecord> {
        let entry = self.bundles.get(name)?;
        let mut services: Vec<_> = entry.services.values().cloned().collect();
        services.sort_by(|a, b| (&a.namespace, &a.hostname).cmp(&(&b.namespace, &b.hostname)));
        Some(BundleRecord {
            services,
            workload_policies: entry.workload_policies.clone(),
            workload_authentications: entry.workload_authentications.clone(),
            workload_traffic_policies: entry.workload_traffic_policies.clone(),
            providers: entry.providers.clone(),
            settings: Arc::clone(&entry.built.settings),
            closed: entry.closed,
        })
    }

    /// The policies that workloads name, by uid.
    pub(super) fn named_policies(&self) -> impl Iterator<Item = (&Arc<str>, Vec<Arc<str>>)> {
        self.workloads.iter().map(|(uid, entry)| (uid, entry.facts.policies.iter().cloned().collect()))
    }

    /// Takes the responses in, in order, and gives the view after all of them.
    pub(super) fn apply(&mut self, responses: &[DeltaResponse]) -> (View, Rejected) {
        let mut rejected = Rejected::new();
        let mut touched = Touched::default();
        for response in responses {
            match response.type_url.as_str() {
                MESH_TYPE => self.mesh(response, &mut touched, &mut rejected),
                AUTHORIZATION_TYPE => self.authorizations(response, &mut touched, &mut rejected),
                WAYPOINT_TYPE => self.bundles(response, &mut rejected),
                ADDRESS_TYPE => self.addresses(response, &mut rejected),
                other => {
                    let reason = || format!("resources of type `{other}` aren't known here");
                    rejected.extend(response.resources.iter().map(|resource| (resource.name.clone(), reason())));
                }
            }
        }
        self.show(&touched);
        (self.view(), rejected)
    }

    fn mesh(&mut self, response: &DeltaResponse, touched: &mut Touched, rejected: &mut Rejected) {
        let ours = |name: &str| name == mesh::NAME;
        if response.removed.iter().any(|name| ours(name)) {
            self.policies.set_mesh(self.defaults.clone(), PathNormalization::default(), touched);
        }
        for resource in &response.resources {
            match decode::mesh(&resource.value).filter(|_| ours(&resource.name)) {
                Some((options, paths)) => self.policies.set_mesh(options, paths, touched),
                // What was in force stays so.
                None => rejected.push((resource.name.clone(), "not a mesh configuration".into())),
            }
        }
        if touched.everything() {
            for entry in self.bundles.values_mut().filter(|entry| !entry.closed) {
                let services = entry.services.iter();
                let services = services.map(|(key, bound)| (key.clone(), self.policies.of_service(bound).0)).collect();
                let workloads = entry.workloads(&self.policies).0;
                entry.built = Arc::new(WaypointBundle { services, workloads, ..(*entry.built).clone() });
                self.changed.bundles = true;
            }
        }
    }

    fn authorizations(&mut self, response: &DeltaResponse, touched: &mut Touched, rejected: &mut Rejected) {
        let removed: BTreeSet<Arc<str>> = response.removed.iter().map(|name| name.as_str().into()).collect();
        let named = self.named_among(&removed);
        for name in &removed {
            if !(named.contains(name) && self.policies.keep_while_named(name)) {
                self.policies.remove(name, touched);
            }
        }
        for resource in &response.resources {
            if let Err(reason) = self.policies.upsert(&resource.name, &resource.value, touched) {
                rejected.push((resource.name.clone(), reason));
            }
        }
    }

    /// Those of these policies that a workload names.
    fn named_among(&self, policies: &BTreeSet<Arc<str>>) -> BTreeSet<Arc<str>> {
        if policies.is_empty() {
            return BTreeSet::new();
        }
        let named = self.workloads.values().flat_map(|entry| entry.facts.policies.iter());
        named.filter(|name| policies.contains(*name)).cloned().collect()
    }

    fn addresses(&mut self, response: &DeltaResponse, rejected: &mut Rejected) {
        for name in &response.removed {
            self.remove_address(name);
        }
        for resource in &response.resources {
            let full = self.workloads.len() + self.view.services.len() >= MAX_ADDRESSES;
            let network = Arc::clone(&self.view.network);
            let address = decode::address(&mut self.names, &network, &resource.name, &resource.value);
            let outcome = address.and_then(|address| match address {
                _ if full && !self.knows(&resource.name) => Err(format!("more than {MAX_ADDRESSES} addresses")),
                Address::Workload(facts) => {
                    self.remove_service(&resource.name);
                    let uid = Arc::clone(&facts.workload.uid);
                    self.changed.workloads.insert(Arc::clone(&uid));
                    self.workloads.insert(uid, Entry { facts: *facts, stale: true });
                    Ok(())
                }
                Address::Service(service) => {
                    self.remove_workload(&resource.name);
                    self.put_service(&service.key.clone(), Some(Arc::new(*service)));
                    Ok(())
                }
            });
            if let Err(reason) = outcome {
                self.close_address(&resource.name, &reason);
                rejected.push((resource.name.clone(), reason));
            }
        }
    }

    fn knows(&mut self, name: &str) -> bool {
        self.workloads.contains_key(name) || self.service(name).is_some()
    }

    /// The service with this resource name.
    fn service(&mut self, name: &str) -> Option<Arc<Service>> {
        let key = decode::service_key(&mut self.names, name).ok()?;
        self.view.services.get(&key).cloned()
    }

    fn remove_address(&mut self, name: &str) {
        self.remove_service(name);
        self.remove_workload(name);
    }

    fn remove_service(&mut self, name: &str) {
        if let Some(service) = self.service(name) {
            self.put_service(&service.key, None);
        }
    }

    fn remove_workload(&mut self, name: &str) {
        if let Some((uid, _)) = self.workloads.remove_entry(name) {
            self.put_workload(&uid, None);
            self.changed.workloads.remove(&uid);
        }
    }

    /// What is known under this name can't be trusted any more; it stays known, so that nothing takes its address for
    /// one outside the mesh, but nothing reaches it.
    fn close_address(&mut self, name: &str, reason: &str) {
        if let Some(service) = self.service(name) {
            let nowhere = ServiceKey { namespace: Arc::clone(&service.key.namespace), hostname: REJECTED.into() };
            let reason = format!("the configuration of service `{name}` was rejected: {reason}");
            let closed = Service {
                waypoint: Some(GatewayRef { destination: Gateway::Service(nowhere), hbone_port: 15008 }),
                weighted_waypoints: Vec::new(),
                rejected: Some(reason.into()),
                ..(*service).clone()
            };
            self.put_service(&service.key, Some(Arc::new(closed)));
        }
        if let Some(entry) = self.workloads.get_mut(name) {
            let reason = format!("the configuration of workload `{name}` was rejected: {reason}");
            let workload = Arc::make_mut(&mut entry.facts.workload);
            workload.healthy = false;
            workload.rejected = Some(reason.into());
            entry.stale = true;
            self.changed.workloads.insert(Arc::clone(&workload.uid));
        }
    }

    fn put_service(&mut self, key: &ServiceKey, now: Option<Arc<Service>>) {
        let view = &mut self.view;
        let before = match &now {
            Some(service) => view.services.insert(key.clone(), Arc::clone(service)),
            None => view.services.remove(key),
        };
        view.addresses.put_service(&view.network, before.as_deref(), now.as_ref());
        let ranked = |service: &Service| (service.ports.clone(), service.balancing.clone(), service.families);
        if before.as_deref().map(ranked) != now.as_deref().map(ranked) {
            self.changed.services.insert(key.clone());
        }
        let list = view.services_by_hostname.entry(Arc::clone(&key.hostname), Vec::new);
        list.retain(|service| service.key != *key);
        list.extend(now);
        list.sort_by(|one, other| one.key.cmp(&other.key));
        if list.is_empty() {
            view.services_by_hostname.remove(&key.hostname);
        }
    }

    /// Shows a workload as it is now.
    fn put_workload(&mut self, uid: &Arc<str>, now: Option<Arc<Workload>>) {
        let view = &mut self.view;
        let before = match &now {
            Some(workload) => view.workloads.insert(Arc::clone(uid), Arc::clone(workload)),
            None => view.workloads.remove(uid),
        };
        view.addresses.put_workload(before.as_deref(), now.as_ref());
        let hostname = |workload: &Option<Arc<Workload>>| workload.as_ref().and_then(|w| w.hostname.clone());
        for hostname in hostname(&before).into_iter().chain(hostname(&now)) {
            let list = view.workloads_by_hostname.entry(Arc::clone(&hostname), Vec::new);
            list.retain(|workload| workload.uid != *uid);
            list.extend(now.iter().filter(|now| now.hostname.as_ref() == Some(&hostname)).cloned());
            if list.is_empty() {
                view.workloads_by_hostname.remove(&hostname);
            }
        }
        let left = before.iter().flat_map(|workload| workload.services.keys());
        for key in left {
            self.changed.endpoints.entry(key.clone()).or_default().insert(Arc::clone(uid), None);
        }
        let joined = now.iter().flat_map(|workload| workload.services.keys());
        for key in joined {
            self.changed.endpoints.entry(key.clone()).or_default().insert(Arc::clone(uid), now.clone());
        }
    }

    /// Makes the view show what has changed.
    fn show(&mut self, touched: &Touched) {
        let mut stale = std::mem::take(&mut self.changed.workloads);
        if !touched.is_empty() {
            let entries = self.workloads.values().filter(|entry| touched.includes(&entry.facts));
            stale.extend(entries.map(|entry| Arc::clone(&entry.facts.workload.uid)));
        }
        for uid in stale {
            let Some(entry) = self.workloads.get_mut(&uid) else { continue };
            if entry.renew(&mut self.policies) {
                let now = Arc::clone(&entry.facts.workload);
                self.put_workload(&uid, Some(now));
            }
        }
        self.show_endpoints();
        if std::mem::take(&mut self.changed.bundles) {
            let bundles = self.bundles.values().map(|entry| &entry.built);
            let named = |bundle: &Arc<WaypointBundle>| (Arc::clone(&bundle.namespace), Arc::clone(&bundle.name));
            self.view.waypoints = Arc::new(bundles.map(|bundle| (named(bundle), Arc::clone(bundle))).collect());
        }
        let named = self.named_among(self.policies.kept());
        self.policies.release(&named);
        self.policies.forget_unused();
        self.names.clean();
    }

    fn show_endpoints(&mut self) {
        let view = &mut self.view;
        let renewed = std::mem::take(&mut self.changed.services);
        let mut left = Vec::new();
        for (key, changes) in std::mem::take(&mut self.changed.endpoints) {
            // A service whose ranking is made anew below needs no change of the old one.
            let service = view.services.get(&key).filter(|_| !renewed.contains(&key));
            let slots = self.slots.entry(key.clone()).or_default();
            let endpoints = Arc::make_mut(view.endpoints.entry(key.clone(), Arc::default));
            endpoints.apply(slots, changes.into_iter().collect(), service.map(|service| &**service), &view.network);
            if slots.is_empty() {
                self.slots.remove(&key);
                left.push(key);
            }
        }
        for key in &renewed {
            let service = view.services.get(key);
            let endpoints = Arc::make_mut(view.endpoints.entry(key.clone(), Arc::default));
            endpoints.rank_all(service.map(|service| &**service), &view.network);
        }
        // INVARIANT: a service that is known has an entry, which says how to rank what joins it later.
        for key in left.iter().chain(&renewed) {
            if view.services.get(key).is_none() && !self.slots.contains_key(key) {
                view.endpoints.remove(key);
            }
        }
    }

    fn bundles(&mut self, response: &DeltaResponse, rejected: &mut Rejected) {
        self.changed.bundles = true;
        for name in &response.removed {
            self.bundles.remove(name.as_str());
        }
        for resource in &response.resources {
            if let Err(reason) = self.put_bundle(&resource.name, &resource.value) {
                rejected.push((resource.name.clone(), reason));
            }
        }
    }

    fn put_bundle(&mut self, name: &str, value: &[u8]) -> Result<(), String> {
        let bundle = match Bundle::decode(value) {
            Ok(bundle) if format!("{}/{}", bundle.namespace, bundle.name) == name => bundle,
            Ok(_) => return Err(self.close_bundle(name, "the resource's name isn't that of its content".into())),
            Err(error) => return Err(self.close_bundle(name, format!("not a bundle: {error}"))),
        };
        if bundle.services.len() > decode::MAX_LIST_ENTRIES {
            return Err(self.close_bundle(name, format!("more than {} services", decode::MAX_LIST_ENTRIES)));
        }
        let settings = match settings::settings(bundle.settings.as_ref()) {
            Ok(settings) => Arc::new(settings),
            Err(reason) => return Err(self.close_bundle(name, reason)),
        };
        let previous = self.bundles.remove(name);
        let mut services = HashMap::new();
        let mut compiled = HashMap::new();
        let mut reasons = Vec::new();
        let kept = |key: &ServiceKey, service: &BoundService| {
            let known = previous.as_ref().filter(|entry| {
                entry.services.get(key).is_some_and(|known| known.authentications == service.authentications)
            })?;
            known.built.authentications.get(key).cloned()
        };
        let authentications = Arc::new(authentications(&bundle.services, kept));
        let routes = Arc::new(routes(previous.as_ref(), &bundle.services, &mut reasons));
        let known = previous.as_ref().map(|entry| &entry.built);
        let traffic = Arc::new(traffic::traffic(&bundle.services, known.map(|built| &*built.traffic)));
        let retry_budgets =
            Arc::new(traffic::retry_budgets(&bundle.services, known.map(|built| &*built.retry_budgets)));
        let limits = bundle.workload_traffic_policies;
        let workload_traffic =
            traffic::compile(&limits, known.and_then(|built| built.workload_traffic.as_ref())).unwrap_or_default();
        let destinations = Arc::new(destinations(previous.as_ref(), &bundle.services, &mut reasons));
        for service in bundle.services {
            let key =
                ServiceKey { namespace: service.namespace.as_str().into(), hostname: service.hostname.as_str().into() };
            let unchanged = previous.as_ref().filter(|entry| entry.services.get(&key) == Some(&service));
            let set = unchanged.and_then(|entry| entry.built.services.get(&key)).cloned().unwrap_or_else(|| {
                let (set, outcome) = self.policies.of_service(&service);
                reasons.extend(outcome.err());
                set
            });
            compiled.insert(key.clone(), set);
            services.insert(key, service);
        }
        let (policies, tokens) = (bundle.workload_policies, bundle.workload_authentications);
        let unchanged = previous.as_ref().filter(|entry| {
            !entry.closed
                && entry.workload_policies == policies
                && entry.workload_authentications == tokens
                && entry.workload_traffic_policies == limits
        });
        let (workloads, workload_authentication) = match unchanged {
            Some(entry) => (Arc::clone(&entry.built.workloads), entry.built.workload_authentication.clone()),
            None => {
                let (set, outcome) = self.policies.at_waypoint(&policies, &tokens, &limits);
                reasons.extend(outcome.err());
                // What can't be read has closed the set.
                (set, authentication(&tokens).unwrap_or_default())
            }
        };
        let (namespace, short): (Arc<str>, _) = (bundle.namespace.into(), bundle.name.into());
        let own = (!bundle.hostname.is_empty())
            .then(|| ServiceKey { namespace: Arc::clone(&namespace), hostname: bundle.hostname.into() });
        let unchanged = previous.as_ref().filter(|entry| entry.providers == bundle.providers);
        let authorizers = unchanged.map(|entry| Arc::clone(&entry.built.authorizers)).unwrap_or_else(|| {
            let authorizers = authorizers::authorizers(&bundle.providers);
            reasons.extend(authorizers.values().filter_map(|read| Some(read.as_ref().err()?.to_string())));
            Arc::new(authorizers)
        });
        let providers = bundle.providers;
        let built = Arc::new(WaypointBundle {
            namespace,
            name: short,
            services: compiled,
            own,
            workloads,
            authorizers,
            authentications,
            workload_authentication,
            traffic,
            workload_traffic,
            retry_budgets,
            routes,
            destinations,
            settings,
        });
        let entry = BundleEntry {
            services,
            workload_policies: policies,
            workload_authentications: tokens,
            workload_traffic_policies: limits,
            providers,
            closed: false,
            built,
        };
        self.bundles.insert(name.into(), entry);
        if reasons.is_empty() { Ok(()) } else { Err(reasons.join("; ")) }
    }

    /// The services that this waypoint had are all denied, with the reason.
    fn close_bundle(&mut self, name: &str, reason: String) -> String {
        if let Some(entry) = self.bundles.get_mut(name) {
            let deny = Arc::new(Compiled::deny_all(&format!("the waypoint's configuration was rejected: {reason}")));
            let closed = entry.built.services.keys().map(|key| (key.clone(), Arc::clone(&deny))).collect();
            entry.services.clear();
            entry.workload_policies.clear();
            entry.workload_authentications.clear();
            entry.workload_traffic_policies.clear();
            entry.providers.clear();
            entry.closed = true;
            entry.built = Arc::new(WaypointBundle {
                namespace: Arc::clone(&entry.built.namespace),
                name: Arc::clone(&entry.built.name),
                services: closed,
                own: entry.built.own.clone(),
                workloads: deny,
                authorizers: Arc::default(),
                authentications: Arc::default(),
                workload_authentication: None,
                traffic: Arc::default(),
                workload_traffic: None,
                retry_budgets: Arc::default(),
                routes: Arc::default(),
                destinations: Arc::default(),
                settings: Arc::clone(&entry.built.settings),
            });
        }
        reason
    }
}

/// The routes of each of these services. One whose routes can't be read has them closed.
fn routes(previous: Option<&BundleEntry>, services: &[BoundService], reasons: &mut Vec<String>) -> Routes {
    let mut compiled = Routes::new();
    for service in services.iter().filter(|service| !service.routes.is_empty()) {
        let key =
            ServiceKey { namespace: service.namespace.as_str().into(), hostname: service.hostname.as_str().into() };
        let unchanged = previous.filter(|entry| entry.services.get(&key).is_some_and(|s| s.routes == service.routes));
        let routes = unchanged.and_then(|entry| entry.built.routes.get(&key)).cloned().or_else(|| {
            let (routes, rejected) = routes::compile(service);
            reasons.extend(rejected);
            routes
        });
        compiled.extend(routes.map(|routes| (key, routes)));
    }
    compiled
}

/// How the endpoints of each of these services are treated. One whose rules can't be read is closed.
fn destinations(previous: Option<&BundleEntry>, services: &[BoundService], reasons: &mut Vec<String>) -> Destinations {
    let mut compiled = Destinations::new();
    for service in services.iter().filter(|service| service.destination.is_some()) {
        let key =
            ServiceKey { namespace: service.namespace.as_str().into(), hostname: service.hostname.as_str().into() };
        let unchanged =
            previous.filter(|entry| entry.services.get(&key).is_some_and(|s| s.destination == service.destination));
        let destination = unchanged.and_then(|entry| entry.built.destinations.get(&key)).cloned().or_else(|| {
            let (destination, rejected) = destinations::compile(service);
            reasons.extend(rejected);
            destination
        });
        compiled.extend(destination.map(|destination| (key, destination)));
    }
    compiled
}

// === impl BundleEntry ===

impl BundleEntry {
    /// The policies of its workloads.
    fn workloads(&self, policies: &Policies) -> (Arc<Compiled>, Result<(), String>) {
        policies.at_waypoint(&self.workload_policies, &self.workload_authentications, &self.workload_traffic_policies)
    }
}

// === impl Entry ===

impl Entry {
    /// Looks its policies up again. False if nothing is to be shown anew.
    fn renew(&mut self, policies: &mut Policies) -> bool {
        let workload = &self.facts.workload;
        let set = match &workload.rejected {
            Some(_) if !self.stale => return false,
            Some(reason) => Arc::new(Compiled::deny_all(reason)),
            None => policies.of_workload(&self.facts),
        };
        if !self.stale && Arc::ptr_eq(&workload.policies, &set) {
            return false;
        }
        Arc::make_mut(&mut self.facts.workload).policies = set;
        self.stale = false;
        true
    }
}
