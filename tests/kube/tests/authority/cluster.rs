//! The API server of the tests, and what a kubelet and a scheduler would do there.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use ambit_control_plane::authority::{PodDirectory, PodFacts};
use ambit_tests_kube::{KubeServer, Programs};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

/// The longest that anything may take, on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Cluster {
    pub server: KubeServer,
    pub client: Client,
}

/// Pods as the API server has them at this moment.
pub struct LivePods(pub Vec<Value>);

impl Cluster {
    pub async fn start(programs: &Programs) -> Self {
        let server = KubeServer::start(programs).expect("it starts");
        let client = client(&server).await;
        Self { server, client }
    }

    pub fn run(&self, arguments: &[&str]) -> String {
        self.server.run(arguments).unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        self.server.json(arguments).unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    pub fn apply(&self, object: &Value) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("object.json");
        std::fs::write(&file, object.to_string()).expect("written");
        self.run(&["apply", "-f", file.to_str().expect("text")]);
    }

    /// A pod on a node, as a scheduler leaves it.
    pub fn pod(&self, namespace: &str, name: &str, account: &str, node: &str) {
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": namespace },
            "spec": {
                "serviceAccountName": account, "nodeName": node,
                "containers": [{ "name": "c", "image": "none" }],
            },
        }));
    }

    /// A token bound to a pod, for ten minutes: the shortest that the API server issues.
    pub fn token(&self, namespace: &str, account: &str, pod: &str, audience: &str) -> String {
        let bound = ["--bound-object-kind=Pod", &format!("--bound-object-name={pod}")];
        let audience = format!("--audience={audience}");
        let arguments = ["create", "token", account, "-n", namespace, "--duration=10m", &audience];
        self.run(&[&arguments[..], &bound[..]].concat()).trim().to_owned()
    }

    pub fn pods(&self) -> LivePods {
        let all = self.json(&["get", "pods", "-A", "-o", "json"]);
        LivePods(all["items"].as_array().expect("a list").clone())
    }
}

async fn client(server: &KubeServer) -> Client {
    let file = Kubeconfig::read_from(server.kubeconfig()).expect("readable");
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("complete");
    Client::try_from(config).expect("a client")
}

impl PodDirectory for LivePods {
    fn pod(&self, namespace: &str, name: &str) -> Option<PodFacts> {
        let named = |pod: &&Value| pod["metadata"]["namespace"] == namespace && pod["metadata"]["name"] == name;
        self.0.iter().find(named).map(facts)
    }

    fn runs_on_node(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        let of = |pod: &&Value| pod["metadata"]["namespace"] == namespace;
        let mut pods = self.0.iter().filter(of).map(facts);
        pods.any(|pod| pod.node == node && pod.service_account == service_account && pod.runs && pod.enrolled)
    }
}

fn facts(pod: &Value) -> PodFacts {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let phase = text(&pod["status"]["phase"]);
    PodFacts {
        uid: text(&pod["metadata"]["uid"]),
        service_account: text(&pod["spec"]["serviceAccountName"]),
        node: text(&pod["spec"]["nodeName"]),
        runs: phase == "Pending" || phase == "Running",
        enrolled: true,
        gateway: text(&pod["metadata"]["labels"]["gateway.networking.k8s.io/gateway-name"]),
    }
}

/// Asks again until it is so.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}
