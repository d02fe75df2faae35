//! The mesh's end.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::{FlockOperation, flock};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Request, Response, peer};
use crate::host::Owner;
use crate::limits::{CONTROL_CONNECTIONS, CONTROL_MESSAGE_BYTES, KILL_POLL, LOCK_PATIENCE};
use crate::packet;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// Accepts commands' connections. Removes its socket when dropped.
#[derive(Debug)]
pub struct ControlServer {
    socket: AsyncFd<OwnedFd>,
    path: PathBuf,
    owner: Owner,
    connections: Arc<Semaphore>,
    /// Held as long as the mesh runs: the kernel lets go of it however the mesh ends.
    _lock: File,
}

/// One command's connection.
#[derive(Debug)]
pub struct ControlConnection {
    socket: AsyncFd<OwnedFd>,
    _permit: OwnedSemaphorePermit,
}

/// The control socket can't be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another mesh of this name runs.
    #[error("a mesh of this name is already running (pid {pid}, `{}`); stop it, or give this one another name with `--mesh NAME`", path.display())]
    Running {
        /// Its host process; 0 if it didn't say.
        pid: u32,
        /// Its socket.
        path: PathBuf,
    },
    /// The folder is somebody else's or open to others.
    #[error("`{}` has to be a folder of this user's alone (mode 0700); remove it, or set `XDG_RUNTIME_DIR`", .0.display())]
    Folder(PathBuf),
    /// What the kernel said.
    #[error("can't make the control socket `{}`: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A message that isn't one.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The connection failed, or a message is longer than its limit.
    #[error("the control connection failed: {0}")]
    Io(#[from] io::Error),
    /// The other end speaks something else.
    #[error("the control connection carries something else than this version's messages: {0}")]
    Format(#[from] serde_json::Error),
}

// === impl ControlServer ===

impl ControlServer {
    /// Makes the socket (see [`super::socket_path`]). A socket that a killed mesh left is replaced; the lock beside it
    /// tells one from the other. Blocks up to [`LOCK_PATIENCE`]. Needs a tokio runtime.
    ///
    /// # Errors
    /// When a mesh of this name runs, the folder isn't safe, or the kernel refuses.
    pub fn bind(path: &Path, owner: Owner) -> Result<Self, BindError> {
        let io = |source| BindError::Io { path: path.to_owned(), source };
        let folder = path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io)?;
        if !is_private(folder, owner.uid) {
            return Err(BindError::Folder(folder.to_owned()));
        }
        let lock = take_lock(path, owner.host_pid)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let socket = listen(path).map_err(io)?;
        Ok(Self {
            socket: register(socket).map_err(io)?,
            path: path.to_owned(),
            owner,
            connections: Arc::new(Semaphore::new(CONTROL_CONNECTIONS)),
            _lock: lock,
        })
    }

    /// Where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next command's connection, the peer checked. Safe to cancel.
    ///
    /// # Errors
    /// When the kernel refuses for good.
    pub async fn accept(&self) -> io::Result<ControlConnection> {
        loop {
            let permit = Arc::clone(&self.connections).acquire_owned().await.map_err(io::Error::other)?;
            let socket = self
                .socket
                .async_io(Interest::READABLE, |socket| {
                    Ok(rustix::net::accept_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
                })
                .await?;
            match self.check_peer(socket.as_fd()) {
                Ok(()) => return Ok(ControlConnection { socket: register(socket)?, _permit: permit }),
                Err(reason) => {
                    tracing::warn!(reason, "refused a connection to the control socket");
                    let refusal = Response::Error { message: reason.to_owned() };
                    let _ = packet::send(&socket, &encode(&refusal)?, &[]);
                }
            }
        }
    }

    fn check_peer(&self, socket: BorrowedFd<'_>) -> Result<(), &'static str> {
        let (pid, uid) = peer::credentials(socket).map_err(|_| "the peer's user can't be told")?;
        if uid != self.owner.uid {
            return Err("the mesh belongs to another user; run the command as that user");
        }
        // The host's processes have no id in the mesh's process namespace; the mesh's own do. (As root without
        // namespaces, in a test, both have one.)
        if std::process::id() == 1 && pid != 0 {
            return Err("a program of the mesh must not command the mesh");
        }
        Ok(())
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = fs::remove_file(&self.path);
    }
}

/// A real folder, of that user, that nobody else can enter, in a folder in which nobody else can put another in its
/// place. `/tmp` is everybody's, so this isn't for granted.
fn is_private(folder: &Path, uid: u32) -> bool {
    let owned = |folder: &Path, others: u32| {
        fs::symlink_metadata(folder).is_ok_and(|metadata| {
            metadata.is_dir() && [0, uid].contains(&metadata.uid()) && metadata.permissions().mode() & others == 0
        })
    };
    owned(folder, 0o077) && folder.parent().is_some_and(|parent| owned(parent, 0o022))
}

fn take_lock(path: &Path, host_pid: u32) -> Result<File, BindError> {
    let io = |source| BindError::Io { path: path.to_owned(), source };
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path.with_extension("lock"))
        .map_err(io)?;
    // A mesh that was killed this moment lets go of it when its last process is gone.
    let deadline = Instant::now() + LOCK_PATIENCE;
    let mut locked = flock(&lock, FlockOperation::NonBlockingLockExclusive);
    while locked == Err(rustix::io::Errno::WOULDBLOCK) && Instant::now() < deadline {
        std::thread::sleep(KILL_POLL);
        locked = flock(&lock, FlockOperation::NonBlockingLockExclusive);
    }
    match locked {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let _ = lock.take(32).read_to_string(&mut text);
            return Err(BindError::Running { pid: text.trim().parse().unwrap_or(0), path: path.to_owned() });
        }
        Err(error) => return Err(io(error.into())),
    }
    lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{host_pid}")).map_err(io)?;
    Ok(lock)
}

fn listen(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

// === impl ControlConnection ===

impl ControlConnection {
    /// The next message with its file descriptors; `None` when the command has ended. Safe to cancel.
    ///
    /// # Errors
    /// When the message isn't one; the connection is of no more use then.
    pub async fn receive(&self) -> Result<Option<(Request, Vec<OwnedFd>)>, ProtocolError> {
        let (bytes, fds) = self
            .socket
            .async_io(Interest::READABLE, |socket| {
                let mut buffer = vec![0; CONTROL_MESSAGE_BYTES];
                let (length, fds) = packet::receive(socket, &mut buffer)?;
                buffer.truncate(length);
                Ok((buffer, fds))
            })
            .await?;
        if bytes.is_empty() {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(&bytes)?, fds)))
    }

    /// Sends an answer with file descriptors (at most [`crate::limits::MESSAGE_FDS`]).
    ///
    /// # Errors
    /// When the command is gone.
    pub async fn send(&self, response: &Response, fds: &[BorrowedFd<'_>]) -> Result<(), ProtocolError> {
        let bytes = encode(response)?;
        self.socket.async_io(Interest::WRITABLE, |socket| packet::send(socket, &bytes, fds)).await?;
        Ok(())
    }

    /// Sends a pod's namespaces: the answer to [`Request::Run`].
    ///
    /// # Errors
    /// When the command is gone or the namespaces can't be opened.
    pub async fn send_session(&self, namespace: &str, pod: &crate::pod::PodNamespaces) -> Result<(), ProtocolError> {
        let (info, fds) = crate::run::session_of(namespace, pod)?;
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        self.send(&Response::Session(info), &fds).await
    }

    /// Waits until the command has ended, without reading what it may still send.
    pub async fn closed(&self) {
        loop {
            let Ok(mut ready) = self.socket.ready(Interest::READABLE).await else { return };
            if ready.ready().is_read_closed() {
                return;
            }
            ready.clear_ready();
        }
    }
}

/// Watches a socket that does not block.
fn register(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: `OwnedFd` owns a valid descriptor, which nothing replaces or closes while `AsyncFd` holds it.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

pub(super) fn encode(message: &impl serde::Serialize) -> io::Result<Vec<u8>> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > CONTROL_MESSAGE_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message is longer than its limit"));
    }
    Ok(bytes)
}
