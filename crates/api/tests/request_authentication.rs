//! RequestAuthentication: each row of `spec/control-plane.md` 3.1's validation, at its field.

use ambit_api::{Resource, codes, load_text};
use serde_json::json;

/// One with this rule, attached to a Service.
fn rule(rule: &str) -> String {
    object(&format!("{{targetRefs: [{{kind: Service, group: \"\", name: s}}], jwtRules: [{rule}]}}"))
}

fn object(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: t, namespace: a}}\nspec: {spec}\n"
    )
}

fn found(text: &str) -> Vec<(&'static str, String)> {
    let loaded = load_text("mesh.yaml", text);
    loaded.diagnostics.iter().map(|found| (found.code, found.field.clone().unwrap_or_default())).collect()
}

/// An error that rejects the object, at a field of its rule.
#[track_caller]
fn trips(text: &str, code: &'static str, field: &str) {
    assert_eq!(found(text), [(code, field.to_owned())], "{text}");
    let loaded = load_text("mesh.yaml", text);
    let rejected = loaded.objects.first().is_none_or(|object| object.rejection.is_some());
    assert!(loaded.has_errors() && rejected, "{text}");
}

#[track_caller]
fn passes(text: &str) {
    assert_eq!(found(text), [], "{text}");
}

fn keys(key: &serde_json::Value) -> String {
    // JSON in single quotes is YAML text.
    format!("'{}'", json!({"keys": [key]}))
}

fn public() -> serde_json::Value {
    json!({"kty": "OKP", "crv": "Ed25519", "x": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc"})
}

#[test]
fn rules_that_work_pass() {
    for good in [
        "{issuer: \"https://issuer.example/realm\"}".to_owned(),
        "{jwksUri: \"https://issuer.example/keys\"}".to_owned(),
        "{issuer: i, jwks_uri: \"http://issuer.example:8080/keys?v=1\", timeout: 1m30s}".to_owned(),
        "{issuer: i, jwksUri: \"http://[2001:db8::1]:80/keys\"}".to_owned(),
        format!("{{issuer: i, jwks: {}}}", keys(&public())),
        "{issuer: \"https://i\", audiences: [a], fromHeaders: [{name: X-Jwt, prefix: \"Token \"}], fromParams: [t], \
         fromCookies: [c], outputPayloadToHeader: x-p, forwardOriginalToken: true, spaceDelimitedClaims: [groups], \
         outputClaimToHeaders: [{header: x-a, claim: org.team}]}"
            .to_owned(),
    ] {
        passes(&rule(&good));
    }
    passes(&object("{}"));
    passes(&object("{selector: {matchLabels: {app: x}}}"));
    let loaded = load_text("t.yaml", &rule("{issuer: i, jwks_uri: \"http://x/\"}"));
    let Resource::RequestAuthentication(object) = &loaded.objects[0].resource else { panic!("not one") };
    assert_eq!((object.namespace.as_str(), object.name.as_str()), ("a", "t"));
    assert_eq!(object.spec.jwt_rules[0].jwks_uri, "http://x/");
}

#[test]
fn each_fault_is_found_at_its_field() {
    let https = "issuer: \"https://i\"";
    for (written, code, field) in [
        ("{audiences: [a]}".to_owned(), codes::BAD_JWT_RULE, ""),
        (format!("{{jwks: {}}}", keys(&public())), codes::BAD_JWT_RULE, ""),
        ("{issuer: not-an-address}".to_owned(), codes::BAD_JWT_RULE, ".issuer"),
        ("{jwksUri: \"ftp://i/keys\"}".to_owned(), codes::BAD_JWT_RULE, ".jwksUri"),
        ("{jwksUri: \"https:///keys\"}".to_owned(), codes::BAD_JWT_RULE, ".jwksUri"),
        ("{jwksUri: \"https://u:p@i/keys\"}".to_owned(), codes::BAD_JWT_RULE, ".jwksUri"),
        ("{jwksUri: \"https://i/a b\"}".to_owned(), codes::BAD_JWT_RULE, ".jwksUri"),
        (format!("{{issuer: i, jwksUri: \"https://i\", jwks: {}}}", keys(&public())), codes::BAD_JWT_RULE, ".jwksUri"),
        ("{issuer: i, jwks: nonsense}".to_owned(), codes::BAD_JWKS, ".jwks"),
        (
            format!("{{issuer: i, jwks: {}}}", keys(&json!({"kty": "RSA", "n": "AQAB", "e": "AQAB"}))),
            codes::BAD_JWKS,
            ".jwks",
        ),
        (format!("{{{https}, audiences: [\"\"]}}"), codes::EMPTY_VALUE, ".audiences[0]"),
        (format!("{{{https}, fromParams: [a, \"\"]}}"), codes::EMPTY_VALUE, ".fromParams[1]"),
        (format!("{{{https}, fromCookies: [\"\"]}}"), codes::EMPTY_VALUE, ".fromCookies[0]"),
        (format!("{{{https}, fromHeaders: [{{prefix: x}}]}}"), codes::BAD_JWT_RULE, ".fromHeaders[0].name"),
        (format!("{{{https}, outputPayloadToHeader: \"a b\"}}"), codes::BAD_JWT_RULE, ".outputPayloadToHeader"),
        (format!("{{{https}, outputPayloadToHeader: Host}}"), codes::BAD_JWT_RULE, ".outputPayloadToHeader"),
        (
            format!("{{{https}, outputClaimToHeaders: [{{header: x}}]}}"),
            codes::BAD_JWT_RULE,
            ".outputClaimToHeaders[0].claim",
        ),
        (
            format!("{{{https}, outputClaimToHeaders: [{{claim: sub}}]}}"),
            codes::BAD_JWT_RULE,
            ".outputClaimToHeaders[0].header",
        ),
        (format!("{{{https}, timeout: soon}}"), codes::BAD_JWT_RULE, ".timeout"),
        (format!("{{{https}, timeout: 0s}}"), codes::BAD_JWT_RULE, ".timeout"),
        (format!("{{{https}, audience: a}}"), codes::UNKNOWN_FIELD, ".audience"),
        (format!("{{{https}, audiences: a}}"), codes::WRONG_TYPE, ".audiences"),
    ] {
        trips(&rule(&written), code, &format!("spec.jwtRules[0]{field}"));
    }
    let many = vec!["a"; 65].join(", ");
    trips(&rule(&format!("{{{https}, audiences: [{many}]}}")), codes::TOO_MANY, "spec.jwtRules[0].audiences");
}

#[test]
fn attachments_are_judged_as_an_authorization_policys() {
    let service = "{kind: Service, group: \"\", name: s}";
    let both = format!("{{selector: {{matchLabels: {{app: x}}}}, targetRefs: [{service}]}}");
    trips(&object(&both), codes::SELECTOR_AND_TARGET, "spec.targetRefs");
    trips(
        &object("{targetRefs: [{kind: Service, group: \"\"}]}"),
        codes::TARGET_WITHOUT_NAME,
        "spec.targetRefs[0].name",
    );
    trips(&object("{targetRefs: [{kind: Pod, name: s}]}"), codes::TARGET_KIND, "spec.targetRefs[0].kind");
    let crossing = "{targetRefs: [{kind: Service, name: s, namespace: b}]}";
    trips(&object(crossing), codes::TARGET_NAMESPACE, "spec.targetRefs[0].namespace");
    trips(&object("{selector: {matchLabels: {\"\": x}}}"), codes::EMPTY_SELECTOR_KEY, "spec.selector.matchLabels[]");
    trips(
        &object("{selector: {matchLabels: {app: \"*\"}}}"),
        codes::SELECTOR_WILDCARD,
        "spec.selector.matchLabels[app]",
    );
}

#[test]
fn secrets_in_a_key_set_are_warned_of_and_never_shown() {
    let mut private = public();
    private["d"] = json!("c2VjcmV0LXBhcnQ");
    let text = rule(&format!("{{issuer: i, jwks: {}}}", keys(&private)));
    assert_eq!(found(&text), [(codes::PRIVATE_KEY, "spec.jwtRules[0].jwks".to_owned())]);
    let loaded = load_text("mesh.yaml", &text);
    assert!(!loaded.has_errors() && loaded.objects[0].rejection.is_none());
    assert!(!loaded.diagnostics[0].to_string().contains("c2VjcmV0LXBhcnQ"));
    let symmetric = json!({"keys": [public(), {"kty": "oct", "k": "c2VjcmV0"}]});
    let text = rule(&format!("{{issuer: i, jwks: '{symmetric}'}}"));
    let codes_found: Vec<_> = found(&text).into_iter().map(|(code, _)| code).collect();
    assert_eq!(codes_found, [codes::PRIVATE_KEY, codes::BAD_JWKS]);
}

#[test]
fn a_mesh_config_says_where_keys_may_come_from() {
    let config = |ranges: &str| {
        format!(
            "apiVersion: ambit.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: m}}\nspec: {{jwksAllowedRanges: {ranges}}}\n"
        )
    };
    passes(&config("[10.244.0.0/16, 127.0.0.1, \"fd00::/8\"]"));
    for bad in ["[10.244.0.0/33]", "[localhost]", "[\"\"]"] {
        trips(&config(bad), codes::BAD_MESH_CONFIG, "spec.jwksAllowedRanges[0]");
    }
}
