//! The API server of the tests does what tests of the control plane build on: it keeps the examples' manifests, issues and
//! reviews service accounts' tokens, refuses who has no right, brings pods of Deployments into EndpointSlices once a
//! kubelet (here: the test) says that they run, tells watchers at once, and survives a crash with its data.
#![forbid(unsafe_code)]

mod https;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ambit_tests_kube::{KubeServer, programs_or_skip};
use serde_json::{Value, json};

use crate::https::Https;

/// The longest that anything may take, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the watch is timed, and the most that the median may take on a loaded machine. By itself it is some 5 ms.
const CHANGES: usize = 21;
const MEDIAN_WITHIN: Duration = Duration::from_millis(100);

const NAMESPACE: &str = "kagenti-system";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

#[tokio::test]
async fn it_is_what_a_control_plane_needs() {
    let Some(programs) = programs_or_skip() else { return };
    let start = Instant::now();
    let server = KubeServer::start(&programs).expect("it starts");
    eprintln!("ready after {:?}, {} MiB", start.elapsed(), memory(&server) / 1024);

    manifests(&server);
    let admin = administrator(&server);
    tokens(&server, &admin).await;
    rights(&server, &admin).await;
    let pod = kubelet(&server, &admin).await;
    watches(&server, &admin, &pod).await;
    what_is_owned_goes(&server, &pod);
    eprintln!("{} MiB in the end", memory(&server) / 1024);

    let process = PathBuf::from(format!("/proc/{}", server.id().expect("it runs")));
    assert!(process.exists());
    drop(server);
    assert!(!process.exists(), "it outlives its owner");
}

#[test]
fn a_crash_loses_nothing() {
    let Some(programs) = programs_or_skip() else { return };
    let mut server = KubeServer::start(&programs).expect("it starts");
    run(&server, &["create", "configmap", "kept", "--from-literal=a=b"]);
    let token = run(&server, &["create", "token", "default"]);
    let url = server.url();

    server.interrupt();
    assert!(server.run(&["get", "configmap", "kept"]).is_err(), "nobody can answer");
    server.resume().expect("it starts again");

    assert_eq!(server.url(), url, "clients find it again");
    assert_eq!(json(&server, &["get", "configmap", "kept", "-o", "json"])["data"]["a"], "b");
    let bearer = format!("--token={}", token.trim());
    let own = ["--kubeconfig=/dev/null", "--server", &url, "--certificate-authority"];
    let authority = server.authority();
    let authority = authority.to_str().expect("a path in UTF-8");
    let who = run(&server, &[&own[..], &[authority, &bearer, "auth", "whoami"]].concat());
    assert!(who.contains("system:serviceaccount:default:default"), "its key is the same: {who}");
}

/// The manifests of the example, whole.
fn manifests(server: &KubeServer) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let kinds = here.join("tests/apiserver/kinds.yaml");
    run(server, &["apply", "-f", kinds.to_str().expect("a path in UTF-8")]);
    run(server, &["wait", "--for=condition=Established", "--timeout=60s", "customresourcedefinition", "--all"]);
    let example = here.join("../../examples/mlflow");
    for name in ["mesh.yaml", "server.yaml", "complete-example.yaml", "multiple-rules.yaml"] {
        let file = example.join(name);
        run(server, &["apply", "--server-side", "-f", file.to_str().expect("a path in UTF-8")]);
    }
    let policy = ["authorizationpolicy", "mlflow-traces-from-otel", "-n", NAMESPACE, "-o", "json"];
    let policy = json(server, &[&["get"], &policy[..]].concat());
    let principal = &policy["spec"]["rules"][0]["from"][0]["source"]["principals"][0];
    assert_eq!(*principal, "cluster.local/ns/kagenti-system/sa/otel-collector");
    let service = json(server, &["get", "service", "mlflow", "-n", NAMESPACE, "-o", "json"]);
    let address = service["spec"]["clusterIP"].as_str().expect("the server gives it an address");
    assert!(address.starts_with("10.96."), "{address}");
}

/// A token of an account that may do everything.
fn administrator(server: &KubeServer) -> String {
    run(server, &["create", "serviceaccount", "tests", "-n", "default"]);
    let role = ["--clusterrole=cluster-admin", "--serviceaccount=default:tests"];
    run(server, &[&["create", "clusterrolebinding", "tests"], &role[..]].concat());
    run(server, &["create", "token", "tests", "-n", "default"]).trim().to_owned()
}

/// Tokens of service accounts, and what a reviewer is told of right and wrong ones.
async fn tokens(server: &KubeServer, admin: &str) {
    let mut client = Https::connect(server, Some(admin)).await;
    let requests = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/otel-collector/token");
    let wanted = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": ["istio-ca"], "expirationSeconds": 3600}
    });
    let (status, issued) = client.post(&requests, &wanted).await;
    assert_eq!(status, 201, "{issued}");
    let token = issued["status"]["token"].as_str().expect("a token");
    let (body, signature) = token.rsplit_once('.').expect("a signed token");
    // The first character: the last one's low bits may mean nothing.
    let other = if signature.starts_with('A') { "B" } else { "A" };
    let forged = format!("{body}.{other}{}", &signature[1..]);

    for (token, audience, accepted) in [
        (token, "istio-ca", true),
        (token, "somebody-else", false),
        (forged.as_str(), "istio-ca", false),
        ("nonsense", "istio-ca", false),
    ] {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]}
        });
        let (status, answer) = client.post(REVIEWS, &review).await;
        assert_eq!(status, 201, "{answer}");
        let answer = &answer["status"];
        assert_eq!(answer["authenticated"].as_bool().unwrap_or_default(), accepted, "for {audience}: {answer}");
        if accepted {
            assert_eq!(answer["user"]["username"], "system:serviceaccount:kagenti-system:otel-collector");
            assert_eq!(answer["audiences"], json!(["istio-ca"]));
        }
    }
}

/// Who has no right is refused, and so is who isn't known.
async fn rights(server: &KubeServer, admin: &str) {
    let secrets = format!("/api/v1/namespaces/{NAMESPACE}/secrets");
    let intruder = run(server, &["create", "token", "intruder", "-n", NAMESPACE]);
    for (token, expected) in [(Some(admin), 200), (Some(intruder.trim()), 403), (Some("nonsense"), 401), (None, 403)] {
        let (status, answer) = Https::connect(server, token).await.get(&secrets).await;
        assert_eq!(status, expected, "{answer}");
    }
    let role = ["role", "reader", "--verb=list", "--resource=secrets", "-n", NAMESPACE];
    run(server, &[&["create"], &role[..]].concat());
    let account = format!("--serviceaccount={NAMESPACE}:intruder");
    run(server, &["create", "rolebinding", "reader", "--role=reader", &account, "-n", NAMESPACE]);
    let mut client = Https::connect(server, Some(intruder.trim())).await;
    let deadline = Instant::now() + PATIENCE;
    while client.get(&secrets).await.0 != 200 {
        assert!(Instant::now() < deadline, "a right that was given isn't in force");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (status, answer) = client.get("/api/v1/namespaces/default/secrets").await;
    assert_eq!(status, 403, "the right is for one namespace only: {answer}");
}

/// Gives a Deployment's pod to a node, as the scheduler would, and says that it runs there, as the node would. Gives the
/// pod's name.
async fn kubelet(server: &KubeServer, admin: &str) -> String {
    let pods = ["pod", "-l", "app=mlflow", "-n", NAMESPACE];
    run(server, &[&["wait", "--for=create", "--timeout=60s"], &pods[..]].concat());
    let name = run(server, &[&["get"], &pods[..], &["-o", "name"]].concat());
    let name = name.lines().next().expect("a pod").to_owned();
    let pod = json(server, &["get", &name, "-n", NAMESPACE, "-o", "json"]);
    assert_eq!(pod["status"]["phase"], "Pending", "nobody runs it yet: {pod}");

    let mut client = Https::connect(server, Some(admin)).await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}});
    assert_eq!(client.post("/api/v1/nodes", &node).await.0, 201);
    let place = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod["metadata"]["name"]},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "node"}
    });
    let bindings = format!("/api/v1/namespaces/{NAMESPACE}/{}/binding", name.replace("pod/", "pods/"));
    let (status, answer) = client.post(&bindings, &place).await;
    assert_eq!(status, 201, "{answer}");

    let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let status = json!({"status": {
        "phase": "Running", "podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}], "conditions": [ready]
    }});
    let patch = ["--subresource=status", "--type=merge", "-n", NAMESPACE, "-p", &status.to_string()];
    run(server, &[&["patch", &name], &patch[..]].concat());

    let slices = ["endpointslice", "-l", "kubernetes.io/service-name=mlflow", "-n", NAMESPACE];
    let known = "--for=jsonpath={.endpoints[0].addresses[0]}=10.0.0.7";
    run(server, &[&["wait", known, "--timeout=60s"], &slices[..]].concat());
    let slice = json(server, &[&["get"], &slices[..], &["-o", "json"]].concat());
    assert_eq!(slice["items"][0]["endpoints"][0]["conditions"]["ready"], true, "{slice}");
    let deployment = ["deployment/mlflow", "-n", NAMESPACE];
    run(server, &[&["wait", "--for=condition=Available", "--timeout=60s"], &deployment[..]].concat());
    name.trim_start_matches("pod/").to_owned()
}

/// A watch tells a change within milliseconds.
async fn watches(server: &KubeServer, admin: &str, pod: &str) {
    let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    let mut client = Https::connect(server, Some(admin)).await;
    let (_, list) = client.get(&pods).await;
    let version = list["metadata"]["resourceVersion"].as_str().expect("a list has a version");
    let watch = format!("{pods}?watch=true&resourceVersion={version}");
    let mut events = Https::connect(server, Some(admin)).await.watch(&watch).await;
    let mut times = Vec::new();
    for change in 0..CHANGES {
        let change = change.to_string();
        let patch = json!({"metadata": {"annotations": {"change": change}}});
        let start = Instant::now();
        let path = format!("{pods}/{pod}");
        let event = async {
            loop {
                let event = events.next().await;
                if event["object"]["metadata"]["annotations"]["change"] == change {
                    return start.elapsed();
                }
            }
        };
        let both = async { tokio::join!(client.patch(&path, &patch), event) };
        let ((status, answer), time) = tokio::time::timeout(PATIENCE, both).await.expect("the watch tells the change");
        assert_eq!(status, 200, "{answer}");
        times.push(time);
    }
    times.sort();
    eprintln!(
        "from a change's request to its event: median {:?}, at most {:?}",
        times[CHANGES / 2],
        times[CHANGES - 1]
    );
    assert!(times[CHANGES / 2] < MEDIAN_WITHIN, "{times:?}");
}

/// Pods go with their Deployment, everything with its namespace.
fn what_is_owned_goes(server: &KubeServer, pod: &str) {
    run(server, &["delete", "deployment", "mlflow", "-n", NAMESPACE, "--timeout=60s"]);
    let pod = ["pod", pod, "-n", NAMESPACE];
    run(server, &[&["wait", "--for=jsonpath={.metadata.deletionTimestamp}", "--timeout=60s"], &pod[..]].concat());
    // The node has ended it.
    run(server, &[&["delete", "--grace-period=0", "--force", "--timeout=60s"], &pod[..]].concat());
    run(server, &["create", "namespace", "passing"]);
    run(server, &["wait", "--for=create", "serviceaccount/default", "-n", "passing", "--timeout=60s"]);
    run(server, &["wait", "--for=create", "configmap/kube-root-ca.crt", "-n", "passing", "--timeout=60s"]);
    run(server, &["delete", "namespace", "passing", "--timeout=60s"]);
}

fn run(server: &KubeServer, arguments: &[&str]) -> String {
    let failed = |error| panic!("kubectl {arguments:?}: {error}\n{}", log(server));
    server.run(arguments).unwrap_or_else(failed)
}

fn json(server: &KubeServer, arguments: &[&str]) -> Value {
    let failed = |error| panic!("kubectl {arguments:?}: {error}\n{}", log(server));
    server.json(arguments).unwrap_or_else(failed)
}

fn log(server: &KubeServer) -> String {
    let text = fs::read_to_string(server.log()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(20).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// What the server's process holds, in KiB.
fn memory(server: &KubeServer) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.id().expect("it runs"))).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or_default()
}
