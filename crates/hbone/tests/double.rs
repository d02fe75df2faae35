//! A tunnel within a tunnel, through a network gateway (`spec/ztunnel.md` 2.8).

mod support;

use std::{io::ErrorKind, net::SocketAddr, sync::Arc};

use ambit_hbone::{
    ConnectError, ConnectHeaders, Tunnel, accept, accept_over, connect_within,
    copy::{HALF_CLOSE_IDLE_TIMEOUT, bidirectional},
};
use ambit_testing::{TestMesh, identity};
use http::{HeaderMap, HeaderValue, StatusCode};
use support::{Client, eventually, quick, server, soon};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A gateway `a/gateway` that relays every tunnel's bytes to `upstream`, whatever they are, as one passes TLS through.
async fn gateway(mesh: &TestMesh, upstream: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let certificate = mesh.certificates.get(&identity("a", "gateway")).await.expect("a certificate");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let certificate = Arc::clone(&certificate);
            tokio::spawn(async move {
                let mut connection = accept(stream, certificate, &quick()).await.expect("accepted");
                while let Some(Ok(request)) = connection.next().await {
                    assert!(request.connect_headers().expect("sound").network.is_none(), "only the inner one says so");
                    tokio::spawn(async move {
                        let mut stream = TcpStream::connect(upstream).await.expect("connected");
                        let mut tunnel = request.accept(HeaderMap::new()).expect("accepted");
                        let _ = bidirectional(&mut tunnel, &mut stream, HALF_CLOSE_IDLE_TIMEOUT).await;
                    });
                }
            });
        }
    });
    addr
}

async fn double(
    mesh: &TestMesh,
    client: &Client,
    gateway: SocketAddr,
    inner: &str,
    server: &str,
) -> Result<Tunnel, ConnectError> {
    let mut request = client.request("x", gateway, "server.a.svc.cluster.local:80");
    request.expected = vec![identity("a", "gateway")];
    let outer = client.pool.connect(request.clone()).await?;
    request.expected = vec![identity("a", server)];
    request.authority = inner.to_owned();
    request.headers =
        ConnectHeaders { network: Some("east".to_owned()), ..ConnectHeaders::default() }.to_map().expect("headers");
    request.headers.insert("x-sent", HeaderValue::from_static("inner"));
    let certificate = mesh.certificates.get(&request.source).await.expect("a certificate");
    connect_within(outer, &certificate, request, &quick()).await
}

#[tokio::test]
async fn the_inner_ends_authenticate_each_other_through_the_gateway() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let gateway = gateway(&mesh, server.addr).await;
    let client = Client::new(&mesh, quick());
    for turn in 0..3 {
        let mut tunnel = double(&mesh, &client, gateway, "count:1", "server").await.expect("a tunnel");
        assert_eq!(tunnel.response_headers()["x-peer"], "spiffe://cluster.local/ns/a/sa/x");
        assert_eq!(tunnel.response_headers()["x-sent"], "inner");
        tunnel.write_all(&vec![5; 700_000]).await.expect("written");
        tunnel.shutdown().await.expect("ended");
        let mut answer = String::new();
        soon(tunnel.read_to_string(&mut answer)).await.expect("answered");
        assert_eq!(answer, "700000");
        drop(tunnel);
        eventually("each inner connection ends with its tunnel", || server.ended() == turn + 1).await;
    }
    // The outer one was shared all the time, and is still there.
    assert_eq!(format!("{:?}", client.pool), "Pool { peers: 1, .. }");
}

#[tokio::test]
async fn the_inner_peer_must_be_the_one_expected() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let gateway = gateway(&mesh, server.addr).await;
    let client = Client::new(&mesh, quick());
    let error = double(&mesh, &client, gateway, "echo:1", "another").await.expect_err("another");
    assert!(matches!(error, ConnectError::Tls { .. }), "{error}");
    let error = double(&mesh, &client, gateway, "denied:1", "server").await.expect_err("denied");
    assert!(matches!(error, ConnectError::Refused { status: StatusCode::UNAUTHORIZED, .. }), "{error}");
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn a_broken_outer_tunnel_breaks_the_inner_one() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let gateway = gateway(&mesh, server.addr).await;
    let client = Client::new(&mesh, quick());
    let mut tunnel = double(&mesh, &client, gateway, "echo:1", "server").await.expect("a tunnel");
    client.pool.close();
    let error = soon(tunnel.read_u8()).await.expect_err("broken");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn the_accepting_end_runs_over_any_stream() {
    let mesh = TestMesh::new();
    let (near, far) = tokio::io::duplex(1000);
    let nowhere: SocketAddr = "192.0.2.1:15008".parse().expect("an address");
    let certificate = mesh.certificates.get(&identity("a", "server")).await.expect("a certificate");
    tokio::spawn(async move {
        let mut connection = accept_over(far, certificate, &quick(), nowhere, nowhere).await.expect("accepted");
        assert_eq!((connection.peer_addr(), connection.peer_certificates().len()), (nowhere, 1));
        while let Some(Ok(request)) = connection.next().await {
            let tunnel = request.accept(HeaderMap::new()).expect("accepted");
            let (mut read, mut write) = tokio::io::split(tunnel);
            tokio::spawn(async move { tokio::io::copy(&mut read, &mut write).await });
        }
    });
    let client = Client::new(&mesh, quick());
    let request = client.request("x", nowhere, "echo:1");
    let certificate = mesh.certificates.get(&request.source).await.expect("a certificate");
    let mut tunnel = connect_within(near, &certificate, request, &quick()).await.expect("a tunnel");
    tunnel.write_all(b"through a pipe").await.expect("written");
    let mut echo = [0; 14];
    soon(tunnel.read_exact(&mut echo)).await.expect("echoed");
    assert_eq!(&echo, b"through a pipe");
}
