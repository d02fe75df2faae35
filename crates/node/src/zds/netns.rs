//! A pod's network namespace that came as a descriptor.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ambit_hbone::Network;
use socket2::{Domain, Protocol, Socket, Type};

use crate::links::Links;
use crate::namespace::{self, Identifier, Kind};

/// Lets a connection that waits at a closed listener go on at another one of its `SO_REUSEPORT` group.
const MIGRATE_REQUESTS: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

/// A network namespace in which sockets can be made. Two are equal if they are of the same namespace.
#[derive(Debug)]
pub struct NetworkNamespace {
    namespace: OwnedFd,
    home: Arc<OwnedFd>,
    identifier: Identifier,
}

/// This process lacks what it takes to serve pods.
#[derive(Debug, thiserror::Error)]
#[error(
    "this process may not {action}: {source}; serving pods needs the capabilities CAP_SYS_ADMIN, CAP_NET_ADMIN and \
     CAP_NET_RAW"
)]
pub struct PrivilegeError {
    action: &'static str,
    source: io::Error,
}

/// Tries what serving pods takes: entering a network namespace (this process's own) and marking a socket.
///
/// # Errors
/// When the kernel refuses one of them; the message names the capabilities.
pub fn check_privileges(mark: u32) -> Result<(), PrivilegeError> {
    let failed = |action| move |source| PrivilegeError { action, source };
    let home = home().map_err(failed("open its own network namespace"))?;
    let enter = || namespace::inside_network(home.as_fd(), home.as_fd(), || Ok(()));
    enter().map_err(failed("enter a network namespace"))?;
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).map_err(failed("make a socket"))?;
    socket.set_mark(mark).map_err(failed("mark a socket"))?;
    socket.set_ip_transparent_v4(true).map_err(failed("make a socket transparent"))
}

/// The same for the network namespace that this thread is in.
///
/// # Errors
/// When the kernel doesn't tell.
pub fn own_addresses() -> io::Result<Vec<IpAddr>> {
    Links::open().and_then(|mut links| links.addresses()).map_err(io::Error::other)
}

/// This process's own network namespace, to return to.
pub(super) fn home() -> io::Result<Arc<OwnedFd>> {
    namespace::open(Kind::Network).map(Arc::new)
}

// === impl NetworkNamespace ===

impl NetworkNamespace {
    /// Takes a descriptor for a pod's network namespace; `home` is this process's own.
    ///
    /// # Errors
    /// When it is no network namespace that this process may enter.
    pub(super) fn new(namespace: OwnedFd, home: Arc<OwnedFd>) -> io::Result<Self> {
        let identifier = Identifier::of_fd(namespace.as_fd())?;
        let network = Self { namespace, home, identifier };
        network.inside(|| Ok(()))?;
        Ok(network)
    }

    /// Has the kernel pass on connections that wait at a listener when that is closed, to the listener of the proxy that
    /// takes over. Where `/proc/sys` is read-only this fails, and then those few connections are reset.
    ///
    /// # Errors
    /// When the setting can't be written.
    pub fn keep_waiting_connections(&self) -> io::Result<()> {
        // Files below `/proc/sys/net` are those of the calling thread's network namespace.
        self.inside(|| std::fs::write(MIGRATE_REQUESTS, "1"))
    }

    /// The addresses of the pod, those of its loopback and those of single links apart. None if it has no network yet.
    ///
    /// # Errors
    /// When the kernel doesn't tell.
    pub fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        self.inside(own_addresses)
    }

    fn inside<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        namespace::inside_network(self.namespace.as_fd(), self.home.as_fd(), work)
    }
}

impl PartialEq for NetworkNamespace {
    fn eq(&self, other: &Self) -> bool {
        // The descriptors keep both namespaces alive, so no number can have been used again.
        self.identifier == other.identifier
    }
}

impl AsFd for NetworkNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

impl Network for NetworkNamespace {
    fn socket(&self, domain: Domain, ty: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        self.inside(|| Socket::new(domain, ty.nonblocking().cloexec(), protocol))
    }

    /// Sockets that share a port are numbered in the order they came, and the last takes the number of one that closes. So
    /// of two proxies the older has number 0, and this sends new connections to number 1. Where there is none, and once
    /// this one has closed, the kernel chooses as before.
    fn hand_over(&self, listener: BorrowedFd<'_>) {
        const RETURN_CONSTANT: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
        let mut instruction = libc::sock_filter { code: RETURN_CONSTANT, jt: 0, jf: 0, k: 1 };
        let program = libc::sock_fprog { len: 1, filter: &raw mut instruction };
        let Ok(length) = libc::socklen_t::try_from(size_of_val(&program)) else { return };
        // SAFETY: `program` lives through the call, is as long as said, and points to as many live instructions as it
        // says. The kernel copies them.
        let outcome = unsafe {
            libc::setsockopt(
                listener.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_REUSEPORT_CBPF,
                (&raw const program).cast(),
                length,
            )
        };
        if outcome != 0 {
            tracing::debug!(error = %io::Error::last_os_error(), "connections can't be steered to the next proxy");
        }
    }
}
