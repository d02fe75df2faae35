//! What is wrong between objects, each of which may be right by itself.
//!
//! An error means that something would be refused, or not be enforced, that its author expects to work.

mod destinations;
mod identities;
mod peer_authentications;
mod policies;
mod request_authentications;
mod routes;
mod services;
mod traffic_policies;

use std::collections::BTreeSet;

use ambit_api::{ObjectRef, Severity, codes::Code};

use crate::inputs::{Inputs, NamespacedName, Pod};

/// The diagnostic codes of this crate (AMB1xxx).
pub mod codes {
    use ambit_api::codes::Code;

    /// An object in a Namespace that isn't declared.
    pub const UNKNOWN_NAMESPACE: Code = "AMB1001";
    /// A pod whose service account isn't declared.
    pub const UNKNOWN_SERVICE_ACCOUNT: Code = "AMB1002";
    /// A pod that runs under a waypoint's identity.
    pub const WAYPOINT_IDENTITY: Code = "AMB1003";
    /// A target reference to an object that doesn't exist.
    pub const TARGET_NOT_FOUND: Code = "AMB1101";
    /// A policy that no waypoint enforces.
    pub const NOT_ENFORCED: Code = "AMB1102";
    /// A policy of a kind that isn't enforced yet.
    pub const UNSUPPORTED_POLICY: Code = "AMB1103";
    /// HTTP fields in a policy that node proxies enforce.
    pub const HTTP_AT_L4: Code = "AMB1104";
    /// A selector that matches no pod.
    pub const POLICY_SELECTS_NOTHING: Code = "AMB1105";
    /// A principal or service account in a policy that nobody has.
    pub const UNKNOWN_PRINCIPAL: Code = "AMB1106";
    /// A CUSTOM policy whose provider isn't configured.
    pub const UNKNOWN_PROVIDER: Code = "AMB1107";
    /// A PeerAuthentication that doesn't count, since an older one speaks for the same pods.
    pub const SHADOWED_PEER_AUTHENTICATION: Code = "AMB1108";
    /// A PeerAuthentication that applies to nothing.
    pub const PEER_AUTHENTICATION_UNUSED: Code = "AMB1109";
    /// A RequestAuthentication that nobody enforces, or that does nothing.
    pub const TOKENS_UNUSED: Code = "AMB1120";
    /// A route that no waypoint follows.
    pub const ROUTE_NOT_APPLIED: Code = "AMB1110";
    /// A TrafficPolicy that does nothing.
    pub const TRAFFIC_WITHOUT_EFFECT: Code = "AMB1130";
    /// An XBackendTrafficPolicy that doesn't count, since an older one is for the same Service.
    pub const SHADOWED_BACKEND_TRAFFIC_POLICY: Code = "AMB1131";
    /// A DestinationRule, or a part of it, that no waypoint follows.
    pub const DESTINATION_NOT_TREATED: Code = "AMB1140";
    /// A subset that nobody belongs to, or that no route leads to.
    pub const SUBSET_UNUSED: Code = "AMB1141";
    /// An outlier detection that leaves nobody out.
    pub const NOBODY_IS_LEFT_OUT: Code = "AMB1142";
    /// A waypoint that doesn't exist.
    pub const WAYPOINT_MISSING: Code = "AMB1201";
    /// A Gateway of another class used as a waypoint.
    pub const NOT_A_WAYPOINT: Code = "AMB1202";
    /// A waypoint that doesn't admit the namespace.
    pub const WAYPOINT_NOT_PERMITTED: Code = "AMB1203";
    /// A waypoint for other traffic.
    pub const WAYPOINT_TRAFFIC: Code = "AMB1204";
    /// A Service whose waypoint can be walked around.
    pub const GUARD_OFF: Code = "AMB1205";
    /// A port that one Service guards and another offers openly.
    pub const GUARD_CONFLICT: Code = "AMB1206";
    /// A Service that selects no pod.
    pub const SERVICE_SELECTS_NOTHING: Code = "AMB1207";
    /// A Service with the name of a waypoint.
    pub const SERVICE_SHADOWED: Code = "AMB1208";
}

/// Something to tell the user about one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// Stable code.
    pub code: Code,
    /// The object, as the user wrote it (a Deployment, not its pods).
    pub object: ObjectRef,
    /// The field, as `ambit_api::Origin::place` understands it; empty for the whole object.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
}

/// Everything to say about the objects, errors first, without repetition.
#[must_use]
pub fn findings(inputs: &Inputs) -> Vec<Finding> {
    let mut found = Found(BTreeSet::new());
    identities::check(inputs, &mut found);
    services::check(inputs, &mut found);
    routes::check(inputs, &mut found);
    destinations::check(inputs, &mut found);
    policies::check(inputs, &mut found);
    peer_authentications::check(inputs, &mut found);
    request_authentications::check(inputs, &mut found);
    traffic_policies::check(inputs, &mut found);
    let mut findings: Vec<_> = found.0.into_iter().collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

struct Found(BTreeSet<Finding>);

// === impl Found ===

impl Found {
    fn add(
        &mut self,
        severity: Severity,
        code: Code,
        (object, field): (ObjectRef, String),
        message: String,
        help: impl Into<String>,
    ) {
        self.0.insert(Finding { severity, code, object, field, message, help: help.into() });
    }
}

/// An object and one of its fields.
fn at(kind: &str, name: &NamespacedName, field: impl Into<String>) -> (ObjectRef, String) {
    let object =
        ObjectRef { kind: kind.into(), namespace: Some(name.namespace.to_string()), name: name.name.to_string() };
    (object, field.into())
}

fn at_namespace(name: &str, field: impl Into<String>) -> (ObjectRef, String) {
    (ObjectRef { kind: "Namespace".into(), namespace: None, name: name.into() }, field.into())
}

/// A pod and one of its fields, where the user wrote it.
fn at_pod(name: &NamespacedName, pod: &Pod, field: &str) -> (ObjectRef, String) {
    match &pod.owner {
        Some(owner) => {
            let owner = NamespacedName::new(&name.namespace, owner);
            at("Deployment", &owner, format!("spec.template.{field}"))
        }
        None => at("Pod", name, field),
    }
}
