//! What the proxy was told, and the view built from it.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ambit_policy::{Compiled, Options, PathNormalization};
use ambit_xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, DeltaResponse, MESH_TYPE, WAYPOINT_TYPE, mesh,
    waypoint::{BoundService, Bundle},
};
use prost::Message;

use super::{
    Service, ServiceKey, View, WaypointBundle, WaypointRef, Workload,
    decode::{self, Address, WorkloadFacts},
    policies::{Policies, Touched},
};

/// Addresses (workloads and services together) one store holds.
const MAX_ADDRESSES: usize = 200_000;
/// Hostname of the waypoint that a rejected service is given: it resolves to nothing, so connections fail.
const REJECTED: &str = "configuration-rejected.invalid";

/// Resource name and reason.
type Rejected = Vec<(String, String)>;

/// Everything received, by resource name.
#[derive(Debug)]
pub(super) struct State {
    /// What policies mean while no one says otherwise.
    defaults: Options,
    policies: Policies,
    workloads: BTreeMap<Arc<str>, Entry>,
    services: BTreeMap<Arc<str>, Arc<Service>>,
    bundles: BTreeMap<Arc<str>, BundleEntry>,
    owners: HashMap<IpAddr, Arc<str>>,
}

#[derive(Debug)]
struct Entry {
    facts: WorkloadFacts,
    /// Why its last update couldn't be read; it then gets no connections.
    rejected: Option<String>,
    /// As last published; nothing after a change.
    built: Option<Arc<Workload>>,
}

#[derive(Debug)]
struct BundleEntry {
    /// As received, to see what changed.
    services: HashMap<ServiceKey, BoundService>,
    built: Arc<WaypointBundle>,
}

// === impl State ===

impl State {
    pub(super) fn new(options: Options) -> Self {
        Self {
            defaults: options.clone(),
            policies: Policies::new(options),
            workloads: BTreeMap::new(),
            services: BTreeMap::new(),
            bundles: BTreeMap::new(),
            owners: HashMap::new(),
        }
    }

    /// Takes the responses in, in order, and builds the view after all of them.
    pub(super) fn apply(&mut self, responses: &[DeltaResponse], previous: &View) -> (View, Rejected) {
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
        (self.build(&touched, previous), rejected)
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
            let closed = |entry: &BundleEntry| entry.services.is_empty();
            for entry in self.bundles.values_mut().filter(|entry| !closed(entry)) {
                let services = entry.services.iter();
                let services = services.map(|(key, bound)| (key.clone(), self.policies.of_service(bound).0)).collect();
                let (namespace, name) = (Arc::clone(&entry.built.namespace), Arc::clone(&entry.built.name));
                entry.built = Arc::new(WaypointBundle { namespace, name, services });
            }
        }
    }

    fn authorizations(&mut self, response: &DeltaResponse, touched: &mut Touched, rejected: &mut Rejected) {
        for name in &response.removed {
            self.policies.remove(name, touched);
        }
        for resource in &response.resources {
            if let Err(reason) = self.policies.upsert(&resource.name, &resource.value, touched) {
                rejected.push((resource.name.clone(), reason));
            }
        }
    }

    fn addresses(&mut self, response: &DeltaResponse, rejected: &mut Rejected) {
        for name in &response.removed {
            self.remove_address(name);
        }
        // All leave their old addresses before any takes a new one, so that two can swap within one response.
        for resource in &response.resources {
            if let Some(entry) = self.workloads.get(resource.name.as_str()) {
                entry.facts.addresses.iter().for_each(|ip| drop(self.owners.remove(ip)));
            }
        }
        for resource in &response.resources {
            let full = self.workloads.len() + self.services.len() >= MAX_ADDRESSES;
            let outcome = decode::address(&resource.name, &resource.value).and_then(|address| match address {
                _ if full && !self.knows(&resource.name) => Err(format!("more than {MAX_ADDRESSES} addresses")),
                Address::Workload(facts) => self.put_workload(facts),
                Address::Service(service) => {
                    self.services.insert(resource.name.as_str().into(), Arc::new(service));
                    Ok(())
                }
            });
            if let Err(reason) = outcome {
                self.close_address(&resource.name, &reason);
                rejected.push((resource.name.clone(), reason));
            }
        }
    }

    fn knows(&self, name: &str) -> bool {
        self.workloads.contains_key(name) || self.services.contains_key(name)
    }

    fn put_workload(&mut self, facts: WorkloadFacts) -> Result<(), String> {
        if let Some((ip, owner)) = facts.addresses.iter().find_map(|ip| Some((ip, self.owners.get(ip)?))) {
            return Err(format!("its address {ip} is already that of `{owner}`"));
        }
        for ip in &facts.addresses {
            self.owners.insert(*ip, Arc::clone(&facts.uid));
        }
        self.workloads.insert(Arc::clone(&facts.uid), Entry { facts, rejected: None, built: None });
        Ok(())
    }

    fn remove_address(&mut self, name: &str) {
        self.services.remove(name);
        if let Some(entry) = self.workloads.remove(name) {
            entry.facts.addresses.iter().for_each(|ip| drop(self.owners.remove(ip)));
        }
    }

    /// What is known under this name can't be trusted any more; it stays known, so that nothing takes its address for
    /// one outside the mesh, but nothing reaches it.
    fn close_address(&mut self, name: &str, reason: &str) {
        if let Some(service) = self.services.get_mut(name) {
            let nowhere = ServiceKey { namespace: Arc::clone(&service.key.namespace), hostname: REJECTED.into() };
            *service = Arc::new(Service {
                key: service.key.clone(),
                name: Arc::clone(&service.name),
                vips: service.vips.clone(),
                ports: service.ports.clone(),
                waypoint: Some(WaypointRef { service: nowhere, hbone_port: 15008 }),
            });
        }
        if let Some(entry) = self.workloads.get_mut(name) {
            // Its address may have gone to another in the same response.
            entry.facts.addresses.retain(|ip| !self.owners.contains_key(ip));
            for ip in &entry.facts.addresses {
                self.owners.insert(*ip, Arc::clone(&entry.facts.uid));
            }
            entry.rejected = Some(format!("the configuration of workload `{name}` was rejected: {reason}"));
            entry.built = None;
        }
    }

    fn bundles(&mut self, response: &DeltaResponse, rejected: &mut Rejected) {
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
        let previous = self.bundles.remove(name);
        let mut services = HashMap::new();
        let mut compiled = HashMap::new();
        let mut reasons = Vec::new();
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
        let (namespace, short) = (bundle.namespace.into(), bundle.name.into());
        let built = Arc::new(WaypointBundle { namespace, name: short, services: compiled });
        self.bundles.insert(name.into(), BundleEntry { services, built });
        if reasons.is_empty() { Ok(()) } else { Err(reasons.join("; ")) }
    }

    /// The services that this waypoint had are all denied, with the reason.
    fn close_bundle(&mut self, name: &str, reason: String) -> String {
        if let Some(entry) = self.bundles.get_mut(name) {
            let deny = Arc::new(Compiled::deny_all(&format!("the waypoint's configuration was rejected: {reason}")));
            let closed = entry.built.services.keys().map(|key| (key.clone(), Arc::clone(&deny))).collect();
            entry.services.clear();
            entry.built = Arc::new(WaypointBundle {
                namespace: Arc::clone(&entry.built.namespace),
                name: Arc::clone(&entry.built.name),
                services: closed,
            });
        }
        reason
    }

    fn build(&mut self, touched: &Touched, previous: &View) -> View {
        let mut view = View { workloads: HashMap::with_capacity(previous.workloads.len()), ..View::default() };
        for (name, entry) in &mut self.workloads {
            if entry.built.is_none() || touched.includes(&entry.facts) {
                entry.rebuild(&mut self.policies);
            }
            let Some(workload) = &entry.built else { continue };
            view.workloads.insert(Arc::clone(name), Arc::clone(workload));
            for ip in &workload.addresses {
                view.workloads_by_ip.insert(*ip, Arc::clone(workload));
            }
            for key in workload.services.keys() {
                view.endpoints.entry(key.clone()).or_default().push(Arc::clone(workload));
            }
        }
        for service in self.services.values() {
            view.services.insert(service.key.clone(), Arc::clone(service));
            for vip in &service.vips {
                view.services_by_vip.entry(*vip).or_insert_with(|| Arc::clone(service));
            }
            view.services_by_hostname.entry(Arc::clone(&service.key.hostname)).or_default().push(Arc::clone(service));
        }
        for entry in self.bundles.values() {
            let key = (Arc::clone(&entry.built.namespace), Arc::clone(&entry.built.name));
            view.waypoints.insert(key, Arc::clone(&entry.built));
        }
        self.policies.forget_unused();
        view
    }
}

// === impl Entry ===

impl Entry {
    /// Makes the published workload; keeps the old one if its policies turn out to be the same.
    fn rebuild(&mut self, policies: &mut Policies) {
        let set = match &self.rejected {
            Some(reason) => Arc::new(Compiled::deny_all(reason)),
            None => policies.of_workload(&self.facts),
        };
        if self.built.as_ref().is_some_and(|built| Arc::ptr_eq(&built.policies, &set)) {
            return;
        }
        let facts = &self.facts;
        self.built = Some(Arc::new(Workload {
            uid: Arc::clone(&facts.uid),
            name: Arc::clone(&facts.name),
            namespace: Arc::clone(&facts.namespace),
            identity: facts.identity.clone(),
            addresses: facts.addresses.clone(),
            hbone: facts.hbone,
            native_tunnel: facts.native_tunnel,
            healthy: facts.healthy && self.rejected.is_none(),
            services: facts.services.clone(),
            guard: facts.guard.clone(),
            policies: set,
        }));
    }
}
