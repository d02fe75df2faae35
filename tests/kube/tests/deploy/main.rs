//! An installation in a real API server: what it makes, that it leaves alone what others made, that the control plane's
//! account may do what it needs and nothing else, and that all of it goes again.
#![forbid(unsafe_code)]

use std::path::Path;

use ambit_install::{Action, Done, Installation, Settings};
use ambit_tests_kube::{KubeServer, programs_or_skip};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

const SYSTEM: &str = "istio-system";
const ACCOUNT: &str = "ambit-control-plane";

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_comes_and_goes() {
    let Some(programs) = programs_or_skip() else { return };
    let server = KubeServer::start(&programs).expect("it starts");
    let client = client(&server).await;
    let installation = Installation::new(client.clone(), Settings::default(), false);
    let dry = Installation::new(client, Settings::default(), true);

    let done = dry.install().await.expect("a dry run needs nothing");
    assert!(of(&done, "GatewayClass istio-waypoint") == Action::KindMissing, "{done:?}");
    assert!(run(&server, &["get", "crds", "-o", "name"]).is_empty(), "a dry run changes nothing");
    assert!(server.run(&["get", "namespace", SYSTEM]).is_err());

    let done = installation.install().await.expect("it can be installed");
    assert!(done.iter().all(|done| done.action == Action::Applied), "{done:?}");
    files(&server);
    let again = installation.install().await.expect("twice is as good");
    assert_eq!(of(&again, "Namespace istio-system"), Action::LeftAlone);
    let done = dry.install().await.expect("a dry run of the same");
    assert!(done.iter().all(|done| matches!(done.action, Action::Applied | Action::LeftAlone)), "{done:?}");

    needed_rights(&server);
    no_other_rights(&server);
    leaves_alone(&server, &installation).await;
    goes(&server, &installation).await;
}

/// The plain manifests are taken by the API server as they are.
fn files(server: &KubeServer) {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/manifests");
    for name in ["crds.yaml", "ambit.yaml"] {
        let file = deploy.join(name);
        let file = file.to_str().expect("a path in UTF-8");
        let strict = ["--dry-run=server", "--validate=strict", "--force-conflicts", "-f", file];
        run(server, &[&["apply", "--server-side"], &strict[..]].concat());
    }
}

/// Who asks: the control plane, by a token of its own.
struct Asked<'a> {
    server: &'a KubeServer,
    common: Vec<String>,
}

// === impl Asked ===

impl<'a> Asked<'a> {
    fn new(server: &'a KubeServer) -> Self {
        let token = run(server, &["create", "token", ACCOUNT, "-n", SYSTEM]);
        let authority = server.authority().to_str().expect("a path in UTF-8").to_owned();
        let common = vec![
            "--kubeconfig=/dev/null".to_owned(),
            format!("--server={}", server.url()),
            format!("--certificate-authority={authority}"),
            format!("--token={}", token.trim()),
        ];
        Self { server, common }
    }

    /// What came of it: nothing if it is forbidden.
    fn run(&self, arguments: &[&str]) -> Option<String> {
        let common: Vec<_> = self.common.iter().map(String::as_str).collect();
        match self.server.run(&[&common[..], arguments].concat()) {
            Ok(text) => Some(text),
            Err(error) if error.contains("Forbidden") || error.contains("forbidden") => None,
            // Allowed, and there is none.
            Err(error) if error.contains("NotFound") => Some(String::new()),
            Err(error) => panic!("{arguments:?}: {error}"),
        }
    }

    fn may(&self, verb: &str, resource: &str, namespace: &str) -> bool {
        let common: Vec<_> = self.common.iter().map(String::as_str).collect();
        let question = ["auth", "can-i", verb, resource, "-n", namespace];
        let output = self.server.kubectl(&[&common[..], &question].concat()).output().expect("kubectl runs");
        String::from_utf8_lossy(&output.stdout).trim() == "yes"
    }
}

fn needed_rights(server: &KubeServer) {
    let asked = Asked::new(server);
    for kind in [
        "pods",
        "services",
        "namespaces",
        "nodes",
        "endpointslices",
        "authorizationpolicies",
        "gateways",
        "httproutes",
        "destinationrules",
        "trafficpolicies",
        "xbackendtrafficpolicies",
    ] {
        assert!(asked.run(&["get", kind, "-A"]).is_some(), "it reads {kind}");
    }
    assert!(asked.run(&["get", "secret", "istio-ca-secret", "-n", SYSTEM]).is_some(), "the CA's key is its own");
    for (verb, resource, namespace) in [
        ("create", "secrets", SYSTEM),
        ("update", "secrets/istio-ca-secret", SYSTEM),
        ("watch", "secrets/cacerts", SYSTEM),
        ("create", "leases.coordination.k8s.io", SYSTEM),
        ("update", "leases.coordination.k8s.io", SYSTEM),
        ("create", "tokenreviews.authentication.k8s.io", "default"),
        ("create", "configmaps", "default"),
        ("patch", "configmaps/istio-ca-root-cert", "default"),
        ("patch", "deployments.apps", "default"),
        ("create", "horizontalpodautoscalers.autoscaling", "default"),
        ("patch", "authorizationpolicies.security.istio.io/any", "default"),
    ] {
        let expected = resource != "authorizationpolicies.security.istio.io/any";
        assert_eq!(asked.may(verb, resource, namespace), expected, "{verb} {resource} in {namespace}");
    }
    let patch = ["patch", "validatingwebhookconfiguration", "ambit-validator-istio-system", "--type=merge", "-p", "{}"];
    assert!(asked.run(&patch).is_some(), "its own webhook");
    let review = "--raw=/apis/gateway.networking.k8s.io/v1/gatewayclasses";
    assert!(asked.run(&["get", review]).is_some());
}

fn no_other_rights(server: &KubeServer) {
    run(server, &["create", "secret", "generic", "another", "--from-literal=a=b", "-n", SYSTEM]);
    run(server, &["create", "secret", "generic", "another", "--from-literal=a=b", "-n", "default"]);
    let asked = Asked::new(server);
    for arguments in [
        &["get", "secret", "another", "-n", SYSTEM][..],
        &["get", "secret", "another", "-n", "default"],
        &["get", "secrets", "-n", SYSTEM],
        &["get", "secrets", "-A"],
        &["get", "clusterroles"],
        &["delete", "namespace", "default", "--dry-run=server"],
        &["create", "clusterrolebinding", "more", "--clusterrole=cluster-admin", "--serviceaccount=default:x"],
        &["create", "token", "default", "-n", "default"],
        &["delete", "configmap", "kube-root-ca.crt", "-n", "default"],
        &["label", "namespace", "default", "a=b"],
        &["delete", "authorizationpolicies", "--all", "-A"],
    ] {
        // A list that is empty is deleted without asking for the right.
        if arguments[0] == "delete" && arguments[1] == "authorizationpolicies" {
            assert!(!asked.may("delete", "authorizationpolicies.security.istio.io", "default"));
            continue;
        }
        assert!(asked.run(arguments).is_none(), "it may {arguments:?}");
    }
    for (verb, resource, namespace) in [
        ("update", "validatingwebhookconfigurations/another", "default"),
        ("create", "leases.coordination.k8s.io", "default"),
        ("create", "secrets", "default"),
        ("create", "pods", "default"),
        ("create", "pods/exec", "default"),
        ("patch", "configmaps/another", "default"),
        ("escalate", "clusterroles.rbac.authorization.k8s.io", "default"),
        ("impersonate", "users", "default"),
        ("*", "*", "default"),
    ] {
        assert!(!asked.may(verb, resource, namespace), "{verb} {resource} in {namespace}");
    }
    // The node proxy asks the API server for nothing.
    let node_proxy = ["auth", "can-i", "list", "pods", "--as=system:serviceaccount:istio-system:ztunnel"];
    assert!(server.run(&node_proxy).is_err());
}

/// Definitions without our label are somebody else's.
async fn leaves_alone(server: &KubeServer, installation: &Installation) {
    let foreign = "authorizationpolicies.security.istio.io";
    run(server, &["label", "crd", foreign, "app.kubernetes.io/part-of-"]);
    run(server, &["annotate", "crd", foreign, "theirs=yes"]);
    let done = installation.install().await.expect("it goes on");
    assert_eq!(of(&done, &format!("CustomResourceDefinition {foreign}")), Action::LeftAlone);
    let labels = run(server, &["get", "crd", foreign, "-o", "jsonpath={.metadata.labels}"]);
    assert!(!labels.contains("ambit"), "{labels}");
}

async fn goes(server: &KubeServer, installation: &Installation) {
    let done = installation.uninstall(false).await.expect("it can be taken away");
    assert!(done.iter().all(|done| done.action == Action::Deleted), "{done:?}");
    assert!(done[0].object.starts_with("ValidatingWebhookConfiguration"), "the webhook goes first: {done:?}");
    let kinds = "deployment,daemonset,service,networkpolicy,poddisruptionbudget,role,rolebinding";
    run(
        server,
        &["wait", "--for=delete", "--timeout=60s", kinds, "-n", SYSTEM, "-l", "app.kubernetes.io/part-of=ambit"],
    );
    assert!(run(server, &["get", "namespace", SYSTEM]).contains(SYSTEM), "the CA's key stays");
    let definitions = run(server, &["get", "crds", "-o", "name"]).lines().count();
    let again = installation.uninstall(true).await.expect("twice is as good");
    assert!(again.iter().any(|done| done.action == Action::Absent), "{again:?}");
    run(server, &["wait", "--for=delete", "--timeout=60s", "crd", "-l", "app.kubernetes.io/part-of=ambit"]);
    let left = run(server, &["get", "crds", "-o", "name"]);
    assert!(definitions > 10 && left.trim().ends_with("authorizationpolicies.security.istio.io"), "{left}");
    assert_eq!(left.lines().count(), 1, "somebody else's stays: {left}");
}

fn of(done: &[Done], object: &str) -> Action {
    done.iter().find(|done| done.object == object).unwrap_or_else(|| panic!("{object}: {done:?}")).action
}

async fn client(server: &KubeServer) -> Client {
    let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).expect("a kubeconfig");
    let config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("a configuration");
    Client::try_from(config).expect("a client")
}

fn run(server: &KubeServer, arguments: &[&str]) -> String {
    server.run(arguments).unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
}
