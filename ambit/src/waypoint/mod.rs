//! The waypoint as a process of its own (`ambit waypoint`), in the pod that a control plane made for a Gateway:
//! configuration and certificate from that control plane, clients by HBONE (`spec/waypoint.md` 5.1).
//!
//! It has no client before it knows what it may serve and can prove who it is; a control plane that goes away later changes
//! nothing about what is in force.

mod access_log;
mod lacking;
pub mod settings;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ambit_hbone::{HostNetwork, socket};
use ambit_identity::{CertificateStore, SystemClock};
use ambit_mesh::Store;
use ambit_telemetry::FLUSH_TIMEOUT;
use ambit_waypoint::{Exposure, HBONE_PORT, Waypoint};
use ambit_xds::{
    ADDRESS_TYPE, MESH_TYPE, WAYPOINT_TYPE,
    ca::CaClient,
    client::{NodeIdentity, Options, Role, Watch},
};
use ambit_ztunnel::admin;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Handle, Runtime},
    task::JoinHandle,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use self::{
    lacking::Lacking,
    settings::{Complete, GATEWAY_NAME_LABEL, Settings},
};
use crate::{
    command::Failure,
    local::files,
    proxy::{
        control_plane,
        log::Log,
        memory,
        readiness::{self, Part, Readiness},
        settings::metadata,
        shutdown::{Second, Shutdown, Signals},
    },
};

/// How long tasks may take to notice that their runtime ends.
const RUNTIME_GRACE: Duration = Duration::from_millis(100);
/// Where Istio's waypoints serve metrics besides the usual port.
const ENVOY_METRICS_PORT: u16 = 15_090;

/// Everything that runs.
struct Proxy {
    complete: Complete,
    /// Carries traffic.
    data: Handle,
    log: Log,
    readiness: Readiness,
    lacking: Lacking,
    waypoint: Waypoint,
    /// Writes the access log.
    records: JoinHandle<()>,
    /// Ends what only serves the proxy itself.
    stop: CancellationToken,
}

/// Runs the waypoint until it is told to stop.
///
/// # Errors
/// When it can't start.
pub fn run(settings: Settings) -> Result<ExitCode, Failure> {
    let complete = settings.complete().map_err(|error| Failure::new(error.to_string()))?;
    let room = files::room();
    let runtime = |error| Failure::new(format!("can't start a runtime: {error}"));
    let data = data_plane(&complete.settings).map_err(runtime)?;
    let control = Builder::new_current_thread().enable_all().build().map_err(runtime)?;
    let result = control.block_on(async {
        let signals = Signals::take().map_err(|error| Failure::new(format!("can't take signals: {error}")))?;
        let proxy = Proxy::start(complete, data.handle().clone(), room)?;
        memory::forget_start();
        proxy.run(signals).await
    });
    data.shutdown_timeout(RUNTIME_GRACE);
    control.shutdown_timeout(RUNTIME_GRACE);
    result
}

fn data_plane(settings: &Settings) -> std::io::Result<Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let number = AtomicUsize::new(0);
    Builder::new_multi_thread()
        .worker_threads(settings.traffic.workers(cores))
        .thread_name_fn(move || format!("waypoint-{}", number.fetch_add(1, Ordering::Relaxed)))
        .enable_all()
        .build()
}

// === impl Proxy ===

impl Proxy {
    fn start(complete: Complete, data: Handle, room: files::Room) -> Result<Self, Failure> {
        let settings = &complete.settings;
        let dropped = Arc::default();
        let log = Log::start(&settings.operations, Arc::clone(&dropped))?;
        let readiness = Readiness::waiting_for([Part::State, Part::Certificate, Part::Proxy]);
        {
            let _data = data.enter();
            let listener = readiness::listen(settings.traffic.ipv6_enabled, settings.operations.readiness_port)
                .map_err(|error| Failure::new(error.to_string()))?;
            data.spawn(readiness.clone().serve(listener));
        }
        let stop = CancellationToken::new();
        let options = ambit_policy::Options {
            trust_domains: vec![settings.who.trust_domain.clone()],
            ..ambit_policy::Options::default()
        };
        let store = Store::in_network(options, &settings.who.network());
        let discovery = control_plane::discover(discovery(&complete)?, &store, &stop)?;
        let trust = control_plane::trust(&settings.control_plane)?;
        // The token is its own, and so is the identity that it asks for.
        let ca = control_plane::ca_options(&settings.control_plane, settings.who.cluster(), false)?;
        let certificates = CertificateStore::with_trust(Arc::new(CaClient::new(ca)), Arc::new(SystemClock), trust);
        let lacking = Lacking::watch(&complete, &discovery, &store, &certificates, &readiness);
        let (recorder, records) = access_log::start(&log, settings.traffic.access_log, dropped, &stop);
        tokio::spawn(memory::keep_small(readiness.clone()));
        let waypoint = {
            let _data = data.enter();
            let config = configuration(&complete, room);
            Waypoint::prepare(config, Arc::new(HostNetwork), store, certificates, recorder)
        };
        serve_operators(&waypoint, settings, &log)?;
        Ok(Self { complete, data, log, readiness, lacking, waypoint, records, stop })
    }

    async fn run(mut self, signals: Signals) -> Result<ExitCode, Failure> {
        let shutdown = Shutdown::new();
        let mut signal = std::pin::pin!(signals.first(&shutdown, Second::Any));
        let reason = tokio::select! {
            reason = &mut signal => reason,
            () = self.lacking.nothing() => {
                self.listen()?;
                signal.await
            }
        };
        tracing::info!(reason, "shutting down");
        self.drain().await;
        Ok(ExitCode::SUCCESS)
    }

    fn listen(&mut self) -> Result<(), Failure> {
        let _data = self.data.enter();
        self.waypoint
            .listen()
            .map_err(|error| Failure::new(format!("can't listen on `{}`: {error}", self.waypoint.address())))?;
        self.readiness.set(Part::Proxy, true);
        let (address, gateway) = (self.waypoint.address(), &self.complete.gateway);
        tracing::info!(%address, waypoint = %format!("{}/{gateway}", self.complete.namespace), "serving");
        Ok(())
    }

    /// Takes nothing new once clients have heard of it, and lets what is open end until the deadline.
    async fn drain(self) {
        self.readiness.set(Part::Running, false);
        let settings = &self.complete.settings;
        let deadline = settings.draining.deadline();
        // Without clients there is nobody who could come late.
        let is_serving = !self.readiness.lacks(Part::Proxy);
        let late = if is_serving { settings.traffic.late(deadline) } else { Duration::ZERO };
        tracing::info!(?deadline, ?late, "draining");
        sleep(late).await;
        // On the runtime that has the connections.
        if let Err(error) = self.data.spawn(self.waypoint.drain(deadline - late)).await {
            tracing::warn!(%error, "draining failed");
        }
        self.stop.cancel();
        if let Err(error) = self.records.await {
            tracing::warn!(%error, "the last records are not written");
        }
        tracing::info!("shutdown complete");
        self.log.writer.flush(FLUSH_TIMEOUT);
    }
}

/// What operators reach: everything at the loopback, metrics elsewhere too.
fn serve_operators(waypoint: &Waypoint, settings: &Settings, log: &Log) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(error.to_string());
    let (operations, ipv6) = (&settings.operations, settings.traffic.ipv6_enabled);
    let mut listeners: Vec<TcpListener> = admin::bind_wildcard(operations.stats_port(), ipv6).map_err(failed)?;
    match admin::bind_wildcard(ENVOY_METRICS_PORT, ipv6) {
        Ok(more) => listeners.extend(more),
        // Who scrapes there finds the same at the usual port.
        Err(error) => tracing::warn!(%error, "no metrics at the port of Istio's waypoints"),
    }
    waypoint.serve_operators(listeners, Exposure::Network, None);
    let listeners = admin::bind_loopback(operations.admin_port()).map_err(failed)?;
    waypoint.serve_operators(listeners, Exposure::Loopback, Some(log.levels.clone()));
    Ok(())
}

/// What the client of the control plane is told: what policies mean, this waypoint's own bundle, services and workloads. L4
/// policies are the node proxies' to enforce, and aren't asked for.
fn discovery(complete: &Complete) -> Result<Options, Failure> {
    let Complete { namespace, gateway, identity, settings, .. } = complete;
    let (who, control_plane) = (&settings.who, &settings.control_plane);
    let mut all = complete.proxy_metadata.clone();
    all.extend(metadata().map_err(Failure::new)?);
    all.insert("SERVICE_ACCOUNT".to_owned(), Value::from(identity.service_account()));
    all.insert("LABELS".to_owned(), json!({ GATEWAY_NAME_LABEL: gateway }));
    let node = NodeIdentity {
        role: Role::Waypoint,
        pod: who.pod_name.clone(),
        namespace: namespace.clone(),
        address: who.instance_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        node: who.node_name.clone(),
        cluster_id: who.cluster(),
        metadata: all,
    };
    let address = control_plane.xds_address().unwrap_or_default();
    let bundle = Watch::named(WAYPOINT_TYPE, [format!("{namespace}/{gateway}")]);
    Ok(Options {
        watches: vec![Watch::all(MESH_TYPE), bundle, Watch::all(ADDRESS_TYPE)],
        state_file: control_plane.xds_state_file.clone(),
        ..Options::new(control_plane::discovery_endpoint(control_plane, &address)?, node)
    })
}

fn configuration(complete: &Complete, room: files::Room) -> ambit_waypoint::Config {
    let Complete { namespace, gateway, identity, settings, .. } = complete;
    let traffic = &settings.traffic;
    // Without an address of its own it is at none that the mesh knows.
    let own = settings.who.instance_ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let everywhere = socket::wildcard(traffic.ipv6_enabled, HBONE_PORT);
    let listen = traffic.listen_address.map_or(everywhere, |ip| SocketAddr::new(ip, HBONE_PORT));
    ambit_waypoint::Config {
        listen: Some(listen),
        reuse_port: traffic.port_reuse,
        limits: traffic.limits(room),
        ..ambit_waypoint::Config::new(namespace, gateway, identity.clone(), SocketAddr::new(own, HBONE_PORT))
    }
}
