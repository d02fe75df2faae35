//! The transport: HTTP/2 CONNECT over mutual TLS 1.3, its server and its pooled client (`spec/ztunnel.md` 2 and 3).
//!
//! What it does: make sockets in the right network namespace with the right options ([`socket`]), terminate and open
//! HBONE tunnels, turn a CONNECT stream into a byte stream ([`Tunnel`]), and join two byte streams ([`copy`]).
//! What it refuses to do: know what a tunnel carries, or decide who may use it.
#![forbid(unsafe_code)]

pub mod budget;
mod buffers;
mod client;
pub mod copy;
#[doc(hidden)]
pub mod fuzzing;
pub mod headers;
mod http2;
mod keepalive;
pub mod limits;
mod pooled;
mod refusal;
mod server;
pub mod socket;
mod tls;
mod trusted;
mod tunnel;

pub use client::{Connect, ConnectError, Pool, connect_within};
pub use headers::{Baggage, ConnectHeaders, Forwarded, HeaderError, TraceParent, WorkloadKind};
pub use limits::Limits;
pub use refusal::REFUSAL;
pub use server::{AcceptError, ConnectRequest, Connection, Error, accept, accept_over};
pub use socket::{HostNetwork, Network};
pub use tunnel::Tunnel;
