//! Asks resolvers about names that aren't the mesh's, under an id, from a port and in a spelling that nobody can guess;
//! only an answer to that very question from that very resolver is believed.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ambit_hbone::{
    Network,
    socket::{self, ConnectOptions},
};
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::answer::{read_answer, wants_dnssec};
use crate::limits::{DNS_UPSTREAM_TIMEOUT, MAX_DNS_STRAY_ANSWERS, MAX_DNS_UDP_ANSWER_BYTES, MAX_DNS_UPSTREAMS};

/// How the client asked; it is asked on in the same way, so a cut answer makes the client come back over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// One question on its way to a resolver.
struct Asked {
    id: u16,
    query: Query,
    packet: Vec<u8>,
}

/// What UDP brought.
enum Datagram {
    Answer(Box<Message>),
    /// The right answer in another spelling: a resolver that changes it, or a forgery. TCP tells.
    Respelt,
}

/// The answer to a request with one question, from the first resolver that has one: one that fails or refuses is passed
/// over. With it, its size in bytes.
pub(crate) async fn forward(
    network: &dyn Network,
    upstreams: &[SocketAddr],
    transport: Transport,
    request: &Message,
) -> Option<(Message, usize)> {
    for upstream in upstreams.iter().take(MAX_DNS_UPSTREAMS) {
        let asked = Asked::new(request)?;
        let exchange = async {
            match transport {
                Transport::Udp => match over_udp(network, *upstream, &asked).await? {
                    (Datagram::Answer(answer), bytes) => Ok((*answer, bytes)),
                    (Datagram::Respelt, _) => over_tcp(network, *upstream, &asked).await,
                },
                Transport::Tcp => over_tcp(network, *upstream, &asked).await,
            }
        };
        match timeout(DNS_UPSTREAM_TIMEOUT, exchange).await {
            Ok(Ok((answer, bytes))) => match answer.metadata.response_code {
                ResponseCode::NoError | ResponseCode::NXDomain => return Some((answer, bytes)),
                code => tracing::debug!(target: "dns", %upstream, %code, "resolver has no answer"),
            },
            Ok(Err(error)) => tracing::debug!(target: "dns", %upstream, %error, "resolver failed"),
            Err(_) => tracing::debug!(target: "dns", %upstream, "resolver did not answer in time"),
        }
    }
    None
}

// === impl Asked ===

impl Asked {
    /// A fresh question with the content of the request.
    fn new(request: &Message) -> Option<Self> {
        let mut query = request.queries.first()?.clone();
        let mut name = query.name().clone();
        name.randomize_label_case();
        query.set_name(name);
        // hickory draws the id from the operating system's random numbers.
        let mut message = Message::query();
        message.metadata.recursion_desired = request.metadata.recursion_desired;
        message.metadata.checking_disabled = request.metadata.checking_disabled;
        message.metadata.authentic_data = request.metadata.authentic_data;
        message.add_query(query.clone());
        // The client's own options stay here: they may tell who it is.
        if request.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_DNS_UDP_ANSWER_BYTES).set_dnssec_ok(wants_dnssec(request));
            message.set_edns(edns);
        }
        let packet = message.to_vec().ok()?;
        Some(Self { id: message.metadata.id, query, packet })
    }

    fn read(&self, packet: &[u8]) -> Option<Message> {
        read_answer(packet, self.id, &self.query)
    }

    fn is_spelt(&self, answer: &Message) -> bool {
        answer.queries.first().is_some_and(|query| query.name().eq_case(self.query.name()))
    }
}

async fn over_udp(network: &dyn Network, upstream: SocketAddr, asked: &Asked) -> io::Result<(Datagram, usize)> {
    let any = match upstream {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = socket::udp(network, any, None)?;
    // Connected: the kernel drops what comes from anyone else.
    socket.connect(upstream).await?;
    socket.send(&asked.packet).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    for _ in 0..MAX_DNS_STRAY_ANSWERS {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = asked.read(&buffer[..length]) {
            let datagram = match asked.is_spelt(&answer) {
                true => Datagram::Answer(Box::new(answer)),
                false => Datagram::Respelt,
            };
            return Ok((datagram, length));
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "only answers to other questions arrived"))
}

async fn over_tcp(network: &dyn Network, upstream: SocketAddr, asked: &Asked) -> io::Result<(Message, usize)> {
    let mut stream = socket::connect(network, upstream, &ConnectOptions::default()).await?;
    write_framed(&mut stream, &asked.packet).await?;
    let packet = read_framed(&mut stream).await?;
    let answer = packet.and_then(|packet| Some((asked.read(&packet)?, packet.len())));
    answer.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no answer to the question"))
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
