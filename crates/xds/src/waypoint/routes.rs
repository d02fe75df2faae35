//! Routes on the wire.

/// A route attached to a service.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AttachedRoute {
    /// `HTTPRoute`, `GRPCRoute`, `TLSRoute` or `TCPRoute`.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// Namespace of the route. If it isn't the service's, the route is for clients of that namespace alone.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Name of the route.
    #[prost(string, tag = "3")]
    pub name: String,
    /// The route as JSON.
    #[prost(bytes = "vec", tag = "4")]
    pub json: Vec<u8>,
    /// Why it can't be followed; what it is attached to is closed then. Empty if it can.
    #[prost(string, tag = "5")]
    pub rejection: String,
    /// Service ports that it is attached to; none means all of them.
    #[prost(uint32, repeated, tag = "6")]
    pub ports: Vec<u32>,
    /// Suffix of service names, to look up its backends by.
    #[prost(string, tag = "7")]
    pub cluster_domain: String,
}
