//! The command's end: blocking, without threads, since `ambit run` forks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::server::encode;
use super::{Request, Response, peer};
use crate::limits::CONTROL_MESSAGE_BYTES;
use crate::packet;

/// A connection to a running mesh.
#[derive(Debug)]
pub struct ControlClient {
    socket: OwnedFd,
}

/// The mesh can't be reached, or refused.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no mesh is running (nothing listens on `{}`); start one with `ambit up`, or name it with `--mesh NAME`", .0.display())]
    NotRunning(PathBuf),
    /// The socket is somebody else's.
    #[error("the mesh at `{}` belongs to user {uid}; run the command as that user", path.display())]
    OtherUser {
        /// The socket.
        path: PathBuf,
        /// Who listens on it.
        uid: u32,
    },
    /// The connection failed.
    #[error("can't talk to the mesh: {0}")]
    Io(#[from] io::Error),
    /// The mesh is gone.
    #[error("the mesh ended")]
    Ended,
    /// It answered something else.
    #[error("the mesh answers something else than this version's messages: {0}")]
    Format(#[from] serde_json::Error),
    /// It refused.
    #[error("{0}")]
    Refused(String),
    /// It answered out of turn.
    #[error("the mesh gave an answer to something else; is it another version of this program?")]
    Unexpected,
}

// === impl ControlClient ===

impl ControlClient {
    /// Connects to the mesh whose socket is `path` (see [`super::socket_path`]).
    ///
    /// # Errors
    /// When no mesh runs there, or it's another user's.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let address = SocketAddrUnix::new(path).map_err(io::Error::from)?;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(io::Error::from)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => {
                let (_, uid) = peer::credentials(&socket)?;
                // Whoever else made this socket would get what is meant for the mesh.
                if uid != rustix::process::geteuid().as_raw() {
                    return Err(ClientError::OtherUser { path: path.to_owned(), uid });
                }
                Ok(Self { socket })
            }
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => {
                Err(ClientError::NotRunning(path.to_owned()))
            }
            Err(error) => Err(io::Error::from(error).into()),
        }
    }

    /// Sends a message with file descriptors.
    ///
    /// # Errors
    /// When the mesh is gone.
    pub fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        match packet::send(&self.socket, &encode(request)?, fds) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ClientError::Ended),
            other => Ok(other?),
        }
    }

    /// The next answer; a refusal is an error.
    ///
    /// # Errors
    /// When the mesh refuses, is gone, or answers something else.
    pub fn receive(&self) -> Result<(Response, Vec<OwnedFd>), ClientError> {
        let mut buffer = vec![0; CONTROL_MESSAGE_BYTES];
        let mut received = packet::receive(&self.socket, &mut buffer);
        // A mesh that closed without reading everything: said once, before what it had sent, which is the reason.
        if received.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset) {
            received = packet::receive(&self.socket, &mut buffer);
        }
        match received {
            Ok((0, _)) => Err(ClientError::Ended),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(ClientError::Ended),
            Err(error) => Err(error.into()),
            Ok((length, fds)) => match serde_json::from_slice(&buffer[..length])? {
                Response::Error { message } => Err(ClientError::Refused(message)),
                response => Ok((response, fds)),
            },
        }
    }

    /// Says that nothing more comes, and waits until the mesh closes the connection. A mesh that is gone or slow is no
    /// error: the connection ends with this process anyway.
    pub(crate) fn finish(self, timeout: Duration) {
        let bounded =
            rustix::net::sockopt::set_socket_timeout(&self.socket, rustix::net::sockopt::Timeout::Recv, Some(timeout));
        if bounded.is_ok() && rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write).is_ok() {
            while self.receive().is_ok() {}
        }
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// As [`Self::send`] and [`Self::receive`].
    pub fn call(&self, request: &Request) -> Result<(Response, Vec<OwnedFd>), ClientError> {
        // A refused peer finds its refusal even though the other end is closed already.
        match self.send(request, &[]) {
            Ok(()) | Err(ClientError::Ended) => self.receive(),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for ControlClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
