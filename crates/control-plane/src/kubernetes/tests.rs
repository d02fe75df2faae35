//! What events come to, without an API server; `tests/kube` has the same with one.

use std::sync::Arc;

use ambit_mesh::inputs::NamespacedName;
use ambit_xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE, DeltaResponse, WAYPOINT_TYPE};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::{
    convert::{self, Content, Item},
    directory::Directory,
    kinds::Kind,
    state::State,
    watch::Event,
};
use crate::authority::PodDirectory;

const CLUSTER: &str = "Kubernetes";

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

fn namespace(name: &str) -> Item {
    convert::namespace(&read::<Namespace>(json!({"metadata": {"name": name}})))
}

fn service(name: &str, labels: Value, ip: &str) -> Item {
    convert::service(&read::<Service>(json!({
        "metadata": {"name": name, "namespace": "shop", "labels": labels},
        "spec": {
            "selector": {"app": name}, "clusterIP": ip, "clusterIPs": [ip],
            "ports": [{"name": "http", "port": 80, "targetPort": "web"}, {"port": 53, "protocol": "UDP"}],
        },
    })))
}

fn pod_object(name: &str, phase: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": "shop", "uid": format!("uid-{name}"),
            "labels": {"app": "web", "pod-template-hash": "5d9c"},
            "annotations": {"ambient.istio.io/redirection": "enabled"},
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d9c", "uid": "r", "controller": true}],
        },
        "spec": {
            "nodeName": "n1", "serviceAccountName": "web",
            "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}],
        },
        "status": {"phase": phase, "podIP": "10.1.0.5", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn pod(name: &str) -> Item {
    convert::pod(&read::<Pod>(pod_object(name, "Running")), CLUSTER)
}

fn custom(kind: Kind, api_version: &str, name: &str, spec: Value) -> Item {
    let object: DynamicObject = read(json!({
        "apiVersion": api_version, "kind": kind.name(),
        "metadata": {"name": name, "namespace": "shop"}, "spec": spec,
    }));
    convert::custom(&object, kind.name(), api_version)
}

fn policy(name: &str, action: &str) -> Item {
    let spec = json!({"action": action, "selector": {"matchLabels": {"app": "web"}},
        "rules": [{"from": [{"source": {"namespaces": ["shop"]}}]}]});
    custom(Kind::AuthorizationPolicy, "security.istio.io/v1", name, spec)
}

fn gateway(name: &str) -> Item {
    let spec = json!({"gatewayClassName": "istio-waypoint",
        "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]});
    custom(Kind::Gateway, "gateway.networking.k8s.io/v1", name, spec)
}

/// A state that has listed these, and nothing of the other kinds.
fn listed(mut all: Vec<(Kind, Vec<Item>)>) -> (State, Vec<DeltaResponse>) {
    let mut state = State::new(<_>::default(), Arc::new(Directory::default()));
    let mut deltas = Vec::new();
    for kind in Kind::ALL.iter().rev() {
        assert!(deltas.is_empty(), "nothing is served before all is known, but {deltas:?}");
        assert!(state.lacking().contains(kind));
        let at = all.iter().position(|(of, _)| of == kind);
        let items = at.map(|at| all.swap_remove(at).1).unwrap_or_default();
        deltas = state.take(vec![Event::All(*kind, items)]);
    }
    assert!(state.lacking().is_empty());
    (state, deltas)
}

fn names<'a>(deltas: &'a [DeltaResponse], kind: &str) -> Vec<&'a str> {
    let of_kind = deltas.iter().filter(|delta| delta.type_url == kind);
    of_kind.flat_map(|delta| &delta.resources).map(|resource| &*resource.name).collect()
}

fn removed<'a>(deltas: &'a [DeltaResponse], kind: &str) -> Vec<&'a str> {
    deltas.iter().filter(|delta| delta.type_url == kind).flat_map(|delta| &delta.removed).map(|name| &**name).collect()
}

#[test]
fn nothing_is_served_before_every_kind_was_listed() {
    let (state, deltas) = listed(vec![
        (Kind::Namespace, vec![namespace("shop")]),
        (Kind::Service, vec![service("web", json!({}), "10.96.0.7")]),
        (Kind::Pod, vec![pod("web-1")]),
        (Kind::AuthorizationPolicy, vec![policy("deny", "DENY")]),
    ]);
    assert_eq!(names(&deltas, AUTHORIZATION_TYPE), ["shop/deny"]);
    assert_eq!(names(&deltas, ADDRESS_TYPE), ["Kubernetes//Pod/shop/web-1", "shop/web.shop.svc.cluster.local"]);
    let order: Vec<_> = deltas.iter().map(|delta| &*delta.type_url).collect();
    let at = |kind: &str| order.iter().position(|of| *of == kind);
    assert!(at(AUTHORIZATION_TYPE) < at(ADDRESS_TYPE), "policies come before who names them: {order:?}");
    let pod = &state.inputs().pods[&NamespacedName::new("shop", "web-1")];
    assert_eq!((pod.owner.as_deref(), pod.ready, pod.captured, &*pod.node), (Some("web"), true, Some(true), "n1"));
    assert_eq!(pod.named_ports["web"], 8080);
    let service = &state.inputs().services[&NamespacedName::new("shop", "web")];
    assert_eq!(service.ports.len(), 1, "only TCP is carried");
}

#[test]
fn a_list_says_what_is_gone() {
    let (mut state, _) = listed(vec![
        (Kind::Pod, vec![pod("web-1"), pod("web-2")]),
        (Kind::AuthorizationPolicy, vec![policy("a", "DENY"), policy("b", "DENY")]),
    ]);
    // After 410 Gone, or a watch that was away.
    let deltas = state.take(vec![
        Event::All(Kind::Pod, vec![pod("web-2")]),
        Event::All(Kind::AuthorizationPolicy, vec![policy("b", "DENY")]),
    ]);
    assert_eq!(removed(&deltas, ADDRESS_TYPE), ["Kubernetes//Pod/shop/web-1"]);
    assert_eq!(removed(&deltas, AUTHORIZATION_TYPE), ["shop/a"]);
    // What came just before a list that doesn't have it is gone with it.
    let deltas = state.take(vec![
        Event::Applied(Kind::Pod, pod("web-3")),
        Event::Applied(Kind::AuthorizationPolicy, policy("c", "DENY")),
        Event::All(Kind::Pod, vec![pod("web-2")]),
        Event::All(Kind::AuthorizationPolicy, vec![policy("b", "DENY")]),
    ]);
    assert!(deltas.is_empty(), "{deltas:?}");
    let deltas = state.take(vec![
        Event::All(Kind::Pod, Vec::new()),
        Event::Applied(Kind::Pod, pod("web-2")),
        Event::Applied(Kind::Pod, pod("web-2")),
        Event::Deleted(Kind::Pod, NamespacedName::new("shop", "never")),
    ]);
    assert!(deltas.is_empty(), "the same, twice, and what never was: {deltas:?}");
}

#[test]
fn a_waypoint_has_the_address_of_its_own_service() {
    let managed = json!({"gateway.istio.io/managed": "istio.io-mesh-controller"});
    let vip = |state: &State| state.inputs().gateways[&NamespacedName::new("shop", "w")].vip.map(|ip| ip.to_string());
    // In one batch, and whichever comes first.
    let (mut state, _) = listed(vec![
        (Kind::Gateway, vec![gateway("w")]),
        (Kind::Service, vec![service("w", managed.clone(), "10.96.0.9")]),
    ]);
    assert_eq!(vip(&state).as_deref(), Some("10.96.0.9"));
    state.take(vec![Event::Applied(Kind::Gateway, gateway("w"))]);
    assert_eq!(vip(&state).as_deref(), Some("10.96.0.9"), "an event of the Gateway alone keeps it");
    state.take(vec![Event::Applied(Kind::Service, service("w", managed.clone(), "10.96.0.10"))]);
    assert_eq!(vip(&state).as_deref(), Some("10.96.0.10"));
    state.take(vec![Event::Applied(Kind::Service, service("w", json!({}), "10.96.0.10"))]);
    assert_eq!(vip(&state), None, "a Service that is somebody else's isn't the waypoint's");
    state.take(vec![Event::Applied(Kind::Service, service("w", managed, "None"))]);
    assert_eq!(vip(&state), None);
    let deltas = state.take(vec![Event::Deleted(Kind::Gateway, NamespacedName::new("shop", "w"))]);
    assert_eq!(removed(&deltas, WAYPOINT_TYPE), ["shop/w"]);
}

#[test]
fn what_cant_be_read_takes_nothing_away() {
    let strict = custom(Kind::PeerAuthentication, "security.istio.io/v1", "p", json!({"mtls": {"mode": "STRICT"}}));
    let (mut state, _) = listed(vec![
        (Kind::PeerAuthentication, vec![strict]),
        (Kind::AuthorizationPolicy, vec![policy("p", "DENY")]),
        (Kind::Pod, vec![pod("web-1")]),
    ]);
    let broken = custom(Kind::PeerAuthentication, "security.istio.io/v1", "p", json!({"mtls": 7}));
    assert!(matches!(broken.content, Content::Unreadable(_)), "{broken:?}");
    let deltas = state.take(vec![Event::Applied(Kind::PeerAuthentication, broken)]);
    assert!(deltas.is_empty(), "{deltas:?}");
    assert_eq!(state.inputs().peer_authentications.len(), 1);
    let broken = custom(Kind::PeerAuthentication, "security.istio.io/v1", "new", json!({"mtls": 7}));
    state.take(vec![Event::Applied(Kind::PeerAuthentication, broken)]);
    let new = &state.inputs().peer_authentications[&NamespacedName::new("shop", "new")];
    assert_eq!(new.spec.mtls.as_ref().map(|mtls| mtls.mode), Some(ambit_api::peer_authentication::Mode::Strict));
    // A policy is known by what it is attached to, and denies there.
    let broken = custom(Kind::AuthorizationPolicy, "security.istio.io/v1", "p", json!({"rules": 7}));
    let deltas = state.take(vec![Event::Applied(Kind::AuthorizationPolicy, broken)]);
    assert_eq!(names(&deltas, AUTHORIZATION_TYPE), ["shop/p"]);
    let (_, policy) = state.inputs().policies().next().expect("it is there");
    assert!(policy.rejection().is_some());
}

#[test]
fn what_depends_on_age_knows_it() {
    let aged = |kind: Kind, api_version: &str, spec: Value| {
        let object: DynamicObject = read(json!({
            "apiVersion": api_version, "kind": kind.name(), "spec": spec,
            "metadata": {"name": "x", "namespace": "shop", "creationTimestamp": "2026-01-02T03:04:05Z"},
        }));
        (kind, vec![convert::custom(&object, kind.name(), api_version)])
    };
    let rules = json!([{"backendRefs": [{"name": "web", "port": 80}]}]);
    let (state, _) = listed(vec![
        aged(Kind::PeerAuthentication, "security.istio.io/v1", json!({"mtls": {"mode": "STRICT"}})),
        aged(Kind::DestinationRule, "networking.istio.io/v1", json!({"host": "web"})),
        aged(
            Kind::HttpRoute,
            "gateway.networking.k8s.io/v1",
            json!({
            "parentRefs": [{"group": "", "kind": "Service", "name": "web"}], "rules": rules}),
        ),
    ]);
    let (inputs, name) = (state.inputs(), NamespacedName::new("shop", "x"));
    let at = Some("2026-01-02T03:04:05Z");
    assert_eq!(inputs.peer_authentications[&name].created.as_deref(), at);
    assert_eq!(inputs.destination_rules[&name].get().created.as_deref(), at);
    assert_eq!(inputs.routes[&("HTTPRoute", name)].get().created.as_deref(), at);
}

#[test]
fn pods_count_for_identities_while_they_run_in_the_mesh() {
    let directory = Arc::new(Directory::default());
    let mut state = State::new(<_>::default(), Arc::clone(&directory));
    let all = |kind: &Kind| Event::All(*kind, if *kind == Kind::Pod { vec![pod("web-1")] } else { Vec::new() });
    state.take(Kind::ALL.iter().map(all).collect());
    let facts = directory.pod("shop", "web-1").expect("it is there");
    assert_eq!((&*facts.uid, &*facts.service_account, &*facts.node), ("uid-web-1", "web", "n1"));
    assert!(directory.runs_on_node("n1", "shop", "web"));
    for (node, namespace, account) in [("n2", "shop", "web"), ("n1", "other", "web"), ("n1", "shop", "default")] {
        assert!(!directory.runs_on_node(node, namespace, account));
    }
    let put = |value: Value| Event::Applied(Kind::Pod, convert::pod(&read::<Pod>(value), CLUSTER));
    state.take(vec![put(pod_object("web-2", "Running"))]);
    let mut plain = pod_object("web-1", "Running");
    plain["metadata"]["annotations"] = json!({"ambient.istio.io/redirection": "pending"});
    state.take(vec![put(plain)]);
    assert!(directory.runs_on_node("n1", "shop", "web"), "another still does");
    // Ended: nothing to the mesh, and no reason for an identity.
    let deltas = state.take(vec![put(pod_object("web-2", "Succeeded"))]);
    assert_eq!(removed(&deltas, ADDRESS_TYPE), ["Kubernetes//Pod/shop/web-2"]);
    assert!(!directory.runs_on_node("n1", "shop", "web"));
    assert!(!directory.pod("shop", "web-2").expect("the API still has it").runs);
    state.take(vec![Event::All(Kind::Pod, Vec::new())]);
    assert_eq!(directory.pod("shop", "web-1"), None);
    assert_eq!(directory.pod("shop", "web-2"), None, "also one that the mesh had forgotten");
}

#[test]
fn one_mesh_config_holds() {
    let config = |name: &str, alias: &str| {
        let object: DynamicObject = read(json!({
            "apiVersion": "ambit.dev/v1alpha1", "kind": "MeshConfig", "metadata": {"name": name},
            "spec": {"trustDomainAliases": [alias]},
        }));
        convert::custom(&object, "MeshConfig", "ambit.dev/v1alpha1")
    };
    let (mut state, _) = listed(vec![(Kind::MeshConfig, vec![config("b", "beta")])]);
    let aliases = |state: &State| state.inputs().settings.trust_domain_aliases.clone();
    assert_eq!(aliases(&state), ["beta"]);
    state.take(vec![Event::Applied(Kind::MeshConfig, config("a", "alpha"))]);
    assert_eq!(aliases(&state), ["alpha"]);
    state.take(vec![Event::Deleted(Kind::MeshConfig, NamespacedName::new("", "a"))]);
    assert_eq!(aliases(&state), ["beta"]);
    state.take(vec![Event::All(Kind::MeshConfig, Vec::new())]);
    assert!(aliases(&state).is_empty());
}
