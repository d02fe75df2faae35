//! What the annotations of a waypoint's Gateway, and the MeshConfig, ask for.

use std::collections::BTreeMap;

use super::Provider;

/// How a waypoint differs from the usual one.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GatewaySettings {
    /// The answer to a request that policies deny; nothing for Istio's.
    #[prost(message, optional, tag = "1")]
    pub denial: Option<Denial>,
    /// Applications are told who asks, in `x-forwarded-client-cert`.
    #[prost(bool, tag = "2")]
    pub client_identity: bool,
    /// Where spans go; nothing if requests aren't traced.
    #[prost(message, optional, tag = "3")]
    pub tracing: Option<Tracing>,
}

/// Where spans go, and of how many requests.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Tracing {
    /// The collector, which takes OTLP over HTTP. Its `protocol` says HTTP without options.
    #[prost(message, optional, tag = "1")]
    pub collector: Option<Provider>,
    /// Path of its requests.
    #[prost(string, tag = "2")]
    pub path: String,
    /// Headers that each of them has.
    #[prost(btree_map = "string, string", tag = "3")]
    pub headers: BTreeMap<String, String>,
    /// Traces begun here that are sampled, of 100,000.
    #[prost(uint32, tag = "4")]
    pub sampled: u32,
}

/// The answer to a request that policies deny.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Denial {
    /// Its status, 400 to 599.
    #[prost(uint32, tag = "1")]
    pub status: u32,
    /// Its content type.
    #[prost(string, tag = "2")]
    pub content_type: String,
    /// Its body, and the message of a gRPC status.
    #[prost(string, tag = "3")]
    pub message: String,
}
