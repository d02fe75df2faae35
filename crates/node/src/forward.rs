//! `ambit forward`: connections of a loopback listener, handed to the mesh as they are; no byte is copied.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};

use crate::control::{ClientError, ControlClient, ForwardRequest, Request, Response};

/// Forwarding ended.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// Others could use the identity.
    #[error(
        "`{0}` isn't a loopback address: whoever can reach it would enter the mesh with your identity; listen on \
             127.0.0.1"
    )]
    NotLoopback(IpAddr),
    /// The listener.
    #[error("can't listen on `{address}`: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The mesh.
    #[error(transparent)]
    Mesh(#[from] ClientError),
    /// Accepting or waiting.
    #[error("can't accept connections: {0}")]
    Accept(#[from] io::Error),
}

/// A listener that the mesh agreed to.
#[derive(Debug)]
pub struct Forwarder {
    listener: TcpListener,
    connection: ControlClient,
    /// What the mesh says about it, for the user.
    pub message: Option<String>,
}

/// Listens and asks the mesh.
///
/// # Errors
/// When the address isn't loopback or taken, or the mesh refuses.
pub fn open(connection: ControlClient, request: ForwardRequest, listen: SocketAddr) -> Result<Forwarder, ForwardError> {
    if !listen.ip().is_loopback() {
        return Err(ForwardError::NotLoopback(listen.ip()));
    }
    let listener = TcpListener::bind(listen).map_err(|source| ForwardError::Listen { address: listen, source })?;
    listener.set_nonblocking(true)?;
    let (Response::Ready { message }, _) = connection.call(&Request::Forward(request))? else {
        return Err(ClientError::Unexpected.into());
    };
    Ok(Forwarder { listener, connection, message })
}

// === impl Forwarder ===

impl Forwarder {
    /// Where it listens.
    ///
    /// # Errors
    /// When the kernel doesn't say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Hands connections over until the mesh ends.
    ///
    /// # Errors
    /// Always ends with one; [`ClientError::Ended`] is the usual.
    pub fn run(self) -> Result<std::convert::Infallible, ForwardError> {
        loop {
            let mut watched =
                [PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&self.connection, PollFlags::IN)];
            match poll(&mut watched, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
            if !watched[1].revents().is_empty() {
                self.connection.receive()?;
            }
            match self.listener.accept() {
                Ok((stream, peer)) => {
                    stream.set_nonblocking(true)?;
                    self.connection.send(&Request::Connection { peer }, &[stream.as_fd()])?;
                }
                // Nothing there any more: the connection was given up before it was accepted.
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
}
