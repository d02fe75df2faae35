//! The webhook, called by the API server over TLS on loopback.

use std::{fs, path::Path, sync::Arc, time::Duration};

use ambit_control_plane::webhook::{Registration, keep_registration, serve};
use ambit_install::{Settings, WEBHOOK_PATH, objects, webhook_name};
use ambit_tests_kube::KubeServer;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::run;

/// Longest wait for anything, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

const BAD: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: bad, namespace: a}
spec: {rules: [{to: [{operation: {ports: [http]}}]}]}
";
const SUSPICIOUS: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: suspicious, namespace: a}
spec: {selector: {matchLabels: {}}}
";

/// A webhook that runs and is registered.
pub struct Webhook {
    name: String,
    stop: CancellationToken,
    _leads: watch::Sender<bool>,
    _bundle: watch::Sender<Vec<u8>>,
}

// === impl Webhook ===

impl Webhook {
    /// Starts it, registers it as an installation does (by `url`, since nothing listens on Services' addresses here), and
    /// waits until the API server can call it.
    pub async fn start(server: &KubeServer) -> Self {
        let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
        let tls = tls.with_no_client_auth().with_single_cert(vec![certified.cert.der().clone()], key).expect("a pair");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("https://{}{WEBHOOK_PATH}", listener.local_addr().expect("an address"));
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, Arc::new(tls), stop.clone()));

        let settings = Settings::default();
        let mut registration = objects(&settings)
            .into_iter()
            .find(|object| object["kind"] == "ValidatingWebhookConfiguration")
            .expect("an installation has one");
        registration["webhooks"][0]["clientConfig"] = json!({"url": url});
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("webhook.json");
        fs::write(&file, registration.to_string()).expect("a file");
        run(server, &["apply", "--server-side", "-f", file.to_str().expect("a path in UTF-8")]);

        let name = webhook_name(&settings.namespace);
        let (bundle, seen_bundle) = watch::channel(Vec::new());
        let (leads, seen_leads) = watch::channel(false);
        let registration = Registration { name: name.clone(), bundle: seen_bundle, leads: seen_leads };
        tokio::spawn(keep_registration(client(server).await, registration, stop.clone()));
        bundle.send_replace(certified.cert.pem().into_bytes());
        assert_eq!(current(server, &name)["failurePolicy"], "Ignore", "who doesn't lead doesn't write");
        leads.send_replace(true);
        let webhook = Self { name, stop, _leads: leads, _bundle: bundle };
        webhook.wait_until_strict(server).await;
        webhook
    }

    async fn wait_until_strict(&self, server: &KubeServer) {
        let strict = async {
            loop {
                let webhook = current(server, &self.name);
                if webhook["failurePolicy"] == "Fail" && webhook["clientConfig"]["caBundle"].is_string() {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, strict).await.expect("the leader writes the registration");
        // Every API server has to hear of it, too.
        let heard = async {
            while apply(server, BAD).0 {
                sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.expect("the API server calls the webhook");
    }

    /// The refusal names code, object and field, and what to do; warnings are shown.
    pub fn says_why(&self, server: &KubeServer, _: &Path) {
        let (taken, said) = apply(server, BAD);
        assert!(!taken, "{said}");
        for part in
            ["validation.ambit.dev", "AMB", "AuthorizationPolicy a/bad", "spec.rules[0].to[0].operation.ports[0]"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
        let (taken, said) = apply(server, SUSPICIOUS);
        assert!(taken && said.contains("Warning:") && said.contains("spec.selector"), "{said}");
    }

    /// Whoever changes the registration is corrected.
    pub async fn is_kept(&self, server: &KubeServer) {
        let patch = json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]).to_string();
        run(server, &["patch", "validatingwebhookconfiguration", &self.name, "--type=json", "-p", &patch]);
        self.wait_until_strict(server).await;
    }

    /// While nobody answers, nothing that it would judge is taken.
    pub async fn writes_need_it(self, server: &KubeServer, _: &Path) {
        self.stop.cancel();
        let closed = async {
            while apply(server, SUSPICIOUS).0 {
                sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, closed).await.expect("what can't be reviewed is refused");
        let (_, said) = apply(server, SUSPICIOUS);
        assert!(said.contains("failed calling webhook"), "{said}");
        run(server, &["create", "configmap", "unconcerned", "-n", "a"]);
    }
}

async fn client(server: &KubeServer) -> Client {
    let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).expect("a kubeconfig");
    let config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("a configuration");
    Client::try_from(config).expect("a client")
}

fn current(server: &KubeServer, name: &str) -> Value {
    let object = server.json(&["get", "validatingwebhookconfiguration", name, "-o", "json"]).expect("it is there");
    object["webhooks"][0].clone()
}

/// Whether the API server would take this, and what it says.
fn apply(server: &KubeServer, text: &str) -> (bool, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("object.yaml");
    fs::write(&file, text).expect("a file");
    let arguments = ["create", "--dry-run=server", "-f", file.to_str().expect("a path in UTF-8")];
    let output = server.kubectl(&arguments).output().expect("kubectl runs");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}
