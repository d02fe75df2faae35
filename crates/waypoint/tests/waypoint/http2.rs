//! HTTP/2 with prior knowledge.

use std::time::{Duration, Instant};

use ambit_policy::Verdict;
use ambit_xds::workload::AppProtocol;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Frame, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::{
    backend::{self, Raw},
    mesh::{Mesh, Shape, allow_all, header, policy, soon},
};

type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

async fn client(mesh: &Mesh, who: &str) -> SendRequest<Body> {
    let tunnel = mesh.tunnel(who).await;
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = soon(builder.handshake(TokioIo::new(tunnel))).await.expect("handshake");
    tokio::spawn(connection);
    sender
}

fn request(method: &str, target: &str, body: &'static str) -> Request<Body> {
    let builder = Request::builder().method(method).uri(format!("http://mlflow:5000{target}")).version(Version::HTTP_2);
    builder.body(Full::from(body).boxed_unsync()).expect("valid")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_of_a_connection_is_judged() {
    let mut mesh = Mesh::start(Shape::of(backend::http2().await)).await;
    let mut otel = client(&mesh, "otel-collector").await;
    let allowed = soon(otel.send_request(request("POST", "/v1/traces?a=%2F", "abc"))).await.expect("answered");
    assert_eq!(allowed.status(), StatusCode::OK);
    assert_eq!(allowed.headers()["x-saw"], "POST http://mlflow:5000/v1/traces?a=%2F HTTP/2.0");
    let collected = soon(allowed.into_body().collect()).await.expect("whole");
    assert_eq!(collected.trailers().expect("trailers")["x-end"], "1");
    assert_eq!(collected.to_bytes(), "abc");
    let record = mesh.expect_record(Verdict::Allow, Some(200)).await;
    assert_eq!((record.protocol, record.path.as_deref()), ("HTTP/2", Some("/v1/traces")));

    let denied = soon(otel.send_request(request("GET", "/v1/traces", ""))).await.expect("answered");
    assert_eq!(denied.status(), StatusCode::FORBIDDEN);
    assert_eq!(denied.headers()["content-type"], "text/plain");
    assert_eq!(denied.headers()["content-length"], "19");
    assert_eq!(soon(denied.into_body().collect()).await.expect("whole").to_bytes(), "RBAC: access denied");
    mesh.expect_record(Verdict::Deny, Some(403)).await;

    let head = soon(otel.send_request(request("HEAD", "/v1/traces", ""))).await.expect("answered");
    assert_eq!((head.status(), head.headers()["content-length"].as_bytes()), (StatusCode::FORBIDDEN, &b"19"[..]));
    assert!(soon(head.into_body().collect()).await.expect("whole").to_bytes().is_empty());

    let mut grpc = request("POST", "/svc/Method", "abc");
    grpc.headers_mut().insert("content-type", "application/grpc".parse().expect("value"));
    let grpc = soon(otel.send_request(grpc)).await.expect("answered");
    assert_eq!(grpc.status(), StatusCode::OK);
    assert_eq!(
        (&grpc.headers()["grpc-status"], &grpc.headers()["grpc-message"]),
        (&"7".parse().expect("value"), &"RBAC: access denied".parse().expect("value"))
    );

    let again = soon(otel.send_request(request("POST", "/v1/traces", ""))).await.expect("answered");
    assert_eq!(again.status(), StatusCode::OK);
    assert_eq!(mesh.sources().len(), 1, "one upstream connection carries them all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_go_both_ways_at_once_and_end_when_no_longer_allowed() {
    let mut shape = Shape::of(backend::http2().await);
    shape.policies = vec![allow_all()];
    let mut mesh = Mesh::start(shape).await;
    let mut any = client(&mesh, "any").await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Frame<Bytes>>(4);
    let frames =
        futures_util::stream::unfold(
            receiver,
            |mut receiver| async move { Some((Ok(receiver.recv().await?), receiver)) },
        );
    let streamed =
        Request::builder().method("POST").uri("http://mlflow/chat").body(StreamBody::new(frames).boxed_unsync());
    let response = soon(any.send_request(streamed.expect("valid"))).await.expect("head before the body ends");
    mesh.expect_record(Verdict::Allow, Some(200)).await;
    let mut body = response.into_body();
    for word in ["one", "two"] {
        sender.send(Frame::data(Bytes::from(word))).await.expect("open");
        let frame = soon(body.frame()).await.expect("more").expect("intact");
        assert_eq!(frame.into_data().expect("data"), word);
    }
    let edited = Instant::now();
    mesh.policies(&[policy(serde_json::json!({"action": "ALLOW"}))]);
    let end = soon(body.frame()).await;
    assert!(matches!(end, Some(Err(_))), "{end:?}");
    assert!(edited.elapsed() < Duration::from_millis(100), "{:?}", edited.elapsed());
    let record = mesh.expect_record(Verdict::Deny, None).await;
    assert_eq!(record.path.as_deref(), Some("/chat"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_upload_ends_when_no_longer_allowed() {
    let app = Raw::start().await;
    let mut shape = Shape::of(app.address);
    shape.policies = vec![allow_all()];
    shape.protocol = AppProtocol::Http11;
    let mut mesh = Mesh::start(shape).await;
    let mut any = client(&mesh, "any").await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Frame<Bytes>>(4);
    let frames =
        futures_util::stream::unfold(
            receiver,
            |mut receiver| async move { Some((Ok(receiver.recv().await?), receiver)) },
        );
    let upload = Request::builder().method("POST").uri("http://mlflow/up").body(StreamBody::new(frames).boxed_unsync());
    let answer = tokio::spawn(any.send_request(upload.expect("valid")));
    sender.send(Frame::data(Bytes::from("part"))).await.expect("open");
    tokio::time::sleep(Duration::from_millis(100)).await;
    mesh.policies(&[policy(serde_json::json!({"action": "ALLOW"}))]);
    let response = soon(answer).await.expect("no panic").expect("answered");
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    mesh.expect_record(Verdict::Deny, Some(403)).await;
    assert!(app.seen().is_empty(), "half a request is no request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_of_a_request_arrive() {
    let mut shape = Shape::of(backend::http2().await);
    shape.policies = vec![allow_all()];
    let mesh = Mesh::start(shape).await;
    let mut any = client(&mesh, "any").await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "42".parse().expect("value"));
    let body = Full::<Bytes>::from("abc").with_trailers(async move { Some(Ok(trailers)) });
    let request = Request::builder().method("POST").uri("http://mlflow/t").body(body.boxed_unsync()).expect("valid");
    let response = soon(any.send_request(request)).await.expect("answered");
    let collected = soon(response.into_body().collect()).await.expect("whole");
    assert_eq!(collected.trailers().expect("trailers")["x-sum"], "42");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_declared_http1_gets_http1() {
    let app = Raw::start().await;
    let mut shape = Shape::of(app.address);
    shape.policies = vec![allow_all()];
    shape.protocol = AppProtocol::Http11;
    let mesh = Mesh::start(shape).await;
    let mut any = client(&mesh, "any").await;
    let mut post = request("POST", "//x;y?z", "abc");
    post.headers_mut().append("cookie", "a=1".parse().expect("value"));
    post.headers_mut().append("cookie", "b=2".parse().expect("value"));
    let response = soon(any.send_request(post)).await.expect("answered");
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(soon(response.into_body().collect()).await.expect("whole").to_bytes(), "ok");
    let seen = app.seen().pop().expect("arrived");
    assert!(seen.starts_with("POST //x;y?z HTTP/1.1\r\n"), "{seen}");
    assert_eq!(header(&seen, "host"), Some("mlflow:5000"));
    assert_eq!(header(&seen, "cookie"), Some("a=1; b=2"));
    assert!(seen.ends_with("abc"), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_without_http2_is_recorded_as_such() {
    let app = backend::tcp(true).await;
    let mut shape = Shape::of(app);
    shape.policies = vec![allow_all()];
    let mut mesh = Mesh::start(shape).await;
    let mut any = client(&mesh, "any").await;
    let response = soon(any.send_request(request("GET", "/", ""))).await.expect("answered");
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let record = mesh.expect_record(Verdict::Allow, Some(503)).await;
    assert!(record.reason.contains("gave no answer"), "{}", record.reason);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ambiguous_hosts_are_refused() {
    let mut shape = Shape::of(backend::http2().await);
    shape.policies = vec![allow_all()];
    let mesh = Mesh::start(shape).await;
    let mut any = client(&mesh, "any").await;
    let mut other = request("GET", "/", "");
    other.headers_mut().insert("host", "elsewhere".parse().expect("value"));
    let response = soon(any.send_request(other)).await.expect("answered");
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let connect = Request::connect("mlflow:5000").body(Full::default().boxed_unsync()).expect("valid");
    let response = soon(any.send_request(connect)).await.expect("answered");
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert!(mesh.sources().is_empty());
}
