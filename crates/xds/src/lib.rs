//! The wire messages between control plane and proxies, and the delta-xDS exchange that carries them.
//!
//! What it does: Istio's workload discovery messages ([`workload`]), its L4 authorization message ([`security`]), the
//! bundle an Ambit waypoint needs ([`waypoint`]), what holds for the whole mesh ([`mesh`]), the node agent's messages
//! ([`zds`]), resource names and type URLs. Three ways bring resources to a proxy, all as the same deltas: the in-process
//! transport ([`channel`]) that `ambit up` uses, delta ADS over gRPC ([`client`]; the other end is [`server`]), and a file
//! ([`local`]). Certificates come by [`ca`].
//! What it refuses to do: give the messages a meaning. `ambit-mesh` makes them and reads them.
#![forbid(unsafe_code)]

pub mod ca;
pub mod channel;
pub mod client;
pub mod delta;
pub mod discovery;
#[doc(hidden)]
pub mod fuzzing;
mod grpc;
pub mod limits;
pub mod local;
pub mod mesh;
pub mod protobuf;
mod random;
pub mod security;
pub mod server;
pub mod waypoint;
pub mod workload;
pub mod zds;

pub use delta::{DeltaResponse, Resource};
pub use grpc::{ConnectError, Endpoint, Roots, ServerAddress, ServerAddressError, Token};

/// Type URL of [`workload::Address`].
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// Type URL of [`security::Authorization`].
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
/// Type URL of [`mesh::Mesh`].
pub const MESH_TYPE: &str = "type.googleapis.com/ambit.mesh.v1.Mesh";
/// Type URL of [`waypoint::Bundle`].
pub const WAYPOINT_TYPE: &str = "type.googleapis.com/ambit.waypoint.v1.Bundle";
