//! The node's own network: a namespace with the bridge that every pod hangs on.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::limits::{KILL_POLL, KILL_ROUNDS};
use crate::links::{LinkError, Links};
use crate::namespace::{self, Kind};
use crate::pod::{self, PodError, PodNamespaces, PodNetworkSpec};
use crate::procfs::ProcessTable;

/// The bridge's name.
pub const BRIDGE: &str = "ambit0";
/// The network of all pods.
pub const POD_NETWORK: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 0);
/// Its prefix length.
pub const POD_PREFIX_LENGTH: u8 = 16;
/// The node's own address in it: the pods' default route.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);

/// The node's network. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Node {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    home: OwnedFd,
    links: Mutex<Links>,
    bridge: u32,
    processes: ProcessTable,
    user_namespace: bool,
    uid: u32,
    ending: AtomicBool,
}

/// The node's network couldn't be made.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A link, address or route.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A namespace file or `/proc`.
    #[error("can't read this process's namespaces from `/proc`: {0}")]
    Proc(#[from] io::Error),
}

// === impl Node ===

impl Node {
    /// Makes the bridge in this process's network namespace, which has to be the node process's own.
    ///
    /// # Errors
    /// When the kernel refuses; the message says what to change.
    pub fn new(owner: crate::host::Owner) -> Result<Self, NodeError> {
        let mut links = Links::open()?;
        let loopback = links.index("lo")?;
        links.up(loopback)?;
        let bridge = links.add_bridge(BRIDGE, GATEWAY)?;
        links.add_address(bridge, GATEWAY, POD_PREFIX_LENGTH)?;
        // Pods reach the outside through the node process only. Where `/proc/sys` can't be written nothing is lost: the
        // namespace has no link that leads out.
        let _ = fs::write("/proc/sys/net/ipv4/ip_forward", "0");
        Ok(Self {
            inner: Arc::new(Inner {
                home: namespace::open(Kind::Network)?,
                links: Mutex::new(links),
                bridge,
                processes: ProcessTable::of_this_process()?,
                user_namespace: owner.user_namespace,
                uid: owner.uid,
                ending: AtomicBool::new(false),
            }),
        })
    }

    /// Makes a pod's namespaces, its link and its redirection. Blocks for some milliseconds: in async code call it from
    /// `spawn_blocking`, for several pods at once if you like.
    ///
    /// # Errors
    /// When the address isn't one of the pod network or taken, or the kernel refuses. Nothing is left then.
    pub fn create_pod(&self, spec: &PodNetworkSpec) -> Result<PodNamespaces, PodError> {
        pod::create(self, spec)
    }

    /// Ends every process of the mesh's process namespace but this one: asks, waits up to `grace`, then insists. For the
    /// end of the mesh; what remains goes with this process.
    pub async fn end_all_processes(&self, grace: Duration) {
        self.inner.ending.store(true, Ordering::Relaxed);
        // This process is PID 1 of its namespace, and -1 reaches all others in it, and none outside.
        if std::process::id() != 1 {
            return;
        }
        let deadline = Instant::now() + grace;
        let _ = signal_all(Signal::TERM);
        while Instant::now() < deadline {
            if self.inner.processes.others().is_ok_and(|others| others.is_empty()) {
                return;
            }
            tokio::time::sleep(KILL_POLL).await;
        }
        for _ in 0..KILL_ROUNDS {
            if signal_all(Signal::KILL).is_err() {
                return;
            }
            if self.inner.processes.others().is_ok_and(|others| others.is_empty()) {
                return;
            }
            tokio::time::sleep(KILL_POLL).await;
        }
    }

    pub(crate) fn links(&self) -> MutexGuard<'_, Links> {
        self.inner.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a link of that name exists in the node's network.
    ///
    /// # Errors
    /// When the kernel doesn't answer.
    pub fn has_link(&self, name: &str) -> Result<bool, LinkError> {
        self.links().exists(name)
    }

    pub(crate) fn bridge(&self) -> u32 {
        self.inner.bridge
    }

    pub(crate) fn home(&self) -> BorrowedFd<'_> {
        self.inner.home.as_fd()
    }

    pub(crate) fn processes(&self) -> &ProcessTable {
        &self.inner.processes
    }

    pub(crate) fn has_user_namespace(&self) -> bool {
        self.inner.user_namespace
    }

    /// The mesh ends: pods needn't clean up one by one.
    pub(crate) fn is_ending(&self) -> bool {
        self.inner.ending.load(Ordering::Relaxed)
    }

    pub(crate) fn uid(&self) -> u32 {
        self.inner.uid
    }
}

/// Signals every process of this process namespace but PID 1.
fn signal_all(signal: Signal) -> io::Result<()> {
    // SAFETY: `kill` has no precondition; the caller checked that this is PID 1 of a process namespace, so -1 means the
    // other processes of that namespace.
    match unsafe { libc::kill(-1, signal.as_raw()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A process of the mesh, as this process may signal it.
pub(crate) fn signal(pid: Pid, signal: Signal) -> bool {
    rustix::process::kill_process(pid, signal).is_ok()
}
