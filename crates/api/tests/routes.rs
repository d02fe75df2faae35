//! What is wrong with a route is said at its field, and what is right is taken.

use ambit_api::{Resource, Severity, codes, load_text};

const HEAD: &str = "parentRefs: [{group: '', kind: Service, name: s}], ";

fn load(kind: &str, version: &str, spec: &str) -> ambit_api::Loaded {
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: r, namespace: a}}\nspec: {{{spec}}}\n"
    );
    load_text("r.yaml", &text)
}

#[test]
fn each_fault_has_its_code_severity_and_field() {
    use Severity::{Error, Warning};
    let rule = |rule: &str| format!("{HEAD}rules: [{{{rule}}}]");
    let filter = |filter: &str| rule(&format!("filters: [{filter}]"));
    let http = [
        ("rules: []".to_owned(), codes::BAD_PARENT, Warning, "spec.parentRefs"),
        ("parentRefs: [{kind: Service, group: ''}]".to_owned(), codes::BAD_PARENT, Error, "spec.parentRefs[0].name"),
        (format!("{HEAD}hostnames: [h]"), codes::ROUTE_WITHOUT_EFFECT, Warning, "spec.hostnames"),
        (rule("matchs: []"), codes::UNKNOWN_FIELD, Error, "spec.rules[0].matchs"),
        (rule("matches: [{path: {value: a}}]"), codes::BAD_MATCH, Error, "spec.rules[0].matches[0].path.value"),
        (rule("matches: [{path: {value: /a/../b}}]"), codes::BAD_MATCH, Error, "spec.rules[0].matches[0].path.value"),
        (
            rule("matches: [{path: {type: RegularExpression, value: 'a)|(b'}}]"),
            codes::BAD_MATCH,
            Error,
            "spec.rules[0].matches[0].path.value",
        ),
        (
            rule("matches: [{headers: [{type: RegularExpression, name: x, value: '(a{999}){999}'}]}]"),
            codes::BAD_MATCH,
            Error,
            "spec.rules[0].matches[0].headers[0].value",
        ),
        (rule("matches: [{method: get}]"), codes::BAD_MATCH, Error, "spec.rules[0].matches[0].method"),
        (rule("backendRefs: [{name: b}]"), codes::BAD_BACKEND, Error, "spec.rules[0].backendRefs[0].port"),
        (
            rule("backendRefs: [{name: b, port: 1, weight: 1000001}]"),
            codes::BAD_BACKEND,
            Error,
            "spec.rules[0].backendRefs[0].weight",
        ),
        (rule("timeouts: {request: 5}"), codes::WRONG_TYPE, Error, "spec.rules[0].timeouts.request"),
        (rule("timeouts: {request: 5x}"), codes::BAD_TIMEOUT, Error, "spec.rules[0].timeouts.request"),
        (
            rule("timeouts: {request: 1s, backendRequest: 2s}"),
            codes::BAD_TIMEOUT,
            Error,
            "spec.rules[0].timeouts.backendRequest",
        ),
        (rule("retry: {codes: [200]}"), codes::BAD_RETRY, Error, "spec.rules[0].retry.codes[0]"),
        (rule("retry: {attempts: 26}"), codes::BAD_RETRY, Error, "spec.rules[0].retry.attempts"),
        (rule("sessionPersistence: {}"), codes::UNSUPPORTED_ROUTE, Warning, "spec.rules[0].sessionPersistence"),
        (format!("{HEAD}rules: [{{name: x}}, {{name: x}}]"), codes::BAD_RULE_NAME, Error, "spec.rules[1].name"),
        (filter("{type: URLRewrite}"), codes::BAD_FILTER, Error, "spec.rules[0].filters[0]"),
        (
            filter("{type: RequestHeaderModifier, requestHeaderModifier: {remove: [Host]}}"),
            codes::BAD_FILTER,
            Error,
            "spec.rules[0].filters[0].requestHeaderModifier.remove[0]",
        ),
        (
            filter("{type: RequestRedirect, requestRedirect: {statusCode: 200}}"),
            codes::BAD_FILTER,
            Error,
            "spec.rules[0].filters[0].requestRedirect.statusCode",
        ),
        (
            filter("{type: ExtensionRef, extensionRef: {group: g, kind: K, name: n}}"),
            codes::UNSUPPORTED_ROUTE,
            Warning,
            "spec.rules[0].filters[0].type",
        ),
        (
            filter("{type: CORS, cors: {allowOrigins: [here]}}"),
            codes::BAD_FILTER,
            Error,
            "spec.rules[0].filters[0].cors.allowOrigins[0]",
        ),
        (
            filter("{type: RequestMirror, requestMirror: {backendRef: {name: b, port: 1}, percent: 101}}"),
            codes::BAD_FILTER,
            Error,
            "spec.rules[0].filters[0].requestMirror.percent",
        ),
    ];
    for (spec, code, severity, field) in http {
        let loaded = load("HTTPRoute", "v1", &spec);
        let found: Vec<_> =
            loaded.diagnostics.iter().map(|d| (d.code, d.severity, d.field.as_deref().unwrap_or_default())).collect();
        assert_eq!(found, [(code, severity, field)], "{spec}: {:?}", loaded.diagnostics);
        let rejected = loaded.objects.iter().chain(&loaded.malformed).any(|object| object.rejection.is_some());
        assert_eq!(rejected, severity == Error, "{spec}");
    }
    let grpc = load(
        "GRPCRoute",
        "v1",
        &format!("{HEAD}rules: [{{matches: [{{method: {{}}}}], filters: [{{type: CORS, cors: {{}}}}]}}]"),
    );
    let fields: Vec<_> = grpc.diagnostics.iter().filter_map(|d| d.field.as_deref()).collect();
    assert_eq!(fields, ["spec.rules[0].matches[0].method", "spec.rules[0].filters[0].type"], "{:?}", grpc.diagnostics);
    let tcp = load("TCPRoute", "v1alpha2", HEAD.trim_end_matches(", "));
    assert_eq!(tcp.diagnostics[0].field.as_deref(), Some("spec.rules"), "{:?}", tcp.diagnostics);
}

#[test]
fn a_route_whose_form_is_wrong_still_says_what_it_is_attached_to() {
    let loaded = load("HTTPRoute", "v1", &format!("{HEAD}rules: yes"));
    let [object] = loaded.malformed.as_slice() else { panic!("{loaded:?}") };
    let Resource::Route(route) = &object.resource else { panic!("{object:?}") };
    assert_eq!(route.parents()[0].service("a"), Some(("a", "s")));
    assert!(object.rejection.is_some());
}
