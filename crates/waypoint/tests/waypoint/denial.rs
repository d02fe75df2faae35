//! What a denied client sees, to the byte, and what an edit of the policy does to open connections.

use std::time::{Duration, Instant};

use ambit_policy::Verdict;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    backend::Raw,
    mesh::{Mesh, Shape, allow_all, exchange, header, policy, soon, status},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_policy_decides_each_request_of_one_connection() {
    let app = Raw::start().await;
    let mut mesh = Mesh::start(Shape::of(app.address)).await;
    let mut otel = mesh.tunnel("otel-collector").await;

    let (head, body) =
        exchange(&mut otel, "POST /v1/traces HTTP/1.1\r\nhost: mlflow\r\ncontent-length: 3\r\n\r\nabc").await;
    assert_eq!((status(&head), body.as_slice()), (200, &b"ok"[..]), "{head}");
    let record = mesh.expect_record(Verdict::Allow, Some(200)).await;
    assert_eq!(record.protocol, "HTTP/1.1");
    assert_eq!((record.method.as_deref(), record.path.as_deref()), (Some("POST"), Some("/v1/traces")));
    assert_eq!(record.source.workload.as_deref(), Some("kagenti-system/client"));
    assert_eq!(
        record.source.identity.expect("identity").to_string(),
        "spiffe://cluster.local/ns/kagenti-system/sa/otel-collector"
    );
    assert_eq!(record.destination.service.as_deref(), Some("kagenti-system/mlflow"));
    assert_eq!(record.destination.workload.as_deref(), Some("kagenti-system/mlflow-0"));
    assert_eq!(record.destination.address.expect("address").to_string(), "10.96.0.7:5000");
    assert_eq!(record.policy.expect("policy").to_string(), "kagenti-system/mlflow");
    assert!(record.durations.connect_us.is_some() && record.durations.upstream_us.is_some());

    for target in ["/v1/traces/", "/V1/traces", "/v1/traces/x", "/v1/traces/..%2fadmin", "//v1/traces"] {
        let request = format!("POST {target} HTTP/1.1\r\nhost: mlflow\r\ncontent-length: 0\r\n\r\n");
        let (head, _) = exchange(&mut otel, &request).await;
        assert_eq!(status(&head), 403, "{target}");
        let record = mesh.expect_record(Verdict::Deny, Some(403)).await;
        assert_eq!(record.path.as_deref(), Some(target));
    }
    let (head, _) =
        exchange(&mut otel, "POST /a/../v1/traces?secret=1 HTTP/1.1\r\nhost: mlflow\r\ncontent-length: 0\r\n\r\n")
            .await;
    assert_eq!(status(&head), 200);
    assert_eq!(mesh.record().await.path.as_deref(), Some("/a/../v1/traces"), "no query in records");
    assert_eq!(app.seen().len(), 2, "only what was allowed arrives");
    assert_eq!(app.connections(), 1, "one upstream connection is reused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_is_istios_to_the_byte() {
    let app = Raw::start().await;
    let mesh = Mesh::start(Shape::of(app.address)).await;
    let mut otel = mesh.tunnel("otel-collector").await;

    let (head, body) = exchange(&mut otel, "GET /v1/traces HTTP/1.1\r\nhost: mlflow\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{head}");
    assert_eq!(header(&head, "content-type"), Some("text/plain"));
    assert_eq!(header(&head, "content-length"), Some("19"));
    assert_eq!(header(&head, "connection"), None);
    assert_eq!(body, b"RBAC: access denied");
    let names: Vec<_> = head.lines().skip(1).filter_map(|line| Some(line.split_once(':')?.0)).collect();
    assert_eq!(names, ["content-type", "content-length", "date"], "nothing that tells more");

    let (head, body) = exchange(&mut otel, "HEAD /v1/traces HTTP/1.1\r\nhost: mlflow\r\n\r\n").await;
    assert_eq!((status(&head), header(&head, "content-length")), (403, Some("19")), "{head}");
    assert!(body.is_empty());

    // Had the answer to HEAD carried a body, this one would start with it.
    let grpc = "POST /svc/Method HTTP/1.1\r\nhost: mlflow\r\ncontent-type: application/grpc+proto\r\n\
        content-length: 0\r\n\r\n";
    let (head, body) = exchange(&mut otel, grpc).await;
    assert_eq!(status(&head), 200, "{head}");
    assert_eq!(header(&head, "grpc-status"), Some("7"));
    assert_eq!(header(&head, "grpc-message"), Some("RBAC: access denied"));
    assert_eq!(header(&head, "content-type"), Some("application/grpc"));
    assert!(body.is_empty());

    let waiting = "POST /other HTTP/1.1\r\nhost: mlflow\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    let (head, _) = exchange(&mut otel, waiting).await;
    assert_eq!((status(&head), header(&head, "connection")), (403, Some("close")), "{head}");
    assert_eq!(soon(otel.read(&mut [0; 1])).await.expect("a clean end"), 0);
    assert!(app.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_denied_body_does_not_cost_the_connection_and_a_long_one_does() {
    let app = Raw::start().await;
    let mesh = Mesh::start(Shape::of(app.address)).await;
    let mut otel = mesh.tunnel("otel-collector").await;
    let denied = "POST /other HTTP/1.1\r\nhost: mlflow\r\ncontent-length: 3\r\n\r\nabc";
    let (head, _) = exchange(&mut otel, denied).await;
    assert_eq!((status(&head), header(&head, "connection")), (403, None));
    let (head, _) = exchange(&mut otel, "POST /v1/traces HTTP/1.1\r\nhost: mlflow\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(status(&head), 200);

    let unsent = "POST /other HTTP/1.1\r\nhost: mlflow\r\ncontent-length: 1000000\r\n\r\nabc";
    let (head, _) = exchange(&mut otel, unsent).await;
    assert_eq!((status(&head), header(&head, "connection")), (403, Some("close")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_is_enforced_on_an_open_connection() {
    let app = Raw::start().await;
    let mesh = Mesh::start(Shape::of(app.address)).await;
    let mut otel = mesh.tunnel("otel-collector").await;
    let request = "POST /v2/traces HTTP/1.1\r\nhost: mlflow\r\ncontent-length: 0\r\n\r\n";
    let (head, _) = exchange(&mut otel, request).await;
    assert_eq!(status(&head), 403);
    mesh.policies(&[allow_all()]);
    let (head, _) = exchange(&mut otel, request).await;
    assert_eq!(status(&head), 200);
    mesh.policies(&[policy(serde_json::json!({"action": "ALLOW"}))]);
    let (head, _) = exchange(&mut otel, request).await;
    assert_eq!(status(&head), 403);
    // The service is no longer bound here at all.
    mesh.bundle(vec![]);
    let (head, body) = exchange(&mut otel, request).await;
    assert_eq!((status(&head), body.as_slice()), (503, &b"upstream connect error"[..]));
    assert_eq!(app.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switched_connection_ends_when_it_is_no_longer_allowed() {
    let app = Raw::start().await;
    let mut shape = Shape::of(app.address);
    shape.policies = vec![allow_all()];
    let mut mesh = Mesh::start(shape).await;
    let mut ui = mesh.tunnel("kagenti-ui").await;
    let (head, _) =
        exchange(&mut ui, "GET /ws HTTP/1.1\r\nhost: mlflow\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n")
            .await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!((header(&head, "connection"), header(&head, "upgrade")), (Some("upgrade"), Some("websocket")));
    mesh.expect_record(Verdict::Allow, Some(101)).await;
    soon(ui.write_all(b"\x81ping")).await.expect("written");
    let mut back = [0; 5];
    soon(ui.read_exact(&mut back)).await.expect("echoed");
    assert_eq!(&back, b"\x81ping");

    let edited = Instant::now();
    mesh.policies(&[policy(serde_json::json!({"action": "ALLOW"}))]);
    let end = soon(ui.read(&mut back)).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    assert!(edited.elapsed() < Duration::from_millis(100), "{:?}", edited.elapsed());
    let record = mesh.expect_record(Verdict::Deny, None).await;
    assert_eq!(record.path.as_deref(), Some("/ws"));
}
