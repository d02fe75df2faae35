//! Who may watch: what a client says of itself against who it is.

use ambit_xds::{
    discovery::Node,
    server::{Authorize, Denied},
};
use serde_json::{Value, json};

use super::*;

fn node(id: &str, metadata: Value) -> Node {
    let Value::Object(metadata) = metadata else { panic!("an object") };
    Node { id: id.into(), cluster: String::new(), metadata: Some(metadata.into_iter().collect()) }
}

fn ztunnel() -> Node {
    let metadata = json!({
        "NAME": "ztunnel-x", "NAMESPACE": "istio-system", "SERVICE_ACCOUNT": "ztunnel", "NODE_NAME": "n1",
        "CLUSTER_ID": "Kubernetes",
    });
    node("ztunnel~10.0.0.1~ztunnel-x.istio-system~istio-system.svc.cluster.local", metadata)
}

fn waypoint(gateway: &str) -> Node {
    let labels = json!({ "gateway.networking.k8s.io/gateway-name": gateway });
    node("waypoint~10.0.0.2~way-1.app~app.svc.cluster.local", json!({ "SERVICE_ACCOUNT": "way", "LABELS": labels }))
}

async fn ask(world: &World, node: &Node) -> Result<(), Denied> {
    world.authorizer().discovery(&world.peer(), node).await
}

#[tokio::test]
async fn node_proxies_and_waypoints_watch() {
    assert_eq!(ask(&World::new(), &ztunnel()).await, Ok(()));
    let bare = Node { metadata: None, ..ztunnel() };
    assert_eq!(ask(&World::new(), &bare).await, Ok(()));
    assert_eq!(ask(&World::waypoint(), &waypoint("way")).await, Ok(()));
    let bare = Node { metadata: None, ..waypoint("") };
    assert_eq!(ask(&World::waypoint(), &bare).await, Ok(()));
}

#[tokio::test]
async fn a_certificate_of_the_mesh_does_as_well() {
    let certificate = Some(id("spiffe://cluster.local/ns/app/sa/way"));
    let renewed = World { token: None, certificate, ..World::new() };
    assert_eq!(ask(&renewed, &waypoint("way")).await, Ok(()));
    let certificate = Some(id("spiffe://cluster.local/ns/app/sa/web"));
    let another = World { token: None, certificate, ..World::new() };
    ask(&another, &waypoint("way")).await.expect_err("another's certificate");
    // Only what the control plane knows of the pod makes it a waypoint.
    let claimed = node("waypoint~10.0.0.3~web-1.app~app.svc.cluster.local", json!({}));
    let denied = ask(&another, &claimed).await.expect_err("no waypoint");
    assert!(denied.reason.contains("belongs to no Gateway"), "{denied}");
}

#[tokio::test]
async fn what_is_not_true_refuses_a_node_proxy() {
    let id_of = |id: &str| Node { id: id.into(), ..Node::default() };
    let with = |key: &str, value: &str| {
        let mut node = ztunnel();
        let json = Value::String(value.into());
        node.metadata.as_mut().expect("some").fields.insert(key.into(), json.into());
        node
    };
    let cases = [
        ("four parts", id_of("")),
        ("four parts", id_of("ztunnel~1.1.1.1~ztunnel-x.istio-system")),
        ("only node proxies", id_of("sidecar~1.1.1.1~ztunnel-x.istio-system~istio-system.svc.cluster.local")),
        ("only node proxies", id_of("router~1.1.1.1~ztunnel-x.istio-system~istio-system.svc.cluster.local")),
        ("names no pod", id_of("ztunnel~1.1.1.1~ztunnel-x~istio-system.svc.cluster.local")),
        ("names no pod", id_of("ztunnel~1.1.1.1~.istio-system~istio-system.svc.cluster.local")),
        ("two namespaces", id_of("ztunnel~1.1.1.1~ztunnel-x.istio-system~app.svc.cluster.local")),
        ("it says it is in namespace", id_of("ztunnel~1.1.1.1~ztunnel-x.app~app.svc.cluster.local")),
        ("it says it is pod", id_of("ztunnel~1.1.1.1~ztunnel-y.istio-system~istio-system.svc.cluster.local")),
        ("another pod than its ID", with("NAMESPACE", "app")),
        ("another pod than its ID", with("NAME", "ztunnel-y")),
        ("another service account", with("SERVICE_ACCOUNT", "web")),
        ("another node", with("NODE_NAME", "n2")),
        ("another cluster", with("CLUSTER_ID", "remote")),
        ("belongs to no Gateway", id_of("waypoint~1.1.1.1~ztunnel-x.istio-system~istio-system.svc.cluster.local")),
    ];
    for (reason, node) in cases {
        let denied = ask(&World::new(), &node).await.expect_err(reason);
        assert!(denied.reason.contains(reason), "{reason}: {denied}");
    }
}

#[tokio::test]
async fn who_is_not_what_it_says_is_refused() {
    type Change = fn(&mut World);
    let cases: [(&str, Change); 7] = [
        ("trusted node accounts", |world| world.trusted.clear()),
        ("isn't bound", |world| world.extra.clear()),
        ("earlier pod", |world| world.pod("istio-system", "ztunnel-x").uid = "u".into()),
        ("there is no pod", |world| world.pods.0.clear()),
        ("has ended", |world| world.pod("istio-system", "ztunnel-x").runs = false),
        ("another node", |world| world.pod("istio-system", "ztunnel-x").node = "n2".into()),
        ("no certificate", |world| world.token = None),
    ];
    for (reason, change) in cases {
        let mut world = World::new();
        change(&mut world);
        let denied = ask(&world, &ztunnel()).await.expect_err(reason);
        assert!(denied.reason.contains(reason), "{reason}: {denied}");
    }
    let denied = ask(&World::waypoint(), &waypoint("other")).await.expect_err("another Gateway");
    assert!(denied.reason.contains("another Gateway"), "{denied}");
    // An app's pod is no node proxy.
    let node = node("ztunnel~10.0.0.2~way-1.app~app.svc.cluster.local", json!({}));
    let denied = ask(&World::waypoint(), &node).await.expect_err("no node proxy");
    assert!(denied.reason.contains("trusted node accounts"), "{denied}");
}
