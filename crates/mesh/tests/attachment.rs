//! Every kind of attachment at every kind of enforcement point, and that proxies enforce what the one function says.

mod support;

use ambit_api::{AuthorizationPolicy, authorization_policy::Action};
use ambit_mesh::{
    Index, Store,
    attachment::{EnforcementPoint, ServedKind, Via, left_out_by_node_proxies},
    enforcement::enforce,
    inputs::{AllowedNamespaces, Change, Policy, Settings},
    view::ServiceKey,
};
use ambit_policy::{ConnectionFacts, Options, PathNormalization};
use support::{gateway, labels, name, namespace, pod, policy, put, selecting, service, targeting};

const ROOT: &str = "istio-system";
const GATEWAY: &str = "gateway.networking.k8s.io";
const SERVICE_ENTRY: &str = "networking.istio.io";

fn deny(full_name: &str) -> AuthorizationPolicy {
    policy(full_name, Action::Deny, None, None)
}

/// How a policy comes to be enforced for a Service, a ServiceEntry (both `a/s` at waypoint `a/w`) and a pod of `a`.
fn enforced(policy: &AuthorizationPolicy) -> [bool; 3] {
    let (w, s, pod_labels) = (name("a/w"), name("a/s"), labels(&[("app", "x"), ("v", "1")]));
    let waypoint = |kind| EnforcementPoint::Waypoint { gateway: &w, service: &s, kind };
    let pod = EnforcementPoint::NodeProxy { namespace: "a", labels: &pod_labels };
    [waypoint(ServedKind::Service), waypoint(ServedKind::ServiceEntry), pod]
        .map(|point| point.enforces(policy, ROOT).is_some())
}

#[test]
fn every_attachment_at_every_point() {
    let (none, service, entry, waypoint, pod) =
        ([false; 3], [true, false, false], [false, true, false], [true, true, false], [false, false, true]);
    for (what, policy, expected) in [
        ("a Service", targeting(deny("a/p"), "", "Service", "s"), service),
        ("a Service, core", targeting(deny("a/p"), "core", "Service", "s"), service),
        ("a Service of another group", targeting(deny("a/p"), "apps", "Service", "s"), none),
        ("another Service", targeting(deny("a/p"), "", "Service", "t"), none),
        ("a Service of another namespace", targeting(deny("b/p"), "", "Service", "s"), none),
        ("a Service from the root namespace", targeting(deny("istio-system/p"), "", "Service", "s"), none),
        ("a ServiceEntry", targeting(deny("a/p"), SERVICE_ENTRY, "ServiceEntry", "s"), entry),
        ("a ServiceEntry without its group", targeting(deny("a/p"), "", "ServiceEntry", "s"), none),
        ("the Gateway", targeting(deny("a/p"), GATEWAY, "Gateway", "w"), waypoint),
        ("another Gateway", targeting(deny("a/p"), GATEWAY, "Gateway", "v"), none),
        ("the class", targeting(deny("istio-system/p"), GATEWAY, "GatewayClass", "istio-waypoint"), waypoint),
        ("the class from another namespace", targeting(deny("a/p"), GATEWAY, "GatewayClass", "istio-waypoint"), none),
        ("another class", targeting(deny("istio-system/p"), GATEWAY, "GatewayClass", "istio"), none),
        ("its namespace", deny("a/p"), pod),
        ("another namespace", deny("b/p"), none),
        ("the mesh", deny("istio-system/p"), pod),
        ("pods", selecting(deny("a/p"), &[("app", "x")]), pod),
        ("pods by two labels", selecting(deny("a/p"), &[("app", "x"), ("v", "1")]), pod),
        ("other pods", selecting(deny("a/p"), &[("app", "y")]), none),
        ("pods of another namespace", selecting(deny("b/p"), &[("app", "x")]), none),
        ("pods of the mesh", selecting(deny("istio-system/p"), &[("app", "x")]), pod),
        ("pods by no label", selecting(deny("a/p"), &[]), pod),
    ] {
        assert_eq!(enforced(&policy), expected, "{what}");
    }
    let mut crossing = targeting(deny("b/p"), "", "Service", "s");
    crossing.spec.target_refs[0].namespace = "a".into();
    assert_eq!(enforced(&crossing), none, "references don't cross namespaces");
    let mut older = targeting(deny("a/p"), "", "Service", "s");
    older.spec.target_ref = older.spec.target_refs.pop();
    assert_eq!(enforced(&older), service, "the older form");
}

#[test]
fn via_says_how() {
    let (w, s) = (name("a/w"), name("a/s"));
    let point = EnforcementPoint::Waypoint { gateway: &w, service: &s, kind: ServedKind::Service };
    let both = targeting(targeting(deny("a/p"), "", "Service", "t"), GATEWAY, "Gateway", "w");
    assert_eq!(point.enforces(&both, ROOT).expect("enforced").to_string(), "targets Gateway a/w");
    let pod = EnforcementPoint::NodeProxy { namespace: "a", labels: &labels(&[]) };
    assert_eq!(pod.enforces(&deny("istio-system/p"), ROOT), Some(Via::Mesh));
    assert_eq!(pod.enforces(&deny("a/p"), ROOT), Some(Via::Namespace));
}

#[test]
fn node_proxies_leave_out_what_they_cant_enforce() {
    assert_eq!(left_out_by_node_proxies(&deny("a/p")), None);
    assert!(left_out_by_node_proxies(&policy("a/p", Action::Audit, None, None)).is_some());
    assert!(left_out_by_node_proxies(&policy("a/p", Action::Custom, None, None)).is_some());
    let mut dry_run = deny("a/p");
    dry_run.annotations.insert("istio.io/dry-run".into(), "true".into());
    assert!(left_out_by_node_proxies(&dry_run).is_some());
}

/// The mesh of these tests: service `a/s` at waypoint `a/w`, pod `a/p` behind it.
fn mesh(policies: Vec<Change>) -> (Index, std::sync::Arc<Store>) {
    let mut index = Index::new(Settings::default());
    let store = Store::new(Options::default());
    let objects = [
        namespace("a", &[("istio.io/dataplane-mode", "ambient")]),
        Change::Gateway(name("a/w"), Some(gateway(&[], AllowedNamespaces::Same))),
        Change::Service(name("a/s"), Some(service("x", &[("istio.io/use-waypoint", "w")]))),
        Change::Pod(name("a/p"), Some(pod("u", "x", 2))),
    ];
    let responses = index.apply(objects.into_iter().chain(policies));
    // What can't be enforced is also said; it is denied all the same.
    let _said = store.apply(&responses);
    (index, store)
}

#[test]
fn proxies_enforce_what_the_function_says() {
    let facts = ConnectionFacts::new([10, 0, 0, 9].into(), [10, 244, 0, 2].into(), 8080);
    for policy in [
        targeting(deny("a/q"), "", "Service", "s"),
        targeting(deny("a/q"), "", "Service", "t"),
        targeting(deny("a/q"), GATEWAY, "Gateway", "w"),
        targeting(deny("istio-system/q"), GATEWAY, "GatewayClass", "istio-waypoint"),
        targeting(deny("b/q"), "", "Service", "s"),
        deny("a/q"),
        deny("b/q"),
        deny("istio-system/q"),
        selecting(deny("a/q"), &[("app", "x")]),
        selecting(deny("a/q"), &[("app", "y")]),
        selecting(deny("istio-system/q"), &[("app", "x")]),
        policy("a/q", Action::Allow, Some("cluster.local/ns/z/sa/z"), None),
    ] {
        let (index, store) = mesh(vec![put(policy.clone())]);
        let view = store.load();
        let (w, s, pod_labels) = (name("a/w"), name("a/s"), labels(&[("app", "x")]));
        let waypoint = EnforcementPoint::Waypoint { gateway: &w, service: &s, kind: ServedKind::Service };
        let node_proxy = EnforcementPoint::NodeProxy { namespace: "a", labels: &pod_labels };
        let expected = |point: &EnforcementPoint<'_>| {
            let policies: Vec<_> = index.inputs().enforced_at(point).into_iter().map(|(policy, _)| policy).collect();
            let enforceable = policies.into_iter().map(Policy::enforceable);
            let enforced = enforce(enforceable, &Options::default(), PathNormalization::default());
            enforced.compiled.for_connection(&facts).decide_connection().verdict
        };
        let key = ServiceKey { namespace: "a".into(), hostname: "s.a.svc.cluster.local".into() };
        let at_waypoint = &view.waypoint("a", "w").expect("known").services[&key];
        let at_pod = &view.workload("u").expect("known").policies;
        assert_eq!(at_waypoint.for_connection(&facts).decide_connection().verdict, expected(&waypoint), "{policy:?}");
        assert_eq!(at_pod.for_connection(&facts).decide_connection().verdict, expected(&node_proxy), "{policy:?}");
    }
}

#[test]
fn a_rejected_policy_denies_what_it_targets_and_says_why() {
    let facts = ConnectionFacts::new([10, 0, 0, 9].into(), [10, 244, 0, 2].into(), 8080);
    let rejected = |policy: AuthorizationPolicy| {
        let full_name = name(&format!("{}/{}", policy.namespace, policy.name));
        Change::Policy(full_name, Some(Policy::rejected(policy, "spec.action: no such action")))
    };
    let allow = policy("a/q", Action::Allow, None, None);
    let (_, store) = mesh(vec![rejected(targeting(allow.clone(), "", "Service", "s"))]);
    let key = ServiceKey { namespace: "a".into(), hostname: "s.a.svc.cluster.local".into() };
    let view = store.load();
    let decision = view.waypoint("a", "w").expect("known").services[&key].for_connection(&facts).decide_connection();
    assert!(!decision.is_allowed() && decision.reason.contains("`a/q` was rejected: spec.action"), "{decision:?}");
    assert!(view.workload("u").expect("known").policies.for_connection(&facts).decide_connection().is_allowed());

    // At a node proxy even one that would be left out otherwise.
    for action in [Action::Allow, Action::Audit, Action::Custom] {
        let (_, store) = mesh(vec![rejected(selecting(policy("a/q", action, None, None), &[("app", "x")]))]);
        let decision = store.load().workload("u").expect("known").policies.for_connection(&facts).decide_connection();
        assert!(!decision.is_allowed() && decision.reason.contains("`a/q` was rejected"), "{decision:?}");
    }
}
