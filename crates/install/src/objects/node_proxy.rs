//! The node proxy: `ambit ztunnel` on every node (`spec/control-plane.md` 5.5). Pods are given to it by a node agent over
//! `/var/run/ztunnel/ztunnel.sock`: Istio's `istio-cni` for now.

use serde_json::{Value, json};

use super::{NODE_PROXY, from_pod, metadata};
use crate::settings::Words;

/// Lifetime of the token that it shows the CA, in seconds.
const TOKEN_SECONDS: u32 = 43_200;

pub(super) fn objects(words: &Words) -> Vec<Value> {
    vec![
        // It asks the API server for nothing: neither rights nor a token for it.
        json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata(words, NODE_PROXY),
            "automountServiceAccountToken": false,
        }),
        json!({
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": metadata(words, NODE_PROXY),
            "spec": {
                "selector": {"matchLabels": {"app": NODE_PROXY}},
                // The old proxy of a node serves until the new one does.
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                "template": {"metadata": {"labels": labels(), "annotations": annotations()}, "spec": pod(words)},
            },
        }),
    ]
}

fn labels() -> Value {
    json!({
        "app": NODE_PROXY,
        "app.kubernetes.io/name": NODE_PROXY,
        "istio.io/dataplane-mode": "none",
        "sidecar.istio.io/inject": "false",
    })
}

fn annotations() -> Value {
    json!({"prometheus.io/port": "15020", "prometheus.io/scrape": "true"})
}

fn pod(words: &Words) -> Value {
    json!({
        "serviceAccountName": NODE_PROXY,
        "automountServiceAccountToken": false,
        "priorityClassName": "system-node-critical",
        "terminationGracePeriodSeconds": 30,
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [
            {"effect": "NoSchedule", "operator": "Exists"},
            {"effect": "NoExecute", "operator": "Exists"},
            {"key": "CriticalAddonsOnly", "operator": "Exists"},
        ],
        "containers": [container(words)],
        "volumes": [
            {"name": "istio-token", "projected": {"sources": [{"serviceAccountToken": {
                "path": "istio-token", "expirationSeconds": TOKEN_SECONDS, "audience": "istio-ca",
            }}]}},
            {"name": "istiod-ca-cert", "configMap": {"name": "istio-ca-root-cert"}},
            {"name": "agent", "hostPath": {"path": "/var/run/ztunnel", "type": "DirectoryOrCreate"}},
            {"name": "tmp", "emptyDir": {}},
        ],
    })
}

fn container(words: &Words) -> Value {
    let control_plane = format!("https://istiod.{}.svc:15012", words.namespace);
    json!({
        "name": "istio-proxy",
        "image": words.image,
        "imagePullPolicy": words.pull_policy,
        "args": ["ztunnel"],
        "workingDir": "/",
        "env": [
            {"name": "XDS_ADDRESS", "value": control_plane},
            {"name": "CA_ADDRESS", "value": control_plane},
            {"name": "CLUSTER_ID", "value": words.cluster_id},
            {"name": "CLUSTER_DOMAIN", "value": words.cluster_domain},
            {"name": "TRUST_DOMAIN", "value": words.trust_domain},
            from_pod("NODE_NAME", "spec.nodeName"),
            from_pod("POD_NAME", "metadata.name"),
            from_pod("POD_NAMESPACE", "metadata.namespace"),
            from_pod("INSTANCE_IP", "status.podIP"),
            from_pod("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        ],
        "ports": [{"name": "ztunnel-stats", "containerPort": 15020, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/healthz/ready", "port": 15021}, "periodSeconds": 3},
        "resources": {"requests": {"cpu": "200m", "memory": "128Mi"}},
        // It enters the pods' network namespaces and marks its own packets there.
        "securityContext": {
            "allowPrivilegeEscalation": true,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "SYS_ADMIN", "NET_RAW"]},
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "runAsGroup": 1337,
        },
        "volumeMounts": [
            {"name": "istio-token", "mountPath": "/var/run/secrets/tokens", "readOnly": true},
            {"name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio", "readOnly": true},
            {"name": "agent", "mountPath": "/var/run/ztunnel"},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    })
}
