//! The objects of an installation. Names that other parts of an Istio mesh know (`istiod`, `ztunnel`, the ports, the
//! audience `istio-ca`) are Istio's (`spec/control-plane.md` 5.5, 6 and 8).

mod control_plane;
mod node_proxy;
mod rights;
mod webhook;

use serde_json::{Value, json};

pub use self::webhook::{WEBHOOK_PATH, webhook_name};
use crate::{Settings, settings::Words};

/// Label by which objects of an installation are known; without it an object is somebody else's.
pub(crate) const OWNER: (&str, &str) = ambit_api::schema::OWNER_LABEL;

/// Name of the control plane's account, Deployment, and more.
pub(crate) const CONTROL_PLANE: &str = "ambit-control-plane";
/// Name of the node proxy's account and DaemonSet: the CA knows it as `<namespace>/ztunnel`.
pub(crate) const NODE_PROXY: &str = "ztunnel";

/// Objects that stand in one file of the chart.
#[derive(Clone, Debug)]
pub struct Part {
    /// Name of the file.
    pub file: &'static str,
    /// The value of the chart that switches them off.
    pub switch: Option<&'static str>,
    /// The objects, in the order in which they are applied.
    pub objects: Vec<Value>,
}

/// The objects of an installation with these settings, without custom resource definitions and the namespace.
#[must_use]
pub fn objects(settings: &Settings) -> Vec<Value> {
    let wanted = |part: &Part| match part.file {
        "node-proxy.yaml" => settings.node_proxy,
        "webhook.yaml" => settings.webhook,
        "network-policy.yaml" => settings.network_policy,
        "gateway-classes.yaml" => settings.gateway_classes,
        _ => true,
    };
    parts(&settings.words()).into_iter().filter(wanted).flat_map(|part| part.objects).collect()
}

pub(crate) fn parts(words: &Words) -> Vec<Part> {
    let part = |file, switch, objects| Part { file, switch, objects };
    vec![
        part("rights.yaml", None, rights::objects(words)),
        part("control-plane.yaml", None, control_plane::objects(words)),
        part("network-policy.yaml", Some("networkPolicy.enabled"), vec![control_plane::network_policy(words)]),
        part("node-proxy.yaml", Some("nodeProxy.enabled"), node_proxy::objects(words)),
        part("webhook.yaml", Some("webhook.enabled"), vec![webhook::object(words)]),
        part("gateway-classes.yaml", Some("gatewayClasses.enabled"), vec![gateway_class()]),
    ]
}

/// `metadata` of an object in the installation's namespace.
fn metadata(words: &Words, name: &str) -> Value {
    json!({"name": name, "namespace": words.namespace, "labels": {OWNER.0: OWNER.1}})
}

/// `metadata` of an object in no namespace.
fn wide(name: &str) -> Value {
    json!({"name": name, "labels": {OWNER.0: OWNER.1}})
}

/// What a container may do: nothing but run.
fn confined() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "runAsUser": 1337,
        "runAsGroup": 1337,
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

fn from_pod(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

fn gateway_class() -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GatewayClass",
        "metadata": wide("istio-waypoint"),
        "spec": {"controllerName": "istio.io/mesh-controller", "description": "Waypoints of the mesh"},
    })
}
