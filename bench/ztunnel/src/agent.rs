//! Stands in for the node's CNI agent towards one proxy: hands it its pods over ZDS (`spec/ztunnel.md` 11.1).
//!
//! The five message shapes are written by hand on purpose: both contenders are told the same bytes, by neither's own
//! code.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, accept, bind, listen, recv, sendmsg, socket_with, sockopt,
};

/// A pod as its agent names it.
pub(crate) struct Workload<'a> {
    pub(crate) name: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) network: &'a OwnedFd,
}

/// Listens for one proxy.
pub(crate) struct Agent {
    listener: OwnedFd,
}

/// A proxy that has its pods. Closing it tells the proxy that the agent is gone.
pub(crate) struct Attached {
    _connection: OwnedFd,
}

// === impl Agent ===

impl Agent {
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        bind(&listener, &SocketAddrUnix::new(path)?)?;
        listen(&listener, 8)?;
        Ok(Self { listener })
    }

    /// Waits for the proxy and gives it the pods. Returns once it has their listeners.
    pub(crate) fn attach(self, workloads: &[Workload<'_>], timeout: Duration) -> io::Result<Attached> {
        sockopt::set_socket_timeout(&self.listener, sockopt::Timeout::Recv, Some(timeout))?;
        let connection = accept(&self.listener)?;
        sockopt::set_socket_timeout(&connection, sockopt::Timeout::Recv, Some(timeout))?;
        let hello = receive(&connection)?;
        if !hello.starts_with(&[0x08]) {
            return Err(io::Error::other(format!("the proxy's ZDS hello is {hello:02x?}")));
        }
        for workload in workloads {
            send(&connection, &add(workload), Some(workload.network))?;
            acknowledged(&connection)?;
        }
        send(&connection, &field(3, &[]), None)?;
        acknowledged(&connection)?;
        Ok(Attached { _connection: connection })
    }
}

/// `WorkloadRequest.add`.
fn add(workload: &Workload<'_>) -> Vec<u8> {
    let uid = format!("{}-{}", workload.namespace, workload.name);
    let names = [workload.name, workload.namespace, workload.name];
    let info: Vec<u8> = (1..).zip(names).flat_map(|(number, value)| field(number, value.as_bytes())).collect();
    field(1, &[field(1, uid.as_bytes()), field(2, &info)].concat())
}

/// A length-delimited protobuf field.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = value.len();
    while length > 0x7f {
        bytes.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap_or_default());
    bytes.extend_from_slice(value);
    bytes
}

/// An empty `WorkloadResponse.ack`.
fn acknowledged(connection: &OwnedFd) -> io::Result<()> {
    match receive(connection)?.as_slice() {
        [0x0a, 0x00] => Ok(()),
        other => Err(io::Error::other(format!("the proxy refuses the pod: {}", String::from_utf8_lossy(other)))),
    }
}

fn receive(connection: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut buffer = [0; 4096];
    let (_, count) = recv(connection, &mut buffer[..], RecvFlags::empty())?;
    if count == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the proxy closed its ZDS connection"));
    }
    Ok(buffer[..count].to_vec())
}

fn send(connection: &OwnedFd, message: &[u8], descriptor: Option<&OwnedFd>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    sendmsg(connection, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_told_as_the_protocol_has_it() {
        let network = OwnedFd::from(std::fs::File::open("/dev/null").expect("a file"));
        let bytes = add(&Workload { name: "c", namespace: "d", network: &network });
        assert_eq!(bytes, b"\x0a\x10\x0a\x03d-c\x12\x09\x0a\x01c\x12\x01d\x1a\x01c");
        assert_eq!(field(1, &[0; 200])[..3], [0x0a, 0xc8, 0x01]);
    }
}
