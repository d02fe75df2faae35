//! The control plane: its pods, who finds them, and who reaches them.

use serde_json::{Value, json};

use super::{CONTROL_PLANE, confined, from_pod, metadata};
use crate::settings::Words;

/// Ports: name, as Istio's control plane has it, and number.
const PORTS: [(&str, u16); 4] =
    [("grpc-xds", 15010), ("https-dns", 15012), ("http-monitoring", 15014), ("https-webhook", 15017)];
/// Where it says that it is ready.
const READY: (&str, u16) = ("/ready", 8080);

pub(super) fn objects(words: &Words) -> Vec<Value> {
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(words, CONTROL_PLANE)}),
        service(words, "istiod"),
        service(words, CONTROL_PLANE),
        deployment(words),
        json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata(words, CONTROL_PLANE),
            // A share, so that a single replica doesn't hold up a node's end for ever.
            "spec": {"maxUnavailable": "50%", "selector": {"matchLabels": labels()}},
        }),
    ]
}

fn labels() -> Value {
    json!({"app": "istiod", "app.kubernetes.io/name": CONTROL_PLANE})
}

/// Proxies know it by Istio's name, people by ours.
fn service(words: &Words, name: &str) -> Value {
    let port = |(name, port): &(&str, u16)| json!({"name": name, "port": port, "targetPort": port, "protocol": "TCP"});
    let mut ports: Vec<_> = PORTS.iter().map(port).collect();
    // The API server calls webhooks on 443, as Istio has it.
    ports[3]["port"] = json!(443);
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(words, name),
        "spec": {"selector": labels(), "ports": ports},
    })
}

fn deployment(words: &Words) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(words, CONTROL_PLANE),
        "spec": {
            "replicas": words.replicas,
            "selector": {"matchLabels": labels()},
            // The old ones stay until the new ones are ready.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": pod_labels()}, "spec": pod(words)},
        },
    })
}

fn pod_labels() -> Value {
    let mut labels = labels();
    // The mesh can't carry the traffic that it is made by.
    labels["istio.io/dataplane-mode"] = json!("none");
    labels["sidecar.istio.io/inject"] = json!("false");
    labels
}

fn pod(words: &Words) -> Value {
    let port = |(name, port): &(&str, u16)| json!({"name": name, "containerPort": port, "protocol": "TCP"});
    json!({
        "serviceAccountName": CONTROL_PLANE,
        "terminationGracePeriodSeconds": 30,
        "topologySpreadConstraints": [{
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": labels()},
        }],
        "containers": [{
            "name": "control-plane",
            "image": words.image,
            "imagePullPolicy": words.pull_policy,
            "args": ["control-plane"],
            "env": [
                from_pod("POD_NAME", "metadata.name"),
                from_pod("POD_NAMESPACE", "metadata.namespace"),
                {"name": "CLUSTER_ID", "value": words.cluster_id},
                {"name": "CLUSTER_DOMAIN", "value": words.cluster_domain},
                {"name": "TRUST_DOMAIN", "value": words.trust_domain},
                {"name": "AMBIT_IMAGE", "value": words.image},
            ],
            "ports": PORTS.iter().map(port).collect::<Vec<_>>(),
            "readinessProbe": {
                "httpGet": {"path": READY.0, "port": READY.1},
                "periodSeconds": 3,
                "timeoutSeconds": 5,
            },
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
            "securityContext": confined(),
            "volumeMounts": [{"name": "cacerts", "mountPath": "/etc/cacerts", "readOnly": true}],
        }],
        // A root of one's own, if there is one.
        "volumes": [{"name": "cacerts", "secret": {"secretName": "cacerts", "optional": true}}],
    })
}

/// Who may come in: proxies to the ports with TLS, the API server to the webhook, whoever collects metrics. Discovery without
/// TLS (15010) stays within the pod. The node's own probes aren't subject to it.
pub(super) fn network_policy(words: &Words) -> Value {
    let open: Vec<_> = PORTS.iter().map(|(_, port)| *port).filter(|port| *port != 15010).collect();
    let ports: Vec<_> = open.iter().map(|port| json!({"port": port, "protocol": "TCP"})).collect();
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(words, CONTROL_PLANE),
        "spec": {"podSelector": {"matchLabels": labels()}, "policyTypes": ["Ingress"], "ingress": [{"ports": ports}]},
    })
}
