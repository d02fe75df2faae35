//! A pod's network, with options that all its sockets get.

use std::{io, sync::Arc};

use ambit_hbone::Network;
use socket2::{Domain, Protocol, Socket, Type};

/// A pod's network whose sockets share their ports with those of another proxy.
#[derive(Debug)]
pub(crate) struct Shareable(pub(crate) Arc<dyn Network>);

impl Network for Shareable {
    fn socket(&self, domain: Domain, ty: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        let socket = self.0.socket(domain, ty, protocol)?;
        socket.set_reuse_port(true)?;
        Ok(socket)
    }
}

/// A pod's network whose sockets pass the rules that capture the pod's own.
#[derive(Debug)]
pub(crate) struct Marked {
    pub(crate) network: Arc<dyn Network>,
    pub(crate) mark: Option<u32>,
}

impl Network for Marked {
    fn socket(&self, domain: Domain, ty: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        let socket = self.network.socket(domain, ty, protocol)?;
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        Ok(socket)
    }
}
