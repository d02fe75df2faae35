//! The outbound decision table, row by row.

mod networks;
mod waypoints;

use std::{net::SocketAddr, sync::Arc};

use ambit_mesh::{Store, loads::Loads};
use ambit_xds::workload::{
    self as wire, GatewayAddress, LoadBalancing, NamespacedHostname, NetworkAddress, Service, Workload, WorkloadStatus,
    gateway_address::Destination,
    load_balancing::{Mode, Scope},
};

use super::fixture::{at, endpoint, id, ip, octets, pod, push, remove, service, store};
use crate::{
    balance::Choice,
    limits::LOAD_COUNTERS,
    route::{Authority, Mesh, Query, Ranges, Route, Source, Target, Tunnel, Way, route},
};

/// Who asks, and how.
#[derive(Clone, Copy)]
struct Asking<'a> {
    from: &'a str,
    captured: bool,
    /// The ranges of the mesh are known.
    ranges: bool,
    seed: u64,
    tried: &'a [Arc<str>],
}

const USUAL: Asking<'_> = Asking { from: "me", captured: true, ranges: true, seed: 1, tried: &[] };

impl Asking<'_> {
    fn ask(self, store: &Store, destination: &str) -> Route {
        let view = store.load();
        let workload = view.workload(&format!("Kubernetes//Pod/ns/{}", self.from));
        let source = Source {
            ip: workload.and_then(|workload| workload.addresses.first().copied()).unwrap_or(ip("10.244.0.9")),
            namespace: "ns",
            workload: workload.map(|workload| &**workload),
            captured: self.captured,
        };
        let range = |text: &str| text.parse().expect("a range");
        let ranges = Ranges { pods: range("10.244.0.0/16"), services: range("10.96.0.0/16") };
        let choice = Choice { seed: self.seed, tried: self.tried, loads: &Loads::new(LOAD_COUNTERS) };
        let query = Query { view: &view, source, ranges: self.ranges.then_some(ranges), choice };
        route(&query, at(destination))
    }
}

fn ask(store: &Store, destination: &str) -> Route {
    USUAL.ask(store, destination)
}

fn mesh(route: Route) -> Mesh {
    match route {
        Route::Mesh(mesh) => *mesh,
        Route::Passthrough(_) | Route::Refuse(_) => panic!("not a way into the mesh: {route:?}"),
    }
}

fn way(route: Route) -> Way {
    mesh(route).way
}

fn reason(route: Route) -> String {
    let Route::Refuse(refusal) = route else { panic!("not refused: {route:?}") };
    refusal.reason
}

fn plain(address: &str) -> Way {
    Way::Plain(Target::Address(at(address)))
}

fn tunnel(peer: &str, authority: &str, expected: &[&str]) -> Tunnel {
    Tunnel {
        peer: Target::Address(at(peer)),
        expected: expected.iter().map(|account| id(account)).collect(),
        authority: Authority::Address(at(authority)),
    }
}

fn hbone(peer: &str, authority: &str, expected: &[&str]) -> Way {
    Way::Hbone(tunnel(peer, authority, expected))
}

fn san(account: &str) -> String {
    id(account).to_string()
}

fn named(service: &str, port: u32) -> GatewayAddress {
    let hostname = format!("{service}.ns.svc.cluster.local");
    let name = NamespacedHostname { namespace: "ns".to_owned(), hostname };
    GatewayAddress { destination: Some(Destination::Hostname(name)), hbone_mtls_port: port }
}

fn addressed(network: &str, ip: &str, port: u32) -> GatewayAddress {
    let address = NetworkAddress { network: network.to_owned(), address: octets(ip), length: None };
    GatewayAddress { destination: Some(Destination::Address(address)), hbone_mtls_port: port }
}

fn unready(workload: Workload) -> Workload {
    Workload { status: WorkloadStatus::Unhealthy.into(), ..workload }
}

fn outside(workload: Workload) -> Workload {
    Workload { tunnel_protocol: 0, ..workload }
}

/// A workload that isn't a pod: an entry of somebody's ServiceEntry or WorkloadEntry.
fn entry(name: &str, ip: &str) -> Workload {
    Workload { uid: format!("Kubernetes/networking.istio.io/WorkloadEntry/ns/{name}"), ..pod(name, ip) }
}

fn mode(service: Service, mode: Mode, preferences: &[Scope]) -> Service {
    let routing_preference = preferences.iter().map(|scope| *scope as i32).collect();
    let load_balancing = LoadBalancing { routing_preference, mode: mode as i32, health_policy: 0 };
    Service { load_balancing: Some(load_balancing), ..service }
}

#[test]
fn row_1_the_proxy_itself_is_not_a_destination() {
    let store = store();
    push(&store, &[&pod("me", "10.244.0.9")], &[]);
    for port in [15001, 15006, 15008, 15053, 15080] {
        for host in ["127.0.0.1", "10.244.0.9", "[::ffff:127.0.0.1]"] {
            let asked = reason(ask(&store, &format!("{host}:{port}")));
            assert!(asked.contains("own node proxy"), "{host}:{port}: {asked}");
        }
    }
}

#[test]
fn row_5_a_service_without_a_waypoint_goes_to_its_ready_endpoints() {
    let store = store();
    let one = endpoint(pod("one", "10.244.0.2"), "app", 80, 8080);
    let two = outside(endpoint(pod("two", "10.244.0.3"), "app", 80, 9090));
    let unready = unready(endpoint(pod("three", "10.244.0.4"), "app", 80, 8080));
    let other_port = endpoint(pod("four", "10.244.0.5"), "app", 81, 8080);
    let service = service("app", &["10.96.0.2"], 80, None);
    push(&store, &[&one, &two, &unready, &other_port], &[&service]);
    let mut seen = [false; 2];
    for seed in 0..100 {
        let found = mesh(Asking { seed, ..USUAL }.ask(&store, "10.96.0.2:80"));
        assert!(found.waypoint.is_none() && found.others);
        match &*found.workload.name {
            "one" => assert_eq!(found.way, hbone("10.244.0.2:15008", "10.244.0.2:8080", &["one"])),
            "two" => assert_eq!(found.way, plain("10.244.0.3:9090")),
            other => panic!("`{other}` is no ready endpoint"),
        }
        seen[usize::from(&*found.workload.name == "two")] = true;
    }
    assert_eq!(seen, [true; 2], "both get connections");
    // What was tried isn't tried again.
    let tried = [Arc::from(one.uid.as_str())];
    let next = mesh(Asking { tried: &tried, ..USUAL }.ask(&store, "10.96.0.2:80"));
    assert!(&*next.workload.name == "two" && !next.others);
    let tried = [Arc::from(one.uid.as_str()), Arc::from(two.uid.as_str())];
    let nobody = "service `ns/app` has no ready endpoint for port 80";
    assert_eq!(reason(Asking { tried: &tried, ..USUAL }.ask(&store, "10.96.0.2:80")), nobody);
}

#[test]
fn row_5a_a_transparent_service_is_left_as_it_is() {
    let store = store();
    let external = mode(service("external", &["198.51.100.1"], 443, None), Mode::Passthrough, &[]);
    let inside = mode(service("inside", &["10.96.0.2"], 80, None), Mode::Passthrough, &[]);
    push(&store, &[], &[&external, &inside]);
    let Route::Passthrough(Some(service)) = ask(&store, "198.51.100.1:8443") else { panic!("not left as it is") };
    assert_eq!(&*service.name, "external");
    assert!(reason(ask(&store, "10.96.0.2:80")).contains("no workload or service"), "nobody has the address");
    // A waypoint counts all the same.
    let bound = Service { waypoint: Some(named("wp", 15008)), ..external };
    push(&store, &[], &[&bound]);
    assert!(reason(ask(&store, "198.51.100.1:443")).contains("waypoint `ns/wp`"));
}

#[test]
fn row_5b_without_an_endpoint_or_port_there_is_no_way() {
    let store = store();
    let one = endpoint(pod("one", "10.244.0.2"), "app", 80, 8080);
    push(&store, &[&one], &[&service("app", &["10.96.0.2"], 80, None)]);
    assert_eq!(reason(ask(&store, "10.96.0.2:82")), "service `ns/app` has no port 82");
    remove(&store, &[&one.uid]);
    assert_eq!(reason(ask(&store, "10.96.0.2:80")), "service `ns/app` has no ready endpoint for port 80");
    let strict = mode(service("app", &["10.96.0.2"], 80, None), Mode::Strict, &[Scope::Node]);
    push(&store, &[&Workload { node: "other".into(), ..one }], &[&strict]);
    let me = Workload { node: "mine".into(), ..pod("me", "10.244.0.9") };
    push(&store, &[&me], &[]);
    assert_eq!(reason(ask(&store, "10.96.0.2:80")), "service `ns/app` has no ready endpoint for port 80");
}

#[test]
fn row_5c_unknown_addresses_pass_through_unless_they_would_be_the_meshs() {
    let store = store();
    for destination in ["10.244.7.7:80", "10.96.0.77:80", "10.244.0.1:22"] {
        assert!(reason(ask(&store, destination)).contains("no workload or service"), "{destination}");
    }
    let nowhere = ["0.0.0.0:80", "0.1.2.3:80", "224.0.0.1:80", "255.255.255.255:80", "[::]:80"];
    for destination in ["127.0.0.1:80", "[::1]:80"].into_iter().chain(nowhere) {
        assert!(reason(ask(&store, destination)).contains("not an address"), "{destination}");
    }
    assert!(matches!(ask(&store, "93.184.216.34:443"), Route::Passthrough(None)));
    assert!(matches!(ask(&store, "[2606:2800::1]:443"), Route::Passthrough(None)));
    // On a cluster's node nobody knows the ranges, and the way out is the pod's own.
    let in_pod = Asking { ranges: false, ..USUAL };
    for destination in ["10.244.7.7:80", "10.96.0.77:80", "93.184.216.34:443", "127.0.0.1:80"] {
        assert!(matches!(in_pod.ask(&store, destination), Route::Passthrough(None)), "{destination}");
    }
    for destination in nowhere {
        assert!(reason(in_pod.ask(&store, destination)).contains("not an address"), "{destination}");
    }
}

#[test]
fn rows_8_and_9_a_pod_is_reached_by_its_address_even_when_it_is_not_ready() {
    let store = store();
    let inside = unready(pod("inside", "10.244.0.2"));
    let native = Workload { native_tunnel: true, ..pod("native", "10.244.0.4") };
    push(&store, &[&inside, &outside(pod("outside", "10.244.0.3")), &native], &[]);
    assert_eq!(way(ask(&store, "10.244.0.2:5000")), hbone("10.244.0.2:15008", "10.244.0.2:5000", &["inside"]));
    assert_eq!(way(ask(&store, "10.244.0.3:5000")), plain("10.244.0.3:5000"));
    let native = way(ask(&store, "10.244.0.4:5000"));
    assert_eq!(native, hbone("10.244.0.4:15008", "10.244.0.4:5000", &["native"]), "ordinary HBONE");
    let host = Workload { network_mode: 1, ..outside(pod("host", "10.0.0.9")) };
    push(&store, &[&host], &[]);
    assert!(matches!(ask(&store, "10.0.0.9:22"), Route::Passthrough(None)), "a node's address is no pod's");
}

#[test]
fn a_headless_services_pod_and_the_callers_own_service_are_nothing_special() {
    let store = store();
    let me = endpoint(pod("me", "10.244.0.9"), "app", 80, 8080);
    let one = endpoint(pod("one", "10.244.0.2"), "headless", 80, 8080);
    push(&store, &[&me, &one], &[&service("app", &["10.96.0.2"], 80, None), &service("headless", &[], 80, None)]);
    assert_eq!(way(ask(&store, "10.244.0.2:8080")), hbone("10.244.0.2:15008", "10.244.0.2:8080", &["one"]));
    let own = hbone("10.244.0.9:15008", "10.244.0.9:8080", &["me"]);
    assert_eq!(way(ask(&store, "10.96.0.2:80")), own, "its own service");
}

#[test]
fn a_workload_with_a_name_only_is_reached_by_that_name() {
    let store = store();
    let name = |workload: Workload| Workload { addresses: Vec::new(), hostname: "db.example.com".into(), ..workload };
    let db = name(outside(endpoint(entry("db", "10.0.0.1"), "db", 5432, 5432)));
    push(&store, &[&db], &[&service("db", &["240.240.0.1"], 5432, None)]);
    let target = Way::Plain(Target::Name("db.example.com".into(), 5432));
    assert_eq!(way(ask(&store, "240.240.0.1:5432")), target);
    let db = name(endpoint(entry("db", "10.0.0.1"), "db", 5432, 5432));
    push(&store, &[&db], &[]);
    let Way::Hbone(tunnel) = way(ask(&store, "240.240.0.1:5432")) else { panic!("no tunnel") };
    assert_eq!(tunnel.peer, Target::Name("db.example.com".into(), 15008));
    assert_eq!((tunnel.authority, tunnel.expected), (Authority::PortOfPeer(5432), vec![id("db")]));
}

#[test]
fn the_address_of_a_service_entry_is_its_own_but_never_a_pods() {
    let store = store();
    let target = endpoint(entry("vm", "10.0.0.5"), "vm", 80, 8080);
    let claimed = service("vm", &["10.0.0.5", "10.244.0.2"], 80, None);
    push(&store, &[&target, &pod("app", "10.244.0.2")], &[&claimed]);
    let vm = hbone("10.0.0.5:15008", "10.0.0.5:8080", &["vm"]);
    assert_eq!(way(ask(&store, "10.0.0.5:80")), vm, "service before workload");
    let found = mesh(ask(&store, "10.244.0.2:80"));
    assert!(found.service.is_none() && &*found.workload.name == "app", "whatever a service claims");
    let range = |claimed: &Service, length| {
        let mut claimed = claimed.clone();
        claimed.addresses =
            vec![NetworkAddress { network: String::new(), address: octets("10.0.0.0"), length: Some(length) }];
        claimed
    };
    push(&store, &[], &[&range(&claimed, 24)]);
    assert_eq!(way(ask(&store, "10.0.0.77:80")), vm, "by its range");
    assert!(matches!(ask(&store, "10.0.1.77:80"), Route::Passthrough(None)));
}

#[test]
fn the_address_that_was_asked_for_is_kept_and_else_the_family() {
    let store = store();
    let mut both = endpoint(entry("both", "10.0.0.1"), "app", 80, 8080);
    both.addresses.extend([octets("fd00::1"), octets("10.0.0.2")]);
    let claimed = service("app", &["10.96.0.2", "10.0.0.2", "fd01::2"], 80, None);
    push(&store, &[&both], &[&claimed]);
    let cases = [("10.96.0.2:80", "10.0.0.1"), ("10.0.0.2:80", "10.0.0.2"), ("[fd01::2]:80", "[fd00::1]")];
    let check = |store: &Store, cases: &[(&str, &str)]| {
        for (asked, address) in cases {
            let expected = hbone(&format!("{address}:15008"), &format!("{address}:8080"), &["both"]);
            assert_eq!(way(ask(store, asked)), expected, "{asked}");
        }
    };
    check(&store, &cases);
    let v6 = Service { ip_families: wire::IpFamilies::Ipv6Only.into(), ..claimed };
    push(&store, &[], &[&v6]);
    check(&store, &[("10.96.0.2:80", "[fd00::1]"), ("[fd01::2]:80", "[fd00::1]")]);
}

#[test]
fn what_was_rejected_is_closed() {
    let store = store();
    let app = endpoint(pod("app", "10.244.0.2"), "app", 80, 8080);
    let claimed = service("app", &["10.96.0.2"], 80, None);
    push(&store, &[&app], &[&claimed]);
    for name in [app.uid.as_str(), "ns/app.ns.svc.cluster.local"] {
        let broken = ambit_xds::Resource { name: name.to_owned(), version: "2".into(), value: vec![0xff] };
        let type_url = ambit_xds::ADDRESS_TYPE.to_owned();
        store
            .apply(&[ambit_xds::DeltaResponse { type_url, resources: vec![broken], removed: Vec::new() }])
            .expect_err("unreadable");
    }
    assert!(reason(ask(&store, "10.244.0.2:8080")).contains("the configuration of workload"));
    assert!(reason(ask(&store, "10.96.0.2:80")).contains("the configuration of service"));
}

#[test]
fn a_pod_outside_the_mesh_speaks_plain_tcp_only() {
    let store = store();
    let app = Workload { waypoint: Some(named("wp", 15008)), ..endpoint(pod("app", "10.244.0.2"), "app", 80, 8080) };
    push(&store, &[&app], &[&service("app", &["10.96.0.2"], 80, Some("wp"))]);
    let outside = Asking { captured: false, from: "nobody", ..USUAL };
    let found = mesh(outside.ask(&store, "10.96.0.2:80"));
    assert!(found.way == plain("10.244.0.2:8080") && found.waypoint.is_none());
    assert_eq!(way(outside.ask(&store, "10.244.0.2:8080")), plain("10.244.0.2:8080"));
}

#[test]
fn addresses_are_compared_folded() {
    let store = store();
    push(&store, &[&pod("app", "10.244.0.2")], &[]);
    let mapped: SocketAddr = at("[::ffff:10.244.0.2]:80");
    assert_eq!(way(ask(&store, &mapped.to_string())), hbone("10.244.0.2:15008", "10.244.0.2:80", &["app"]));
}
