//! The waypoint: the L7 proxy in front of services and workloads (`spec/waypoint.md` 5).
//!
//! What it does: terminate HBONE, find the service by its virtual address or the workload by its own, tell HTTP from TCP,
//! judge every request by the policies of that service or of the waypoint, and carry what is allowed to an endpoint over
//! HBONE with the waypoint's own identity.
//! What it refuses to do: know Kubernetes or traffic capture, mix two clients' requests in one upstream connection,
//! serve what isn't bound to it, or let anything pass when it can't judge it.
#![forbid(unsafe_code)]

pub mod limits;

mod authn;
mod balance;
mod custom;
mod destination;
mod detect;
mod http;
mod listener;
mod operators;
mod outgoing;
#[cfg(feature = "plain-listener")]
mod plain;
mod random;
mod record;
mod refusals;
mod request;
mod respond;
mod route;
mod serve;
mod server_first;
mod session;
mod shared;
mod strict;
mod tcp;
mod traffic;
mod tunnel;
mod upgrade;
mod upstream;
mod websocket;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use ambit_api::SpiffeId;
use ambit_hbone::{Network, Pool, socket};
use ambit_identity::CertificateStore;
use ambit_mesh::Store;
use ambit_telemetry::{Recorder, log::LevelControl};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::shared::{Shared, Tasks};

pub use limits::Limits;
pub use operators::Exposure;
pub use refusals::{Refusal, Refusals};

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
    /// Its pod's address, port 15008, where it listens. Port 0 picks a free one (tests).
    pub address: SocketAddr,
    /// Where it listens instead, for a pod that has several addresses.
    pub listen: Option<SocketAddr>,
    /// HBONE port of destinations, [`HBONE_PORT`] except in tests.
    pub hbone_port: u16,
    /// Its port may be shared (`SO_REUSEPORT`) with the waypoint that takes over from it, or that it takes over from.
    pub reuse_port: bool,
    /// Mark of its outgoing sockets (`SO_MARK`), where the capture rules must let them pass.
    pub mark: Option<u32>,
    /// Bounds.
    pub limits: Limits,
}

/// A running waypoint. Dropping it ends it at once; [`Waypoint::drain`] lets requests in flight end.
#[derive(Debug)]
pub struct Waypoint {
    address: SocketAddr,
    shared: Arc<Shared>,
    exporter: Option<JoinHandle<()>>,
    /// What operators reach ends.
    closed: CancellationToken,
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
            listen: None,
            hbone_port: HBONE_PORT,
            reuse_port: false,
            mark: None,
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
        network: Arc<dyn Network>,
        store: Arc<Store>,
        certificates: Arc<CertificateStore>,
        recorder: Recorder,
    ) -> io::Result<Self> {
        let mut waypoint = Self::prepare(config, network, store, certificates, recorder);
        waypoint.listen()?;
        Ok(waypoint)
    }

    /// The same without a listener, for one that mustn't have clients until it [listens](Self::listen): it may serve
    /// operators, and fetches its certificate.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn prepare(
        config: Config,
        network: Arc<dyn Network>,
        store: Arc<Store>,
        certificates: Arc<CertificateStore>,
        recorder: Recorder,
    ) -> Self {
        let address = config.listen.unwrap_or(config.address);
        let operators = operators::Operators::new();
        let refusals = Arc::new(Refusals::default());
        let counts = Arc::clone(&refusals);
        let read = move || counts.iter().map(|(refusal, count)| (refusal.label(), count)).collect();
        operators.metrics.watch_refusals(read);
        let (spans, queue) = operators::Spans::new(operators.metrics.spans());
        let shared = Arc::new(Shared {
            name: format!("{}/{}", config.namespace, config.name).into(),
            network,
            store,
            pool: Pool::new(Arc::clone(&certificates), ambit_hbone::Limits::default()),
            certificates,
            recorder,
            operators,
            spans,
            loads: Arc::new(ambit_mesh::loads::Loads::new(limits::LOAD_COUNTERS)),
            random: random::Random::default(),
            refusals,
            authorizers: custom::Clients::default(),
            verified_tokens: authn::VerifiedTokens::default(),
            budgets: route::Budgets::default(),
            clusters: destination::Clusters::default(),
            mirrors: Arc::new(Semaphore::new(limits::MAX_MIRRORS)),
            delayed: Semaphore::new(limits::MAX_DELAYED),
            connections: Arc::new(Semaphore::new(config.limits.connections)),
            tunnels: Arc::new(Semaphore::new(config.limits.tunnels)),
            drain: CancellationToken::new(),
            close_idle: CancellationToken::new(),
            tasks: Tasks::default(),
            config,
        });
        shared.tasks.spawn(listener::prepare(Arc::clone(&shared)));
        // Not one of the tasks that a drain waits for: it sends what they leave behind.
        let exporter = Some(tokio::spawn(operators::export_spans(Arc::clone(&shared), queue)));
        Self { address, shared, exporter, closed: CancellationToken::new() }
    }

    /// Binds the listener and serves on the current tokio runtime. To be called once.
    ///
    /// # Errors
    /// When the address can't be bound in its network.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn listen(&mut self) -> io::Result<()> {
        let Shared { config, network, tasks, .. } = &*self.shared;
        let options = socket::ListenOptions { reuse_port: config.reuse_port, ..Default::default() };
        let listener = socket::listen(&**network, self.address, &options)?;
        let address = listener.local_addr()?;
        tasks.spawn(listener::run(Arc::clone(&self.shared), listener));
        self.address = address;
        Ok(())
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How often requests were refused for their form, by reason.
    #[must_use]
    pub fn refusals(&self) -> &Refusals {
        &self.shared.refusals
    }

    /// Serves operators on these listeners until the waypoint has drained: readiness, metrics, configuration, decisions
    /// (until the drain starts), and log levels if it is told where they are.
    pub fn serve_operators(&self, listeners: Vec<TcpListener>, exposure: Exposure, levels: Option<LevelControl>) {
        let shared = Arc::clone(&self.shared);
        // Not one of the tasks that a drain waits for: operators see how it goes.
        tokio::spawn(operators::serve(shared, listeners, exposure, levels, self.closed.clone()));
    }

    /// Accepts nothing new, tells clients to go elsewhere, lets requests in flight end, and cuts off what is left at
    /// the deadline. HTTP/1.1 clients are told with their next answer; those that ask for nothing are left at half of it.
    /// With [`Config::reuse_port`] new connections go to the waypoint that takes over. The listener is closed when this
    /// returns.
    pub async fn drain(mut self, deadline: Duration) {
        self.end(deadline).await;
        self.closed.cancel();
        self.shared.spans.finish.cancel();
        if let Some(exporter) = self.exporter.take() {
            // Spans that no collector takes by then are lost.
            let _ = tokio::time::timeout(limits::SPAN_FLUSH_TIMEOUT, exporter).await;
        }
    }

    async fn end(&self, deadline: Duration) {
        let Shared { drain, close_idle, tasks, name, .. } = &*self.shared;
        drain.cancel();
        tasks.tracker.close();
        if tokio::time::timeout(deadline / 2, tasks.tracker.wait()).await.is_ok() {
            return;
        }
        close_idle.cancel();
        if tokio::time::timeout(deadline / 2, tasks.tracker.wait()).await.is_err() {
            tracing::info!(waypoint = %name, "cutting off what didn't end within the drain's deadline");
            tasks.stop.cancel();
            // Cancelled tasks end at their next step; one that doesn't is not worth waiting for.
            let _ = tokio::time::timeout(limits::STOP_TIMEOUT, tasks.tracker.wait()).await;
        }
    }
}

impl Drop for Waypoint {
    fn drop(&mut self) {
        self.closed.cancel();
        self.shared.drain.cancel();
        self.shared.tasks.stop.cancel();
        self.shared.spans.finish.cancel();
        self.shared.pool.close();
    }
}
