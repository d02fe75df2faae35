//! DestinationRules at work: how much endpoints get at once, and what is spoken to them.

use std::{sync::atomic::Ordering, time::Duration};

use ambit_hbone::Tunnel;
use ambit_policy::Verdict;
use ambit_xds::{
    ADDRESS_TYPE,
    workload::{Address, AppProtocol, TunnelProtocol, address},
};
use prost::Message;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    backend,
    destination::{App, GET, attached, bound, mesh, pod, rule, treat},
    mesh::{Mesh, Shape, allow_all, exchange, header, response, soon, status},
};

const SLOW: &str = "GET /slow HTTP/1.1\r\nhost: a\r\n\r\n";

/// Sends a request that is answered when the application is told to.
pub async fn begin(mesh: &Mesh, app: &App) -> Tunnel {
    let before = app.requests.load(Ordering::SeqCst);
    let stream = send(mesh, SLOW).await;
    until(|| app.requests.load(Ordering::SeqCst) > before).await;
    stream
}

async fn send(mesh: &Mesh, request: &str) -> Tunnel {
    let mut stream = mesh.tunnel("any").await;
    // One that is refused may be gone already; what comes of it shows when it is read.
    let _ = soon(stream.write_all(request.as_bytes())).await;
    let _ = soon(stream.flush()).await;
    stream
}

async fn until(done: impl Fn() -> bool) {
    soon(async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

async fn answer(stream: &mut Tunnel) -> u16 {
    status(&response(stream, false).await.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_past_the_bound_are_refused() {
    let app = App::at("127.0.0.2").await;
    let mut mesh = mesh(&[&app]).await;
    treat(&mesh, &json!({"connectionPool": {"http": {"http2MaxRequests": 1}}}));
    let mut first = begin(&mesh, &app).await;
    let mut second = send(&mesh, GET).await;
    assert_eq!(answer(&mut second).await, 503);
    let record = mesh.expect_record(Verdict::Allow, Some(503)).await;
    assert!(record.reason.contains("as many requests as its DestinationRule allows"), "{}", record.reason);
    app.release.add_permits(1);
    assert_eq!(answer(&mut first).await, 200);
    // The first counts until its response has gone.
    soon(async { while status(&exchange(&mut second, GET).await.0) != 200 {} }).await;
    assert_eq!(app.requests.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_past_the_bound_wait_for_room() {
    let app = App::at("127.0.0.2").await;
    let mut mesh = mesh(&[&app]).await;
    treat(&mesh, &json!({"connectionPool": {"tcp": {"maxConnections": 1}, "http": {"http1MaxPendingRequests": 1}}}));
    // One that nobody uses makes room for another client's.
    let mut idle = mesh.tunnel("any").await;
    assert_eq!(status(&exchange(&mut idle, GET).await.0), 200);
    mesh.expect_record(Verdict::Allow, Some(200)).await;
    let mut first = begin(&mesh, &app).await;
    until(|| app.open.load(Ordering::SeqCst) == 1).await;
    // One waits, and one more may not. Which of the two comes first is open.
    let (mut one, mut other) = (send(&mesh, GET).await, send(&mesh, GET).await);
    let record = mesh.expect_record(Verdict::Allow, Some(503)).await;
    assert!(record.reason.contains("as many requests that wait"), "{}", record.reason);
    assert_eq!(app.requests.load(Ordering::SeqCst), 2, "nothing else arrived");
    app.release.add_permits(1);
    assert_eq!(answer(&mut first).await, 200);
    let mut answers = [answer(&mut one).await, answer(&mut other).await];
    answers.sort_unstable();
    assert_eq!(answers, [200, 503]);
    // The client whose connection was closed in between doesn't notice.
    assert_eq!(status(&exchange(&mut idle, GET).await.0), 200);
    until(|| app.open.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_carries_so_many_requests() {
    let app = App::at("127.0.0.2").await;
    let mesh = mesh(&[&app]).await;
    for (most, connections) in [(2, 3), (1, 6), (0, 1)] {
        let before = app.connections.load(Ordering::SeqCst);
        treat(&mesh, &json!({"connectionPool": {"http": {"maxRequestsPerConnection": most}}}));
        let mut stream = mesh.tunnel("any").await;
        for _ in 0..6 {
            assert_eq!(status(&exchange(&mut stream, GET).await.0), 200);
        }
        assert_eq!(app.connections.load(Ordering::SeqCst) - before, connections, "{most}");
        drop(stream);
        until(|| app.open.load(Ordering::SeqCst) == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_requests_is_closed() {
    let app = App::at("127.0.0.2").await;
    let mesh = mesh(&[&app]).await;
    treat(&mesh, &json!({"connectionPool": {"http": {"idleTimeout": "100ms"}}}));
    // One in use is not.
    let mut busy = begin(&mesh, &app).await;
    let mut stream = mesh.tunnel("any").await;
    assert_eq!(status(&exchange(&mut stream, GET).await.0), 200);
    until(|| app.open.load(Ordering::SeqCst) == 1).await;
    app.release.add_permits(1);
    assert_eq!(answer(&mut busy).await, 200);
    until(|| app.open.load(Ordering::SeqCst) == 0).await;
    assert_eq!(status(&exchange(&mut stream, GET).await.0), 200);
    assert_eq!(app.connections.load(Ordering::SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_has_settings_of_its_own_and_nothing_of_the_others() {
    let app = App::at("127.0.0.2").await;
    let mesh = mesh(&[&app]).await;
    let pool = json!({"http": {"maxRequestsPerConnection": 1}});
    let usual = json!({"connectionPool": pool, "portLevelSettings": [{"port": {"number": 5000}}]});
    for (policy, connections) in [
        (usual, 1),
        (json!({"connectionPool": pool, "portLevelSettings": [{"port": {"number": 5001}}]}), 4),
        (json!({"portLevelSettings": [{"port": {"number": 5000}, "connectionPool": pool}]}), 4),
    ] {
        let before = app.connections.load(Ordering::SeqCst);
        treat(&mesh, &policy);
        let mut stream = mesh.tunnel("any").await;
        for _ in 0..4 {
            assert_eq!(status(&exchange(&mut stream, GET).await.0), 200);
        }
        assert_eq!(app.connections.load(Ordering::SeqCst) - before, connections, "{policy}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reaching_an_endpoint_takes_no_longer_than_it_may() {
    let app = App::at("127.0.0.2").await;
    let mut shape = Shape::of(app.address);
    shape.policies = vec![allow_all()];
    let mut mesh = Mesh::start(shape).await;
    // Takes connections and says nothing, so that HBONE never comes about.
    let silent = tokio::net::TcpListener::bind(("127.0.0.9", mesh.hbone_port)).await.expect("free port");
    let (name, value) = pod("mlflow-0", "127.0.0.9:80".parse().expect("address"), None);
    let mut address = Address::decode(value.as_slice()).expect("an address");
    if let Some(address::Type::Workload(workload)) = &mut address.r#type {
        workload.tunnel_protocol = TunnelProtocol::Hbone as i32;
    }
    mesh.apply(ADDRESS_TYPE, vec![(name, address.encode_to_vec())], &[]);
    treat(&mesh, &json!({"connectionPool": {"tcp": {"connectTimeout": "100ms"}}}));
    let start = std::time::Instant::now();
    let mut stream = mesh.tunnel("any").await;
    assert_eq!(status(&exchange(&mut stream, GET).await.0), 503);
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    let record = mesh.expect_record(Verdict::Allow, Some(503)).await;
    assert!(record.reason.contains("no answer in time"), "{}", record.reason);
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rule_says_what_is_spoken() {
    let app = backend::http2().await;
    let mut shape = Shape::of(app);
    shape.protocol = AppProtocol::Http11;
    shape.policies = vec![allow_all()];
    let mesh = Mesh::start(shape).await;
    treat(&mesh, &json!({"connectionPool": {"http": {"h2UpgradePolicy": "UPGRADE"}}}));
    let mut stream = send(&mesh, GET).await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(stream.read_u8()).await.expect("a head"));
    }
    let head = String::from_utf8(head).expect("text");
    assert_eq!((status(&head), header(&head, "x-saw")), (200, Some("GET http://a/ HTTP/2.0")), "{head}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_are_spoken_to_as_the_client_speaks_if_the_rule_says_so() {
    let rule = json!({"connectionPool": {"http": {"useClientProtocol": true}}});
    // A port of HTTP/1.1, and a client of HTTP/2.
    let mut shape = Shape::of(backend::http2().await);
    shape.protocol = AppProtocol::Http11;
    shape.policies = vec![allow_all()];
    let mesh = Mesh::start(shape).await;
    treat(&mesh, &rule);
    let handshake = h2::client::handshake(mesh.tunnel("any").await);
    let (client, connection) = soon(handshake).await.expect("handshake");
    tokio::spawn(connection);
    let request = http::Request::get("http://a/").body(()).expect("valid");
    let (answer, _) = soon(client.ready()).await.expect("open").send_request(request, true).expect("open");
    assert_eq!(soon(answer).await.expect("an answer").headers()["x-saw"], "GET http://a/ HTTP/2.0");
    // A port of HTTP/2, and a client of HTTP/1.1.
    let app = backend::Raw::start().await;
    let mut shape = Shape::of(app.address);
    shape.protocol = AppProtocol::Http2;
    shape.policies = vec![allow_all()];
    let mesh = Mesh::start(shape).await;
    treat(&mesh, &rule);
    let mut stream = mesh.tunnel("any").await;
    assert_eq!(status(&exchange(&mut stream, GET).await.0), 200);
    assert!(app.seen()[0].starts_with("GET / HTTP/1.1\r\n"), "{:?}", app.seen());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_not_http_have_bounds_too() {
    let app = backend::tcp(false).await;
    let mut shape = Shape::of(app);
    shape.protocol = AppProtocol::Tcp;
    shape.policies = vec![allow_all()];
    let mut mesh = Mesh::start(shape).await;
    treat(&mesh, &json!({"connectionPool": {"tcp": {"maxConnections": 1}}}));
    let mut first = send(&mesh, "ping").await;
    let mut echoed = [0; 4];
    soon(first.read_exact(&mut echoed)).await.expect("echoed");
    let mut second = send(&mesh, "ping").await;
    assert!(soon(second.read_exact(&mut echoed)).await.is_err(), "no room");
    mesh.expect_record(Verdict::Allow, None).await;
    let record = mesh.expect_record(Verdict::Allow, None).await;
    assert!(record.reason.contains("as many connections"), "{}", record.reason);
    drop(first);
    // There is room again once the first has ended.
    soon(async {
        loop {
            let mut again = send(&mesh, "ping").await;
            if again.read_exact(&mut echoed).await.is_ok() {
                return;
            }
        }
    })
    .await;

    treat(&mesh, &json!({"connectionPool": {"tcp": {"maxConnectionDuration": "200ms"}}}));
    let mut short = send(&mesh, "ping").await;
    soon(short.read_exact(&mut echoed)).await.expect("echoed");
    assert!(soon(short.read_exact(&mut echoed)).await.is_err(), "cut off");
    treat(&mesh, &json!({"connectionPool": {"tcp": {"idleTimeout": "200ms"}}}));
    let mut idle = send(&mesh, "ping").await;
    soon(idle.read_exact(&mut echoed)).await.expect("echoed");
    assert!(soon(idle.read_exact(&mut echoed)).await.is_err(), "silent for too long");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_past_the_bound_are_not_made() {
    let app = App::at("127.0.0.2").await;
    app.status.store(503, Ordering::SeqCst);
    let mesh = mesh(&[&app]).await;
    for (most, requests) in [(0, 1), (1, 4)] {
        let pool = json!({"connectionPool": {"http": {"maxRetries": most}}});
        let mut service = bound(&[rule(&pool)]);
        let spec = json!({"parentRefs": [{"group": "", "kind": "Service", "name": "mlflow"}], "rules": [
            {"backendRefs": [{"name": "mlflow", "port": 5000}],
             "retry": {"attempts": 3, "codes": [503], "backoff": "1ms"}}]});
        service.routes = vec![attached(&spec)];
        mesh.bundle(vec![service]);
        app.requests.store(0, Ordering::SeqCst);
        let mut stream = mesh.tunnel("any").await;
        assert_eq!(status(&exchange(&mut stream, GET).await.0), 503);
        assert_eq!(app.requests.load(Ordering::SeqCst), requests, "one at a time: {most}");
    }
}
