//! What a Gateway's waypoint consists of.

use std::collections::BTreeMap;

use ambit_api::Gateway;
use kube::ResourceExt;
use serde_json::{Map, Value, json};

use super::Settings;
use crate::limits::MAX_PORT_NAME_BYTES;

/// The class of waypoints.
pub(super) const CLASS: &str = ambit_mesh::inputs::WAYPOINT_CLASS;
/// Label of children: their Gateway.
pub(super) const NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";
/// Label of children: its class.
pub(super) const CLASS_LABEL: &str = "gateway.networking.k8s.io/gateway-class-name";
/// Label of what a controller made; without it an object is somebody else's.
pub(super) const MANAGED: &str = "gateway.istio.io/managed";
/// Its value: the controller's name, as a label can have it.
const MANAGED_BY: &str = "istio.io-mesh-controller";
/// Annotation of a Gateway with the type of its Service.
const SERVICE_TYPE: &str = "networking.istio.io/service-type";
/// Annotation of a Gateway with the account of its pods.
const ACCOUNT: &str = "gateway.istio.io/service-account";
/// Annotations of a Gateway that aren't its children's.
const OWN_ANNOTATIONS: [&str; 5] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "gateway.istio.io/name-override",
    ACCOUNT,
    super::CONTROLLER_VERSION,
    SERVICE_TYPE,
];
/// Domain of what only the Gateway API says.
const GATEWAY_DOMAIN: &str = "gateway.networking.k8s.io/";
/// Where a waypoint says that it is ready.
const READINESS_PORT: u16 = 15021;
/// Where it has metrics.
const METRICS_PORT: u16 = 15020;
/// Lifetime of the token that it shows the CA, in seconds.
const TOKEN_SECONDS: u32 = 43_200;
/// Time that its pods have for their end, in seconds.
const GRACE_SECONDS: u32 = 30;
/// Who its pods run as.
const USER: u32 = 1337;

/// True if its waypoint is for us to make: a Gateway that names a host has one already.
pub(super) fn is_managed(gateway: &Gateway) -> bool {
    match gateway.spec.addresses.as_deref().unwrap_or_default() {
        [] => true,
        [only] => only.r#type.as_deref().unwrap_or("IPAddress") == "IPAddress",
        _ => false,
    }
}

/// ServiceAccount, Deployment and Service, in this order.
pub(super) fn children(gateway: &Gateway, settings: &Settings) -> [Value; 3] {
    let name = gateway.name_any();
    let account = gateway.annotations().get(ACCOUNT).cloned().unwrap_or_else(|| name.clone());
    let (labels, annotations) = inherited(gateway);
    let metadata = |name: &str| {
        json!({
            "name": name,
            "namespace": gateway.namespace(),
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [{
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "Gateway",
                "name": gateway.name_any(),
                "uid": gateway.uid(),
            }],
        })
    };
    let selector = json!({ NAME_LABEL: name });
    let mut pod_labels = labels.clone();
    for (key, value) in [
        // It speaks HBONE by itself.
        ("istio.io/dataplane-mode", "none"),
        ("sidecar.istio.io/inject", "false"),
        ("service.istio.io/canonical-name", &name),
        ("service.istio.io/canonical-revision", "latest"),
    ] {
        pod_labels.insert(key.to_owned(), value.to_owned());
    }
    let mut pod_annotations = annotations.clone();
    for (key, value) in
        [("prometheus.io/path", "/stats/prometheus"), ("prometheus.io/port", "15020"), ("prometheus.io/scrape", "true")]
    {
        pod_annotations.insert(key.to_owned(), value.to_owned());
    }
    let account_object = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(&account),
        // It asks the API server for nothing.
        "automountServiceAccountToken": false,
    });
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(&name),
        "spec": {
            "selector": {"matchLabels": selector},
            // The old one serves until the new one does.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": pod_labels, "annotations": pod_annotations},
                "spec": pod(&name, &account, settings),
            },
        },
    });
    let service_type = gateway.annotations().get(SERVICE_TYPE).map_or("ClusterIP", String::as_str);
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(&name),
        "spec": {
            "type": service_type, "ipFamilyPolicy": "PreferDualStack", "selector": selector, "ports": ports(gateway),
        },
    });
    [account_object, deployment, service]
}

/// What `spec.infrastructure` says, or else what the Gateway itself has; and what children are known by.
fn inherited(gateway: &Gateway) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let (mut labels, mut annotations) = match &gateway.spec.infrastructure {
        Some(own) if own.labels.is_some() || own.annotations.is_some() => {
            (own.labels.clone().unwrap_or_default(), own.annotations.clone().unwrap_or_default())
        }
        _ => (gateway.labels().clone(), gateway.annotations().clone()),
    };
    labels.retain(|key, _| !key.starts_with(GATEWAY_DOMAIN));
    annotations.retain(|key, _| !key.starts_with(GATEWAY_DOMAIN) && !OWN_ANNOTATIONS.contains(&key.as_str()));
    let known = [(NAME_LABEL, gateway.name_any()), (CLASS_LABEL, CLASS.to_owned()), (MANAGED, MANAGED_BY.to_owned())];
    labels.extend(known.map(|(key, value)| (key.to_owned(), value)));
    (labels, annotations)
}

/// Readiness, and each listener under its own name.
fn ports(gateway: &Gateway) -> Vec<Value> {
    let mut ports = vec![json!({
        "name": "status-port", "port": READINESS_PORT, "targetPort": READINESS_PORT, "protocol": "TCP",
    })];
    let mut seen = BTreeMap::from([(i32::from(READINESS_PORT), "status-port".to_owned())]);
    for listener in &gateway.spec.listeners {
        if seen.contains_key(&listener.port) {
            continue;
        }
        let mut name: String = listener.name.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        name.truncate(MAX_PORT_NAME_BYTES);
        let mut name = name.trim_matches('-').to_owned();
        if name.is_empty() || seen.values().any(|other| *other == name) {
            name = format!("listener-{}", listener.port);
        }
        ports.push(json!({
            "name": name, "port": listener.port, "targetPort": listener.port, "protocol": "TCP",
            "appProtocol": listener.protocol.to_lowercase(),
        }));
        seen.insert(listener.port, name);
    }
    ports
}

fn pod(gateway: &str, account: &str, settings: &Settings) -> Value {
    json!({
        "serviceAccountName": account,
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "containers": [container(gateway, account, settings)],
        "volumes": [
            {"name": "istio-token", "projected": {"sources": [{"serviceAccountToken": {
                "path": "istio-token", "expirationSeconds": TOKEN_SECONDS, "audience": "istio-ca",
            }}]}},
            {"name": "istiod-ca-cert", "configMap": {"name": "istio-ca-root-cert"}},
            {"name": "tmp", "emptyDir": {}},
        ],
    })
}

fn container(gateway: &str, account: &str, settings: &Settings) -> Value {
    let host = match settings.revision.as_str() {
        "" | "default" => "istiod".to_owned(),
        revision => format!("istiod-{revision}"),
    };
    let control_plane = format!("https://{host}.{}.svc:15012", settings.namespace);
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let value = |name: &str, value: &str| json!({"name": name, "value": value});
    let probe = |more: Value| {
        let mut probe = json!({"httpGet": {"path": "/healthz/ready", "port": READINESS_PORT}, "timeoutSeconds": 1});
        if let (Some(probe), Value::Object(more)) = (probe.as_object_mut(), more) {
            probe.extend::<Map<_, _>>(more);
        }
        probe
    };
    json!({
        "name": "istio-proxy",
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": ["waypoint"],
        "workingDir": "/",
        "env": [
            value("GATEWAY_NAME", gateway),
            value("SERVICE_ACCOUNT", account),
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
            field("NODE_NAME", "spec.nodeName"),
            field("INSTANCE_IP", "status.podIP"),
            value("CLUSTER_ID", &settings.cluster_id),
            value("TRUST_DOMAIN", &settings.trust_domain),
            value("XDS_ADDRESS", &control_plane),
            value("CA_ADDRESS", &control_plane),
            value("TERMINATION_GRACE_PERIOD_SECONDS", &GRACE_SECONDS.to_string()),
        ],
        "ports": [
            {"name": "hbone", "containerPort": ambit_mesh::inputs::HBONE_PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
            {"name": "status-port", "containerPort": READINESS_PORT, "protocol": "TCP"},
        ],
        "startupProbe": probe(json!({"periodSeconds": 1, "failureThreshold": 30})),
        "readinessProbe": probe(json!({"periodSeconds": 15, "failureThreshold": 4})),
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": "istio-token", "mountPath": "/var/run/secrets/tokens", "readOnly": true},
            {"name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio", "readOnly": true},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    })
}
