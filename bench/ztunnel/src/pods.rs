//! The stage: two pods of the mesh, two that are outside of it, and one per node proxy, all on one bridge.

use std::{
    fs, io,
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::ScopedJoinHandle,
    time::{Duration, Instant},
};

use ambit_hbone::Network;
use ambit_node::{Capture, Node, PodDns, PodNamespaces, PodNetworkSpec};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where the client's pod is.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
/// Where the server's pod is.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 2);

/// Which local ports the pods' sockets may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ports {
    /// 45,000 local ports, used again as soon as the protocol allows: a load generator shouldn't be what runs out.
    /// 15001, 15006 and 15008 are none of them, or a proxy's listeners couldn't be made.
    Wide,
    /// The client's are [`Ports::Wide`], the server's as the kernel has them: 28,232.
    WideForClient,
}

/// A pod, and a way into its network.
pub(crate) struct Pod {
    network: OwnedFd,
    namespaces: PodNamespaces,
}

/// What a server that runs beside a client and the client's side tell each other.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    stop: AtomicBool,
    ready: AtomicBool,
}

/// How long a server may take to have its listeners.
const SERVER_TIMEOUT: Duration = Duration::from_secs(5);

// === impl Beside ===

impl Beside {
    /// The listeners are there.
    pub(crate) fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// The server is to end.
    pub(crate) fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

// === impl Pod ===

impl Pod {
    pub(crate) fn new(node: &Node, name: &str, ip: Ipv4Addr, capture: Capture) -> Result<Self, String> {
        let spec = PodNetworkSpec {
            name: name.to_owned(),
            ip,
            capture,
            dns: PodDns { nameserver: Ipv4Addr::new(10, 96, 0, 10), search: Vec::new(), ndots: 1 },
            hosts: Vec::new(),
            hide: Vec::new(),
        };
        let namespaces = node.create_pod(&spec).map_err(|error| format!("pod `{name}`: {error}"))?;
        let network =
            namespaces.network().as_fd().try_clone_to_owned().map_err(|error| format!("pod `{name}`: {error}"))?;
        Ok(Self { network, namespaces })
    }

    /// The file that stands for its network namespace.
    pub(crate) fn network(&self) -> &OwnedFd {
        &self.network
    }

    /// Makes sockets in its network.
    pub(crate) fn sockets(&self) -> Arc<dyn Network> {
        self.namespaces.network()
    }

    /// Runs `work` on a thread of its own in the pod's network; every socket it makes is the pod's.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        std::thread::scope(|scope| self.spawn(scope, work).join().unwrap_or_else(|_| Err(failed())))
    }

    /// Begins `work` on a thread of its own in the pod's network.
    pub(crate) fn spawn<'scope, T: Send + 'scope>(
        &'scope self,
        scope: &'scope std::thread::Scope<'scope, '_>,
        work: impl FnOnce() -> io::Result<T> + Send + 'scope,
    ) -> ScopedJoinHandle<'scope, io::Result<T>> {
        scope.spawn(move || {
            move_into_link_name_space(self.network.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        })
    }

    /// Runs `serve` in the pod's network and, once it's ready, `act` here; the server ends after that.
    pub(crate) fn run_beside<T>(
        &self,
        serve: impl FnOnce(&Beside) -> io::Result<()> + Send,
        act: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let beside = Beside::default();
        std::thread::scope(|scope| {
            let serving = self.spawn(scope, || serve(&beside));
            let deadline = Instant::now() + SERVER_TIMEOUT;
            while !beside.ready.load(Ordering::Acquire) && !serving.is_finished() && Instant::now() < deadline {
                std::thread::yield_now();
            }
            let result = if serving.is_finished() { None } else { Some(act()) };
            beside.stop.store(true, Ordering::Relaxed);
            match (serving.join(), result) {
                (Ok(Ok(())), Some(result)) => result,
                (Ok(Err(error)), _) => Err(io::Error::other(format!("the server: {error}"))),
                (Ok(Ok(())), None) | (Err(_), _) => Err(failed()),
            }
        })
    }

    /// Runs `ip` (iproute2) with these arguments in the pod's network.
    pub(crate) fn ip(&self, arguments: &[&str]) -> io::Result<()> {
        self.run(|| {
            let status = std::process::Command::new("ip").args(arguments).status()?;
            if status.success() {
                Ok(())
            } else {
                Err(io::Error::other(format!("`ip {}` failed", arguments.join(" "))))
            }
        })
    }

    /// Gives the pod's sockets [`Ports::Wide`].
    pub(crate) fn widen_ports(&self) -> io::Result<()> {
        self.run(|| {
            fs::write("/proc/sys/net/ipv4/ip_local_port_range", "20000 65000")?;
            fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")
        })
    }

    /// Ends what runs in it and removes its link.
    pub(crate) async fn remove(self) -> Result<(), String> {
        self.namespaces.destroy(Duration::ZERO).await.map_err(|error| error.to_string())
    }
}

fn failed() -> io::Error {
    io::Error::other("a thread of the benchmark panicked")
}
