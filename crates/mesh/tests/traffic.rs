//! TrafficPolicies and XBackendTrafficPolicies: where they are enforced, what goes on counting, and what is said of those
//! that do nothing.

mod support;

use std::sync::Arc;

use ambit_api::{
    BackendTrafficPolicy, Severity, TrafficPolicy,
    authorization_policy::PolicyTargetReference,
    backend_traffic_policy::{BackendTarget, BackendTrafficPolicySpec, BudgetDetails, RetryConstraint},
    traffic_policy::{Fault, RateLimit, TrafficPolicySpec},
};
use ambit_mesh::{
    Index, Store,
    findings::{self, codes},
    inputs::{AllowedNamespaces, Change, Settings},
    retry_budgets::RetryPolicy,
    traffic::TrafficRules,
    view::{ServiceKey, traffic::ServiceTraffic},
};
use ambit_policy::Options;
use ambit_xds::workload::AppProtocol;
use support::{gateway, name, namespace, service};

const GATEWAY: &str = "gateway.networking.k8s.io";

fn object(full_name: &str, targets: &[(&str, &str, &str)], limits: Vec<RateLimit>) -> TrafficPolicy {
    let full_name = name(full_name);
    let target = |(group, kind, name): &(&str, &str, &str)| PolicyTargetReference {
        group: (*group).into(),
        kind: (*kind).into(),
        name: (*name).into(),
        namespace: String::new(),
    };
    TrafficPolicy {
        namespace: full_name.namespace.to_string(),
        name: full_name.name.to_string(),
        spec: TrafficPolicySpec {
            target_refs: targets.iter().map(target).collect(),
            rate_limits: limits,
            faults: Vec::<Fault>::new(),
        },
    }
}

fn limit(requests: u32) -> Vec<RateLimit> {
    vec![RateLimit { requests, interval: "1h".into(), ..RateLimit::default() }]
}

fn put(object: TrafficPolicy) -> Change {
    Change::TrafficPolicy(name(&format!("{}/{}", object.namespace, object.name)), Some(TrafficRules::new(object)))
}

fn budget(full_name: &str, created: Option<&str>, service: &str, percent: Option<u32>) -> Change {
    let full = name(full_name);
    let budget = percent.map(|percent| BudgetDetails { percent: Some(percent), ..BudgetDetails::default() });
    let object = BackendTrafficPolicy {
        namespace: full.namespace.to_string(),
        name: full.name.to_string(),
        created: created.map(Into::into),
        spec: BackendTrafficPolicySpec {
            target_refs: vec![BackendTarget { group: String::new(), kind: "Service".into(), name: service.into() }],
            retry_constraint: budget.map(|budget| RetryConstraint { budget: Some(budget), min_retry_rate: None }),
            session_persistence: None,
        },
    };
    Change::RetryPolicy(full, Some(RetryPolicy::new(object)))
}

/// Waypoint `a/w` for everything with services `a/s` and `a/t`.
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

/// What records say of the limits of `a/s`, `a/t` and workloads.
fn limits(store: &Store) -> [Vec<String>; 3] {
    let view = store.load();
    let bundle = view.waypoint("a", "w").expect("the waypoint");
    let of = |traffic: Option<&Arc<ServiceTraffic>>| {
        let policies = traffic.into_iter().flat_map(|traffic| traffic.policies.iter());
        let named = policies.flat_map(|policy| policy.limits.iter().map(|limit| limit.refusal.to_string()));
        named
            .map(|refusal| refusal.replace("TrafficPolicy ", "").replace(" rate limit 0: no token is left", ""))
            .collect()
    };
    [of(bundle.traffic.get(&key("s"))), of(bundle.traffic.get(&key("t"))), of(bundle.workload_traffic.as_ref())]
}

/// Percentages of the budgets of `a/s` and `a/t`: of a hundred requests, so many may be tried again.
fn budgets(store: &Store) -> [Option<usize>; 2] {
    let view = store.load();
    let bundle = view.waypoint("a", "w").expect("the waypoint");
    ["s", "t"].map(|service| {
        let budget = bundle.retry_budgets.get(&key(service))?;
        // An hour that nothing else counts in.
        let now = 3_600_000;
        (0..100).for_each(|_| budget.request(now));
        Some((0..200).filter(|_| budget.take(now)).count())
    })
}

#[test]
fn they_are_enforced_where_their_targets_are() {
    let (mut index, store) = started([
        put(object("a/2", &[("", "Service", "s")], limit(1))),
        put(object("a/1", &[(GATEWAY, "Gateway", "w")], limit(1))),
        put(object("istio-system/3", &[(GATEWAY, "GatewayClass", "istio-waypoint")], limit(1))),
        put(object("a/4", &[(GATEWAY, "GatewayClass", "istio-waypoint")], limit(1))),
        put(object("a/5", &[], limit(1))),
        put(object("b/6", &[("", "Service", "s")], limit(1))),
    ]);
    let everywhere = ["`a/1`", "`istio-system/3`"];
    assert_eq!(limits(&store), [vec!["`a/1`", "`a/2`", "`istio-system/3`"], everywhere.to_vec(), everywhere.to_vec()]);
    store.apply(&index.apply([Change::TrafficPolicy(name("a/1"), None)])).expect("readable");
    assert_eq!(limits(&store), [vec!["`a/2`", "`istio-system/3`"], vec!["`istio-system/3`"], vec!["`istio-system/3`"]]);
    let again = put(object("a/2", &[("", "Service", "s")], limit(1)));
    assert_eq!(index.apply([again]), [], "the same again changes nothing");
}

#[test]
fn only_a_changed_policy_begins_its_buckets_anew() {
    let (mut index, store) = started([
        put(object("a/1", &[("", "Service", "s")], limit(1))),
        put(object("a/2", &[("", "Service", "s")], limit(1))),
        budget("a/b", None, "s", Some(0)),
    ]);
    let bundle = |store: &Store| Arc::clone(store.load().waypoint("a", "w").expect("the waypoint"));
    let before = bundle(&store);
    store.apply(&index.apply([Change::Service(name("a/t"), None)])).expect("readable");
    let same = bundle(&store);
    assert!(Arc::ptr_eq(&before.traffic[&key("s")], &same.traffic[&key("s")]));
    assert!(Arc::ptr_eq(&before.retry_budgets[&key("s")], &same.retry_budgets[&key("s")]));
    store.apply(&index.apply([put(object("a/2", &[("", "Service", "s")], limit(2)))])).expect("readable");
    let [old, new] = [&before, &bundle(&store)].map(|bundle| Arc::clone(&bundle.traffic[&key("s")]));
    assert!(Arc::ptr_eq(&old.policies[0], &new.policies[0]), "it isn't the one that changed");
    assert!(!Arc::ptr_eq(&old.policies[1], &new.policies[1]));
}

#[test]
fn one_that_is_rejected_closes_what_it_targets() {
    let rejected = TrafficRules::rejected(object("a/1", &[("", "Service", "s")], vec![]), "a reason");
    let mut index = Index::new(Settings::default());
    let store = Store::new(Options::default());
    let change = Change::TrafficPolicy(name("a/1"), Some(rejected));
    let nack = store.apply(&index.apply(mesh().into_iter().chain([change]))).expect_err("refused");
    assert!(nack.to_string().contains("TrafficPolicy `a/1` was rejected: a reason"), "{nack}");
    let view = store.load();
    let bundle = view.waypoint("a", "w").expect("the waypoint");
    let facts = ambit_policy::ConnectionFacts::new([10, 244, 0, 9].into(), [10, 96, 0, 10].into(), 80);
    let request = ambit_policy::RequestFacts::new("GET", "/", "s");
    let decision = |service| bundle.services[&key(service)].for_connection(&facts).decide(&request);
    assert!(!decision("s").is_allowed() && decision("t").is_allowed());
}

#[test]
fn the_oldest_policy_of_retries_counts() {
    let minimum = 10;
    let (mut index, store) = started([
        budget("a/file", None, "s", Some(1)),
        budget("a/new", Some("2026-02-01T00:00:00Z"), "s", Some(30)),
        budget("a/old", Some("2026-01-01T00:00:00Z"), "s", Some(50)),
        budget("a/silent", Some("2025-01-01T00:00:00Z"), "s", None),
        budget("b/foreign", Some("2025-01-01T00:00:00Z"), "s", Some(70)),
    ]);
    assert_eq!(budgets(&store), [Some(50 + minimum), None]);
    let found = findings::findings(index.inputs());
    let shadowed: Vec<_> = found
        .iter()
        .filter(|finding| finding.code == codes::SHADOWED_BACKEND_TRAFFIC_POLICY)
        .map(|finding| finding.object.name.as_str())
        .collect();
    assert_eq!(shadowed, ["file", "new"]);
    store.apply(&index.apply([Change::RetryPolicy(name("a/old"), None)])).expect("readable");
    assert_eq!(budgets(&store), [Some(30 + minimum), None]);
    let Change::RetryPolicy(_, Some(policy)) = budget("a/new", Some("2026-02-01T00:00:00Z"), "s", Some(30)) else {
        panic!("a policy")
    };
    let rejected = RetryPolicy::rejected(policy.get().clone());
    store.apply(&index.apply([Change::RetryPolicy(name("a/new"), Some(rejected))])).expect("readable");
    assert_eq!(budgets(&store), [Some(0), None], "what can't be read allows none");
}

#[test]
fn findings_tell_of_those_that_do_nothing() {
    let mut tcp = service("x", &[("istio.io/use-waypoint", "w")]);
    tcp.ports.iter_mut().for_each(|port| port.protocol = AppProtocol::Tcp);
    let (index, _) = started([
        put(object("a/fine", &[("", "Service", "s")], limit(1))),
        put(object("a/nothing", &[], limit(1))),
        put(object("a/empty", &[("", "Service", "s")], vec![])),
        put(object("a/typo", &[("", "Service", "missing")], limit(1))),
        put(object("a/class", &[(GATEWAY, "GatewayClass", "istio-waypoint")], limit(1))),
        Change::Service(name("a/open"), Some(service("x", &[]))),
        put(object("a/unbound", &[("", "Service", "open")], limit(1))),
        Change::Service(name("a/tcp"), Some(tcp)),
        put(object("a/streams", &[("", "Service", "tcp")], limit(1))),
        put(object("nowhere/1", &[(GATEWAY, "Gateway", "w")], limit(1))),
        budget("a/good", None, "s", Some(1)),
        budget("a/lost", None, "missing", Some(1)),
    ]);
    let found = findings::findings(index.inputs());
    let of = |object: &str| -> Vec<_> {
        let kinds = ["TrafficPolicy", "XBackendTrafficPolicy"];
        let named = found.iter().filter(|f| f.object.name == object && kinds.contains(&f.object.kind.as_str()));
        named.map(|finding| (finding.severity, finding.code, finding.field.as_str())).collect()
    };
    let target = "spec.targetRefs[0].name";
    assert_eq!(of("fine"), []);
    assert_eq!(of("good"), []);
    assert_eq!(of("nothing"), [(Severity::Error, codes::NOT_ENFORCED, "metadata.name")]);
    assert_eq!(of("empty"), [(Severity::Warning, codes::TRAFFIC_WITHOUT_EFFECT, "spec")]);
    assert_eq!(of("typo"), [(Severity::Error, codes::TARGET_NOT_FOUND, target)]);
    assert_eq!(of("class"), [(Severity::Error, codes::NOT_ENFORCED, target)]);
    assert_eq!(of("unbound"), [(Severity::Error, codes::NOT_ENFORCED, target)]);
    assert_eq!(of("streams"), [(Severity::Warning, codes::TRAFFIC_WITHOUT_EFFECT, target)]);
    assert_eq!(of("lost"), [(Severity::Error, codes::TARGET_NOT_FOUND, target)]);
    assert!(of("1").contains(&(Severity::Error, codes::UNKNOWN_NAMESPACE, "metadata.namespace")));
}
