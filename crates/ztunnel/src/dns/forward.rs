//! Asks the host's resolvers about names that aren't the mesh's. The client's query travels as it is, under an id and
//! from a port that nobody can guess; only an answer to that very question from that very resolver is believed.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ambit_hbone::{
    Network,
    socket::{self, ConnectOptions},
};
use hickory_proto::op::{Message, Query};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::answer::answers;
use crate::limits::{DNS_UPSTREAM_TIMEOUT, MAX_DNS_STRAY_ANSWERS, MAX_DNS_UPSTREAMS};

/// How the client asked; it is asked on in the same way, so a cut answer makes the client come back over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// The answer to a parsed query and the bytes it came in, from the first resolver that has one.
pub(crate) async fn forward(
    host: &dyn Network,
    upstreams: &[SocketAddr],
    transport: Transport,
    request: &Message,
    packet: &[u8],
) -> Option<Vec<u8>> {
    let query = request.queries.first()?;
    for upstream in upstreams.iter().take(MAX_DNS_UPSTREAMS) {
        // hickory draws the id from the operating system's random numbers.
        let id = Message::query().metadata.id;
        let mut asked = packet.to_vec();
        asked.get_mut(..2)?.copy_from_slice(&id.to_be_bytes());
        let exchange = async {
            match transport {
                Transport::Udp => over_udp(host, *upstream, &asked, id, query).await,
                Transport::Tcp => over_tcp(host, *upstream, &asked, id, query).await,
            }
        };
        match timeout(DNS_UPSTREAM_TIMEOUT, exchange).await {
            Ok(Ok(mut answer)) => {
                answer.get_mut(..2)?.copy_from_slice(&request.metadata.id.to_be_bytes());
                return Some(answer);
            }
            Ok(Err(error)) => tracing::debug!(target: "dns", %upstream, %error, "resolver failed"),
            Err(_) => tracing::debug!(target: "dns", %upstream, "resolver did not answer in time"),
        }
    }
    None
}

async fn over_udp(
    host: &dyn Network,
    upstream: SocketAddr,
    asked: &[u8],
    id: u16,
    query: &Query,
) -> io::Result<Vec<u8>> {
    let any = match upstream {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = socket::udp(host, any, None)?;
    // Connected: the kernel drops what comes from anyone else.
    socket.connect(upstream).await?;
    socket.send(asked).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    for _ in 0..MAX_DNS_STRAY_ANSWERS {
        let length = socket.recv(&mut buffer).await?;
        if answers(&buffer[..length], id, query) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "only answers to other questions arrived"))
}

async fn over_tcp(
    host: &dyn Network,
    upstream: SocketAddr,
    asked: &[u8],
    id: u16,
    query: &Query,
) -> io::Result<Vec<u8>> {
    let mut stream = socket::connect(host, upstream, &ConnectOptions::default()).await?;
    write_framed(&mut stream, asked).await?;
    match read_framed(&mut stream).await? {
        Some(answer) if answers(&answer, id, query) => Ok(answer),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no answer to the question")),
    }
}

/// Reads one message behind its two length bytes; nothing at the end of the stream.
pub(crate) async fn read_framed(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// Writes one message behind its two length bytes, in one segment if it fits.
pub(crate) async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a DNS message is at most 65535 bytes"))?;
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}
