//! Rows 4, 4a and 7: waypoints of services and of workloads.

use std::sync::Arc;

use ambit_mesh::view::WaypointRef;
use ambit_xds::workload::{Service, WeightedWaypoint, Workload};

use super::{Asking, USUAL, addressed, ask, hbone, mesh, named, reason, san, unready, way};
use crate::{
    route::{Source, rebound},
    tests::fixture::{at, endpoint, ip, octets, pod, push, remove, service, store, waypoint},
};

#[test]
fn row_4a_a_service_with_a_waypoint_goes_to_the_waypoint() {
    let store = store();
    let workload = endpoint(pod("app", "10.244.0.2"), "app", 80, 8080);
    let app = service("app", &["10.96.0.2"], 80, Some("wp"));
    let front = service("wp", &["10.96.0.3"], 15008, None);
    push(&store, &[&workload, &waypoint("wp", "10.244.0.3")], &[&app, &front]);
    let found = mesh(ask(&store, "10.96.0.2:80"));
    assert_eq!(found.way, hbone("10.244.0.3:15008", "10.96.0.2:80", &["wp"]));
    assert_eq!(&*found.workload.name, "wp");
    assert!(found.waypoint.is_some() && found.service.is_some() && !found.others);
    // Identities that the waypoint's service names are good too.
    let front = Service { subject_alt_names: vec![san("gateway")], ..front };
    push(&store, &[], &[&front]);
    assert_eq!(way(ask(&store, "10.96.0.2:80")), hbone("10.244.0.3:15008", "10.96.0.2:80", &["gateway", "wp"]));
}

#[test]
fn row_4_waypoints_are_named_by_address_too() {
    let cases = [("a workload", "10.244.0.3"), ("a service", "10.96.0.3")];
    for (what, address) in cases {
        let store = store();
        let app = service("app", &["10.96.0.2"], 80, None);
        let app = Service { waypoint: Some(addressed("", address, 15008)), ..app };
        let front = service("wp", &["10.96.0.3"], 15008, None);
        push(&store, &[&waypoint("wp", "10.244.0.3")], &[&app, &front]);
        assert_eq!(way(ask(&store, "10.96.0.2:80")), hbone("10.244.0.3:15008", "10.96.0.2:80", &["wp"]), "{what}");
    }
}

#[test]
fn row_4_a_missing_or_unready_waypoint_is_never_gone_around() {
    let store = store();
    let workload = endpoint(pod("app", "10.244.0.2"), "app", 80, 8080);
    let app = service("app", &["10.96.0.2"], 80, Some("wp"));
    let front = service("wp", &["10.96.0.3"], 15008, None);
    let expected = "waypoint `ns/wp` of service `ns/app` has no ready endpoint";
    push(&store, &[&workload], &[&app]);
    assert_eq!(reason(ask(&store, "10.96.0.2:80")), expected, "no service of the waypoint");
    push(&store, &[], &[&front]);
    assert_eq!(reason(ask(&store, "10.96.0.2:80")), expected, "no pod of the waypoint");
    push(&store, &[&unready(waypoint("wp", "10.244.0.3"))], &[]);
    assert_eq!(reason(ask(&store, "10.96.0.2:80")), expected, "an unready pod of the waypoint");
    let by_address = Service { waypoint: Some(addressed("", "10.9.9.9", 15008)), ..app };
    push(&store, &[], &[&by_address]);
    let expected = "waypoint `10.9.9.9` of service `ns/app` has no ready endpoint";
    assert_eq!(reason(ask(&store, "10.96.0.2:80")), expected);
}

#[test]
fn row_4_a_canary_gets_its_share_and_a_connection_keeps_its_waypoint() {
    let store = store();
    let share = |name, weight| WeightedWaypoint { destination: Some(named(name, 15008)), weight };
    let shares = vec![share("old", 3), share("new", 1), share("none", 0)];
    let app = Service { weighted_waypoints: shares, ..service("app", &["10.96.0.2"], 80, Some("old")) };
    let front = |name: &str| service(name, &[], 15008, None);
    let two = waypoint("new", "10.244.0.5");
    let other =
        Workload { uid: "Kubernetes//Pod/ns/new2".into(), addresses: vec![octets("10.244.0.6")], ..two.clone() };
    push(
        &store,
        &[&waypoint("old", "10.244.0.3"), &two, &other, &waypoint("none", "10.244.0.4")],
        &[&app, &front("old"), &front("new"), &front("none")],
    );
    let ask = |seed, tried: &[Arc<str>]| mesh(Asking { seed, tried, ..USUAL }.ask(&store, "10.96.0.2:80"));
    let mut new = 0;
    for seed in 0..1000 {
        let found = ask(seed, &[]);
        assert_ne!(&*found.workload.name, "none");
        if &*found.workload.name == "new" {
            new += 1;
            let again = ask(seed, &[Arc::clone(&found.workload.uid)]);
            assert_eq!(again.waypoint, found.waypoint, "another try, the same waypoint");
            assert_ne!(again.workload.uid, found.workload.uid);
        }
    }
    assert!((200..300).contains(&new), "{new} of 1000 for a quarter");
}

#[test]
fn row_7_a_workloads_own_waypoint_is_used_by_everyone_but_itself() {
    let store = store();
    let app = Workload { waypoint: Some(named("wp", 15008)), ..endpoint(pod("app", "10.244.0.2"), "app", 80, 8080) };
    let front = service("wp", &[], 15008, None);
    let of_app = service("app", &["10.96.0.2"], 80, None);
    push(&store, &[&app, &waypoint("wp", "10.244.0.3"), &pod("me", "10.244.0.9")], &[&front, &of_app]);
    assert_eq!(way(ask(&store, "10.244.0.2:5000")), hbone("10.244.0.3:15008", "10.244.0.2:5000", &["wp"]));
    let from = Asking { from: "wp", ..USUAL };
    assert_eq!(way(from.ask(&store, "10.244.0.2:5000")), hbone("10.244.0.2:15008", "10.244.0.2:5000", &["app"]));
    // Who asks for a service gets what the service says.
    assert_eq!(way(ask(&store, "10.96.0.2:80")), hbone("10.244.0.2:15008", "10.244.0.2:8080", &["app"]));
    remove(&store, &["Kubernetes//Pod/ns/wp"]);
    let expected = "waypoint `ns/wp` of workload `ns/app` has no ready endpoint";
    assert_eq!(reason(ask(&store, "10.244.0.2:5000")), expected);
}

#[test]
fn a_connection_has_to_move_when_its_destination_is_bound_to_another_waypoint() {
    let store = store();
    let bound = service("bound", &["10.96.0.2"], 80, Some("wp"));
    let share = |name| WeightedWaypoint { destination: Some(named(name, 15008)), weight: 1 };
    let shared =
        Service { weighted_waypoints: vec![share("a"), share("b")], ..service("shared", &["10.96.0.4"], 80, None) };
    let app = Workload { waypoint: Some(named("wp", 15008)), ..pod("app", "10.244.0.2") };
    let free = service("free", &["10.96.0.3"], 80, None);
    let wp = waypoint("wp", "10.244.0.3");
    push(&store, &[&app, &wp, &pod("free", "10.244.0.4")], &[&bound, &free, &shared]);
    let view = store.load();
    let now = |from: Option<&str>, destination: &str, used: Option<&WaypointRef>| {
        let workload = from.and_then(|uid| view.workload(uid)).map(|workload| &**workload);
        let source = Source { ip: ip("10.244.0.9"), namespace: "ns", workload, captured: true };
        rebound(&view, source, at(destination), used).cloned()
    };
    for destination in ["10.96.0.2:80", "10.244.0.2:80", "10.96.0.4:80"] {
        let first = now(None, destination, None).expect("a waypoint");
        assert_eq!(now(None, destination, Some(&first)), None, "{destination}");
    }
    let b = view.service_for(ip("10.96.0.4"), "ns").and_then(|service| service.waypoints().nth(1)).cloned();
    assert_eq!(now(None, "10.96.0.4:80", b.as_ref()), None, "either will do");
    assert_eq!(now(Some(&wp.uid), "10.244.0.2:80", None), None, "the waypoint goes on to the workload");
    for destination in ["10.96.0.3:80", "10.244.0.4:80", "1.1.1.1:80"] {
        assert_eq!(now(None, destination, b.as_ref()), None, "{destination}");
    }
}
