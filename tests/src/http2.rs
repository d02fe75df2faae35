//! HTTP/2 with prior knowledge: a client, and frames for what no client would send.

use std::{
    convert::Infallible,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Frame, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{runtime::Runtime, sync::mpsc};

/// No test waits longer for one answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Kinds of frames.
pub const HEADERS: u8 = 1;
/// Ends a stream.
pub const RST_STREAM: u8 = 3;
/// Ends a connection.
pub const GOAWAY: u8 = 7;
/// More of a header block.
pub const CONTINUATION: u8 = 9;

const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// One connection.
#[derive(Debug)]
pub struct Client {
    runtime: Runtime,
    sender: SendRequest<Body>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
    /// Trailers.
    pub trailers: HeaderMap,
}

// === impl Client ===

impl Client {
    /// Connects.
    pub fn connect(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let sender = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(address).await.expect("connected");
            let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
            let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.expect("a handshake");
            tokio::spawn(connection);
            sender
        });
        Self { runtime, sender }
    }

    /// Sends a request and waits for its whole answer.
    pub fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = Request::builder().method(method).uri(format!("http://web{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body)).boxed_unsync()).expect("a request");
        let Self { runtime, sender } = self;
        runtime.block_on(async {
            let answered = async {
                sender.ready().await.expect("the connection is open");
                let response = sender.send_request(request).await.expect("an answer");
                let (head, body) = response.into_parts();
                let body = body.collect().await.expect("the whole body");
                let trailers = body.trailers().cloned().unwrap_or_default();
                Answer { status: head.status, headers: head.headers, body: body.to_bytes(), trailers }
            };
            tokio::time::timeout(PATIENCE, answered).await.unwrap_or_else(|_| panic!("no answer to {method} {path}"))
        })
    }

    /// A unary call of gRPC.
    pub fn call(&mut self, path: &str, headers: &[(&str, &str)], message: &[u8]) -> Answer {
        let headers = [&[("content-type", "application/grpc"), ("te", "trailers")], headers].concat();
        self.ask("POST", path, &headers, &framed(message))
    }

    /// A call of gRPC in which each message is sent when the one before has come back. Returns the trailers.
    pub fn converse(&mut self, path: &str, messages: &[&[u8]]) -> HeaderMap {
        let (send, to_send) = mpsc::channel::<Bytes>(1);
        let frames = stream::unfold(to_send, |mut to_send| async move {
            let message = to_send.recv().await?;
            Some((Ok(Frame::data(message)), to_send))
        });
        let request = Request::post(format!("http://web{path}")).header("content-type", "application/grpc");
        let request = request.header("te", "trailers").body(StreamBody::new(frames).boxed_unsync()).expect("a request");
        let Self { runtime, sender } = self;
        runtime.block_on(async {
            let conversation = async {
                sender.ready().await.expect("the connection is open");
                let response = sender.send_request(request).await.expect("an answer");
                let mut body = response.into_body();
                for message in messages {
                    let message = framed(message);
                    send.send(Bytes::from(message.clone())).await.expect("the request is open");
                    let mut back = Vec::new();
                    while back.len() < message.len() {
                        let frame = body.frame().await.expect("more").expect("intact");
                        back.extend_from_slice(frame.data_ref().expect("no trailers yet"));
                    }
                    assert_eq!(back, message);
                }
                drop(send);
                let last = body.collect().await.expect("an end");
                last.trailers().cloned().unwrap_or_default()
            };
            tokio::time::timeout(PATIENCE, conversation).await.unwrap_or_else(|_| panic!("{path} doesn't go on"))
        })
    }
}

// === impl Answer ===

impl Answer {
    /// A header's text, else that of the trailer of this name.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.headers.get(name).or_else(|| self.trailers.get(name))?.to_str().ok()
    }

    /// What an application says that it saw.
    pub fn seen(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A message as gRPC frames it.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("a short message").to_be_bytes();
    [&[0], &length[..], message].concat()
}

/// A connection's first bytes.
pub fn preface() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", frame(SETTINGS, 0, 0, &[]).as_slice()].concat()
}

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block of literals that no table remembers; names and values are short.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0x10);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("short"));
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// A GET without body, and with these fields.
pub fn get(stream: u32, more: &[(&str, &str)]) -> Vec<u8> {
    let all = [&[(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "/")], more].concat();
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&all))
}

/// Sends bytes after the preface and returns the kind and the code of the RST_STREAM or GOAWAY that comes back.
pub fn refused(mut stream: TcpStream, bytes: &[u8]) -> Option<(u8, u32)> {
    stream.write_all(&preface()).expect("written");
    // It may be ended before all is written.
    let mut writer = stream.try_clone().expect("a second handle");
    let bytes = bytes.to_vec();
    let writing = std::thread::spawn(move || drop(writer.write_all(&bytes)));
    let ended = read_end(&mut stream);
    // Whoever still writes is let go.
    let _ = stream.shutdown(std::net::Shutdown::Both);
    writing.join().expect("the writer doesn't panic");
    ended
}

fn read_end(stream: &mut TcpStream) -> Option<(u8, u32)> {
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header).ok()?;
        let [a, b, c, kind, ..] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload).ok()?;
        let code = match kind {
            RST_STREAM => &payload,
            GOAWAY => &payload[4..],
            _ => continue,
        };
        return Some((kind, code.iter().take(4).fold(0, |code, byte| code << 8 | u32::from(*byte))));
    }
}
