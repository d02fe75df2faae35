//! DestinationRules: for which services they hold, who belongs to their subsets, and what is said of those that do nothing.

mod support;

use std::collections::BTreeMap;

use ambit_api::{
    DestinationRule, Resource as Loaded, Severity,
    destination_rule::{DestinationRuleSpec, LoadBalancer, OutlierDetection, SimpleBalancing, Subset, TrafficPolicy},
    load_text,
};
use ambit_mesh::{
    Index, Store,
    destinations::Rule,
    findings::findings,
    inputs::{AllowedNamespaces, Change, Settings},
    view::{ServiceKey, destinations::Balancer},
};
use ambit_xds::{WAYPOINT_TYPE, waypoint::Bundle};
use prost::Message;
use support::{gateway, labels, name, namespace, pod, service};

fn rule(full_name: &str, host: &str, balancing: SimpleBalancing) -> DestinationRule {
    let full_name = name(full_name);
    let load_balancer = LoadBalancer { simple: Some(balancing), ..LoadBalancer::default() };
    DestinationRule {
        namespace: full_name.namespace.to_string(),
        name: full_name.name.to_string(),
        created: None,
        spec: DestinationRuleSpec {
            host: host.to_owned(),
            traffic_policy: Some(TrafficPolicy { load_balancer: Some(load_balancer), ..TrafficPolicy::default() }),
            ..DestinationRuleSpec::default()
        },
    }
}

fn put(rule: DestinationRule) -> Change {
    Change::DestinationRule(name(&format!("{}/{}", rule.namespace, rule.name)), Some(Rule::new(rule)))
}

/// Service `a/s` with pods `p1` and `p2`, at waypoint `w/w`.
fn mesh() -> Index {
    let mut index = Index::new(Settings::default());
    let waypoint = [("istio.io/use-waypoint", "w"), ("istio.io/use-waypoint-namespace", "w")];
    let mut one = pod("uid1", "x", 1);
    one.labels = labels(&[("app", "x"), ("version", "v1")]);
    index.apply([
        namespace("a", &[]),
        namespace("b", &[]),
        namespace("w", &[]),
        namespace("istio-system", &[]),
        Change::Gateway(name("w/w"), Some(gateway(&[], AllowedNamespaces::All))),
        Change::Service(name("a/s"), Some(service("x", &waypoint))),
        Change::Pod(name("a/p1"), Some(one)),
        Change::Pod(name("a/p2"), Some(pod("uid2", "x", 2))),
    ]);
    index
}

fn bundle(index: &Index) -> Bundle {
    let resource = &index.resources()[&(WAYPOINT_TYPE, "w/w".to_owned())];
    Bundle::decode(resource.value.as_slice()).expect("a bundle")
}

/// The rules for `a/s`, in order.
fn followed(index: &Index) -> Vec<String> {
    let settings = bundle(index).services[0].destination.clone();
    let rules = settings.map(|settings| settings.rules).unwrap_or_default();
    rules.iter().map(|rule| format!("{}/{}", rule.namespace, rule.name)).collect()
}

fn balancer(index: &Index) -> Option<Balancer> {
    let store = Store::new(ambit_policy::Options::default());
    store.apply(&index.snapshot()).expect("readable");
    let view = store.load();
    let key = ServiceKey { namespace: "a".into(), hostname: "s.a.svc.cluster.local".into() };
    let bundle = view.waypoint("w", "w").expect("a bundle");
    bundle.destinations.get(&key).map(|destination| destination.treatment(80).balancer.clone())
}

#[test]
fn the_waypoints_namespace_comes_before_the_services_before_the_root() {
    let mut index = mesh();
    assert_eq!(followed(&index), [""; 0]);
    let full = "s.a.svc.cluster.local";
    let mut expect = |change: Change, expected: &[&str]| {
        index.apply([change]);
        assert_eq!(followed(&index), expected);
        assert_eq!(*index.resources(), ambit_mesh::derive::derive(index.inputs()));
    };
    expect(put(rule("istio-system/r", full, SimpleBalancing::Random)), &["istio-system/r"]);
    expect(put(rule("b/r", full, SimpleBalancing::Random)), &["istio-system/r"]);
    expect(put(rule("a/r", "s", SimpleBalancing::Random)), &["a/r"]);
    expect(put(rule("a/z", "s", SimpleBalancing::Random)), &["a/r", "a/z"]);
    let mut older = rule("a/y", "s", SimpleBalancing::Random);
    older.created = Some("2026-01-01T00:00:00Z".to_owned());
    expect(put(older), &["a/y", "a/r", "a/z"]);
    expect(put(rule("w/wide", "*.a.svc.cluster.local", SimpleBalancing::Random)), &["w/wide"]);
    expect(put(rule("w/wider", "*", SimpleBalancing::Random)), &["w/wide"]);
    expect(put(rule("w/r", full, SimpleBalancing::Random)), &["w/r"]);
    // A short name means the object's own namespace.
    expect(put(rule("w/r", "s", SimpleBalancing::Random)), &["w/wide"]);
    for gone in ["w/r", "w/wide", "w/wider"] {
        index.apply([Change::DestinationRule(name(gone), None)]);
    }
    assert_eq!(followed(&index), ["a/y", "a/r", "a/z"]);
}

#[test]
fn a_rule_stays_where_it_is_exported_to() {
    for (to, expected) in [
        (vec![], Some(Balancer::Random)),
        (vec!["*"], Some(Balancer::Random)),
        (vec!["."], None),
        (vec!["b"], None),
        (vec!["b", "w"], Some(Balancer::Random)),
    ] {
        let mut index = mesh();
        let mut rule = rule("a/r", "s", SimpleBalancing::Random);
        rule.spec.export_to = to.iter().map(|&to| to.to_owned()).collect();
        index.apply([put(rule)]);
        assert_eq!(balancer(&index), expected, "{to:?}");
    }
    // One for single clients is for none of the waypoints.
    let mut index = mesh();
    let mut selective = rule("a/r", "s", SimpleBalancing::Random);
    selective.spec.workload_selector =
        Some(ambit_api::authorization_policy::WorkloadSelector { match_labels: labels(&[("app", "x")]) });
    index.apply([put(selective)]);
    assert_eq!(balancer(&index), None);
}

#[test]
fn the_first_traffic_policy_counts_and_all_subsets() {
    let mut index = mesh();
    let subset = |name: &str, version: &str| Subset {
        name: name.to_owned(),
        labels: labels(&[("version", version)]),
        ..Subset::default()
    };
    let mut first = rule("a/r1", "s", SimpleBalancing::Random);
    first.spec.traffic_policy = None;
    first.spec.subsets = vec![subset("v1", "v1")];
    let mut second = rule("a/r2", "s", SimpleBalancing::RoundRobin);
    second.spec.subsets = vec![subset("v1", "v2"), subset("v2", "v2")];
    index.apply([put(first), put(second), put(rule("a/r3", "s", SimpleBalancing::Random))]);
    assert_eq!(balancer(&index), Some(Balancer::RoundRobin));
    let members = |index: &Index| -> BTreeMap<String, Vec<String>> {
        let settings = bundle(index).services[0].destination.clone().expect("rules");
        settings.subsets.into_iter().map(|subset| (subset.name, subset.workloads)).collect()
    };
    let expected = |v1: &[&str], v2: &[&str]| {
        let list = |uids: &[&str]| uids.iter().map(|&uid| uid.to_owned()).collect::<Vec<_>>();
        BTreeMap::from([("v1".to_owned(), list(v1)), ("v2".to_owned(), list(v2))])
    };
    assert_eq!(members(&index), expected(&["uid1"], &[]));
    // Pods come and go.
    let mut two = pod("uid2", "x", 2);
    two.labels = labels(&[("app", "x"), ("version", "v2")]);
    index.apply([Change::Pod(name("a/p2"), Some(two))]);
    assert_eq!(members(&index), expected(&["uid1"], &["uid2"]));
    index.apply([Change::Pod(name("a/p1"), None)]);
    assert_eq!(members(&index), expected(&[], &["uid2"]));
    assert_eq!(*index.resources(), ambit_mesh::derive::derive(index.inputs()));
}

#[test]
fn a_subset_takes_over_what_it_does_not_say_and_a_port_nothing() {
    let text = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r, namespace: a}\nspec:\n  \
        host: s\n  trafficPolicy:\n    loadBalancer: {simple: RANDOM}\n    outlierDetection: {}\n    portLevelSettings:\n    \
        - {port: {number: 81}}\n  subsets:\n  - name: v1\n    labels: {version: v1}\n    trafficPolicy:\n      \
        loadBalancer: {simple: ROUND_ROBIN}\n      portLevelSettings:\n      - {port: {number: 82}, connectionPool: \
        {http: {http2MaxRequests: 7}}}\n";
    let loaded = load_text("r.yaml", text);
    assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
    let Loaded::DestinationRule(rule) = loaded.objects[0].resource.clone() else { panic!("not one") };
    let mut index = mesh();
    index.apply([put(*rule)]);
    let store = Store::new(ambit_policy::Options::default());
    store.apply(&index.snapshot()).expect("readable");
    let view = store.load();
    let key = ServiceKey { namespace: "a".into(), hostname: "s.a.svc.cluster.local".into() };
    let destination = &view.waypoint("w", "w").expect("a bundle").destinations[&key];
    let subset = destination.subset("v1").expect("a subset");
    assert!(destination.subset("v2").is_none());
    let picture = |treatment: &ambit_mesh::view::destinations::Treatment| {
        (treatment.balancer.clone(), treatment.outliers.is_some(), treatment.limits.requests)
    };
    assert_eq!(picture(destination.treatment(80)), (Balancer::Random, true, None));
    assert_eq!(picture(destination.treatment(81)), (Balancer::LeastRequest, false, None));
    assert_eq!(picture(subset.treatment(80)), (Balancer::RoundRobin, true, None));
    assert_eq!(picture(subset.treatment(81)), (Balancer::LeastRequest, false, None));
    assert_eq!(picture(subset.treatment(82)), (Balancer::LeastRequest, false, Some(7)));
    let uids: Vec<_> = subset.members.iter().map(|uid| uid.to_string()).collect();
    assert_eq!(uids, ["uid1"]);
}

#[test]
fn a_rejected_rule_closes_its_host() {
    let mut index = mesh();
    let rejected = Rule::rejected(rule("a/r", "s", SimpleBalancing::Random), "a reason");
    let responses = index.apply([Change::DestinationRule(name("a/r"), Some(rejected))]);
    let store = Store::new(ambit_policy::Options::default());
    let nack = store.apply(&responses).expect_err("rejected");
    assert!(nack.to_string().contains("DestinationRule `a/r` was rejected: a reason"), "{nack}");
}

#[test]
fn findings_name_what_does_nothing() {
    let found = |rules: Vec<DestinationRule>| -> Vec<(String, String)> {
        let mut index = mesh();
        let bare = Change::Service(name("b/bare"), Some(service("y", &[])));
        index.apply(rules.into_iter().map(put).chain([bare]));
        let found = findings(index.inputs()).into_iter().filter(|finding| finding.object.kind == "DestinationRule");
        found
            .map(|finding| {
                assert_eq!(finding.severity, Severity::Warning, "{finding:?}");
                (finding.field, finding.message)
            })
            .collect()
    };
    let random = |full_name: &str, host: &str| rule(full_name, host, SimpleBalancing::Random);
    let mut divided = random("a/r", "s");
    divided.spec.subsets =
        vec![Subset { name: "v9".into(), labels: labels(&[("version", "v9")]), ..Subset::default() }];
    let mut ports = random("a/r", "s");
    let mut outliers = random("a/r", "s");
    if let (Some(ports), Some(outliers)) = (&mut ports.spec.traffic_policy, &mut outliers.spec.traffic_policy) {
        let port = ambit_api::destination_rule::PortPolicy {
            port: Some(ambit_api::destination_rule::PortSelector { number: 9 }),
            ..Default::default()
        };
        ports.port_level_settings = vec![port];
        outliers.outlier_detection = Some(OutlierDetection::default());
    }
    let mut private = random("a/r", "s");
    private.spec.export_to = vec![".".to_owned()];
    for (rules, field, message) in [
        (vec![random("a/r", "nobody")], "spec.host", "there is no service `nobody`"),
        (vec![random("a/r", "s.a")], "spec.host", "there is no service `s.a`"),
        (vec![random("b/r", "bare")], "spec.host", "service `b/bare` has no waypoint"),
        (vec![private], "spec.host", "it isn't exported to namespace `w`"),
        (
            vec![random("a/r", "s"), random("b/r", "s.a.svc.cluster.local")],
            "spec.host",
            "for service `a/s` the rule `a/r` takes its place",
        ),
        (vec![random("a/r", "s"), random("a/z", "s")], "spec.trafficPolicy", "the rule `a/r` speaks first"),
        (vec![divided.clone()], "spec.subsets[0].labels", "subset `v9` is empty"),
        (vec![divided], "spec.subsets[0].name", "no route leads to subset `v9`"),
        (vec![ports], "spec.trafficPolicy.portLevelSettings[0].port", "has no port 9"),
        (vec![outliers], "spec.trafficPolicy.outlierDetection", "one of 2 is more than 10 %"),
    ] {
        let found = found(rules);
        assert!(found.iter().any(|(at, text)| at == field && text.contains(message)), "{message}: {found:?}");
    }
    assert_eq!(found(vec![random("a/r", "s"), random("w/all", "*")]).len(), 1, "the wide one takes its place");
}
