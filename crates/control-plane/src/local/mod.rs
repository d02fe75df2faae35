//! The resource source for files, with the part of a scheduler and kubelet that a laptop needs.
//!
//! [`start`] takes loaded objects, tells the proxies of them, and asks the node side for pods. After that it watches
//! the files: an edit that is right is in force within a few hundredths of a second, one that is wrong leaves everything
//! as it was.

mod actor;
mod addresses;
mod cluster;
pub mod codes;
mod desired;
mod issuers;
mod plan;
mod pod_spec;
mod session;
mod sessions;
mod status;
mod watch;

use std::{collections::VecDeque, path::PathBuf, sync::Arc, time::Instant};

use ambit_api::{Diagnostic, Loaded};
use ambit_mesh::inputs::{Inputs, NamespacedName, Settings};
use ambit_xds::channel::Sender;
use ipnet::Ipv4Net;
use tokio::sync::{broadcast, mpsc, oneshot};

use self::{
    actor::{Actor, Endpoints, Keys, Readiness, Request},
    cluster::Cluster,
};
pub use self::{
    plan::{ContainerPlan, ContainerPort, PodCommand, PodKind, PodPlan, Probe, ProbeKind, RestartPolicy},
    session::{SessionError, SessionRequest},
    status::{PodPhase, PodStatus, ServiceStatus, Status},
};
use crate::{
    keys::{self, Outside, OwnNetwork, Trust, Wanted, Ways},
    limits::{MAX_QUEUED_EVENTS, MAX_QUEUED_KEYS, MAX_QUEUED_POD_COMMANDS, MAX_QUEUED_REQUESTS},
};

/// How the local cluster is laid out.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Files and folders, as given with `-f`.
    pub paths: Vec<PathBuf>,
    /// Trust domain, root namespace and domain of service names.
    pub settings: Settings,
    /// Addresses of pods; the first is the gateway's.
    pub pod_range: Ipv4Net,
    /// Addresses of services.
    pub service_range: Ipv4Net,
    /// Take edits of the files up as they are made.
    pub watch: bool,
}

/// A running local cluster.
#[derive(Debug)]
pub struct Started {
    /// To ask things of it; it ends when the last handle is dropped.
    pub handle: Handle,
    /// Pods to make and remove, in order. Pods of sessions aren't among them: [`Handle::add_session`] returns those.
    pub pods: mpsc::Receiver<PodCommand>,
    /// What happens, from the start on.
    pub events: broadcast::Receiver<Event>,
    /// Warnings and notes about what was loaded.
    pub diagnostics: Vec<Diagnostic>,
}

/// Why it couldn't start: an error is among these diagnostics.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the configuration has errors")]
pub struct StartError {
    /// Everything there is to say, errors, warnings and notes.
    pub diagnostics: Vec<Diagnostic>,
}

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// An edit was taken up.
    Reloaded {
        /// Objects and pods that changed.
        changed: usize,
        /// Warnings and notes that there weren't before.
        diagnostics: Vec<Diagnostic>,
    },
    /// An edit has errors; the state before it stays in force.
    Rejected(Vec<Diagnostic>),
    /// The proxies have taken a change into force.
    Applied {
        /// When.
        at: Instant,
    },
    /// Something to know, in one line.
    Note(String),
}

/// To ask things of a local cluster.
#[derive(Clone, Debug)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    readiness: Arc<Readiness>,
    events: broadcast::WeakSender<Event>,
}

/// No such pod, or it isn't in a state for that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no pod `{0}` that this could be done to")]
pub struct NoSuchPod(pub String);

/// What loaded objects would come to, without running anything: for tools. Policies that can't be enforced are among the
/// inputs, as such. The diagnostics are those that reading didn't give yet.
#[must_use]
pub fn preview(loaded: Loaded) -> (Inputs, Vec<Diagnostic>) {
    let Config { settings, pod_range, service_range, .. } = Config::new(Vec::new());
    let mut objects = loaded.objects;
    objects.extend(loaded.malformed);
    Cluster::new(settings, pod_range, service_range).preview(objects)
}

/// Starts a local cluster on the current Tokio runtime. The first push to the proxies comes before the first pod command.
///
/// # Errors
/// When the loaded objects have errors, by themselves or together. Nothing is started then.
pub fn start(config: Config, loaded: Loaded, xds: Sender) -> Result<Started, StartError> {
    start_with(config, loaded, xds, Arc::new(OwnNetwork))
}

/// The same, with this way out to the key servers of tokens' issuers.
///
/// # Errors
/// As [`start`].
pub fn start_with(
    config: Config,
    loaded: Loaded,
    xds: Sender,
    outside: Arc<dyn Outside>,
) -> Result<Started, StartError> {
    let Config { paths, settings, pod_range, service_range, watch } = config;
    // Before the objects are looked at, so that no edit falls in between.
    let watching = if watch { actor::watch(&paths).map(Some) } else { Ok(None) };
    let mut cluster = Cluster::new(settings, pod_range, service_range);
    let (outcome, mut diagnostics) =
        actor::take_over(&mut cluster, loaded).map_err(|diagnostics| StartError { diagnostics })?;
    let (requests, incoming) = mpsc::channel(MAX_QUEUED_REQUESTS);
    let (commands, pods) = mpsc::channel(MAX_QUEUED_POD_COMMANDS);
    let (sender, events) = broadcast::channel(MAX_QUEUED_EVENTS);
    let readiness = Arc::new(Readiness::default());
    let handle = Handle { requests, readiness: Arc::clone(&readiness), events: sender.downgrade() };
    let watch = watching.unwrap_or_else(|diagnostic| {
        diagnostics.push(*diagnostic);
        None
    });
    let (wanted, wants) = tokio::sync::watch::channel(Wanted::default());
    let (finds, found) = mpsc::channel(MAX_QUEUED_KEYS);
    let inside = Arc::new(Endpoints(handle.requests.downgrade()));
    tokio::spawn(keys::keep(Ways { outside, inside, trust: Trust::default() }, wants, finds));
    let actor = Actor {
        cluster,
        paths,
        requests: incoming,
        readiness,
        xds,
        pods: commands,
        events: sender,
        outbox: VecDeque::new(),
        watch,
        retry: None,
        keys: Keys { wanted, found },
    };
    tokio::spawn(actor.run(outcome));
    Ok(Started { handle, pods, events, diagnostics })
}

// === impl Config ===

impl Config {
    /// The usual layout for these files and folders: pods in 10.244.0.0/16, services in 10.96.0.0/16.
    #[must_use]
    pub fn new(paths: Vec<PathBuf>) -> Self {
        let range = |second: u8| {
            let base = std::net::Ipv4Addr::new(10, second, 0, 0);
            // INVARIANT: 16 is a prefix length.
            Ipv4Net::new_assert(base, 16)
        };
        Self { paths, settings: Settings::default(), pod_range: range(244), service_range: range(96), watch: true }
    }
}

// === impl Handle ===

impl Handle {
    /// Makes a pod for a session. When this returns the proxies know the pod; the caller makes it, and says
    /// [`Handle::set_ready`] when it can get connections.
    ///
    /// # Errors
    /// When the namespace or service account doesn't exist, or the name is taken.
    pub async fn add_session(&self, request: SessionRequest) -> Result<Arc<PodPlan>, SessionError> {
        self.ask(|answer| Request::AddSession(request, answer)).await.unwrap_or(Err(SessionError::Stopped))
    }

    /// Ends a session; a declared pod whose place it had waits again. When this returns the proxies have forgotten the
    /// session's pod.
    pub async fn remove_session(&self, uid: &str) {
        let _: Option<()> = self.ask(|answer| Request::RemoveSession(uid.into(), answer)).await;
    }

    /// Says whether a pod can get connections. A pod without a readiness probe can as soon as it runs. Never waits; the
    /// latest word on a pod counts.
    pub fn set_ready(&self, uid: &str, ready: bool) {
        self.readiness.report(uid, ready);
    }

    /// Stops a declared pod or waypoint until [`Handle::start_pod`]. When this returns the proxies know that it is gone.
    ///
    /// # Errors
    /// When no such pod runs.
    pub async fn stop_pod(&self, uid: &str) -> Result<NamespacedName, NoSuchPod> {
        let name = self.ask(|answer| Request::Stop(uid.into(), answer)).await.flatten();
        name.ok_or_else(|| NoSuchPod(uid.to_owned()))
    }

    /// Starts a stopped pod again, under a new key.
    ///
    /// # Errors
    /// When no such pod is stopped.
    pub async fn start_pod(&self, name: &NamespacedName) -> Result<(), NoSuchPod> {
        let started = self.ask(|answer| Request::Start(name.clone(), answer)).await;
        if started == Some(true) { Ok(()) } else { Err(NoSuchPod(name.to_string())) }
    }

    /// What there is.
    pub async fn status(&self) -> Status {
        self.ask(Request::Status).await.unwrap_or_default()
    }

    /// Reads the files again and waits until the proxies have taken the change into force; the number of changes.
    ///
    /// # Errors
    /// When the files have errors; the state before stays in force.
    pub async fn reload(&self) -> Result<usize, StartError> {
        match self.ask(Request::Reload).await {
            Some(result) => result.map_err(|diagnostics| StartError { diagnostics }),
            None => Ok(0),
        }
    }

    /// Events from now on; nothing once the cluster has ended.
    #[must_use]
    pub fn subscribe(&self) -> Option<broadcast::Receiver<Event>> {
        self.events.upgrade().map(|sender| sender.subscribe())
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(request(answer)).await.ok()?;
        answered.await.ok()
    }
}
