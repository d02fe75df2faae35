//! A peer that speaks TLS by the stock library and HTTP/2 frame by frame, to see and to say what it likes.

use std::{io, net::SocketAddr};

use ambit_testing::{TestMesh, identity};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// END_STREAM or ACK, and END_HEADERS.
pub const END: u8 = 1;
pub const END_HEADERS: u8 = 4;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

pub struct Raw {
    pub tls: TlsStream<TcpStream>,
}

impl Raw {
    /// A client of `addr`, as `a/x`; nothing is said yet.
    pub async fn client(mesh: &TestMesh, addr: SocketAddr) -> Self {
        let certificate = mesh.certificates.get(&identity("a", "x")).await.expect("a certificate");
        let tcp = TcpStream::connect(addr).await.expect("connected");
        let connector = TlsConnector::from(certificate.client_config(&[identity("a", "server")]));
        let name = "nobody.invalid".try_into().expect("a name");
        Self { tls: connector.connect(name, tcp).await.expect("TLS").into() }
    }

    /// The next client of `listener`, served as `a/server`; nothing is said yet.
    pub async fn server(mesh: &TestMesh, listener: &TcpListener) -> Self {
        let certificate = mesh.certificates.get(&identity("a", "server")).await.expect("a certificate");
        let (tcp, _) = listener.accept().await.expect("a connection");
        let acceptor = TlsAcceptor::from(certificate.server_config());
        Self { tls: acceptor.accept(tcp).await.expect("TLS").into() }
    }

    /// A client that has said what must be said first.
    pub async fn greeted_client(mesh: &TestMesh, addr: SocketAddr) -> Self {
        let mut raw = Self::client(mesh, addr).await;
        raw.tls.write_all(PREFACE).await.expect("written");
        raw.send(kind::SETTINGS, 0, 0, &[]).await;
        raw
    }

    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.try_send(kind, flags, stream, payload).await.expect("written");
    }

    pub async fn try_send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags];
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        self.tls.write_all(&bytes).await?;
        self.tls.flush().await
    }

    /// The next frame, or `None` when the connection is over.
    pub async fn frame(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.tls.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.tls.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The next frame of that kind; those before it are skipped.
    pub async fn expect(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.frame().await.unwrap_or_else(|| panic!("the connection ended before frame {kind}"));
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// Opens a tunnel to `authority`, with further fields.
    pub async fn connect(&mut self, stream: u32, authority: &str, fields: &[(&str, &str)]) {
        let mut all = vec![(":method", "CONNECT"), (":authority", authority)];
        all.extend_from_slice(fields);
        self.send(kind::HEADERS, END_HEADERS, stream, &block(&all)).await;
    }
}

/// A header block of literals.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "the test's fields are short");
            block.push(u8::try_from(text.len()).expect("short"));
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// The settings in a frame.
pub fn settings(frame: &Frame) -> Vec<(u16, u32)> {
    let pair =
        |six: &[u8]| (u16::from_be_bytes([six[0], six[1]]), u32::from_be_bytes([six[2], six[3], six[4], six[5]]));
    frame.payload.chunks_exact(6).map(pair).collect()
}

/// The error code at the end of RST_STREAM, or in GOAWAY after the last stream.
pub fn code(frame: &Frame) -> u32 {
    let at = if frame.kind == kind::GOAWAY { 4 } else { 0 };
    u32::from_be_bytes(frame.payload[at..at + 4].try_into().expect("four bytes"))
}
