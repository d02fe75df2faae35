//! A pod: network, mount and host name namespaces, joined to the node's bridge.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ambit_hbone::Network;
use rustix::process::Signal;
use rustix::thread::UnshareFlags;
use socket2::{Domain, Protocol, Socket, Type};

use crate::files;
use crate::limits::{KILL_POLL, KILL_ROUNDS};
use crate::links::{LinkError, Links};
use crate::namespace::{self, Kind};
use crate::node::{self, GATEWAY, Node, POD_NETWORK, POD_PREFIX_LENGTH};
use crate::rules::{self, CONNECTION_MARK, LOCAL_TABLE, MARK_MASK, MARK_RULE_PRIORITY};

/// The pod's own end of its link.
const POD_LINK: &str = "eth0";

/// What of a pod's traffic goes to the node proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// Everything, in and out: the pod is in the mesh (`spec/control-plane.md` 5.4).
    Mesh,
    /// DNS, and what leaves the pod network; to other pods it speaks as it is. The pod is outside of the mesh.
    Outside,
    /// Nothing: a waypoint's pod, in which only the node process has sockets.
    None,
}

/// How names are found in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodDns {
    /// The address that programs ask; captured, so nothing needs to be there.
    pub nameserver: Ipv4Addr,
    /// Search domains, in order.
    pub search: Vec<String>,
    /// Names with fewer dots are tried with the search domains first.
    pub ndots: u8,
}

/// What a pod's namespaces are made from.
#[derive(Clone, Debug)]
pub struct PodNetworkSpec {
    /// The pod's name, which becomes its host name.
    pub name: String,
    /// Its address, from 10.244.0.0/16.
    pub ip: Ipv4Addr,
    /// What is captured.
    pub capture: Capture,
    /// `/etc/resolv.conf`.
    pub dns: PodDns,
    /// Further lines of `/etc/hosts`, after `localhost` and the pod's own.
    pub hosts: Vec<(IpAddr, Vec<String>)>,
    /// Folders that programs in the pod don't get to see (an empty one is mounted over each that exists): the mesh's
    /// control socket and its keys, which belong to the same user.
    pub hide: Vec<PathBuf>,
}

/// A pod's namespaces. They last until [`PodNamespaces::destroy`] or drop, which also end the processes in it.
#[derive(Debug)]
pub struct PodNamespaces {
    node: Node,
    name: String,
    ip: Ipv4Addr,
    link: String,
    network: Arc<PodNetwork>,
    mount: OwnedFd,
    host_name: OwnedFd,
    /// Its link exists and is this pod's: a pod whose address was taken must not remove the other one's.
    linked: AtomicBool,
}

/// Sockets in a pod's network.
#[derive(Debug)]
pub struct PodNetwork {
    node: Node,
    namespace: OwnedFd,
}

/// A pod's namespaces couldn't be made.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// The address isn't usable.
    #[error("`{0}` is no pod address: it has to be one of 10.244.0.2 to 10.244.255.254")]
    Address(Ipv4Addr),
    /// The host name isn't usable.
    #[error("`{0}` is no host name: it has to be 1 to 63 letters, digits, `-` and `.`")]
    HostName(String),
    /// A namespace.
    #[error(
        "the kernel refuses a pod's namespaces: {0}; look at `sysctl user.max_net_namespaces` and \
             `user.max_mnt_namespaces`"
    )]
    Namespace(#[source] io::Error),
    /// Its private files.
    #[error("can't put a pod's own files in place ({what}): {source}")]
    Files {
        /// Which step.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its link, addresses, routes or redirection.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The thread that makes it.
    #[error("the thread that makes a pod failed")]
    Thread,
}

// === impl PodNamespaces ===

/// Makes a pod on a thread of its own, which ends with other namespaces than it began with and so is of no further use.
pub(crate) fn create(node: &Node, spec: &PodNetworkSpec) -> Result<PodNamespaces, PodError> {
    let link = link_name(spec.ip)?;
    if !is_host_name(&spec.name) {
        return Err(PodError::HostName(spec.name.clone()));
    }
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("pod".to_owned())
            .spawn_scoped(scope, || create_here(node, spec, link))
            .map_err(PodError::Namespace)?
            .join()
            .unwrap_or(Err(PodError::Thread))
    })
}

fn create_here(node: &Node, spec: &PodNetworkSpec, link: String) -> Result<PodNamespaces, PodError> {
    namespace::unshare(UnshareFlags::NEWNET | UnshareFlags::NEWNS | UnshareFlags::NEWUTS)
        .map_err(PodError::Namespace)?;
    let open = |kind| namespace::open(kind).map_err(PodError::Namespace);
    // From here on dropping it cleans up.
    let pod = PodNamespaces {
        node: node.clone(),
        name: spec.name.clone(),
        ip: spec.ip,
        network: Arc::new(PodNetwork { node: node.clone(), namespace: open(Kind::Network)? }),
        mount: open(Kind::Mount)?,
        host_name: open(Kind::HostName)?,
        link,
        linked: AtomicBool::new(false),
    };
    // Before the link exists: there's no moment in which traffic isn't captured.
    rules::apply(&rules::tables(spec.capture))?;
    node.links().add_veth(&pod.link, node.bridge(), (POD_LINK, pod.ip), pod.network.namespace.as_raw_fd())?;
    pod.linked.store(true, Ordering::Relaxed);
    configure_links(spec)?;
    rustix::system::sethostname(spec.name.as_bytes()).map_err(|error| PodError::Namespace(error.into()))?;
    files::put_in_place(spec)?;
    Ok(pod)
}

fn configure_links(spec: &PodNetworkSpec) -> Result<(), LinkError> {
    let mut links = Links::open()?;
    let loopback = links.index("lo")?;
    links.up(loopback)?;
    let index = links.index(POD_LINK)?;
    links.up(index)?;
    links.add_address(index, spec.ip, POD_PREFIX_LENGTH)?;
    links.add_default_route(GATEWAY, index)?;
    if spec.capture == Capture::Mesh {
        links.add_mark_rule(CONNECTION_MARK, MARK_MASK, LOCAL_TABLE, MARK_RULE_PRIORITY)?;
        links.add_local_route(LOCAL_TABLE, loopback)?;
    }
    Ok(())
}

/// The node's end of a pod's link: named after the address, so that no two pods share one and a taken address shows.
fn link_name(ip: Ipv4Addr) -> Result<String, PodError> {
    let mask = u32::MAX << (32 - u32::from(POD_PREFIX_LENGTH));
    let host = ip.to_bits() & !mask;
    if ip.to_bits() & mask != POD_NETWORK.to_bits() || ip == GATEWAY || host == 0 || host == !mask {
        return Err(PodError::Address(ip));
    }
    Ok(format!("pod{host:04x}"))
}

fn is_host_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.')
}

impl PodNamespaces {
    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The pod's address.
    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// The name of the node's end of its link.
    pub fn link(&self) -> &str {
        &self.link
    }

    /// Makes sockets in the pod's network.
    pub fn network(&self) -> Arc<PodNetwork> {
        Arc::clone(&self.network)
    }

    /// Ends every process in the pod (asks, waits up to `grace`, then insists) and removes its link. Sockets that the
    /// node process made in it keep the network namespace itself alive until they're closed.
    ///
    /// # Errors
    /// When a process doesn't end, or the kernel doesn't answer.
    pub async fn destroy(&self, grace: Duration) -> io::Result<()> {
        let deadline = Instant::now() + grace;
        self.signal_all(Signal::TERM)?;
        while Instant::now() < deadline && !self.processes()?.is_empty() {
            tokio::time::sleep(KILL_POLL).await;
        }
        for _ in 0..KILL_ROUNDS {
            // Again and again: a process may have forked while they were listed.
            if self.signal_all(Signal::KILL)? == 0 {
                return self.remove_link_aside().await;
            }
            tokio::time::sleep(KILL_POLL).await;
        }
        self.remove_link_aside().await?;
        Err(io::Error::other(format!("processes of pod `{}` don't end", self.name)))
    }

    fn signal_all(&self, signal: Signal) -> io::Result<usize> {
        let processes = self.processes()?;
        for pid in &processes {
            node::signal(*pid, signal);
        }
        Ok(processes.len())
    }

    fn processes(&self) -> io::Result<Vec<rustix::process::Pid>> {
        self.node.processes().in_network(self.network.namespace.as_fd())
    }

    /// The kernel takes some tens of milliseconds for it, which no worker of the runtime should wait.
    async fn remove_link_aside(&self) -> io::Result<()> {
        if !self.linked.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let (node, link) = (self.node.clone(), self.link.clone());
        tokio::task::spawn_blocking(move || node.links().remove(&link))
            .await
            .map_err(io::Error::other)?
            .map_err(io::Error::other)
    }

    pub(crate) fn mount(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }

    pub(crate) fn host_name(&self) -> BorrowedFd<'_> {
        self.host_name.as_fd()
    }

    pub(crate) fn network_namespace(&self) -> BorrowedFd<'_> {
        self.network.namespace.as_fd()
    }

    pub(crate) fn node(&self) -> &Node {
        &self.node
    }
}

impl Drop for PodNamespaces {
    fn drop(&mut self) {
        // After `destroy`, or when the whole mesh ends and the kernel removes everything at once.
        if !self.linked.swap(false, Ordering::Relaxed) || self.node.is_ending() {
            return;
        }
        // Best effort: what forked meanwhile goes with the mesh.
        let _ = self.signal_all(Signal::KILL);
        if let Err(error) = self.node.links().remove(&self.link) {
            tracing::warn!(pod = self.name, %error, "a pod's link stays until the mesh ends");
        }
    }
}

// === impl PodNetwork ===

impl Network for PodNetwork {
    fn socket(&self, domain: Domain, ty: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        namespace::inside_network(self.namespace.as_fd(), self.node.home(), || {
            Socket::new(domain, ty.nonblocking().cloexec(), protocol)
        })
    }
}

/// The network namespace's file, to hand it to a node proxy or to enter it.
impl AsFd for PodNetwork {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pod_addresses_have_a_link() {
        assert_eq!(link_name(Ipv4Addr::new(10, 244, 1, 2)).expect("in the network"), "pod0102");
        for wrong in ["10.244.0.0", "10.244.0.1", "10.244.255.255", "10.245.0.2", "127.0.0.1"] {
            assert!(link_name(wrong.parse().expect("an address")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn host_names_hold_nothing_that_breaks_a_file() {
        assert!(is_host_name("mlflow-0.a"));
        for wrong in ["", "a b", "a\nb", &"x".repeat(64)] {
            assert!(!is_host_name(wrong), "{wrong}");
        }
    }
}
