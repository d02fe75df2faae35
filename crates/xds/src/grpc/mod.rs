//! gRPC over connections of our own.
//!
//! Of `tonic` only the core is used: framing, statuses and metadata, with no feature on. That is nine small crates; its
//! `transport` would add axum, tower's middleware and a second way to configure TLS (some thirty). Connecting, TLS and HTTP/2
//! settings are ours, because the mesh's rules apply to them: roots and tokens read again at each connection, a second server
//! name, TLS 1.3 only, named bounds.

mod address;
mod channel;
mod endpoint;
mod verify;

pub use address::{ServerAddress, ServerAddressError};
pub(crate) use channel::Channel;
pub use endpoint::{ConnectError, Endpoint, Roots, Token};
