//! Every row of what objects are told.

use std::collections::BTreeMap;

use ambit_api::{Loaded, load_text};
use ambit_mesh::inputs::{Change, Inputs, Namespace, NamespacedName, Service, Settings};
use serde_json::{Value, json};

use super::{About, Condition, Standing, Told, WAYPOINT_BOUND, differences, wanted};
use crate::objects::{authorization, gateway_of, labels, rules};

/// A mesh with a waypoint `w` and a Service `web` bound to it, a Service `plain` without one, and these objects.
fn mesh(more: &[Value]) -> Inputs {
    let mut inputs = Inputs::new(Settings::default());
    inputs.apply(Change::Namespace("shop".into(), Some(Namespace::default())));
    let gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "w", "namespace": "shop"},
        "spec": {"gatewayClassName": "istio-waypoint", "listeners": [{"name": "m", "port": 15008, "protocol": "HBONE"}]},
    });
    let ingress = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "in", "namespace": "shop"},
        "spec": {"gatewayClassName": "istio", "listeners": [{"name": "m", "port": 80, "protocol": "HTTP"}]},
    });
    service(&mut inputs, "web", &[("istio.io/use-waypoint", "w")]);
    service(&mut inputs, "plain", &[]);
    for object in [gateway, ingress].iter().chain(more) {
        let Loaded { objects, malformed, .. } = load_text("", &object.to_string());
        let read = objects.into_iter().chain(malformed).next().unwrap_or_else(|| panic!("{object}"));
        let rejection = read.rejection.as_deref();
        let change = match read.resource {
            ambit_api::Resource::Gateway(gateway) => {
                let read = gateway_of(labels(Some(&gateway.metadata)), &gateway);
                let name = gateway.metadata.name.as_deref().unwrap_or_default();
                Some(Change::Gateway(NamespacedName::new("shop", name), Some(read)))
            }
            ambit_api::Resource::AuthorizationPolicy(policy) => Some(authorization(*policy, rejection)),
            resource => rules(&resource, rejection),
        };
        inputs.apply(change.unwrap_or_else(|| panic!("{object}")));
    }
    inputs
}

fn service(inputs: &mut Inputs, name: &str, pairs: &[(&str, &str)]) {
    let labels = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let service = Service { labels, ..Service::default() };
    inputs.apply(Change::Service(NamespacedName::new("shop", name), Some(service)));
}

fn policy(spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "shop"}, "spec": spec,
    })
}

fn reference(kind: &str, name: &str) -> Value {
    let group = if kind == "Service" { "" } else { "gateway.networking.k8s.io" };
    json!({"kind": kind, "group": group, "name": name})
}

fn told(inputs: &Inputs, told: Told, name: &str) -> Option<(&'static str, bool, String, String)> {
    let all = wanted(inputs);
    let Condition { kind, status, reason, message } = all.get(&(told, NamespacedName::new("shop", name)))?.clone();
    Some((kind, status, reason, message))
}

#[test]
fn services_hear_of_their_waypoint() {
    for (label, gateway, status, reason, message) in [
        ("w", json!({}), true, "WaypointAccepted", "Successfully attached to waypoint shop/w"),
        (
            "gone",
            json!({}),
            false,
            "WaypointIsNotReady",
            "waypoint \"shop/gone\" doesn't exist; its traffic is refused",
        ),
        ("in", json!({}), false, "WaypointIsNotReady", "isn't of the waypoint class"),
        (
            "x",
            json!({"labels": {"istio.io/waypoint-for": "workload"}}),
            false,
            "UnsupportedTrafficType",
            "type \"service\"",
        ),
    ] {
        let mut metadata = json!({"name": "x", "namespace": "shop"});
        if let Some(labels) = gateway.get("labels") {
            metadata["labels"] = labels.clone();
        }
        let other = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": metadata,
            "spec": {"gatewayClassName": "istio-waypoint", "listeners": [{"name": "m", "port": 15008, "protocol": "HBONE"}]},
        });
        let mut inputs = mesh(&[other]);
        service(&mut inputs, "web", &[("istio.io/use-waypoint", label)]);
        let (kind, said, why, text) = told(&inputs, Told::Service, "web").expect("it is told");
        assert_eq!((kind, said, why.as_str()), ("istio.io/WaypointBound", status, reason), "{label}");
        assert!(text.contains(message), "{label}: {text}");
    }
    assert_eq!(told(&mesh(&[]), Told::Service, "plain"), None, "it asks for none");
    let mut inputs = mesh(&[]);
    service(&mut inputs, "web", &[("istio.io/use-waypoint", "w"), ("istio.io/use-waypoint-namespace", "other")]);
    let labels = [("ambit.dev/missing-waypoint".to_owned(), "bypass".to_owned())].into();
    inputs.apply(Change::Namespace("shop".into(), Some(Namespace { labels })));
    let (_, _, _, text) = told(&inputs, Told::Service, "web").expect("it is told");
    assert!(text.contains("goes direct"), "{text}");
}

#[test]
fn policies_hear_who_enforces_them() {
    let principal = json!([{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/a"]}}]}]);
    let paths = json!([{"to": [{"operation": {"paths": ["/x"]}}]}]);
    let rows = [
        (json!({"rules": principal}), "ZtunnelAccepted", true, "Accepted", "attached to ztunnel"),
        (json!({"action": "DENY", "rules": paths}), "ZtunnelAccepted", true, "UnsupportedValue", "paths"),
        (json!({"action": "AUDIT", "rules": principal}), "ZtunnelAccepted", false, "UnsupportedValue", "AUDIT"),
        (
            json!({"targetRefs": [reference("Service", "web")], "rules": paths}),
            "WaypointAccepted",
            true,
            "Accepted",
            "bound to shop/w",
        ),
        (
            json!({"targetRefs": [reference("Gateway", "w")], "rules": paths}),
            "WaypointAccepted",
            true,
            "Accepted",
            "bound to shop/w",
        ),
        (
            json!({"targetRefs": [reference("Service", "plain")], "rules": paths}),
            "WaypointAccepted",
            false,
            "AncestorNotBound",
            "Service shop/plain",
        ),
        (
            json!({"targetRefs": [reference("Service", "no")], "rules": paths}),
            "WaypointAccepted",
            false,
            "TargetNotFound",
            "Service shop/no was not found",
        ),
        (
            json!({"targetRefs": [reference("Gateway", "in")], "rules": paths}),
            "WaypointAccepted",
            false,
            "Invalid",
            "class istio",
        ),
        (
            json!({"targetRefs": [reference("GatewayClass", "istio-waypoint")], "rules": paths}),
            "WaypointAccepted",
            false,
            "Invalid",
            "root namespace",
        ),
        (
            json!({"targetRefs": [reference("Service", "web"), reference("Service", "no")], "rules": paths}),
            "WaypointAccepted",
            true,
            "PartiallyInvalid",
            "Invalid targetRefs: Service.core:shop/no",
        ),
        (
            json!({"targetRefs": [reference("Service", "plain"), reference("Service", "no")], "rules": paths}),
            "WaypointAccepted",
            false,
            "Invalid",
            "Service.core:shop/plain, Service.core:shop/no",
        ),
        (
            json!({"targetRefs": [reference("Service", "web"), reference("Gateway", "w")], "rules": paths}),
            "WaypointAccepted",
            true,
            "Accepted",
            "",
        ),
        (
            json!({"targetRefs": [reference("Service", "web")], "rules": 7}),
            "WaypointAccepted",
            false,
            "Invalid",
            "what it is attached to is denied",
        ),
    ];
    for (spec, kind, status, reason, message) in rows {
        let inputs = mesh(&[policy(spec.clone())]);
        let (said, is, why, text) = told(&inputs, Told::AuthorizationPolicy, "p").expect("it is told");
        assert_eq!((said, is, why.as_str()), (kind, status, reason), "{spec}: {text}");
        assert!(text.contains(message), "{spec}: {text}");
    }
}

#[test]
fn others_hear_too() {
    let request = |spec: Value| {
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
            "metadata": {"name": "r", "namespace": "shop"}, "spec": spec,
        })
    };
    let token = json!([{"issuer": "https://i.example"}]);
    for (spec, status, reason) in [
        (json!({"jwtRules": token, "targetRefs": [reference("Service", "web")]}), true, "Accepted"),
        (json!({"jwtRules": token, "targetRefs": [reference("Service", "plain")]}), false, "AncestorNotBound"),
        (json!({"jwtRules": token}), false, "UnsupportedValue"),
    ] {
        let (kind, is, why, text) =
            told(&mesh(&[request(spec.clone())]), Told::RequestAuthentication, "r").expect("it is told");
        assert_eq!((kind, is, why.as_str()), ("WaypointAccepted", status, reason), "{spec}: {text}");
    }
    let peers = json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "p", "namespace": "shop"}, "spec": {"mtls": {"mode": "STRICT"}},
    });
    let (kind, is, why, _) = told(&mesh(&[peers]), Told::PeerAuthentication, "p").expect("it is told");
    assert_eq!((kind, is, why.as_str()), ("ZtunnelAccepted", true, "Accepted"));
}

#[test]
fn only_what_differs_is_written() {
    let subject = (Told::Service, NamespacedName::new("shop", "web"));
    let condition = |status: bool, message: &str| Condition {
        kind: WAYPOINT_BOUND,
        status,
        reason: "R".to_owned(),
        message: message.to_owned(),
    };
    let about = |condition: Condition| About {
        generation: Some(2),
        standing: vec![Standing { condition, observed_generation: Some(2), since: "then".to_owned() }],
    };
    let wanted = BTreeMap::from([(subject.clone(), condition(true, "a"))]);
    let differ = |wanted: &BTreeMap<_, _>, about: About| differences(wanted, &[(subject.clone(), about)].into());

    assert!(differ(&wanted, about(condition(true, "a"))).is_empty());
    let [text] = differ(&wanted, about(condition(true, "b"))).try_into().expect("one");
    assert_eq!((text.manager, text.since.as_deref()), ("istio-ambient-service", Some("then")), "its status stays");
    let [turned] = differ(&wanted, about(condition(false, "a"))).try_into().expect("one");
    assert_eq!((turned.since, turned.generation), (None, Some(2)));
    let [fresh] = differ(&wanted, About::default()).try_into().expect("one");
    assert_eq!(fresh.condition, Some(condition(true, "a")));
    let old = About { generation: Some(3), ..about(condition(true, "a")) };
    assert_eq!(differ(&wanted, old).len(), 1, "of an earlier generation");
    let [removed] = differ(&BTreeMap::new(), about(condition(true, "a"))).try_into().expect("one");
    assert_eq!(removed.condition, None);
    assert!(differ(&BTreeMap::new(), About::default()).is_empty());
}
