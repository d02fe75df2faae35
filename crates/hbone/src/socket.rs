//! Sockets in a network namespace.

use std::io;

use socket2::{Domain, Protocol, Socket, Type};

/// A network namespace in which sockets can be made. A socket stays in its namespace wherever it is used from, so
/// making it is the only step that must happen inside.
pub trait Network: Send + Sync + std::fmt::Debug + 'static {
    /// A new non-blocking, close-on-exec socket without any further option.
    ///
    /// # Errors
    /// When the kernel refuses, or the namespace is gone.
    fn socket(&self, domain: Domain, ty: Type, protocol: Option<Protocol>) -> io::Result<Socket>;
}

/// The namespace this process runs in.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostNetwork;

impl Network for HostNetwork {
    fn socket(&self, domain: Domain, ty: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        Socket::new(domain, ty.nonblocking().cloexec(), protocol)
    }
}
