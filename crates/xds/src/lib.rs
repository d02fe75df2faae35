//! The wire messages between control plane and proxies, and the delta-xDS exchange that carries them.
//!
//! What it does: Istio's workload discovery messages ([`workload`]), its L4 authorization message ([`security`]), the
//! bundle an Ambit waypoint needs ([`waypoint`]), what holds for the whole mesh ([`mesh`]), resource names and type URLs, and the in-process transport
//! ([`channel`]) that `ambit up` uses. gRPC carries the same messages in a cluster.
//! What it refuses to do: give the messages a meaning. `ambit-mesh` makes them and reads them.
#![forbid(unsafe_code)]

pub mod channel;
pub mod delta;
pub mod mesh;
pub mod security;
pub mod waypoint;
pub mod workload;

pub use delta::{DeltaResponse, Resource};

/// Type URL of [`workload::Address`].
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// Type URL of [`security::Authorization`].
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
/// Type URL of [`mesh::Mesh`].
pub const MESH_TYPE: &str = "type.googleapis.com/ambit.mesh.v1.Mesh";
/// Type URL of [`waypoint::Bundle`].
pub const WAYPOINT_TYPE: &str = "type.googleapis.com/ambit.waypoint.v1.Bundle";
