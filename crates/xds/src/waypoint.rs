//! Package `ambit.waypoint.v1`: all that one waypoint must know of what it fronts.

mod authentication;
mod destination;
mod providers;
mod routes;
mod settings;
mod traffic;

use crate::security::Policy;

pub use self::authentication::{FetchedKeys, KeysOutcome, RequestAuthentication};
pub use self::destination::{AttachedDestinationRule, DestinationSettings, SubsetMembers};
pub use self::{
    providers::{CheckedBody, HttpCheck, Protocol, Provider},
    routes::AttachedRoute,
    settings::{Denial, GatewaySettings, Tracing},
    traffic::{RetryBudget, TrafficPolicy},
};

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
    /// The tokens believed for each of those workloads, in the same order.
    #[prost(message, repeated, tag = "6")]
    pub workload_authentications: Vec<RequestAuthentication>,
    /// The external authorizers that these policies name.
    #[prost(message, repeated, tag = "7")]
    pub providers: Vec<Provider>,
    /// What the Gateway's annotations ask for; nothing for the usual.
    #[prost(message, optional, tag = "8")]
    pub settings: Option<GatewaySettings>,
    /// Rate limits and faults of the workloads that it fronts, in order of namespace and name.
    #[prost(message, repeated, tag = "11")]
    pub workload_traffic_policies: Vec<TrafficPolicy>,
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
    /// The tokens believed for it, in the same order.
    #[prost(message, repeated, tag = "4")]
    pub authentications: Vec<RequestAuthentication>,
    /// Routes attached to it, in no particular order.
    #[prost(message, repeated, tag = "5")]
    pub routes: Vec<AttachedRoute>,
    /// How its endpoints are treated; nothing for the usual.
    #[prost(message, optional, tag = "6")]
    pub destination: Option<DestinationSettings>,
    /// Rate limits and faults, in order of namespace and name.
    #[prost(message, repeated, tag = "7")]
    pub traffic_policies: Vec<TrafficPolicy>,
    /// How much retries may be; nothing for the usual.
    #[prost(message, optional, tag = "8")]
    pub retry_budget: Option<RetryBudget>,
}
