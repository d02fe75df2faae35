//! The pods of the mesh: each is a task that makes its namespaces, gives it its proxies, runs its containers, and takes
//! all of that down again.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ambit_control_plane::local::{Handle, PodCommand, PodKind, PodPlan};
use ambit_hbone::{
    Network,
    socket::{self, ListenOptions},
};
use ambit_identity::CertificateStore;
use ambit_mesh::Store;
use ambit_node::{Capture, Node, PodDns, PodNamespaces, PodNetworkSpec, Reaper, Supervisor, supervise::ContainerLine};
use ambit_telemetry::{Recorder, log::LevelControl};
use ambit_waypoint::{Exposure, Waypoint};
use ambit_ztunnel::Ztunnel;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{containers, print_line};

/// Port on which waypoints listen.
const HBONE_PORT: u16 = 15008;
/// The cluster's DNS address; captured, so nothing needs to be there.
const NAMESERVER: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Dots from which on a name is tried as it is first, as in Kubernetes.
const NDOTS: u8 = 5;
/// How long requests in flight at a waypoint may take to end.
const WAYPOINT_DRAIN: Duration = Duration::from_millis(500);
/// How long programs may take to end before they are killed.
const PROCESS_GRACE: Duration = Duration::from_millis(500);

/// What every pod needs of the mesh.
pub struct Surroundings {
    /// The node's network.
    pub node: Node,
    /// Collects ended processes.
    pub reaper: Reaper,
    /// The node proxy.
    pub ztunnel: Arc<Ztunnel>,
    /// What the proxies know.
    pub store: Arc<Store>,
    /// Certificates for waypoints.
    pub certificates: Arc<CertificateStore>,
    /// Where decisions go.
    pub recorder: Recorder,
    /// The control plane.
    pub control_plane: Handle,
    /// Where containers' output goes.
    pub lines: mpsc::Sender<ContainerLine>,
    /// The host's network, if waypoints are open to operators there.
    pub waypoint_admin: Option<Arc<dyn Network>>,
    /// Of this process's log; operators of waypoints may change them.
    pub levels: LevelControl,
    /// Folders that pods must not see: the mesh's keys and control socket belong to the same user.
    pub hidden: Vec<PathBuf>,
}

/// What became of a pod.
#[derive(Clone, Debug)]
pub enum PodState {
    /// Its namespaces are being made.
    Starting,
    /// Its namespaces and proxies are there.
    Running(Arc<PodNamespaces>),
    /// It couldn't be made.
    Failed(String),
    /// It is being taken down.
    Stopping,
    /// It was stopped.
    Stopped,
}

/// The pods of the mesh.
pub struct Pods {
    surroundings: Arc<Surroundings>,
    pods: Mutex<HashMap<Arc<str>, Pod>>,
}

struct Pod {
    plan: Arc<PodPlan>,
    stop: CancellationToken,
    state: watch::Receiver<PodState>,
    task: JoinHandle<()>,
}

/// What runs in a pod.
enum Inside {
    Containers(Supervisor),
    Waypoint(Waypoint),
    Nothing,
}

// === impl Pods ===

impl Pods {
    /// No pods yet.
    pub fn new(surroundings: Surroundings) -> Self {
        Self { surroundings: Arc::new(surroundings), pods: Mutex::default() }
    }

    /// Starts or stops what the control plane asks for, without waiting for it.
    pub fn carry_out(&self, command: PodCommand) {
        let mut pods = self.lock();
        match command {
            PodCommand::Add(plan) => self.add(&mut pods, plan),
            PodCommand::Remove { uid } => {
                if let Some(pod) = pods.get(&uid) {
                    pod.stop.cancel();
                }
            }
        }
        pods.retain(|_, pod| !(pod.stop.is_cancelled() && pod.task.is_finished()));
    }

    /// The state of a pod as it changes.
    pub fn state(&self, uid: &str) -> Option<watch::Receiver<PodState>> {
        self.lock().get(uid).map(|pod| pod.state.clone())
    }

    /// Stops all pods and waits for them, up to the deadline.
    pub async fn stop_all(&self, deadline: Duration) {
        let pods: Vec<Pod> = self.lock().drain().map(|(_, pod)| pod).collect();
        for pod in &pods {
            pod.stop.cancel();
        }
        let all = async {
            for pod in pods {
                // A task that panicked has nothing left to wait for; the kernel cleans up after the node process.
                let _ = pod.task.await;
            }
        };
        // What isn't done by then is ended by the kernel with the node process.
        let _ = tokio::time::timeout(deadline, all).await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Pod>> {
        // A panic elsewhere leaves the map whole: every change of it is one call.
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, pods: &mut HashMap<Arc<str>, Pod>, plan: Arc<PodPlan>) {
        let stop = CancellationToken::new();
        let (publish, state) = watch::channel(PodState::Starting);
        // The pod whose address this one takes over must be gone first.
        let before = pods
            .values()
            .filter(|pod| pod.plan.ip == plan.ip && !pod.task.is_finished())
            .map(|pod| {
                pod.stop.cancel();
                pod.state.clone()
            })
            .collect::<Vec<_>>();
        let task = tokio::spawn(live(Arc::clone(&self.surroundings), Arc::clone(&plan), before, publish, stop.clone()));
        pods.insert(Arc::clone(&plan.uid), Pod { plan, stop, state, task });
    }
}

/// The whole life of a pod.
async fn live(
    surroundings: Arc<Surroundings>,
    plan: Arc<PodPlan>,
    before: Vec<watch::Receiver<PodState>>,
    publish: watch::Sender<PodState>,
    stop: CancellationToken,
) {
    for mut other in before {
        // An error means that its task is gone, which is just as well.
        let _ = other.wait_for(|state| matches!(state, PodState::Stopped | PodState::Failed(_))).await;
    }
    let namespaces = match make(&surroundings, &plan).await {
        Ok(namespaces) => namespaces,
        Err(reason) => {
            print_line(&format!("pod {}/{} can't be made: {reason}", plan.namespace, plan.name));
            publish.send_replace(PodState::Failed(reason));
            stop.cancelled().await;
            return;
        }
    };
    let inside = match start(&surroundings, &plan, &namespaces) {
        Ok(inside) => inside,
        Err(reason) => {
            print_line(&format!("pod {}/{} can't be started: {reason}", plan.namespace, plan.name));
            publish.send_replace(PodState::Failed(reason));
            take_down(&surroundings, &plan, Inside::Nothing, namespaces).await;
            return;
        }
    };
    publish.send_replace(PodState::Running(Arc::clone(&namespaces)));
    report_readiness(&surroundings, &plan, &inside, &stop).await;
    surroundings.control_plane.set_ready(&plan.uid, false);
    publish.send_replace(PodState::Stopping);
    take_down(&surroundings, &plan, inside, namespaces).await;
    publish.send_replace(PodState::Stopped);
}

async fn make(surroundings: &Arc<Surroundings>, plan: &PodPlan) -> Result<Arc<PodNamespaces>, String> {
    let spec = PodNetworkSpec {
        name: plan.name.clone(),
        ip: plan.ip,
        capture: match (&plan.kind, plan.captured) {
            (PodKind::Waypoint { .. }, _) => Capture::None,
            (_, true) => Capture::Mesh,
            (_, false) => Capture::Outside,
        },
        dns: PodDns {
            nameserver: NAMESERVER,
            search: vec![
                format!("{}.svc.cluster.local", plan.namespace),
                "svc.cluster.local".to_owned(),
                "cluster.local".to_owned(),
            ],
            ndots: NDOTS,
        },
        hosts: Vec::new(),
        hide: surroundings.hidden.clone(),
    };
    let node = surroundings.node.clone();
    let made = tokio::task::spawn_blocking(move || node.create_pod(&spec)).await.map_err(|error| error.to_string())?;
    made.map(Arc::new).map_err(|error| error.to_string())
}

/// Gives the pod its proxies first, then its programs: nothing of it may speak uncaptured.
fn start(
    surroundings: &Arc<Surroundings>,
    plan: &Arc<PodPlan>,
    namespaces: &Arc<PodNamespaces>,
) -> Result<Inside, String> {
    if let PodKind::Waypoint { gateway } = &plan.kind {
        let address = SocketAddr::from((plan.ip, HBONE_PORT));
        let config = ambit_waypoint::Config::new(&plan.namespace, gateway, plan.identity.clone(), address);
        let waypoint = Waypoint::start(
            config,
            namespaces.network(),
            Arc::clone(&surroundings.store),
            Arc::clone(&surroundings.certificates),
            surroundings.recorder.clone(),
        );
        let waypoint = waypoint.map_err(|error| format!("its waypoint can't listen: {error}"))?;
        if let Some(host) = &surroundings.waypoint_admin {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let bound = socket::listen(&**host, address, &ListenOptions::default())
                .and_then(|listener| Ok((listener.local_addr()?, listener)));
            let (address, listener) = bound.map_err(|error| format!("its operators' port can't listen: {error}"))?;
            waypoint.serve_operators(vec![listener], Exposure::Loopback, Some(surroundings.levels.clone()));
            print_line(&format!("waypoint {}/{gateway}: operators at http://{address}", plan.namespace));
        }
        return Ok(Inside::Waypoint(waypoint));
    }
    let pod = ambit_ztunnel::Pod {
        uid: Arc::clone(&plan.uid),
        ip: IpAddr::V4(plan.ip),
        namespace: plan.namespace.clone(),
        network: namespaces.network(),
        captured: plan.captured,
        in_pod: None,
    };
    surroundings.ztunnel.add(pod).map_err(|error| format!("its node proxy can't listen: {error}"))?;
    let specs = containers::specs(plan);
    if specs.is_empty() {
        return Ok(Inside::Nothing);
    }
    let restart = containers::restart_policy(plan.restart_policy);
    Ok(Inside::Containers(Supervisor::start(&surroundings.reaper, namespaces, specs, restart, &surroundings.lines)))
}

/// Tells the control plane when the pod is ready and when it isn't, until it is to stop.
async fn report_readiness(surroundings: &Surroundings, plan: &PodPlan, inside: &Inside, stop: &CancellationToken) {
    let Inside::Containers(supervisor) = inside else {
        surroundings.control_plane.set_ready(&plan.uid, true);
        stop.cancelled().await;
        return;
    };
    let mut status = supervisor.status();
    let mut told = None;
    loop {
        let ready = status.borrow_and_update().ready();
        if told != Some(ready) {
            surroundings.control_plane.set_ready(&plan.uid, ready);
            if ready || told == Some(true) {
                let state = if ready { "ready" } else { "not ready" };
                print_line(&format!("pod {}/{} is {state}", plan.namespace, plan.name));
            }
            told = Some(ready);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = status.changed() => if changed.is_err() {
                stop.cancelled().await;
                return;
            },
        }
    }
}

/// The programs first, then the proxies, then the namespaces.
async fn take_down(surroundings: &Surroundings, plan: &PodPlan, inside: Inside, namespaces: Arc<PodNamespaces>) {
    match inside {
        Inside::Containers(supervisor) => supervisor.stop().await,
        Inside::Waypoint(waypoint) => waypoint.drain(WAYPOINT_DRAIN).await,
        Inside::Nothing => {}
    }
    surroundings.ztunnel.remove(&plan.uid);
    if let Err(error) = namespaces.destroy(PROCESS_GRACE).await {
        print_line(&format!("pod {}/{} can't be removed wholly: {error}", plan.namespace, plan.name));
    }
}
