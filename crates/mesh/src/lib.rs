//! The mesh model: resources in, workloads, services, waypoint bindings, policy attachments and findings out; and the
//! lookup view that proxies keep.
//!
//! What it does: derive the xDS resources from the users' objects, pure and incremental, and hold on the proxies' side
//! an immutable snapshot of them that is swapped atomically ([`view`]).
//! What it refuses to do: IO, time, Kubernetes, YAML.
#![forbid(unsafe_code)]

pub mod view;

pub use view::{Store, View};
