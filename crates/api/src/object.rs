//! A loaded object: its type, its name, and where it was written.

use std::{fmt, sync::Arc};

use gateway_api::gateways::Gateway;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Namespace, Pod, Service, ServiceAccount},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::Serialize;

use crate::{
    AuthorizationPolicy, BackendTrafficPolicy, DestinationRule, Diagnostic, MeshConfig, PeerAuthentication, Place,
    RequestAuthentication, Route, Severity, Source, TrafficPolicy,
    codes::Code,
    text::quoted,
    yaml::{self, Node, Typed},
};

/// An object with its origin.
#[derive(Clone, Debug)]
pub struct Object {
    /// What it says. `metadata.name` is always set; so is `metadata.namespace` of the namespaced kinds (`default` when
    /// the user wrote none).
    pub resource: Resource,
    /// Where it was written.
    pub origin: Arc<Origin>,
    /// The first reason why it can't be enforced as it is written; nothing if it can. What a policy with one targets is to
    /// be denied. Values that can never match are errors, but no such reason: what they mean is known.
    pub rejection: Option<Box<Diagnostic>>,
}

/// The kinds that mean something to the mesh.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the variants are the kinds")]
pub enum Resource {
    Namespace(Box<Namespace>),
    ServiceAccount(Box<ServiceAccount>),
    Pod(Box<Pod>),
    Deployment(Box<Deployment>),
    Service(Box<Service>),
    Gateway(Box<Gateway>),
    AuthorizationPolicy(Box<AuthorizationPolicy>),
    PeerAuthentication(Box<PeerAuthentication>),
    RequestAuthentication(Box<RequestAuthentication>),
    TrafficPolicy(Box<TrafficPolicy>),
    BackendTrafficPolicy(Box<BackendTrafficPolicy>),
    /// An HTTPRoute, GRPCRoute, TLSRoute or TCPRoute.
    Route(Box<Route>),
    DestinationRule(Box<DestinationRule>),
    MeshConfig(Box<MeshConfig>),
}

/// The name of an object. `Display`: `AuthorizationPolicy kagenti-system/mlflow-traces`, `Namespace kagenti-system`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ObjectRef {
    /// Kind, for example `Service`.
    pub kind: String,
    /// Namespace; none for kinds that live in no namespace.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
}

/// Where an object was written, able to find the place of each of its fields.
#[derive(Clone, Debug)]
pub struct Origin {
    object: ObjectRef,
    written: Option<(Arc<Source>, Node)>,
}

// === impl Object ===

impl Object {
    /// Kind, namespace and name.
    #[must_use]
    pub fn reference(&self) -> ObjectRef {
        self.origin.object.clone()
    }
}

// === impl Resource ===

impl Resource {
    /// The kind, for example `Service`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "Namespace",
            Self::ServiceAccount(_) => "ServiceAccount",
            Self::Pod(_) => "Pod",
            Self::Deployment(_) => "Deployment",
            Self::Service(_) => "Service",
            Self::Gateway(_) => "Gateway",
            Self::AuthorizationPolicy(_) => "AuthorizationPolicy",
            Self::PeerAuthentication(_) => "PeerAuthentication",
            Self::RequestAuthentication(_) => "RequestAuthentication",
            Self::TrafficPolicy(_) => "TrafficPolicy",
            Self::BackendTrafficPolicy(_) => "XBackendTrafficPolicy",
            Self::Route(route) => route.kind(),
            Self::DestinationRule(_) => "DestinationRule",
            Self::MeshConfig(_) => "MeshConfig",
        }
    }

    /// The Kubernetes metadata; none for the kinds that carry what they need of it themselves.
    #[must_use]
    pub fn metadata(&self) -> Option<&ObjectMeta> {
        match self {
            Self::Namespace(object) => Some(&object.metadata),
            Self::ServiceAccount(object) => Some(&object.metadata),
            Self::Pod(object) => Some(&object.metadata),
            Self::Deployment(object) => Some(&object.metadata),
            Self::Service(object) => Some(&object.metadata),
            Self::Gateway(object) => Some(&object.metadata),
            Self::AuthorizationPolicy(_)
            | Self::PeerAuthentication(_)
            | Self::RequestAuthentication(_)
            | Self::TrafficPolicy(_)
            | Self::BackendTrafficPolicy(_)
            | Self::Route(_)
            | Self::DestinationRule(_)
            | Self::MeshConfig(_) => None,
        }
    }

    /// Namespace; none for the kinds that live in none.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::Namespace(_) | Self::MeshConfig(_) => None,
            Self::AuthorizationPolicy(policy) => Some(&policy.namespace),
            Self::PeerAuthentication(policy) => Some(&policy.namespace),
            Self::RequestAuthentication(object) => Some(&object.namespace),
            Self::TrafficPolicy(object) => Some(&object.namespace),
            Self::BackendTrafficPolicy(object) => Some(&object.namespace),
            Self::Route(route) => Some(&route.namespace),
            Self::DestinationRule(rule) => Some(&rule.namespace),
            _ => self.metadata().and_then(|metadata| metadata.namespace.as_deref()),
        }
    }

    /// Name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::AuthorizationPolicy(policy) => &policy.name,
            Self::PeerAuthentication(policy) => &policy.name,
            Self::RequestAuthentication(object) => &object.name,
            Self::TrafficPolicy(object) => &object.name,
            Self::BackendTrafficPolicy(object) => &object.name,
            Self::Route(route) => &route.name,
            Self::DestinationRule(rule) => &rule.name,
            Self::MeshConfig(config) => &config.name,
            _ => self.metadata().and_then(|metadata| metadata.name.as_deref()).unwrap_or_default(),
        }
    }

    /// Kind, namespace and name.
    #[must_use]
    pub fn reference(&self) -> ObjectRef {
        ObjectRef {
            kind: self.kind().to_owned(),
            namespace: self.namespace().map(str::to_owned),
            name: self.name().to_owned(),
        }
    }
}

// === impl ObjectRef ===

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = (quoted(&self.kind), quoted(&self.name));
        match &self.namespace {
            Some(namespace) => write!(f, "{kind} {}/{name}", quoted(namespace)),
            None => write!(f, "{kind} {name}"),
        }
    }
}

// === impl Origin ===

impl Origin {
    pub(crate) fn written(object: ObjectRef, source: Arc<Source>, node: Node) -> Self {
        Self { object, written: Some((source, node)) }
    }

    /// An object that no file holds (made by a test, or read from a cluster): its diagnostics have no place.
    #[must_use]
    pub fn unwritten(object: ObjectRef) -> Self {
        Self { object, written: None }
    }

    /// Kind, namespace and name.
    #[must_use]
    pub fn object(&self) -> &ObjectRef {
        &self.object
    }

    /// The place of a field, for example `spec.targetRefs[0].name` or `metadata.labels[istio.io/use-waypoint]` (the
    /// bracket form is for keys with dots). A field that isn't written gives its nearest ancestor's place; the
    /// object itself is at its name.
    #[must_use]
    pub fn place(&self, field: &str) -> Option<Place> {
        let (source, node) = self.written.as_ref()?;
        Some(source.place(node.locate(field)))
    }

    /// True if the field is written in the file, whatever its value.
    #[must_use]
    pub fn is_written(&self, field: &str) -> bool {
        self.node(field).is_some()
    }

    /// What is written in this field.
    pub(crate) fn node(&self, field: &str) -> Option<&yaml::Node> {
        self.written.as_ref().and_then(|(_, node)| node.find(field))
    }

    /// True if this field is written with no value behind it.
    pub(crate) fn is_null(&self, field: &str) -> bool {
        self.node(field).is_some_and(|node| matches!(node.value, yaml::Value::Null))
    }

    /// True if both have the same text at the same places.
    #[cfg(test)]
    pub(crate) fn is_written_as(&self, other: &Self) -> bool {
        self.object == other.object && self.written == other.written
    }

    pub(crate) fn source(&self) -> Option<&Arc<Source>> {
        self.written.as_ref().map(|(source, _)| source)
    }

    pub(crate) fn typed<T: serde::de::DeserializeOwned>(&self) -> Option<Typed<T>> {
        self.written.as_ref().map(|(_, node)| yaml::deserialize(node))
    }

    /// The object's position as `file:line:column`, for messages that name a second place.
    #[must_use]
    pub fn position(&self) -> Option<String> {
        self.place("metadata.name").map(|place| format!("{}:{}:{}", place.source.name(), place.line, place.column))
    }

    /// A diagnostic about one field of this object (`""`: the object as a whole), with the caret on that field.
    /// An empty `help` means none.
    pub fn diagnostic(
        &self,
        severity: Severity,
        code: Code,
        field: &str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Diagnostic {
        let mut diagnostic = Diagnostic::new(severity, code, message, help);
        diagnostic.object = Some(self.object.clone());
        diagnostic.field = (!field.is_empty()).then(|| field.to_owned());
        match self.place(field) {
            Some(place) => diagnostic.at(place),
            None => diagnostic,
        }
    }
}
