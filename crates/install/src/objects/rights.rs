//! What the control plane may do, and nothing more: a right without a use here is a defect.

use serde_json::{Value, json};

use super::{CONTROL_PLANE, metadata, webhook_name, wide};
use crate::settings::Words;

const READ: [&str; 3] = ["get", "list", "watch"];
const RBAC: &str = "rbac.authorization.k8s.io";

pub(super) fn objects(words: &Words) -> Vec<Value> {
    // With the namespace, so that two installations don't share one.
    let name = format!("{CONTROL_PLANE}-{}", words.namespace);
    let subject = json!([{"kind": "ServiceAccount", "name": CONTROL_PLANE, "namespace": words.namespace}]);
    let reference = |kind: &str, name: &str| json!({"apiGroup": RBAC, "kind": kind, "name": name});
    let version = format!("{RBAC}/v1");
    vec![
        json!({"apiVersion": version, "kind": "ClusterRole", "metadata": wide(&name), "rules": wide_rules(words)}),
        json!({
            "apiVersion": version, "kind": "ClusterRoleBinding", "metadata": wide(&name),
            "roleRef": reference("ClusterRole", &name), "subjects": subject,
        }),
        json!({
            "apiVersion": version, "kind": "Role", "metadata": metadata(words, CONTROL_PLANE), "rules": own_rules(),
        }),
        json!({
            "apiVersion": version, "kind": "RoleBinding", "metadata": metadata(words, CONTROL_PLANE),
            "roleRef": reference("Role", CONTROL_PLANE), "subjects": subject,
        }),
    ]
}

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

/// In every namespace.
fn wide_rules(words: &Words) -> Vec<Value> {
    let write_status = ["patch", "update"];
    let manage = ["get", "list", "watch", "create", "patch", "update", "delete"];
    vec![
        // The mesh: who is in it, and what was written about it.
        rule(&[""], &["configmaps", "namespaces", "nodes", "pods", "serviceaccounts", "services"], &READ),
        rule(&["discovery.k8s.io"], &["endpointslices"], &READ),
        rule(&["gateway.networking.k8s.io", "gateway.networking.x-k8s.io"], &["*"], &READ),
        rule(&["security.istio.io", "networking.istio.io", "ambit.dev"], &["*"], &READ),
        rule(&["apiextensions.k8s.io"], &["customresourcedefinitions"], &READ),
        // What it says about them.
        rule(&[""], &["services/status"], &write_status),
        rule(
            &["gateway.networking.k8s.io", "gateway.networking.x-k8s.io"],
            &[
                "gatewayclasses/status",
                "gateways/status",
                "grpcroutes/status",
                "httproutes/status",
                "tcproutes/status",
                "tlsroutes/status",
                "xbackendtrafficpolicies/status",
            ],
            &write_status,
        ),
        rule(
            &["security.istio.io"],
            &["authorizationpolicies/status", "peerauthentications/status", "requestauthentications/status"],
            &write_status,
        ),
        rule(
            &["networking.istio.io"],
            &["destinationrules/status", "serviceentries/status", "workloadentries/status"],
            &write_status,
        ),
        rule(&["ambit.dev"], &["meshconfigs/status", "trafficpolicies/status"], &write_status),
        rule(&["gateway.networking.k8s.io"], &["gatewayclasses"], &["create", "patch"]),
        // Which controller looks after a Gateway stands in its annotations.
        rule(&["gateway.networking.k8s.io"], &["gateways"], &["patch"]),
        // Waypoints, in the namespaces of their Gateways.
        rule(&[""], &["serviceaccounts", "services"], &["create", "patch", "update", "delete"]),
        rule(&["apps"], &["deployments"], &manage),
        rule(&["autoscaling"], &["horizontalpodautoscalers"], &manage),
        rule(&["policy"], &["poddisruptionbudgets"], &manage),
        // The trust bundle, in every namespace. What is created can't be restricted by name.
        rule(&[""], &["configmaps"], &["create"]),
        json!({
            "apiGroups": [""], "resources": ["configmaps"], "verbs": ["patch", "update", "delete"],
            "resourceNames": ["istio-ca-root-cert", "istio-ca-crl"],
        }),
        // Whose token it is that a proxy shows.
        rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
        // Its own webhook, whose authority it writes.
        json!({
            "apiGroups": ["admissionregistration.k8s.io"], "resources": ["validatingwebhookconfigurations"],
            "verbs": ["get", "list", "watch", "patch", "update"], "resourceNames": [webhook_name(&words.namespace)],
        }),
    ]
}

/// In its own namespace.
fn own_rules() -> Vec<Value> {
    vec![
        rule(&["coordination.k8s.io"], &["leases"], &["get", "create", "update", "patch"]),
        // What the mesh's CA signs with. No other Secret can be read, here or anywhere.
        json!({
            "apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch", "patch", "update"],
            "resourceNames": ["istio-ca-secret", "cacerts"],
        }),
        rule(&[""], &["secrets"], &["create"]),
    ]
}
