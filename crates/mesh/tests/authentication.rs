//! RequestAuthentications: where they are enforced, the keys that come with them, and what is said of those that do nothing.

mod support;

use std::sync::Arc;

use ambit_api::{
    RequestAuthentication, Severity,
    authorization_policy::PolicyTargetReference,
    request_authentication::{JwtRule, KeySource, RequestAuthenticationSpec},
};
use ambit_mesh::{
    Index, Store,
    authentication::{TokenRules, key_sources},
    findings::{self, codes},
    inputs::{AllowedNamespaces, Change, Settings},
    view::{Location, ServiceKey},
};
use ambit_policy::Options;
use support::{gateway, name, namespace, service};

const KEYS: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc"}]}"#;
const GATEWAY: &str = "gateway.networking.k8s.io";

fn object(full_name: &str, targets: &[(&str, &str, &str)], rules: Vec<JwtRule>) -> RequestAuthentication {
    let full_name = name(full_name);
    let target = |(group, kind, name): &(&str, &str, &str)| PolicyTargetReference {
        group: (*group).into(),
        kind: (*kind).into(),
        name: (*name).into(),
        namespace: String::new(),
    };
    RequestAuthentication {
        namespace: full_name.namespace.to_string(),
        name: full_name.name.to_string(),
        spec: RequestAuthenticationSpec {
            target_refs: targets.iter().map(target).collect(),
            jwt_rules: rules,
            ..RequestAuthenticationSpec::default()
        },
    }
}

fn put(object: RequestAuthentication) -> Change {
    let full_name = name(&format!("{}/{}", object.namespace, object.name));
    Change::RequestAuthentication(full_name, Some(TokenRules::new(object)))
}

fn inline(issuer: &str) -> JwtRule {
    JwtRule { issuer: issuer.into(), jwks: KEYS.into(), ..JwtRule::default() }
}

fn fetched(uri: &str) -> JwtRule {
    JwtRule { issuer: "https://i".into(), jwks_uri: uri.into(), ..JwtRule::default() }
}

/// Waypoint `a/w` with services `a/s` and `a/t`.
fn mesh() -> Vec<Change> {
    let bound = |vip: u8| {
        let mut service = service("x", &[("istio.io/use-waypoint", "w")]);
        service.vips = vec![[10, 96, 0, vip].into()];
        Some(service)
    };
    vec![
        namespace("a", &[("istio.io/dataplane-mode", "ambient")]),
        Change::Gateway(name("a/w"), Some(gateway(&[("istio.io/waypoint-for", "all")], AllowedNamespaces::Same))),
        Change::Service(name("a/s"), bound(10)),
        Change::Service(name("a/t"), bound(11)),
    ]
}

fn started(changes: impl IntoIterator<Item = Change>) -> (Index, Arc<Store>) {
    let mut index = Index::new(Settings::default());
    let store = Store::new(Options::default());
    store.apply(&index.apply(mesh().into_iter().chain(changes))).expect("readable");
    (index, store)
}

fn key(service: &str) -> ServiceKey {
    ServiceKey { namespace: "a".into(), hostname: format!("{service}.a.svc.cluster.local").into() }
}

/// The issuers that are believed for `a/s`, for `a/t` and for workloads.
fn believed(store: &Store) -> [Vec<String>; 3] {
    let view = store.load();
    let bundle = view.waypoint("a", "w").expect("the waypoint");
    let of = |authentication: Option<&Arc<ambit_mesh::view::Authentication>>| {
        let rules = authentication.into_iter().flat_map(|authentication| authentication.rules.iter());
        rules.map(|rule| rule.issuer.as_deref().unwrap_or("any").to_owned()).collect()
    };
    let service = |name| of(bundle.authentications.get(&key(name)));
    [service("s"), service("t"), of(bundle.workload_authentication.as_ref())]
}

#[test]
fn they_are_enforced_where_their_targets_are() {
    let (mut index, store) = started([
        put(object("a/2", &[("", "Service", "s")], vec![inline("z"), inline("b")])),
        put(object("a/1", &[(GATEWAY, "Gateway", "w")], vec![inline("c")])),
        put(object("istio-system/3", &[(GATEWAY, "GatewayClass", "istio-waypoint")], vec![inline("a")])),
        put(object("a/4", &[(GATEWAY, "GatewayClass", "istio-waypoint")], vec![inline("not from here")])),
        put(object("a/5", &[], vec![inline("nowhere")])),
        put(object("b/6", &[("", "Service", "s")], vec![inline("another namespace")])),
    ]);
    assert_eq!(believed(&store), [vec!["a", "b", "c", "z"], vec!["a", "c"], vec!["a", "c"]], "by issuer");
    let view = store.load();
    let bundle = view.waypoint("a", "w").expect("the waypoint");
    let locations = &bundle.authentications[&key("s")].locations;
    let bearer = Location::Header { name: "authorization".into(), prefix: "Bearer ".into() };
    assert_eq!(**locations, [bearer, Location::Parameter("access_token".into())], "each once");

    let responses = index.apply([Change::RequestAuthentication(name("a/1"), None)]);
    store.apply(&responses).expect("readable");
    assert_eq!(believed(&store), [vec!["a", "b", "z"], vec!["a"], vec!["a"]]);
}

#[test]
fn fetched_keys_come_with_their_rules_and_only_a_change_is_told() {
    let source = KeySource::Uri("https://i/keys".into());
    let (mut index, store) =
        started([put(object("a/1", &[("", "Service", "s")], vec![inline("a"), fetched("https://i/keys")]))]);
    assert_eq!(key_sources(index.inputs()).into_iter().collect::<Vec<_>>(), std::slice::from_ref(&source));
    let outcome = |store: &Store| {
        let view = store.load();
        let rules = &view.waypoint("a", "w").expect("the waypoint").authentications[&key("s")].rules;
        rules[1].keys.as_ref().map(|keys| keys.keys.len()).map_err(ToString::to_string)
    };
    assert_eq!(outcome(&store), Err("the keys haven't been fetched yet".into()));
    let generation = |store: &Store| store.load().waypoint("a", "w").expect("it").authentications[&key("s")].generation;
    let first = generation(&store);
    for (fetched, expected) in [(Err("no answer".into()), Err("no answer".to_owned())), (Ok(KEYS.into()), Ok(1))] {
        let responses = index.apply([Change::KeySet(source.clone(), Some(fetched))]);
        assert_eq!(responses.len(), 1);
        store.apply(&responses).expect("readable");
        assert_eq!(outcome(&store), expected);
    }
    assert_ne!(generation(&store), first);
    let known = generation(&store);
    assert_eq!(index.apply([Change::KeySet(source, Some(Ok(KEYS.into())))]), [], "the same keys again");
    // A change of something else leaves them as they are.
    store.apply(&index.apply([Change::Service(name("a/t"), None)])).expect("readable");
    assert_eq!(generation(&store), known);
}

#[test]
fn one_that_is_rejected_closes_what_it_targets() {
    let rejected = TokenRules::rejected(object("a/1", &[("", "Service", "s")], vec![]), "a reason");
    let mut index = Index::new(Settings::default());
    let store = Store::new(Options::default());
    let change = Change::RequestAuthentication(name("a/1"), Some(rejected));
    let nack = store.apply(&index.apply(mesh().into_iter().chain([change]))).expect_err("refused");
    assert!(nack.to_string().contains("RequestAuthentication `a/1` was rejected: a reason"), "{nack}");
    let view = store.load();
    let bundle = view.waypoint("a", "w").expect("the waypoint");
    let facts = ambit_policy::ConnectionFacts::new([10, 244, 0, 9].into(), [10, 96, 0, 10].into(), 80);
    let request = ambit_policy::RequestFacts::new("GET", "/", "s");
    let decision = |service| bundle.services[&key(service)].for_connection(&facts).decide(&request);
    assert!(!decision("s").is_allowed() && decision("t").is_allowed());
    assert_eq!(key_sources(index.inputs()).len(), 0, "nothing is fetched for it");
}

#[test]
fn findings_tell_of_those_that_do_nothing() {
    let (index, _) = started([
        put(object("a/fine", &[("", "Service", "s")], vec![inline("i")])),
        put(object("a/namespace", &[], vec![inline("i")])),
        put(object("a/empty", &[("", "Service", "s")], vec![])),
        put(object("a/typo", &[("", "Service", "missing")], vec![inline("i")])),
        put(object("a/class", &[(GATEWAY, "GatewayClass", "istio-waypoint")], vec![inline("i")])),
        Change::Service(name("a/open"), Some(service("x", &[]))),
        put(object("a/unbound", &[("", "Service", "open")], vec![inline("i")])),
        put(object("nowhere/1", &[(GATEWAY, "Gateway", "w")], vec![inline("i")])),
    ]);
    let found = findings::findings(index.inputs());
    let found: Vec<_> = found.iter().filter(|finding| finding.object.kind == "RequestAuthentication").collect();
    let of = |object: &str| -> Vec<_> {
        let named = found.iter().filter(|finding| finding.object.name == object);
        named.map(|finding| (finding.severity, finding.code, finding.field.as_str())).collect()
    };
    assert_eq!(of("fine"), []);
    assert_eq!(of("namespace"), [(Severity::Warning, codes::TOKENS_UNUSED, "metadata.name")]);
    assert_eq!(of("empty"), [(Severity::Warning, codes::TOKENS_UNUSED, "spec.jwtRules")]);
    assert_eq!(of("typo"), [(Severity::Error, codes::TARGET_NOT_FOUND, "spec.targetRefs[0].name")]);
    assert_eq!(of("class"), [(Severity::Error, codes::NOT_ENFORCED, "spec.targetRefs[0].name")]);
    assert_eq!(of("unbound"), [(Severity::Error, codes::NOT_ENFORCED, "spec.targetRefs[0].name")]);
    assert!(of("1").contains(&(Severity::Error, codes::UNKNOWN_NAMESPACE, "metadata.namespace")));
}
