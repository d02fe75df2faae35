//! Against the stock stack that a real ztunnel uses (rustls by tokio-rustls, and h2), as client and as server.

mod support;

use std::sync::Arc;

use ambit_testing::{TestMesh, identity};
use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{Request, Response, StatusCode};
use support::{Client, quick, server, soon};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const BULK_BYTES: usize = 24 << 20;

fn pattern() -> Vec<u8> {
    (0..BULK_BYTES as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Sends all, as far as the windows let it.
async fn send_all(send: &mut SendStream<Bytes>, mut data: Bytes) {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let room = std::future::poll_fn(|cx| send.poll_capacity(cx)).await.expect("open").expect("sound");
        let part = data.split_to(room.min(data.len()));
        send.send_data(part, data.is_empty()).expect("sent");
    }
}

async fn receive_all(recv: &mut RecvStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(data) = recv.data().await {
        let data = data.expect("sound");
        recv.flow_control().release_capacity(data.len()).expect("released");
        all.extend_from_slice(&data);
    }
    all
}

#[tokio::test]
async fn a_stock_client_is_served() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let certificate = mesh.certificates.get(&identity("a", "x")).await.expect("a certificate");
    let tcp = TcpStream::connect(server.addr).await.expect("connected");
    let connector = TlsConnector::from(certificate.client_config(&[identity("a", "server")]));
    let tls = connector.connect("nobody.invalid".try_into().expect("a name"), tcp).await.expect("TLS");
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(4 << 20).initial_connection_window_size(16 << 20).max_frame_size(1 << 20);
    let (send, connection) = builder.handshake::<_, Bytes>(tls).await.expect("HTTP/2");
    tokio::spawn(connection);
    let mut send = send.ready().await.expect("ready");

    let connect = |authority: &str| {
        let mut request = Request::connect(authority).header("x-sent", "twice").body(()).expect("a request");
        *request.version_mut() = http::Version::HTTP_2;
        request
    };
    for _ in 0..2 {
        let (response, mut body) = send.send_request(connect("echo:1"), false).expect("sent");
        let response = soon(response).await.expect("answered");
        assert_eq!(
            (response.status(), &response.headers()["x-sent"]),
            (StatusCode::OK, &"twice".parse::<http::HeaderValue>().expect("a value"))
        );
        let data = pattern();
        let mut recv = response.into_body();
        let sending = send_all(&mut body, Bytes::from(data.clone()));
        let ((), got) = soon(async { tokio::join!(sending, receive_all(&mut recv)) }).await;
        assert!(got == data, "{} of {} bytes, or other ones", got.len(), data.len());
    }
    let (response, _) = send.send_request(connect("denied:1"), false).expect("sent");
    assert_eq!(soon(response).await.expect("answered").status(), StatusCode::UNAUTHORIZED);
    let (response, body) = send.send_request(connect("break:1"), false).expect("sent");
    let mut recv = soon(response).await.expect("answered").into_body();
    assert_eq!(soon(recv.data()).await.expect("some").expect("sound"), &b"half"[..]);
    let error = soon(recv.data()).await.expect("an error").expect_err("cancelled");
    assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
    drop(body);
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_stock_server_serves() {
    let mesh = TestMesh::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let certificate = mesh.certificates.get(&identity("a", "server")).await.expect("a certificate");
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.expect("a connection");
        let tls = TlsAcceptor::from(certificate.server_config()).accept(tcp).await.expect("TLS");
        let mut builder = h2::server::Builder::new();
        builder.initial_window_size(4 << 20).initial_connection_window_size(16 << 20).max_frame_size(1 << 20);
        builder.max_concurrent_streams(200);
        let mut connection = builder.handshake::<_, Bytes>(tls).await.expect("HTTP/2");
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                assert_eq!(request.method(), http::Method::CONNECT);
                assert_eq!(request.uri().scheme(), None);
                if request.uri().authority().expect("one").as_str() == "denied:1" {
                    let refusal = Response::builder().status(401).body(()).expect("a response");
                    return drop(respond.send_response(refusal, true));
                }
                let answer = Response::builder().header("baggage", "k8s.pod.name=b").body(()).expect("a response");
                let mut send = respond.send_response(answer, false).expect("sent");
                let mut recv = request.into_body();
                let all = receive_all(&mut recv).await;
                send_all(&mut send, Bytes::from(all)).await;
            });
        }
    });
    let client = Arc::new(Client::new(&mesh, quick()));
    let mut rounds = Vec::new();
    for _ in 0..3 {
        let client = Arc::clone(&client);
        rounds.push(tokio::spawn(async move {
            let tunnel = client.open("x", addr, "10.0.0.1:80").await;
            assert_eq!(tunnel.response_headers()["baggage"], "k8s.pod.name=b");
            let data = pattern();
            let (mut read, mut write) = tokio::io::split(tunnel);
            write.write_all(&data).await.expect("written");
            write.shutdown().await.expect("ended");
            let mut got = Vec::new();
            read.read_to_end(&mut got).await.expect("read");
            assert!(got == data, "{} of {} bytes, or other ones", got.len(), data.len());
        }));
    }
    for round in rounds {
        soon(round).await.expect("no panic");
    }
    let denied = client.pool.connect(client.request("x", addr, "denied:1")).await.expect_err("denied");
    assert!(denied.to_string().contains("401"), "{denied}");
}
