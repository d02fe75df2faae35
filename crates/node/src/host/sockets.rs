//! The node process's side: sockets made by the host process, and the signals it passes on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use ambit_hbone::Network;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::AsyncReadExt;

use crate::limits::{HOST_MESSAGE_BYTES, HOST_REPLY_TIMEOUT};
use crate::packet;

/// Makes sockets in the host's network: the way out of the mesh.
#[derive(Debug)]
pub struct HostSockets {
    requests: Mutex<Requests>,
}

/// The socket to the host process, and the number of the last request: an answer that comes after its asker gave up is
/// told from the next one's by it.
#[derive(Debug)]
struct Requests {
    socket: OwnedFd,
    last: u32,
}

/// Why the node process should stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// The host process got this signal.
    Signal(i32),
    /// The host process is gone.
    HostGone,
}

/// The stream of [`Shutdown`] reasons.
#[derive(Debug)]
pub struct ShutdownSignals {
    stream: Option<UnixStream>,
    reading: Option<tokio::net::UnixStream>,
}

/// What the node process asks of the host process.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HostRequest<'a> {
    /// A socket; answered with an error number, 0 and the socket if there's none.
    Socket { number: u32, domain: i32, ty: i32, protocol: i32 },
    /// A path to remove when the node process is gone; not answered.
    RemoveOnExit(&'a [u8]),
}

// === impl HostSockets ===

impl HostSockets {
    pub(super) fn new(requests: OwnedFd) -> io::Result<Self> {
        rustix::net::sockopt::set_socket_timeout(
            &requests,
            rustix::net::sockopt::Timeout::Recv,
            Some(HOST_REPLY_TIMEOUT),
        )?;
        Ok(Self { requests: Mutex::new(Requests { socket: requests, last: 0 }) })
    }

    /// Has the host process remove `path` when the node process is gone, however it ended.
    ///
    /// # Errors
    /// When the path is too long or the host process is gone.
    pub fn remove_on_exit(&self, path: &Path) -> io::Result<()> {
        let request = HostRequest::RemoveOnExit(path.as_os_str().as_bytes()).encode();
        if request.len() > HOST_MESSAGE_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "path is too long"));
        }
        packet::send(&self.requests.lock().unwrap_or_else(PoisonError::into_inner).socket, &request, &[])
    }
}

impl Network for HostSockets {
    fn socket(&self, domain: Domain, ty: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.last = requests.last.wrapping_add(1);
        let request = HostRequest::Socket {
            number: requests.last,
            domain: domain.into(),
            ty: ty.into(),
            protocol: protocol.map_or(0, i32::from),
        };
        packet::send(&requests.socket, &request.encode(), &[])?;
        loop {
            let mut reply = [0; 8];
            let (length, fds) = packet::receive(&requests.socket, &mut reply)?;
            if length != reply.len() {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the host process is gone"));
            }
            let [a, b, c, d, error @ ..] = reply;
            if u32::from_ne_bytes([a, b, c, d]) != requests.last {
                continue;
            }
            return match (i32::from_ne_bytes(error), fds.into_iter().next()) {
                (0, Some(fd)) => Ok(Socket::from(fd)),
                (0, None) => Err(io::Error::new(io::ErrorKind::InvalidData, "the host process sent no socket")),
                (error, _) => Err(io::Error::from_raw_os_error(error)),
            };
        }
    }
}

/// The host process's answer to [`HostRequest::Socket`]: internet sockets only.
pub(super) fn answer(requests: BorrowedFd<'_>, number: u32, domain: i32, ty: i32, protocol: i32) -> io::Result<()> {
    let allowed =
        [libc::AF_INET, libc::AF_INET6].contains(&domain) && [libc::SOCK_STREAM, libc::SOCK_DGRAM].contains(&ty);
    let made = if allowed {
        Socket::new(
            Domain::from(domain),
            Type::from(ty).nonblocking().cloexec(),
            (protocol != 0).then(|| Protocol::from(protocol)),
        )
    } else {
        Err(io::Error::from_raw_os_error(libc::EACCES))
    };
    match made {
        Ok(socket) => packet::send(requests, &reply(number, 0), &[socket.as_fd()]),
        Err(error) => packet::send(requests, &reply(number, error.raw_os_error().unwrap_or(libc::EIO)), &[]),
    }
}

fn reply(number: u32, error: i32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&number.to_ne_bytes());
    bytes[4..].copy_from_slice(&error.to_ne_bytes());
    bytes
}

// === impl ShutdownSignals ===

impl ShutdownSignals {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream: Some(stream), reading: None }
    }

    /// Waits for the next reason to stop. Needs a tokio runtime; safe to cancel.
    pub async fn next(&mut self) -> Shutdown {
        if let Some(stream) = self.stream.take() {
            self.reading = stream.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(stream)).ok();
        }
        let Some(reading) = &mut self.reading else { return Shutdown::HostGone };
        match reading.read_u8().await {
            Ok(number) => Shutdown::Signal(i32::from(number)),
            Err(_) => Shutdown::HostGone,
        }
    }
}

// === impl HostRequest ===

impl<'a> HostRequest<'a> {
    const SOCKET: u8 = 1;
    const REMOVE_ON_EXIT: u8 = 2;

    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Socket { number, domain, ty, protocol } => {
                let mut bytes = vec![Self::SOCKET];
                bytes.extend_from_slice(&number.to_ne_bytes());
                for number in [domain, ty, protocol] {
                    bytes.extend_from_slice(&number.to_ne_bytes());
                }
                bytes
            }
            Self::RemoveOnExit(path) => [&[Self::REMOVE_ON_EXIT], *path].concat(),
        }
    }

    pub(super) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        match *kind {
            Self::SOCKET => {
                let word = |at: usize| <[u8; 4]>::try_from(rest.get(at..at + 4)?).ok();
                (rest.len() == 16).then_some(())?;
                Some(Self::Socket {
                    number: u32::from_ne_bytes(word(0)?),
                    domain: i32::from_ne_bytes(word(4)?),
                    ty: i32::from_ne_bytes(word(8)?),
                    protocol: i32::from_ne_bytes(word(12)?),
                })
            }
            Self::REMOVE_ON_EXIT => Some(Self::RemoveOnExit(rest)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_wire_and_nothing_else_does() {
        for request in [
            HostRequest::Socket { number: 7, domain: libc::AF_INET, ty: libc::SOCK_STREAM, protocol: 0 },
            HostRequest::RemoveOnExit(b"/tmp/a"),
        ] {
            assert_eq!(HostRequest::decode(&request.encode()), Some(request));
        }
        for garbage in [&[][..], &[9], &[1, 2, 3], &[1; 14]] {
            assert_eq!(HostRequest::decode(garbage), None);
        }
    }

    #[test]
    fn only_internet_sockets_are_made() {
        let (ours, theirs) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .expect("socket pair");
        for (domain, ty, wanted) in
            [(libc::AF_INET, libc::SOCK_STREAM, 0), (libc::AF_NETLINK, libc::SOCK_RAW, libc::EACCES)]
        {
            answer(theirs.as_fd(), 7, domain, ty, 0).expect("answered");
            let mut bytes = [0; 8];
            let (_, fds) = packet::receive(&ours, &mut bytes).expect("a reply");
            assert_eq!(bytes, reply(7, wanted));
            assert_eq!(fds.len(), usize::from(wanted == 0));
        }
    }
}
