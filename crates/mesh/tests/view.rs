//! The proxies' view: one swap per push, rejection by name, and closed where something couldn't be read.

mod support;

use std::sync::Arc;

use ambit_api::{AuthorizationPolicy, authorization_policy::Action};
use ambit_mesh::{
    Index, Store,
    inputs::{AllowedNamespaces, Change, Settings},
    view::{Gateway, ServiceKey, WaypointRef, Workload},
};
use ambit_policy::{ConnectionFacts, Decision, Options, RequestFacts};
use ambit_xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE, DeltaResponse, Resource, WAYPOINT_TYPE, channel};
use support::{arc, gateway, name, namespace, pod, policy, put, response, selecting, service, targeting};

const CLIENT: &str = "cluster.local/ns/a/sa/client";

fn options() -> Options {
    Options::default()
}

fn facts() -> ConnectionFacts {
    ConnectionFacts::new([10, 244, 0, 9].into(), [10, 244, 0, 2].into(), 8080)
        .with_identity(Some(format!("spiffe://{CLIENT}").parse().expect("an identity")))
}

fn mesh(changes: impl IntoIterator<Item = Change>) -> (Index, Arc<Store>) {
    let mut index = Index::new(Settings::default());
    let base = [
        namespace("a", &[("istio.io/dataplane-mode", "ambient")]),
        Change::Gateway(name("a/w"), Some(gateway(&[], AllowedNamespaces::Same))),
        Change::Service(name("a/s"), Some(service("x", &[("istio.io/use-waypoint", "w")]))),
        Change::Pod(name("a/p"), Some(pod("p", "x", 2))),
        Change::Pod(name("a/q"), Some(pod("q", "y", 3))),
    ];
    let responses = index.apply(base.into_iter().chain(changes));
    let store = Store::new(options());
    store.apply(&responses).expect("readable");
    (index, store)
}

fn workload(store: &Store, uid: &str) -> Arc<Workload> {
    Arc::clone(store.load().workload(uid).expect("known"))
}

fn verdict(store: &Store, uid: &str) -> Decision {
    workload(store, uid).policies.for_connection(&facts()).decide_connection()
}

fn waypoint_service(waypoint: &WaypointRef) -> &ServiceKey {
    match &waypoint.destination {
        Gateway::Service(key) => key,
        Gateway::Address(address) => panic!("by address: {address:?}"),
    }
}

fn broken(name: &str) -> Resource {
    Resource { name: name.into(), version: "1".into(), value: vec![0xff, 0xff, 0xff] }
}

fn allow_all(full_name: &str) -> AuthorizationPolicy {
    policy(full_name, Action::Allow, None, None)
}

#[test]
fn a_push_becomes_lookups() {
    let (_, store) = mesh([]);
    let view = store.load();
    let key = ServiceKey { namespace: arc("a"), hostname: arc("s.a.svc.cluster.local") };
    let service = view.service(&key).expect("known");
    assert_eq!(service.vips, [std::net::IpAddr::from([10, 96, 0, 10])]);
    assert_eq!(view.service_by_vip([10, 96, 0, 10].into()).map(|s| &s.key), Some(&key));
    assert_eq!(view.services_by_hostname("s.a.svc.cluster.local").count(), 1);
    assert_eq!(view.services_by_hostname("s.a").count(), 0);
    assert_eq!(view.service_named("a", "s").map(|s| &s.key), Some(&key));
    let waypoint = service.waypoint.as_ref().expect("bound");
    assert_eq!(view.service(waypoint_service(waypoint)).map(|s| &*s.name), Some("w"));

    let endpoints = view.endpoints(&key);
    assert_eq!(endpoints.len(), 1);
    let pod = view.workload_by_ip([10, 244, 0, 2].into()).expect("known");
    assert!(Arc::ptr_eq(&endpoints[0], pod) && pod.hbone && pod.healthy);
    assert_eq!(pod.services[&key][&80], 8080);
    assert_eq!(pod.identity.to_string(), "spiffe://cluster.local/ns/a/sa/default");
    assert_eq!(pod.guard.len(), 1);
    assert_eq!(pod.guard[0].port, Some(8080));
    assert_eq!(pod.guard[0].identity.to_string(), "spiffe://cluster.local/ns/a/sa/w");
    assert_eq!(&*pod.guard[0].waypoint, "a/w");
    assert_eq!(view.waypoint("a", "w").map(|bundle| bundle.services.contains_key(&key)), Some(true));
}

#[test]
fn policies_of_the_mesh_the_namespace_and_the_selector_apply() {
    let deny = |full_name: &str| policy(full_name, Action::Deny, Some(CLIENT), None);
    let (mut index, store) = mesh([]);
    assert!(verdict(&store, "p").is_allowed(), "no policy, no restriction");
    for (what, object, p, q) in [
        ("selector", selecting(deny("a/d"), &[("app", "x")]), false, true),
        ("namespace", deny("a/d"), false, false),
        ("other namespace", deny("b/d"), true, true),
        ("root", deny("istio-system/d"), false, false),
        ("root selector", selecting(deny("istio-system/d"), &[("app", "y")]), true, false),
        ("target reference", targeting(deny("a/d"), "", "Service", "s"), true, true),
    ] {
        let key = name(&format!("{}/{}", object.namespace, object.name));
        store.apply(&index.apply([put(object)])).expect("readable");
        assert_eq!((verdict(&store, "p").is_allowed(), verdict(&store, "q").is_allowed()), (p, q), "{what}");
        store.apply(&index.apply([Change::Policy(key, None)])).expect("readable");
        assert!(verdict(&store, "p").is_allowed() && verdict(&store, "q").is_allowed(), "{what}: removed");
    }
}

#[test]
fn workloads_share_what_their_policies_compile_to() {
    let (mut index, store) = mesh([put(allow_all("a/open"))]);
    let (p, q) = (workload(&store, "p"), workload(&store, "q"));
    assert!(Arc::ptr_eq(&p.policies, &q.policies));
    store.apply(&index.apply([put(selecting(allow_all("a/more"), &[("app", "x")]))])).expect("readable");
    assert!(!Arc::ptr_eq(&workload(&store, "p").policies, &p.policies));
    assert!(Arc::ptr_eq(&workload(&store, "q"), &q), "untouched, so not rebuilt");
}

#[test]
fn a_policy_that_is_named_but_not_known_denies() {
    let (mut index, store) = mesh([]);
    let responses = index.apply([put(selecting(allow_all("a/open"), &[("app", "x")]))]);
    let only_addresses: Vec<_> = responses.into_iter().filter(|r| r.type_url == ADDRESS_TYPE).collect();
    store.apply(&only_addresses).expect("readable");
    let decision = verdict(&store, "p");
    assert!(!decision.is_allowed() && decision.reason.contains("policy `a/open` isn't loaded"), "{decision:?}");
    assert!(verdict(&store, "q").is_allowed());
}

/// A control plane says in one message that a policy is gone, and in another that the workload doesn't name it any more.
#[test]
fn a_removed_policy_stays_in_force_while_a_workload_names_it() {
    let (mut index, store) = mesh([put(selecting(allow_all("a/open"), &[("app", "x")]))]);
    let before = workload(&store, "p");
    let responses = index.apply([Change::Policy(name("a/open"), None)]);
    let of = |kind: &str| responses.iter().filter(|r| r.type_url == kind).cloned().collect::<Vec<_>>();
    store.apply(&of(AUTHORIZATION_TYPE)).expect("readable");
    assert!(Arc::ptr_eq(&workload(&store, "p"), &before), "nothing has changed for the workload yet");
    store.apply(&of(ADDRESS_TYPE)).expect("readable");
    assert!(verdict(&store, "p").is_allowed());
    assert_eq!(store.policies().len(), 0, "it is forgotten with the last workload that named it");
    // What comes back under the name is the new one, and an unknown name denies as ever.
    let denies = selecting(policy("a/open", Action::Deny, None, None), &[("app", "x")]);
    store.apply(&index.apply([put(denies)])).expect("readable");
    assert!(!verdict(&store, "p").is_allowed());
}

#[test]
fn a_rejected_policy_denies_what_it_targets_and_the_rest_is_applied() {
    let (mut index, store) = mesh([put(allow_all("a/open"))]);
    let mut responses = vec![response(AUTHORIZATION_TYPE, vec![broken("a/bad")])];
    responses.extend(index.apply([Change::Pod(name("a/new"), Some(pod("new", "z", 7)))]));
    let nack = store.apply(&responses).expect_err("rejected");
    assert_eq!(nack.rejected.len(), 1);
    assert_eq!(nack.rejected[0].0, "a/bad");
    for uid in ["p", "q", "new"] {
        let decision = verdict(&store, uid);
        assert!(!decision.is_allowed() && decision.reason.contains("`a/bad` was rejected"), "{decision:?}");
    }
    let removal =
        DeltaResponse { type_url: AUTHORIZATION_TYPE.into(), resources: Vec::new(), removed: vec!["a/bad".into()] };
    store.apply(&[removal]).expect("readable");
    assert!(verdict(&store, "new").is_allowed());
}

#[test]
fn a_rejected_policy_with_a_scope_denies_only_that_scope() {
    let (mut index, store) = mesh([]);
    let mut bad = selecting(allow_all("a/bad"), &[("app", "x")]);
    bad.spec.rules.as_mut().expect("rules")[0].to = Some(vec![Default::default()]);
    bad.spec.rules.as_mut().expect("rules")[0].to.as_mut().expect("to")[0].operation.ports = vec!["http".into()];
    let nack = store.apply(&index.apply([put(bad)])).expect_err("a port is a number");
    assert_eq!(nack.rejected[0].0, "a/bad");
    assert!(!verdict(&store, "p").is_allowed());
    assert!(verdict(&store, "q").is_allowed());
}

#[test]
fn a_rejected_bundle_closes_its_services() {
    let (_, store) = mesh([put(targeting(allow_all("a/open"), "", "Service", "s"))]);
    let key = ServiceKey { namespace: arc("a"), hostname: arc("s.a.svc.cluster.local") };
    let ask = || {
        let compiled = Arc::clone(&store.load().waypoint("a", "w").expect("known").services[&key]);
        compiled.for_connection(&facts()).decide(&RequestFacts::new("GET", "/", "s"))
    };
    assert!(ask().is_allowed());
    store.apply(&[response(WAYPOINT_TYPE, vec![broken("a/w")])]).expect_err("rejected");
    assert!(!ask().is_allowed() && ask().reason.contains("rejected"), "{:?}", ask());
}

#[test]
fn rejected_addresses_stay_known_and_closed() {
    let (_, store) = mesh([]);
    let rejected = vec![broken("p"), broken("a/s.a.svc.cluster.local"), broken("unheard-of")];
    let nack = store.apply(&[response(ADDRESS_TYPE, rejected)]).expect_err("rejected");
    assert_eq!(nack.rejected.len(), 3);
    let pod = workload(&store, "p");
    assert!(!pod.healthy && !verdict(&store, "p").is_allowed());
    let view = store.load();
    let service = view.service_by_vip([10, 96, 0, 10].into()).expect("still no address of the outside world");
    let waypoint = service.waypoint.as_ref().expect("a waypoint that isn't there");
    assert!(view.service(waypoint_service(waypoint)).is_none());
    assert!(service.rejected.is_some() && pod.rejected.is_some());
}

#[test]
fn an_address_has_one_owner_and_can_change_hands() {
    let (mut index, store) = mesh([]);
    let thief = index.apply([Change::Pod(name("a/thief"), Some(pod("thief", "x", 2)))]);
    store.apply(&thief).expect("readable");
    assert_eq!(store.load().workload_by_ip([10, 244, 0, 2].into()).map(|w| w.uid.to_string()), Some("p".into()));

    let mut swapped = Index::new(Settings::default());
    let store = Store::new(options());
    let pods =
        |p, q| [Change::Pod(name("a/p"), Some(pod("p", "x", p))), Change::Pod(name("a/q"), Some(pod("q", "y", q)))];
    store.apply(&swapped.apply(pods(2, 3))).expect("readable");
    store.apply(&swapped.apply(pods(3, 2))).expect("they swap within one push");
    assert_eq!(store.load().workload_by_ip([10, 244, 0, 2].into()).map(|w| w.uid.to_string()), Some("q".into()));
}

#[tokio::test]
async fn a_push_over_the_channel_is_acknowledged_after_it_is_in_force() {
    let (mut index, _) = mesh([]);
    let store = Store::new(options());
    let mut changes = store.changes();
    let (sender, receiver) = channel::channel();
    let running = tokio::spawn(Arc::clone(&store).run(receiver));
    assert_eq!(sender.push(index.snapshot()).await, Ok(Ok(())));
    assert!(store.load().workload("p").is_some());
    assert!(changes.has_changed().expect("alive"));
    changes.mark_unchanged();
    index.apply([]);
    let refused = sender.push(vec![response("type.example/unknown", vec![broken("x")])]).await;
    assert_eq!(refused.expect("alive").expect_err("unknown type").rejected[0].0, "x");
    drop(sender);
    running.await.expect("ends with the channel");
    assert!(store.load().workload("p").is_some(), "the last snapshot stays in force");
}
