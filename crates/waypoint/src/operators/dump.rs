//! What is in force at a waypoint, as JSON. Keys, header values that routes set and what providers are sent besides the
//! request aren't shown: they may be secrets.

use ambit_mesh::view::BundleRecord;
use ambit_xds::{
    security::Policy,
    waypoint::{
        AttachedDestinationRule, AttachedRoute, BoundService, DestinationSettings, Protocol, Provider,
        RequestAuthentication, RetryBudget, SubsetMembers, TrafficPolicy,
    },
};
use serde_json::{Value, json};

use crate::shared::Shared;

/// The configuration of this waypoint.
pub(super) fn config(shared: &Shared) -> Result<Vec<u8>, String> {
    let config = &shared.config;
    let bundle = shared.store.bundle(&config.namespace, &config.name);
    let view = shared.store.load();
    let built = view.waypoint(&config.namespace, &config.name);
    let value = json!({
        "waypoint": {
            "name": &*shared.name,
            "identity": config.identity.to_string(),
            "address": config.address.to_string(),
            "draining": shared.drain.is_cancelled(),
        },
        "configured": bundle.is_some(),
        "servesWorkloads": built.is_some_and(|built| built.own.is_some()),
        "bundle": bundle.as_ref().map(self::bundle),
    });
    serde_json::to_vec_pretty(&value).map_err(|error| error.to_string())
}

fn bundle(bundle: &BundleRecord) -> Value {
    let BundleRecord {
        services,
        workload_policies,
        workload_authentications,
        workload_traffic_policies,
        providers,
        settings,
        closed,
    } = bundle;
    let denial = settings.denial.as_ref().map(|denial| {
        json!({
            "status": denial.status.as_u16(),
            "contentType": denial.content_type.to_str().unwrap_or_default(),
            "message": &*denial.message,
        })
    });
    // Its headers may hold secrets.
    let tracing = settings.tracing.as_ref().map(|tracing| {
        json!({
            "provider": tracing.collector.name,
            "host": tracing.collector.host,
            "port": tracing.collector.port,
            "path": tracing.path.path(),
            "samplingPercent": f64::from(tracing.sampled) / 1000.0,
        })
    });
    json!({
        "closed": closed,
        "services": services.iter().map(service).collect::<Vec<_>>(),
        "workloadPolicies": workload_policies.iter().map(policy).collect::<Vec<_>>(),
        "workloadRequestAuthentications": workload_authentications.iter().map(authentication).collect::<Vec<_>>(),
        "workloadTrafficPolicies": workload_traffic_policies.iter().map(traffic_policy).collect::<Vec<_>>(),
        "providers": providers.iter().map(provider).collect::<Vec<_>>(),
        "denial": denial,
        "clientIdentity": settings.client_identity,
        "tracing": tracing,
    })
}

fn service(service: &BoundService) -> Value {
    json!({
        "namespace": service.namespace,
        "hostname": service.hostname,
        "policies": service.policies.iter().map(policy).collect::<Vec<_>>(),
        "requestAuthentications": service.authentications.iter().map(authentication).collect::<Vec<_>>(),
        "routes": service.routes.iter().map(route).collect::<Vec<_>>(),
        "destination": service.destination.as_ref().map(destination),
        "trafficPolicies": service.traffic_policies.iter().map(traffic_policy).collect::<Vec<_>>(),
        "retryBudget": service.retry_budget.as_ref().map(retry_budget),
    })
}

fn destination(settings: &DestinationSettings) -> Value {
    let rule = |rule: &AttachedDestinationRule| {
        json!({
            "namespace": rule.namespace,
            "name": rule.name,
            "spec": parsed(&rule.json).get("spec"),
            "rejected": rejected(&rule.rejection),
        })
    };
    let subset = |subset: &SubsetMembers| json!({"name": subset.name, "workloads": subset.workloads});
    json!({
        "rules": settings.rules.iter().map(rule).collect::<Vec<_>>(),
        "subsets": settings.subsets.iter().map(subset).collect::<Vec<_>>(),
    })
}

fn policy(policy: &Policy) -> Value {
    json!({
        "namespace": policy.namespace,
        "name": policy.name,
        "spec": parsed(&policy.json).get("spec"),
        "rejected": rejected(&policy.rejection),
    })
}

fn authentication(authentication: &RequestAuthentication) -> Value {
    let object = parsed(&authentication.json);
    // The rules stand in the object's specification.
    let spec = object.get("spec").unwrap_or(&object);
    let rules = spec.get("jwtRules").and_then(Value::as_array).into_iter().flatten();
    let rules = rules.map(|rule| json!({"issuer": rule.get("issuer"), "audiences": rule.get("audiences")}));
    json!({
        "namespace": authentication.namespace,
        "name": authentication.name,
        "jwtRules": rules.collect::<Vec<_>>(),
        "rejected": rejected(&authentication.rejection),
    })
}

fn route(route: &AttachedRoute) -> Value {
    let object = parsed(&route.json);
    let mut spec = object.get("spec").cloned().unwrap_or(object);
    redact(&mut spec, false);
    json!({
        "kind": route.kind,
        "namespace": route.namespace,
        "name": route.name,
        "ports": route.ports,
        "spec": spec,
        "rejected": rejected(&route.rejection),
    })
}

fn traffic_policy(policy: &TrafficPolicy) -> Value {
    let mut spec = parsed(&policy.json).get("spec").cloned().unwrap_or_default();
    redact(&mut spec, false);
    json!({
        "namespace": policy.namespace,
        "name": policy.name,
        "spec": spec,
        "rejected": rejected(&policy.rejection),
    })
}

fn retry_budget(budget: &RetryBudget) -> Value {
    json!({
        "policy": budget.policy,
        "percent": budget.percent,
        "intervalMs": budget.interval_ms,
        "count": budget.count,
        "countIntervalMs": budget.count_interval_ms,
    })
}

fn provider(provider: &Provider) -> Value {
    let protocol = match &provider.protocol {
        Some(Protocol::Grpc(_)) => "grpc",
        Some(Protocol::Http(_)) => "http",
        None => "unknown",
    };
    json!({
        "name": provider.name,
        "namespace": provider.namespace,
        "host": provider.host,
        "port": provider.port,
        "protocol": protocol,
        "timeoutMs": provider.timeout_ms,
        "failOpen": provider.fail_open,
    })
}

/// Takes out the values of headers that are set, added or compared.
fn redact(value: &mut Value, in_headers: bool) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| redact(item, in_headers)),
        Value::Object(fields) => {
            for (name, field) in fields {
                let headers = in_headers
                    || matches!(name.as_str(), "requestHeaderModifier" | "responseHeaderModifier" | "headers");
                match field {
                    Value::String(text) if in_headers && name == "value" => *text = "[not shown]".to_owned(),
                    _ => redact(field, headers),
                }
            }
        }
        _ => {}
    }
}

fn rejected(reason: &str) -> Option<&str> {
    Some(reason).filter(|reason| !reason.is_empty())
}

fn parsed(json: &[u8]) -> Value {
    serde_json::from_slice(json).unwrap_or_default()
}
