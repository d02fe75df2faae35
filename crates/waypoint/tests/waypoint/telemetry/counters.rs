//! Counters of what isn't known before the end: bytes without a declared length, gRPC messages, why things broke.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use ambit_xds::workload::AppProtocol;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
};

use super::{counted, operators, scrape};
use crate::{
    backend::{self, Raw},
    mesh::{Mesh, Shape, allow_all, exchange, soon, status, traces_only},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bytes_of_chunks_are_counted() {
    let app = Raw::start().await;
    let mesh = Mesh::start(Shape::of(app.address)).await;
    let metrics = operators(&mesh).await;
    let mut tunnel = mesh.tunnel("otel-collector").await;
    let chunked = "POST /v1/traces HTTP/1.1\r\nhost: mlflow\r\ntransfer-encoding: chunked\r\n\r\n\
        3\r\nabc\r\n5\r\ndefgh\r\n0\r\n\r\n";
    assert_eq!(status(&exchange(&mut tunnel, chunked).await.0), 200);
    counted(metrics, "istio_request_bytes_sum", &["response_code=\"200\""], 8).await;
    let declared = "POST /v1/traces HTTP/1.1\r\nhost: mlflow\r\ncontent-length: 2\r\n\r\nab";
    assert_eq!(status(&exchange(&mut tunnel, declared).await.0), 200);
    counted(metrics, "istio_request_bytes_sum", &["response_code=\"200\""], 10).await;
}

/// A gRPC application that answers each message with two of its own, and one more at the end.
async fn doubling() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async move {
                let (sender, receiver) = mpsc::channel(4);
                tokio::spawn(double(request.into_body(), sender));
                let frames = futures_util::stream::unfold(receiver, |mut receiver| async move {
                    receiver.recv().await.map(|frame| (Ok::<_, Infallible>(frame), receiver))
                });
                let mut response = Response::new(StreamBody::new(frames));
                response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
                Ok::<_, Infallible>(response)
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

const MESSAGE: &[u8] = b"\0\0\0\0\x03abc";

async fn double(mut calls: Incoming, answers: mpsc::Sender<Frame<Bytes>>) {
    while let Some(Ok(frame)) = calls.frame().await {
        // The end of the client's stream is an empty one.
        if frame.data_ref().is_some_and(|data| !data.is_empty()) {
            // Two messages in one frame, the second cut.
            let _ = answers.send(Frame::data(Bytes::from([MESSAGE, &MESSAGE[..2]].concat()))).await;
            let _ = answers.send(Frame::data(Bytes::from_static(&MESSAGE[2..]))).await;
        }
    }
    let _ = answers.send(Frame::data(Bytes::from_static(MESSAGE))).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let _ = answers.send(Frame::trailers(trailers)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_messages_of_calls_are_counted_while_they_last() {
    let shape = Shape { protocol: AppProtocol::Grpc, ..Shape::of(doubling().await) };
    let mesh = Mesh::start(Shape { policies: vec![allow_all()], ..shape }).await;
    let metrics = operators(&mesh).await;
    let tunnel = mesh.tunnel("any").await;
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut client, connection) = soon(builder.handshake(TokioIo::new(tunnel))).await.expect("handshake");
    tokio::spawn(connection);
    let (sender, receiver) = mpsc::channel::<Bytes>(1);
    let frames = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|data| (Ok::<_, Infallible>(Frame::data(data)), receiver))
    });
    let body: UnsyncBoxBody<Bytes, Infallible> = StreamBody::new(frames).boxed_unsync();
    let call = Request::post("http://mlflow/svc/Both").header("content-type", "application/grpc");
    let mut response = soon(client.send_request(call.body(body).expect("valid"))).await.expect("answered");
    for _ in 0..2 {
        sender.send(Bytes::from_static(MESSAGE)).await.expect("sent");
    }
    // Two pieces each.
    for _ in 0..4 {
        soon(response.body_mut().frame()).await.expect("a frame").expect("well");
    }
    let parties = ["source_principal=\"spiffe://cluster.local/ns/kagenti-system/sa/any\"", "reporter=\"waypoint\""];
    let line = counted(metrics, "istio_response_messages_total", &parties, 4).await;
    for absent in ["response_code", "grpc_response_status", "request_protocol", "response_flags"] {
        assert!(!line.contains(absent), "the call hasn't ended: {line}");
    }
    assert!(line.contains("destination_service_name=\"mlflow\""), "{line}");
    counted(metrics, "istio_request_messages_total", &parties, 2).await;
    drop(sender);
    while let Some(frame) = soon(response.body_mut().frame()).await {
        frame.expect("well");
    }
    counted(metrics, "istio_requests_total", &["request_protocol=\"grpc\"", "grpc_response_status=\"0\""], 1).await;
    counted(metrics, "istio_response_messages_total", &parties, 5).await;
    counted(metrics, "istio_request_messages_total", &parties, 2).await;
    counted(metrics, "istio_request_bytes_sum", &["request_protocol=\"grpc\""], 16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_connection_is_a_connection_that_was_opened_and_closed() {
    let shape = Shape { protocol: AppProtocol::Tcp, ..Shape::of(backend::tcp(false).await) };
    let mesh = Mesh::start(Shape { policies: vec![traces_only()], ..shape }).await;
    let metrics = operators(&mesh).await;
    let mut tunnel = mesh.tunnel("any").await;
    let _ = soon(tunnel.write_all(b"hello")).await;
    assert!(soon(tunnel.read_u8()).await.is_err());
    let nowhere = ["destination_workload=\"unknown\"", "response_flags=\"-\"", "request_protocol=\"tcp\""];
    counted(metrics, "istio_tcp_connections_opened_total", &nowhere, 1).await;
    counted(metrics, "istio_tcp_connections_closed_total", &nowhere, 1).await;
    counted(metrics, "istio_tcp_received_bytes_total", &nowhere, 0).await;
}

/// An application that does this with each connection once it has a request.
async fn breaking(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { break };
                request.push(byte);
            }
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flags_tell_who_broke_what() {
    for (answer, code, flags) in [
        (&b""[..], 503, "UC"),
        (b"nonsense\r\n\r\n", 503, "UPE"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", 200, "UC"),
    ] {
        let app = breaking(answer).await;
        let mesh = Mesh::start(Shape { policies: vec![allow_all()], ..Shape::of(app) }).await;
        let metrics = operators(&mesh).await;
        let mut tunnel = mesh.tunnel("any").await;
        // Not a method that would be tried again.
        soon(tunnel.write_all(b"POST /a HTTP/1.1\r\nhost: mlflow\r\ncontent-length: 0\r\n\r\n"))
            .await
            .expect("written");
        soon(tunnel.flush()).await.expect("flushed");
        let mut head = [0; 12];
        // An answer that breaks off may do so before its head is on its way.
        match soon(tunnel.read_exact(&mut head)).await {
            Ok(_) => assert_eq!(head, *format!("HTTP/1.1 {code}").as_bytes()),
            Err(error) => assert_eq!(code, 200, "{error}"),
        }
        let labels = [format!("response_code=\"{code}\""), format!("response_flags=\"{flags}\"")];
        counted(metrics, "istio_requests_total", &[&labels[0], &labels[1]], 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_is_counted_as_such() {
    let app = Raw::start().await;
    let mesh = Mesh::start(Shape { policies: vec![allow_all()], ..Shape::of(app.address) }).await;
    let metrics = operators(&mesh).await;
    let mut tunnel = mesh.tunnel("any").await;
    soon(tunnel.write_all(b"GET /never HTTP/1.1\r\nhost: mlflow\r\n\r\n")).await.expect("written");
    soon(tunnel.flush()).await.expect("flushed");
    soon(async {
        while app.seen().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    drop(tunnel);
    counted(metrics, "istio_requests_total", &["response_code=\"0\"", "response_flags=\"DC\""], 1).await;
    assert!(!scrape(metrics).await.contains("response_code=\"200\""));
}
