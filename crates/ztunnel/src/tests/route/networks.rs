//! Rows 4b and 6: other networks, behind their gateways.

use ambit_api::SpiffeId;
use ambit_xds::workload::{self as wire, GatewayAddress, Service, Workload};

use super::{Asking, USUAL, addressed, ask, named, reason, san, tunnel, unready, way};
use crate::{
    route::{Authority, Target, Tunnel, Way},
    tests::fixture::{endpoint, id, octets, pod, push, service, store, waypoint},
};

/// A service of which the only endpoint is in network `far`, behind a gateway, and the gateway.
fn remote(gateway: GatewayAddress) -> (Workload, Service) {
    let far = endpoint(pod("far", "10.0.0.1"), "app", 80, 8080);
    let far = Workload {
        network: "far".to_owned(),
        addresses: Vec::new(),
        network_gateway: Some(gateway),
        uid: "far/SplitHorizonWorkload/x".to_owned(),
        ..far
    };
    let app = Service { subject_alt_names: vec![san("app")], ..service("app", &["10.96.0.2"], 80, None) };
    (far, app)
}

fn double(peer: &str, expected: &[&str], inner: &[&str]) -> Way {
    let authority = Authority::Name("app.ns.svc.cluster.local".into(), 80);
    let inner: Vec<SpiffeId> = inner.iter().map(|account| id(account)).collect();
    Way::Double { gateway: Tunnel { authority, ..tunnel(peer, "1.1.1.1:1", expected) }, inner }
}

#[test]
fn row_6_another_network_is_reached_through_its_gateway() {
    let by_address = |ip: &str| addressed("", ip, 15008);
    let front = Service {
        subject_alt_names: vec![san("eastwest")],
        ports: vec![wire::Port { service_port: 15008, target_port: 15443, app_protocol: 0 }],
        ..service("gw", &["10.96.0.7"], 15008, None)
    };
    let bare = Workload { services: Default::default(), ..waypoint("gw", "192.0.2.1") };
    let member = endpoint(pod("gw", "192.0.2.1"), "gw", 15008, 15443);
    let name = Workload { addresses: Vec::new(), hostname: "gw.ns.svc.cluster.local".into(), ..bare.clone() };
    let cases = [
        ("a workload's address", by_address("192.0.2.1"), &bare, None, Some(("192.0.2.1:15008", &["gw"][..]))),
        (
            "a service's address",
            by_address("10.96.0.7"),
            &member,
            Some(&front),
            Some(("192.0.2.1:15443", &["eastwest", "gw"][..])),
        ),
        (
            "a service's name",
            named("gw", 15008),
            &member,
            Some(&front),
            Some(("192.0.2.1:15443", &["eastwest", "gw"][..])),
        ),
        ("a service without that port", named("gw", 15009), &member, Some(&front), None),
        ("nobody's address", by_address("192.0.2.9"), &bare, None, None),
        ("an unready one", by_address("192.0.2.1"), &unready(bare.clone()), None, None),
    ];
    for (what, gateway, workload, service, expected) in cases {
        let store = store();
        let (far, app) = remote(gateway);
        push(&store, &[&far, workload, &pod("me", "10.244.0.9")], &[&app]);
        push(&store, &[], &service.into_iter().collect::<Vec<_>>());
        match expected {
            Some((peer, identities)) => {
                assert_eq!(way(ask(&store, "10.96.0.2:80")), double(peer, identities, &["app"]), "{what}");
            }
            None => assert!(reason(ask(&store, "10.96.0.2:80")).contains("has no ready endpoint"), "{what}"),
        }
    }
    // A gateway of which a name is known only.
    let store = store();
    let (far, app) = remote(named("gw", 15008));
    push(&store, &[&far, &name], &[&app]);
    let found = way(ask(&store, "10.96.0.2:80"));
    assert_eq!(found.target(), &Target::Name("gw.ns.svc.cluster.local".into(), 15008));
}

#[test]
fn row_6_without_a_gateway_or_identities_another_network_is_not_reached() {
    let store = store();
    let (far, app) = remote(addressed("", "192.0.2.1", 15008));
    let gateway = waypoint("gw", "192.0.2.1");
    let lost = Workload { network_gateway: None, ..far.clone() };
    push(&store, &[&lost, &gateway], &[&app]);
    assert!(reason(ask(&store, "10.96.0.2:80")).contains("no ready endpoint"), "no valid routing destination");
    let nobody = Service { subject_alt_names: Vec::new(), ..app.clone() };
    push(&store, &[&far], &[&nobody]);
    assert!(reason(ask(&store, "10.96.0.2:80")).contains("no subject alternative names"));
    push(&store, &[], &[&app]);
    let outside = Asking { captured: false, ..USUAL };
    assert!(reason(outside.ask(&store, "10.96.0.2:80")).contains("from pods of the mesh only"));
    // Its address means nothing here.
    let addressed = Workload { addresses: vec![octets("10.244.0.77")], ..far };
    push(&store, &[&addressed], &[]);
    assert!(reason(ask(&store, "10.244.0.77:80")).contains("no workload or service"));
}

#[test]
fn row_4b_a_waypoint_of_another_network_is_reached_through_its_gateway() {
    let store = store();
    let (far, app) = remote(addressed("", "192.0.2.1", 15008));
    let far = Workload { services: Default::default(), ..endpoint(far, "wp", 15008, 15008) };
    let far = endpoint(far, "wp", 15008, 15008);
    let app = Service { waypoint: Some(named("wp", 15008)), ..app };
    let front = Service { subject_alt_names: vec![san("wp")], ..service("wp", &[], 15008, None) };
    push(&store, &[&far, &waypoint("gw", "192.0.2.1")], &[&app, &front]);
    assert_eq!(way(ask(&store, "10.96.0.2:80")), double("192.0.2.1:15008", &["gw"], &["wp"]));
    // A workload's own waypoint can't be: nothing says what to ask for at the far end.
    let bound = Workload { waypoint: Some(named("wp", 15008)), ..pod("bound", "10.244.0.2") };
    push(&store, &[&bound], &[]);
    assert!(reason(ask(&store, "10.244.0.2:80")).contains("is in another network"));
}
