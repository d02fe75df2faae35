//! The way of a request through the mesh, worked out from the objects alone: who captures it, which waypoint it must
//! pass, what guards the pod, and which policies each point enforces.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ambit_api::AuthorizationPolicy;

use crate::{
    attachment::{EnforcementPoint, ServedKind, Via, left_out_by_node_proxies},
    binding::{self, Problem},
    derive,
    enforcement::Refusal,
    inputs::{Inputs, Labels, NamespacedName, Pod, Policy},
    peer_authentication,
};

/// A request, as far as its way depends on it.
#[derive(Clone, Debug)]
pub struct Journey<'a> {
    /// Namespace and service account of the client.
    pub from: &'a NamespacedName,
    /// The service that it calls.
    pub to: &'a NamespacedName,
    /// The service's port; nothing for its first one.
    pub port: Option<u16>,
}

/// The way.
#[derive(Clone, Debug)]
pub struct Way {
    /// The client's side.
    pub client: Client,
    /// The service's port that is called.
    pub port: u16,
    /// The service is known and has that port. Otherwise the client's node proxy refuses, if the service is known.
    pub has_port: bool,
    /// The service's address, if it has one.
    pub address: Option<IpAddr>,
    /// The waypoint that the request must pass.
    pub waypoint: Option<Waypoint>,
    /// The kinds of pods that it may end at: those on which the same is enforced are one.
    pub destinations: Vec<Destination>,
    /// What isn't in the files and had to be assumed.
    pub assumptions: Vec<String>,
}

/// The client's side.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its node proxy carries what it sends, with its identity. Otherwise it sends plaintext, and passes no waypoint.
    pub captured: bool,
    /// A pod of it.
    pub pod: Option<NamespacedName>,
    /// Address of that pod, if it has one.
    pub address: Option<IpAddr>,
}

/// The waypoint on the way.
#[derive(Clone, Debug)]
pub struct Waypoint {
    /// Its Gateway; nothing if it had to be assumed.
    pub gateway: Option<NamespacedName>,
    /// Why it can't be had; the request then ends here.
    pub problem: Option<Problem>,
    /// What it enforces for the service.
    pub policies: Vec<Considered>,
}

/// Pods that the same is enforced on.
#[derive(Clone, Debug)]
pub struct Destination {
    /// One of them; nothing if the service has none.
    pub pod: Option<NamespacedName>,
    /// How many more there are.
    pub others: usize,
    /// Address of that pod, if it has one.
    pub address: Option<IpAddr>,
    /// The pod's port; nothing if the pod has no port of that name.
    pub port: Option<u16>,
    /// A node proxy enforces on it. Otherwise nothing is enforced.
    pub captured: bool,
    /// The Gateways whose waypoints alone may reach the port; nobody guards it if there are none.
    pub guards: Vec<NamespacedName>,
    /// What its node proxy enforces.
    pub policies: Vec<Considered>,
}

/// A policy at a point.
#[derive(Clone, Debug)]
pub struct Considered {
    /// The policy, or why it can't be enforced.
    pub policy: Result<Arc<AuthorizationPolicy>, Refusal>,
    /// Its object, as far as it was read.
    pub object: Arc<AuthorizationPolicy>,
    /// How it comes to be enforced here, in words: `targets Service a/b`.
    pub via: String,
    /// Why it takes no part in the verdict; nothing if it does.
    pub left_out: Option<&'static str>,
}

/// The way of a request.
#[must_use]
pub fn way(inputs: &Inputs, journey: &Journey<'_>) -> Way {
    let mut assumptions = Vec::new();
    let client = client(inputs, journey.from, &mut assumptions);
    let service = inputs.services.get(journey.to);
    let first_port = service.and_then(|service| service.ports.first()).map(|port| port.port);
    let port = journey.port.or(first_port).unwrap_or_else(|| {
        assumptions.push(format!("no port is given or known; assumed {DEFAULT_PORT}"));
        DEFAULT_PORT
    });
    let has_port = service.is_some_and(|service| service.ports.iter().any(|known| known.port == port));
    let waypoint = waypoint(inputs, journey.to, &mut assumptions);
    let destinations = destinations(inputs, journey.to, port, &mut assumptions);
    let address = service.and_then(|service| service.vips.first().copied());
    Way { client, port, has_port, address, waypoint, destinations, assumptions }
}

/// How the policy that PeerAuthentications amount to comes to be enforced: its [`Considered::via`].
pub const PEER_AUTHENTICATION: &str = "PeerAuthentication demands mutual TLS";

/// Port of a service of which nothing is known.
const DEFAULT_PORT: u16 = 80;

fn client(inputs: &Inputs, from: &NamespacedName, assumptions: &mut Vec<String>) -> Client {
    let mut pods = Inputs::in_namespace(&inputs.pods, &from.namespace)
        .filter(|(_, pod)| pod.waypoint.is_none() && *pod.service_account == *from.name);
    if let Some((name, pod)) = pods.next() {
        return Client { captured: derive::in_mesh(inputs, name, pod), pod: Some(name.clone()), address: pod.ip };
    }
    let captured = match inputs.namespace_labels(&from.namespace) {
        None => {
            // Files with policies alone have no namespaces at all.
            let why = if inputs.namespaces.is_empty() {
                format!("no pod runs as `{from}`")
            } else {
                format!("namespace `{}` isn't in the files, so no pod runs as `{from}`", from.namespace)
            };
            assumptions.push(format!("{why}; assumed one in the mesh"));
            true
        }
        Some(labels) => {
            let captured = derive::captures(Some(labels), &Labels::new());
            let what = if captured { "in" } else { "outside" };
            assumptions.push(format!("no pod runs as `{from}`; its namespace's pods are {what} the mesh"));
            captured
        }
    };
    Client { captured, pod: None, address: None }
}

fn waypoint(inputs: &Inputs, to: &NamespacedName, assumptions: &mut Vec<String>) -> Option<Waypoint> {
    let Some(service) = inputs.services.get(to) else {
        assumptions.push(format!("service `{to}` isn't in the files; assumed behind a waypoint of its own"));
        let nobody = NamespacedName::new(&to.namespace, "");
        return Some(Waypoint { gateway: None, problem: None, policies: at_waypoint(inputs, &nobody, to) });
    };
    let Some(binding) = binding::of_service(inputs, to, service) else {
        let nobody = NamespacedName::new(&to.namespace, "");
        for Considered { object, .. } in at_waypoint(inputs, &nobody, to) {
            let policy = NamespacedName::new(&object.namespace, &object.name);
            assumptions.push(format!("policy `{policy}` isn't enforced: service `{to}`, its target, has no waypoint"));
        }
        return None;
    };
    let gateway = binding.request.gateway;
    let policies = at_waypoint(inputs, &gateway, to);
    Some(Waypoint { gateway: Some(gateway), problem: binding.problem, policies })
}

fn at_waypoint(inputs: &Inputs, gateway: &NamespacedName, service: &NamespacedName) -> Vec<Considered> {
    let point = EnforcementPoint::Waypoint { gateway, service, kind: ServedKind::Service };
    inputs.enforced_at(&point).into_iter().map(|(policy, via)| considered(policy, &via, None)).collect()
}

fn destinations(inputs: &Inputs, to: &NamespacedName, port: u16, assumptions: &mut Vec<String>) -> Vec<Destination> {
    let service = inputs.services.get(to);
    let pods: Vec<_> = Inputs::in_namespace(&inputs.pods, &to.namespace)
        .filter(|(_, pod)| pod.waypoint.is_none() && service.is_some_and(|service| service.selects(&pod.labels)))
        .collect();
    if pods.is_empty() {
        let what = if service.is_some() { "has no pods" } else { "isn't known, and so its pods aren't" };
        assumptions.push(format!("service `{to}` {what}; what selects pods by labels is left out"));
        let policies = at_pod(inputs, &to.namespace, &Labels::new());
        let captured = derive::captures(inputs.namespace_labels(&to.namespace), &Labels::new());
        let captured = captured || inputs.namespace_labels(&to.namespace).is_none();
        let nobody = Destination {
            pod: None,
            others: 0,
            address: None,
            port: Some(port),
            captured,
            guards: Vec::new(),
            policies,
        };
        return vec![nobody];
    }
    // Replicas have the same labels and ports.
    let mut kinds: BTreeMap<(&Labels, Option<u16>), Destination> = BTreeMap::new();
    for (name, pod) in pods {
        let target = service
            .and_then(|service| service.ports.iter().find(|known| known.port == port))
            .map_or(Some(port), |known| derive::resolve(pod, &known.target));
        kinds
            .entry((&pod.labels, target))
            .and_modify(|kind| kind.others += 1)
            .or_insert_with(|| destination(inputs, name, pod, target));
    }
    kinds.into_values().collect()
}

fn destination(inputs: &Inputs, name: &NamespacedName, pod: &Pod, port: Option<u16>) -> Destination {
    let guards = derive::guard(inputs, name, pod).into_iter();
    let guards = guards.filter(|guard| guard.target_port == 0 || Some(guard.target_port) == port.map(u32::from));
    Destination {
        pod: Some(name.clone()),
        others: 0,
        address: pod.ip,
        port,
        captured: derive::in_mesh(inputs, name, pod),
        guards: guards.map(|guard| NamespacedName::new(&guard.waypoint_namespace, &guard.waypoint_name)).collect(),
        policies: at_pod(inputs, &name.namespace, &pod.labels),
    }
}

fn at_pod(inputs: &Inputs, namespace: &str, labels: &Labels) -> Vec<Considered> {
    let point = EnforcementPoint::NodeProxy { namespace, labels };
    let enforced = inputs.enforced_at(&point).into_iter();
    let mut policies: Vec<_> = enforced
        .map(|(policy, via)| {
            let left_out = left_out_by_node_proxies(policy.get()).filter(|_| policy.rejection().is_none());
            considered(policy, &via, left_out)
        })
        .collect();
    policies.extend(peer_authentication::policy_of(inputs, namespace, labels).map(Arc::new).map(|policy| Considered {
        object: Arc::clone(&policy),
        policy: Ok(policy),
        via: PEER_AUTHENTICATION.to_owned(),
        left_out: None,
    }));
    policies
}

fn considered(policy: &Policy, via: &Via, left_out: Option<&'static str>) -> Considered {
    let object = Arc::clone(&policy.policy);
    Considered { policy: policy.enforceable().map(|_| Arc::clone(&object)), object, via: via.to_string(), left_out }
}
