//! Requests that no route is for are tried again as Istio tries them, within their service's budget.

use std::{sync::atomic::Ordering, time::Instant};

use ambit_xds::{
    waypoint::{BoundService, RetryBudget},
    workload::AppProtocol,
};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{App, HOSTNAME, NAMESPACE, attached, bound, http_route, mesh, mesh_for, send};
use crate::{
    backend,
    mesh::{Mesh, Pod, Shape, allow_all, header, soon},
};

fn limited(mesh: &Mesh, percent: u32, count: u32, routes: &str) {
    let policy = "kagenti-system/budget".to_owned();
    let budget = RetryBudget { policy, percent, interval_ms: 3_600_000, count, count_interval_ms: 3_600_000 };
    mesh.bundle(vec![BoundService {
        retry_budget: Some(budget),
        routes: attached(routes),
        ..bound(NAMESPACE, HOSTNAME, &[allow_all()])
    }]);
}

const GRPC: &str = "content-type: application/grpc\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_endpoint_did_not_begin_is_tried_again_and_nothing_else() {
    let app = App::start("own").await;
    let mesh = mesh(&app, &[]).await;
    for (lines, script, answer, tries) in [
        (GRPC, "grpc:14 grpc:1 grpc:0", "0", 3),
        (GRPC, "grpc:14 grpc:14 grpc:14 grpc:0", "14", 3),
        (GRPC, "grpc:13 grpc:0", "13", 1),
        ("", "503 200", "503", 1),
        ("", "grpc:14 grpc:0", "14", 1),
        ("", "break 200", "503", 1),
        ("connection: x-script\r\ncontent-type: application/grpc\r\n", "200", "200", 1),
    ] {
        let before = app.seen().len();
        let (status, head, _) = send(&mesh, "any", "GET /", &format!("{lines}x-script: {script}\r\n")).await;
        let got = header(&head, "grpc-status").map_or_else(|| status.to_string(), str::to_owned);
        assert_eq!(got, answer, "{lines} {script}: {head}");
        let seen = &app.seen()[before..];
        assert_eq!(seen.len(), tries, "{lines} {script}");
        let id = seen[0].headers.get("x-request-id").cloned();
        assert!(seen.iter().all(|seen| seen.headers.get("x-request-id") == id.as_ref()), "one request");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_try_of_a_call_over_http2_has_the_whole_body() {
    let app = App::start("own").await;
    let mesh = mesh_for(app.address, AppProtocol::Grpc, &[]).await;
    let tunnel = mesh.tunnel("any").await;
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tunnel));
    let (mut sender, connection) = soon(handshake).await.expect("handshake");
    tokio::spawn(connection);
    for (size, tries, answer) in [(5, 3, "0"), (65 * 1024, 1, "14")] {
        let before = app.seen().len();
        let body = "x".repeat(size);
        let request = http::Request::post("http://mlflow:5000/pkg.S/Do")
            .header("content-type", "application/grpc")
            .header("x-script", "grpc:14 grpc:1 grpc:0")
            .body(Full::new(bytes::Bytes::from(body.clone())).boxed())
            .expect("request");
        let response = soon(sender.send_request(request)).await.expect("answer");
        assert_eq!(response.headers()["grpc-status"], answer);
        let seen = &app.seen()[before..];
        assert_eq!(seen.len(), tries);
        assert!(seen.iter().all(|seen| seen.body == body && seen.line == "POST /pkg.S/Do"));
        let id = &seen[0].headers["x-request-id"];
        assert!(seen.iter().all(|seen| seen.headers["x-request-id"] == id), "one request");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_cannot_be_reached_is_tried_again_after_a_while() {
    let app = App::start("own").await;
    let gone = tokio::net::TcpListener::bind("127.0.0.2:0").await.expect("free port");
    let address = gone.local_addr().expect("bound");
    drop(gone);
    let mesh = mesh_for(address, AppProtocol::Http11, &[]).await;
    let start = Instant::now();
    assert_eq!(send(&mesh, "any", "GET /", "").await.0, 503);
    // 25 ms, then 50 ms.
    assert!(start.elapsed().as_millis() >= 75, "{:?}", start.elapsed());
    drop(app);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_refused_is_tried_again_and_one_that_is_reset_is_not() {
    for (reason, most, answer, streams) in [
        (h2::Reason::REFUSED_STREAM, 2, 200, 3),
        (h2::Reason::REFUSED_STREAM, 3, 503, 3),
        (h2::Reason::INTERNAL_ERROR, 1, 503, 1),
        (h2::Reason::CANCEL, 1, 503, 1),
    ] {
        for request in ["GET /", "POST /"] {
            let (address, seen) = backend::resetting(reason, most, false).await;
            let mesh = mesh_for(address, AppProtocol::Http2, &[]).await;
            let body = if request == "POST /" { "content-length: 5\r\n\r\nhello" } else { "" };
            // What the application answers has no declared length: the connection would end it.
            let mut tunnel = mesh.tunnel("any").await;
            let text = format!("{request} HTTP/1.1\r\nhost: mlflow\r\n{body}");
            let text = if body.is_empty() { format!("{text}\r\n") } else { text };
            soon(tunnel.write_all(text.as_bytes())).await.expect("written");
            soon(tunnel.flush()).await.expect("flushed");
            let mut head = [0; 12];
            soon(tunnel.read_exact(&mut head)).await.expect("an answer");
            assert_eq!(&head[9..], answer.to_string().as_bytes(), "{reason:?} {most} {request}");
            assert_eq!(seen.load(Ordering::SeqCst), streams, "{reason:?} {most} {request}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_try_goes_to_another_endpoint_while_there_is_one() {
    let apps = [App::start("one").await, App::at("other", "127.0.0.3:0").await];
    let mut shape = Shape::of(apps[0].address);
    shape.pods = apps.iter().map(|app| Pod { app: app.address, hbone: false }).collect();
    shape.policies = vec![allow_all()];
    let mesh = Mesh::start(shape).await;
    let routed = http_route(
        "r",
        "[{retry: {codes: [503], attempts: 2, backoff: 1ms}, backendRefs: [{name: mlflow, port: 5000}]}]",
    );
    // Each application goes by the script on its own: where both have failed, one of them is asked again.
    for (routes, lines) in
        [("", format!("{GRPC}x-script: grpc:14 grpc:0\r\n")), (&*routed, "x-script: 503 200\r\n".to_owned())]
    {
        limited(&mesh, 100, 100, routes);
        for number in 0..12 {
            let lines = format!("{lines}x-request-id: {}-{number}\r\n", routes.len());
            let (status, ..) = send(&mesh, "any", "GET /", &lines).await;
            assert_eq!(status, 200);
            let id = format!("{}-{number}", routes.len());
            let tries = |app: &App| app.seen().iter().filter(|seen| seen.headers["x-request-id"] == id).count();
            let mut tries = [tries(&apps[0]), tries(&apps[1])];
            tries.sort_unstable();
            assert_eq!(tries, [1, 2], "{id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_bounds_retries_with_and_without_routes() {
    let app = App::start("own").await;
    let mesh = mesh(&app, &[]).await;
    let script = format!("{GRPC}x-script: grpc:14 grpc:14 grpc:14\r\n");
    let routes = http_route("r", "[{backendRefs: [{name: mlflow, port: 5000}]}]");
    for (percent, count, routes, retries) in [(0, 0, "", 0), (0, 3, "", 3), (100, 0, "", 4), (0, 1, &*routes, 1)] {
        limited(&mesh, percent, count, routes);
        let before = app.seen().len();
        for _ in 0..4 {
            assert_eq!(send(&mesh, "any", "GET /", &script).await.0, 200);
        }
        assert_eq!(app.seen().len() - before - 4, retries, "{percent} % and {count}");
        limited(&mesh, percent + 1, count, "");
    }
}
