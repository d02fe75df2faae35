//! TrafficPolicies and XBackendTrafficPolicies: what they are attached to, and what of them does nothing.

use ambit_api::{Severity, authorization_policy::PolicyTargetReference};
use ambit_xds::workload::AppProtocol;

use super::{Found, at, codes, policies};
use crate::{
    attachment::{self, Target},
    inputs::{Inputs, NamespacedName},
    retry_budgets::{self, RetryPolicy},
};

const KIND: &str = "TrafficPolicy";
const BACKEND_KIND: &str = "XBackendTrafficPolicy";

pub(super) fn check(inputs: &Inputs, found: &mut Found) {
    for (name, rules) in &inputs.traffic_policies {
        let spec = &rules.get().spec;
        for (field, reference) in rules.references() {
            policies::target(inputs, KIND, name, &field, reference, found);
            carries_http(inputs, name, &field, reference, found);
        }
        if spec.target_refs.is_empty() {
            found.add(
                Severity::Error,
                codes::NOT_ENFORCED,
                at(KIND, name, "metadata.name"),
                "it isn't enforced: it has no `targetRefs`".into(),
                "use `targetRefs` with a Service that has a waypoint, or with the waypoint's Gateway",
            );
        } else if spec.rate_limits.is_empty() && spec.faults.is_empty() {
            found.add(
                Severity::Warning,
                codes::TRAFFIC_WITHOUT_EFFECT,
                at(KIND, name, "spec"),
                "without `rateLimits` and `faults` it does nothing".into(),
                "add one of the two",
            );
        }
    }
    for (name, policy) in &inputs.retry_policies {
        for (index, target) in policy.get().spec.target_refs.iter().enumerate().filter(|(_, t)| t.is_service()) {
            let field = format!("spec.targetRefs[{index}]");
            let reference = PolicyTargetReference {
                group: target.group.clone(),
                kind: target.kind.clone(),
                name: target.name.clone(),
                namespace: String::new(),
            };
            policies::target(inputs, BACKEND_KIND, name, &field, &reference, found);
            let service = NamespacedName::new(&name.namespace, &target.name);
            shadowed(inputs, (name, policy), &field, &service, found);
        }
    }
}

/// A Service whose ports never carry HTTP has no requests to count.
fn carries_http(
    inputs: &Inputs,
    name: &NamespacedName,
    field: &str,
    reference: &PolicyTargetReference,
    found: &mut Found,
) {
    let Some(Target::Service(service)) = attachment::target(&name.namespace, reference) else { return };
    let Some(object) = inputs.services.get(&service) else { return };
    let streams = |protocol| matches!(protocol, AppProtocol::Tcp | AppProtocol::Tls);
    if !object.ports.is_empty() && object.ports.iter().all(|port| streams(port.protocol)) {
        found.add(
            Severity::Warning,
            codes::TRAFFIC_WITHOUT_EFFECT,
            at(KIND, name, format!("{field}.name")),
            format!("no port of service `{service}` carries HTTP, so there are no requests to count or to fail"),
            "correct `appProtocol` of the port, or target another Service",
        );
    }
}

/// Only the oldest policy of a Service counts.
fn shadowed(
    inputs: &Inputs,
    (name, policy): (&NamespacedName, &RetryPolicy),
    field: &str,
    service: &NamespacedName,
    found: &mut Found,
) {
    let Some(counts) = retry_budgets::in_force(inputs, service) else { return };
    if !std::ptr::eq(counts, policy) && policy.get().spec.retry_constraint.is_some() {
        found.add(
            Severity::Warning,
            codes::SHADOWED_BACKEND_TRAFFIC_POLICY,
            at(BACKEND_KIND, name, format!("{field}.name")),
            format!("`{}` is older and counts for service `{service}`; this one doesn't", counts.get().name),
            "put everything into one policy",
        );
    }
}
