//! The node proxy as a process of its own (`ambit ztunnel`): configuration and certificates from a control plane, pods from
//! a node agent. Starts and ends in the order of `spec/ztunnel.md` 1 and 18.

mod handshakes;
mod identities;
mod operate;
mod pods;
pub mod settings;
mod sources;

#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use ambit_hbone::HostNetwork;
use ambit_mesh::Store;
use ambit_node::zds;
use ambit_telemetry::{FLUSH_TIMEOUT, metrics::Metrics};
use ambit_ztunnel::{OnDemand, Ztunnel};
use ipnet::{IpNet, Ipv4Net};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use self::{
    pods::{Place, Serving},
    settings::{ProxyMode, Settings},
};
use crate::{
    command::Failure,
    local::files,
    proxy::{
        log::{Log, write_records},
        memory,
        readiness::{self, Part, Readiness},
        settings::WorkloadName,
        shutdown::{Second, Shutdown, Signals},
        version,
    },
};

/// How long tasks may take to notice that their runtime ends.
const RUNTIME_GRACE: Duration = Duration::from_millis(100);
/// Resolvers taken from `/etc/resolv.conf`.
const MAX_RESOLVERS: usize = 3;

/// Everything that runs.
struct Proxy {
    settings: Settings,
    /// Carries traffic, the pods' listeners and readiness.
    data: Handle,
    log: Log,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    shutdown: Shutdown,
    ztunnel: Arc<Ztunnel>,
    draining: Arc<AtomicBool>,
    /// Pods that wait for a proxy.
    pending: operate::Pending,
    /// Writes the access log.
    records: JoinHandle<()>,
    /// Ends what only serves the proxy itself.
    stop: CancellationToken,
}

/// Runs the node proxy until it is told to stop.
///
/// # Errors
/// When it can't start, or the node agent breaks the protocol.
pub fn run(settings: Settings) -> Result<ExitCode, Failure> {
    let settings = settings.complete().map_err(|error| Failure::new(error.to_string()))?;
    let limits = files::fit(settings.budgets.limits(ambit_ztunnel::Limits::default()));
    let runtime = |error| Failure::new(format!("can't start a runtime: {error}"));
    let data = data_plane(&settings).map_err(runtime)?;
    let handshakes = handshakes::Threads::start(data.metrics().num_workers()).map_err(runtime)?;
    let control = Builder::new_current_thread().enable_all().build().map_err(runtime)?;
    let result = control.block_on(async {
        let runtimes = (data.handle().clone(), handshakes.handles());
        let proxy = Proxy::start(settings, runtimes, limits).await?;
        memory::forget_start();
        proxy.run().await
    });
    data.shutdown_timeout(RUNTIME_GRACE);
    drop(handshakes);
    control.shutdown_timeout(RUNTIME_GRACE);
    result
}

fn data_plane(settings: &Settings) -> std::io::Result<Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let number = AtomicUsize::new(0);
    Builder::new_multi_thread()
        .worker_threads(settings.threads.workers(cores))
        .thread_name_fn(move || format!("ztunnel-{}", number.fetch_add(1, Ordering::Relaxed)))
        .enable_all()
        .build()
}

// === impl Proxy ===

impl Proxy {
    async fn start(
        settings: Settings,
        (data, handshakes): (Handle, Arc<[Handle]>),
        limits: ambit_ztunnel::Limits,
    ) -> Result<Self, Failure> {
        let metrics = Metrics::new("ztunnel", &version());
        metrics.runtimes.watch(data.clone());
        let log = Log::start(&settings.operations, Arc::clone(&metrics.dropped_log_lines))?;
        let mode = settings.mode.proxy_mode;
        if mode == ProxyMode::Shared {
            let mark = settings.pods.mark(mode).unwrap_or(ambit_ztunnel::PROXY_MARK);
            zds::check_privileges(mark).map_err(|error| Failure::new(error.to_string()))?;
        }
        let readiness = Readiness::waiting_for(parts(&settings));
        {
            let _data = data.enter();
            let listener = readiness::listen(settings.pods.ipv6_enabled, settings.operations.readiness_port)
                .map_err(|error| Failure::new(error.to_string()))?;
            data.spawn(readiness.clone().serve(listener));
        }
        let options = ambit_policy::Options {
            trust_domains: vec![settings.mode.trust_domain.clone()],
            ..ambit_policy::Options::default()
        };
        let store = Store::in_network(options, &settings.mode.network);
        let stop = CancellationToken::new();
        let configured = sources::configuration(&settings, &store, &readiness, &metrics, &stop)?;
        let certificates = sources::certificates(&settings)?;
        if let (ProxyMode::Shared, Some(node)) = (mode, place(&settings).node) {
            // The tasks that fetch run where they are asked for.
            data.spawn(identities::keep(Arc::clone(&store), Arc::clone(&certificates), node));
        }
        let (recorder, records) = ambit_telemetry::recorder_counting(Arc::clone(&metrics.dropped_records));
        let lines = log.clone();
        let records = tokio::spawn(write_records(records, stop.clone(), move |record| lines.write(record)));
        tokio::spawn(memory::keep_small(readiness.clone()));
        let (openings, ends) = (log.clone(), log.clone());
        let recorder = recorder.with_openings_when(move || openings.wants_openings());
        let recorder = recorder.with_records_when(move |record| ends.wants(record));
        let on_demand = configured.discovery.filter(|_| settings.sources.xds_on_demand).map(OnDemand::new);
        let config = ambit_ztunnel::Config { on_demand, handshakes, ..configuration(&settings, limits, &metrics) };
        let ztunnel = Ztunnel::new(config, store, certificates, Arc::new(HostNetwork), recorder);
        let (shutdown, draining) = (Shutdown::new(), Arc::new(AtomicBool::new(false)));
        let pending = operate::Pending::default();
        let shown = operate::Shown {
            settings: &settings,
            ztunnel: &ztunnel,
            log: &log,
            metrics: &metrics,
            shutdown: &shutdown,
            local: configured.local,
            pending: Arc::clone(&pending),
        };
        operate::start(shown, &stop)?;
        Ok(Self { settings, data, log, metrics, readiness, shutdown, ztunnel, draining, pending, records, stop })
    }

    async fn run(self) -> Result<ExitCode, Failure> {
        let signals = Signals::take().map_err(|error| Failure::new(format!("can't take signals: {error}")))?;
        let failure = match self.settings.mode.proxy_mode {
            ProxyMode::Shared => {
                self.serve_itself()?;
                // Pods that go away during the drain are still heard of: the task lives as long as the runtime.
                let mut serving = self.serve_node();
                tokio::select! {
                    reason = signals.first(&self.shutdown, Second::Interrupt) => Ok(reason),
                    ended = &mut serving => Err(ended),
                }
            }
            ProxyMode::Dedicated => {
                self.serve_own_workload()?;
                Ok(signals.first(&self.shutdown, Second::Interrupt).await)
            }
        };
        let outcome = match failure {
            Ok(reason) => {
                tracing::info!(reason, "shutting down");
                Ok(ExitCode::SUCCESS)
            }
            Err(Ok(error)) => Err(Failure::new(error.to_string())),
            Err(Err(error)) => Err(Failure::new(format!("serving pods failed: {error}"))),
        };
        self.drain().await;
        outcome
    }

    /// Serves the pods that the node agent names. Ends only if the agent breaks the protocol.
    fn serve_node(&self) -> JoinHandle<zds::ProtocolError> {
        let (client, mut status) = zds::Client::new(&self.settings.pods.inpod_uds);
        // Set once: a node has one agent.
        let _ = self.pending.set(client.pending());
        let (readiness, metrics) = (self.readiness.clone(), Arc::clone(&self.metrics));
        self.readiness.set(Part::Proxy, true);
        self.readiness.set(Part::Dns, true);
        self.data.spawn(async move {
            let mut before = zds::Status::default();
            while status.changed().await.is_ok() {
                let now = *status.borrow_and_update();
                readiness.set(Part::Pods, now.is_ready());
                metrics.pods.set(now.running, now.pending);
                (before.started..now.started).for_each(|_| metrics.pods.started());
                (before.stopped..now.stopped).for_each(|_| metrics.pods.stopped());
                before = now;
            }
        });
        let place = place(&self.settings);
        let serving = Serving::new(Arc::clone(&self.ztunnel), place, Arc::clone(&self.draining));
        self.data.spawn(async move {
            match client.run(serving).await {
                Ok(never) => match never {},
                Err(error) => error,
            }
        })
    }

    /// Serves the one workload of dedicated mode, in this process's own network.
    fn serve_own_workload(&self) -> Result<(), Failure> {
        let Some(name) = self.settings.mode.proxy_workload_info.clone() else {
            return Err(Failure::new("PROXY_MODE=dedicated needs PROXY_WORKLOAD_INFO"));
        };
        let pod = self.own_pod(name)?;
        let _data = self.data.enter();
        self.ztunnel.add(pod).map_err(|error| Failure::new(error.to_string()))?;
        self.readiness.set(Part::Proxy, true);
        self.readiness.set(Part::Dns, true);
        Ok(())
    }

    /// Serves HBONE to the proxy's own pod, if it is told which that is: so that others can fetch its metrics over mutual
    /// TLS and under policy.
    fn serve_itself(&self) -> Result<(), Failure> {
        let mode = &self.settings.mode;
        let names = [&mode.pod_name, &mode.pod_namespace, &mode.service_account];
        if !mode.enable_proxy || names.iter().any(|name| name.is_empty()) {
            return Ok(());
        }
        let [name, namespace, service_account] = names.map(Clone::clone);
        let pod = self.own_pod(WorkloadName { namespace, name, service_account })?;
        let _data = self.data.enter();
        self.ztunnel.add_own(pod).map_err(|error| Failure::new(error.to_string()))
    }

    /// A workload in this process's own network.
    fn own_pod(&self, name: WorkloadName) -> Result<ambit_ztunnel::Pod, Failure> {
        let addresses = zds::own_addresses()
            .map_err(|error| Failure::new(format!("can't list this machine's addresses: {error}")))?;
        // Without a network there is still the loopback, for a trial.
        let addresses = if addresses.is_empty() { vec![IpAddr::from([127, 0, 0, 1])] } else { addresses };
        let uid = format!("{}/{}", name.namespace, name.name);
        let info =
            zds::WorkloadInfo { name: name.name, namespace: name.namespace, service_account: name.service_account };
        let network = Arc::new(HostNetwork);
        pods::pod(&uid, info, addresses, network, &place(&self.settings)).map_err(Failure::new)
    }

    /// Takes nothing new, and lets open connections end until the deadline.
    async fn drain(self) {
        self.draining.store(true, Ordering::Release);
        self.readiness.set(Part::Running, false);
        let deadline = self.settings.draining.deadline();
        tracing::info!(?deadline, "draining");
        let ztunnel = Arc::clone(&self.ztunnel);
        // On the runtime that has the connections.
        let drained = self.data.spawn(async move { ztunnel.drain(deadline).await });
        if let Err(error) = drained.await {
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

fn place(settings: &Settings) -> Place {
    Place {
        cluster: settings.mode.cluster(),
        node: settings.mode.node_name.clone().filter(|node| !node.is_empty()),
        ipv6: settings.pods.ipv6_enabled,
    }
}

/// What readiness waits for.
fn parts(settings: &Settings) -> Vec<Part> {
    let mut parts = vec![Part::State];
    if settings.mode.enable_proxy {
        parts.push(Part::Proxy);
    }
    if settings.mode.dns_capture {
        parts.push(Part::Dns);
    }
    if settings.mode.proxy_mode == ProxyMode::Shared {
        parts.push(Part::Pods);
    }
    parts
}

fn configuration(settings: &Settings, limits: ambit_ztunnel::Limits, metrics: &Arc<Metrics>) -> ambit_ztunnel::Config {
    let mark = settings.pods.mark(settings.mode.proxy_mode);
    ambit_ztunnel::Config {
        trust_domain: settings.mode.trust_domain.clone(),
        cluster_domain: settings.mode.cluster_domain.clone(),
        upstream_dns: resolvers(),
        limits,
        transport: settings.transport.limits(),
        mark,
        preserve_source: settings.pods.enable_orig_src.unwrap_or_else(may_preserve_source),
        tunnel_to_loopback: settings.pods.localhost_app_tunnel,
        response_baggage: settings.transport.enable_response_baggage,
        explain_refusals: settings.transport.explain_refusals,
        stream: settings.transport.stream(),
        idle: settings.transport.idle(),
        ports: ambit_ztunnel::Ports { dns: settings.mode.dns_proxy_addr, ..ambit_ztunnel::Ports::default() },
        reuse_port: settings.pods.inpod_port_reuse,
        carry_connections: settings.mode.enable_proxy,
        answer_dns: settings.mode.dns_capture,
        socks5: settings.pods.unstable_enable_socks5.then_some(ambit_ztunnel::SOCKS5_PORT),
        dns: ambit_ztunnel::DnsOptions {
            preferred_namespace: settings.pods.preferred_service_namespace.clone(),
            search: (settings.mode.proxy_mode == ProxyMode::Dedicated).then(search_domains),
            ipv6: settings.pods.ipv6_enabled,
        },
        metrics: Arc::clone(metrics),
        pod_cidr: NOWHERE,
        service_cidr: NOWHERE,
        ..ambit_ztunnel::Config::default()
    }
}

/// A range that no destination is in: what isn't known of a cluster is passed on.
const NOWHERE: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32));

fn may_preserve_source() -> bool {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    socket.and_then(|socket| socket.set_ip_transparent_v4(true)).is_ok()
}

/// This machine's resolvers.
fn resolvers() -> Vec<SocketAddr> {
    let config = resolv_conf();
    config.nameservers.iter().take(MAX_RESOLVERS).map(|server| SocketAddr::new(IpAddr::from(server), 53)).collect()
}

/// This machine's search domains.
fn search_domains() -> Vec<String> {
    resolv_conf().get_search().cloned().unwrap_or_default()
}

/// What this machine's resolvers are; a file that isn't there or can't be read says nothing.
fn resolv_conf() -> resolv_conf::Config {
    let text = std::fs::read("/etc/resolv.conf").unwrap_or_default();
    resolv_conf::Config::parse(text).unwrap_or_else(|_| resolv_conf::Config::new())
}
