//! Applications behind the waypoint.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// An HTTP/1.1 application that keeps every byte it was sent and answers `ok`, without any library in between.
#[derive(Clone)]
pub struct Raw {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
}

/// What the raw application does with a connection after its answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum After {
    KeepOpen,
    /// Closes without saying so, as applications with a short keep-alive do.
    Close,
}

impl Raw {
    pub async fn start() -> Self {
        Self::at("127.0.0.2", After::KeepOpen).await
    }

    pub async fn at(ip: &str, after: After) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.expect("free port");
        let raw =
            Self { address: listener.local_addr().expect("bound"), seen: Arc::default(), connections: Arc::default() };
        let app = raw.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                app.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve_raw(stream, app.clone(), after));
            }
        });
        raw
    }

    /// Every request so far, head and body, as it came.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("unpoisoned").clone()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn serve_raw(mut stream: TcpStream, app: Raw, after: After) {
    loop {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            request.push(byte);
        }
        let head = String::from_utf8_lossy(&request).to_ascii_lowercase();
        if let Some(length) = crate::mesh::header(&head, "content-length") {
            let mut body = vec![0; length.parse().expect("number")];
            if stream.read_exact(&mut body).await.is_err() {
                return;
            }
            request.extend(body);
        } else if head.contains("\r\ntransfer-encoding: chunked\r\n") {
            while !request.ends_with(b"\r\n0\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { return };
                request.push(byte);
            }
        }
        app.seen.lock().expect("unpoisoned").push(String::from_utf8_lossy(&request).into_owned());
        if head.starts_with("get /never ") {
            return std::future::pending().await;
        }
        if head.contains("\r\nupgrade: websocket\r\n") {
            let switch = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
            stream.write_all(switch).await.expect("written");
            return echo(stream).await;
        }
        let answer = b"HTTP/1.1 200 OK\r\nserver: app\r\nconnection: x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\n\
            content-length: 2\r\n\r\nok";
        if stream.write_all(answer).await.is_err() || after == After::Close {
            return;
        }
    }
}

/// Sends back every byte.
pub async fn echo(mut stream: TcpStream) {
    let (mut reader, mut writer) = stream.split();
    let _ = tokio::io::copy(&mut reader, &mut writer).await;
    let _ = writer.shutdown().await;
}

/// A TCP application that says `hello` first if asked to, then sends back every byte.
pub async fn tcp(hello: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                if hello && stream.write_all(b"hello").await.is_err() {
                    return;
                }
                echo(stream).await;
            });
        }
    });
    address
}

/// An HTTP/1.1 application that answers without end, and counts the bytes that it could write.
pub async fn flood() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("free port");
    let address = listener.local_addr().expect("bound");
    let written = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&written);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.expect("a whole request"));
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("written");
        let block = vec![b'x'; 64 * 1024];
        while stream.write_all(&block).await.is_ok() {
            counter.fetch_add(block.len(), Ordering::SeqCst);
        }
    });
    (address, written)
}

/// An HTTP/2 application that resets so many streams for this reason, after the head of an answer if it is to, and answers the
/// others with `ok`. It counts the streams.
pub async fn resetting(reason: h2::Reason, most: usize, answers: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("free port");
    let address = listener.local_addr().expect("bound");
    let streams = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&streams);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let counter = Arc::clone(&counter);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.expect("handshake");
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    if counter.fetch_add(1, Ordering::SeqCst) >= most {
                        let mut body = respond.send_response(Response::new(()), false).expect("open");
                        body.send_data(Bytes::from_static(b"ok"), true).expect("open");
                    } else if answers {
                        let mut body = respond.send_response(Response::new(()), false).expect("open");
                        // A reset at once would overtake what waits to be sent.
                        body.send_data(Bytes::from_static(b"o"), false).expect("open");
                        tokio::spawn(async move {
                            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                            body.send_reset(reason);
                        });
                    } else {
                        respond.send_reset(reason);
                    }
                }
            });
        }
    });
    (address, streams)
}

/// An HTTP/2 application that sends the request's body back, followed by its trailers and how it saw the request.
pub async fn http2() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service_fn(mirror)).await;
            });
        }
    });
    address
}

async fn mirror(request: Request<Incoming>) -> Result<Response<UnsyncBoxBody<Bytes, hyper::Error>>, Infallible> {
    let saw = format!("{} {} {:?}", request.method(), request.uri(), request.version());
    let (sender, receiver) = frames();
    let mut body = request.into_body();
    tokio::spawn(async move {
        let mut trailers = HeaderMap::new();
        while let Some(Ok(frame)) = body.frame().await {
            match frame.into_data() {
                Ok(data) => {
                    if sender.send(Frame::data(data)).await.is_err() {
                        return;
                    }
                }
                Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
            }
        }
        trailers.insert("x-end", http::HeaderValue::from_static("1"));
        let _ = sender.send(Frame::trailers(trailers)).await;
    });
    let mut response = Response::new(StreamBody::new(receiver).boxed_unsync());
    response.headers_mut().insert("x-saw", saw.try_into().expect("text"));
    Ok(response)
}

type Frames = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<Frame<Bytes>, hyper::Error>> + Send>>;

fn frames() -> (tokio::sync::mpsc::Sender<Frame<Bytes>>, Frames) {
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    let stream = futures_util::stream::unfold(receiver, |mut receiver: tokio::sync::mpsc::Receiver<_>| async move {
        let frame = receiver.recv().await?;
        Some((Ok(frame), receiver))
    });
    (sender, Box::pin(stream))
}
