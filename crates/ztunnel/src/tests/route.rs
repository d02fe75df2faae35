//! The outbound decision table, row by row.

use std::net::SocketAddr;

use ambit_mesh::Store;

use super::fixture::{at, endpoint, ip, pod, push, remove, service, store, waypoint};
use crate::route::{Mesh, Ranges, Route, Source, binding, route};

fn ask_as(store: &Store, source: Source, destination: &str) -> Route {
    let ranges =
        Ranges { pods: "10.244.0.0/16".parse().expect("a range"), services: "10.96.0.0/16".parse().expect("a range") };
    route(&store.load(), ranges, source, at(destination))
}

fn ask(store: &Store, destination: &str) -> Route {
    ask_as(store, Source { ip: ip("10.244.0.9"), captured: true }, destination)
}

fn mesh(route: Route) -> (Mesh, Vec<(SocketAddr, Option<SocketAddr>)>) {
    let Route::Mesh(mesh) = route else { panic!("not a way into the mesh: {route:?}") };
    let hops = mesh.hops.iter().map(|hop| (hop.address, hop.authority)).collect();
    (mesh, hops)
}

fn reason(route: Route) -> String {
    let Route::Refuse(refusal) = route else { panic!("not refused: {route:?}") };
    refusal.reason
}

#[test]
fn the_proxy_itself_is_not_a_destination() {
    let store = store();
    push(&store, &[&pod("me", "10.244.0.9")], &[]);
    for destination in ["127.0.0.1:15001", "127.0.0.1:15006", "127.0.0.1:15008", "10.244.0.9:15001", "10.244.0.9:15008"]
    {
        assert!(reason(ask(&store, destination)).contains("own node proxy"), "{destination}");
    }
    assert!(reason(ask(&store, "[::ffff:127.0.0.1]:15001")).contains("own node proxy"), "mapped addresses are folded");
}

#[test]
fn a_service_with_a_waypoint_goes_to_the_waypoint() {
    let store = store();
    let workload = endpoint(pod("app", "10.244.0.2"), "app", 80, 8080);
    let service = service("app", &["10.96.0.2"], 80, Some("wp"));
    let front = super::fixture::service("wp", &["10.96.0.3"], 15008, None);
    push(&store, &[&workload, &waypoint("wp", "10.244.0.3")], &[&service, &front]);
    let (mesh, hops) = mesh(ask(&store, "10.96.0.2:80"));
    assert_eq!(hops, [(at("10.244.0.3:15008"), Some(at("10.96.0.2:80")))]);
    assert_eq!(&*mesh.hops[0].workload.name, "wp");
    assert!(mesh.waypoint.is_some() && mesh.service.is_some());
}

#[test]
fn a_missing_or_unready_waypoint_is_never_gone_around() {
    let store = store();
    let workload = endpoint(pod("app", "10.244.0.2"), "app", 80, 8080);
    let service = service("app", &["10.96.0.2"], 80, Some("wp"));
    let front = super::fixture::service("wp", &["10.96.0.3"], 15008, None);
    let expected = "waypoint `ns/wp` of service `ns/app` has no ready endpoint";
    push(&store, &[&workload], &[&service]);
    assert_eq!(reason(ask(&store, "10.96.0.2:80")), expected, "no service of the waypoint");
    push(&store, &[], &[&front]);
    assert_eq!(reason(ask(&store, "10.96.0.2:80")), expected, "no pod of the waypoint");
    let mut unready = waypoint("wp", "10.244.0.3");
    unready.status = ambit_xds::workload::WorkloadStatus::Unhealthy.into();
    push(&store, &[&unready], &[]);
    assert_eq!(reason(ask(&store, "10.96.0.2:80")), expected, "an unready pod of the waypoint");
}

#[test]
fn a_service_without_a_waypoint_goes_to_its_ready_endpoints() {
    let store = store();
    let one = endpoint(pod("one", "10.244.0.2"), "app", 80, 8080);
    let mut two = endpoint(pod("two", "10.244.0.3"), "app", 80, 9090);
    two.tunnel_protocol = 0;
    let mut unready = endpoint(pod("three", "10.244.0.4"), "app", 80, 8080);
    unready.status = ambit_xds::workload::WorkloadStatus::Unhealthy.into();
    let other_port = endpoint(pod("four", "10.244.0.5"), "app", 81, 8080);
    let service = service("app", &["10.96.0.2"], 80, None);
    push(&store, &[&one, &two, &unready, &other_port], &[&service]);
    let (mesh, mut hops) = mesh(ask(&store, "10.96.0.2:80"));
    hops.sort();
    assert_eq!(hops, [(at("10.244.0.2:15008"), Some(at("10.244.0.2:8080"))), (at("10.244.0.3:9090"), None)]);
    assert!(mesh.waypoint.is_none());
    assert_eq!(reason(ask(&store, "10.96.0.2:82")), "service `ns/app` has no port 82");
    remove(&store, &[&one.uid, &two.uid]);
    assert_eq!(reason(ask(&store, "10.96.0.2:80")), "service `ns/app` has no ready endpoint for port 80");
}

#[test]
fn a_pod_is_reached_by_its_address_even_when_it_is_not_ready() {
    let store = store();
    let mut inside = pod("inside", "10.244.0.2");
    inside.status = ambit_xds::workload::WorkloadStatus::Unhealthy.into();
    let mut outside = pod("outside", "10.244.0.3");
    outside.tunnel_protocol = 0;
    push(&store, &[&inside, &outside], &[]);
    let (_, hops) = mesh(ask(&store, "10.244.0.2:5000"));
    assert_eq!(hops, [(at("10.244.0.2:15008"), Some(at("10.244.0.2:5000")))]);
    let (_, hops) = mesh(ask(&store, "10.244.0.3:5000"));
    assert_eq!(hops, [(at("10.244.0.3:5000"), None)]);
}

#[test]
fn unknown_addresses_of_the_mesh_are_refused_and_others_pass_through() {
    let store = store();
    for destination in ["10.244.7.7:80", "10.96.0.77:80", "10.244.0.1:22"] {
        assert!(reason(ask(&store, destination)).contains("no workload or service"), "{destination}");
    }
    for destination in
        ["127.0.0.1:80", "0.0.0.0:80", "0.1.2.3:80", "224.0.0.1:80", "255.255.255.255:80", "[::]:80", "[::1]:80"]
    {
        assert!(reason(ask(&store, destination)).contains("not an address"), "{destination}");
    }
    assert!(matches!(ask(&store, "93.184.216.34:443"), Route::Host));
    assert!(matches!(ask(&store, "[2606:2800::1]:443"), Route::Host));
}

#[test]
fn a_pod_outside_the_mesh_speaks_plain_tcp_only() {
    let store = store();
    let workload = endpoint(pod("app", "10.244.0.2"), "app", 80, 8080);
    let service = service("app", &["10.96.0.2"], 80, Some("wp"));
    push(&store, &[&workload], &[&service]);
    let outside = Source { ip: ip("10.244.0.9"), captured: false };
    let (mesh, hops) = mesh(ask_as(&store, outside, "10.96.0.2:80"));
    assert_eq!(hops, [(at("10.244.0.2:8080"), None)]);
    assert!(mesh.waypoint.is_none());
    let (_, hops) = self::mesh(ask_as(&store, outside, "10.244.0.2:8080"));
    assert_eq!(hops, [(at("10.244.0.2:8080"), None)]);
}

#[test]
fn the_binding_of_an_address_is_its_services_waypoint() {
    let store = store();
    let bound = service("bound", &["10.96.0.2"], 80, Some("wp"));
    let free = service("free", &["10.96.0.3"], 80, None);
    push(&store, &[&pod("app", "10.244.0.2")], &[&bound, &free]);
    let view = store.load();
    let waypoint = binding(&view, at("10.96.0.2:80")).expect("a waypoint");
    assert_eq!(crate::route::waypoint_name(waypoint), "ns/wp");
    for destination in ["10.96.0.3:80", "10.244.0.2:80", "1.1.1.1:80"] {
        assert!(binding(&view, at(destination)).is_none(), "{destination}");
    }
}
