//! Endpoints that fail, destinations that aren't served, and the end of the waypoint.

use std::time::Duration;

use ambit_hbone::ConnectError;
use ambit_policy::Verdict;
use ambit_xds::ADDRESS_TYPE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    backend::{After, Raw},
    mesh::{HOSTNAME, Mesh, NAMESPACE, PORT, Pod, Shape, VIP, allow_all, exchange, header, response, soon, status},
};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";

fn open(app: &Raw) -> Shape {
    let mut shape = Shape::of(app.address);
    shape.policies = vec![allow_all()];
    shape
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_bound_here_is_served() {
    let app = Raw::start().await;
    let mut mesh = Mesh::start(open(&app)).await;
    let pool = mesh.pool();
    for (authority, expected) in [
        ("10.96.0.8:5000".to_owned(), 404),
        (format!("{VIP}:5001"), 503),
        (format!("other.{NAMESPACE}.svc.cluster.local:{PORT}"), 404),
        (app.address.to_string(), 404),
    ] {
        let refused = mesh.connect(&pool, "any", &authority).await;
        let Err(ConnectError::Refused { status, .. }) = refused else { panic!("{authority}: {refused:?}") };
        assert_eq!(status.as_u16(), expected, "{authority}");
        mesh.expect_record(Verdict::Deny, Some(expected)).await;
    }
    let mut named = mesh.connect(&pool, "any", &format!("{HOSTNAME}:{PORT}")).await.expect("served by name");
    assert_eq!(status(&exchange(&mut named, GET).await.0), 200);
    mesh.expect_record(Verdict::Allow, Some(200)).await;

    mesh.bundle(vec![]);
    let refused = mesh.connect(&pool, "any", &format!("{VIP}:{PORT}")).await;
    assert!(matches!(&refused, Err(ConnectError::Refused { status, .. }) if status.as_u16() == 404), "{refused:?}");
    let record = mesh.expect_record(Verdict::Deny, Some(404)).await;
    assert_eq!(record.destination.service.as_deref(), Some("kagenti-system/mlflow"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_endpoint_is_tried_and_without_one_the_reason_is_recorded() {
    let app = Raw::start().await;
    let mut shape = open(&app);
    let nobody = std::net::SocketAddr::new("127.0.0.3".parse().expect("address"), 9);
    shape.pods.push(Pod { app: nobody, hbone: false });
    let mut mesh = Mesh::start(shape).await;
    for _ in 0..10 {
        let mut stream = mesh.tunnel("any").await;
        assert_eq!(status(&exchange(&mut stream, POST).await.0), 200);
        let record = mesh.expect_record(Verdict::Allow, Some(200)).await;
        assert_eq!(record.destination.workload.as_deref(), Some("kagenti-system/mlflow-0"));
    }
    let mut stream = mesh.tunnel("any").await;
    let gone = format!("Kubernetes//Pod/{NAMESPACE}/mlflow-0");
    mesh.apply(ADDRESS_TYPE, vec![], &[&gone]);
    let (head, body) = exchange(&mut stream, GET).await;
    assert_eq!((status(&head), body.as_slice()), (503, &b"upstream connect error"[..]));
    let record = mesh.expect_record(Verdict::Allow, Some(503)).await;
    assert!(record.reason.contains("`127.0.0.3:9` can't be reached"), "{}", record.reason);
    let gone = format!("Kubernetes//Pod/{NAMESPACE}/mlflow-1");
    mesh.apply(ADDRESS_TYPE, vec![], &[&gone]);
    let grpc = "POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n";
    let (head, _) = exchange(&mut stream, grpc).await;
    assert_eq!((status(&head), header(&head, "grpc-status")), (200, Some("14")), "{head}");
    let record = mesh.expect_record(Verdict::Allow, Some(200)).await;
    assert!(record.reason.contains("no healthy endpoint"), "{}", record.reason);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_outside_the_mesh_is_reached_in_plain() {
    let app = Raw::start().await;
    let mut shape = open(&app);
    shape.pods[0].hbone = false;
    let mesh = Mesh::start(shape).await;
    let mut stream = mesh.tunnel("any").await;
    assert_eq!(status(&exchange(&mut stream, GET).await.0), 200);
    assert!(mesh.sources().is_empty(), "no tunnel");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_connection_costs_no_get() {
    let app = Raw::at("127.0.0.2", After::Close).await;
    let mesh = Mesh::start(open(&app)).await;
    let mut stream = mesh.tunnel("any").await;
    for _ in 0..5 {
        assert_eq!(status(&exchange(&mut stream, GET).await.0), 200);
    }
    assert_eq!(app.seen().len(), 5, "each arrived once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn past_the_bound_on_tunnels_the_newest_is_refused() {
    let app = Raw::start().await;
    let mut shape = open(&app);
    shape.limits.tunnels = 1;
    let mut mesh = Mesh::start(shape).await;
    let pool = mesh.pool();
    let authority = format!("{VIP}:{PORT}");
    let mut first = mesh.connect(&pool, "any", &authority).await.expect("the first");
    let second = mesh.connect(&pool, "any", &authority).await;
    assert!(matches!(&second, Err(ConnectError::Refused { status, .. }) if status.as_u16() == 503), "{second:?}");
    let record = mesh.expect_record(Verdict::Deny, Some(503)).await;
    assert!(record.reason.contains("too many"), "{}", record.reason);
    assert_eq!(status(&exchange(&mut first, GET).await.0), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn past_the_bound_on_connections_the_newest_is_refused() {
    let app = Raw::start().await;
    let mut shape = open(&app);
    shape.limits.connections = 1;
    let mut mesh = Mesh::start(shape).await;
    let mut first = mesh.tunnel("any").await;
    let second = mesh.connect(&mesh.pool(), "other", &format!("{VIP}:{PORT}")).await;
    assert!(second.is_err());
    let record = mesh.expect_record(Verdict::Deny, None).await;
    assert!(record.reason.contains("too many"), "{}", record.reason);
    assert_eq!(status(&exchange(&mut first, GET).await.0), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_lets_a_request_in_flight_end_and_takes_nothing_new() {
    let app = Raw::start().await;
    let mut mesh = Mesh::start(open(&app)).await;
    let (mut idle, mut busy) = (mesh.tunnel("any").await, mesh.tunnel("any").await);
    assert_eq!(status(&exchange(&mut idle, GET).await.0), 200);
    let begin = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nab";
    soon(busy.write_all(begin.as_bytes())).await.expect("written");
    // The request has to have arrived before the drain.
    tokio::time::sleep(Duration::from_millis(100)).await;

    let waypoint = mesh.waypoint.take().expect("running");
    let drained = tokio::spawn(waypoint.drain(Duration::from_secs(5)));
    assert_eq!(soon(idle.read(&mut [0; 1])).await.expect("a clean end"), 0);
    soon(busy.write_all(b"cd")).await.expect("written");
    let (head, _) = response(&mut busy, false).await;
    assert_eq!((status(&head), header(&head, "connection")), (200, Some("close")), "{head}");
    drop(busy);
    soon(drained).await.expect("drained before the deadline");
    assert!(mesh.connect(&mesh.pool(), "any", &format!("{VIP}:{PORT}")).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_takes_its_request_along_and_is_recorded() {
    let app = Raw::start().await;
    let mut mesh = Mesh::start(open(&app)).await;
    for (begin, status, reason) in [
        ("GET /never HTTP/1.1\r\nhost: a\r\n\r\n", None, "went away"),
        ("POST /left HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nab", Some(400), "body can't be read"),
    ] {
        let mut leaving = mesh.tunnel("any").await;
        soon(leaving.write_all(begin.as_bytes())).await.expect("written");
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(leaving);
        let record = mesh.expect_record(Verdict::Allow, status).await;
        assert!(record.reason.contains(reason), "{}", record.reason);
    }
    assert_eq!(app.seen().len(), 1, "half a request is no request");

    let mut stream = mesh.tunnel("any").await;
    let garbled = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n";
    assert_eq!(status(&exchange(&mut stream, garbled).await.0), 400);
    assert_eq!(app.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_at_its_deadline() {
    let app = Raw::start().await;
    let mut mesh = Mesh::start(open(&app)).await;
    let mut busy = mesh.tunnel("any").await;
    let begin = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nab";
    soon(busy.write_all(begin.as_bytes())).await.expect("written");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let waypoint = mesh.waypoint.take().expect("running");
    let start = std::time::Instant::now();
    soon(waypoint.drain(Duration::from_millis(200))).await;
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    // Cut off, or told that there won't be an answer; never an answer.
    let mut rest = Vec::new();
    let _ = soon(busy.read_to_end(&mut rest)).await;
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 503 "), "{:?}", String::from_utf8_lossy(&rest));
    assert!(app.seen().is_empty());
}
