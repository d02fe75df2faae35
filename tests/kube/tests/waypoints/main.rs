//! Waypoints on a real API server with its own controllers: what is made for a Gateway, kept right, left alone, and gone again.
#![forbid(unsafe_code)]

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_control_plane::{
    authority::{Leadership, LeadershipSettings},
    waypoints,
};
use ambit_identity::{Clock, SystemClock};
use ambit_tests_kube::{KubeServer, programs_or_skip};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// The longest that anything may take, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long something is watched that must not happen.
const A_WHILE: Duration = Duration::from_millis(1500);
const NAMESPACE: &str = "shop";

struct Cluster {
    server: KubeServer,
    client: Client,
    folder: tempfile::TempDir,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waypoints_are_made_and_kept() {
    let Some(programs) = programs_or_skip() else { return };
    let cluster = Cluster::start(KubeServer::start(&programs).expect("it starts")).await;
    let stop = CancellationToken::new();
    // Another leads: nothing is written.
    let (other, leading) = cluster.leadership("other", &stop);
    eventually("the other leads", || async { other.is_leader() }).await;
    let (leadership, candidate) = cluster.leadership("ours", &stop);
    let kept = tokio::spawn(waypoints::keep(cluster.client.clone(), leadership, settings(), stop.clone()));
    cluster.apply(&gateway("w", json!({}), json!({})));
    tokio::time::sleep(A_WHILE).await;
    for kind in ["deployment", "service", "serviceaccount"] {
        assert!(cluster.get(kind, "w").is_none(), "{kind}: only the leader writes");
    }
    assert!(cluster.server.run(&["get", "gatewayclass", "istio-waypoint"]).is_err());
    // It stops as a replica does that ends: the Lease is free.
    leading.abort();
    cluster.server.run(&["delete", "lease", "waypoints", "-n", NAMESPACE]).expect("it is there");

    made(&cluster).await;
    kept_right(&cluster).await;
    left_alone(&cluster).await;
    follows_the_gateway(&cluster).await;
    goes(&cluster).await;
    stop.cancel();
    kept.await.expect("no panic");
    candidate.await.expect("no panic");
}

async fn made(cluster: &Cluster) {
    eventually("all is made", || async {
        ["deployment", "service", "serviceaccount"].iter().all(|kind| cluster.get(kind, "w").is_some())
    })
    .await;
    let class = |path: &str| cluster.server.run(&["get", "gatewayclass", "istio-waypoint", "-o", path]);
    let accepted = "jsonpath={.status.conditions[?(@.type=='Accepted')].status}";
    eventually("the class is made and told", || async { class(accepted).is_ok_and(|status| status == "True") }).await;
    let gateway = cluster.get("gateway", "w").expect("it is there");
    assert_eq!(gateway["metadata"]["annotations"]["gateway.istio.io/controller-version"], "5");
    let owner = &cluster.get("service", "w").expect("it is there")["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["uid"]), (&json!("Gateway"), &gateway["metadata"]["uid"]));
    let wait = |condition: &str| {
        let condition = format!("--for=condition={condition}");
        cluster.server.run(&["wait", "gateway", "w", "-n", NAMESPACE, &condition, "--timeout=20s"])
    };
    wait("Accepted").expect("it is accepted");
    assert_eq!(cluster.condition("w", "Programmed")["reason"], "AddressNotAssigned");
    assert_eq!(cluster.condition("w", "Programmed")["observedGeneration"], 1);
}

/// What somebody changes or deletes comes back; what they add stays.
async fn kept_right(cluster: &Cluster) {
    cluster.run(&[
        "patch",
        "deployment",
        "w",
        "-n",
        NAMESPACE,
        "--type=json",
        "-p",
        r#"[{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "wrong"}]"#,
    ]);
    eventually("the image is right again", || async {
        let deployment = cluster.get("deployment", "w").expect("it is there");
        deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "ambit:test"
    })
    .await;
    cluster.run(&["scale", "deployment", "w", "-n", NAMESPACE, "--replicas=3"]);
    cluster.run(&["delete", "service", "w", "-n", NAMESPACE]);
    eventually("the Service is back", || async { cluster.get("service", "w").is_some() }).await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(cluster.get("deployment", "w").expect("it is there")["spec"]["replicas"], 3, "that is others' to say");
}

/// A Service that somebody else made isn't touched, and the Gateway says so; neither is a Gateway of another revision or with a
/// newer controller.
async fn left_alone(cluster: &Cluster) {
    cluster.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "taken", "namespace": NAMESPACE},
        "spec": {"ports": [{"port": 80}], "selector": {"app": "mine"}},
    }));
    cluster.apply(&gateway("taken", json!({}), json!({})));
    eventually("the Gateway says it", || async {
        let programmed = cluster.condition("taken", "Programmed");
        programmed["reason"] == "Invalid"
            && programmed["message"].as_str().is_some_and(|text| text.contains("Service `taken`"))
    })
    .await;
    let service = cluster.get("service", "taken").expect("it is there");
    assert_eq!(service["spec"]["selector"], json!({"app": "mine"}));
    assert!(service["metadata"]["ownerReferences"].is_null(), "{service}");

    cluster.apply(&gateway("revised", json!({"labels": {"istio.io/rev": "canary"}}), json!({})));
    let newer = json!({"annotations": {"gateway.istio.io/controller-version": "6"}});
    cluster.apply(&gateway("newer", newer, json!({})));
    cluster.apply(&gateway("elsewhere", json!({}), json!({"addresses": [{"type": "Hostname", "value": "w.example"}]})));
    eventually("that with an address is told", || async {
        cluster.condition("elsewhere", "Programmed")["status"] == "True"
    })
    .await;
    tokio::time::sleep(A_WHILE).await;
    for name in ["revised", "newer", "elsewhere"] {
        assert!(cluster.get("deployment", name).is_none(), "{name}");
    }
    for name in ["revised", "newer"] {
        assert_ne!(cluster.condition(name, "Accepted")["status"], "True", "{name}");
    }
}

async fn follows_the_gateway(cluster: &Cluster) {
    cluster.apply(&gateway("w", json!({}), json!({"infrastructure": {"labels": {"cost": "x"}}})));
    eventually("its children have its labels", || async {
        ["deployment", "service", "serviceaccount"]
            .iter()
            .all(|kind| cluster.get(kind, "w").is_some_and(|child| child["metadata"]["labels"]["cost"] == "x"))
    })
    .await;
    assert_eq!(cluster.condition("w", "Accepted")["observedGeneration"], 2);
}

async fn goes(cluster: &Cluster) {
    cluster.run(&["delete", "gateway", "w", "-n", NAMESPACE]);
    eventually("all goes with it", || async {
        ["deployment", "service", "serviceaccount"].iter().all(|kind| cluster.get(kind, "w").is_none())
    })
    .await;
    tokio::time::sleep(A_WHILE).await;
    assert!(cluster.get("deployment", "w").is_none(), "it isn't made again");
}

// === impl Cluster ===

impl Cluster {
    async fn start(server: KubeServer) -> Self {
        let file = Kubeconfig::read_from(server.kubeconfig()).expect("readable");
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("complete");
        let client = Client::try_from(config).expect("a client");
        let cluster = Self { server, client, folder: tempfile::tempdir().expect("a folder") };
        let definitions = ambit_install::chart::definitions().expect("they can be written");
        let file = cluster.folder.path().join("crds.yaml");
        std::fs::write(&file, definitions).expect("written");
        cluster.run(&["apply", "--server-side", "-f", file.to_str().expect("text")]);
        cluster.run(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"]);
        cluster.run(&["create", "namespace", NAMESPACE]);
        cluster
    }

    fn leadership(&self, identity: &str, stop: &CancellationToken) -> (Leadership, tokio::task::JoinHandle<()>) {
        let settings = LeadershipSettings {
            duration: Duration::from_secs(2),
            renew_within: Duration::from_millis(1200),
            retry: Duration::from_millis(200),
            ..LeadershipSettings::new(NAMESPACE, "waypoints", identity)
        };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        Leadership::start(self.client.clone(), settings, clock, stop.clone())
    }

    fn run(&self, arguments: &[&str]) -> String {
        self.server.run(arguments).unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    fn apply(&self, object: &Value) {
        let file = self.folder.path().join("object.json");
        std::fs::write(&file, object.to_string()).expect("written");
        self.run(&["apply", "-f", file.to_str().expect("text")]);
    }

    fn get(&self, kind: &str, name: &str) -> Option<Value> {
        self.server.json(&["get", kind, name, "-n", NAMESPACE, "-o", "json"]).ok()
    }

    fn condition(&self, gateway: &str, kind: &str) -> Value {
        let gateway = self.get("gateway", gateway).unwrap_or_default();
        let all = gateway["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default()
    }
}

fn settings() -> waypoints::Settings {
    waypoints::Settings {
        namespace: "istio-system".to_owned(),
        revision: String::new(),
        cluster_id: "Kubernetes".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        image: "ambit:test".to_owned(),
        image_pull_policy: "IfNotPresent".to_owned(),
    }
}

fn gateway(name: &str, metadata: Value, spec: Value) -> Value {
    let mut object = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]},
    });
    for (part, more) in [("metadata", metadata), ("spec", spec)] {
        for (key, value) in more.as_object().expect("an object") {
            object[part][key] = value.clone();
        }
    }
    object
}

/// Asks again until it is so.
async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}
