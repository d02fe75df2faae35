//! What the API has, reduced to what the mesh needs of it.

use std::{collections::BTreeMap, net::IpAddr};

use ambit_api::{Diagnostic, Loaded, MeshConfig, Resource, load_text};
use ambit_mesh::inputs::{Change, Gateway, Namespace, NamespacedName, Pod, Service};
use k8s_openapi::{
    api::core::v1::{Namespace as KubeNamespace, Pod as KubePod, PodSpec, Service as KubeService},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::api::DynamicObject;
use serde_json::{Map, Value, json};

use crate::{
    authority::PodFacts,
    conditions::{About, Condition, OURS, Standing},
    objects::{authorization, gateway_of, labels, rules, service_port},
};

/// Annotation of a pod that a node agent captured.
const REDIRECTION: &str = "ambient.istio.io/redirection";
/// Its value.
const ENABLED: &str = "enabled";
/// Label of a pod that serves a Gateway.
pub(super) const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Label with that Gateway's class.
const GATEWAY_CLASS_NAME: &str = "gateway.networking.k8s.io/gateway-class-name";
/// Label that a controller's own objects have.
pub(super) const MANAGED: &str = "gateway.istio.io/managed";
/// Label of a pod from a ReplicaSet, the end of that one's name.
const TEMPLATE_HASH: &str = "pod-template-hash";

/// An object, read.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) name: NamespacedName,
    /// What its status says, for kinds that are told something.
    pub(super) about: About,
    pub(super) content: Content,
}

/// What it says.
#[derive(Debug)]
pub(super) enum Content {
    Namespace(Namespace),
    Service(Service),
    /// A pod, and what is told to who asks for identities. One that has ended is no longer part of the mesh.
    Pod(Box<(Option<Pod>, PodFacts)>),
    /// Without the address that its Service has.
    Gateway(Box<Gateway>),
    MeshConfig(Box<MeshConfig>),
    /// Policies, routes and the like.
    Rules(Box<Change>),
    /// Nothing to the mesh.
    Nothing,
    /// It can't be read: what it said before stays in force.
    Unreadable(String),
}

/// Namespace and name; those of the whole cluster have an empty namespace.
pub(super) fn name_of(metadata: &ObjectMeta) -> NamespacedName {
    NamespacedName::new(metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

pub(super) fn namespace(object: &KubeNamespace) -> Item {
    let content = Content::Namespace(Namespace { labels: labels(Some(&object.metadata)) });
    Item { name: name_of(&object.metadata), about: About::default(), content }
}

/// Ports of other protocols than TCP aren't the mesh's to carry.
pub(super) fn service(object: &KubeService) -> Item {
    let name = name_of(&object.metadata);
    let standing = object.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let standing = standing.filter_map(|stands| {
        standing_of(&stands.type_, &stands.status, &stands.reason, &stands.message).map(|condition| Standing {
            condition,
            observed_generation: stands.observed_generation,
            since: stands.last_transition_time.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        })
    });
    let about = About { generation: object.metadata.generation, standing: standing.collect() };
    let Some(spec) = object.spec.as_ref().filter(|spec| spec.type_.as_deref() != Some("ExternalName")) else {
        return Item { name, about, content: Content::Nothing };
    };
    let first = spec.cluster_ip.iter();
    let all = spec.cluster_ips.as_ref().filter(|all| !all.is_empty());
    let written: Vec<_> = all.map_or_else(|| first.collect(), |all| all.iter().collect());
    let is_tcp = |protocol: Option<&str>| protocol.is_none_or(|protocol| protocol == "TCP");
    let ports = spec.ports.iter().flatten().filter(|port| is_tcp(port.protocol.as_deref()));
    let content = Content::Service(Service {
        labels: labels(Some(&object.metadata)),
        selector: spec.selector.clone().unwrap_or_default(),
        ports: ports.filter_map(service_port).collect(),
        // `None` is the address of one without.
        vips: written.into_iter().filter_map(|ip| ip.parse().ok()).collect(),
    });
    Item { name, about, content }
}

pub(super) fn pod(object: &KubePod, cluster_id: &str) -> Item {
    let name = name_of(&object.metadata);
    let metadata = &object.metadata;
    let spec = object.spec.as_ref();
    let status = object.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let runs = !matches!(phase, "Succeeded" | "Failed");
    let labels = labels(Some(metadata));
    let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
    let annotation = metadata.annotations.as_ref().and_then(|all| all.get(REDIRECTION));
    let captured = annotation.is_some_and(|value| value == ENABLED);
    let gateway = label(GATEWAY_NAME);
    let is_waypoint = !gateway.is_empty() && label(GATEWAY_CLASS_NAME) == ambit_mesh::inputs::WAYPOINT_CLASS;
    let node = spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default();
    let service_account = spec.and_then(|spec| spec.service_account_name.clone()).filter(|account| !account.is_empty());
    let service_account = service_account.unwrap_or_else(|| ambit_mesh::inputs::DEFAULT_SERVICE_ACCOUNT.to_owned());
    let facts = PodFacts {
        uid: metadata.uid.clone().unwrap_or_default(),
        service_account: service_account.clone(),
        node: node.clone(),
        runs,
        enrolled: captured,
        gateway: gateway.clone(),
    };
    let ip = status.and_then(|status| status.pod_ip.as_deref()).and_then(|ip| ip.parse::<IpAddr>().ok());
    let conditions = status.into_iter().flat_map(|status| status.conditions.iter().flatten());
    let is_ready = conditions.into_iter().any(|found| found.type_ == "Ready" && found.status == "True");
    let pod = runs.then(|| Pod {
        uid: format!("{cluster_id}//Pod/{name}").into(),
        owner: owner(metadata),
        service_account,
        ip,
        ready: is_ready && metadata.deletion_timestamp.is_none(),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or_default(),
        captured: Some(captured),
        node,
        named_ports: spec.map(named_ports).unwrap_or_default(),
        waypoint: is_waypoint.then_some(gateway),
        labels,
    });
    Item { name, about: About::default(), content: Content::Pod(Box::new((pod, facts))) }
}

/// The controller of a pod: of a ReplicaSet the Deployment that made it.
fn owner(metadata: &ObjectMeta) -> Option<String> {
    let owner = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    let hash = metadata.labels.as_ref().and_then(|labels| labels.get(TEMPLATE_HASH));
    let deployment = hash.filter(|_| owner.kind == "ReplicaSet").and_then(|hash| {
        let name = owner.name.strip_suffix(hash.as_str())?;
        name.strip_suffix('-')
    });
    Some(deployment.unwrap_or(&owner.name).to_owned())
}

/// TCP ports by name, of containers and of those that run beside them from the start.
fn named_ports(spec: &PodSpec) -> BTreeMap<String, u16> {
    let beside = spec.init_containers.iter().flatten();
    let beside = beside.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(beside).flat_map(|container| container.ports.iter().flatten());
    let tcp = ports.filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"));
    tcp.filter_map(|port| Some((port.name.clone()?, u16::try_from(port.container_port).ok()?))).collect()
}

/// An object of a custom kind, read and judged exactly as from a file.
pub(super) fn custom(object: &DynamicObject, kind: &str, api_version: &str) -> Item {
    let name = name_of(&object.metadata);
    let about = About { generation: object.metadata.generation, standing: standing(&object.data["status"]) };
    let Loaded { objects, malformed, diagnostics } = load_text("", &text(object, kind, api_version));
    let errors = || {
        let all: Vec<_> = diagnostics.iter().filter(|found| found.is_error()).map(Diagnostic::reason).collect();
        if all.is_empty() { "it can't be read".to_owned() } else { all.join("; ") }
    };
    let Some(read) = objects.into_iter().chain(malformed).next() else {
        return Item { name, about, content: Content::Unreadable(errors()) };
    };
    let rejection = read.rejection.as_deref();
    let content = match read.resource {
        Resource::Gateway(gateway) => Content::Gateway(Box::new(gateway_of(labels(Some(&gateway.metadata)), &gateway))),
        Resource::MeshConfig(_) if rejection.is_some() => Content::Unreadable(errors()),
        Resource::MeshConfig(config) => Content::MeshConfig(config),
        Resource::AuthorizationPolicy(policy) => Content::Rules(Box::new(authorization(*policy, rejection))),
        resource => rules(&resource, rejection).map_or(Content::Nothing, |change| Content::Rules(Box::new(change))),
    };
    Item { name, about, content }
}

/// The conditions of ours in a status.
fn standing(status: &Value) -> Vec<Standing> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = status["conditions"].as_array().into_iter().flatten();
    let ours = all.filter_map(|stands| {
        let [kind, status, reason, message] = ["type", "status", "reason", "message"].map(|field| text(&stands[field]));
        Some(Standing {
            condition: standing_of(&kind, &status, &reason, &message)?,
            observed_generation: stands["observedGeneration"].as_i64(),
            since: text(&stands["lastTransitionTime"]),
        })
    });
    ours.collect()
}

/// A condition that stands; nothing if it isn't of a type of ours. What is neither true nor false is as wrong as false.
fn standing_of(kind: &str, status: &str, reason: &str, message: &str) -> Option<Condition> {
    let (kind, _) = OURS.into_iter().find(|(ours, _)| *ours == kind)?;
    Some(Condition { kind, status: status == "True", reason: reason.to_owned(), message: message.to_owned() })
}

/// The object as a user would have written it: JSON is YAML. What only the API server keeps is left out.
fn text(object: &DynamicObject, kind: &str, api_version: &str) -> String {
    let metadata = &object.metadata;
    let mut kept = Map::new();
    kept.insert("name".to_owned(), json!(metadata.name));
    if let Some(namespace) = &metadata.namespace {
        kept.insert("namespace".to_owned(), json!(namespace));
    }
    if let Some(created) = &metadata.creation_timestamp {
        // Of several that say different things the oldest counts.
        kept.insert("creationTimestamp".to_owned(), json!(created));
    }
    for (field, value) in [("annotations", &metadata.annotations), ("labels", &metadata.labels)] {
        if let Some(value) = value {
            kept.insert(field.to_owned(), json!(value));
        }
    }
    let mut written = Map::new();
    written.insert("apiVersion".to_owned(), json!(api_version));
    written.insert("kind".to_owned(), json!(kind));
    written.insert("metadata".to_owned(), Value::Object(kept));
    if let Some(spec) = object.data.get("spec") {
        written.insert("spec".to_owned(), spec.clone());
    }
    Value::Object(written).to_string()
}
