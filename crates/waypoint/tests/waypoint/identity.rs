//! Whose request is whose.

use ambit_policy::Verdict;

use crate::{
    backend::Raw,
    mesh::{Mesh, Shape, account, allow_all, exchange, header, status},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_identities_never_share_an_upstream_stream() {
    let app = Raw::start().await;
    let mut shape = Shape::of(app.address);
    shape.policies = vec![allow_all()];
    let mut mesh = Mesh::start(shape).await;
    let (mut otel, mut ui) = (mesh.tunnel("otel-collector").await, mesh.tunnel("kagenti-ui").await);
    for _ in 0..20 {
        for stream in [&mut otel, &mut ui] {
            let (head, _) = exchange(stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            assert_eq!(status(&head), 200);
        }
        let (first, second) = (mesh.record().await, mesh.record().await);
        assert_eq!(first.source.identity, Some(account("otel-collector")));
        assert_eq!(second.source.identity, Some(account("kagenti-ui")));
    }
    let arrivals = mesh.arrivals.lock().expect("unpoisoned").clone();
    assert_eq!(mesh.sources(), [account("otel-collector").to_string(), account("kagenti-ui").to_string()]);
    assert_eq!(app.connections(), 2, "each has its own connection, kept alive");
    for arrival in arrivals {
        assert_eq!(arrival.peer, account("waypoint"));
        assert_eq!(arrival.authority, app.address.to_string());
        assert!(arrival.forwarded.starts_with("for=\"127.0.0.1:"), "{}", arrival.forwarded);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_is_judged_as_itself() {
    let app = Raw::start().await;
    let mut mesh = Mesh::start(Shape::of(app.address)).await;
    let request = "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
    for (who, expected) in [("otel-collector", 200), ("someone", 403), ("kagenti-ui", 200), ("someone", 403)] {
        let mut stream = mesh.tunnel(who).await;
        assert_eq!(status(&exchange(&mut stream, request).await.0), expected, "{who}");
        let verdict = if expected == 200 { Verdict::Allow } else { Verdict::Deny };
        mesh.expect_record(verdict, Some(expected)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_with_another_identity_gets_nothing() {
    let app = Raw::start().await;
    let mut shape = Shape::of(app.address);
    shape.policies = vec![allow_all()];
    shape.destination_account = "impostor";
    let mut mesh = Mesh::start(shape).await;
    let mut stream = mesh.tunnel("any").await;
    let (head, body) = exchange(&mut stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!((status(&head), body.as_slice()), (503, &b"upstream connect error"[..]));
    assert_eq!(header(&head, "content-type"), Some("text/plain"));
    let record = mesh.expect_record(Verdict::Allow, Some(503)).await;
    assert!(record.reason.contains("can't be reached"), "{}", record.reason);
    assert!(app.seen().is_empty());
}
