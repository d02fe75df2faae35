//! What the annotations of a waypoint's Gateway ask for.

/// How a waypoint differs from the usual one.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GatewaySettings {
    /// The answer to a request that policies deny; nothing for Istio's.
    #[prost(message, optional, tag = "1")]
    pub denial: Option<Denial>,
    /// Applications are told who asks, in `x-forwarded-client-cert`.
    #[prost(bool, tag = "2")]
    pub client_identity: bool,
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
