//! Pods that come and go with an `ambit run` or `ambit forward`.

use ambit_mesh::inputs::Labels;

/// A pod for a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionRequest {
    /// Namespace.
    pub namespace: String,
    /// Pod name, or the name of a Deployment one of whose waiting pods it shall be; nothing for a generated one.
    pub name: Option<String>,
    /// Service account.
    pub service_account: String,
    /// Labels, besides those of the pod it stands in for.
    pub labels: Labels,
    /// False keeps it out of the mesh; true leaves that to the labels of its namespace.
    pub captured: bool,
    /// Without a name: it may take the place of the one declared pod of this namespace and service account that waits
    /// for a command.
    pub stand_in: bool,
}

/// Why a session can't have its pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// No such namespace.
    #[error("namespace `{0}` isn't declared; add a Namespace to the files, or name another with `-n`")]
    UnknownNamespace(String),
    /// No such service account.
    #[error("service account `{account}` doesn't exist in namespace `{namespace}`; it has {known}")]
    UnknownServiceAccount {
        /// Namespace.
        namespace: String,
        /// Service account.
        account: String,
        /// The service accounts there are, for the message.
        known: String,
    },
    /// The service account is a waypoint's identity.
    #[error("service account `{0}` is the identity of a waypoint, which nothing else may have")]
    WaypointIdentity(String),
    /// A pod of this name runs already.
    #[error("pod `{0}` runs already; choose another name, or leave the name out")]
    NameTaken(String),
    /// The declared pod of this name has another service account.
    #[error("pod `{pod}` is declared with service account `{declared}`, not `{asked}`; use `--sa {declared}`")]
    OtherServiceAccount {
        /// The pod, `namespace/name`.
        pod: String,
        /// As declared.
        declared: String,
        /// As asked for.
        asked: String,
    },
    /// Not a name a pod can have.
    #[error("`{0}` can't be a pod's name; use lower-case letters, digits and `-`, at most 63")]
    BadName(String),
    /// The limit on pods is reached, or the addresses are used up.
    #[error("no more pods fit: {0}")]
    TooMany(String),
    /// The control plane has stopped.
    #[error("the mesh is shutting down")]
    Stopped,
}
