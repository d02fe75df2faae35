//! The transport: HTTP/2 CONNECT over mutual TLS 1.3, its server and its pooled client (`spec/ztunnel.md` 2 and 3).
//!
//! What it does: make sockets in the right network namespace with the right options ([`socket`]), terminate and open
//! HBONE tunnels, and turn a CONNECT stream into a byte stream.
//! What it refuses to do: know what a tunnel carries, or decide who may use it.
#![forbid(unsafe_code)]

pub mod socket;

pub use socket::{HostNetwork, Network};
