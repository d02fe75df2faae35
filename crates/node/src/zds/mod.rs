//! ZDS: how a node agent tells a node proxy which pods to serve (`spec/ztunnel.md` 11.1, `spec/control-plane.md` 5.3).
//!
//! The agent listens on a unix `SOCK_SEQPACKET` socket; each node proxy connects. One packet is one protobuf message
//! ([`ambit_xds::zds`]), a pod's network namespace comes as `SCM_RIGHTS`. Every message of the agent is answered before
//! the next one.
//!
//! - [`Client`] is the proxy's end, for any agent that speaks the protocol (istio-cni does). What it should do with pods it
//!   hands to a [`Proxies`].
//! - [`Server`] is the agent's end, for any number of proxies: an upgrade has two at a time.
//! - [`NetworkNamespace`] is a pod's network, in which sockets can be made.

mod client;
#[doc(hidden)]
pub mod fuzzing;
mod message;
mod netns;
mod seqpacket;
mod server;
mod table;

pub use client::{Client, PendingPod, ProtocolError, Status};
pub use message::WorkloadInfo;
pub use netns::{NetworkNamespace, PrivilegeError, check_privileges, own_addresses};
pub use server::{AddError, Server};

/// What a node proxy does for the pods it is told of. Calls come one at a time, in the agent's order.
pub trait Proxies: Send + 'static {
    /// Serves a pod. When this returns, its listeners are there. Called again every
    /// [`ZDS_RETRY`](crate::limits::ZDS_RETRY) after a failure.
    ///
    /// # Errors
    /// Why it can't, for the agent's log.
    fn start(
        &mut self,
        uid: &str,
        info: &WorkloadInfo,
        network: &std::sync::Arc<NetworkNamespace>,
    ) -> Result<(), String>;

    /// Stops serving a pod that was started. It is gone, so nothing in it is worth waiting for.
    fn stop(&mut self, uid: &str);
}
