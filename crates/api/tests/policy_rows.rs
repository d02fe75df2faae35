//! Every row of Istio's validation (`spec/authorization.md` 2.11) has a policy that trips it, and only it.

use ambit_api::{codes, load_text};

/// The codes and fields found in a policy with this `spec`, written in flow style.
fn found(spec: &str) -> Vec<(&'static str, String)> {
    let text = format!(
        "apiVersion: security.istio.io/v1beta1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: a}}\nspec: {spec}\n"
    );
    let loaded = load_text("p.yaml", &text);
    loaded.diagnostics.iter().map(|found| (found.code, found.field.clone().unwrap_or_default())).collect()
}

fn source(fields: &str) -> String {
    format!("{{rules: [{{from: [{{source: {{{fields}}}}}]}}]}}")
}

fn operation(fields: &str) -> String {
    format!("{{rules: [{{to: [{{operation: {{{fields}}}}}]}}]}}")
}

fn when(fields: &str) -> String {
    format!("{{rules: [{{when: [{{{fields}}}]}}]}}")
}

#[track_caller]
fn trips(spec: &str, code: &'static str, field: &str) {
    assert_eq!(found(spec), [(code, field.to_owned())], "{spec}");
}

#[track_caller]
fn passes(spec: &str) {
    assert_eq!(found(spec), [], "{spec}");
}

const SOURCE: &str = "spec.rules[0].from[0].source";
const OPERATION: &str = "spec.rules[0].to[0].operation";
const WHEN: &str = "spec.rules[0].when[0]";

#[test]
fn rows_1_to_7_attachment() {
    trips(
        "{targetRef: {kind: Service, name: s}, targetRefs: [{kind: Service, name: s}]}",
        codes::SELECTOR_AND_TARGET,
        "spec.targetRefs",
    );
    trips(
        "{selector: {matchLabels: {a: b}}, targetRef: {kind: Service, name: s}}",
        codes::SELECTOR_AND_TARGET,
        "spec.targetRef",
    );
    trips("{selector: {matchLabels: {\"\": b}}}", codes::EMPTY_SELECTOR_KEY, "spec.selector.matchLabels[]");
    trips("{selector: {matchLabels: {app: \"x*\"}}}", codes::SELECTOR_WILDCARD, "spec.selector.matchLabels[app]");
    trips("{selector: {}}", codes::EMPTY_SELECTOR, "spec.selector");
    trips("{targetRef: {kind: Service}}", codes::TARGET_WITHOUT_NAME, "spec.targetRef.name");
    trips("{targetRef: {kind: Service, name: s, namespace: a}}", codes::TARGET_NAMESPACE, "spec.targetRef.namespace");
    trips("{targetRef: {kind: Pod, name: s}}", codes::TARGET_KIND, "spec.targetRef.kind");
    trips("{targetRef: {kind: ServiceEntry, name: s}}", codes::TARGET_KIND, "spec.targetRef.group");
    passes("{targetRef: {kind: ServiceEntry, group: networking.istio.io, name: s}}");
    passes("{targetRef: {kind: GatewayClass, group: gateway.networking.k8s.io, name: istio-waypoint}}");
    let many = vec!["{kind: Service, name: s}"; 17].join(", ");
    trips(&format!("{{targetRefs: [{many}]}}"), codes::TOO_MANY, "spec.targetRefs");
}

#[test]
fn rows_8_to_14_actions() {
    trips("{action: CUSTOM, provider: {name: x}}", codes::ACTION_WITHOUT_RULES, "spec.action");
    trips("{action: CUSTOM, rules: [{}]}", codes::CUSTOM_WITHOUT_PROVIDER, "spec.action");
    trips("{action: CUSTOM, provider: {}, rules: [{}]}", codes::CUSTOM_WITHOUT_PROVIDER, "spec.provider.name");
    let custom = |rule: &str| format!("{{action: CUSTOM, provider: {{name: x}}, rules: [{rule}]}}");
    for field in
        ["namespaces", "notNamespaces", "requestPrincipals", "notRequestPrincipals", "trustDomains", "notTrustDomains"]
    {
        let spec = custom(&format!("{{from: [{{source: {{{field}: [x]}}}}]}}"));
        trips(&spec, codes::CUSTOM_UNSUPPORTED, &format!("{SOURCE}.{field}"));
    }
    for field in ["serviceAccounts", "notServiceAccounts"] {
        trips(
            &custom(&format!("{{from: [{{source: {{{field}: [x]}}}}]}}")),
            codes::CUSTOM_UNSUPPORTED,
            &format!("{SOURCE}.{field}"),
        );
    }
    for field in ["principals", "notPrincipals"] {
        trips(
            &custom(&format!("{{from: [{{source: {{{field}: [\"*\"]}}}}]}}")),
            codes::CUSTOM_UNSUPPORTED,
            &format!("{SOURCE}.{field}"),
        );
    }
    for key in [
        "source.namespace",
        "source.serviceAccount",
        "source.trustDomain",
        "request.auth.audiences",
        "request.auth.claims[a]",
    ] {
        trips(
            &custom(&format!("{{when: [{{key: \"{key}\", values: [x]}}]}}")),
            codes::CUSTOM_UNSUPPORTED,
            &format!("{WHEN}.key"),
        );
    }
    passes(&custom("{from: [{source: {ipBlocks: [10.0.0.1]}}], when: [{key: source.ip, values: [10.0.0.0/8]}]}"));
    trips("{provider: {name: x}, rules: [{}]}", codes::PROVIDER_WITHOUT_CUSTOM, "spec.provider");
    trips("{action: DENY}", codes::ACTION_WITHOUT_RULES, "spec.action");
    passes("{action: DENY, rules: []}");
    passes("{}");
    passes("{rules: [{}]}");
}

#[test]
fn rows_12_15_16_17_24_25_nothing_where_something_must_be() {
    trips("{rules: [{when: [null]}]}", codes::WRONG_TYPE, "spec.rules[0].when[0]");
    trips("{rules: [null]}", codes::WRONG_TYPE, "spec.rules[0]");
    trips("{rules: [{from: []}]}", codes::EMPTY_FROM, "spec.rules[0].from");
    trips("{rules: [{from: [null]}]}", codes::WRONG_TYPE, "spec.rules[0].from[0]");
    trips("{rules: [{from: [{}]}]}", codes::EMPTY_SOURCE, SOURCE);
    trips("{rules: [{from: [{source: null}]}]}", codes::EMPTY_SOURCE, SOURCE);
    trips("{rules: [{from: [{source: {}}]}]}", codes::EMPTY_SOURCE, SOURCE);
    trips("{rules: [{from: [{source: {principals: []}}]}]}", codes::EMPTY_SOURCE, SOURCE);
    trips("{rules: [{to: []}]}", codes::EMPTY_TO, "spec.rules[0].to");
    trips("{rules: [{to: [null]}]}", codes::WRONG_TYPE, "spec.rules[0].to[0]");
    trips("{rules: [{to: [{}]}]}", codes::EMPTY_OPERATION, OPERATION);
    trips("{rules: [{to: [{operation: {}}]}]}", codes::EMPTY_OPERATION, OPERATION);
    trips(
        &source("principals: [], namespaces: [a]"),
        codes::SUSPICIOUS_VALUE,
        "spec.rules[0].from[0].source.principals",
    );
}

#[test]
fn a_field_without_its_value_never_widens_a_policy() {
    trips("{rules: [{from: null}]}", codes::EMPTY_FROM, "spec.rules[0].from");
    trips("{rules: [{to: null}]}", codes::EMPTY_TO, "spec.rules[0].to");
    trips("{rules: [{when: null}]}", codes::CONDITION_WITHOUT_VALUES, "spec.rules[0].when");
    trips("{rules: [{when: []}]}", codes::CONDITION_WITHOUT_VALUES, "spec.rules[0].when");
    trips("{rules: [{}], selector: null}", codes::EMPTY_SELECTOR, "spec.selector");
    trips("{rules: [{}], targetRef: null}", codes::TARGET_WITHOUT_NAME, "spec.targetRef");
    trips("{rules: [{}], targetRefs: null}", codes::TARGET_WITHOUT_NAME, "spec.targetRefs");
    trips("{rules: [{}], targetRefs: []}", codes::TARGET_WITHOUT_NAME, "spec.targetRefs");
    trips("{rules: [{}], action: null}", codes::WRONG_TYPE, "spec.action");
}

#[test]
fn rows_18_to_23_sources() {
    for other in ["principals: [\"*\"]", "notPrincipals: [\"*\"]", "namespaces: [a]", "notNamespaces: [a]"] {
        trips(
            &source(&format!("serviceAccounts: [x], {other}")),
            codes::ACCOUNTS_WITH_PRINCIPALS,
            &format!("{SOURCE}.serviceAccounts"),
        );
        let not = format!("{SOURCE}.notServiceAccounts");
        trips(&source(&format!("notServiceAccounts: [x], {other}")), codes::ACCOUNTS_WITH_PRINCIPALS, &not);
    }
    for field in ["ipBlocks", "notIpBlocks", "remoteIpBlocks", "notRemoteIpBlocks"] {
        for bad in ["10.0.0.0/33", "10.0.0", "::1/129", "/8", "10.0.0.0/", "10.0.0.0/+8", "x", "\"\""] {
            trips(&source(&format!("{field}: [{bad}]")), codes::BAD_IP_BLOCK, &format!("{SOURCE}.{field}[0]"));
        }
        passes(&source(&format!("{field}: [10.1.2.3, 10.1.2.3/8, \"::1\", \"fd00::/8\"]")));
    }
    for field in
        ["principals", "notPrincipals", "requestPrincipals", "notRequestPrincipals", "namespaces", "notNamespaces"]
    {
        trips(&source(&format!("{field}: [\"*\", \"\"]")), codes::EMPTY_VALUE, &format!("{SOURCE}.{field}[1]"));
    }
    for field in ["serviceAccounts", "notServiceAccounts"] {
        let long = "a".repeat(321);
        for bad in ["\"\"", "\"a*\"", "a/b/c", "/x", "x/", &long] {
            trips(&source(&format!("{field}: [{bad}]")), codes::BAD_SERVICE_ACCOUNT, &format!("{SOURCE}.{field}[0]"));
        }
        let many = vec!["x"; 17].join(", ");
        trips(&source(&format!("{field}: [{many}]")), codes::BAD_SERVICE_ACCOUNT, &format!("{SOURCE}.{field}"));
        passes(&source(&format!("{field}: [x, a/x]")));
    }
    for field in ["trustDomains", "notTrustDomains"] {
        for bad in ["\"\"", "\"*a*\"", "\"a*b\"", "a/b"] {
            trips(&source(&format!("{field}: [{bad}]")), codes::BAD_TRUST_DOMAIN, &format!("{SOURCE}.{field}[0]"));
        }
        passes(&source(&format!("{field}: [cluster.local, \"*.example\", \"prod*\", \"*\"]")));
    }
}

#[test]
fn rows_20_and_26_to_29_operations() {
    for field in ["methods", "notMethods", "paths", "notPaths", "hosts", "notHosts"] {
        trips(&operation(&format!("{field}: [\"\"]")), codes::EMPTY_VALUE, &format!("{OPERATION}.{field}[0]"));
    }
    for field in ["ports", "notPorts"] {
        for bad in ["\"\"", "\"65536\"", "\"-1\"", "\"+1\"", "http", "80-90"] {
            trips(&operation(&format!("{field}: [{bad}]")), codes::BAD_PORT, &format!("{OPERATION}.{field}[0]"));
        }
        passes(&operation(&format!("{field}: [\"0\", \"65535\"]")));
    }
    for field in ["paths", "notPaths"] {
        for bad in ["/{**}/{*}", "/x/{a}", "/{*}/*"] {
            trips(
                &operation(&format!("{field}: [\"{bad}\"]")),
                codes::BAD_PATH_TEMPLATE,
                &format!("{OPERATION}.{field}[0]"),
            );
        }
    }
}

#[test]
fn rows_30_to_32_conditions() {
    trips(&when("values: [x]"), codes::EMPTY_CONDITION_KEY, &format!("{WHEN}.key"));
    trips(&when("key: source.ip"), codes::CONDITION_WITHOUT_VALUES, WHEN);
    for (key, bad, code) in [
        ("source.ip", "x", codes::BAD_IP_BLOCK),
        ("destination.ip", "10.0.0.0/40", codes::BAD_IP_BLOCK),
        ("remote.ip", "", codes::BAD_IP_BLOCK),
        ("source.namespace", "", codes::EMPTY_VALUE),
        ("source.principal", "", codes::EMPTY_VALUE),
        ("source.principal", "spiffe://td/ns/a/sa/b", codes::NEVER_MATCHES),
        ("source.serviceAccount", "a*", codes::BAD_SERVICE_ACCOUNT),
        ("source.trustDomain", "a*b", codes::BAD_TRUST_DOMAIN),
        ("destination.port", "x", codes::BAD_PORT),
        ("connection.sni", "", codes::EMPTY_VALUE),
        ("connection.sni", "Example.com", codes::NEVER_MATCHES),
        ("request.headers[x-team]", "", codes::EMPTY_VALUE),
        ("request.auth.claims[a][b]", "", codes::EMPTY_VALUE),
        ("request.auth.principal", "", codes::EMPTY_VALUE),
        ("request.auth.presenter", "", codes::EMPTY_VALUE),
        ("experimental.envoy.filters.a.b[c]", "", codes::EMPTY_VALUE),
    ] {
        for list in ["values", "notValues"] {
            trips(&when(&format!("key: \"{key}\", {list}: [\"{bad}\"]")), code, &format!("{WHEN}.{list}[0]"));
        }
    }
    for key in [
        "destination.namespace",
        "destination.labels[app]",
        "destination.name",
        "destination.user",
        "source.ipp",
        "nonsense",
        "source.ip[x]",
        "request.headers",
        "request.headers[]",
        "request.headers[a][b]",
        "request.headers[a b]",
        "request.headers[:]",
        "request.headers[a",
        "request.headers[",
        "request.headers]a[",
        "request.auth.claims",
        "request.auth.claims[a]b",
        "request.auth.claims[a][]",
        "experimental.envoy.filters.x",
    ] {
        trips(&when(&format!("key: \"{key}\", values: [x]")), codes::UNKNOWN_ATTRIBUTE, &format!("{WHEN}.key"));
    }
    passes(&when("key: source.trustDomain, values: [a/b]"));
    passes(&when("key: \"request.auth.claims[a.b][c]\", values: [x]"));
    passes(&when("key: \"request.headers[:method]\", values: [GET]"));
    passes(&when("key: \"request.headers[X-Team]\", notValues: [\"*\"]"));
}

#[test]
fn row_33_denials_that_reach_all_tcp() {
    let deny = |rule: &str| format!("{{action: DENY, rules: [{rule}]}}");
    trips(&deny("{from: [{source: {requestPrincipals: [\"*\"]}}]}"), codes::DENIES_ALL_TCP, "spec.rules[0].from[0]");
    trips(&deny("{from: [{source: {trustDomains: [x]}}]}"), codes::DENIES_ALL_TCP, "spec.rules[0].from[0]");
    trips(&deny("{to: [{operation: {methods: [GET]}}]}"), codes::DENIES_ALL_TCP, "spec.rules[0].to[0]");
    passes(&deny("{from: [{source: {namespaces: [x]}}]}"));
    passes(&deny("{from: [{source: {notRemoteIpBlocks: [10.0.0.0/8]}}]}"));
    passes(&deny("{to: [{operation: {methods: [GET], ports: [\"80\"]}}]}"));
    passes(&deny("{}"));
    passes(&operation("methods: [GET]"));
}

#[test]
fn values_that_can_never_match() {
    for bad in ["spiffe://cluster.local/ns/a/sa/b", "cluster.local/ns/*/sa/b", "*a*", "a b"] {
        trips(&source(&format!("principals: [\"{bad}\"]")), codes::NEVER_MATCHES, &format!("{SOURCE}.principals[0]"));
    }
    trips(&source("notPrincipals: [otel]"), codes::SUSPICIOUS_VALUE, &format!("{SOURCE}.notPrincipals[0]"));
    passes(&source("principals: [cluster.local/ns/a/sa/b, \"cluster.local/*\", \"*/sa/b\", \"*\"]"));
    trips(&source("namespaces: [a/b]"), codes::NEVER_MATCHES, &format!("{SOURCE}.namespaces[0]"));
    trips(&source("namespaces: [Team_A]"), codes::SUSPICIOUS_VALUE, &format!("{SOURCE}.namespaces[0]"));
    for bad in ["v1/traces", "/v1?x=1", "/x/../y", "/a b"] {
        trips(&operation(&format!("paths: [\"{bad}\"]")), codes::NEVER_MATCHES, &format!("{OPERATION}.paths[0]"));
    }
    trips(&operation("paths: [\"/a/*/b\"]"), codes::SUSPICIOUS_VALUE, &format!("{OPERATION}.paths[0]"));
    trips(&operation("methods: [\"GET, POST\"]"), codes::NEVER_MATCHES, &format!("{OPERATION}.methods[0]"));
    trips(&operation("methods: [get]"), codes::SUSPICIOUS_VALUE, &format!("{OPERATION}.methods[0]"));
    trips(&operation("hosts: [\"https://x\"]"), codes::NEVER_MATCHES, &format!("{OPERATION}.hosts[0]"));
}

#[test]
fn lists_are_bounded() {
    let rules = vec!["{}"; 513].join(", ");
    trips(&format!("{{rules: [{rules}]}}"), codes::TOO_MANY, "spec.rules");
    let entries = vec!["{operation: {methods: [GET]}}"; 513].join(", ");
    trips(&format!("{{rules: [{{to: [{entries}]}}]}}"), codes::TOO_MANY, "spec.rules[0].to");
}
