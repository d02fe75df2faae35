//! What operators ask a node proxy (`spec/ztunnel.md` 14 to 16): configuration, log levels and shutdown on the loopback
//! port 15000, metrics on 15020.
//!
//! Everything here is bounded, reads snapshots, and waits for nobody: the data plane doesn't notice it. No private key can
//! be shown, because none is ever handed to it.

mod connections;
mod dump;
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod metrics;
mod policies;
mod routes;

#[cfg(test)]
mod tests;

pub use self::{
    connections::{ConnectionState, Connections, WorkloadInfo, WorkloadState},
    dump::{DumpFacts, Version, config_dump},
    http::{bind_loopback, bind_wildcard},
    metrics::serve_metrics,
    routes::{Admin, serve_admin},
};
