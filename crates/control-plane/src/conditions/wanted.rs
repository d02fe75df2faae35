//! What each object should be told.

use std::collections::BTreeMap;

use ambit_api::{AuthorizationPolicy, authorization_policy::PolicyTargetReference};
use ambit_mesh::{
    attachment::{self, Target},
    binding::{self, Binding, Problem},
    findings::{self, codes},
    inputs::{Inputs, NamespacedName, Policy, Service},
};

use super::{Condition, Subject, Told, WAYPOINT_ACCEPTED, WAYPOINT_BOUND, ZTUNNEL_ACCEPTED};

/// The condition of each object that is told something.
pub(crate) fn wanted(inputs: &Inputs) -> BTreeMap<Subject, Condition> {
    let mut all = BTreeMap::new();
    for (name, service) in &inputs.services {
        if let Some(condition) = bound(inputs, name, service) {
            all.insert((Told::Service, name.clone()), condition);
        }
    }
    let found = notes(inputs);
    for (name, policy) in inputs.policies() {
        all.insert((Told::AuthorizationPolicy, name.clone()), authorization(inputs, name, policy, &found));
    }
    for (name, rules) in &inputs.request_authentications {
        let references: Vec<_> = rules.references().collect();
        let condition = match rules.rejection() {
            Some(reason) => rejected(WAYPOINT_ACCEPTED, reason),
            None if references.is_empty() => condition(
                WAYPOINT_ACCEPTED,
                false,
                "UnsupportedValue",
                "only waypoints verify tokens; name a Service or Gateway in targetRefs",
            ),
            None => targets(inputs, &name.namespace, references.iter().map(|(_, reference)| *reference)),
        };
        all.insert((Told::RequestAuthentication, name.clone()), condition);
    }
    for name in inputs.peer_authentications.keys() {
        let note = found.get(&("PeerAuthentication", codes::SHADOWED_PEER_AUTHENTICATION, name.clone()));
        let condition = match note {
            Some(message) => condition(ZTUNNEL_ACCEPTED, false, "Invalid", message),
            None => condition(ZTUNNEL_ACCEPTED, true, "Accepted", "attached to ztunnel"),
        };
        all.insert((Told::PeerAuthentication, name.clone()), condition);
    }
    all
}

/// What else there is to say, by kind, code and object.
type Notes = BTreeMap<(&'static str, &'static str, NamespacedName), String>;

fn notes(inputs: &Inputs) -> Notes {
    let wanted =
        [("AuthorizationPolicy", codes::HTTP_AT_L4), ("PeerAuthentication", codes::SHADOWED_PEER_AUTHENTICATION)];
    let mut notes = Notes::new();
    for finding in findings::findings(inputs) {
        let known = wanted.iter().find(|(kind, code)| *kind == finding.object.kind && *code == finding.code);
        if let Some((kind, code)) = known {
            let namespace = finding.object.namespace.as_deref().unwrap_or_default();
            let name = NamespacedName::new(namespace, &finding.object.name);
            notes.entry((*kind, *code, name)).or_insert(finding.message);
        }
    }
    notes
}

fn condition(kind: &'static str, status: bool, reason: &str, message: impl Into<String>) -> Condition {
    Condition { kind, status, reason: reason.to_owned(), message: message.into() }
}

fn rejected(kind: &'static str, reason: &str) -> Condition {
    condition(kind, false, "Invalid", format!("{reason}; what it is attached to is denied"))
}

/// Whether a Service has the waypoint that it asks for.
fn bound(inputs: &Inputs, name: &NamespacedName, service: &Service) -> Option<Condition> {
    let binding = binding::asked_by_service(inputs, name, service)?;
    let gateway = &binding.request.gateway;
    let Some((reason, message)) = problem(&binding) else {
        let message = format!("Successfully attached to waypoint {gateway}");
        return Some(condition(WAYPOINT_BOUND, true, "WaypointAccepted", message));
    };
    let fate = if binding::bypasses(inputs, &name.namespace) {
        "its traffic goes direct, past every policy at the waypoint"
    } else {
        "its traffic is refused"
    };
    Some(condition(WAYPOINT_BOUND, false, reason, format!("{message}; {fate}")))
}

fn problem(binding: &Binding) -> Option<(&'static str, String)> {
    let gateway = &binding.request.gateway;
    Some(match binding.problem? {
        Problem::Missing => ("WaypointIsNotReady", format!("waypoint \"{gateway}\" doesn't exist")),
        Problem::NotAWaypoint => ("WaypointIsNotReady", format!("gateway \"{gateway}\" isn't of the waypoint class")),
        Problem::NotPermitted => {
            let message = format!("we are not permitted to attach to waypoint \"{gateway}\" (missing allowedRoutes?)");
            ("AttachmentDenied", message)
        }
        Problem::TrafficType => {
            ("UnsupportedTrafficType", format!("waypoint \"{gateway}\" doesn't take traffic of type \"service\""))
        }
    })
}

fn authorization(inputs: &Inputs, name: &NamespacedName, policy: &Policy, found: &Notes) -> Condition {
    let object: &AuthorizationPolicy = policy.get();
    let references: Vec<_> = attachment::references(object).map(|(_, reference)| reference).collect();
    let kind = if references.is_empty() { ZTUNNEL_ACCEPTED } else { WAYPOINT_ACCEPTED };
    if let Some(reason) = policy.rejection() {
        return rejected(kind, reason);
    }
    if !references.is_empty() {
        return targets(inputs, &name.namespace, references.into_iter());
    }
    if let Some(reason) = attachment::left_out_by_node_proxies(object) {
        return condition(kind, false, "UnsupportedValue", format!("not enforced by ztunnel: {reason}"));
    }
    match found.get(&("AuthorizationPolicy", codes::HTTP_AT_L4, name.clone())) {
        Some(message) => condition(kind, true, "UnsupportedValue", message),
        None => condition(kind, true, "Accepted", "attached to ztunnel"),
    }
}

/// What becomes of target references: of one its own word, of several what they come to together.
fn targets<'a>(
    inputs: &Inputs,
    namespace: &str,
    references: impl Iterator<Item = &'a PolicyTargetReference>,
) -> Condition {
    let all: Vec<_> = references.map(|reference| (reference, target(inputs, namespace, reference))).collect();
    if let [(_, only)] = all.as_slice() {
        return match only {
            Ok(to) => condition(WAYPOINT_ACCEPTED, true, "Accepted", format!("bound to {to}")),
            Err((reason, message)) => condition(WAYPOINT_ACCEPTED, false, reason, message),
        };
    }
    let unbound: Vec<_> = all.iter().filter(|(_, outcome)| outcome.is_err()).map(|(reference, _)| reference).collect();
    let written = |reference: &&&PolicyTargetReference| {
        let group = if reference.group.is_empty() { "core" } else { &reference.group };
        format!("{}.{group}:{namespace}/{}", reference.kind, reference.name)
    };
    let list = || unbound.iter().map(written).collect::<Vec<_>>().join(", ");
    match unbound.len() {
        0 => condition(WAYPOINT_ACCEPTED, true, "Accepted", ""),
        some if some < all.len() => {
            condition(WAYPOINT_ACCEPTED, true, "PartiallyInvalid", format!("Invalid targetRefs: {}", list()))
        }
        _ => condition(WAYPOINT_ACCEPTED, false, "Invalid", format!("Invalid targetRefs: {}", list())),
    }
}

/// The waypoint that enforces for a reference, or why none does.
fn target(
    inputs: &Inputs,
    namespace: &str,
    reference: &PolicyTargetReference,
) -> Result<String, (&'static str, String)> {
    match attachment::target(namespace, reference) {
        None => Err(("Invalid", "this reference names nothing that a waypoint enforces policies for".to_owned())),
        Some(Target::ServiceEntry(name)) => {
            Err(("Invalid", format!("ServiceEntry {name}: ServiceEntries have no waypoints here yet")))
        }
        Some(Target::Service(name)) => {
            let Some(service) = inputs.services.get(&name) else {
                return Err(("TargetNotFound", format!("Service {name} was not found")));
            };
            match binding::of_service(inputs, &name, service) {
                None => Err(("AncestorNotBound", format!("Service {name} is not bound to a waypoint"))),
                Some(binding) => match problem(&binding) {
                    None => Ok(binding.request.gateway.to_string()),
                    Some((_, why)) => {
                        Err(("AncestorNotBound", format!("Service {name} is not bound: {why}; its traffic is refused")))
                    }
                },
            }
        }
        Some(Target::Gateway(name)) => match inputs.gateways.get(&name) {
            None => Err(("TargetNotFound", format!("Gateway {name} was not found"))),
            Some(gateway) if !gateway.is_waypoint() => {
                Err(("Invalid", format!("Gateway {name} is of class {}, not a waypoint", gateway.class)))
            }
            Some(_) => Ok(name.to_string()),
        },
        Some(Target::WaypointClass { namespace }) if *namespace != *inputs.settings.root_namespace => {
            let root = &inputs.settings.root_namespace;
            Err(("Invalid", format!("only policies of the root namespace {root} may target a GatewayClass")))
        }
        Some(Target::WaypointClass { .. }) => Ok(reference.name.clone()),
    }
}
