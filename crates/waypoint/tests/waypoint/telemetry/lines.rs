//! The text log: one line per request or connection, when it has ended.

use ambit_telemetry::EnvoyLine;
use ambit_xds::workload::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    backend::{self, Raw},
    mesh::{Mesh, Pod, Shape, allow_all, exchange, soon, status, traces_only},
};

/// The next line; the decisions before it are another log's.
async fn line(mesh: &mut Mesh) -> String {
    loop {
        let record = mesh.record().await;
        if let Some(line) = EnvoyLine::of(&record) {
            assert!(!record.announces_decision(), "the decision was recorded before");
            return line.to_string();
        }
    }
}

/// Without the time, durations and ephemeral ports, which nobody can foretell.
fn fields(line: &str) -> Vec<String> {
    let quoted = line.split('"');
    let outside = |place: usize| place.is_multiple_of(2);
    let each = quoted.enumerate().flat_map(|(place, part)| match outside(place) {
        true => part.split_whitespace().map(str::to_owned).collect::<Vec<_>>(),
        false => vec![format!("\"{part}\"")],
    });
    each.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_written_as_envoy_writes_them() {
    let app = Raw::start().await;
    let mut mesh = Mesh::start(Shape { exchanges: true, ..Shape::of(app.address) }).await;
    let mut tunnel = mesh.tunnel("otel-collector").await;
    let request = "POST /v1/traces?key=secret HTTP/1.1\r\nhost: mlflow:5000\r\nuser-agent: te\"st\r\n\
        x-forwarded-for: 192.0.2.1\r\nx-request-id: its-own\r\nx-envoy-original-path: /other\r\ncontent-length: 3\r\n\r\nabc";
    assert_eq!(status(&exchange(&mut tunnel, request).await.0), 200);
    let found = fields(&line(&mut mesh).await.replace("te\\\"st", "te_st"));
    let cluster = "inbound-vip|5000|http|mlflow.kagenti-system.svc.cluster.local";
    let endpoint = format!("\"{}\"", app.address);
    let expected = [
        "\"POST /v1/traces HTTP/1.1\"",
        "200",
        "-",
        "via_upstream",
        "-",
        "\"-\"",
        "3",
        "2",
        "*",
        "*",
        "\"192.0.2.1\"",
        "\"te_st\"",
        "\"its-own\"",
        "\"mlflow:5000\"",
        &endpoint,
        cluster,
        "-",
        "10.96.0.7:5000",
        "*",
        "-",
        "default",
    ];
    assert!(found[0].starts_with("[20") && found[0].ends_with("Z]"), "{found:?}");
    assert_eq!(found.len() - 1, expected.len(), "{found:?}");
    for (found, expected) in found[1..].iter().zip(expected) {
        assert!(expected == "*" || found == expected, "{found} should be {expected}");
    }
    assert!(found[9].parse::<u64>().is_ok() && found[10].parse::<u64>().is_ok() && found[19].starts_with("127.0.0.1:"));

    let (head, _) = exchange(&mut tunnel, "DELETE /v1/traces HTTP/1.1\r\nhost: mlflow\r\n\r\n").await;
    assert_eq!(status(&head), 403);
    let denied = line(&mut mesh).await;
    assert!(
        denied.contains("\"DELETE /v1/traces HTTP/1.1\" 403 - rbac_access_denied_matched_policy[none] - \"-\" 0 19 "),
        "{denied}"
    );
    assert!(denied.contains(" \"-\" inbound-vip|5000|http|"), "no endpoint was chosen: {denied}");
    // The identifier of a request without one is the same that its application gets.
    exchange(&mut tunnel, "POST /v1/traces HTTP/1.1\r\nhost: mlflow\r\ncontent-length: 0\r\n\r\n").await;
    let identified = line(&mut mesh).await;
    let head = app.seen().last().expect("a request").clone();
    let id = crate::mesh::header(&head, "x-request-id").expect("one").to_owned();
    assert!(identified.contains(&format!("\"{id}\"")), "{identified}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_wrong_has_envoys_flags() {
    let app = Raw::start().await;
    let mut mesh = Mesh::start(Shape {
        exchanges: true,
        // Nobody listens there.
        pods: vec![Pod { app: "127.0.0.2:1".parse().expect("address"), hbone: true }],
        policies: vec![allow_all()],
        ..Shape::of(app.address)
    })
    .await;
    let mut tunnel = mesh.tunnel("otel-collector").await;
    let (head, _) = exchange(&mut tunnel, "GET /a HTTP/1.1\r\nhost: mlflow\r\n\r\n").await;
    assert_eq!(status(&head), 503);
    let refused = line(&mut mesh).await;
    assert!(refused.contains("\"GET /a HTTP/1.1\" 503 UF"), "{refused}");
    assert!(refused.contains("upstream_reset_before_response_started{remote_connection_failure}"), "{refused}");
    assert!(refused.contains("can't be reached"), "the reason of the failure: {refused}");

    soon(tunnel.write_all(b"NONSENSE\r\n\r\n")).await.expect("written");
    soon(tunnel.flush()).await.expect("flushed");
    let mut answer = [0; 12];
    soon(tunnel.read_exact(&mut answer)).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 400");
    let unreadable = line(&mut mesh).await;
    assert!(unreadable.contains(" 400 DPE "), "{unreadable}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_in_the_middle_of_an_answer_is_written_as_such() {
    let (app, _written) = backend::flood().await;
    let mut mesh = Mesh::start(Shape { exchanges: true, policies: vec![allow_all()], ..Shape::of(app) }).await;
    let mut tunnel = mesh.tunnel("otel-collector").await;
    soon(tunnel.write_all(b"GET /a HTTP/1.1\r\nhost: mlflow\r\n\r\n")).await.expect("written");
    soon(tunnel.flush()).await.expect("flushed");
    let mut some = [0; 4096];
    soon(tunnel.read_exact(&mut some)).await.expect("some of it");
    drop(tunnel);
    let left = line(&mut mesh).await;
    assert!(left.contains("\"GET /a HTTP/1.1\" 200 DC downstream_remote_disconnect "), "{left}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_written_with_their_bytes() {
    let app = backend::tcp(false).await;
    let shape = Shape { exchanges: true, protocol: AppProtocol::Tcp, ..Shape::of(app) };
    let mut mesh = Mesh::start(Shape { policies: vec![allow_all()], ..shape }).await;
    let mut tunnel = mesh.tunnel("otel-collector").await;
    let mut echoed = [0; 5];
    soon(tunnel.write_all(b"hello")).await.expect("written");
    soon(tunnel.flush()).await.expect("flushed");
    soon(tunnel.read_exact(&mut echoed)).await.expect("echoed");
    drop(tunnel);
    let carried = line(&mut mesh).await;
    assert!(carried.contains("\"- - -\" 0 - - - \"-\" 5 5 "), "{carried}");
    assert!(carried.contains(&format!("\"{app}\" inbound-vip|5000|tcp|mlflow.kagenti-system")), "{carried}");
    assert!(carried.ends_with(" - -"), "neither server name nor route: {carried}");

    // The policy speaks of requests alone.
    mesh.policies(&[traces_only()]);
    let mut tunnel = mesh.tunnel("otel-collector").await;
    let _ = soon(tunnel.write_all(b"hello")).await;
    assert!(soon(tunnel.read_exact(&mut echoed)).await.is_err());
    let denied = line(&mut mesh).await;
    assert!(denied.contains("\"- - -\" 0 - - rbac_access_denied_matched_policy[none] \"-\" 0 0 "), "{denied}");
}
