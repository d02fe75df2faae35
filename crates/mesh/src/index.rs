//! The incremental form of [`derive`](crate::derive::derive): a change recomputes only what it can touch.
//!
//! INVARIANT: after any sequence of changes, the resources are those that a derivation from scratch gives.

use std::{collections::BTreeSet, sync::Arc};

use ambit_xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE, DeltaResponse, MESH_TYPE, Resource, WAYPOINT_TYPE};

use crate::{
    attachment::{self, EnforcementPoint, Target},
    authentication::TokenRules,
    binding,
    derive::{self, Resources},
    destinations,
    inputs::{Change, Inputs, NamespacedName, Policy, Service, Settings},
    retry_budgets::RetryPolicy,
    routes::{Route, RouteKey},
    traffic::TrafficRules,
};

/// Types in the order in which a push carries them: what policies mean, policies, the workloads that name them.
const PUSH_ORDER: [&str; 4] = [MESH_TYPE, AUTHORIZATION_TYPE, WAYPOINT_TYPE, ADDRESS_TYPE];

/// The objects, and the resources derived from them.
#[derive(Clone, Debug, Default)]
pub struct Index {
    inputs: Inputs,
    resources: Resources,
}

/// What changes have touched.
#[derive(Debug, Default)]
struct Dirty {
    /// A Gateway or PeerAuthentication or the settings changed; these are few and reach far.
    everything: bool,
    policies: BTreeSet<NamespacedName>,
    bundles: BTreeSet<NamespacedName>,
    services: BTreeSet<NamespacedName>,
    pods: BTreeSet<NamespacedName>,
    /// Keys on the wire of pods that were there before.
    uids: BTreeSet<String>,
}

// === impl Index ===

impl Index {
    /// Nothing but settings.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { inputs: Inputs::new(settings), resources: Resources::new() }
    }

    /// The objects.
    #[must_use]
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// The resources.
    #[must_use]
    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// Makes changes and returns what to tell the proxies: nothing if nothing that they see has changed.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Vec<DeltaResponse> {
        let mut dirty = Dirty::default();
        for change in changes {
            dirty.mark(&self.inputs, &change);
            let key = Key::of(&change);
            self.inputs.apply(change);
            dirty.mark_present(&self.inputs, &key);
        }
        let fresh = if dirty.everything { self.all() } else { self.touched(&dirty) };
        self.replace(fresh)
    }

    /// Every resource, as the first push to a proxy.
    #[must_use]
    pub fn snapshot(&self) -> Vec<DeltaResponse> {
        let response = |kind: &str| {
            let resources = self.resources.iter().filter(|((of, _), _)| *of == kind).map(|(_, r)| r.clone());
            DeltaResponse { type_url: kind.into(), resources: resources.collect(), removed: Vec::new() }
        };
        PUSH_ORDER.into_iter().map(response).filter(|response| !response.resources.is_empty()).collect()
    }

    /// Every name that there is or should be, with what it should be.
    fn all(&self) -> Vec<(&'static str, String, Option<Resource>)> {
        let mut fresh = derive::derive(&self.inputs);
        let old: Vec<_> = self.resources.keys().filter(|key| !fresh.contains_key(*key)).cloned().collect();
        let gone = old.into_iter().map(|(kind, name)| (kind, name, None));
        let mut all: Vec<_> = gone.collect();
        while let Some(((kind, name), resource)) = fresh.pop_first() {
            all.push((kind, name, Some(resource)));
        }
        all
    }

    fn touched(&self, dirty: &Dirty) -> Vec<(&'static str, String, Option<Resource>)> {
        let inputs = &self.inputs;
        let mut fresh = Vec::new();
        for name in &dirty.policies {
            let policy = inputs.policies.get(name);
            let resource = policy.and_then(|policy| derive::authorization(inputs, policy));
            fresh.push((AUTHORIZATION_TYPE, name.to_string(), resource));
        }
        for gateway in &dirty.bundles {
            fresh.push((WAYPOINT_TYPE, gateway.to_string(), derive::bundle(inputs, gateway)));
        }
        for name in &dirty.services {
            let wire_name = format!("{}/{}", name.namespace, inputs.hostname(name));
            // A waypoint's own service may have the name; a Gateway's change would have made everything dirty.
            let resource = derive::service(inputs, name).or_else(|| derive::waypoint_service(inputs, name));
            fresh.push((ADDRESS_TYPE, wire_name, resource));
        }
        // Old keys first: a pod that took over a key comes after and wins.
        fresh.extend(dirty.uids.iter().map(|uid| (ADDRESS_TYPE, uid.clone(), None)));
        for resource in dirty.pods.iter().filter_map(|name| derive::workload(inputs, name)) {
            fresh.push((ADDRESS_TYPE, resource.name.clone(), Some(resource)));
        }
        fresh
    }

    fn replace(&mut self, fresh: Vec<(&'static str, String, Option<Resource>)>) -> Vec<DeltaResponse> {
        let fresh: std::collections::BTreeMap<_, _> =
            fresh.into_iter().map(|(kind, name, resource)| ((kind, name), resource)).collect();
        let mut responses = PUSH_ORDER.map(|kind| DeltaResponse { type_url: kind.into(), ..DeltaResponse::default() });
        for (key, resource) in fresh {
            let Some(response) = responses.iter_mut().find(|response| response.type_url == key.0) else { continue };
            match resource {
                Some(resource) if self.resources.get(&key) != Some(&resource) => {
                    response.resources.push(resource.clone());
                    self.resources.insert(key, resource);
                }
                Some(_) => {}
                None => response.removed.extend(self.resources.remove(&key).map(|resource| resource.name)),
            }
        }
        responses.into_iter().filter(|r| !r.resources.is_empty() || !r.removed.is_empty()).collect()
    }
}

/// Which object a change is about.
enum Key {
    Elsewhere,
    Namespace(Arc<str>),
    Service(NamespacedName),
    Policy(NamespacedName),
    Route(RouteKey),
    DestinationRule(NamespacedName),
    Pod(NamespacedName),
    RequestAuthentication(NamespacedName),
    TrafficPolicy(NamespacedName),
    RetryPolicy(NamespacedName),
}

// === impl Key ===

impl Key {
    fn of(change: &Change) -> Self {
        match change {
            Change::Namespace(name, _) => Self::Namespace(Arc::clone(name)),
            Change::Service(name, _) => Self::Service(name.clone()),
            Change::Policy(name, _) => Self::Policy(name.clone()),
            Change::Route(name, _) => Self::Route(name.clone()),
            Change::RequestAuthentication(name, _) => Self::RequestAuthentication(name.clone()),
            Change::DestinationRule(name, _) => Self::DestinationRule(name.clone()),
            Change::Pod(name, _) => Self::Pod(name.clone()),
            Change::TrafficPolicy(name, _) => Self::TrafficPolicy(name.clone()),
            Change::RetryPolicy(name, _) => Self::RetryPolicy(name.clone()),
            _ => Self::Elsewhere,
        }
    }
}

// === impl Dirty ===

impl Dirty {
    /// Marks what the object, as it is before the change, has an effect on.
    fn mark(&mut self, inputs: &Inputs, change: &Change) {
        match change {
            Change::Gateway(..) | Change::PeerAuthentication(..) | Change::Settings(_) => self.everything = true,
            Change::Namespace(name, _) => self.mark_present(inputs, &Key::Namespace(Arc::clone(name))),
            Change::ServiceAccount(..) => {}
            Change::Service(name, _) => self.mark_present(inputs, &Key::Service(name.clone())),
            Change::Policy(name, _) => self.mark_present(inputs, &Key::Policy(name.clone())),
            Change::Route(name, _) => self.mark_present(inputs, &Key::Route(name.clone())),
            Change::RequestAuthentication(name, _) => {
                self.mark_present(inputs, &Key::RequestAuthentication(name.clone()));
            }
            Change::TrafficPolicy(name, _) => self.mark_present(inputs, &Key::TrafficPolicy(name.clone())),
            Change::RetryPolicy(name, _) => self.mark_present(inputs, &Key::RetryPolicy(name.clone())),
            Change::DestinationRule(name, _) => self.mark_present(inputs, &Key::DestinationRule(name.clone())),
            Change::KeySet(..) => self.bundles.extend(inputs.gateways.keys().cloned()),
            Change::Pod(name, _) => {
                self.uids.extend(inputs.pods.get(name).map(|pod| pod.uid.to_string()));
                self.pods.insert(name.clone());
                self.mark_present(inputs, &Key::Pod(name.clone()));
            }
        }
    }

    fn mark_present(&mut self, inputs: &Inputs, key: &Key) {
        match key {
            Key::Elsewhere => {}
            Key::Namespace(name) => self.mark_namespace(inputs, name),
            Key::Service(name) => {
                self.services.insert(name.clone());
                if let Some(service) = inputs.services.get(name) {
                    self.mark_service(inputs, name, service);
                }
            }
            Key::Route(name) => {
                if let Some(route) = inputs.routes.get(name) {
                    self.mark_route(inputs, route);
                }
            }
            Key::Policy(name) => {
                self.policies.insert(name.clone());
                if let Some(policy) = inputs.policies.get(name) {
                    self.mark_policy(inputs, policy);
                }
            }
            Key::DestinationRule(name) => {
                if let Some(rule) = inputs.destination_rules.get(name) {
                    self.mark_destination(inputs, rule);
                }
            }
            Key::Pod(name) => self.mark_subsets(inputs, name),
            Key::RequestAuthentication(name) => {
                let targets = inputs.request_authentications.get(name).map(TokenRules::targets);
                targets.into_iter().flatten().for_each(|target| self.mark_target(inputs, target));
            }
            Key::TrafficPolicy(name) => {
                let targets = inputs.traffic_policies.get(name).map(TrafficRules::targets);
                targets.into_iter().flatten().for_each(|target| self.mark_target(inputs, target));
            }
            Key::RetryPolicy(name) => {
                let services = inputs.retry_policies.get(name).into_iter().flat_map(RetryPolicy::services);
                services.for_each(|service| self.mark_target(inputs, Target::Service(service)));
            }
        }
    }

    /// All that is in a namespace: its labels speak for what is in it, and for nothing else.
    fn mark_namespace(&mut self, inputs: &Inputs, namespace: &str) {
        for (name, service) in Inputs::in_namespace(&inputs.services, namespace) {
            self.services.insert(name.clone());
            self.mark_service(inputs, name, service);
        }
        self.pods.extend(Inputs::in_namespace(&inputs.pods, namespace).map(|(name, _)| name.clone()));
    }

    fn mark_route(&mut self, inputs: &Inputs, route: &Route) {
        for name in route.services() {
            let service = inputs.services.get(&name);
            let request = service.and_then(|s| binding::request(inputs, &name.namespace, &s.labels));
            self.bundles.extend(request.map(|request| request.gateway));
        }
    }

    /// The waypoints of the services that a rule may be about.
    fn mark_destination(&mut self, inputs: &Inputs, rule: &destinations::Rule) {
        let about = |name: &NamespacedName| rule.is_about(&inputs.hostname(name), &inputs.settings.cluster_domain);
        for (name, service) in inputs.services.iter().filter(|(name, _)| about(name)) {
            let request = binding::request(inputs, &name.namespace, &service.labels);
            self.bundles.extend(request.map(|request| request.gateway));
        }
    }

    /// The waypoints of a pod's services that have subsets: who belongs to them is part of the bundle.
    fn mark_subsets(&mut self, inputs: &Inputs, name: &NamespacedName) {
        let divided: Vec<_> =
            inputs.destination_rules.values().filter(|rule| !rule.get().spec.subsets.is_empty()).collect();
        let Some(pod) = inputs.pods.get(name).filter(|_| !divided.is_empty()) else { return };
        let domain = &inputs.settings.cluster_domain;
        for (name, service) in Inputs::in_namespace(&inputs.services, &name.namespace) {
            if !service.selects(&pod.labels) {
                continue;
            }
            let hostname = inputs.hostname(name);
            if divided.iter().any(|rule| rule.is_about(&hostname, domain)) {
                let request = binding::request(inputs, &name.namespace, &service.labels);
                self.bundles.extend(request.map(|request| request.gateway));
            }
        }
    }

    fn mark_service(&mut self, inputs: &Inputs, name: &NamespacedName, service: &Service) {
        self.bundles.extend(binding::request(inputs, &name.namespace, &service.labels).map(|request| request.gateway));
        let pods = Inputs::in_namespace(&inputs.pods, &name.namespace);
        self.pods.extend(pods.filter(|(_, pod)| service.selects(&pod.labels)).map(|(pod, _)| pod.clone()));
    }

    /// The waypoints of what a policy is attached to.
    fn mark_target(&mut self, inputs: &Inputs, target: Target) {
        match target {
            Target::Service(name) => {
                let service = inputs.services.get(&name);
                let request = service.and_then(|s| binding::request(inputs, &name.namespace, &s.labels));
                self.bundles.extend(request.map(|request| request.gateway));
            }
            Target::Gateway(name) => drop(self.bundles.insert(name)),
            // Nothing serves these yet.
            Target::ServiceEntry(_) => {}
            Target::WaypointClass { .. } => self.bundles.extend(inputs.gateways.keys().cloned()),
        }
    }

    fn mark_policy(&mut self, inputs: &Inputs, policy: &Policy) {
        for target in attachment::targets(policy) {
            self.mark_target(inputs, target);
        }
        let policy = policy.get();
        if policy.spec.selector.is_some() {
            let selected = |(name, pod): &(&NamespacedName, &crate::inputs::Pod)| {
                let point = EnforcementPoint::NodeProxy { namespace: &name.namespace, labels: &pod.labels };
                point.enforces(policy, &inputs.settings.root_namespace).is_some()
            };
            if policy.namespace == inputs.settings.root_namespace {
                self.pods.extend(inputs.pods.iter().filter(selected).map(|(name, _)| name.clone()));
            } else {
                let pods = Inputs::in_namespace(&inputs.pods, &policy.namespace);
                self.pods.extend(pods.filter(selected).map(|(name, _)| name.clone()));
            }
        }
    }
}
