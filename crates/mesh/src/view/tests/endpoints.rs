//! Which endpoints a client gets, and what finding them costs.

use std::collections::BTreeSet;

use ambit_xds::workload::{
    self as wire, LoadBalancing, Locality, UInt32Value, WorkloadStatus,
    address::Type,
    load_balancing::{HealthPolicy, Mode, Scope},
};
use proptest::prelude::*;

use super::{key, push, remove, service, store, workload};
use crate::view::{Store, View, ranking::work};

/// Region, zone, subzone, node, cluster, network.
type Place = [&'static str; 6];

const SCOPES: [Scope; 6] = [Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node, Scope::Cluster, Scope::Network];

fn placed(uid: &str, place: Place) -> wire::Workload {
    let [region, zone, subzone, node, cluster, network] = place.map(str::to_owned);
    let remote = !network.is_empty();
    wire::Workload {
        locality: Some(Locality { region, zone, subzone }),
        node,
        cluster_id: cluster,
        network,
        network_gateway: remote.then(|| wire::GatewayAddress {
            destination: Some(wire::gateway_address::Destination::Address(super::vip("", "192.0.2.1", None))),
            hbone_mtls_port: 15008,
        }),
        ..workload(uid, "10.0.0.1", &["s"])
    }
}

fn balanced(mode: Mode, preferences: &[Scope]) -> wire::Service {
    let load_balancing = LoadBalancing {
        routing_preference: preferences.iter().map(|scope| *scope as i32).collect(),
        mode: mode as i32,
        health_policy: HealthPolicy::OnlyHealthy as i32,
    };
    wire::Service { load_balancing: Some(load_balancing), ..service("s") }
}

/// The uids in each tier for a client.
fn tiers(view: &View, client: Option<&str>, port: Option<u16>) -> Vec<BTreeSet<String>> {
    let client = client.map(|uid| &**view.workload(uid).expect("the client"));
    let tiers = view.tiers(&key("s"), client, port);
    let uid = |drawn: crate::view::Drawn<'_>| drawn.workload().expect("an endpoint").uid.to_string();
    let uids = |tier: crate::view::Tier<'_>| tier.shuffled(3).map(uid).collect();
    let all: Vec<BTreeSet<String>> = tiers.iter().map(uids).collect();
    assert!(tiers.iter().zip(&all).all(|(tier, uids)| tier.len() == uids.len() && !uids.is_empty()));
    assert_eq!(tiers.is_empty(), all.is_empty());
    all
}

fn sets(expected: &[&[&str]]) -> Vec<BTreeSet<String>> {
    expected.iter().map(|set| set.iter().map(|uid| (*uid).to_owned()).collect()).collect()
}

#[test]
fn every_scope_is_compared_in_every_mode() {
    let client: Place = ["r", "z", "s", "n", "c", ""];
    for (index, scope) in SCOPES.into_iter().enumerate() {
        let store = store();
        let mut elsewhere = client;
        elsewhere[index] = "else";
        push(&store, [Type::Workload(placed("near", client)), Type::Workload(placed("far", elsewhere))]);
        push(&store, [Type::Workload(wire::Workload { services: Default::default(), ..placed("client", client) })]);
        /// Tiers of names, the nearest first.
        type Tiers = &'static [&'static [&'static str]];
        let cases: [(Mode, &[Scope], Tiers); 5] = [
            (Mode::Unspecified, &[scope], &[&["far", "near"]]),
            (Mode::Passthrough, &[scope], &[&["far", "near"]]),
            (Mode::Strict, &[scope], &[&["near"]]),
            (Mode::Failover, &[scope], &[&["near"], &["far", "near"]]),
            (Mode::Failover, &[], &[&["far", "near"]]),
        ];
        for (mode, preferences, expected) in cases {
            push(&store, [Type::Service(balanced(mode, preferences))]);
            assert_eq!(tiers(&store.load(), Some("client"), Some(80)), sets(expected), "{scope:?} {mode:?}");
        }
        remove(&store, &["near"]);
        push(&store, [Type::Service(balanced(Mode::Strict, &[scope]))]);
        assert_eq!(tiers(&store.load(), Some("client"), Some(80)), sets(&[]), "strict means strict");
        push(&store, [Type::Service(balanced(Mode::Failover, &[scope]))]);
        assert_eq!(tiers(&store.load(), Some("client"), Some(80)), sets(&[&["far"]]), "{scope:?}");
    }
}

#[test]
fn failover_ranks_by_leading_preferences() {
    let store = store();
    let endpoints = [
        ("zone", ["r", "z", "", "", "", ""]),
        ("region", ["r", "y", "", "", "", ""]),
        // Matches the second preference only, which is worth nothing.
        ("stray", ["q", "z", "", "", "", ""]),
    ];
    push(&store, endpoints.map(|(uid, place)| Type::Workload(placed(uid, place))));
    push(&store, [Type::Service(balanced(Mode::Failover, &[Scope::Region, Scope::Zone]))]);
    push(&store, [Type::Workload(wire::Workload { services: Default::default(), ..placed("client", endpoints[0].1) })]);
    let all: &[&str] = &["region", "stray", "zone"];
    let expected = sets(&[&["zone"], &["region", "zone"], all]);
    assert_eq!(tiers(&store.load(), Some("client"), Some(80)), expected);
    assert_eq!(tiers(&store.load(), None, Some(80)), sets(&[all]), "nothing is known of the client");
    push(&store, [Type::Service(balanced(Mode::Strict, &[Scope::Region, Scope::Zone]))]);
    assert_eq!(tiers(&store.load(), Some("client"), Some(80)), sets(&[&["zone"]]));
    assert_eq!(tiers(&store.load(), None, Some(80)), sets(&[]));
}

#[test]
fn the_network_as_first_preference_ranks_the_others_too() {
    let store = store();
    let endpoints = [
        ("here", ["q", "", "", "", "", ""]),
        ("far-region", ["r", "y", "", "", "", "far"]),
        ("far-zone", ["r", "z", "", "", "", "far"]),
        ("far", ["q", "", "", "", "", "far"]),
    ];
    push(&store, endpoints.map(|(uid, place)| Type::Workload(placed(uid, place))));
    let preferences = [Scope::Network, Scope::Region, Scope::Zone];
    push(&store, [Type::Service(balanced(Mode::Failover, &preferences))]);
    let client = placed("client", ["r", "z", "", "", "", ""]);
    push(&store, [Type::Workload(wire::Workload { services: Default::default(), ..client })]);
    let found = tiers(&store.load(), Some("client"), Some(80));
    let all: &[&str] = &["far", "far-region", "far-zone", "here"];
    assert_eq!(found, sets(&[&["here"], &["far-region", "far-zone"], all]), "any of the network, then others by rank");
    remove(&store, &["here"]);
    let found = tiers(&store.load(), Some("client"), Some(80));
    let expected = sets(&[&["far-zone"], &["far-region", "far-zone"], &["far", "far-region", "far-zone"]]);
    assert_eq!(found, expected);
    push(&store, [Type::Service(balanced(Mode::Strict, &preferences))]);
    assert_eq!(tiers(&store.load(), Some("client"), Some(80)), sets(&[]), "strict means the network too");
}

#[test]
fn only_endpoints_that_can_be_used_count() {
    let unhealthy =
        |uid: &str| wire::Workload { status: WorkloadStatus::Unhealthy as i32, ..workload(uid, "10.0.0.1", &["s"]) };
    let base = || workload("w", "10.0.0.1", &["s"]);
    let bare =
        || wire::Workload { services: [("ns/s.example".to_owned(), wire::PortList::default())].into(), ..base() };
    let numeric = || wire::Service {
        ports: vec![wire::Port { service_port: 80, target_port: 8080, app_protocol: 0 }],
        ..service("s")
    };
    let allow_all = || wire::Service {
        load_balancing: Some(LoadBalancing { health_policy: HealthPolicy::AllowAll as i32, ..Default::default() }),
        ..service("s")
    };
    let ipv6 = || wire::Service { ip_families: wire::IpFamilies::Ipv6Only as i32, ..service("s") };
    let tunnel = |port| Some(wire::ApplicationTunnel { protocol: 1, port });
    let far = || wire::Workload { network: "far".to_owned(), addresses: Vec::new(), ..base() };
    let gateway = || placed("w", ["", "", "", "", "", "far"]).network_gateway;
    let cases = [
        ("a usual one", base(), service("s"), true),
        ("an unhealthy one", unhealthy("w"), service("s"), false),
        ("an unhealthy one of a service that takes all", unhealthy("w"), allow_all(), true),
        (
            "one of capacity 0",
            wire::Workload { capacity: Some(UInt32Value { value: 0 }), ..base() },
            service("s"),
            false,
        ),
        ("one without a port of its own", bare(), service("s"), false),
        ("one whose port is the service's", bare(), numeric(), true),
        (
            "one whose application tunnel takes all ports",
            wire::Workload { application_tunnel: tunnel(15), ..bare() },
            service("s"),
            true,
        ),
        (
            "one whose application tunnel has no port",
            wire::Workload { application_tunnel: tunnel(0), ..bare() },
            service("s"),
            false,
        ),
        ("one without an address", wire::Workload { addresses: Vec::new(), ..base() }, service("s"), false),
        (
            "one with a name",
            wire::Workload { addresses: Vec::new(), hostname: "db".into(), ..base() },
            service("s"),
            true,
        ),
        ("one whose address is of no admitted family", base(), ipv6(), false),
        ("one of another network", far(), service("s"), false),
        (
            "one of another network with a gateway",
            wire::Workload { network_gateway: gateway(), ..far() },
            service("s"),
            true,
        ),
    ];
    for (what, workload, service, counts) in cases {
        for service_first in [true, false] {
            let store = store();
            let (workload, service) = (Type::Workload(workload.clone()), Type::Service(service.clone()));
            let (first, second) = if service_first { (service, workload) } else { (workload, service) };
            push(&store, [first]);
            push(&store, [second]);
            let found = tiers(&store.load(), None, Some(80));
            assert_eq!(found, if counts { sets(&[&["w"]]) } else { sets(&[]) }, "{what}, {service_first}");
            assert_eq!(store.load().endpoints(&key("s")).len(), 1, "{what}");
        }
    }
    let store = store();
    push(&store, [Type::Workload(base()), Type::Service(service("s"))]);
    assert_eq!(tiers(&store.load(), None, Some(81)), sets(&[]), "no endpoint has the port");
    assert_eq!(tiers(&store.load(), None, None), sets(&[&["w"]]), "whatever its ports");
    let broken = ambit_xds::Resource { name: "w".into(), version: "2".into(), value: vec![0xff] };
    let response = ambit_xds::DeltaResponse {
        type_url: ambit_xds::ADDRESS_TYPE.into(),
        resources: vec![broken],
        removed: Vec::new(),
    };
    push(&store, [Type::Service(allow_all())]);
    store.apply(&[response]).expect_err("unreadable");
    assert_eq!(tiers(&store.load(), None, Some(80)), sets(&[]), "rejected, so nobody connects, healthy or not");
}

#[test]
fn capacity_is_the_share_of_connections() {
    let store = store();
    let weighing = |uid: &str, value| wire::Workload {
        capacity: Some(UInt32Value { value }),
        ..workload(uid, "10.0.0.1", &["s"])
    };
    push(&store, [weighing("one", 1), weighing("three", 3), weighing("none", 0)].map(Type::Workload));
    push(&store, [Type::Service(service("s"))]);
    let view = store.load();
    let tiers = view.tiers(&key("s"), None, Some(80));
    let tier = tiers.iter().next().expect("a tier");
    let drawn = |number: u64| {
        let drawn = tier.draw(number * (u64::MAX / 1000)).and_then(|drawn| drawn.workload());
        drawn.expect("one").uid.to_string()
    };
    let three = (0..1000).map(drawn).filter(|uid| uid == "three").count();
    assert!((749..=751).contains(&three), "{three} of 1000 for three quarters");
}

#[test]
fn a_service_that_lost_all_endpoints_ranks_new_ones_as_before() {
    let store = store();
    let place: Place = ["r", "z", "", "", "", ""];
    let client = wire::Workload { services: Default::default(), ..placed("client", place) };
    push(&store, [Type::Service(balanced(Mode::Failover, &[Scope::Region])), Type::Workload(client)]);
    for _ in 0..2 {
        push(&store, [Type::Workload(placed("near", place)), Type::Workload(placed("far", [""; 6]))]);
        assert_eq!(tiers(&store.load(), Some("client"), Some(80)), sets(&[&["near"], &["far", "near"]]));
        remove(&store, &["near", "far"]);
        assert_eq!(tiers(&store.load(), Some("client"), Some(80)), sets(&[]));
    }
    remove(&store, &["ns/s.example"]);
    push(&store, [Type::Workload(placed("near", place))]);
    assert_eq!(tiers(&store.load(), Some("client"), Some(80)), sets(&[]), "of no service");
    assert_eq!(store.load().endpoints(&key("s")).len(), 1);
}

/// A service with this many endpoints on 100 nodes of 10 zones, and two clients.
fn large(endpoints: usize, weights: u32) -> std::sync::Arc<Store> {
    let store = store();
    let endpoint = |number: usize| {
        let place = wire::Workload {
            locality: Some(Locality { zone: format!("z{}", number % 10), ..Locality::default() }),
            node: format!("n{}", number % 100),
            capacity: Some(UInt32Value { value: 1 + number as u32 % weights }),
            ..workload(&format!("e{number}"), "10.0.0.1", &["s"])
        };
        Type::Workload(wire::Workload { addresses: vec![vec![10, 1, (number >> 8) as u8, number as u8]], ..place })
    };
    push(&store, (0..endpoints).map(endpoint));
    push(&store, [Type::Service(balanced(Mode::Failover, &[Scope::Zone, Scope::Node]))]);
    let client = wire::Workload {
        locality: Some(Locality { zone: "z7".to_owned(), ..Locality::default() }),
        node: "n7".to_owned(),
        ..workload("client", "10.0.0.2", &[])
    };
    push(&store, [Type::Workload(client)]);
    store
}

#[test]
fn choosing_costs_the_same_with_10_endpoints_and_with_10_000() {
    let cost = |store: &Store, random: u64| {
        let view = store.load();
        let client = view.workload("client").expect("known");
        work::take();
        let tiers = view.tiers(&key("s"), Some(client), Some(80));
        let drawn = tiers.iter().next().and_then(|tier| tier.draw(random)).expect("an endpoint");
        let workload = drawn.workload().expect("an endpoint");
        assert_eq!((drawn.capacity(), drawn.load_key()), (workload.capacity, workload.load_key));
        work::take()
    };
    let (few, many) = (large(100, 1), large(10_000, 1));
    let costs: BTreeSet<usize> =
        (0..100).flat_map(|number| [&few, &many].map(|store| cost(store, number * (u64::MAX / 100)))).collect();
    assert_eq!(costs, BTreeSet::from([4]), "three steps down, one endpoint looked at");
    // With weights it is a binary search among those of the first rank.
    let weighted = large(10_000, 7);
    let cost = cost(&weighted, u64::MAX / 3);
    assert!(cost <= 4 + 8, "{cost} for 100 endpoints of the client's node");
}

#[test]
fn a_changed_endpoint_touches_only_what_it_belongs_to() {
    let store = large(10_000, 1);
    let changed = |store: &Store, workload: wire::Workload| {
        work::take();
        push(store, [Type::Workload(workload)]);
        work::take()
    };
    let fresh = wire::Workload {
        locality: Some(Locality { zone: "z3".to_owned(), ..Locality::default() }),
        node: "n3".to_owned(),
        ..workload("new", "10.0.0.3", &["s"])
    };
    // The service's own list, its zone's (1,000) and its node's (100), for its port and for any.
    assert_eq!(changed(&store, fresh.clone()), 2 * (10_000 + 1_000 + 100));
    let renamed = wire::Workload { canonical_name: "other".to_owned(), ..fresh.clone() };
    assert_eq!(changed(&store, renamed), 0, "nothing that balancing looks at");
    let before = store.load();
    remove(&store, &["new"]);
    assert_eq!(before.endpoints(&key("s")).len(), 10_001, "a snapshot doesn't change");
    assert_eq!(store.load().endpoints(&key("s")).len(), 10_000);
}

#[derive(Clone, Debug)]
enum Step {
    Put { uid: u8, place: u8, weight: u32, healthy: bool, member: bool },
    Remove(u8),
    Service { mode: i32, preferences: Vec<i32>, port: u32 },
    NoService,
}

fn step() -> impl Strategy<Value = Step> {
    let put = (0..12_u8, any::<u8>(), 0..3_u32, any::<bool>(), any::<bool>());
    prop_oneof![
        6 => put.prop_map(|(uid, place, weight, healthy, member)| Step::Put { uid, place, weight, healthy, member }),
        2 => (0..12_u8).prop_map(Step::Remove),
        1 => (0..4_i32, proptest::collection::vec(1..7_i32, 0..4), 80..82_u32)
            .prop_map(|(mode, preferences, port)| Step::Service { mode, preferences, port }),
        1 => Just(Step::NoService),
    ]
}

fn take(step: &Step, held: &mut std::collections::BTreeMap<String, Type>) -> ambit_xds::DeltaResponse {
    let (name, content) = match step {
        Step::Put { uid, place, weight, healthy, member } => {
            let bit = |bit: u8| if place >> bit & 1 == 0 { "" } else { "x" };
            let place = [bit(0), bit(1), bit(2), bit(3), bit(4), bit(5)];
            let mut message = placed(&format!("w{uid}"), place);
            message.capacity = Some(UInt32Value { value: *weight });
            message.status = if *healthy { 0 } else { 1 };
            if !member {
                message.services.clear();
            }
            (message.uid.clone(), Some(Type::Workload(message)))
        }
        Step::Remove(uid) => (format!("w{uid}"), None),
        Step::Service { mode, preferences, port } => {
            let mut message = service("s");
            message.ports[0].service_port = *port;
            message.load_balancing =
                Some(LoadBalancing { routing_preference: preferences.clone(), mode: *mode, health_policy: 0 });
            ("ns/s.example".to_owned(), Some(Type::Service(message)))
        }
        Step::NoService => ("ns/s.example".to_owned(), None),
    };
    match content {
        Some(content) => {
            held.insert(name, content.clone());
            super::response([content])
        }
        None => {
            held.remove(&name);
            let removed = vec![name];
            ambit_xds::DeltaResponse { type_url: ambit_xds::ADDRESS_TYPE.into(), resources: Vec::new(), removed }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// However the mesh came to be what it is, clients get the same endpoints as if it had always been so.
    #[test]
    fn changes_lead_to_what_a_fresh_start_would(pushes in proptest::collection::vec(proptest::collection::vec(step(), 1..4), 1..12)) {
        let store = store();
        let mut held = std::collections::BTreeMap::new();
        for steps in pushes {
            let responses: Vec<_> = steps.iter().map(|step| take(step, &mut held)).collect();
            store.apply(&responses).expect("readable");
            let fresh = super::store();
            push(&fresh, held.values().cloned());
            let (view, fresh) = (store.load(), fresh.load());
            for client in std::iter::once(None).chain((0..12).map(|uid| Some(format!("w{uid}")))) {
                let client = client.as_deref().filter(|uid| view.workload(uid).is_some());
                for port in [None, Some(80), Some(81)] {
                    prop_assert_eq!(tiers(&view, client, port), tiers(&fresh, client, port));
                }
            }
            let uids = |view: &View| view.endpoints(&key("s")).iter().map(|w| w.uid.to_string()).collect::<Vec<_>>();
            prop_assert_eq!(uids(&view), uids(&fresh));
        }
    }
}
