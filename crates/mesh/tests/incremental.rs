//! The incremental forms give what a fresh start gives, after any sequence of changes.

mod support;

use std::collections::BTreeMap;

use ambit_api::{
    BackendTrafficPolicy, DestinationRule, PeerAuthentication, RequestAuthentication, TrafficPolicy,
    authorization_policy::{Action, PolicyTargetReference, WorkloadSelector},
    backend_traffic_policy::{BackendTarget, BackendTrafficPolicySpec, RetryConstraint},
    destination_rule::{DestinationRuleSpec, Subset},
    mesh_config::Normalization,
    peer_authentication::{Mode, MutualTls, PeerAuthenticationSpec},
    request_authentication::{JwtRule, KeySource, RequestAuthenticationSpec},
    traffic_policy::{RateLimit, TrafficPolicySpec},
};
use ambit_mesh::{
    Index, Store,
    authentication::TokenRules,
    derive::{Resources, derive},
    destinations,
    inputs::{AllowedNamespaces, Change, LabelSelector, NamespacedName, Settings, TargetPort},
    retry_budgets::RetryPolicy,
    traffic::TrafficRules,
};
use ambit_policy::{ConnectionFacts, Options};
use ambit_xds::DeltaResponse;
use proptest::prelude::*;
use support::{gateway, name, namespace, pod, policy, port, put, selecting, service, targeting};

const NAMESPACES: [&str; 3] = ["a", "b", "istio-system"];
const WAYPOINT_LABELS: [&[(&str, &str)]; 7] = [
    &[],
    &[("istio.io/use-waypoint", "w1")],
    &[("istio.io/use-waypoint", "w2"), ("istio.io/use-waypoint-namespace", "a")],
    &[("istio.io/use-waypoint", "none")],
    &[("istio.io/use-waypoint", "w1"), ("ambit.dev/waypoint-guard", "off")],
    &[("istio.io/use-waypoint", "w2"), ("ambit.dev/missing-waypoint", "bypass")],
    &[("ambit.dev/missing-waypoint", "bypass"), ("ambit.dev/waypoint-guard", "off")],
];

fn any_name(names: &'static [&'static str]) -> impl Strategy<Value = NamespacedName> {
    (prop::sample::select(&NAMESPACES[..]), prop::sample::select(names)).prop_map(|(ns, n)| NamespacedName::new(ns, n))
}

fn any_namespace() -> impl Strategy<Value = Change> {
    let mode = prop::option::of(prop::sample::select(&["ambient", "none"][..]));
    (prop::sample::select(&NAMESPACES[..]), 0..WAYPOINT_LABELS.len(), mode, prop::bool::weighted(0.8)).prop_map(
        |(name, waypoint, mode, present)| {
            let mut pairs = WAYPOINT_LABELS[waypoint].to_vec();
            pairs.extend(mode.map(|mode| ("istio.io/dataplane-mode", mode)));
            if present { namespace(name, &pairs) } else { Change::Namespace(name.into(), None) }
        },
    )
}

fn any_service() -> impl Strategy<Value = Change> {
    // One may have a waypoint's name.
    let ports = prop::sample::select(vec![TargetPort::Number(8080), TargetPort::Name("http".into())]);
    (
        any_name(&["s1", "s2", "w1"]),
        0..WAYPOINT_LABELS.len(),
        prop::sample::select(&["x", "y"][..]),
        ports,
        prop::bool::weighted(0.8),
    )
        .prop_map(|(name, waypoint, app, target, present)| {
            let mut object = service(app, WAYPOINT_LABELS[waypoint]);
            object.ports.push(port(81, target));
            Change::Service(name, present.then_some(object))
        })
}

fn any_pod() -> impl Strategy<Value = Change> {
    let app = prop::sample::select(&["x", "y"][..]);
    (any_name(&["p1", "p2"]), app, 0..3u8, any::<(bool, bool, bool)>(), prop::bool::weighted(0.8)).prop_map(
        |(name, app, generation, (ready, has_ip, waypoint), present)| {
            let mut object = pod(&format!("uid/{name}#{generation}"), app, 0);
            // Each pod name has its own address.
            let last = 1 + NAMESPACES.iter().position(|ns| **ns == *name.namespace).unwrap_or(0) * 2;
            let last = u8::try_from(last).unwrap_or(0) + u8::from(&*name.name == "p2");
            object.ip = has_ip.then_some([10, 244, 0, last].into());
            object.ready = ready;
            if ready {
                object.labels.insert("version".to_owned(), "v1".to_owned());
            }
            object.named_ports = BTreeMap::from([("http".to_owned(), 9090)]);
            object.waypoint = (waypoint && &*name.name == "p2").then(|| "w1".to_owned());
            Change::Pod(name, present.then_some(object))
        },
    )
}

fn any_gateway() -> impl Strategy<Value = Change> {
    let traffic = prop::option::of(prop::sample::select(&["service", "all", "workload", "odd"][..]));
    let labelled = AllowedNamespaces::Selector(LabelSelector {
        match_labels: support::labels(&[("istio.io/dataplane-mode", "ambient")]),
        ..LabelSelector::default()
    });
    let allowed = [AllowedNamespaces::Same, AllowedNamespaces::All, AllowedNamespaces::None, labelled];
    let allowed = prop::sample::select(allowed.to_vec());
    (any_name(&["w1", "w2"]), traffic, allowed, any::<bool>(), prop::bool::weighted(0.8)).prop_map(
        |(name, traffic, allowed, waypoint, present)| {
            let pairs: Vec<_> = traffic.map(|value| ("istio.io/waypoint-for", value)).into_iter().collect();
            let mut object = gateway(&pairs, allowed);
            if !waypoint {
                object.class = "istio".into();
            }
            Change::Gateway(name, present.then_some(object))
        },
    )
}

fn any_policy() -> impl Strategy<Value = Change> {
    let action = prop::sample::select(vec![Action::Allow, Action::Deny, Action::Audit]);
    let path = prop::option::of(prop::sample::select(&["/v1", "/v2/*"][..]));
    (any_name(&["q1", "q2"]), 0..8usize, action, path, prop::bool::weighted(0.8)).prop_map(
        |(name, shape, action, path, present)| {
            let base = policy(&name.to_string(), action, Some("cluster.local/ns/a/sa/c"), path);
            let gateway_group = "gateway.networking.k8s.io";
            let object = match shape {
                0 => base,
                1 => selecting(base, &[("app", "x")]),
                2 => targeting(base, "", "Service", "s1"),
                3 => targeting(targeting(base, "core", "Service", "s2"), gateway_group, "Gateway", "w1"),
                4 => targeting(base, gateway_group, "GatewayClass", "istio-waypoint"),
                5 => selecting(base, &[("app", "y"), ("version", "v1")]),
                6 => selecting(base, &[("version", "v1")]),
                _ => selecting(base, &[]),
            };
            if present { put(object) } else { Change::Policy(name, None) }
        },
    )
}

fn any_peer_authentication() -> impl Strategy<Value = Change> {
    let mode = || prop::sample::select(vec![Mode::Unset, Mode::Permissive, Mode::Strict]);
    let port = prop::option::of((prop::sample::select(&["8080", "9090"][..]), mode()));
    (any_name(&["x1", "x2"]), mode(), any::<bool>(), port, prop::bool::weighted(0.7)).prop_map(
        |(name, mode, selects, port, present)| {
            let selector = selects.then(|| WorkloadSelector { match_labels: support::labels(&[("app", "x")]) });
            let ports = port.filter(|_| selects).map(|(port, mode)| (port.to_owned(), MutualTls { mode }));
            let object = PeerAuthentication {
                namespace: name.namespace.to_string(),
                name: name.name.to_string(),
                created: None,
                spec: PeerAuthenticationSpec {
                    selector,
                    mtls: Some(MutualTls { mode }),
                    port_level_mtls: ports.map(|entry| [entry].into()),
                },
            };
            Change::PeerAuthentication(name, present.then_some(object))
        },
    )
}

fn any_settings() -> impl Strategy<Value = Change> {
    let alias = prop::option::of(prop::sample::select(&["old.example", "older.example"][..]));
    let paths = prop::option::of(prop::sample::select(vec![Normalization::None, Normalization::Base]));
    (alias, paths).prop_map(|(alias, path_normalization)| {
        Change::Settings(Settings {
            trust_domain_aliases: alias.into_iter().map(str::to_owned).collect(),
            path_normalization,
            ..Settings::default()
        })
    })
}

fn any_request_authentication() -> impl Strategy<Value = Change> {
    (any_name(&["t1", "t2"]), 0_usize..4, prop::sample::select(SOURCES), prop::bool::weighted(0.7)).prop_map(
        |(name, shape, uri, present)| {
            let group = "gateway.networking.k8s.io";
            let (group, kind, target) = [
                ("", "Service", "s1"),
                (group, "Gateway", "w1"),
                (group, "GatewayClass", "istio-waypoint"),
                ("", "Service", "s2"),
            ][shape];
            let target = PolicyTargetReference {
                group: group.into(),
                kind: kind.into(),
                name: target.into(),
                namespace: String::new(),
            };
            let rule = JwtRule { issuer: "i".into(), jwks_uri: uri.into(), ..JwtRule::default() };
            let spec = RequestAuthenticationSpec {
                target_refs: vec![target],
                jwt_rules: vec![rule],
                ..RequestAuthenticationSpec::default()
            };
            let object =
                RequestAuthentication { namespace: name.namespace.to_string(), name: name.name.to_string(), spec };
            Change::RequestAuthentication(name, present.then(|| TokenRules::new(object)))
        },
    )
}

fn any_traffic_policy() -> impl Strategy<Value = Change> {
    (any_name(&["r1", "r2"]), 0_usize..4, 0_u32..3, prop::bool::weighted(0.7)).prop_map(
        |(name, shape, requests, present)| {
            let gateways = "gateway.networking.k8s.io";
            let (group, kind, target) = [
                ("", "Service", "s1"),
                (gateways, "Gateway", "w1"),
                (gateways, "GatewayClass", "istio-waypoint"),
                ("", "Service", "s2"),
            ][shape];
            let target = PolicyTargetReference {
                group: group.into(),
                kind: kind.into(),
                name: target.into(),
                namespace: String::new(),
            };
            let limit = RateLimit { requests: requests + 1, interval: "1s".into(), ..RateLimit::default() };
            let rate_limits = if requests == 0 { Vec::new() } else { vec![limit] };
            let spec = TrafficPolicySpec { target_refs: vec![target], rate_limits, faults: Vec::new() };
            let (namespace, short) = (name.namespace.to_string(), name.name.to_string());
            let object = TrafficPolicy { namespace, name: short, spec };
            Change::TrafficPolicy(name, present.then(|| TrafficRules::new(object)))
        },
    )
}

fn any_retry_policy() -> impl Strategy<Value = Change> {
    let service = prop::sample::select(&["s1", "s2", "missing"][..]);
    (any_name(&["b1", "b2"]), service, prop::option::of(0..3), any::<bool>(), prop::bool::weighted(0.7)).prop_map(
        |(name, service, created, constrains, present)| {
            let target = BackendTarget { group: String::new(), kind: "Service".into(), name: service.into() };
            let object = BackendTrafficPolicy {
                namespace: name.namespace.to_string(),
                name: name.name.to_string(),
                created: created.map(|day: i32| format!("2026-01-0{day}T00:00:00Z")),
                spec: BackendTrafficPolicySpec {
                    target_refs: vec![target],
                    retry_constraint: constrains.then(RetryConstraint::default),
                    session_persistence: None,
                },
            };
            Change::RetryPolicy(name, present.then(|| RetryPolicy::new(object)))
        },
    )
}

fn any_destination_rule() -> impl Strategy<Value = Change> {
    let host = prop::sample::select(&["s1", "s1.a.svc.cluster.local", "*.a.svc.cluster.local", "*"][..]);
    let export = prop::option::of(prop::sample::select(&[".", "a"][..]));
    (any_name(&["d1", "d2"]), host, export, prop::sample::select(&["x", "y"][..]), prop::bool::weighted(0.7)).prop_map(
        |(name, host, export, app, present)| {
            let labels = support::labels(&[("app", app)]);
            let spec = DestinationRuleSpec {
                host: host.to_owned(),
                export_to: export.map(str::to_owned).into_iter().collect(),
                subsets: vec![Subset { name: "v1".to_owned(), labels, ..Subset::default() }],
                ..DestinationRuleSpec::default()
            };
            let (namespace, own) = (name.namespace.to_string(), name.name.to_string());
            let rule = DestinationRule { namespace, name: own, created: None, spec };
            Change::DestinationRule(name, present.then(|| destinations::Rule::new(rule)))
        },
    )
}

fn any_keys() -> impl Strategy<Value = Change> {
    let outcome = prop::option::of(prop::sample::select(vec![Ok(support::arc("{}")), Err(support::arc("no answer"))]));
    (prop::sample::select(SOURCES), outcome)
        .prop_map(|(uri, outcome)| Change::KeySet(KeySource::Uri(uri.into()), outcome))
}

/// Where keys come from.
const SOURCES: &[&str] = &["https://one/keys", "https://two/keys"];

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        any_request_authentication(),
        any_traffic_policy(),
        any_retry_policy(),
        any_keys(),
        any_destination_rule(),
        any_peer_authentication(),
        any_settings(),
        any_namespace(),
        any_service(),
        any_service(),
        any_pod(),
        any_pod(),
        any_gateway(),
        any_policy(),
        any_policy()
    ]
}

fn merge(resources: &mut Resources, responses: &[DeltaResponse]) {
    for response in responses {
        let kind =
            [ambit_xds::MESH_TYPE, ambit_xds::ADDRESS_TYPE, ambit_xds::AUTHORIZATION_TYPE, ambit_xds::WAYPOINT_TYPE]
                .into_iter()
                .find(|kind| *kind == response.type_url)
                .expect("a known type");
        for name in &response.removed {
            assert!(resources.remove(&(kind, name.clone())).is_some(), "`{name}` was removed without being there");
        }
        for resource in &response.resources {
            let old = resources.insert((kind, resource.name.clone()), resource.clone());
            assert_ne!(old.as_ref(), Some(resource), "`{}` was sent again without a change", resource.name);
        }
    }
}

fn options() -> Options {
    Options::default()
}

/// All that a view says, as text, with verdicts in place of compiled policies.
fn picture(store: &Store) -> BTreeMap<String, String> {
    let view = store.load();
    let facts = ConnectionFacts::new([10, 244, 0, 99].into(), [10, 244, 0, 2].into(), 8080)
        .with_identity(Some("spiffe://cluster.local/ns/a/sa/c".parse().expect("an identity")));
    let mut lines = BTreeMap::new();
    for w in view.workloads() {
        let decision = w.policies.for_connection(&facts).decide_connection();
        let by_ip: Vec<_> = w.addresses.iter().map(|ip| view.workload_by_ip(*ip).map(|w| w.uid.clone())).collect();
        let line = format!(
            "{:?} {:?} {} {} {:?} {:?} {decision:?} {by_ip:?}",
            w.identity, w.addresses, w.hbone, w.healthy, w.services, w.guard
        );
        lines.insert(w.uid.to_string(), line);
    }
    for s in view.services() {
        let endpoints: Vec<_> = view.endpoints(&s.key).iter().map(|w| w.uid.clone()).collect();
        let named = view.services_by_hostname(&s.key.hostname).count();
        lines.insert(format!("{:?}", s.key), format!("{s:?} {endpoints:?} {named}"));
    }
    for ns in NAMESPACES {
        for w in ["w1", "w2"] {
            let Some(bundle) = view.waypoint(ns, w) else { continue };
            for (key, compiled) in &bundle.services {
                let decision = compiled.for_connection(&facts).decide_connection();
                let tokens = bundle.authentications.get(key).map(|tokens| format!("{:?}", tokens.rules));
                let traffic = bundle.traffic.get(key).map(|traffic| {
                    let limits = traffic.policies.iter().flat_map(|policy| policy.limits.iter());
                    limits.map(|limit| format!("{} {:?}", limit.refusal, limit.buckets.rate())).collect::<Vec<_>>()
                });
                let treated = bundle.destinations.get(key).map(|destination| {
                    let members = destination
                        .subset("v1")
                        .map(|subset| subset.members.iter().cloned().collect::<std::collections::BTreeSet<_>>());
                    format!("{:?} {:?} {members:?}", destination.closed, destination.treatment(80))
                });
                let retries = bundle.retry_budgets.get(key).map(|budget| format!("{budget:?}"));
                lines.insert(
                    format!("{ns}/{w}: {key:?}"),
                    format!("{decision:?} {tokens:?} {traffic:?} {treated:?} {retries:?}"),
                );
            }
        }
    }
    lines
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_sequence_of_changes_ends_where_a_fresh_start_does(
        batches in prop::collection::vec(prop::collection::vec(any_change(), 1..4), 1..24),
    ) {
        let mut index = Index::new(Settings::default());
        let mut merged = Resources::new();
        let store = Store::new(options());
        for batch in batches {
            let responses = index.apply(batch);
            merge(&mut merged, &responses);
            prop_assert_eq!(store.apply(&responses), Ok(()));

            let fresh = derive(index.inputs());
            prop_assert_eq!(&fresh, &merged);
            prop_assert_eq!(&fresh, index.resources());
        }
        let restarted = Store::new(options());
        prop_assert_eq!(restarted.apply(&index.snapshot()), Ok(()));
        prop_assert_eq!(picture(&store), picture(&restarted));
    }
}

#[test]
fn one_policy_edit_touches_one_bundle() {
    let mut index = Index::new(Settings::default());
    index.apply([
        namespace("a", &[]),
        Change::Gateway(name("a/w1"), Some(gateway(&[], AllowedNamespaces::Same))),
        Change::Service(name("a/s1"), Some(service("x", WAYPOINT_LABELS[1]))),
        Change::Pod(name("a/p1"), Some(pod("u", "x", 2))),
        put(targeting(policy("a/q", Action::Allow, None, Some("/v1")), "", "Service", "s1")),
    ]);
    let edit = targeting(policy("a/q", Action::Allow, None, Some("/v2")), "", "Service", "s1");
    let responses = index.apply([put(edit.clone())]);
    let names: Vec<_> = responses.iter().flat_map(|r| r.resources.iter().map(|r| r.name.as_str())).collect();
    assert_eq!(names, ["a/w1"]);
    assert_eq!(index.apply([put(edit)]), [], "the same again changes nothing");
}
