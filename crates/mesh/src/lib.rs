//! The mesh model: resources in, workloads, services, waypoint bindings, policy attachments and findings out; and the
//! lookup view that proxies keep.
//!
//! What it does: derive the xDS resources from the users' objects, pure ([`derive`]) and incremental ([`Index`]), say
//! what is wrong between objects ([`findings`]), and hold on the proxies' side an immutable snapshot of the resources
//! that is swapped atomically ([`view`]).
//! What it refuses to do: IO, time, Kubernetes, YAML.
#![forbid(unsafe_code)]

pub mod attachment;
pub mod authentication;
mod authorizers;
pub mod binding;
pub mod derive;
pub mod destinations;
pub mod enforcement;
pub mod findings;
mod index;
pub mod inputs;
pub mod loads;
pub mod peer_authentication;
pub mod retry_budgets;
pub mod routes;
mod tracing;
pub mod traffic;
pub mod view;
pub mod way;

pub use findings::Finding;
pub use index::Index;
pub use view::{Store, View};
