//! Outlier detection: what counts as a failure besides a status of HTTP.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use ambit_xds::workload::AppProtocol;
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Request, Response};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    destination::{attached, bound, rule, treat},
    mesh::{Mesh, Pod, Shape, allow_all, exchange, soon, status},
};

/// A gRPC application that answers each call with the status that `x-status` names, in the head of its answer or, after a
/// message, in trailers (`x-where: trailers`). With `x-where: reset` it breaks off after the message.
async fn app() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("free port");
    let address = listener.local_addr().expect("bound");
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let counter = Arc::clone(&counter);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.expect("handshake");
                while let Some(Ok((request, respond))) = connection.accept().await {
                    counter.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(answer(request.headers().clone(), respond));
                }
            });
        }
    });
    (address, calls)
}

async fn answer(asked: HeaderMap, mut respond: h2::server::SendResponse<Bytes>) {
    let place = asked["x-where"].to_str().expect("text");
    let mut response = Response::new(());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    if place == "head" {
        response.headers_mut().insert("grpc-status", asked["x-status"].clone());
        respond.send_response(response, true).expect("open");
        return;
    }
    let mut body = respond.send_response(response, false).expect("open");
    body.send_data(Bytes::from_static(b"\0\0\0\0\x03abc"), false).expect("open");
    if place == "reset" {
        // A reset at once would overtake what waits to be sent.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        body.send_reset(h2::Reason::INTERNAL_ERROR);
        return;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", asked["x-status"].clone());
    body.send_trailers(trailers).expect("open");
}

async fn client(mesh: &Mesh) -> SendRequest<Bytes> {
    let tunnel = mesh.tunnel("any").await;
    let (sender, connection) = soon(h2::client::handshake(tunnel)).await.expect("handshake");
    tokio::spawn(connection);
    sender
}

/// Makes a call and waits for its end, however it ends.
async fn call(client: &mut SendRequest<Bytes>, status: &str, place: &str, content_type: &str) {
    let request = Request::post("http://mlflow:5000/pkg.S/Do")
        .header("content-type", content_type)
        .header("x-status", status)
        .header("x-where", place)
        .body(())
        .expect("valid");
    *client = soon(client.clone().ready()).await.expect("open");
    let (response, _) = client.send_request(request, true).expect("open");
    let Ok(response) = soon(response).await else { return };
    let mut body = response.into_body();
    while let Some(Ok(data)) = soon(body.data()).await {
        let _ = body.flow_control().release_capacity(data.len());
    }
    let _ = soon(body.trailers()).await;
}

fn two_in_a_row(hours: usize) -> Value {
    // Another time out of use is another setting, by which nothing is remembered.
    json!({"outlierDetection": {"consecutive5xxErrors": 2, "maxEjectionPercent": 100,
        "baseEjectionTime": format!("{hours}h")}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_of_a_call_counts_wherever_it_stands() {
    let (address, calls) = app().await;
    let shape = Shape { protocol: AppProtocol::Grpc, policies: vec![allow_all()], ..Shape::of(address) };
    let mesh = Mesh::start(shape).await;
    let mut client = client(&mesh).await;
    let mut hours = 0;
    for (status, is_failure) in [
        ("14", true),
        ("0", false),
        ("4", true),
        ("12", true),
        ("2", true),
        ("13", true),
        ("15", true),
        ("99", true),
        ("1", false),
        ("3", false),
        ("5", false),
        ("7", false),
        ("8", false),
        ("10", false),
        ("16", false),
    ] {
        for place in ["head", "trailers"] {
            hours += 1;
            treat(&mesh, &two_in_a_row(hours));
            let before = calls.load(Ordering::SeqCst);
            for _ in 0..4 {
                call(&mut client, status, place, "application/grpc").await;
            }
            let seen = calls.load(Ordering::SeqCst) - before;
            // Past the second failure there is nobody to ask; some statuses are tried again.
            assert!(if is_failure { seen == 2 } else { seen >= 4 }, "{status} in {place}: {seen}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_went_well_ends_a_row_and_a_head_does_not() {
    let (address, calls) = app().await;
    let shape = Shape { protocol: AppProtocol::Grpc, policies: vec![allow_all()], ..Shape::of(address) };
    let mesh = Mesh::start(shape).await;
    let mut client = client(&mesh).await;
    treat(&mesh, &two_in_a_row(1));
    for (status, place) in
        [("13", "trailers"), ("0", "trailers"), ("13", "trailers"), ("0", "head"), ("13", "trailers")]
    {
        call(&mut client, status, place, "application/grpc").await;
    }
    // What isn't gRPC has no status of gRPC.
    call(&mut client, "14", "trailers", "text/plain").await;
    call(&mut client, "13", "trailers", "application/grpc").await;
    assert_eq!(calls.load(Ordering::SeqCst), 7, "never two in a row");
    call(&mut client, "13", "trailers", "application/grpc").await;
    call(&mut client, "0", "head", "application/grpc").await;
    assert_eq!(calls.load(Ordering::SeqCst), 8, "the last two were");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_counts_as_a_failure() {
    let (address, calls) = app().await;
    let shape = Shape { protocol: AppProtocol::Grpc, policies: vec![allow_all()], ..Shape::of(address) };
    let mesh = Mesh::start(shape).await;
    let mut client = client(&mesh).await;
    treat(&mesh, &two_in_a_row(1));
    for _ in 0..4 {
        call(&mut client, "0", "reset", "application/grpc").await;
    }
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_does_not_come_in_time_counts_as_a_failure() {
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("free port");
    let silent = listener.local_addr().expect("bound");
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counter = Arc::clone(&counter);
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    seen.push(byte);
                    if seen.ends_with(b"\r\n\r\n") {
                        counter.fetch_add(1, Ordering::SeqCst);
                    }
                }
                let _ = stream.shutdown().await;
            });
        }
    });
    let pods = vec![Pod { app: silent, hbone: false }];
    let mesh = Mesh::start(Shape { pods, policies: vec![allow_all()], ..Shape::of(silent) }).await;
    for (hours, timeouts) in [json!({"backendRequest": "100ms"}), json!({"request": "100ms"})].iter().enumerate() {
        let mut service = bound(&[rule(&two_in_a_row(hours + 1))]);
        let spec = json!({"parentRefs": [{"group": "", "kind": "Service", "name": "mlflow"}], "rules": [
            {"timeouts": timeouts, "backendRefs": [{"name": "mlflow", "port": 5000}]}]});
        service.routes = vec![attached(&spec)];
        mesh.bundle(vec![service]);
        asked.store(0, Ordering::SeqCst);
        let mut statuses = Vec::new();
        let mut tunnel = mesh.tunnel("any").await;
        for _ in 0..3 {
            statuses.push(status(&exchange(&mut tunnel, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.0));
        }
        assert_eq!((statuses.as_slice(), asked.load(Ordering::SeqCst)), (&[504, 504, 503][..], 2), "{timeouts}");
    }
}
