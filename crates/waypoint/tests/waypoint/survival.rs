//! Requests in flight while everything around them changes: policies, routes, endpoints, and the waypoint itself.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ambit_hbone::{Pool, Tunnel};
use ambit_xds::ADDRESS_TYPE;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2::SendRequest,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
    task::JoinSet,
};

use crate::{
    mesh::{
        Mesh, NAMESPACE, PORT, Pod, Shape, VIP, allow_all, exchange, header, policy, resources, response, soon, status,
    },
    routes::{bind, http_route},
};

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// Changes of configuration while there is load, and when the waypoint is replaced.
const CHANGES: usize = 48;
const REPLACED_AT: [usize; 2] = [12, 30];
const BETWEEN_CHANGES: Duration = Duration::from_millis(25);
/// Far above what the longest stream needs.
const DRAIN: Duration = Duration::from_secs(9);
/// Requests of one kind that make a load, also where the machine is busy.
const ENOUGH: usize = 10;

/// What all clients share.
struct Load {
    mesh: Mesh,
    /// As the node proxy of the clients' node has it.
    pool: Arc<Pool>,
    stops: AtomicBool,
    faults: Mutex<Vec<String>>,
    http1: AtomicUsize,
    http2: AtomicUsize,
    streams: AtomicUsize,
    /// Connections left because they were said to end.
    left: AtomicUsize,
}

/// Speaks both versions of HTTP and sends every body back; `/slow` takes its time.
async fn echo(ip: &str) -> SocketAddr {
    let listener = TcpListener::bind((ip, 0)).await.expect("free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service_fn(send_back)).await;
            });
        }
    });
    address
}

async fn send_back(request: Request<Incoming>) -> Result<Response<Incoming>, Infallible> {
    if request.uri().path() == "/slow" {
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    Ok(Response::new(request.into_body()))
}

/// Configuration number `n`. All of them let the clients do what they do.
fn change(mesh: &Mesh, shape: &Shape, n: usize) {
    let denying = policy(serde_json::json!({"action": "DENY", "rules": [
        {"to": [{"operation": {"paths": ["/never", format!("/n/{n}")]}}]}]}));
    let mut denying = denying;
    denying["name"] = "denying".into();
    match n % 3 {
        0 => mesh.policies(&[allow_all(), denying]),
        1 => bind(
            mesh,
            &http_route(&format!("r{n}"), "[{backendRefs: [{name: mlflow, port: 5000}], timeouts: {request: 9s}}]"),
            &[allow_all()],
            Vec::new(),
        ),
        _ => bind(mesh, "", &[allow_all()], Vec::new()),
    }
    // Each of the endpoints goes and comes back.
    let gone = n % shape.pods.len();
    let name = |index: usize| format!("Kubernetes//Pod/{NAMESPACE}/mlflow-{index}");
    let others = resources(shape).into_iter().filter(|(uid, _)| *uid != name(gone)).collect();
    mesh.apply(ADDRESS_TYPE, others, &[&name(gone)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_whatever_changes() {
    let mut shape = Shape::of(echo("127.0.0.2").await);
    for ip in ["127.0.0.3", "127.0.0.4"] {
        shape.pods.push(Pod { app: echo(ip).await, hbone: true });
    }
    shape.policies = vec![allow_all()];
    shape.reuse_port = true;
    let pods = shape.pods.clone();
    let mut mesh = Mesh::start(shape).await;
    let shape = Shape { pods, ..Shape::of(([127, 0, 0, 2], 0).into()) };
    let mut waypoint = mesh.waypoint.take().expect("running");
    let load = Load::new(mesh);
    let mut clients = JoinSet::new();
    for _ in 0..6 {
        clients.spawn(Arc::clone(&load).http1());
        clients.spawn(Arc::clone(&load).http2());
    }
    clients.spawn(Arc::clone(&load).long_stream());
    load.warmed_up().await;
    let mut drains = JoinSet::new();
    for n in 0..CHANGES {
        change(&load.mesh, &shape, n);
        if REPLACED_AT.contains(&n) {
            let old = std::mem::replace(&mut waypoint, load.mesh.successor());
            drains.spawn(async move {
                let start = Instant::now();
                old.drain(DRAIN).await;
                start.elapsed()
            });
        }
        tokio::time::sleep(BETWEEN_CHANGES).await;
    }
    load.stops.store(true, Ordering::SeqCst);
    while let Some(client) = soon(clients.join_next()).await {
        client.expect("no panic");
    }
    let faults = load.faults.lock().expect("unpoisoned").clone();
    assert!(faults.is_empty(), "{} failed: {:#?}", faults.len(), &faults[..faults.len().min(10)]);
    for (kind, count) in [("HTTP/1.1", &load.http1), ("HTTP/2", &load.http2), ("messages", &load.streams)] {
        let count = count.load(Ordering::SeqCst);
        assert!(count > ENOUGH, "only {count} of {kind}");
    }
    let left = load.left.load(Ordering::SeqCst);
    assert!(left >= 12, "both replacements moved every client, but only {left} connections were left");
    while let Some(took) = soon(drains.join_next()).await {
        assert!(took.expect("no panic") < DRAIN, "nothing had to be cut off");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_connection_is_told_with_its_next_answer() {
    let mut shape = Shape::of(echo("127.0.0.2").await);
    shape.policies = vec![allow_all()];
    shape.reuse_port = true;
    let mut mesh = Mesh::start(shape).await;
    let (mut quiet, mut silent) = (mesh.tunnel("any").await, mesh.tunnel("any").await);
    const POST: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nok";
    for stream in [&mut quiet, &mut silent] {
        let (head, _) = exchange(stream, POST).await;
        assert_eq!((status(&head), header(&head, "connection")), (200, None), "{head}");
    }
    let waypoint = mesh.waypoint.take().expect("running");
    let _successor = mesh.successor();
    let drained = tokio::spawn(waypoint.drain(Duration::from_secs(4)));
    // Once the port is handed over connections go to the other one, and those that are open go on.
    tokio::time::sleep(Duration::from_millis(400)).await;
    let (head, _) = exchange(&mut mesh.tunnel("any").await, POST).await;
    assert_eq!((status(&head), header(&head, "connection")), (200, None), "{head}");
    let (head, body) = exchange(&mut quiet, POST).await;
    assert_eq!((status(&head), header(&head, "connection")), (200, Some("close")), "{head}");
    assert_eq!(body, b"ok");
    assert_eq!(soon(quiet.read(&mut [0; 1])).await.expect("a clean end"), 0);
    // Who asks for nothing is left in time.
    assert_eq!(soon(silent.read(&mut [0; 1])).await.expect("a clean end"), 0);
    drop((quiet, silent));
    soon(drained).await.expect("drained");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_in_just_before_the_end_is_answered() {
    for _ in 0..20 {
        let mut shape = Shape::of(echo("127.0.0.2").await);
        shape.policies = vec![allow_all()];
        let mut mesh = Mesh::start(shape).await;
        let mut http1 = mesh.tunnel("any").await;
        let http2 = mesh.tunnel("any").await;
        let waypoint = mesh.waypoint.take().expect("running");
        // Their first bytes and the drain come at the same time.
        let drained = tokio::spawn(waypoint.drain(Duration::from_secs(4)));
        let asked = tokio::spawn(async move { response_of_http2(http2).await });
        soon(http1.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nok")).await.expect("written");
        let (head, _) = response(&mut http1, false).await;
        assert_eq!((status(&head), header(&head, "connection")), (200, Some("close")), "{head}");
        assert_eq!(asked.await.expect("no panic"), StatusCode::OK);
        drop(http1);
        soon(drained).await.expect("drained");
    }
}

async fn response_of_http2(tunnel: Tunnel) -> StatusCode {
    let mut sender = connection(tunnel).await;
    let request = Request::post("http://a/").body(full("ok")).expect("valid");
    let response = soon(sender.send_request(request)).await.expect("answered");
    let status = response.status();
    assert_eq!(soon(response.into_body().collect()).await.expect("whole").to_bytes(), "ok");
    status
}

async fn connection(tunnel: Tunnel) -> SendRequest<Body> {
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = soon(builder.handshake(TokioIo::new(tunnel))).await.expect("handshake");
    tokio::spawn(connection);
    sender
}

/// A request that came after the server's last word is one that it has done nothing with (RFC 9113, 6.8): the client sends it
/// elsewhere, as it does with one that it hadn't sent.
fn is_unprocessed(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| cause.is_go_away() && cause.is_remote() && cause.reason() == Some(h2::Reason::NO_ERROR))
}

fn full(text: &str) -> Body {
    Full::<Bytes>::from(text.to_owned()).map_err(|never| match never {}).boxed_unsync()
}

// === impl Load ===

impl Load {
    fn new(mesh: Mesh) -> Arc<Self> {
        let pool = mesh.pool();
        let (stops, faults) = (AtomicBool::new(false), Mutex::default());
        let [http1, http2, streams, left] = std::array::from_fn(|_| AtomicUsize::new(0));
        Arc::new(Self { mesh, pool, stops, faults, http1, http2, streams, left })
    }

    async fn warmed_up(&self) {
        let all = [&self.http1, &self.http2, &self.streams];
        soon(async {
            while all.iter().any(|count| count.load(Ordering::SeqCst) < 5) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    fn goes_on(&self) -> bool {
        !self.stops.load(Ordering::SeqCst)
    }

    fn fault(&self, what: String) {
        self.faults.lock().expect("unpoisoned").push(what);
    }

    async fn tunnel(&self) -> Option<Tunnel> {
        let opened = self.mesh.connect(&self.pool, "any", &format!("{VIP}:{PORT}")).await;
        opened.map_err(|error| self.fault(format!("no tunnel: {error}"))).ok()
    }

    /// One request after the other, on a connection until that is said to end.
    async fn http1(self: Arc<Self>) {
        while self.goes_on() {
            let Some(mut tunnel) = self.tunnel().await else { return };
            let mut closes = false;
            while self.goes_on() && !closes {
                let path = if self.http1.load(Ordering::SeqCst).is_multiple_of(4) { "/slow" } else { "/" };
                let request = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello");
                match ask(&mut tunnel, &request).await {
                    Ok((head, body)) if status(&head) == 200 && body == b"hello" => {
                        self.http1.fetch_add(1, Ordering::SeqCst);
                        closes = header(&head, "connection") == Some("close");
                    }
                    Ok((head, _)) => return self.fault(format!("HTTP/1.1: {head}")),
                    Err(error) => return self.fault(format!("HTTP/1.1: {error}")),
                }
            }
            self.left.fetch_add(usize::from(closes), Ordering::SeqCst);
        }
    }

    /// Several requests at a time, on a connection until that takes no more.
    async fn http2(self: Arc<Self>) {
        while self.goes_on() {
            let Some(tunnel) = self.tunnel().await else { return };
            let sender = connection(tunnel).await;
            let mut all = JoinSet::new();
            for _ in 0..3 {
                all.spawn(Arc::clone(&self).http2_stream(sender.clone()));
            }
            while let Some(ended) = all.join_next().await {
                ended.expect("no panic");
            }
            self.left.fetch_add(usize::from(self.goes_on()), Ordering::SeqCst);
        }
    }

    async fn http2_stream(self: Arc<Self>, mut sender: SendRequest<Body>) {
        while self.goes_on() {
            let path = if self.http2.load(Ordering::SeqCst).is_multiple_of(4) { "/slow" } else { "/" };
            let request = Request::post(format!("http://a{path}")).body(full("hello")).expect("valid");
            let response = match soon(sender.try_send_request(request)).await {
                Ok(response) => response,
                Err(mut failure) => {
                    // What wasn't sent is sent elsewhere: the connection takes no more.
                    let unsent = failure.take_message().is_some();
                    let error = failure.into_error();
                    if !unsent && !is_unprocessed(&error) {
                        self.fault(format!("HTTP/2: {error:?}"));
                    }
                    return;
                }
            };
            let status = response.status();
            let body = soon(response.into_body().collect()).await.map(http_body_util::Collected::to_bytes);
            if status != 200 || !matches!(&body, Ok(body) if body == "hello") {
                return self.fault(format!("HTTP/2: {status} {body:?}"));
            }
            self.http2.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A call in both directions that lasts through everything, as gRPC has them.
    async fn long_stream(self: Arc<Self>) {
        let Some(tunnel) = self.tunnel().await else { return };
        let mut sender = connection(tunnel).await;
        let (messages, mut to_send) = mpsc::channel::<Bytes>(1);
        let frames = futures_util::stream::poll_fn(move |cx| {
            to_send.poll_recv(cx).map(|message| message.map(|message| Ok(Frame::data(message))))
        });
        let request = Request::post("http://a/stream").header("content-type", "application/grpc");
        let request = request.body(StreamBody::new(frames).boxed_unsync()).expect("valid");
        let mut body = match soon(sender.send_request(request)).await {
            Ok(response) => response.into_body(),
            Err(error) => return self.fault(format!("stream: {error:?}")),
        };
        let mut sent = 0_u32;
        while self.goes_on() {
            sent += 1;
            if messages.send(Bytes::copy_from_slice(&sent.to_be_bytes())).await.is_err() {
                return self.fault("stream: the request was let go of".to_owned());
            }
            match soon(body.frame()).await {
                Some(Ok(frame)) if frame.data_ref().is_some_and(|data| **data == sent.to_be_bytes()) => {
                    self.streams.fetch_add(1, Ordering::SeqCst);
                }
                frame => return self.fault(format!("stream after {sent} messages: {frame:?}")),
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        drop(messages);
        while let Some(frame) = soon(body.frame()).await {
            let is_empty = frame.as_ref().is_ok_and(|frame| frame.data_ref().is_some_and(Bytes::is_empty));
            if !is_empty {
                return self.fault(format!("stream at its end: {frame:?}"));
            }
        }
    }
}

/// One request and its answer, or why there is none.
async fn ask(tunnel: &mut Tunnel, request: &str) -> std::io::Result<(String, Vec<u8>)> {
    soon(tunnel.write_all(request.as_bytes())).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(tunnel.read_u8()).await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length = header(&head, "content-length").map_or(0, |length| length.parse().expect("number"));
    let mut body = vec![0; length];
    soon(tunnel.read_exact(&mut body)).await?;
    Ok((head, body))
}
