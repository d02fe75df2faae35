//! The handshakes of both sides over any byte stream.

use std::{io, sync::Arc};

use bytes::{Buf, BytesMut};
use rustls::{
    ClientConfig, ServerConfig,
    client::{ClientConnectionData, UnbufferedClientConnection},
    pki_types::{CertificateDer, IpAddr, Ipv4Addr, ServerName},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, UnbufferedStatus},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::record::{HEADER_BYTES, Keys, Records, record_bytes};
use crate::limits::MAX_HANDSHAKE_BYTES;

/// A finished handshake.
pub(crate) struct Established {
    /// Protects what follows.
    pub(crate) records: Records,
    /// What the peer has already sent after its handshake; not yet opened.
    pub(crate) received: BytesMut,
    /// The end of our handshake, not yet sent: it goes out together with the first bytes of HTTP/2.
    pub(crate) to_send: Vec<u8>,
    /// The peer's chain, leaf first.
    pub(crate) peer: Vec<CertificateDer<'static>>,
    /// The application protocol agreed on.
    pub(crate) protocol: Option<Vec<u8>>,
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error("the peer sent {0}")]
    Protocol(&'static str),
}

/// Does the client's side of the handshake on `io`. The configuration must allow the extraction of secrets.
pub(crate) async fn connect<T>(io: &mut T, config: Arc<ClientConfig>) -> Result<Established, HandshakeError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    // The name is never sent and never checked: who the peer must be is in the configuration.
    let nobody = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0, 0, 0, 0])));
    shake_hands(io, UnbufferedClientConnection::new(config, nobody)?).await
}

/// Does the server's side of the handshake on `io`. The configuration must allow the extraction of secrets.
pub(crate) async fn accept<T>(io: &mut T, config: Arc<ServerConfig>) -> Result<Established, HandshakeError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    shake_hands(io, UnbufferedServerConnection::new(config)?).await
}

/// What the two sides have in common.
trait Side: Sized {
    type Data;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn is_handshaking(&self) -> bool;
    fn peer(&self) -> Vec<CertificateDer<'static>>;
    fn protocol(&self) -> Option<Vec<u8>>;
    fn into_records(self) -> Result<Records, rustls::Error>;
}

/// What one look at the handshake's state asks for.
enum Step {
    Again,
    Receive,
    Done,
}

async fn shake_hands<T, S>(io: &mut T, mut side: S) -> Result<Established, HandshakeError>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Side,
{
    let mut incoming = BytesMut::with_capacity(4096);
    let mut outgoing = Vec::new();
    // How much of `incoming` the handshake may see: whole records, and none beyond its end.
    let mut visible = 0;
    loop {
        let status = side.process(&mut incoming[..visible]);
        let discard = status.discard;
        let step = status.state.map(|state| step(state, &mut outgoing));
        incoming.advance(discard);
        visible -= discard;
        let step = match step {
            Ok(step) => step?,
            Err(error) => {
                send_alert(io, &mut side, &mut incoming[..visible], &mut outgoing).await;
                return Err(error.into());
            }
        };
        match step {
            Step::Again => {}
            // The last flight waits for the first bytes of HTTP/2.
            Step::Done if !side.is_handshaking() => break,
            Step::Receive | Step::Done => {
                visible += match whole_record(&incoming[visible..])? {
                    Some(length) => length,
                    None => {
                        // Only now, when nothing goes on without the peer: what was said in between is part of the
                        // same flight, and a packet of its own costs both ends more than its few bytes are worth.
                        send(io, &mut outgoing).await?;
                        receive(io, &mut incoming, visible).await?
                    }
                };
            }
        }
    }
    if visible != 0 {
        return Err(HandshakeError::Protocol("a handshake message with something behind it"));
    }
    let (peer, protocol) = (side.peer(), side.protocol());
    Ok(Established { records: side.into_records()?, received: incoming, to_send: outgoing, peer, protocol })
}

fn step<D>(state: ConnectionState<'_, '_, D>, outgoing: &mut Vec<u8>) -> Result<Step, HandshakeError> {
    match state {
        ConnectionState::EncodeTlsData(mut data) => {
            let start = outgoing.len();
            if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
                outgoing.resize(start + size.required_size, 0);
                data.encode(&mut outgoing[start..])
                    .map_err(|_| HandshakeError::Protocol("a message that can't be answered"))?;
            }
            Ok(Step::Again)
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Step::Again)
        }
        ConnectionState::BlockedHandshake => Ok(Step::Receive),
        ConnectionState::WriteTraffic(_) => Ok(Step::Done),
        ConnectionState::PeerClosed | ConnectionState::Closed => Err(io_error(io::ErrorKind::UnexpectedEof.into())),
        _ => Err(HandshakeError::Protocol("data before the end of its handshake")),
    }
}

fn io_error(error: io::Error) -> HandshakeError {
    HandshakeError::Io(error)
}

async fn send<T>(io: &mut T, outgoing: &mut Vec<u8>) -> Result<(), HandshakeError>
where
    T: AsyncWrite + Unpin,
{
    if !outgoing.is_empty() {
        io.write_all(outgoing).await?;
        io.flush().await?;
        outgoing.clear();
    }
    Ok(())
}

/// Length of the first record in `bytes`, if all of it is there.
fn whole_record(bytes: &[u8]) -> Result<Option<usize>, HandshakeError> {
    if bytes.first().is_some_and(|kind| !(20..=23).contains(kind)) || bytes.get(1).is_some_and(|major| *major != 3) {
        return Err(HandshakeError::Protocol("something that isn't TLS"));
    }
    Ok(record_bytes(bytes).filter(|length| bytes.len() >= *length))
}

/// Reads until a whole record lies in `incoming` after `visible`; gives its length.
async fn receive<T>(io: &mut T, incoming: &mut BytesMut, visible: usize) -> Result<usize, HandshakeError>
where
    T: AsyncRead + Unpin,
{
    loop {
        if let Some(length) = whole_record(&incoming[visible..])? {
            return Ok(length);
        }
        if incoming.len() >= MAX_HANDSHAKE_BYTES {
            return Err(HandshakeError::Protocol("too much before the end of its handshake"));
        }
        incoming.reserve(HEADER_BYTES);
        if io.read_buf(incoming).await? == 0 {
            return Err(io_error(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

/// Tells the peer what is wrong, as far as it still listens.
async fn send_alert<T, S>(io: &mut T, side: &mut S, incoming: &mut [u8], outgoing: &mut Vec<u8>)
where
    T: AsyncWrite + Unpin,
    S: Side,
{
    // What is left of the incoming bytes must still be there: the handshake remembers where in them it stands.
    while let Ok(Step::Again) = match side.process(incoming).state {
        Ok(state) => step(state, outgoing),
        Err(_) => Ok(Step::Done),
    } {}
    let _ = io.write_all(outgoing).await;
    let _ = io.shutdown().await;
}

// === impl HandshakeError ===

impl From<HandshakeError> for io::Error {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::Io(error) => error,
            other => Self::new(io::ErrorKind::InvalidData, other.to_string()),
        }
    }
}

// === impl Side ===

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn is_handshaking(&self) -> bool {
        (**self).is_handshaking()
    }

    fn peer(&self) -> Vec<CertificateDer<'static>> {
        self.peer_certificates().map(<[_]>::to_vec).unwrap_or_default()
    }

    fn protocol(&self) -> Option<Vec<u8>> {
        self.alpn_protocol().map(<[_]>::to_vec)
    }

    fn into_records(self) -> Result<Records, rustls::Error> {
        let (secrets, keys) = self.dangerous_into_kernel_connection()?;
        Records::new(secrets, Keys::Client(Box::new(keys)))
    }
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn is_handshaking(&self) -> bool {
        (**self).is_handshaking()
    }

    fn peer(&self) -> Vec<CertificateDer<'static>> {
        self.peer_certificates().map(<[_]>::to_vec).unwrap_or_default()
    }

    fn protocol(&self) -> Option<Vec<u8>> {
        self.alpn_protocol().map(<[_]>::to_vec)
    }

    fn into_records(self) -> Result<Records, rustls::Error> {
        let (secrets, keys) = self.dangerous_into_kernel_connection()?;
        Records::new(secrets, Keys::Server(Box::new(keys)))
    }
}
