//! Which errors leave a policy without a meaning, and PeerAuthentication's and MeshConfig's own.

use ambit_api::{Resource, codes, load_text};

fn policy(body: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: a}}\n{body}\n"
    )
}

fn found(text: &str) -> Vec<(&'static str, String)> {
    let loaded = load_text("mesh.yaml", text);
    loaded.diagnostics.iter().map(|found| (found.code, found.field.clone().unwrap_or_default())).collect()
}

#[track_caller]
fn trips(text: &str, code: &'static str, field: &str) {
    assert_eq!(found(text), [(code, field.to_owned())], "{text}");
}

#[track_caller]
fn passes(text: &str) {
    assert_eq!(found(text), [], "{text}");
}

#[test]
fn an_error_of_meaning_rejects_and_a_lint_does_not() {
    let code = |body: &str| {
        let loaded = load_text("p.yaml", &policy(body));
        assert!(loaded.has_errors() && loaded.malformed.is_empty(), "{body}: {:?}", loaded.diagnostics);
        loaded.objects[0].rejection.as_ref().map(|rejection| rejection.code)
    };
    assert_eq!(code("spec: {rules: [{to: [{operation: {ports: [http]}}]}]}"), Some(codes::BAD_PORT));
    assert_eq!(code("spec: {rules: [{to: [{operation: {portz: [http]}}]}]}"), Some(codes::UNKNOWN_FIELD));
    assert_eq!(code("spec: {rules: [{when: [{key: no.such, values: [x]}]}]}"), Some(codes::UNKNOWN_ATTRIBUTE));
    assert_eq!(code("spec: {rules: [{to: [{operation: {paths: [\"/x/../y\"]}}]}]}"), None, "it never matches");
    assert_eq!(code("spec: {rules: [{from: [{source: {principals: [\"spiffe://x\"]}}]}]}"), None);

    let fine = load_text("p.yaml", &policy("spec: {}"));
    assert_eq!(fine.objects[0].rejection, None);
    let two = policy("spec: {rules: [{to: [{operation: {paths: [a], ports: [http]}}]}]}");
    let rejection = load_text("p.yaml", &two).objects[0].rejection.clone().expect("rejected");
    assert_eq!(rejection.reason(), "spec.rules[0].to[0].operation.ports[0]: `http` is not a port", "not the lint");
}

#[test]
fn a_rejection_is_found_however_many_diagnostics_there_are() {
    let bad = policy("spec: {rules: [{to: [{operation: {ports: [http]}}]}]}");
    let many: Vec<_> = (0..2000).map(|i| bad.replace("name: p", &format!("name: p{i}"))).collect();
    let loaded = load_text("p.yaml", &many.join("---\n"));
    assert!(loaded.diagnostics.len() < 2000, "they are bounded");
    assert_eq!(loaded.objects.len(), 2000);
    assert!(loaded.objects.iter().all(|object| object.rejection.is_some()));
}

#[test]
fn of_a_policy_with_a_wrong_form_the_attachment_is_kept() {
    let malformed = |body: &str| {
        let loaded = load_text("p.yaml", &policy(body));
        assert_eq!((loaded.objects.len(), loaded.malformed.len()), (0, 1), "{body}");
        let object = loaded.malformed.into_iter().next().expect("one");
        assert!(object.rejection.is_some(), "{body}");
        let Resource::AuthorizationPolicy(policy) = object.resource else { panic!("not a policy") };
        assert_eq!((policy.namespace.as_str(), policy.name.as_str()), ("a", "p"));
        policy.spec
    };
    let spec = malformed("spec: {targetRefs: [{kind: Service, name: web}], action: REFUSE}");
    assert_eq!((spec.target_refs[0].name.as_str(), spec.rules), ("web", None));
    let spec = malformed("spec: {selector: {matchLabels: {app: x}}, rules: yes}");
    assert_eq!(spec.selector.expect("kept").match_labels["app"], "x");
    let spec = malformed("spec: {targetRefs: web}");
    assert!(spec.target_refs.is_empty() && spec.selector.is_none(), "then it is its namespace's");
    malformed("spec: nothing");
}

fn peer(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: a}}\nspec: {spec}\n"
    )
}

#[test]
fn peer_authentications_are_judged_as_istio_does() {
    let selector = "selector: {matchLabels: {app: x}}";
    passes(&peer("{}"));
    passes(&peer("{mtls: {mode: STRICT}}"));
    passes(&peer(&format!("{{{selector}, portLevelMtls: {{8080: {{mode: DISABLE}}, \"9090\": {{mode: UNSET}}}}}}")));
    trips(&peer("{mtls: {mode: ON}}"), codes::WRONG_TYPE, "spec.mtls.mode");
    trips(&peer("{mtls: {modes: STRICT}}"), codes::UNKNOWN_FIELD, "spec.mtls.modes");
    trips(&peer("{portLevelMtls: {8080: {mode: STRICT}}}"), codes::PORTS_WITHOUT_SELECTOR, "spec.portLevelMtls");
    trips(&peer(&format!("{{{selector}, portLevelMtls: {{}}}}")), codes::EMPTY_PORTS, "spec.portLevelMtls");
    for port in ["0", "65536", "http", "\"080\"", "\"+1\""] {
        let text = peer(&format!("{{{selector}, portLevelMtls: {{{port}: {{mode: STRICT}}}}}}"));
        trips(&text, codes::BAD_PORT, &format!("spec.portLevelMtls[{}]", port.trim_matches('"')));
    }
    trips(
        &peer("{selector: {matchLabels: {app: \"x*\"}}}"),
        codes::SELECTOR_WILDCARD,
        "spec.selector.matchLabels[app]",
    );
    trips(&peer("{selector: {matchLabels: {\"\": x}}}"), codes::EMPTY_SELECTOR_KEY, "spec.selector.matchLabels[]");
    trips(&peer("{selector: {}}"), codes::EMPTY_SELECTOR, "spec.selector");
}

fn mesh(spec: &str) -> String {
    format!("apiVersion: ambit.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: mesh}}\nspec: {spec}\n")
}

#[test]
fn mesh_configs_are_judged() {
    let http = |fields: &str| {
        mesh(&format!("{{extensionProviders: [{{name: x, envoyExtAuthzHttp: {{service: a.b, port: 80{fields}}}}}]}}"))
    };
    let provider = "spec.extensionProviders[0]";
    passes(&mesh("{}"));
    passes(&mesh("{trustDomainAliases: [old.example], pathNormalization: {normalization: MERGE_SLASHES}}"));
    passes(&http(""));
    passes(&http(
        ", timeout: 500ms, pathPrefix: /check, statusOnError: \"503\", includeRequestHeadersInCheck: [\"x-*\"]",
    ));
    passes(&mesh(
        "{extensionProviders: [{name: x, envoyExtAuthzGrpc: {service: ns/a.b, port: 9000, failOpen: true}}]}",
    ));
    passes(&http(
        ", clearRouteCache: true, includeHeadersInCheck: [cookie], includeAdditionalHeadersInCheck: {x-tenant: \"a b\"}, \
         includeRequestBodyInCheck: {maxRequestBytes: 1024, allowPartialMessage: true, packAsBytes: true}, \
         headersToDownstreamOnAllow: [set-cookie], headersToDownstreamOnDeny: [\"*-id\"]",
    ));
    passes(&mesh(
        "{extensionProviders: [{name: x, envoyExtAuthzGrpc: {service: a.b, port: 9000, timeout: 1.5s, clearRouteCache: \
         true, includeRequestBodyInCheck: {maxRequestBytes: 1048576}}}]}",
    ));
    trips(&mesh("{trustDomainAliases: [\"a/b\"]}"), codes::BAD_MESH_CONFIG, "spec.trustDomainAliases[0]");
    trips(
        &mesh("{pathNormalization: {normalization: MOST}}"),
        codes::WRONG_TYPE,
        "spec.pathNormalization.normalization",
    );
    trips(&mesh("{extensionProviders: [{name: x}]}"), codes::BAD_PROVIDER, provider);
    trips(&http("").replace("name: x,", "name: \"x y\","), codes::BAD_PROVIDER, &format!("{provider}.name"));
    for (field, written) in [
        ("timeout", ", timeout: soon"),
        ("pathPrefix", ", pathPrefix: check"),
        ("statusOnError", ", statusOnError: \"200\""),
        ("timeout", ", timeout: 0s"),
        ("timeout", ", timeout: +1s"),
        ("headersToUpstreamOnAllow[0]", ", headersToUpstreamOnAllow: [\"*\"]"),
        ("includeHeadersInCheck[0]", ", includeHeadersInCheck: [\"a*b\"]"),
        ("headersToDownstreamOnAllow[0]", ", headersToDownstreamOnAllow: [\"\"]"),
        ("headersToDownstreamOnDeny[0]", ", headersToDownstreamOnDeny: [\"a b\"]"),
        ("includeAdditionalHeadersInCheck[a b]", ", includeAdditionalHeadersInCheck: {\"a b\": x}"),
        ("includeAdditionalHeadersInCheck[Host]", ", includeAdditionalHeadersInCheck: {Host: x}"),
        ("includeAdditionalHeadersInCheck[x-a]", ", includeAdditionalHeadersInCheck: {x-a: \"1\\r\\nx-b: 2\"}"),
        ("includeRequestBodyInCheck.maxRequestBytes", ", includeRequestBodyInCheck: {packAsBytes: true}"),
        ("includeRequestBodyInCheck.maxRequestBytes", ", includeRequestBodyInCheck: {maxRequestBytes: 1048577}"),
    ] {
        trips(&http(written), codes::BAD_PROVIDER, &format!("{provider}.envoyExtAuthzHttp.{field}"));
    }
    let at = |field: &str| format!("{provider}.envoyExtAuthzHttp.{field}");
    trips(&http("").replace("port: 80", "port: 0"), codes::BAD_PROVIDER, &at("port"));
    trips(&http("").replace("service: a.b", "service: \"a b\""), codes::BAD_PROVIDER, &at("service"));
    collectors_are_judged();
    let twice = mesh("{}") + "---\n" + &mesh("{}").replace("name: mesh", "name: more");
    trips(&twice, codes::SECOND_MESH_CONFIG, "metadata.name");
}

#[test]
fn a_custom_policy_cant_be_a_dry_run() {
    let text =
        policy("spec: {action: CUSTOM, provider: {name: x}, rules: [{}], targetRefs: [{kind: Service, name: s}]}");
    let text = text.replace("metadata: {", "metadata: {annotations: {istio.io/dry-run: \"true\"}, ");
    trips(&text, codes::CUSTOM_DRY_RUN, "metadata.annotations[istio.io/dry-run]");
    passes(&text.replace("\"true\"", "\"false\""));
}

fn collectors_are_judged() {
    let written = |collector: &str, more: &str| {
        mesh(&format!("{{extensionProviders: [{{name: x, opentelemetry: {collector}}}]{more}}}"))
    };
    let good = "{service: ns/otel.example, port: 4318, http: {path: /v1/traces, timeout: 5s, headers: [{name: x-a, value: b}]}}";
    passes(&written(good, ", defaultProviders: {tracing: [x]}, defaultConfig: {tracing: {sampling: 0.5}}"));
    passes(&written(good, ", defaultConfig: {tracing: {sampling: 100}}"));
    let at = "spec.extensionProviders[0].opentelemetry";
    for (field, bad) in [
        (".service", good.replace("ns/otel.example", "\"a b\"")),
        (".port", good.replace("4318", "0")),
        (".timeout", good.replace("5s", "0s")),
        (".http.path", good.replace("/v1/traces", "v1")),
        (".http.path", good.replace("/v1/traces", "\"/v1 x\"")),
        (".http.headers[0]", good.replace("x-a", "Host")),
        (".http.headers[0]", good.replace("value: b", "value: \"b\\r\\n\"")),
    ] {
        trips(&written(&bad, ""), codes::BAD_PROVIDER, &format!("{at}{field}"));
    }
    trips(&written("{service: a.b, port: 1}", ""), codes::BAD_PROVIDER, at);
    let named = "spec.defaultProviders.tracing";
    trips(&written(good, ", defaultProviders: {tracing: [y]}"), codes::BAD_MESH_CONFIG, &format!("{named}[0]"));
    trips(&written(good, ", defaultProviders: {tracing: [x, x]}"), codes::BAD_MESH_CONFIG, named);
    for bad in ["101", "-1", ".nan"] {
        let sampling = format!(", defaultConfig: {{tracing: {{sampling: {bad}}}}}");
        trips(&written(good, &sampling), codes::WRONG_TYPE, "spec.defaultConfig.tracing.sampling");
    }
}
