//! The kinds users write: Namespace, ServiceAccount, Pod, Deployment, Service, Gateway and AuthorizationPolicy.
//!
//! What it does: load multi-document YAML with source positions, give each document its type, validate it, and
//! describe what is wrong in terms of the user's own file (file, line, column, object, field, and what to do).
//! What it refuses to do: know of other objects' effect on each other beyond what a diagnostic needs (that is
//! `ambit-mesh`), open sockets, or talk to a cluster.
#![forbid(unsafe_code)]

pub mod authorization_policy;
pub mod spiffe;

pub use authorization_policy::AuthorizationPolicy;
pub use spiffe::SpiffeId;
