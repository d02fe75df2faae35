//! The guard, and whom L4 policies judge.

use std::sync::Arc;

use ambit_mesh::Store;
use ambit_telemetry::Enforcer;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::fixture::{allow, at, endpoint, guarded, id, ip, pod, policy, push, service, store, waypoint};
use crate::{
    guard::{Caller, Claims, Judgement, judge},
    inbound::claims,
};

const APP: &str = "10.244.0.2";
const WAYPOINT: &str = "10.244.0.3";

fn mesh() -> Arc<Store> {
    let store = store();
    let app = guarded(endpoint(pod("app", APP), "app", 80, 8080), "app", 8080, "wp");
    push(
        &store,
        &[&app, &waypoint("wp", WAYPOINT), &waypoint("other-wp", "10.244.0.4"), &pod("client", "10.244.0.5")],
        &[&service("app", &["10.96.0.2"], 80, Some("wp")), &service("wp", &["10.96.0.3"], 15008, None)],
    );
    store
}

fn caller(account: Option<&str>, address: &str) -> Caller {
    Caller { peer: account.map(id), address: at(address), claims: Some(Claims::default()) }
}

fn ask(store: &Store, caller: &Caller, port: u16) -> Judgement {
    let view = store.load();
    let workload = view.workload("Kubernetes//Pod/ns/app").expect("the application's pod");
    judge(&view, workload, caller, ip(APP), port)
}

#[test]
fn only_the_waypoint_reaches_a_guarded_port() {
    let store = mesh();
    let cases = [
        (Some("wp"), "10.244.0.3:4000", true, "the waypoint"),
        (Some("wp"), "10.244.0.5:4000", false, "the waypoint's identity from elsewhere"),
        (Some("client"), "10.244.0.3:4000", false, "the waypoint's address with another identity"),
        (Some("client"), "10.244.0.5:4000", false, "a client"),
        (Some("other-wp"), "10.244.0.4:4000", false, "another waypoint"),
        (None, "10.244.0.3:4000", false, "plaintext from the waypoint's address"),
        (None, "10.244.0.5:4000", false, "plaintext"),
    ];
    for (account, address, allowed, who) in cases {
        let judgement = ask(&store, &caller(account, address), 8080);
        assert_eq!(judgement.decision.is_allowed(), allowed, "{who}: {}", judgement.decision.reason);
        assert_eq!(judgement.through_waypoint, allowed, "{who}");
        assert_eq!(judgement.enforcer == Enforcer::WaypointGuard, !allowed, "{who}");
    }
    let reason = ask(&store, &caller(None, "10.244.0.5:1"), 8080).decision.reason;
    for part in ["`ns/app`", "`ns/wp`", "ambit.dev/waypoint-guard: \"off\""] {
        assert!(reason.contains(part), "{part} in {reason}");
    }
    let reason = ask(&store, &caller(Some("wp"), "10.244.0.5:1"), 8080).decision.reason;
    assert!(reason.contains("`10.244.0.5` is not an address of it"), "{reason}");
}

#[test]
fn other_ports_are_open_and_a_guard_without_port_covers_all() {
    let store = mesh();
    assert!(ask(&store, &caller(Some("client"), "10.244.0.5:1"), 9090).decision.is_allowed());
    let app = guarded(pod("app", APP), "app", 0, "wp");
    push(&store, &[&app], &[]);
    assert!(!ask(&store, &caller(Some("client"), "10.244.0.5:1"), 9090).decision.is_allowed());
    assert!(ask(&store, &caller(Some("wp"), "10.244.0.3:1"), 9090).decision.is_allowed());
}

#[test]
fn policies_judge_the_client_behind_the_waypoint() {
    let store = mesh();
    policy(&store, "only-client", &allow(&["client"]));
    let speak = |account: &str| Caller {
        claims: Some(Claims { identity: Some(id(account)), address: Some(at("10.244.0.5:4321")) }),
        ..caller(Some("wp"), "10.244.0.3:4000")
    };
    let judgement = ask(&store, &speak("client"), 8080);
    assert!(judgement.decision.is_allowed(), "{}", judgement.decision.reason);
    assert_eq!(judgement.client.identity, Some(id("client")));
    assert_eq!(judgement.client.address, at("10.244.0.5:4321"));
    let judgement = ask(&store, &speak("intruder"), 8080);
    assert!(!judgement.decision.is_allowed());
    assert_eq!(judgement.enforcer, Enforcer::ZtunnelInbound);
    let silent = ask(&store, &caller(Some("wp"), "10.244.0.3:4000"), 8080);
    assert!(!silent.decision.is_allowed(), "without a claim the waypoint is judged itself");
}

#[test]
fn claims_of_anyone_else_are_worth_nothing() {
    let store = mesh();
    policy(&store, "only-client", &allow(&["client"]));
    let claims = Some(Claims { identity: Some(id("client")), address: Some(at("10.244.0.5:4321")) });
    for (account, address) in [
        (Some("intruder"), "10.244.0.9:1"),
        (Some("other-wp"), "10.244.0.4:1"),
        (None, "10.244.0.3:1"),
        (Some("wp"), "10.244.0.9:1"),
    ] {
        let caller = Caller { claims: claims.clone(), ..caller(account, address) };
        let judgement = ask(&store, &caller, 9090);
        assert!(!judgement.decision.is_allowed(), "{account:?} {address}");
        assert_eq!(judgement.client.identity, caller.peer);
        assert_eq!(judgement.client.address, at(address));
    }
}

#[test]
fn a_waypoint_is_believed_for_its_services_even_with_the_guard_off() {
    let store = mesh();
    let app = endpoint(pod("app", APP), "app", 80, 8080);
    push(&store, &[&app], &[]);
    policy(&store, "only-client", &allow(&["client"]));
    let claims = Some(Claims { identity: Some(id("client")), address: None });
    let speak = |account, address| Caller { claims: claims.clone(), ..caller(Some(account), address) };
    assert!(ask(&store, &speak("wp", "10.244.0.3:1"), 8080).decision.is_allowed());
    assert!(!ask(&store, &speak("other-wp", "10.244.0.4:1"), 8080).decision.is_allowed());
    assert!(!ask(&store, &speak("wp", "10.244.0.3:1"), 9090).decision.is_allowed(), "not a port of its services");
}

#[test]
fn a_waypoint_that_cannot_be_understood_gets_nothing() {
    let store = mesh();
    let garbled = |account, address| Caller { claims: None, ..caller(Some(account), address) };
    let judgement = ask(&store, &garbled("wp", "10.244.0.3:1"), 8080);
    assert!(!judgement.decision.is_allowed());
    assert_eq!(judgement.enforcer, Enforcer::ZtunnelInbound);
    assert!(ask(&store, &garbled("client", "10.244.0.5:1"), 9090).decision.is_allowed(), "nobody reads a client's");
}

#[test]
fn claims_are_read_strictly() {
    let read = |headers: &[(&'static str, &str)]| {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"));
        }
        claims(&map, "cluster.local")
    };
    assert_eq!(read(&[]), Some(Claims::default()));
    let client = "spiffe://cluster.local/ns/ns/sa/client";
    assert_eq!(
        read(&[("ambit-source", client), ("forwarded", "for=\"10.0.0.1:80\";host=a.b")]),
        Some(Claims { identity: Some(id("client")), address: Some(at("10.0.0.1:80")) })
    );
    assert_eq!(
        read(&[("forwarded", "For=\"[fd00::1]:80\"")]),
        Some(Claims { identity: None, address: Some(at("[fd00::1]:80")) })
    );
    for bad in [
        &[("ambit-source", client), ("ambit-source", client)][..],
        &[("ambit-source", "client")],
        &[("ambit-source", "spiffe://elsewhere/ns/ns/sa/client")],
        &[("forwarded", "for=unknown")],
        &[("forwarded", "for=\"10.0.0.1:80\", for=\"10.0.0.2:80\"")],
        &[("forwarded", "for=\"10.0.0.1:80\";for=\"10.0.0.2:80\"")],
        &[("forwarded", "for=\"0.0.0.0:80\"")],
        &[("forwarded", "nonsense")],
    ] {
        assert_eq!(read(bad), None, "{bad:?}");
    }
}
