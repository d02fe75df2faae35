//! Package `ambit.waypoint.v1`: all that one waypoint must know of what it fronts.

use crate::security::Policy;

/// What one waypoint fronts. Its resource name is `namespace/name` of the Gateway.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Bundle {
    /// Namespace of the Gateway.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Name of the Gateway.
    #[prost(string, tag = "2")]
    pub name: String,
    /// The services bound to it.
    #[prost(message, repeated, tag = "3")]
    pub services: Vec<BoundService>,
    /// Fully qualified name of the waypoint's own service, if it fronts workloads too: those that name it as their waypoint.
    #[prost(string, tag = "4")]
    pub hostname: String,
    /// Policies enforced for each of those workloads, in order of namespace and name.
    #[prost(message, repeated, tag = "5")]
    pub workload_policies: Vec<Policy>,
}

/// A service bound to a waypoint, with the policies that the attachment rules give it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BoundService {
    /// Namespace of the Service.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Fully qualified name; with the namespace the key of its `Service` message.
    #[prost(string, tag = "2")]
    pub hostname: String,
    /// Policies enforced for it, in order of namespace and name.
    #[prost(message, repeated, tag = "3")]
    pub policies: Vec<Policy>,
}
