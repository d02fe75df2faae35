//! The unix `SOCK_SEQPACKET` socket that ZDS is spoken over.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::limits::ZDS_MESSAGE_BYTES;
use crate::packet;

/// Connections the kernel keeps until they are accepted.
const BACKLOG: i32 = 16;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    socket: AsyncFd<OwnedFd>,
}

/// A listening socket. Its file is removed when it is dropped.
#[derive(Debug)]
pub(super) struct Listener {
    socket: AsyncFd<OwnedFd>,
    path: PathBuf,
}

// === impl Connection ===

impl Connection {
    /// Connects. Local, so it doesn't wait: a listener without room refuses.
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let socket = socket()?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self { socket: register(socket)? })
    }

    /// Sends one message, with at most one file. Safe to cancel.
    pub(super) async fn send(&self, message: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let files: &[BorrowedFd<'_>] = match &file {
            Some(file) => std::slice::from_ref(file),
            None => &[],
        };
        self.socket.async_io(Interest::WRITABLE, |socket| packet::send(socket, message, files)).await
    }

    /// The next message; nothing when the other end is gone. A message longer than [`ZDS_MESSAGE_BYTES`] is an error.
    /// Safe to cancel.
    pub(super) async fn receive(&self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        let mut buffer = [0; ZDS_MESSAGE_BYTES];
        let (length, files) =
            self.socket.async_io(Interest::READABLE, |socket| packet::receive(socket, &mut buffer)).await?;
        // An empty packet looks like the end. None of the protocol's messages is empty.
        if length == 0 { Ok(None) } else { Ok(Some((buffer[..length].to_vec(), files))) }
    }

    /// The user at the other end.
    pub(super) fn peer_uid(&self) -> io::Result<u32> {
        crate::control::peer::credentials(self.socket.get_ref()).map(|(_, uid)| uid)
    }
}

// === impl Listener ===

impl Listener {
    /// Listens at `path`, for this user only. A socket that nobody serves any more is replaced.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
        }
        remove_stale(path)?;
        let socket = socket()?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        // Nobody can connect before `listen`.
        rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(Self { socket: register(socket)?, path: path.to_owned() })
    }

    /// The next connection. Safe to cancel.
    pub(super) async fn accept(&self) -> io::Result<Connection> {
        let accept = |socket: &OwnedFd| {
            Ok(rustix::net::accept_with(socket.as_fd(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
        };
        let socket = self.socket.async_io(Interest::READABLE, accept).await?;
        Ok(Connection { socket: register(socket)? })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // A path that is gone needs no removal.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes a socket that nobody listens on. Anything else at that path is left alone, and `bind` reports it.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        _ => return Ok(()),
    }
    let probe = socket()?;
    match rustix::net::connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(rustix::io::Errno::CONNREFUSED) => fs::remove_file(path),
        _ => Ok(()),
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn register(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: `OwnedFd` owns a valid descriptor, which nothing replaces or closes while `AsyncFd` holds it.
    Ok(unsafe { AsyncFd::register(socket) }?)
}
