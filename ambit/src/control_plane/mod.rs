//! The control plane as a process of its own (`ambit control-plane`): the mesh from a Kubernetes API, identities, and what
//! proxies are told, each replica on its own; one of them at a time writes.
//!
//! It serves nobody before it has read all that the mesh is made of. An API server that goes away later changes nothing about
//! what is served.

mod operate;
mod settings;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use ambit_control_plane::{
    authority::{self, Authority},
    kubernetes::{self, Source},
    waypoints,
    webhook::{self, Registration},
};
use ambit_mesh::inputs;
use ambit_telemetry::FLUSH_TIMEOUT;
use ambit_xds::server::Server;
use kube::Client;
use tokio::{
    net::TcpListener,
    runtime::Builder,
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

pub use self::settings::Settings;
use crate::{
    command::Failure,
    proxy::{
        log::Log,
        readiness::{Part, Readiness},
        settings::Operations,
        shutdown::{Second, Shutdown, Signals},
    },
};

/// Pause between tries to open the CA while the API server doesn't answer.
const OPEN_AGAIN: Duration = Duration::from_secs(2);
/// How long tasks have to come to their end.
const END_TIMEOUT: Duration = Duration::from_secs(20);
/// How long tasks may take to notice that their runtime ends.
const RUNTIME_GRACE: Duration = Duration::from_millis(100);

/// Where it is reached.
struct Listeners {
    discovery: TcpListener,
    plain_discovery: TcpListener,
    webhook: TcpListener,
    monitoring: TcpListener,
}

/// Runs the control plane until it is told to stop.
///
/// # Errors
/// When it can't start.
pub fn run(settings: Settings) -> Result<ExitCode, Failure> {
    let failed = |error: io::Error| Failure::new(format!("can't start a runtime: {error}"));
    let runtime = Builder::new_multi_thread().enable_all().build().map_err(failed)?;
    let result = runtime.block_on(serve(&settings));
    runtime.shutdown_timeout(RUNTIME_GRACE);
    result.map(|()| ExitCode::SUCCESS)
}

async fn serve(settings: &Settings) -> Result<(), Failure> {
    let log = Log::start(&operations(settings), Arc::default())?;
    let signals = Signals::take().map_err(|error| Failure::new(format!("can't take signals: {error}")))?;
    let readiness = Readiness::waiting_for([Part::State, Part::Certificate]);
    let probes = listen(settings.listen_address, settings.readiness_port).await?;
    tokio::spawn(readiness.clone().serve(probes));
    // Before anything is asked of the API server, so that a port that is taken is told at once.
    let listeners = Listeners::open(settings).await?;
    let client = crate::command::install::client().await?;
    let shutdown = Shutdown::new();
    let stop = CancellationToken::new();
    let mut signal = std::pin::pin!(signals.first(&shutdown, Second::Any));
    let mut tasks = JoinSet::new();
    let reason = tokio::select! {
        reason = &mut signal => reason,
        started = start(settings, client, listeners, &readiness, &mut tasks, &stop) => {
            started?;
            tracing::info!(pod = settings.pod_name, "serving");
            signal.await
        }
    };
    tracing::info!(reason, "shutting down");
    readiness.set(Part::Running, false);
    stop.cancel();
    // The Lease is given back, and proxies are told to go to another replica.
    if timeout(END_TIMEOUT, async { while tasks.join_next().await.is_some() {} }).await.is_err() {
        tracing::warn!("some tasks didn't end in time");
    }
    tracing::info!("shutdown complete");
    log.writer.flush(FLUSH_TIMEOUT);
    Ok(())
}

async fn start(
    settings: &Settings,
    client: Client,
    listeners: Listeners,
    readiness: &Readiness,
    tasks: &mut JoinSet<()>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let mesh = inputs::Settings {
        trust_domain: settings.trust_domain.clone(),
        root_namespace: settings.pod_namespace.clone(),
        cluster_domain: settings.cluster_domain.clone(),
        ..inputs::Settings::default()
    };
    let source = kubernetes::Settings { mesh, cluster_id: settings.cluster_id.clone() };
    let Source { resources, directory, mut pending, teller, tasks: watching } =
        kubernetes::start(&client, source, stop);
    join(tasks, watching);
    let authority = open(&client, directory, settings, readiness, stop).await;
    let Authority { ca, authorizer, certificate, leadership, problem, tasks: keeping } = authority;
    join(tasks, keeping);
    readiness.set(Part::Certificate, true);
    let bundle = as_bytes(ca.bundle(), tasks, stop);
    let monitor = operate::Monitor::new(pending.clone(), problem, leadership.clone());
    tasks.spawn(teller.run(leadership.clone()));
    tasks.spawn(waypoints::keep(client.clone(), leadership.clone(), waypoint_settings(settings), stop.clone()));
    tasks.spawn(operate::serve(listeners.monitoring, monitor, stop.clone()));

    // Reviews depend on the object alone, so they needn't wait for the mesh.
    tasks.spawn(webhook::serve(listeners.webhook, certificate.open_config(), stop.clone()));
    let name = format!("ambit-validator-{}", settings.pod_namespace);
    let registration = Registration { name, bundle, leads: leadership.changed() };
    tasks.spawn(webhook::keep_registration(client.clone(), registration, stop.clone()));

    while !pending.borrow_and_update().is_empty() {
        readiness.lack(Part::State, format!("not read yet: {}", pending.borrow().join(", ")));
        // The sender is gone only when the control plane ends.
        if pending.changed().await.is_err() {
            return Ok(());
        }
    }
    let server = Server::new(authorizer).with_resources(resources).with_ca(ca);
    tasks.spawn(server.clone().with_tls(certificate.mesh_config()).serve(listeners.discovery, stop.clone()));
    tasks.spawn(server.serve(listeners.plain_discovery, stop.clone()));
    readiness.set(Part::State, true);
    Ok(())
}

/// Opens the CA, as often as it takes: an API server that is away comes back, and a folder that can't be read is mended.
async fn open(
    client: &Client,
    directory: Arc<kubernetes::Directory>,
    settings: &Settings,
    readiness: &Readiness,
    stop: &CancellationToken,
) -> Authority {
    let mut wanted = authority::Settings {
        revision: settings.revision.clone(),
        trust_domain: settings.trust_domain.clone(),
        cluster_id: settings.cluster_id.clone(),
        audiences: settings.token_audiences.clone(),
        ca_folder: settings.root_ca_dir.clone(),
        server_names: settings.server_names.clone(),
        ..authority::Settings::new(&settings.pod_namespace, &settings.pod_name)
    };
    if !settings.ca_trusted_node_accounts.is_empty() {
        wanted.trusted_node_accounts.clone_from(&settings.ca_trusted_node_accounts);
    }
    loop {
        match authority::start(client.clone(), Arc::clone(&directory) as _, &wanted, stop.clone()).await {
            Ok(authority) => return authority,
            Err(error) => {
                tracing::error!(%error, "there is no CA to sign with");
                readiness.lack(Part::Certificate, error.to_string());
                sleep(OPEN_AGAIN).await;
            }
        }
    }
}

fn waypoint_settings(settings: &Settings) -> waypoints::Settings {
    waypoints::Settings {
        namespace: settings.pod_namespace.clone(),
        revision: settings.revision.clone(),
        cluster_id: settings.cluster_id.clone(),
        cluster_domain: settings.cluster_domain.clone(),
        trust_domain: settings.trust_domain.clone(),
        image: settings.ambit_image.clone(),
        image_pull_policy: settings.ambit_image_pull_policy.clone(),
    }
}

/// The bundle as the webhook's registration has it.
fn as_bytes(
    mut bundle: watch::Receiver<Arc<str>>,
    tasks: &mut JoinSet<()>,
    stop: &CancellationToken,
) -> watch::Receiver<Vec<u8>> {
    let (sender, receiver) = watch::channel(bundle.borrow_and_update().as_bytes().to_vec());
    let stop = stop.clone();
    tasks.spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = bundle.changed() => if changed.is_err() { return },
            }
            sender.send_replace(bundle.borrow_and_update().as_bytes().to_vec());
        }
    });
    receiver
}

/// Awaits one set of tasks as part of another.
fn join(tasks: &mut JoinSet<()>, mut more: JoinSet<()>) {
    tasks.spawn(async move { while more.join_next().await.is_some() {} });
}

/// The log's settings among those of proxies.
fn operations(settings: &Settings) -> Operations {
    Operations {
        rust_log: settings.rust_log.clone(),
        log_format: settings.log_format,
        authz_policy_info_logging: false,
        admin_port: None,
        stats_port: None,
        readiness_port: settings.readiness_port,
    }
}

async fn listen(address: IpAddr, port: u16) -> Result<TcpListener, Failure> {
    let first = SocketAddr::new(address, port);
    let bound = match TcpListener::bind(first).await {
        // A machine without IPv6.
        Err(_) if address.is_ipv6() && address.is_unspecified() => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        bound => bound,
    };
    bound.map_err(|error| Failure::new(format!("can't listen on `{first}`: {error}")))
}

// === impl Listeners ===

impl Listeners {
    async fn open(settings: &Settings) -> Result<Self, Failure> {
        let address = settings.listen_address;
        // What comes there isn't secured: it stays within the pod.
        let within = if address.is_loopback() { address } else { Ipv4Addr::LOCALHOST.into() };
        Ok(Self {
            discovery: listen(address, settings.xds_port).await?,
            plain_discovery: listen(within, settings.plain_xds_port).await?,
            webhook: listen(address, settings.webhook_port).await?,
            monitoring: listen(address, settings.monitoring_port).await?,
        })
    }
}
