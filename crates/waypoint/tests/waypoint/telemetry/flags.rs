//! Envoy's flags: the same in the record of what has ended, in the text log, and in the metrics.

use std::net::SocketAddr;

use ambit_policy::Verdict;
use ambit_telemetry::EnvoyLine;
use ambit_xds::{waypoint::HttpCheck, workload::AppProtocol};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::{counted, operators};
use crate::{
    authorizer, backend, custom,
    mesh::{Mesh, Shape, allow_all, soon, status},
    routes::{self, app::App, http_route},
    traffic,
};

const GET: &str = "GET /a HTTP/1.1\r\nhost: mlflow\r\n\r\n";

/// What is expected of a request that ends with a flag.
struct Expected {
    verdict: Verdict,
    code: u16,
    flags: &'static str,
    /// `%RESPONSE_CODE_DETAILS%`
    details: &'static str,
}

const fn allowed(code: u16, flags: &'static str, details: &'static str) -> Expected {
    Expected { verdict: Verdict::Allow, code, flags, details }
}

const fn denied(code: u16, flags: &'static str, details: &'static str) -> Expected {
    Expected { verdict: Verdict::Deny, code, flags, details }
}

async fn start(app: SocketAddr, protocol: AppProtocol) -> Mesh {
    let shape = Shape { exchanges: true, policies: vec![allow_all()], protocol, ..Shape::of(app) };
    Mesh::start(shape).await
}

/// Sends the request, waits until the waypoint is done with it, and compares.
async fn expect(mesh: &mut Mesh, request: &str, expected: &Expected) {
    let Expected { verdict, code, flags, details } = expected;
    let metrics = operators(mesh).await;
    let mut tunnel = mesh.tunnel("any").await;
    soon(tunnel.write_all(request.as_bytes())).await.expect("written");
    soon(tunnel.flush()).await.expect("flushed");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(tunnel.read_u8()).await.expect("a head"));
    }
    assert_eq!(status(&String::from_utf8_lossy(&head)), *code, "{flags}");
    // The client stays: nothing of this may be laid at its door.
    let record = loop {
        let record = mesh.record().await;
        if record.exchange.is_some() {
            break record;
        }
    };
    let exchange = record.exchange.as_deref().expect("it has ended");
    assert_eq!((record.verdict, record.status, exchange.flags), (*verdict, Some(*code), *flags), "{record:?}");
    let line = EnvoyLine::of(&record).expect("it has ended").to_string();
    assert!(line.contains(&format!("\"GET /a HTTP/1.1\" {code} {flags} {details} - ")), "{line}");
    let labels = [format!("response_code=\"{code}\""), format!("response_flags=\"{flags}\"")];
    counted(metrics, "istio_requests_total", &[&labels[0], &labels[1]], 1).await;
    drop(tunnel);
}

/// An application of HTTP/1.1 that answers every request like this and then keeps silent.
async fn answering(ip: &str, answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((ip, 0)).await.expect("free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    seen.push(byte);
                    if seen.ends_with(b"\r\n\r\n") && stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_does_not_come_or_end_in_time_is_a_timeout() {
    let late = allowed(504, "UT", "response_timeout");
    let cut_off = allowed(200, "UT", "response_timeout");
    let silent = answering("127.0.0.2", "").await;
    let stalling = answering("127.0.0.2", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc").await;
    for (app, timeouts, expected) in [
        (silent, "request: 100ms", &late),
        (silent, "backendRequest: 100ms", &late),
        (stalling, "request: 300ms", &cut_off),
    ] {
        let mut mesh = start(app, AppProtocol::Http11).await;
        let rules = format!("[{{timeouts: {{{timeouts}}}, backendRefs: [{{name: mlflow, port: 5000}}]}}]");
        routes::bind(&mesh, &http_route("r", &rules), &[allow_all()], Vec::new());
        expect(&mut mesh, GET, expected).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_the_endpoint_resets_is_told_from_a_connection_that_ends() {
    for (answers, expected) in [
        (false, allowed(503, "UR", "upstream_reset_before_response_started{remote_reset}")),
        (true, allowed(200, "UR", "upstream_reset_after_response_started{remote_reset}")),
    ] {
        let (app, _) = backend::resetting(h2::Reason::INTERNAL_ERROR, usize::MAX, answers).await;
        let mut mesh = start(app, AppProtocol::Http2).await;
        expect(&mut mesh, GET, &expected).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_no_route_is_for_has_none() {
    let app = App::start("own").await;
    let mut mesh = start(app.address, AppProtocol::Http11).await;
    let rules = "[{matches: [{path: {type: Exact, value: /other}}], backendRefs: [{name: mlflow, port: 5000}]}]";
    routes::bind(&mesh, &http_route("r", rules), &[allow_all()], Vec::new());
    expect(&mut mesh, GET, &allowed(404, "NR", "route_not_found")).await;
    assert!(app.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_without_endpoints_has_no_healthy_one() {
    let shape = Shape::of("127.0.0.2:1".parse().expect("address"));
    let mut mesh = Mesh::start(Shape { exchanges: true, policies: vec![allow_all()], pods: Vec::new(), ..shape }).await;
    expect(&mut mesh, GET, &allowed(503, "UH", "no_healthy_upstream")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_provider_denies_or_cannot_be_asked_about_is_the_authorizations() {
    let app = App::start("own").await;
    let refusing = answering("127.0.0.3", "HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n").await;
    let gone = TcpListener::bind("127.0.0.3:0").await.expect("free port").local_addr().expect("bound");
    for provider in [refusing, gone] {
        let mut mesh = start(app.address, AppProtocol::Http11).await;
        let provider = authorizer::over_http(provider.port().into(), HttpCheck::default());
        custom::govern(&mesh, &[custom::ask_ext(), allow_all()], &[provider]);
        expect(&mut mesh, GET, &denied(403, "UAEX", "ext_authz_denied")).await;
    }
    assert!(app.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_and_faults_have_flags_of_their_own() {
    let app = App::start("own").await;
    let limits = json!({"rateLimits": [traffic::hourly(1, json!(null))]});
    let mut mesh = start(app.address, AppProtocol::Http11).await;
    traffic::bind(&mesh, &[allow_all()], &[("limits", limits)]);
    let metrics = operators(&mesh).await;
    expect(&mut mesh, GET, &allowed(200, "-", "via_upstream")).await;
    expect(&mut mesh, GET, &denied(429, "RL", "local_rate_limited")).await;
    counted(metrics, "istio_requests_total", &["response_flags=\"-\""], 1).await;

    for (fault, expected) in [
        (json!({"name": "f", "abort": {"httpStatus": 418}}), allowed(418, "FI", "fault_filter_abort")),
        (
            json!({"name": "f", "delay": {"duration": "1ms"}, "abort": {"httpStatus": 418}}),
            allowed(418, "DI,FI", "fault_filter_abort"),
        ),
        (json!({"name": "f", "delay": {"duration": "1ms"}}), allowed(200, "DI", "via_upstream")),
    ] {
        let mut mesh = start(app.address, AppProtocol::Http11).await;
        traffic::bind(&mesh, &[allow_all()], &[("faults", json!({"faults": [fault]}))]);
        expect(&mut mesh, GET, &expected).await;
    }
}
