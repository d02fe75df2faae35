//! One mesh on one machine: control plane, CA, node proxy, waypoints and pods wired together in the node process.

mod containers;
pub mod files;
mod folders;
mod key_servers;
mod log;
mod pods;
mod records;
mod sessions;

use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_api::{Diagnostic, Severity};
use ambit_control_plane::local::{self as control_plane, Event, PodCommand, PodKind, PodPhase, Status};
use ambit_identity::{Ca, CertificateStore, SystemClock};
use ambit_mesh::Store;
use ambit_node::{
    Node, NodeProcess, Reaper,
    control::{ControlServer, socket_folder, socket_path},
    host::Shutdown,
    supervise::ContainerLine,
};
use ambit_policy::Options as PolicyOptions;
use ambit_telemetry::log::LevelControl;
use ambit_ztunnel::Ztunnel;
use tokio::sync::{broadcast, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use records::{AccessLog, AccessLogFormat};

use crate::command::Failure;
use key_servers::KeyServers;
use pods::{PodState, Pods, Surroundings};
use sessions::Sessions;

/// Trust domain of a local mesh.
const TRUST_DOMAIN: &str = "cluster.local";
/// Namespace whose policies apply to the whole mesh.
const ROOT_NAMESPACE: &str = "istio-system";
/// How long the mesh may take to start before that counts as a failure.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// How often the start looks whether all pods are there.
const START_POLL: Duration = Duration::from_millis(2);
/// How long pods may take to stop; with the rest of the end it stays under two seconds.
const STOP_TIMEOUT: Duration = Duration::from_millis(1_400);
/// How long tasks may take to notice that the runtime ends.
const RUNTIME_GRACE: Duration = Duration::from_millis(100);
/// Lines of containers' output that wait to be printed, for all pods together.
const OUTPUT_QUEUE: usize = 256;
/// Resolvers taken from the host's `resolv.conf`.
const MAX_RESOLVERS: usize = 3;

/// What `ambit up` was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the mesh.
    pub mesh: String,
    /// Files and folders with resources.
    pub paths: Vec<PathBuf>,
    /// Where decision records go, besides the lines for people.
    pub access_log: Option<AccessLog>,
    /// What its lines are.
    pub access_log_format: AccessLogFormat,
    /// Waypoints are open to operators on loopback ports of the host.
    pub waypoint_admin: bool,
}

/// Runs the mesh in the node process until it is told to stop.
pub fn run(options: Options, node: NodeProcess) -> Result<ExitCode, Failure> {
    let started = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("can't start a runtime: {error}")))?;
    let result = runtime.block_on(serve(options, node, started));
    runtime.shutdown_timeout(RUNTIME_GRACE);
    result
}

/// Prints a line on standard output. A reader that is gone must not end the mesh.
pub fn print_line(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}");
}

async fn serve(options: Options, mut process: NodeProcess, started: Instant) -> Result<ExitCode, Failure> {
    let levels = log::start()?;
    let writer = records::Writer::open(options.access_log.as_ref(), options.access_log_format)?;
    let loaded = ambit_api::load(&options.paths);
    // A mesh that can't start says so before it takes the socket.
    if loaded.diagnostics.iter().any(Diagnostic::is_error) {
        return Err(refused(&loaded.diagnostics));
    }
    let socket = socket_path(&options.mesh);
    let server = ControlServer::bind(&socket, process.owner).map_err(|error| Failure::new(error.to_string()))?;
    // Without this a socket of a killed mesh stays; the next start replaces it.
    let _ = process.host.remove_on_exit(&socket);

    let mut mesh = Mesh::build(&options, &process, loaded, writer, levels)?;
    let tasks = TaskTracker::new();
    let stop = CancellationToken::new();
    let sessions = Arc::new(Sessions::new(
        mesh.handle.clone(),
        Arc::clone(&mesh.pods),
        Arc::clone(&mesh.ztunnel),
        Arc::clone(&mesh.store),
        stop.clone(),
    ));
    tasks.spawn(sessions::serve(server, sessions, tasks.clone(), stop.clone()));
    tasks.spawn(carry_out(mesh.commands.take(), Arc::clone(&mesh.pods), stop.clone()));

    let begun = tokio::select! {
        begun = mesh.await_start() => begun,
        reason = process.shutdown.next() => Err(Failure::new(format!("stopped while starting ({reason:?})"))),
    };
    match begun {
        Ok(status) => {
            print_line(&ready_line(&status, started.elapsed()));
            tokio::select! {
                () = mesh.run(&mut process, &stop) => {}
                () = ambit_node::memory::keep_small() => {}
            }
            print_line("stopping");
        }
        Err(failure) => {
            mesh.end(&stop).await;
            return Err(failure);
        }
    }
    mesh.end(&stop).await;
    Ok(ExitCode::SUCCESS)
}

/// The parts that run.
struct Mesh {
    handle: control_plane::Handle,
    events: broadcast::Receiver<Event>,
    commands: Option<mpsc::Receiver<PodCommand>>,
    pods: Arc<Pods>,
    node: Node,
    ztunnel: Arc<Ztunnel>,
    store: Arc<Store>,
}

// === impl Mesh ===

impl Mesh {
    fn build(
        options: &Options,
        process: &NodeProcess,
        loaded: ambit_api::Loaded,
        writer: records::Writer,
        levels: LevelControl,
    ) -> Result<Self, Failure> {
        let failure = |error: &dyn std::error::Error| Failure::new(error.to_string());
        let state = folders::state(&options.mesh);
        let ca = Ca::open(&state.join("ca"), TRUST_DOMAIN).map_err(|error| failure(&error))?;
        let certificates = CertificateStore::new(Arc::new(ca), Arc::new(SystemClock));
        let (mut recorder, records) = ambit_telemetry::recorder();
        if writer.wants_exchanges() {
            recorder = recorder.with_exchanges();
        }
        tokio::spawn(writer.run(records));
        let store = Store::new(PolicyOptions {
            trust_domains: vec![TRUST_DOMAIN.to_owned()],
            root_namespace: ROOT_NAMESPACE.to_owned(),
            ..PolicyOptions::default()
        });
        let (xds, pushes) = ambit_xds::channel::channel();
        tokio::spawn(Arc::clone(&store).run(pushes));

        let host: Arc<dyn ambit_hbone::Network> = Arc::clone(&process.host) as _;
        let key_servers = Arc::new(KeyServers::new(Arc::clone(&host), resolvers()));
        let config = control_plane::Config::new(options.paths.clone());
        let cluster =
            control_plane::start_with(config, loaded, xds, key_servers).map_err(|error| refused(&error.diagnostics))?;
        show(&cluster.diagnostics);

        let node = Node::new(process.owner).map_err(|error| failure(&error))?;
        if !ambit_node::isolate::is_available() {
            eprintln!(
                "ambit: this kernel has no Landlock (Linux 5.19, `landlock` in its `lsm=` list): a program in one pod can \
                 take over another pod's programs and their connections"
            );
        }
        let reaper = Reaper::start().map_err(|error| failure(&error))?;
        let (lines, output) = mpsc::channel(OUTPUT_QUEUE);
        tokio::spawn(print_output(output));
        let config = ambit_ztunnel::Config {
            trust_domain: TRUST_DOMAIN.to_owned(),
            upstream_dns: resolvers(),
            limits: files::fit(ambit_ztunnel::Limits::default()),
            ..ambit_ztunnel::Config::default()
        };
        let waypoint_admin = options.waypoint_admin.then(|| Arc::clone(&host));
        let ztunnel = Ztunnel::new(config, Arc::clone(&store), Arc::clone(&certificates), host, recorder.clone());
        let pods = Arc::new(Pods::new(Surroundings {
            node: node.clone(),
            reaper,
            ztunnel: Arc::clone(&ztunnel),
            store: Arc::clone(&store),
            certificates,
            recorder,
            control_plane: cluster.handle.clone(),
            lines,
            waypoint_admin,
            levels,
            // All meshes of this user, not only this one.
            hidden: vec![state.parent().map_or_else(|| state.clone(), Path::to_owned), socket_folder()],
        }));
        Ok(Self {
            handle: cluster.handle,
            events: cluster.events,
            commands: Some(cluster.pods),
            pods,
            node,
            ztunnel,
            store,
        })
    }

    /// Waits until every declared pod has its namespaces and proxies, and every waypoint takes connections.
    async fn await_start(&self) -> Result<Status, Failure> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let status = self.handle.status().await;
            let mut waiting = 0;
            for pod in status.pods.iter().filter(|pod| pod.phase == PodPhase::Running) {
                match self.pods.state(&pod.uid).map(|state| state.borrow().clone()) {
                    Some(PodState::Failed(reason)) => {
                        return Err(Failure::new(format!("pod {}/{}: {reason}", pod.namespace, pod.name)));
                    }
                    Some(PodState::Running(_)) if pod.ready || !matches!(pod.kind, PodKind::Waypoint { .. }) => {}
                    _ => waiting += 1,
                }
            }
            if waiting == 0 {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(Failure::new(format!("{waiting} pods didn't start in time")));
            }
            tokio::time::sleep(START_POLL).await;
        }
    }

    /// Shows what happens until the mesh is to stop.
    async fn run(&mut self, process: &mut NodeProcess, stop: &CancellationToken) {
        loop {
            tokio::select! {
                // Its host is gone, or a signal came: either way it ends.
                Shutdown::Signal(_) | Shutdown::HostGone = process.shutdown.next() => return,
                () = stop.cancelled() => return,
                event = self.events.recv() => match event {
                    Ok(event) => show_event(event),
                    Err(broadcast::error::RecvError::Lagged(missed)) => print_line(&format!("{missed} events weren't shown")),
                    // Nothing more to show, but the proxies go on.
                    Err(broadcast::error::RecvError::Closed) => stop.cancelled().await,
                },
            }
        }
    }

    async fn end(&self, stop: &CancellationToken) {
        stop.cancel();
        tokio::join!(self.pods.stop_all(STOP_TIMEOUT), self.ztunnel.drain(STOP_TIMEOUT / 2));
        self.node.end_all_processes(RUNTIME_GRACE).await;
    }
}

async fn carry_out(commands: Option<mpsc::Receiver<PodCommand>>, pods: Arc<Pods>, stop: CancellationToken) {
    let Some(mut commands) = commands else { return };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            command = commands.recv() => match command {
                Some(command) => pods.carry_out(command),
                None => return,
            },
        }
    }
}

async fn print_output(mut lines: mpsc::Receiver<ContainerLine>) {
    while let Some(line) = lines.recv().await {
        print_line(&format!("{}/{} | {}", line.pod, line.container, line.text));
    }
}

fn show_event(event: Event) {
    match event {
        Event::Reloaded { changed, diagnostics } => {
            show(&diagnostics);
            print_line(&format!("the edit is in force ({changed} changes)"));
        }
        Event::Rejected(diagnostics) => {
            show(&diagnostics);
            print_line("the edit has errors; the last good state stays in force");
        }
        Event::Note(note) => print_line(&note),
        Event::Applied { .. } => {}
    }
}

/// Errors, warnings and notes go to standard error, where they don't mix with records.
fn show(diagnostics: &[Diagnostic]) {
    if !diagnostics.is_empty() {
        eprintln!("{}", ambit_api::render(diagnostics, false).trim_end());
    }
}

fn refused(diagnostics: &[Diagnostic]) -> Failure {
    show(diagnostics);
    let errors = diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).count();
    Failure::new(format!("{errors} errors in the resources; nothing was started"))
}

fn ready_line(status: &Status, took: Duration) -> String {
    let phase = |phase: PodPhase| status.pods.iter().filter(move |pod| pod.phase == phase);
    let waypoints = phase(PodPhase::Running).filter(|pod| matches!(pod.kind, PodKind::Waypoint { .. })).count();
    format!(
        "ready after {} ms: {} services, {} policies, {} waypoints, {} pods running, {} waiting for `ambit run`",
        took.as_millis(),
        status.services.len(),
        status.policies,
        waypoints,
        phase(PodPhase::Running).count() - waypoints,
        phase(PodPhase::Waiting).count(),
    )
}

/// The host's resolvers. A host without any gives pods only the mesh's own names.
fn resolvers() -> Vec<SocketAddr> {
    let text = std::fs::read("/etc/resolv.conf").unwrap_or_default();
    let Ok(config) = resolv_conf::Config::parse(text) else { return Vec::new() };
    config.nameservers.iter().take(MAX_RESOLVERS).map(|server| SocketAddr::new(IpAddr::from(server), 53)).collect()
}
