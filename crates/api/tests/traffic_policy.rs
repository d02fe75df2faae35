//! TrafficPolicy and XBackendTrafficPolicy: what passes, and each fault at its field.

use std::time::Duration;

use ambit_api::{Resource, codes, load_text, traffic_policy::RateLimitKeyType};

const TARGET: &str = "targetRefs: [{kind: Service, group: \"\", name: s}]";

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: ambit.dev/v1\nkind: TrafficPolicy\nmetadata: {{name: t, namespace: a}}\nspec: {{{TARGET}, {spec}}}\n"
    )
}

fn limit(limit: &str) -> String {
    policy(&format!("rateLimits: [{limit}]"))
}

fn fault(fault: &str) -> String {
    policy(&format!("faults: [{fault}]"))
}

fn backend(spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XBackendTrafficPolicy\n\
         metadata: {{name: t, namespace: a}}\nspec: {spec}\n"
    )
}

fn budget(constraint: &str) -> String {
    backend(&format!("{{{TARGET}, retryConstraint: {constraint}}}"))
}

fn found(text: &str) -> Vec<(&'static str, String)> {
    let loaded = load_text("mesh.yaml", text);
    loaded.diagnostics.iter().map(|found| (found.code, found.field.clone().unwrap_or_default())).collect()
}

#[track_caller]
fn passes(text: &str) -> Resource {
    assert_eq!(found(text), [], "{text}");
    load_text("mesh.yaml", text).objects.remove(0).resource
}

/// An error that rejects the object, at this field.
#[track_caller]
fn trips(text: &str, code: &'static str, field: &str) {
    assert_eq!(found(text), [(code, field.to_owned())], "{text}");
    let loaded = load_text("mesh.yaml", text);
    let rejected = loaded.objects.first().is_none_or(|object| object.rejection.is_some());
    assert!(loaded.has_errors() && rejected, "{text}");
}

#[test]
fn policies_that_work_pass_and_say_what_was_written() {
    let Resource::TrafficPolicy(object) = passes(&policy(
        "rateLimits: [{name: per-client, requests: 100, interval: 1m}, \
         {matches: [{path: {value: /v1}, method: POST, headers: [{name: x-a, value: b}]}, {path: {type: Exact, value: /x}}], \
          key: {type: Header, header: X-Tenant}, requests: 5, interval: 1s, burst: 7, maxKeys: 16}, \
         {key: {type: All}, requests: 1000000, interval: 1ms}, {key: null, requests: 1, interval: 24h}], \
         faults: [{name: slow, delay: {duration: 2s, percent: 10}}, \
         {matches: [{path: {type: RegularExpression, value: '/v[0-9]'}}], \
          abort: {httpStatus: 503, grpcStatus: 14, fraction: {numerator: 1, denominator: 1000}}}, \
         {delay: {duration: 300s}, abort: {httpStatus: 200}}]",
    )) else {
        panic!("not one")
    };
    assert_eq!((object.namespace.as_str(), object.name.as_str()), ("a", "t"));
    let [per_client, per_tenant, all, daily] = &object.spec.rate_limits[..] else { panic!("four limits") };
    assert_eq!(
        (per_client.key.kind, per_client.interval()),
        (RateLimitKeyType::Principal, Some(Duration::from_secs(60)))
    );
    assert_eq!((per_tenant.key.kind, per_tenant.matches.len()), (RateLimitKeyType::Header, 2));
    assert_eq!(all.key.kind, RateLimitKeyType::All);
    assert_eq!(daily.interval(), Some(Duration::from_secs(24 * 3600)));
    assert_eq!(object.spec.faults[0].delay.as_ref().and_then(|delay| delay.duration()), Some(Duration::from_secs(2)));
}

#[test]
fn each_fault_of_a_rate_limit_is_found_at_its_field() {
    let at = |field: &str| format!("spec.rateLimits[0].{field}");
    for (written, code, field) in [
        ("{requests: 0, interval: 1s}", codes::BAD_RATE_LIMIT, "requests"),
        ("{requests: 1000001, interval: 1s}", codes::BAD_RATE_LIMIT, "requests"),
        ("{requests: 1, interval: soon}", codes::BAD_RATE_LIMIT, "interval"),
        ("{requests: 1, interval: 0s}", codes::BAD_RATE_LIMIT, "interval"),
        ("{requests: 1, interval: 25h}", codes::BAD_RATE_LIMIT, "interval"),
        ("{requests: 1, interval: 1s, burst: 0}", codes::BAD_RATE_LIMIT, "burst"),
        ("{requests: 1, interval: 1s, burst: 1000001}", codes::BAD_RATE_LIMIT, "burst"),
        ("{requests: 1, interval: 1s, maxKeys: 0}", codes::BAD_RATE_LIMIT, "maxKeys"),
        ("{requests: 1, interval: 1s, maxKeys: 65537}", codes::BAD_RATE_LIMIT, "maxKeys"),
        ("{requests: 1, interval: 1s, key: {type: Header}}", codes::BAD_RATE_LIMIT, "key"),
        ("{requests: 1, interval: 1s, key: {type: Header, header: \"a b\"}}", codes::BAD_RATE_LIMIT, "key.header"),
        ("{requests: 1, interval: 1s, key: {type: Principal, header: a}}", codes::BAD_RATE_LIMIT, "key.header"),
        ("{requests: 1, interval: 1s, key: {header: a}}", codes::BAD_RATE_LIMIT, "key.header"),
        ("{requests: 1, interval: 1s, key: {type: Address}}", codes::WRONG_TYPE, "key.type"),
        ("{requests: 1, interval: 1s, key: {kind: All}}", codes::UNKNOWN_FIELD, "key.kind"),
        ("{requests: -1, interval: 1s}", codes::WRONG_TYPE, "requests"),
        ("{requests: 1, interval: 1s, matches: [{path: {value: v1}}]}", codes::BAD_MATCH, "matches[0].path.value"),
        ("{requests: 1, interval: 1s, matches: [{method: get}]}", codes::BAD_MATCH, "matches[0].method"),
        ("{name: \"A b\", requests: 1, interval: 1s}", codes::BAD_RULE_NAME, "name"),
    ] {
        trips(&limit(written), code, &at(field));
    }
    let twice = "{name: x, requests: 1, interval: 1s}, {name: x, requests: 1, interval: 1s}";
    trips(&limit(twice), codes::BAD_RULE_NAME, "spec.rateLimits[1].name");
    let many = vec!["{requests: 1, interval: 1s}"; 65].join(", ");
    trips(&limit(&many), codes::TOO_MANY, "spec.rateLimits");
    assert!(load_text("t.yaml", &limit("{interval: 1s}")).has_errors(), "`requests` is missing");
    assert!(load_text("t.yaml", &limit("{requests: 1}")).has_errors(), "`interval` is missing");
}

#[test]
fn each_fault_of_a_fault_is_found_at_its_field() {
    let at = |field: &str| format!("spec.faults[0]{field}");
    for (written, code, field) in [
        ("{name: nothing}", codes::BAD_FAULT, ""),
        ("{delay: {duration: \"\"}}", codes::BAD_FAULT, ".delay.duration"),
        ("{delay: {duration: 0s}}", codes::BAD_FAULT, ".delay.duration"),
        ("{delay: {duration: 301s}}", codes::BAD_FAULT, ".delay.duration"),
        ("{delay: {duration: 1s, percent: 101}}", codes::BAD_FAULT, ".delay.percent"),
        ("{delay: {duration: 1s, percent: 1, fraction: {numerator: 1}}}", codes::BAD_FAULT, ".delay.percent"),
        ("{delay: {duration: 1s, fraction: {numerator: 2, denominator: 1}}}", codes::BAD_FAULT, ".delay.fraction"),
        ("{abort: {httpStatus: 503, fraction: {numerator: 0, denominator: 0}}}", codes::BAD_FAULT, ".abort.fraction"),
        ("{abort: {httpStatus: 199}}", codes::BAD_FAULT, ".abort.httpStatus"),
        ("{abort: {httpStatus: 600}}", codes::BAD_FAULT, ".abort.httpStatus"),
        ("{abort: {httpStatus: 204}}", codes::BAD_FAULT, ".abort.httpStatus"),
        ("{abort: {httpStatus: 304}}", codes::BAD_FAULT, ".abort.httpStatus"),
        ("{abort: {httpStatus: 503, grpcStatus: 0}}", codes::BAD_FAULT, ".abort.grpcStatus"),
        ("{abort: {httpStatus: 503, grpcStatus: 17}}", codes::BAD_FAULT, ".abort.grpcStatus"),
        (
            "{abort: {httpStatus: 503}, matches: [{headers: [{name: \"\", value: a}]}]}",
            codes::BAD_MATCH,
            ".matches[0].headers[0].name",
        ),
    ] {
        trips(&fault(written), code, &at(field));
    }
}

#[test]
fn targets_are_checked_as_those_of_authorization_policies() {
    let with = |spec: &str| {
        format!("apiVersion: ambit.dev/v1\nkind: TrafficPolicy\nmetadata: {{name: t, namespace: a}}\nspec: {spec}\n")
    };
    for (spec, code, field) in [
        ("{targetRefs: [{kind: Service}]}", codes::TARGET_WITHOUT_NAME, "spec.targetRefs[0].name"),
        ("{targetRefs: [{kind: Pod, name: x}]}", codes::TARGET_KIND, "spec.targetRefs[0].kind"),
        (
            "{targetRefs: [{kind: Service, name: x, namespace: b}]}",
            codes::TARGET_NAMESPACE,
            "spec.targetRefs[0].namespace",
        ),
        ("{targetRefs: []}", codes::TARGET_WITHOUT_NAME, "spec.targetRefs"),
    ] {
        trips(&with(spec), code, field);
    }
    trips(&with("{target_refs: []}"), codes::UNKNOWN_FIELD, "spec.target_refs");
    let old = "apiVersion: ambit.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: t}\n";
    assert_eq!(found(old), [(codes::UNSUPPORTED_VERSION, "apiVersion".to_owned())]);
}

#[test]
fn budgets_of_retries_are_checked_as_the_gateway_api_does() {
    for good in [
        "{}",
        "{budget: {percent: 0, interval: 1h}}",
        "{minRetryRate: {count: 1, interval: 500ms}}",
        "{budget: {}, minRetryRate: {}}",
    ] {
        passes(&budget(good));
    }
    for (constraint, field) in [
        ("{budget: {percent: 101}}", "budget.percent"),
        ("{budget: {interval: 2h}}", "budget.interval"),
        ("{budget: {interval: 0s}}", "budget.interval"),
        ("{minRetryRate: {count: 0}}", "minRetryRate.count"),
        ("{minRetryRate: {count: 1000001}}", "minRetryRate.count"),
        ("{minRetryRate: {interval: now}}", "minRetryRate.interval"),
    ] {
        trips(&budget(constraint), codes::BAD_RETRY_BUDGET, &format!("spec.retryConstraint.{field}"));
    }
    trips(&backend("{}"), codes::TOO_MANY, "spec.targetRefs");
    trips(
        &backend("{targetRefs: [{kind: Gateway, group: g, name: x}]}"),
        codes::TARGET_KIND,
        "spec.targetRefs[0].kind",
    );
    trips(&backend("{targetRefs: [{kind: Service}]}"), codes::TARGET_WITHOUT_NAME, "spec.targetRefs[0].name");
    let sticky = backend(&format!("{{{TARGET}, sessionPersistence: {{}}}}"));
    assert_eq!(found(&sticky), [(codes::UNSUPPORTED_ROUTE, "spec.sessionPersistence".to_owned())]);
    assert!(!load_text("t.yaml", &sticky).has_errors(), "a warning");
}
