//! Objects as they are written: a kind's own part, with Kubernetes' metadata.

use std::collections::BTreeMap;

use gateway_api::gateways::Gateway;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Namespace, Pod, Service, ServiceAccount},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, de::DeserializeOwned};

use super::{Faults, kind_of, typed};
use crate::{
    AuthorizationPolicy, BackendTrafficPolicy, DestinationRule, ObjectRef, Origin, PeerAuthentication,
    RequestAuthentication, Resource, Route, TrafficPolicy,
    authorization_policy::{AuthorizationPolicySpec, PolicyTargetReference, WorkloadSelector},
    backend_traffic_policy::BackendTrafficPolicySpec,
    destination_rule::DestinationRuleSpec,
    mesh_config::MeshConfigSpec,
    peer_authentication::PeerAuthenticationSpec,
    request_authentication::RequestAuthenticationSpec,
    routes::{GrpcRouteSpec, HttpRouteSpec, ParentReference, RouteSpec, TcpRouteSpec, TlsRouteSpec},
    traffic_policy::TrafficPolicySpec,
};

/// What all types have: metadata whose name and namespace are filled in.
pub(super) trait Named: DeserializeOwned {
    fn metadata_mut(&mut self) -> &mut ObjectMeta;
}

macro_rules! named {
    ($($kind:ty),*) => {
        $(impl Named for $kind {
            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        })*
    };
}

named!(
    Namespace,
    ServiceAccount,
    Pod,
    Deployment,
    Service,
    Gateway,
    PolicyObject,
    PeerObject,
    TokenObject,
    DestinationObject,
    MeshObject,
    TrafficObject,
    BackendTrafficObject
);

/// An AuthorizationPolicy as it is written, with Kubernetes' metadata.
#[derive(Deserialize)]
pub(super) struct PolicyObject {
    metadata: ObjectMeta,
    #[serde(default, deserialize_with = "crate::authorization_policy::null_as_default")]
    spec: AuthorizationPolicySpec,
}

impl PolicyObject {
    pub(super) fn into_policy(self, object: &ObjectRef) -> AuthorizationPolicy {
        AuthorizationPolicy {
            namespace: object.namespace.clone().unwrap_or_default(),
            name: object.name.clone(),
            annotations: self.metadata.annotations.unwrap_or_default(),
            spec: self.spec,
        }
    }
}

/// What is left of a policy whose form is wrong: what it is attached to. If not even that can be read, it is attached to
/// everything that it could be.
pub(super) fn attached_only(origin: &Origin) -> AuthorizationPolicy {
    let read = origin.typed::<AttachmentObject>().and_then(|typed| typed.object.ok());
    let Attachment { selector, target_refs, target_ref } = read.map(|object| object.spec).unwrap_or_default();
    let spec = AuthorizationPolicySpec { selector, target_refs, target_ref, ..AuthorizationPolicySpec::default() };
    let ObjectRef { namespace, name, .. } = origin.object().clone();
    AuthorizationPolicy { namespace: namespace.unwrap_or_default(), name, annotations: BTreeMap::new(), spec }
}

/// The fields of an AuthorizationPolicy that say what it is attached to.
#[derive(Deserialize)]
struct AttachmentObject {
    #[serde(default, deserialize_with = "crate::authorization_policy::null_as_default")]
    spec: Attachment,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attachment {
    #[serde(default)]
    selector: Option<WorkloadSelector>,
    #[serde(default, deserialize_with = "crate::authorization_policy::null_as_default")]
    target_refs: Vec<PolicyTargetReference>,
    #[serde(default)]
    target_ref: Option<PolicyTargetReference>,
}

/// A PeerAuthentication as it is written, with Kubernetes' metadata.
#[derive(Deserialize)]
pub(super) struct PeerObject {
    metadata: ObjectMeta,
    #[serde(default, deserialize_with = "crate::authorization_policy::null_as_default")]
    spec: PeerAuthenticationSpec,
}

impl PeerObject {
    pub(super) fn into_policy(self, object: &ObjectRef) -> PeerAuthentication {
        PeerAuthentication {
            namespace: object.namespace.clone().unwrap_or_default(),
            name: object.name.clone(),
            created: self.metadata.creation_timestamp.map(|time| time.0.to_string()),
            spec: self.spec,
        }
    }
}

/// A route as it is written, with Kubernetes' metadata.
#[derive(Deserialize)]
#[serde(bound(deserialize = "S: Deserialize<'de> + Default"))]
struct RouteObject<S> {
    metadata: ObjectMeta,
    #[serde(default, deserialize_with = "crate::authorization_policy::null_as_default")]
    spec: S,
}

impl<S: DeserializeOwned + Default> Named for RouteObject<S> {
    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

pub(super) fn route<S>(origin: &Origin, faults: &mut Faults<'_>, spec: fn(S) -> RouteSpec) -> Option<Resource>
where
    S: DeserializeOwned + Default,
{
    let object = typed::<RouteObject<S>>(origin, faults)?;
    let ObjectRef { namespace, name, .. } = origin.object().clone();
    let created = object.metadata.creation_timestamp.map(|time| time.0.to_string());
    let namespace = namespace.unwrap_or_default();
    Some(Resource::Route(Box::new(Route { namespace, name, created, spec: spec(object.spec) })))
}

/// What is left of a route whose form is wrong: what it is attached to, where that can be read.
pub(super) fn attached_route(origin: &Origin) -> Route {
    #[derive(Deserialize)]
    struct Attached {
        #[serde(default, deserialize_with = "crate::authorization_policy::null_as_default")]
        spec: Parents,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Parents {
        #[serde(default, deserialize_with = "crate::authorization_policy::null_as_default")]
        parent_refs: Vec<ParentReference>,
    }
    let read = origin.typed::<Attached>().and_then(|typed| typed.object.ok());
    let parent_refs = read.map(|object| object.spec.parent_refs).unwrap_or_default();
    let spec = match kind_of(origin) {
        "GRPCRoute" => RouteSpec::Grpc(GrpcRouteSpec { parent_refs, ..GrpcRouteSpec::default() }),
        "TLSRoute" => RouteSpec::Tls(TlsRouteSpec { parent_refs, ..TlsRouteSpec::default() }),
        "TCPRoute" => RouteSpec::Tcp(TcpRouteSpec { parent_refs, ..TcpRouteSpec::default() }),
        _ => RouteSpec::Http(HttpRouteSpec { parent_refs, ..HttpRouteSpec::default() }),
    };
    let ObjectRef { namespace, name, .. } = origin.object().clone();
    Route { namespace: namespace.unwrap_or_default(), name, created: None, spec }
}

/// A RequestAuthentication as it is written, with Kubernetes' metadata.
#[derive(Deserialize)]
pub(super) struct TokenObject {
    metadata: ObjectMeta,
    #[serde(default, deserialize_with = "crate::authorization_policy::null_as_default")]
    spec: RequestAuthenticationSpec,
}

impl TokenObject {
    pub(super) fn into_object(self, object: &ObjectRef) -> RequestAuthentication {
        let (namespace, name) = (object.namespace.clone().unwrap_or_default(), object.name.clone());
        RequestAuthentication { namespace, name, spec: self.spec }
    }
}

/// A TrafficPolicy as it is written, with Kubernetes' metadata.
#[derive(Deserialize)]
pub(super) struct TrafficObject {
    metadata: ObjectMeta,
    #[serde(default, deserialize_with = "crate::authorization_policy::null_as_default")]
    spec: TrafficPolicySpec,
}

impl TrafficObject {
    pub(super) fn into_object(self, object: &ObjectRef) -> TrafficPolicy {
        let (namespace, name) = (object.namespace.clone().unwrap_or_default(), object.name.clone());
        TrafficPolicy { namespace, name, spec: self.spec }
    }
}

/// An XBackendTrafficPolicy as it is written, with Kubernetes' metadata.
#[derive(Deserialize)]
pub(super) struct BackendTrafficObject {
    metadata: ObjectMeta,
    #[serde(default, deserialize_with = "crate::authorization_policy::null_as_default")]
    spec: BackendTrafficPolicySpec,
}

impl BackendTrafficObject {
    pub(super) fn into_object(self, object: &ObjectRef) -> BackendTrafficPolicy {
        let (namespace, name) = (object.namespace.clone().unwrap_or_default(), object.name.clone());
        let created = self.metadata.creation_timestamp.map(|time| time.0.to_string());
        BackendTrafficPolicy { namespace, name, created, spec: self.spec }
    }
}

/// A DestinationRule as it is written, with Kubernetes' metadata.
#[derive(Deserialize)]
pub(super) struct DestinationObject {
    metadata: ObjectMeta,
    #[serde(default, deserialize_with = "crate::authorization_policy::null_as_default")]
    spec: DestinationRuleSpec,
}

impl DestinationObject {
    pub(super) fn into_rule(self, object: &ObjectRef) -> DestinationRule {
        DestinationRule {
            namespace: object.namespace.clone().unwrap_or_default(),
            name: object.name.clone(),
            created: self.metadata.creation_timestamp.map(|time| time.0.to_string()),
            spec: self.spec,
        }
    }
}

/// What is left of a DestinationRule whose form is wrong: what it is about, if that can be read.
pub(super) fn named_host(origin: &Origin) -> Option<DestinationRule> {
    #[derive(Deserialize)]
    struct Named {
        spec: Host,
    }
    #[derive(Deserialize)]
    struct Host {
        host: String,
    }
    let host = origin.typed::<Named>().and_then(|typed| typed.object.ok())?.spec.host;
    let ObjectRef { namespace, name, .. } = origin.object().clone();
    let spec = DestinationRuleSpec { host, ..DestinationRuleSpec::default() };
    Some(DestinationRule { namespace: namespace.unwrap_or_default(), name, created: None, spec })
}

/// A MeshConfig as it is written, with Kubernetes' metadata.
#[derive(Deserialize)]
pub(super) struct MeshObject {
    metadata: ObjectMeta,
    #[serde(default, deserialize_with = "crate::authorization_policy::null_as_default")]
    pub(super) spec: MeshConfigSpec,
}
