//! Bytes through a tunnel over real TCP and TLS: order, flow control, half-close, reset, refusal.

mod support;

use std::{io::ErrorKind, sync::Arc, time::Duration};

use ambit_hbone::{AcceptError, ConnectError, Limits, accept};
use ambit_testing::{ManualClock, TestMesh, identity};
use http::{HeaderValue, Request, StatusCode};
use support::{Client, quick, server, soon};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

#[tokio::test]
async fn bytes_come_back_in_order_under_flow_control() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let client = Client::new(&mesh, quick());
    let tunnel = client.open("x", server.addr, "echo:1").await;
    // More than the windows hold, so both directions have to wait for each other.
    let sent: Vec<u8> = (0..24_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut read, mut write) = tokio::io::split(tunnel);
    let expected = sent.clone();
    let writing = async {
        write.write_all(&sent).await.expect("written");
        write.shutdown().await.expect("ended");
    };
    let reading = async {
        let mut got = Vec::new();
        read.read_to_end(&mut got).await.expect("read");
        got
    };
    let ((), got) = soon(async { tokio::join!(writing, reading) }).await;
    assert!(got == expected, "{} of {} bytes, or other ones", got.len(), expected.len());
}

#[tokio::test]
async fn each_direction_ends_on_its_own() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let client = Client::new(&mesh, quick());

    let mut tunnel = client.open("x", server.addr, "count:1").await;
    tunnel.write_all(b"12345").await.expect("written");
    tunnel.shutdown().await.expect("ended");
    let mut answer = String::new();
    soon(tunnel.read_to_string(&mut answer)).await.expect("answered after our end");
    assert_eq!(answer, "5");
    let error = tunnel.write_all(b"more").await.expect_err("ended");
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);

    let mut tunnel = client.open("x", server.addr, "greet:1").await;
    let mut greeting = String::new();
    soon(tunnel.read_to_string(&mut greeting)).await.expect("ended by the server");
    assert_eq!(greeting, "hello");
    tunnel.write_all(b"still open this way").await.expect("written");
    tunnel.shutdown().await.expect("ended");
}

#[tokio::test]
async fn a_broken_tunnel_is_not_a_finished_one() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let client = Client::new(&mesh, quick());
    let mut tunnel = client.open("x", server.addr, "break:1").await;
    let mut got = Vec::new();
    let error = soon(tunnel.read_to_end(&mut got)).await.expect_err("broken");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let error = tunnel.write_all(b"?").await.expect_err("broken");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    // The connection itself is sound.
    client.open("x", server.addr, "echo:1").await;
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn dropping_a_tunnel_breaks_it_for_the_peer() {
    let mesh = TestMesh::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let certificate = mesh.certificates.get(&identity("a", "server")).await.expect("a certificate");
    let (tell, told) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        let mut connection = accept(stream, certificate, &Limits::default()).await.expect("accepted");
        let request = connection.next().await.expect("a request").expect("sound");
        let mut tunnel = request.accept(http::HeaderMap::new()).expect("accepted");
        let reading = tokio::spawn(async move {
            let mut got = Vec::new();
            (tunnel.read_to_end(&mut got).await.map_err(|error| error.kind()), got)
        });
        while connection.next().await.is_some() {}
        let _ = tell.send(reading.await.expect("no panic"));
    });
    let client = Client::new(&mesh, quick());
    let mut tunnel = client.open("x", addr, "echo:1").await;
    tunnel.write_all(b"half").await.expect("written");
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(tunnel);
    client.pool.drain();
    let (outcome, got) = soon(told).await.expect("told");
    assert_eq!((outcome, &got[..]), (Err(ErrorKind::ConnectionReset), &b"half"[..]));
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_writer() {
    let mesh = TestMesh::new();
    let limits = Limits {
        stream_window_bytes: 128 << 10,
        connection_window_bytes: 512 << 10,
        client_send_buffer_bytes: 128 << 10,
        ..quick()
    };
    let server = server(&mesh, limits.clone()).await;
    let client = Client::new(&mesh, limits);
    let mut stalled = client.open("x", server.addr, "stall:1").await;
    let chunk = vec![0; 64 << 10];
    let mut written = 0;
    while let Ok(outcome) = timeout(Duration::from_millis(300), stalled.write(&chunk)).await {
        written += outcome.expect("written");
        assert!(written <= 1 << 20, "the writer was never stopped");
    }
    assert!(written >= 128 << 10, "{written}");
    // Its neighbour on the same connection isn't held up.
    let mut other = client.open("x", server.addr, "count:1").await;
    other.write_all(&chunk).await.expect("written");
    other.shutdown().await.expect("ended");
    let mut answer = String::new();
    soon(other.read_to_string(&mut answer)).await.expect("answered");
    assert_eq!(answer, (64 << 10).to_string());
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn headers_travel_and_refusals_name_their_status() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let client = Client::new(&mesh, quick());
    let mut request = client.request("x", server.addr, "echo:1");
    request.headers.insert("x-sent", HeaderValue::from_static("baggage"));
    let tunnel = client.pool.connect(request).await.expect("a tunnel");
    assert_eq!(tunnel.response_headers()["x-sent"], "baggage");
    assert_eq!(tunnel.response_headers()["x-peer"], "spiffe://cluster.local/ns/a/sa/x");

    let denied = client.pool.connect(client.request("x", server.addr, "denied:1")).await.expect_err("denied");
    assert!(matches!(denied, ConnectError::Refused { status: StatusCode::UNAUTHORIZED, .. }), "{denied}");
    assert!(denied.to_string().contains(&server.addr.to_string()) && denied.to_string().contains("401"), "{denied}");
    let dropped = client.pool.connect(client.request("x", server.addr, "gone:1")).await.expect_err("dropped");
    assert!(matches!(dropped, ConnectError::Dropped { .. }), "{dropped}");
    assert_eq!(server.connections(), 1, "an answer, even a bad one, is no reason to connect again");
    assert_eq!(server.requests(), 3);
    let bad = client.pool.connect(client.request("x", server.addr, "not an authority")).await.expect_err("bad");
    assert!(matches!(bad, ConnectError::Authority { .. }), "{bad}");
}

#[tokio::test]
async fn other_methods_reach_the_handler_as_such() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let certificate = mesh.certificates.get(&identity("a", "x")).await.expect("a certificate");
    let tcp = TcpStream::connect(server.addr).await.expect("connected");
    let connector = TlsConnector::from(certificate.client_config(&[identity("a", "server")]));
    let name = "nobody.invalid".try_into().expect("a name");
    let tls = connector.connect(name, tcp).await.expect("TLS");
    let (mut send, connection) = h2::client::handshake(tls).await.expect("HTTP/2");
    tokio::spawn(connection);
    let get = Request::get("http://echo:1/").body(()).expect("a request");
    let (response, _) = send.send_request(get, true).expect("sent");
    assert_eq!(soon(response).await.expect("answered").status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn an_expired_server_serves_nobody() {
    let clock = ManualClock::new();
    let mesh = TestMesh::with_clock(clock.clone());
    let certificate = mesh.certificates.get(&identity("a", "server")).await.expect("a certificate");
    clock.advance(Duration::from_secs(25 * 3600));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let _client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
    let (stream, _) = listener.accept().await.expect("a connection");
    let error = accept(stream, Arc::clone(&certificate), &quick()).await.expect_err("expired");
    assert!(matches!(error, AcceptError::Expired { .. }), "{error}");
}

#[tokio::test]
async fn clients_that_say_nothing_or_nonsense_are_dropped() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let mut silent = TcpStream::connect(server.addr).await.expect("connected");
    let mut plain = TcpStream::connect(server.addr).await.expect("connected");
    plain.write_all(b"CONNECT echo:1 HTTP/1.1\r\n\r\n").await.expect("written");
    let mut rest = Vec::new();
    // Closed by the server, whether with FIN or RST.
    let _ = soon(silent.read_to_end(&mut rest)).await;
    let _ = soon(plain.read_to_end(&mut rest)).await;
    let failures = support::locked(&server.seen).failures.join("\n");
    assert!(failures.contains("did not finish its handshake") && failures.contains("TLS with"), "{failures}");
    assert_eq!(server.connections(), 0);
}
