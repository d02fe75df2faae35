//! gRPC at its edges: denials, deadlines, trailers.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use ambit_waypoint::Refusal;
use ambit_xds::workload::AppProtocol;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2::SendRequest,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpListener, sync::Notify};

use crate::{
    edges_http1::count,
    mesh::{Mesh, Shape, allow_all, policy, soon},
};

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// Told when a call has arrived at `/wait`, and when it is gone.
#[derive(Clone, Default)]
struct Calls {
    arrived: Arc<Notify>,
    gone: Arc<Notify>,
}

struct Gone(Arc<Notify>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// A gRPC application that sends a call's messages and trailers back.
async fn application(calls: Calls) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let calls = calls.clone();
            tokio::spawn(async move {
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let service = service_fn(move |request| serve(request, calls.clone()));
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

async fn serve(request: Request<Incoming>, calls: Calls) -> Result<Response<Body>, Infallible> {
    if request.uri().path() == "/svc/Wait" {
        let _gone = Gone(calls.gone);
        calls.arrived.notify_one();
        return std::future::pending().await;
    }
    let sent = |name: &str| request.headers().get(name).cloned().unwrap_or(HeaderValue::from_static("-"));
    let (timeout, te) = (sent("grpc-timeout"), sent("te"));
    let mut response = if request.uri().path() == "/svc/TrailersOnly" {
        let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
        response.headers_mut().insert("grpc-status", HeaderValue::from_static("5"));
        response.headers_mut().insert("grpc-message", HeaderValue::from_static("no%20such thing"));
        response
    } else {
        let echoed = request.into_body().map_frame(|frame| match frame.into_trailers() {
            Ok(mut trailers) => {
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                Frame::trailers(trailers)
            }
            Err(frame) => frame,
        });
        Response::new(echoed.boxed_unsync())
    };
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    headers.insert("x-timeout", timeout);
    headers.insert("x-te", te);
    Ok(response)
}

async fn client(mesh: &Mesh) -> SendRequest<Body> {
    let tunnel = mesh.tunnel("any").await;
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = soon(builder.handshake(TokioIo::new(tunnel))).await.expect("handshake");
    tokio::spawn(connection);
    sender
}

fn call(path: &str, body: Body) -> Request<Body> {
    let builder = Request::post(format!("http://mlflow{path}")).header("content-type", "application/grpc+proto");
    builder.header("te", "trailers").header("grpc-timeout", "1500m").body(body).expect("valid")
}

/// One message, and the stream's end.
fn message(trailers: Option<HeaderMap>) -> Body {
    let body = Full::new(Bytes::from_static(b"\0\0\0\0\x03abc")).map_err(|never| match never {});
    match trailers {
        None => body.boxed_unsync(),
        Some(trailers) => body.with_trailers(async move { Some(Ok(trailers)) }).boxed_unsync(),
    }
}

/// One message, and nothing more for as long as the test lasts.
fn unending() -> Body {
    let first = futures_util::stream::once(async { Ok(Frame::data(Bytes::from_static(b"\0\0\0\0\x03abc"))) });
    let all = futures_util::StreamExt::chain(first, futures_util::stream::pending());
    StreamBody::new(all).boxed_unsync()
}

async fn start(calls: Calls) -> Mesh {
    let mut shape = Shape::of(application(calls).await);
    shape.policies = vec![allow_all()];
    shape.protocol = AppProtocol::Grpc;
    Mesh::start(shape).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_kinds_of_calls_are_denied_as_grpc_denies() {
    let mesh = start(Calls::default()).await;
    let mut client = client(&mesh).await;
    mesh.policies(&[policy(serde_json::json!({"action": "ALLOW"}))]);
    // A server's stream looks like a unary call until it is answered.
    for (kind, body) in [
        ("unary", message(None)),
        ("a server's stream", message(None)),
        ("a client's stream", unending()),
        ("streams both ways", unending()),
    ] {
        let response = soon(client.send_request(call("/svc/Method", body))).await.expect("answered");
        assert_eq!(response.status(), StatusCode::OK, "{kind}");
        assert_eq!(response.headers()["content-type"], "application/grpc", "{kind}");
        assert_eq!(response.headers()["grpc-status"], "7", "{kind}");
        assert_eq!(response.headers()["grpc-message"], "RBAC: access denied", "{kind}");
        assert!(response.body().is_end_stream(), "{kind}: trailers only");
    }
    // The connection goes on.
    mesh.policies(&[allow_all()]);
    let response = soon(client.send_request(call("/svc/Method", message(None)))).await.expect("answered");
    assert_eq!(response.headers()["x-te"], "trailers");
    assert!(mesh.waypoint.as_ref().expect("running").refusals().iter().all(|(_, count)| count == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_call_says_is_carried_both_ways() {
    let mesh = start(Calls::default()).await;
    let mut client = client(&mesh).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum-bin", HeaderValue::from_static("AAEC"));
    trailers.append("x-many", HeaderValue::from_static("1"));
    trailers.append("x-many", HeaderValue::from_static("2"));
    let response = soon(client.send_request(call("/svc/Method", message(Some(trailers))))).await.expect("answered");
    assert_eq!(response.headers()["x-timeout"], "1500m");
    assert_eq!(response.headers()["x-te"], "trailers");
    assert!(!response.headers().contains_key("grpc-status"));
    let collected = soon(response.into_body().collect()).await.expect("whole");
    let trailers = collected.trailers().expect("trailers").clone();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["x-sum-bin"]),
        (&"0".parse().expect("v"), &"AAEC".parse().expect("v"))
    );
    assert_eq!(trailers.get_all("x-many").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(collected.to_bytes(), &b"\0\0\0\0\x03abc"[..]);

    let response = soon(client.send_request(call("/svc/TrailersOnly", message(None)))).await.expect("answered");
    assert_eq!((response.status(), response.headers()["grpc-status"].as_bytes()), (StatusCode::OK, &b"5"[..]));
    assert_eq!(response.headers()["grpc-message"], "no%20such thing");
    assert!(response.body().is_end_stream(), "trailers only stay trailers only");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_its_client_gives_up_ends_at_the_application() {
    let calls = Calls::default();
    let mesh = start(calls.clone()).await;
    let mut client = client(&mesh).await;
    let waiting = tokio::spawn(client.send_request(call("/svc/Wait", message(None))));
    soon(calls.arrived.notified()).await;
    // As clients do at a call's deadline: RST_STREAM with CANCEL.
    waiting.abort();
    soon(calls.gone.notified()).await;
    let response = soon(client.send_request(call("/svc/Method", message(None)))).await.expect("answered");
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(count(&mesh, Refusal::Http2Protocol), 0);
}
