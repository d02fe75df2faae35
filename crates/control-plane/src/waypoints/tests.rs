//! What is made of a Gateway, and what it is told, without an API server; `tests/kube` has the same with one.

use ambit_api::Gateway;
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Service},
    jiff::Timestamp,
};
use serde_json::{Value, json};

use super::{
    Settings, render,
    status::{self, Children},
};

fn settings() -> Settings {
    Settings {
        namespace: "istio-system".to_owned(),
        revision: String::new(),
        cluster_id: "west".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        trust_domain: "example.org".to_owned(),
        image: "registry.example/ambit:1".to_owned(),
        image_pull_policy: "Always".to_owned(),
    }
}

fn gateway(more: Value) -> Gateway {
    let mut object = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {
            "name": "w", "namespace": "shop", "uid": "u", "generation": 3,
            "labels": {"istio.io/waypoint-for": "service", "team": "a"},
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "note": "n"},
        },
        "spec": {"gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]},
    });
    merge(&mut object, more);
    serde_json::from_value(object).expect("a Gateway")
}

fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}

fn ready(replicas: i32) -> Option<Deployment> {
    Some(serde_json::from_value(json!({"status": {"readyReplicas": replicas}})).expect("a Deployment"))
}

fn service(ip: &str) -> Option<Service> {
    Some(serde_json::from_value(json!({"spec": {"clusterIP": ip, "clusterIPs": [ip]}})).expect("a Service"))
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).expect("a time")
}

fn told(gateway: &Gateway, children: &Children, before: &Value, second: i64) -> Option<Value> {
    status::status(gateway, children, before, &settings(), at(second))
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    let all = status["conditions"].as_array().expect("a list");
    all.iter().find(|condition| condition["type"] == kind).expect("it is there")
}

#[test]
fn children_are_named_owned_and_found() {
    let [account, deployment, service] = render::children(&gateway(json!({})), &settings());
    for child in [&account, &deployment, &service] {
        let metadata = &child["metadata"];
        assert_eq!((&metadata["name"], &metadata["namespace"]), (&json!("w"), &json!("shop")));
        assert_eq!(metadata["ownerReferences"][0]["uid"], "u");
        assert_eq!(metadata["labels"]["gateway.istio.io/managed"], "istio.io-mesh-controller");
        assert_eq!(metadata["labels"]["gateway.networking.k8s.io/gateway-name"], "w");
        assert_eq!(metadata["labels"]["team"], "a");
        assert_eq!(metadata["annotations"], json!({"note": "n"}), "what is the Gateway's own stays there");
    }
    assert_eq!(deployment["spec"]["replicas"], Value::Null, "an autoscaler may say how many");
    let template = &deployment["spec"]["template"];
    let labels = template["metadata"]["labels"].as_object().expect("labels");
    for (key, value) in deployment["spec"]["selector"]["matchLabels"].as_object().expect("labels") {
        assert_eq!(labels.get(key), Some(value));
    }
    assert_eq!(labels["istio.io/dataplane-mode"], "none");
    assert_eq!(labels["gateway.networking.k8s.io/gateway-class-name"], "istio-waypoint");
    let container = &template["spec"]["containers"][0];
    assert_eq!(container["image"], "registry.example/ambit:1");
    let env = |name: &str| {
        let all = container["env"].as_array().expect("a list");
        all.iter().find(|variable| variable["name"] == name).expect("it is there")["value"].clone()
    };
    assert_eq!(env("XDS_ADDRESS"), "https://istiod.istio-system.svc:15012");
    assert_eq!((env("CLUSTER_ID"), env("TRUST_DOMAIN")), (json!("west"), json!("example.org")));
    assert_eq!(env("SERVICE_ACCOUNT"), "w");
    assert_eq!(container["securityContext"]["runAsNonRoot"], true);
    let ports = service["spec"]["ports"].as_array().expect("a list");
    let ports: Vec<_> = ports.iter().map(|port| (port["name"].clone(), port["port"].clone())).collect();
    assert_eq!(ports, [(json!("status-port"), json!(15021)), (json!("mesh"), json!(15008))]);
    assert_eq!(
        (&service["spec"]["type"], &service["spec"]["ports"][1]["appProtocol"]),
        (&json!("ClusterIP"), &json!("hbone"))
    );
}

#[test]
fn a_gateway_says_how_its_children_look() {
    let infrastructure = json!({"spec": {"infrastructure": {
        "labels": {"cost": "x", "gateway.networking.k8s.io/other": "y"}, "annotations": {"a": "b"}}}});
    let [account, ..] = render::children(&gateway(infrastructure), &settings());
    let labels = account["metadata"]["labels"].as_object().expect("labels");
    assert!(labels["cost"] == "x" && !labels.contains_key("team"), "{labels:?}");
    assert!(!labels.contains_key("gateway.networking.k8s.io/other"), "{labels:?}");
    assert_eq!(account["metadata"]["annotations"], json!({"a": "b"}));
    let annotations = json!({"metadata": {"annotations": {
        "gateway.istio.io/service-account": "own", "networking.istio.io/service-type": "LoadBalancer"}}});
    let [account, deployment, service] = render::children(&gateway(annotations), &settings());
    assert_eq!(account["metadata"]["name"], "own");
    assert_eq!(deployment["spec"]["template"]["spec"]["serviceAccountName"], "own");
    assert_eq!(service["spec"]["type"], "LoadBalancer");
    let revision = Settings { revision: "canary".to_owned(), ..settings() };
    let [_, deployment, _] = render::children(&gateway(json!({})), &revision);
    assert!(deployment.to_string().contains("https://istiod-canary.istio-system.svc:15012"));
    for (addresses, managed) in [
        (json!([]), true),
        (json!([{"type": "IPAddress", "value": "1.2.3.4"}]), true),
        (json!([{"type": "Hostname", "value": "w.example"}]), false),
        (json!([{"value": "1.2.3.4"}, {"value": "1.2.3.5"}]), false),
    ] {
        let gateway = gateway(json!({"spec": {"addresses": addresses}}));
        assert_eq!(render::is_managed(&gateway), managed, "{addresses}");
    }
    // Names that a Service can't have, or has already.
    let listeners = json!({"spec": {"listeners": [
        {"name": "mesh", "port": 15008, "protocol": "HBONE"}, {"name": "a.b", "port": 81, "protocol": "TCP"},
        {"name": "a-b", "port": 82, "protocol": "TCP"}, {"name": "again", "port": 15021, "protocol": "TCP"},
        {"name": "x".repeat(70), "port": 83, "protocol": "TCP"}]}});
    let [.., service] = render::children(&gateway(listeners), &settings());
    let ports = service["spec"]["ports"].as_array().expect("a list");
    let names: Vec<_> = ports.iter().filter_map(|port| port["name"].as_str()).collect();
    assert_eq!(names, ["status-port", "mesh", "a-b", "listener-82", &"x".repeat(63)]);
}

#[test]
fn an_address_comes_with_the_first_ready_pod_and_stays() {
    let gateway = gateway(json!({}));
    let nothing = told(&gateway, &Children::default(), &Value::Null, 0).expect("it is told");
    assert_eq!(condition(&nothing, "Programmed")["reason"], "AddressNotAssigned");
    assert_eq!(condition(&nothing, "Accepted")["status"], "True");
    assert_eq!(condition(&nothing, "Accepted")["observedGeneration"], 3);
    assert_eq!(nothing["addresses"], json!([]));
    let starting = Children { deployment: ready(0), service: service("10.96.0.9"), ..Children::default() };
    assert_eq!(told(&gateway, &starting, &nothing, 1), None, "nothing has changed");

    let serving = Children { deployment: ready(1), service: service("10.96.0.9"), ..Children::default() };
    let programmed = told(&gateway, &serving, &nothing, 2).expect("it is told");
    assert_eq!(condition(&programmed, "Programmed")["status"], "True");
    assert_eq!(programmed["addresses"][0], json!({"type": "IPAddress", "value": "10.96.0.9"}));
    assert_eq!(programmed["addresses"][1]["value"], "w.shop.svc.cluster.local");
    let since = |status: &Value, kind: &str| condition(status, kind)["lastTransitionTime"].clone();
    assert_eq!(since(&programmed, "Accepted"), since(&nothing, "Accepted"), "what stays keeps its time");
    assert_eq!(since(&programmed, "Programmed"), "2023-11-14T22:13:22Z");

    assert_eq!(told(&gateway, &starting, &programmed, 3), None, "pods that aren't ready take nothing back");
    let moved = Children { deployment: ready(0), service: service("10.96.0.10"), ..Children::default() };
    let moved = told(&gateway, &moved, &programmed, 4).expect("it is told");
    assert_eq!(moved["addresses"][0]["value"], "10.96.0.10");
}

#[test]
fn what_is_wrong_is_said() {
    let others = Children { others: vec!["Service `w`".to_owned()], ..Children::default() };
    let status = told(&gateway(json!({})), &others, &Value::Null, 0).expect("it is told");
    let programmed = condition(&status, "Programmed");
    assert_eq!((&programmed["status"], &programmed["reason"]), (&json!("False"), &json!("Invalid")));
    assert!(programmed["message"].as_str().is_some_and(|text| text.contains("Service `w`")), "{programmed}");

    let listeners = json!([
        {"name": "mesh", "port": 15008, "protocol": "HBONE"}, {"name": "web", "port": 80, "protocol": "HTTP"}]);
    let both = gateway(json!({"spec": {"listeners": listeners}}));
    let status = told(&both, &Children::default(), &Value::Null, 0).expect("it is told");
    let accepted = condition(&status, "Accepted");
    assert_eq!((&accepted["status"], &accepted["reason"]), (&json!("True"), &json!("ListenersNotValid")));
    assert_eq!(status["listeners"][0]["conditions"][0]["reason"], "Accepted");
    assert_eq!(status["listeners"][1]["conditions"][0]["reason"], "UnsupportedProtocol");

    let none = gateway(json!({"spec": {"listeners": [{"name": "web", "port": 15008, "protocol": "hbone"}]}}));
    let status = told(&none, &Children::default(), &Value::Null, 0).expect("it is told");
    assert_eq!(condition(&status, "Accepted")["status"], "False");
}
