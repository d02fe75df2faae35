//! What isn't HTTP.

use std::time::{Duration, Instant};

use ambit_policy::Verdict;
use ambit_xds::workload::AppProtocol;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    backend,
    mesh::{Mesh, Shape, allow_all, exchange, policy, soon, status},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_are_carried_until_both_sides_have_ended() {
    let mut shape = Shape::of(backend::tcp(false).await);
    shape.policies = vec![allow_all()];
    let mut mesh = Mesh::start(shape).await;
    let mut stream = mesh.tunnel("any").await;
    soon(stream.write_all(b"\x00\x01binary")).await.expect("written");
    let mut back = [0; 8];
    soon(stream.read_exact(&mut back)).await.expect("echoed");
    assert_eq!(&back, b"\x00\x01binary");
    soon(stream.write_all(b"more")).await.expect("written");
    soon(stream.shutdown()).await.expect("half closed");
    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.expect("ended");
    assert_eq!(rest, b"more");
    let record = mesh.expect_record(Verdict::Allow, None).await;
    assert_eq!((record.protocol, record.method), ("TCP", None));
    assert_eq!(record.destination.workload.as_deref(), Some("kagenti-system/mlflow-0"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_may_speak_first() {
    for protocol in [AppProtocol::Unknown, AppProtocol::Tcp] {
        let mut shape = Shape::of(backend::tcp(true).await);
        shape.policies = vec![allow_all()];
        shape.protocol = protocol;
        let mesh = Mesh::start(shape).await;
        let mut stream = mesh.tunnel("any").await;
        let mut hello = [0; 5];
        soon(stream.read_exact(&mut hello)).await.expect("greeted");
        assert_eq!(&hello, b"hello", "{protocol:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_on_requests_allows_no_bytes() {
    let mut mesh = Mesh::start(Shape::of(backend::tcp(false).await)).await;
    for who in ["otel-collector", "kagenti-ui"] {
        let mut stream = mesh.tunnel(who).await;
        soon(stream.write_all(b"\x00\x01binary")).await.expect("written");
        let end = soon(stream.read(&mut [0; 1])).await;
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        let record = mesh.expect_record(Verdict::Deny, None).await;
        assert_eq!(record.protocol, "TCP");
    }
    assert!(mesh.sources().is_empty(), "nothing went on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_connection_ends_when_it_is_no_longer_allowed() {
    let mut shape = Shape::of(backend::tcp(false).await);
    shape.policies = vec![allow_all()];
    let mut mesh = Mesh::start(shape).await;
    let mut stream = mesh.tunnel("any").await;
    soon(stream.write_all(b"\x00")).await.expect("written");
    soon(stream.read_exact(&mut [0])).await.expect("echoed");
    mesh.expect_record(Verdict::Allow, None).await;

    // A change that keeps it allowed leaves it alone.
    mesh.policies(&[policy(json!({"action": "ALLOW", "rules": [
        {"from": [{"source": {"namespaces": ["kagenti-system"]}}]}]}))]);
    soon(stream.write_all(b"\x01")).await.expect("written");
    soon(stream.read_exact(&mut [0])).await.expect("echoed");

    let edited = Instant::now();
    mesh.policies(&[policy(json!({"action": "ALLOW"}))]);
    let end = soon(stream.read(&mut [0])).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    assert!(edited.elapsed() < Duration::from_millis(100), "{:?}", edited.elapsed());
    mesh.expect_record(Verdict::Deny, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_declared_http_carries_nothing_else() {
    let mut shape = Shape::of(backend::tcp(false).await);
    shape.policies = vec![allow_all()];
    shape.protocol = AppProtocol::Http11;
    let mut mesh = Mesh::start(shape).await;
    let mut stream = mesh.tunnel("any").await;
    let (head, _) = exchange(&mut stream, "\0\0\0\0\r\n\r\n").await;
    assert_eq!(status(&head), 400);
    mesh.expect_record(Verdict::Deny, Some(400)).await;
    assert!(mesh.sources().is_empty());
}
