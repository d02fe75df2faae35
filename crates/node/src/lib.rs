//! Workload enrolment on one machine: the host and node processes, pods as namespaces, traffic capture, processes as
//! containers, and the control socket by which other commands join a running mesh.
//!
//! What it does:
//! - [`host::launch`] splits the program in two before it has threads: the *host process* stays where it was started and
//!   makes sockets there; the *node process* lives in namespaces of its own (a user namespace too unless root).
//! - [`Node`] is the node's network, and [`Node::create_pod`] makes a pod: network, mount and host name namespaces, a
//!   veth pair, the redirection of `spec/control-plane.md` 5.4.
//! - [`process`], [`supervise`] run programs in pods and decide readiness.
//! - [`control`], [`run`], [`forward`] are the two ends of the control socket.
//! - [`zds`] is how a node agent tells a node proxy which pods to serve, both ends.
//!
//! What it refuses to do: proxy traffic, know a policy or an identity, parse Kubernetes resources.
//!
//! It is the only crate of the workspace that holds `unsafe`: for fork, signal sets, `pre_exec` and memory that goes back
//! to the system, each with the reason why it is sound.

mod confine;
pub mod control;
mod files;
pub mod forward;
pub mod host;
pub mod isolate;
pub mod limits;
mod links;
pub mod memory;
mod namespace;
mod node;
mod packet;
pub mod pod;
mod probe;
pub mod process;
mod procfs;
mod reaper;
pub mod rules;
pub mod run;
mod signals;
pub mod supervise;
pub mod zds;

pub use host::{HostSockets, LaunchError, NodeProcess, Role, launch};
pub use node::{BRIDGE, GATEWAY, Node, NodeError, POD_NETWORK, POD_PREFIX_LENGTH};
pub use pod::{Capture, PodDns, PodError, PodNamespaces, PodNetwork, PodNetworkSpec};
pub use probe::{Probe, ProbeAction};
pub use process::{Exit, Process, ProcessSpec};
pub use reaper::Reaper;
pub use supervise::{ContainerSpec, RestartPolicy, Supervisor};
