//! Package `envoy.service.discovery.v3`, the delta part, and what it needs of `envoy.config.core.v3` and `google.rpc`;
//! field numbers as on the wire. Fields that neither end uses are left out.

use std::collections::BTreeMap;

use crate::{protobuf::Struct, workload::Any};

/// Path of the one method: a stream of requests against a stream of responses.
pub const DELTA_PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Name that subscribes to everything of a type.
pub const WILDCARD: &str = "*";

/// From client to server: a subscription, or the answer to a response.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeltaDiscoveryRequest {
    /// Who asks. Only on the first request of each type.
    #[prost(message, optional, tag = "1")]
    pub node: Option<Node>,
    /// The type it is about.
    #[prost(string, tag = "2")]
    pub type_url: String,
    /// Names wanted from now on. The first request of a type without any asks for all.
    #[prost(string, repeated, tag = "3")]
    pub resource_names_subscribe: Vec<String>,
    /// Names no longer wanted.
    #[prost(string, repeated, tag = "4")]
    pub resource_names_unsubscribe: Vec<String>,
    /// What the client holds from before, name to version. Only on the first request of a type.
    #[prost(btree_map = "string, string", tag = "5")]
    pub initial_resource_versions: BTreeMap<String, String>,
    /// The response this answers; empty if none.
    #[prost(string, tag = "6")]
    pub response_nonce: String,
    /// Why that response was refused; absent if it wasn't.
    #[prost(message, optional, tag = "7")]
    pub error_detail: Option<Status>,
}

/// From server to client: what changed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeltaDiscoveryResponse {
    /// For debugging.
    #[prost(string, tag = "1")]
    pub system_version_info: String,
    /// Added or changed.
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<Resource>,
    /// The type it is about.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// To be named in the answer.
    #[prost(string, tag = "5")]
    pub nonce: String,
    /// Names that are gone.
    #[prost(string, repeated, tag = "6")]
    pub removed_resources: Vec<String>,
}

/// A named, versioned resource.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Resource {
    /// Its version.
    #[prost(string, tag = "1")]
    pub version: String,
    /// Its content.
    #[prost(message, optional, tag = "2")]
    pub resource: Option<Any>,
    /// Its name.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Other names that it answers to.
    #[prost(string, repeated, tag = "4")]
    pub aliases: Vec<String>,
}

/// Who asks.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Node {
    /// `<kind>~<ip>~<pod>.<namespace>~<namespace>.svc.<domain>`.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Name of the node's group.
    #[prost(string, tag = "2")]
    pub cluster: String,
    /// Anything else.
    #[prost(message, optional, tag = "3")]
    pub metadata: Option<Struct>,
}

/// `google.rpc.Status`, without details.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Status {
    /// Code, 0 if none was given.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// What is wrong.
    #[prost(string, tag = "2")]
    pub message: String,
}
