//! The external authorizers that CUSTOM policies name (`spec/authorization.md` 2.9).

use std::collections::BTreeMap;

/// An external authorizer, and how it is asked.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Provider {
    /// Name, as policies write it.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Namespace of its Service; empty for any.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Fully qualified name of its Service, or a DNS name or address outside of the mesh.
    #[prost(string, tag = "3")]
    pub host: String,
    /// Its port.
    #[prost(uint32, tag = "4")]
    pub port: u32,
    /// The host belongs to the cluster: if no Service has it, nobody else may answer for it.
    #[prost(bool, tag = "5")]
    pub mesh_only: bool,
    /// How long an answer may take.
    #[prost(uint64, tag = "6")]
    pub timeout_ms: u64,
    /// A request goes on if there is no answer.
    #[prost(bool, tag = "7")]
    pub fail_open: bool,
    /// Status of a request that is refused for want of an answer.
    #[prost(uint32, tag = "8")]
    pub status_on_error: u32,
    /// The part of a request's body that is sent along, if any.
    #[prost(message, optional, tag = "9")]
    pub body: Option<CheckedBody>,
    /// How it is asked.
    #[prost(oneof = "Protocol", tags = "10, 11")]
    pub protocol: Option<Protocol>,
}

/// How much of a request's body is sent along.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct CheckedBody {
    /// At most so many bytes.
    #[prost(uint32, tag = "1")]
    pub max_bytes: u32,
    /// Of a longer body its beginning; without it, such a request is refused.
    #[prost(bool, tag = "2")]
    pub allow_partial: bool,
    /// Over gRPC as bytes, not as text.
    #[prost(bool, tag = "3")]
    pub as_bytes: bool,
}

/// How an external authorizer is asked.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Protocol {
    /// By Envoy's gRPC authorization API; always true.
    #[prost(bool, tag = "10")]
    Grpc(bool),
    /// By an HTTP request.
    #[prost(message, tag = "11")]
    Http(HttpCheck),
}

/// How an external authorizer is asked by an HTTP request. Headers are names with a `*` at one end at most.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct HttpCheck {
    /// Put before the request's path.
    #[prost(string, tag = "1")]
    pub path_prefix: String,
    /// Headers of the request that are sent along.
    #[prost(string, repeated, tag = "2")]
    pub request_headers: Vec<String>,
    /// Headers that are always sent.
    #[prost(btree_map = "string, string", tag = "3")]
    pub additional_headers: BTreeMap<String, String>,
    /// Headers of a positive answer that go to the application.
    #[prost(string, repeated, tag = "4")]
    pub to_upstream_on_allow: Vec<String>,
    /// Headers of a positive answer that go to the client.
    #[prost(string, repeated, tag = "5")]
    pub to_downstream_on_allow: Vec<String>,
    /// Headers of a negative answer that go to the client; none named means all.
    #[prost(string, repeated, tag = "6")]
    pub to_downstream_on_deny: Vec<String>,
}
