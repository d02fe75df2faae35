//! Namespaces and service accounts that objects need.

use ambit_api::Severity;

use super::{Found, at, at_pod, codes};
use crate::inputs::{DEFAULT_NAMESPACE, DEFAULT_SERVICE_ACCOUNT, Inputs, NamespacedName};

pub(super) fn check(inputs: &Inputs, found: &mut Found) {
    namespaces(inputs, found);
    service_accounts(inputs, found);
}

/// True if the namespace is declared, or needn't be.
pub(super) fn namespace_exists(inputs: &Inputs, namespace: &str) -> bool {
    namespace == DEFAULT_NAMESPACE || inputs.namespaces.contains_key(namespace)
}

/// True if the service account is declared or needn't be: `default`, and that of a waypoint.
pub(super) fn service_account_exists(inputs: &Inputs, account: &NamespacedName) -> bool {
    &*account.name == DEFAULT_SERVICE_ACCOUNT
        || inputs.service_accounts.contains(account)
        || inputs.gateways.get(account).is_some_and(crate::inputs::Gateway::is_waypoint)
}

fn namespaces(inputs: &Inputs, found: &mut Found) {
    let root = inputs.settings.root_namespace.as_str();
    let mut check = |namespace: &str, place: &dyn Fn() -> _| {
        if !namespace_exists(inputs, namespace) && namespace != root {
            found.add(
                Severity::Error,
                codes::UNKNOWN_NAMESPACE,
                place(),
                format!("namespace `{namespace}` isn't declared"),
                format!("add a Namespace `{namespace}`, labelled `istio.io/dataplane-mode: ambient` if it is to be in the mesh"),
            );
        }
    };
    let field = "metadata.namespace";
    inputs.service_accounts.iter().for_each(|name| check(&name.namespace, &|| at("ServiceAccount", name, field)));
    inputs.services.keys().for_each(|name| check(&name.namespace, &|| at("Service", name, field)));
    inputs.gateways.keys().for_each(|name| check(&name.namespace, &|| at("Gateway", name, field)));
    inputs.policies().for_each(|(name, _)| check(&name.namespace, &|| at("AuthorizationPolicy", name, field)));
    let tokens = inputs.request_authentications.keys();
    tokens.for_each(|name| check(&name.namespace, &|| at("RequestAuthentication", name, field)));
    let rules = inputs.destination_rules.keys();
    rules.for_each(|name| check(&name.namespace, &|| at("DestinationRule", name, field)));
    let traffic = inputs.traffic_policies.keys();
    traffic.for_each(|name| check(&name.namespace, &|| at("TrafficPolicy", name, field)));
    let retries = inputs.retry_policies.keys();
    retries.for_each(|name| check(&name.namespace, &|| at("XBackendTrafficPolicy", name, field)));
    for (name, pod) in inputs.pods.iter().filter(|(_, pod)| pod.waypoint.is_none()) {
        check(&name.namespace, &|| {
            let (object, _) = at_pod(name, pod, field);
            (object, field.to_owned())
        });
    }
}

fn service_accounts(inputs: &Inputs, found: &mut Found) {
    for (name, pod) in inputs.pods.iter().filter(|(_, pod)| pod.waypoint.is_none()) {
        let account = NamespacedName::new(&name.namespace, &pod.service_account);
        let place = || at_pod(name, pod, "spec.serviceAccountName");
        if inputs.gateways.get(&account).is_some_and(crate::inputs::Gateway::is_waypoint) {
            found.add(
                Severity::Error,
                codes::WAYPOINT_IDENTITY,
                place(),
                format!("service account `{account}` is the identity of waypoint `{account}`"),
                "give the pod a service account of its own; under this one it could pass for the waypoint",
            );
        } else if !service_account_exists(inputs, &account) {
            found.add(
                Severity::Error,
                codes::UNKNOWN_SERVICE_ACCOUNT,
                place(),
                format!("service account `{account}` doesn't exist"),
                format!(
                    "add a ServiceAccount `{}` to namespace `{}`, or correct the name",
                    account.name, account.namespace
                ),
            );
        }
    }
}
