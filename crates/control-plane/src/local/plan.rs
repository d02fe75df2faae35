//! What the node side is asked to run.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use ambit_api::SpiffeId;

/// A change to the pods that must run, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum PodCommand {
    /// Make this pod: its namespaces, its address, its proxies' listeners, its containers.
    Add(Arc<PodPlan>),
    /// Stop and remove it. A uid that isn't there any more is no error.
    Remove {
        /// Its [`PodPlan::uid`].
        uid: Arc<str>,
    },
}

/// A pod that must run.
#[derive(Clone, Debug, PartialEq)]
pub struct PodPlan {
    /// Unique while the mesh runs; never reused. It is the workload's key on the wire.
    pub uid: Arc<str>,
    /// Namespace.
    pub namespace: String,
    /// Pod name, also its host name.
    pub name: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Service account.
    pub service_account: String,
    /// The identity of that service account.
    pub identity: SpiffeId,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What it is.
    pub kind: PodKind,
    /// Its traffic goes through the node proxy.
    pub captured: bool,
    /// Its containers, in order.
    pub containers: Vec<ContainerPlan>,
    /// What happens when a container ends.
    pub restart_policy: RestartPolicy,
}

/// What a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodKind {
    /// The user's own.
    App,
    /// A waypoint: Ambit itself serves in it.
    Waypoint {
        /// Name of the Gateway, in the pod's namespace.
        gateway: String,
    },
    /// The place of an `ambit run` or `ambit forward`; the session starts the command itself.
    Session {
        /// Name of the declared Pod or Deployment it stands in for, whose labels it has.
        stands_in_for: Option<String>,
    },
}

/// A process of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerPlan {
    /// Container name.
    pub name: String,
    /// Program and arguments; nothing means that the container waits for `ambit run`.
    pub command: Option<Vec<String>>,
    /// Environment, later entries win.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub working_dir: Option<PathBuf>,
    /// When it may get traffic; nothing means as soon as it runs.
    pub readiness: Option<Probe>,
    /// Ports it says it listens on.
    pub ports: Vec<ContainerPort>,
}

/// A port of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    /// Name that a Service's `targetPort` may use.
    pub name: Option<String>,
    /// Number.
    pub port: u16,
}

/// A readiness probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What is tried.
    pub kind: ProbeKind,
    /// Wait before the first try.
    pub initial_delay: Duration,
    /// Time from one try to the next.
    pub period: Duration,
    /// Time one try may take.
    pub timeout: Duration,
    /// Successes in a row that make it ready.
    pub success_threshold: u32,
    /// Failures in a row that make it unready.
    pub failure_threshold: u32,
}

/// What a probe tries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// GET; any status from 200 to 399 is success.
    Http {
        /// Path with its query.
        path: String,
        /// Port.
        port: u16,
        /// Extra headers.
        headers: Vec<(String, String)>,
    },
    /// Connect.
    Tcp {
        /// Port.
        port: u16,
    },
    /// Run in the pod; exit code 0 is success.
    Exec {
        /// Program and arguments.
        command: Vec<String>,
    },
}

/// What happens when a container ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestartPolicy {
    /// It is started again.
    #[default]
    Always,
    /// It is started again unless it exited with 0.
    OnFailure,
    /// It stays as it is.
    Never,
}

// === impl PodPlan ===

impl PodPlan {
    /// True if there is nothing to start until an `ambit run` takes the pod's place.
    #[must_use]
    pub fn waits(&self) -> bool {
        matches!(self.kind, PodKind::App) && self.containers.iter().all(|container| container.command.is_none())
    }
}
