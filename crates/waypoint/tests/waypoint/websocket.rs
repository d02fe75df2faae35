//! WebSockets over HTTP/2 (RFC 8441).

use std::net::SocketAddr;

use ambit_policy::Verdict;
use ambit_xds::workload::AppProtocol;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use bytes::Bytes;
use data_encoding::BASE64;
use h2::{
    RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
    ext::Protocol,
};
use http::{Method, Request, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::{
    backend,
    mesh::{Mesh, Shape, allow_all, header, policy, soon},
};

/// An application of HTTP/1.1 whose WebSockets send every byte back. At `/wrong` it answers for another key, at `/plain` it
/// opens none. What it was asked goes to the receiver.
async fn application() -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("free port");
    let address = listener.local_addr().expect("bound");
    let (sender, asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move { serve(stream, sender).await });
        }
    });
    (address, asked)
}

async fn serve(mut stream: TcpStream, asked: mpsc::UnboundedSender<String>) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).expect("text");
    asked.send(head.clone()).ok()?;
    let mut key = header(&head, "sec-websocket-key").unwrap_or_default().to_owned();
    if head.starts_with("GET /plain ") {
        return stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.ok();
    }
    if head.starts_with("GET /wrong ") {
        key.push('x');
    }
    let accept = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes());
    let switch = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {}\r\n\
         sec-websocket-protocol: chat\r\n\r\n",
        BASE64.encode(accept.as_ref())
    );
    stream.write_all(switch.as_bytes()).await.ok()?;
    backend::echo(stream).await;
    Some(())
}

fn denying() -> serde_json::Value {
    let mut denying =
        policy(serde_json::json!({"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/denied"]}}]}]}));
    denying["name"] = "denying".into();
    denying
}

async fn start(app: SocketAddr, protocol: AppProtocol) -> Mesh {
    let mut shape = Shape::of(app);
    shape.policies = vec![allow_all(), denying()];
    shape.protocol = protocol;
    Mesh::start(shape).await
}

async fn client(mesh: &Mesh) -> SendRequest<Bytes> {
    let tunnel = mesh.tunnel("any").await;
    let (sender, connection) = soon(h2::client::handshake(tunnel)).await.expect("handshake");
    tokio::spawn(connection);
    let mut sender = soon(sender.ready()).await.expect("open");
    // The server's settings say whether it may be asked.
    let offered = async {
        while !sender.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
    };
    soon(offered).await;
    sender = soon(sender.ready()).await.expect("open");
    sender
}

fn open(sender: &mut SendRequest<Bytes>, path: &str, protocol: &'static str) -> (ResponseFuture, SendStream<Bytes>) {
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("http://mlflow:5000{path}"))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "chat")
        .body(())
        .expect("valid");
    request.extensions_mut().insert(Protocol::from_static(protocol));
    sender.send_request(request, false).expect("open")
}

async fn receive(body: &mut RecvStream, expected: &[u8]) {
    let mut received = Vec::new();
    while received.len() < expected.len() {
        let bytes = soon(body.data()).await.expect("more").expect("intact");
        let _ = body.flow_control().release_capacity(bytes.len());
        received.extend_from_slice(&bytes);
    }
    assert!(received == expected, "{} bytes", received.len());
}

/// How many bytes come until the end.
async fn rest(body: &mut RecvStream) -> Result<usize, h2::Error> {
    let mut count = 0;
    while let Some(bytes) = soon(body.data()).await {
        count += bytes?.len();
    }
    Ok(count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_carried_to_an_endpoint_of_http1() {
    for protocol in [AppProtocol::Http11, AppProtocol::Unknown] {
        let (app, mut asked) = application().await;
        let mut mesh = start(app, protocol).await;
        let mut sender = client(&mesh).await;
        let (response, mut stream) = open(&mut sender, "/chat?a=b", "websocket");
        let response = soon(response).await.expect("answered");
        assert_eq!(response.status(), StatusCode::OK);
        for absent in ["connection", "upgrade", "sec-websocket-accept"] {
            assert!(!response.headers().contains_key(absent), "{response:?}");
        }
        assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
        let head = soon(asked.recv()).await.expect("it arrived");
        assert!(head.starts_with("GET /chat?a=b HTTP/1.1\r\n"), "{head}");
        for (name, value) in [
            ("host", "mlflow:5000"),
            ("upgrade", "websocket"),
            ("connection", "upgrade"),
            ("sec-websocket-version", "13"),
        ] {
            assert_eq!(header(&head, name), Some(value), "{head}");
        }
        let mut body = response.into_body();
        for message in [&b"hello"[..], &[7; 30_000]] {
            stream.send_data(Bytes::copy_from_slice(message), false).expect("open");
            receive(&mut body, message).await;
        }
        stream.send_data(Bytes::from_static(b"bye"), true).expect("open");
        receive(&mut body, b"bye").await;
        assert_eq!(rest(&mut body).await.expect("and ends in order"), 0);
        mesh.expect_record(Verdict::Allow, Some(101)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_refused_where_none_can_be() {
    let (app, _asked) = application().await;
    let mesh = start(app, AppProtocol::Http11).await;
    let mut sender = client(&mesh).await;
    for (path, protocol, status) in [
        ("/denied", "websocket", 403),
        ("/wrong", "websocket", 502),
        ("/plain", "websocket", 502),
        ("/chat", "connect-udp", 403),
    ] {
        let (response, _stream) = open(&mut sender, path, protocol);
        assert_eq!(soon(response).await.expect("answered").status(), status, "{path} {protocol}");
    }
    // The connection has survived all of that.
    let (response, _stream) = open(&mut sender, "/chat", "websocket");
    assert_eq!(soon(response).await.expect("answered").status(), 200);

    let mesh = start(app, AppProtocol::Http2).await;
    let (response, _stream) = open(&mut client(&mesh).await, "/chat", "websocket");
    assert_eq!(soon(response).await.expect("answered").status(), 403, "nothing to ask an endpoint of HTTP/2 for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_ends_when_no_longer_allowed() {
    let (app, _asked) = application().await;
    let mesh = start(app, AppProtocol::Http11).await;
    let mut sender = client(&mesh).await;
    let (response, mut stream) = open(&mut sender, "/chat", "websocket");
    let mut body = soon(response).await.expect("answered").into_body();
    stream.send_data(Bytes::from_static(b"hello"), false).expect("open");
    receive(&mut body, b"hello").await;
    mesh.policies(&[policy(serde_json::json!({"action": "ALLOW"}))]);
    assert_eq!(rest(&mut body).await.unwrap_or_default(), 0, "it ended, in whatever way");
    // The other way as well, with the next thing that is sent at the latest.
    let closed = soon(std::future::poll_fn(|cx| stream.poll_reset(cx))).await;
    assert!(closed.is_ok(), "{closed:?}");
}
