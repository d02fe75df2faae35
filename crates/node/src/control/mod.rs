//! The control socket: how `ambit run`, `ambit forward` and the like reach a running mesh of the same user.
//!
//! Sequenced packets over a unix socket; each is one JSON message, some with file descriptors. The folder is the owner's
//! alone (0700), the socket too (0600), and the peer's user id is checked. A peer inside the mesh's own process namespace
//! is refused: a workload must not ask for another workload's identity.

mod client;
pub(crate) mod peer;
mod server;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use client::{ClientError, ControlClient};
pub use server::{BindError, ControlConnection, ControlServer, ProtocolError};

/// The protocol's version; both ends have to speak the same.
pub const VERSION: u32 = 1;

/// What a command asks of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// A pod for a program that the command itself runs in it; it lasts as long as the connection.
    Run(RunRequest),
    /// Connections into the mesh with an identity; each follows as [`Request::Connection`].
    Forward(ForwardRequest),
    /// An accepted TCP connection, as the message's file descriptor.
    Connection {
        /// Who opened it.
        peer: SocketAddr,
    },
    /// The mesh should stop.
    Stop,
    /// Stop one pod, for good.
    StopPod {
        /// `namespace/name`.
        pod: String,
    },
    /// What the mesh is doing.
    Status,
}

/// Arguments of `ambit run`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunRequest {
    /// [`VERSION`].
    pub version: u32,
    /// The pod's namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Its name: an existing pod without a command, or a new one. Made up if none.
    pub name: Option<String>,
    /// A new pod's labels.
    pub labels: BTreeMap<String, String>,
    /// In the mesh; otherwise outside of it.
    pub mesh: bool,
}

/// Arguments of `ambit forward`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ForwardRequest {
    /// [`VERSION`].
    pub version: u32,
    /// The service's namespace.
    pub namespace: String,
    /// The service's name.
    pub service: String,
    /// The service's port.
    pub port: u16,
    /// As whom: namespace and service account.
    pub identity: Option<(String, String)>,
}

/// What the mesh answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Response {
    /// A pod, with its namespaces as file descriptors (see [`crate::run::Session`]).
    Session(SessionInfo),
    /// Done, or ready for what follows.
    Ready {
        /// What to tell the user, if anything.
        message: Option<String>,
    },
    /// What the mesh is doing.
    Status(serde_json::Value),
    /// Refused, and why.
    Error {
        /// For the user to read.
        message: String,
    },
}

/// A session's pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionInfo {
    /// The pod's name.
    pub pod: String,
    /// Its namespace.
    pub namespace: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// The first of the file descriptors is a user namespace.
    pub user_namespace: bool,
}

/// Where a mesh's control socket is: `${XDG_RUNTIME_DIR:-/tmp/ambit-$UID}/ambit/<mesh>.sock`.
pub fn socket_path(mesh: &str) -> PathBuf {
    socket_folder().join(format!("{mesh}.sock"))
}

/// The folder of the control sockets: to be hidden from pods.
pub fn socket_folder() -> PathBuf {
    let uid = rustix::process::geteuid().as_raw();
    let base = std::env::var_os("XDG_RUNTIME_DIR")
        .filter(|folder| !folder.is_empty())
        .map_or_else(|| PathBuf::from(format!("/tmp/ambit-{uid}")), PathBuf::from);
    base.join("ambit")
}
