//! The whole way on Kubernetes: `ambit install`, `ambit control-plane` and `ambit waypoint` as processes on a real API server,
//! the example's manifests by `kubectl`. The test plays scheduler and kubelet: it places pods and says that they are ready.

use std::{
    fs::OpenOptions,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_hbone::{Pool, Tunnel};
use ambit_identity::{CertificateStore, SystemClock};
use ambit_tests_kube::{KubeServer, programs_or_skip};
use ambit_xds::{
    Endpoint, Roots, Token,
    ca::{CaClient, CaOptions},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    api::{DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::ApiResource,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    mesh::{NAMESPACE, VIP, WAYPOINT},
    process::Process,
    world::{App, HBONE_PORT, PATIENCE, exchange, node_proxy, soon, tunnel},
};

const TRACES: &str = "POST /v1/traces";
const NODE: &str = "node";
/// The condition of Services that ask for a waypoint.
const BOUND: &str = "istio.io/WaypointBound";

/// A cluster with the control plane, and the example in it.
struct Cluster {
    server: KubeServer,
    client: Client,
    folder: tempfile::TempDir,
    /// The control plane's address.
    ip: Ipv4Addr,
    waypoint: Ipv4Addr,
    app: App,
}

/// An `ambit control-plane`. Killed when dropped.
struct ControlPlane(Child, PathBuf);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_holds_from_kubectl_to_the_waypoint() {
    let Some(programs) = programs_or_skip() else { return };
    let server = KubeServer::start(&programs).expect("it starts");
    let cluster = Cluster::prepare(server).await;
    let mut control = cluster.control_plane("control-plane-1");
    control.ready(cluster.ip).await;
    let (roots, collector) = (cluster.roots().await, "otel-collector");
    let pod = cluster.programmed(&control).await;
    let mut process = cluster.waypoint(&roots, &pod);
    process.ready().await;
    let listener = TcpListener::bind((cluster.app_ip(), HBONE_PORT)).await.expect("the address is this test's");
    tokio::spawn(node_proxy(listener, cluster.certificates(&roots, "mlflow")));

    let pool = |who: &str| Pool::new(cluster.certificates(&roots, who), ambit_hbone::Limits::default());
    let (collectors, uis, intruders) = (pool(collector), pool("kagenti-ui"), pool("intruder"));
    for (pool, who, request, status) in [
        (&collectors, collector, TRACES, 200),
        (&collectors, collector, "GET /v1/traces", 403),
        (&collectors, collector, "POST /v1/traces/x", 403),
        (&uis, "kagenti-ui", "GET /", 403),
        (&intruders, "intruder", TRACES, 403),
    ] {
        assert_eq!(cluster.status(pool, who, request).await, status, "{who} {request}");
    }
    // Another file of the example, and a Service that loses its waypoint and gets it back.
    cluster.apply(&Cluster::example("multiple-rules.yaml"));
    cluster.until(&uis, "kagenti-ui", "GET /", Some(200)).await;
    cluster.told("authorizationpolicy", "mlflow-traces-from-otel", "WaypointAccepted", "Accepted").await;
    cluster.told("service", "mlflow", BOUND, "WaypointAccepted").await;
    // What others say of it stays.
    let others = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "mlflow", "namespace": NAMESPACE},
        "status": {"conditions": [{
            "type": "example.org/Other", "status": "True", "reason": "Said", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]},
    });
    let file = cluster.write("others.json", &others.to_string());
    let as_other = ["--server-side", "--subresource=status", "--field-manager=other"];
    cluster.run(&[&["apply", "-f", file.to_str().expect("text")], &as_other[..]].concat());
    cluster.run(&["label", "service", "mlflow", "-n", NAMESPACE, "istio.io/use-waypoint-"]);
    cluster.until(&uis, "kagenti-ui", "GET /", None).await;
    cluster.told("authorizationpolicy", "mlflow-traces-from-otel", "WaypointAccepted", "AncestorNotBound").await;
    cluster.told("service", "mlflow", BOUND, "").await;
    cluster.told("service", "mlflow", "example.org/Other", "Said").await;
    cluster.run(&["label", "service", "mlflow", "-n", NAMESPACE, &format!("istio.io/use-waypoint={WAYPOINT}")]);
    cluster.until(&uis, "kagenti-ui", "GET /", Some(200)).await;
    cluster.told("service", "mlflow", BOUND, "WaypointAccepted").await;
    cluster.told("service", "mlflow", "example.org/Other", "Said").await;

    cluster.enforced_soon(&uis).await;
    cluster.without_an_api_server(&mut control, &collectors, &uis).await;
}

// === impl Cluster ===

impl Cluster {
    /// Everything but the control plane's process and the waypoint's.
    async fn prepare(server: KubeServer) -> Self {
        let third = (std::process::id() % 250) as u8;
        let ip = |last| Ipv4Addr::new(127, 99, third, last);
        let file = Kubeconfig::read_from(server.kubeconfig()).expect("readable");
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("complete");
        let client = Client::try_from(config).expect("a client");
        let (folder, app) = (tempfile::tempdir().expect("a folder"), App::start(ip(3)).await);
        let cluster = Self { server, client, folder, ip: ip(1), waypoint: ip(2), app };
        // No API server can reach a webhook by a Service here: nobody makes those work.
        let installed = cluster.ambit(&["install", "--without-webhook", "--without-network-policy"]);
        assert!(installed.contains("Deployment istio-system/ambit-control-plane applied"), "{installed}");
        for file in ["mesh.yaml", "complete-example.yaml"] {
            let text = std::fs::read_to_string(Self::example(file)).expect("readable");
            // The server has a port of its own here, and the Service the address that the test's clients call.
            let text = text.replace(
                "    - port: 5000\n",
                &format!("    - port: 5000\n      targetPort: {}\n", cluster.app.address.port()),
            );
            let text = text.replace(
                "  selector:\n    app: mlflow\n---",
                &format!("  clusterIP: {VIP}\n  selector:\n    app: mlflow\n---"),
            );
            cluster.apply(&cluster.write(file, &text));
        }
        cluster.place("mlflow-1", "mlflow", cluster.app_ip(), &json!({"app": "mlflow"})).await;
        cluster
    }

    fn example(file: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/mlflow").join(file)
    }

    fn app_ip(&self) -> Ipv4Addr {
        match self.app.address.ip() {
            std::net::IpAddr::V4(ip) => ip,
            std::net::IpAddr::V6(_) => panic!("the test's addresses are of IPv4"),
        }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("writable");
        path
    }

    fn run(&self, arguments: &[&str]) -> String {
        self.server.run(arguments).unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    fn apply(&self, file: &Path) {
        self.run(&["apply", "-f", file.to_str().expect("text")]);
    }

    /// Runs this program, as an administrator of the cluster.
    fn ambit(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ambit"));
        let output = command.args(arguments).env("KUBECONFIG", self.server.kubeconfig()).output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// A pod that is placed, captured and ready.
    async fn place(&self, name: &str, account: &str, ip: Ipv4Addr, labels: &Value) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": NAMESPACE, "labels": labels,
                "annotations": {"ambient.istio.io/redirection": "enabled"},
            },
            "spec": {
                "serviceAccountName": account, "nodeName": NODE,
                "containers": [{"name": "c", "image": "none"}],
            },
        });
        self.apply(&self.write(&format!("{name}.json"), &pod.to_string()));
        self.runs(name, ip).await;
    }

    /// Says of a pod that it runs and is ready, as its kubelet would.
    async fn runs(&self, name: &str, ip: Ipv4Addr) {
        let status = json!({"status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        pods.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await.expect("the status is taken");
    }

    /// What the control plane makes for the Gateway, and the pod that a kubelet would make of that.
    async fn programmed(&self, control: &ControlPlane) -> String {
        let named = |kind: &str| self.server.json(&["get", kind, WAYPOINT, "-n", NAMESPACE, "-o", "json"]);
        let deadline = Instant::now() + PATIENCE;
        while ["serviceaccount", "deployment", "service"].into_iter().any(|kind| named(kind).is_err()) {
            assert!(Instant::now() < deadline, "the waypoint isn't made: {}", control.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let deployment = named("deployment").expect("it was there");
        assert_eq!(deployment["spec"]["template"]["spec"]["containers"][0]["args"], json!(["waypoint"]));
        let selector = format!("gateway.networking.k8s.io/gateway-name={WAYPOINT}");
        let listed = || {
            let pods = self.run(&["get", "pods", "-n", NAMESPACE, "-l", &selector, "-o", "name"]);
            pods.lines().map(|pod| pod.trim_start_matches("pod/").to_owned()).next()
        };
        let pod = loop {
            if let Some(pod) = listed() {
                break pod;
            }
            assert!(Instant::now() < deadline, "no pod is made of the Deployment");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let waits = |seconds: &str| {
            let timeout = format!("--timeout={seconds}s");
            self.server.run(&["wait", "gateway", WAYPOINT, "-n", NAMESPACE, "--for=condition=Programmed", &timeout])
        };
        waits("1").expect_err("nothing is ready yet");
        let binding =
            json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod}, "target": {"name": NODE}});
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let parameters = PostParams::default();
        let bound = pods.create_subresource::<_, Value>("binding", &pod, &parameters, &binding);
        bound.await.expect("it is bound");
        self.runs(&pod, self.waypoint).await;
        if let Err(error) = waits("30") {
            panic!("{error}: {}\n{}", named("gateway").expect("it is there"), control.log());
        }
        let service = named("service").expect("it is there");
        let gateway = named("gateway").expect("it is there");
        let host = format!("{WAYPOINT}.{NAMESPACE}.svc.cluster.local");
        let addresses = json!([
            {"type": "IPAddress", "value": service["spec"]["clusterIP"]}, {"type": "Hostname", "value": host}]);
        assert_eq!(gateway["status"]["addresses"], addresses);
        pod
    }

    /// Waits until an object has a condition with this reason; with an empty one, until it hasn't the condition.
    async fn told(&self, kind: &str, name: &str, condition: &str, reason: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let object = self.server.json(&["get", kind, name, "-n", NAMESPACE, "-o", "json"]).expect("it is there");
            let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let found = all.iter().find(|found| found["type"] == condition);
            let observed = found.map(|found| found["observedGeneration"].clone()).unwrap_or_default();
            let is_current = kind == "service" || observed == object["metadata"]["generation"];
            if found.map_or("", |found| found["reason"].as_str().unwrap_or_default()) == reason
                && (found.is_none() || is_current)
            {
                return;
            }
            assert!(Instant::now() < deadline, "{kind} {name}: {condition} isn't `{reason}`: {all:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn token(&self, account: &str, more: &[&str]) -> String {
        let asked = ["create", "token", account, "-n", NAMESPACE, "--duration=1h", "--audience=istio-ca"];
        self.run(&[&asked[..], more].concat()).trim().to_owned()
    }

    /// Credentials of the account that the installation made for the control plane, with its rights and no others.
    fn own_account(&self, name: &str) -> PathBuf {
        let token = self.run(&["create", "token", "ambit-control-plane", "-n", "istio-system", "--duration=1h"]);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "own",
            "clusters": [{"name": "own", "cluster": {
                "server": self.server.url(), "certificate-authority": self.server.authority()}}],
            "users": [{"name": "own", "user": {"token": token.trim()}}],
            "contexts": [{"name": "own", "context": {"cluster": "own", "user": "own"}}],
        });
        self.write(&format!("{name}.kubeconfig"), &config.to_string())
    }

    fn control_plane(&self, name: &str) -> ControlPlane {
        let log = self.folder.path().join(format!("{name}.log"));
        let output = OpenOptions::new().create(true).append(true).open(&log).expect("a log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_ambit"));
        command.arg("control-plane").env_clear().current_dir("/").envs([
            ("KUBECONFIG", self.own_account(name).display().to_string()),
            ("POD_NAME", name.to_owned()),
            ("AMBIT_LISTEN_ADDRESS", self.ip.to_string()),
            ("AMBIT_SERVER_NAMES", self.ip.to_string()),
            ("RUST_BACKTRACE", "1".to_owned()),
        ]);
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("a log")).stderr(output);
        ControlPlane(command.spawn().expect("the program starts"), log)
    }

    /// What the control plane has written for the example's pods to believe it by.
    async fn roots(&self) -> String {
        let asked = ["get", "configmap", "istio-ca-root-cert", "-n", NAMESPACE, "-o", "json"];
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.server.json(&asked).map(|object| object["data"]["root-cert.pem"].as_str().map(str::to_owned)) {
                Ok(Some(roots)) => return roots,
                other => assert!(Instant::now() < deadline, "{other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn waypoint(&self, roots: &str, pod: &str) -> Process {
        let bound = ["--bound-object-kind=Pod", &format!("--bound-object-name={pod}")];
        let token = self.write("token", &self.token(WAYPOINT, &bound));
        let root = self.write("root.pem", roots).display().to_string();
        let address = format!("https://{}:15012", self.ip);
        let settings = [
            ("XDS_ADDRESS", address.clone()),
            ("CA_ADDRESS", address),
            ("XDS_ROOT_CA", root.clone()),
            ("CA_ROOT_CA", root),
            ("AUTH_TOKEN", token.display().to_string()),
            ("POD_NAME", pod.to_owned()),
            ("POD_NAMESPACE", NAMESPACE.to_owned()),
        ];
        Process::start(self.waypoint, self.folder.path().join("waypoint.log"), &settings)
    }

    /// Certificates of this service account, from the control plane, for its token.
    fn certificates(&self, roots: &str, account: &str) -> Arc<CertificateStore> {
        let address = format!("https://{}:15012", self.ip).parse().expect("an address");
        let endpoint = Endpoint {
            token: Token::Literal(self.token(account, &[])),
            ..Endpoint::new(address, Roots::Inline(roots.to_owned()))
        };
        let options = CaOptions { impersonate: false, ..CaOptions::new(endpoint, "Kubernetes".to_owned()) };
        CertificateStore::new(Arc::new(CaClient::new(options)), Arc::new(SystemClock))
    }

    async fn ask(&self, pool: &Pool, who: &str, request: &str) -> Result<u16, String> {
        let mut tunnel = tunnel(pool, self.waypoint, who, VIP).await.map_err(|error| error.to_string())?;
        exchange(&mut tunnel, request).await.map(|(status, _)| status)
    }

    async fn status(&self, pool: &Pool, who: &str, request: &str) -> u16 {
        self.ask(pool, who, request).await.unwrap_or_else(|error| panic!("{who} {request}: {error}"))
    }

    /// Asks until the answer has this status, or until there is none.
    async fn until(&self, pool: &Pool, who: &str, request: &str, wanted: Option<u16>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask(pool, who, request).await;
            if answer.as_ref().ok().copied() == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "{who} {request}: {answer:?}, not {wanted:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// How long it takes from the API server's word that it has a policy until the waypoint enforces it, on an open connection.
    async fn enforced_soon(&self, pool: &Pool) {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("security.istio.io", "v1", "AuthorizationPolicy"));
        let policies: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), NAMESPACE, &kind);
        let denying = |path: &str| {
            json!({
                "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": {"name": "changing", "namespace": NAMESPACE},
                "spec": {
                    "targetRefs": [{"kind": "Service", "group": "", "name": "mlflow"}],
                    "action": "DENY", "rules": [{"to": [{"operation": {"paths": [path]}}]}],
                },
            })
        };
        let mut stream = tunnel(pool, self.waypoint, "kagenti-ui", VIP).await.expect("a tunnel");
        let mut took = Vec::new();
        for (path, wanted) in [("/changed", 403), ("/other", 200)].repeat(8) {
            let parameters = PatchParams::apply("test").force();
            policies.patch("changing", &parameters, &Patch::Apply(denying(path))).await.expect("it is taken");
            let start = Instant::now();
            while asked(&mut stream).await != wanted {
                assert!(start.elapsed() < PATIENCE, "the policy isn't enforced");
            }
            took.push(start.elapsed());
        }
        took.sort();
        let median = took[took.len() / 2];
        println!("from the API server to the waypoint: median {median:?}, {:?} to {:?}", took[0], took[took.len() - 1]);
        // Far above what it takes: debug builds, on machines that run other tests.
        assert!(median < Duration::from_secs(2), "{took:?}");
        self.run(&["delete", "authorizationpolicy", "changing", "-n", NAMESPACE]);
    }

    /// Neither an API server that is away nor a control plane that dies disturbs traffic; what changed meanwhile holds later.
    async fn without_an_api_server(mut self, control: &mut ControlPlane, collectors: &Pool, uis: &Pool) {
        let rights = async |cluster: &Self| {
            assert_eq!(cluster.status(collectors, "otel-collector", TRACES).await, 200);
            assert_eq!(cluster.status(collectors, "otel-collector", "GET /v1/traces").await, 403);
            assert_eq!(cluster.status(uis, "kagenti-ui", "GET /").await, 200);
        };
        self.server.interrupt();
        control.logged("what was read stays in force").await;
        rights(&self).await;
        control.stop();
        rights(&self).await;
        self.server.resume().expect("it comes back");
        self.run(&["delete", "-f", Self::example("multiple-rules.yaml").to_str().expect("text")]);
        assert_eq!(self.status(uis, "kagenti-ui", "GET /").await, 200, "nobody has told it");
        let mut successor = self.control_plane("control-plane-2");
        successor.ready(self.ip).await;
        self.until(uis, "kagenti-ui", "GET /", Some(403)).await;
        assert_eq!(self.status(collectors, "otel-collector", TRACES).await, 200);
        // One that is up when the API server goes and comes back takes up what changed meanwhile, too.
        self.server.interrupt();
        successor.logged("what was read stays in force").await;
        self.server.resume().expect("it comes back");
        self.apply(&Self::example("multiple-rules.yaml"));
        self.until(uis, "kagenti-ui", "GET /", Some(200)).await;
    }
}

async fn asked(stream: &mut Tunnel) -> u16 {
    exchange(stream, "GET /changed").await.expect("an answer").0
}

// === impl ControlPlane ===

impl ControlPlane {
    /// Waits until it says that it is ready.
    async fn ready(&mut self, ip: Ipv4Addr) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = probe(ip).await;
            if answer.as_ref().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                return;
            }
            if let Ok(Some(status)) = self.0.try_wait() {
                panic!("it ended with {status}: {}", self.log());
            }
            assert!(Instant::now() < deadline, "{answer:?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.1).unwrap_or_default()
    }

    async fn logged(&self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.log().contains(what) {
            assert!(Instant::now() < deadline, "it never says `{what}`: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends it as a crash would.
    fn stop(&mut self) {
        self.0.kill().expect("it is ours");
        self.0.wait().expect("it ended");
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn probe(ip: Ipv4Addr) -> std::io::Result<String> {
    soon(async {
        let mut stream = TcpStream::connect((ip, 8080)).await?;
        stream.write_all(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    })
    .await
}
