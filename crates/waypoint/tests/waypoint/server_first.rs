//! Ports of undeclared protocol whose client is silent: who speaks first decides.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ambit_hbone::Tunnel;
use ambit_policy::Verdict;
use ambit_xds::ADDRESS_TYPE;
use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    backend::{self, Raw},
    mesh::{Mesh, NAMESPACE, Pod, Shape, allow_all, exchange, policy, soon, status, traces_only},
};

const GET: &str = "GET /a HTTP/1.1\r\nhost: a\r\n\r\n";
const POST_TRACES: &str = "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
/// Long enough for the waypoint to have reached an endpoint for a silent client.
const SILENCE: Duration = Duration::from_millis(400);
/// Of the tests that must not get as far.
const LONG_DETECTION: Duration = Duration::from_secs(5);
/// What is quick in comparison, on a busy machine.
const WELL_BEFORE: Duration = Duration::from_secs(3);

fn shape(app: SocketAddr, policy: Value, detection_timeout: Duration) -> Shape {
    let mut shape = Shape::of(app);
    shape.policies = vec![policy];
    shape.limits.detection_timeout = detection_timeout;
    shape
}

fn deny_all() -> Value {
    policy(json!({"action": "ALLOW"}))
}

/// A TCP application that says `hello` after a while; how many connections it has had, and how many have ended.
struct Greeter {
    address: SocketAddr,
    opened: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
}

impl Greeter {
    async fn start(delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.2:0").await.expect("free port");
        let address = listener.local_addr().expect("bound");
        let (opened, ended) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let counters = (Arc::clone(&opened), Arc::clone(&ended));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counters.0.fetch_add(1, Ordering::SeqCst);
                let ended = Arc::clone(&counters.1);
                tokio::spawn(async move {
                    let mut first = [0];
                    tokio::select! {
                        () = tokio::time::sleep(delay) => {
                            if stream.write_all(b"hello").await.is_ok() {
                                backend::echo(stream).await;
                            }
                        }
                        _ = stream.read(&mut first) => {}
                    }
                    ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, opened, ended }
    }
}

async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < WELL_BEFORE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn expect_hello(stream: &mut Tunnel) {
    let mut hello = [0; 5];
    soon(stream.read_exact(&mut hello)).await.expect("greeted");
    assert_eq!(&hello, b"hello");
}

async fn expect_no_more_records(mesh: &mut Mesh) {
    let another = tokio::time::timeout(Duration::from_millis(100), mesh.record()).await;
    assert!(another.is_err(), "{another:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_greets_need_not_wait_for_the_detection_timeout() {
    for hbone in [true, false] {
        let app = Greeter::start(Duration::from_millis(200)).await;
        let mut shape = shape(app.address, allow_all(), LONG_DETECTION);
        shape.pods[0].hbone = hbone;
        let mut mesh = Mesh::start(shape).await;
        let start = Instant::now();
        let mut stream = mesh.tunnel("any").await;
        expect_hello(&mut stream).await;
        assert!(start.elapsed() < WELL_BEFORE, "{:?}", start.elapsed());
        soon(stream.write_all(b"EHLO me\r\n")).await.expect("written");
        soon(stream.shutdown()).await.expect("half closed");
        let mut rest = Vec::new();
        soon(stream.read_to_end(&mut rest)).await.expect("ended");
        assert_eq!(rest, b"EHLO me\r\n");

        let record = mesh.expect_record(Verdict::Allow, None).await;
        assert_eq!((record.protocol, record.method.as_deref()), ("TCP", None));
        assert_eq!(record.destination.workload.as_deref(), Some("kagenti-system/mlflow-0"));
        let connect_us = record.durations.connect_us.expect("an endpoint was reached");
        assert!(connect_us <= record.durations.total_us, "{record:?}");
        expect_no_more_records(&mut mesh).await;
        assert_eq!(app.opened.load(Ordering::SeqCst), 1, "the connection that was opened early is the one used");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_greeted_connection_still_ends_when_it_is_no_longer_allowed() {
    let app = Greeter::start(Duration::ZERO).await;
    let mut mesh = Mesh::start(shape(app.address, allow_all(), LONG_DETECTION)).await;
    let mut stream = mesh.tunnel("any").await;
    expect_hello(&mut stream).await;
    mesh.expect_record(Verdict::Allow, None).await;
    mesh.policies(&[deny_all()]);
    let end = soon(stream.read(&mut [0])).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    mesh.expect_record(Verdict::Deny, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_after_a_silence_is_judged_as_http() {
    let app = Raw::start().await;
    let mut mesh = Mesh::start(shape(app.address, allow_all(), LONG_DETECTION)).await;
    let mut stream = mesh.tunnel("otel-collector").await;
    tokio::time::sleep(SILENCE).await;
    assert_eq!(mesh.sources().len(), 1, "an endpoint was reached before the client spoke");
    assert_eq!(status(&exchange(&mut stream, GET).await.0), 200);
    let record = mesh.expect_record(Verdict::Allow, Some(200)).await;
    assert_eq!((record.protocol, record.path.as_deref()), ("HTTP/1.1", Some("/a")));

    // The policy at the time of the request counts, not the one under which the endpoint was reached.
    let mut silent = mesh.tunnel("otel-collector").await;
    tokio::time::sleep(SILENCE).await;
    mesh.policies(&[traces_only()]);
    for stream in [&mut silent, &mut stream] {
        let (head, body) = exchange(stream, GET).await;
        assert_eq!((status(&head), body.as_slice()), (403, &b"RBAC: access denied"[..]));
        let record = mesh.expect_record(Verdict::Deny, Some(403)).await;
        assert_eq!((record.protocol, record.method.as_deref()), ("HTTP/1.1", Some("GET")));
        assert_eq!(status(&exchange(stream, POST_TRACES).await.0), 200);
        mesh.expect_record(Verdict::Allow, Some(200)).await;
    }
    expect_no_more_records(&mut mesh).await;
    let seen = app.seen();
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_denied_as_tcp_may_take_its_time_with_http() {
    let app = Raw::start().await;
    let mut mesh = Mesh::start(shape(app.address, traces_only(), LONG_DETECTION)).await;
    let (mut allowed, mut denied) = (mesh.tunnel("otel-collector").await, mesh.tunnel("otel-collector").await);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(mesh.sources().is_empty(), "nothing is opened for what isn't allowed");
    assert_eq!(app.connections(), 0);
    assert_eq!(status(&exchange(&mut allowed, POST_TRACES).await.0), 200);
    mesh.expect_record(Verdict::Allow, Some(200)).await;
    assert_eq!(status(&exchange(&mut denied, GET).await.0), 403);
    mesh.expect_record(Verdict::Deny, Some(403)).await;
    expect_no_more_records(&mut mesh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_client_that_is_denied_as_tcp_is_refused_at_the_timeout() {
    let app = Greeter::start(Duration::ZERO).await;
    let detection = Duration::from_millis(500);
    let mut mesh = Mesh::start(shape(app.address, traces_only(), detection)).await;
    let start = Instant::now();
    let mut stream = mesh.tunnel("otel-collector").await;
    let end = soon(stream.read(&mut [0])).await;
    assert!(matches!(end, Ok(0) | Err(_)), "not a byte: {end:?}");
    assert!(start.elapsed() >= detection, "{:?}", start.elapsed());
    let record = mesh.expect_record(Verdict::Deny, None).await;
    assert_eq!(record.protocol, "TCP");
    expect_no_more_records(&mut mesh).await;
    assert_eq!(app.opened.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_nobody_speaks_it_is_tcp_at_the_timeout() {
    let app = Greeter::start(Duration::from_secs(60)).await;
    let mut mesh = Mesh::start(shape(app.address, allow_all(), Duration::from_millis(500))).await;
    let stream = mesh.tunnel("any").await;
    let record = mesh.expect_record(Verdict::Allow, None).await;
    assert_eq!(record.protocol, "TCP");
    expect_no_more_records(&mut mesh).await;
    assert_eq!(app.opened.load(Ordering::SeqCst), 1, "opened once");
    drop(stream);
    until("the endpoint learns that the client left", || app.ended.load(Ordering::SeqCst) == 1).await;

    // Past the timeout it stays TCP, whatever the bytes.
    let echo = backend::tcp(false).await;
    let mut mesh = Mesh::start(shape(echo, allow_all(), Duration::from_millis(300))).await;
    let mut stream = mesh.tunnel("any").await;
    mesh.expect_record(Verdict::Allow, None).await;
    soon(stream.write_all(GET.as_bytes())).await.expect("written");
    let mut back = vec![0; GET.len()];
    soon(stream.read_exact(&mut back)).await.expect("echoed");
    assert_eq!(back, GET.as_bytes());
    assert_eq!(mesh.sources().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_not_http_after_a_silence_use_the_open_connection() {
    let mut mesh = Mesh::start(shape(backend::tcp(false).await, allow_all(), LONG_DETECTION)).await;
    let mut stream = mesh.tunnel("any").await;
    tokio::time::sleep(SILENCE).await;
    soon(stream.write_all(b"\x00\x01binary")).await.expect("written");
    let mut back = [0; 8];
    soon(stream.read_exact(&mut back)).await.expect("echoed");
    assert_eq!(&back, b"\x00\x01binary");
    mesh.expect_record(Verdict::Allow, None).await;
    expect_no_more_records(&mut mesh).await;
    assert_eq!(mesh.sources().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_request_is_not_made_tcp_by_a_greeting() {
    let app = Greeter::start(SILENCE).await;
    let mut mesh = Mesh::start(shape(app.address, allow_all(), Duration::from_secs(2))).await;
    let mut stream = mesh.tunnel("any").await;
    until("reached", || app.opened.load(Ordering::SeqCst) == 1).await;
    soon(stream.write_all(b"GET /")).await.expect("written");
    let early = tokio::time::timeout(2 * SILENCE, stream.read_u8()).await;
    assert!(early.is_err(), "the greeting must wait for the rest of the request line: {early:?}");
    soon(stream.write_all(b"a HTTP/1.1\r\nhost: a\r\n\r\n")).await.expect("written");
    // This server doesn't speak HTTP, so it fails; but as HTTP.
    let (head, _) = crate::mesh::response(&mut stream, false).await;
    assert_eq!(status(&head), 503, "{head}");
    let record = mesh.expect_record(Verdict::Allow, Some(503)).await;
    assert_eq!((record.protocol, record.path.as_deref()), ("HTTP/1.1", Some("/a")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_settings_of_an_http2_server_are_no_greeting() {
    let mut mesh = Mesh::start(shape(backend::http2().await, allow_all(), LONG_DETECTION)).await;
    let tunnel = mesh.tunnel("any").await;
    tokio::time::sleep(SILENCE).await;
    assert_eq!(mesh.sources().len(), 1, "reached, and its SETTINGS have come");
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) = soon(builder.handshake(TokioIo::new(tunnel))).await.expect("handshake");
    tokio::spawn(connection);
    let request = Request::get("http://a/b").version(Version::HTTP_2).body(Empty::<Bytes>::new()).expect("valid");
    let response = soon(sender.send_request(request)).await.expect("answered");
    assert_eq!(response.status(), 200);
    soon(response.into_body().collect()).await.expect("whole");
    let record = mesh.expect_record(Verdict::Allow, Some(200)).await;
    assert_eq!((record.protocol, record.path.as_deref()), ("HTTP/2", Some("/b")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_that_change_while_nobody_speaks_count() {
    let app = Greeter::start(Duration::from_millis(1500)).await;
    let mut mesh = Mesh::start(shape(app.address, deny_all(), LONG_DETECTION)).await;
    let mut stream = mesh.tunnel("any").await;
    tokio::time::sleep(SILENCE).await;
    assert_eq!(app.opened.load(Ordering::SeqCst), 0, "denied");

    mesh.policies(&[allow_all()]);
    until("allowed now", || app.opened.load(Ordering::SeqCst) == 1).await;
    mesh.policies(&[deny_all()]);
    until("denied again", || app.ended.load(Ordering::SeqCst) == 1).await;

    mesh.policies(&[allow_all()]);
    expect_hello(&mut stream).await;
    assert_eq!(app.opened.load(Ordering::SeqCst), 2);
    mesh.expect_record(Verdict::Allow, None).await;
    expect_no_more_records(&mut mesh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_is_gone_by_the_timeout_is_not_used() {
    let (gone, stays) = (Greeter::start(Duration::from_secs(60)).await, backend::tcp(false).await);
    let mut mesh = Mesh::start(shape(gone.address, allow_all(), Duration::from_millis(800))).await;
    let mut stream = mesh.tunnel("any").await;
    until("reached", || gone.opened.load(Ordering::SeqCst) == 1).await;
    let pods = vec![Pod { app: stays, hbone: true }];
    let replaced = Shape { pods, ..Shape::of(stays) };
    mesh.apply(ADDRESS_TYPE, crate::mesh::resources(&replaced), &[&format!("Kubernetes//Pod/{NAMESPACE}/other")]);
    mesh.expect_record(Verdict::Allow, None).await;
    soon(stream.write_all(b"ping")).await.expect("written");
    let mut back = [0; 4];
    soon(stream.read_exact(&mut back)).await.expect("echoed by the one that stays");
    until("the other was let go", || gone.ended.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_fails_early_is_reported_when_it_matters() {
    // Nobody listens here.
    let nobody = SocketAddr::new("127.0.0.3".parse().expect("address"), 9);
    let mut shape = shape(nobody, allow_all(), Duration::from_secs(1));
    shape.pods[0].hbone = false;
    let mut mesh = Mesh::start(shape).await;

    let mut http = mesh.tunnel("any").await;
    tokio::time::sleep(SILENCE).await;
    assert_eq!(status(&exchange(&mut http, GET).await.0), 503);
    let record = mesh.expect_record(Verdict::Allow, Some(503)).await;
    assert_eq!(record.protocol, "HTTP/1.1");

    let start = Instant::now();
    let mut silent = mesh.tunnel("any").await;
    let end = soon(silent.read(&mut [0])).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    let record = mesh.expect_record(Verdict::Allow, None).await;
    assert_eq!(record.protocol, "TCP");
    assert!(record.reason.contains("`127.0.0.3:9` can't be reached"), "{}", record.reason);
    expect_no_more_records(&mut mesh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_client_that_leaves_takes_the_open_connection_along() {
    let app = Greeter::start(Duration::from_secs(60)).await;
    let mut mesh = Mesh::start(shape(app.address, allow_all(), LONG_DETECTION)).await;
    let stream = mesh.tunnel("any").await;
    until("reached", || app.opened.load(Ordering::SeqCst) == 1).await;
    drop(stream);
    until("let go", || app.ended.load(Ordering::SeqCst) == 1).await;
    expect_no_more_records(&mut mesh).await;
}
