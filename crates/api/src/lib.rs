//! The kinds users write: Namespace, ServiceAccount, Pod, Deployment, Service, Gateway, AuthorizationPolicy,
//! PeerAuthentication, RequestAuthentication, routes, TrafficPolicy, XBackendTrafficPolicy,
//! DestinationRule and MeshConfig.
//!
//! What it does: load multi-document YAML with source positions, give each document its type, validate it, and
//! describe what is wrong in terms of the user's own file (file, line, column, object, field, and what to do).
//! What it refuses to do: know of other objects' effect on each other beyond what a diagnostic needs (that is
//! `ambit-mesh`), open sockets, or talk to a cluster.
#![forbid(unsafe_code)]

pub mod authorization_policy;
pub mod backend_traffic_policy;
pub mod codes;
pub mod destination_rule;
mod diagnostic;
mod document;
pub mod gateway_settings;
pub mod jwks;
mod kinds;
pub mod limits;
mod load;
pub mod mesh_config;
mod object;
pub mod peer_authentication;
mod read;
pub mod request_authentication;
pub mod routes;
pub mod schema;
pub mod spiffe;
mod text;
pub mod traffic_policy;
mod validate;
mod yaml;

pub use authorization_policy::AuthorizationPolicy;
pub use backend_traffic_policy::BackendTrafficPolicy;
pub use destination_rule::DestinationRule;
pub use diagnostic::{Diagnostic, Place, Severity, Source, render};
pub use document::Document;
pub use gateway_api::gateways::Gateway;
pub use gateway_settings::GatewaySettings;
pub use load::{Loaded, load, load_text};
pub use mesh_config::MeshConfig;
pub use object::{Object, ObjectRef, Origin, Resource};
pub use peer_authentication::PeerAuthentication;
pub use request_authentication::RequestAuthentication;
pub use routes::Route;
pub use spiffe::SpiffeId;
pub use traffic_policy::TrafficPolicy;
pub use validate::validate;
pub use yaml::render as to_yaml;
