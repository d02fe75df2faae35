//! The pool: who may share a connection, how many are made, and what happens when one dies.

mod support;

use std::{sync::Arc, time::Duration};

use ambit_hbone::{ConnectError, HostNetwork, Limits};
use ambit_testing::{ManualClock, TestMesh, identity};
use support::{Client, eventually, quick, serve, server, soon};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::Instant,
};

#[tokio::test]
async fn identities_never_share_a_connection() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let client = Client::new(&mesh, quick());
    let mut tunnels = Vec::new();
    for turn in 0..10 {
        for account in ["x", "y"] {
            let mut tunnel = client.open(account, server.addr, "echo:1").await;
            let peer = tunnel.response_headers()["x-peer"].to_str().expect("ASCII").to_owned();
            assert_eq!(peer, identity("a", account).to_string(), "turn {turn}");
            tunnel.write_all(account.as_bytes()).await.expect("written");
            tunnels.push((account, tunnel));
        }
    }
    for (account, tunnel) in &mut tunnels {
        let mut echo = [0];
        soon(tunnel.read_exact(&mut echo)).await.expect("echoed");
        assert_eq!(echo, account.as_bytes());
    }
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn networks_and_expectations_are_kept_apart() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let client = Client::new(&mesh, quick());
    let _one = client.open("x", server.addr, "echo:1").await;
    let mut request = client.request("x", server.addr, "echo:1");
    request.network = Arc::new(HostNetwork);
    let _two = client.pool.connect(request.clone()).await.expect("a tunnel");
    assert_eq!(server.connections(), 2);
    request.expected.insert(0, identity("a", "another"));
    let _three = client.pool.connect(request.clone()).await.expect("a tunnel");
    request.expected.reverse();
    let _same = client.pool.connect(request.clone()).await.expect("a tunnel");
    assert_eq!(server.connections(), 3);
    client.pool.forget_network(&request.network);
    let _new = client.pool.connect(request).await.expect("a tunnel");
    let _old = client.open("x", server.addr, "echo:1").await;
    assert_eq!(server.connections(), 4);
}

#[tokio::test]
async fn many_tunnels_at_once_make_one_connection() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let limits = Limits { spread_connections: 1, ..quick() };
    let client = Arc::new(Client::new(&mesh, limits));
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let (client, addr) = (Arc::clone(&client), server.addr);
            tokio::spawn(async move { client.open("x", addr, "echo:1").await })
        })
        .collect();
    let mut tunnels = Vec::new();
    for task in tasks {
        tunnels.push(soon(task).await.expect("no panic"));
    }
    assert_eq!((server.connections(), server.requests()), (1, 50));
}

#[tokio::test]
async fn a_full_connection_gets_a_neighbour_and_takes_streams_again_later() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let limits = Limits { max_streams_per_connection: 3, max_connections_per_peer: 2, ..quick() };
    let client = Client::new(&mesh, limits);
    let mut tunnels = Vec::new();
    for _ in 0..6 {
        tunnels.push(client.open("x", server.addr, "echo:1").await);
    }
    assert_eq!(server.connections(), 2);
    let error = client.pool.connect(client.request("x", server.addr, "echo:1")).await.expect_err("full");
    assert!(matches!(error, ConnectError::TooManyConnections { limit: 2, .. }), "{error}");
    tunnels.truncate(3);
    for _ in 0..3 {
        tunnels.push(client.open("x", server.addr, "echo:1").await);
    }
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn with_one_stream_per_connection_every_tunnel_has_its_own() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let limits = Limits { max_streams_per_connection: 1, ..quick() };
    let client = Client::new(&mesh, limits);
    for tunnels in 1..=3 {
        let mut tunnel = client.open("x", server.addr, "echo:1").await;
        tunnel.write_all(b"x").await.expect("written");
        soon(tunnel.read_exact(&mut [0])).await.expect("echoed");
        assert_eq!(server.connections(), tunnels, "one after the other");
        drop(tunnel);
        eventually("the connection ends with its tunnel", || server.ended() == tunnels).await;
    }
    let tries = (0..5).map(|_| client.pool.connect(client.request("x", server.addr, "echo:1")));
    let held = soon(futures_util::future::join_all(tries)).await;
    assert!(held.iter().all(Result::is_ok), "{held:?}");
    assert_eq!(server.connections(), 8, "at the same time");
}

#[tokio::test]
async fn the_peers_own_limit_holds() {
    let mesh = TestMesh::new();
    let server = server(&mesh, Limits { max_accepted_streams: 2, ..quick() }).await;
    let client = Client::new(&mesh, quick());
    let mut tunnels = Vec::new();
    for _ in 0..5 {
        tunnels.push(soon(client.open("x", server.addr, "echo:1")).await);
    }
    assert_eq!(server.connections(), 3);
}

/// Streams that are opened before the peer has told its limit may be too many for one connection; none is lost.
#[tokio::test]
async fn a_limit_that_was_not_known_in_time_loses_no_tunnel() {
    let mesh = TestMesh::new();
    let server = server(&mesh, Limits { max_accepted_streams: 2, ..quick() }).await;
    let client = Client::new(&mesh, quick());
    let tries = (0..10).map(|_| client.pool.connect(client.request("x", server.addr, "echo:1")));
    let tunnels = soon(futures_util::future::join_all(tries)).await;
    for tunnel in &tunnels {
        assert!(tunnel.is_ok(), "{tunnel:?}");
    }
    assert_eq!(server.requests(), 10, "refused streams never reach the handler");
    assert!(server.connections() >= 5);
    // A new connection of the same peers begins with what was learned.
    let before = server.connections();
    let _more = client.open("x", server.addr, "echo:1").await;
    assert!(server.connections() <= before + 1);
}

#[tokio::test]
async fn a_hot_destination_gets_several_connections_and_they_share_the_load() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let limits = Limits { streams_before_spread: 3, spread_connections: 2, max_streams_per_connection: 6, ..quick() };
    let client = Client::new(&mesh, limits);
    let mut tunnels = Vec::new();
    for (opened, connections) in (1..=14).zip([1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3]) {
        tunnels.push(client.open("x", server.addr, "echo:1").await);
        assert_eq!(server.connections(), connections, "with {opened} tunnels");
    }
}

#[tokio::test]
async fn a_connection_that_died_is_replaced() {
    let mesh = TestMesh::new();
    let first = server(&mesh, quick()).await;
    let addr = first.addr;
    let client = Client::new(&mesh, quick());
    let mut tunnel = client.open("x", addr, "echo:1").await;
    first.stop();
    let mut rest = Vec::new();
    soon(tunnel.read_to_end(&mut rest)).await.expect_err("broken with its connection");
    let listener = eventually_bind(addr).await;
    let second = serve(&mesh, quick(), listener).await;
    client.open("x", addr, "echo:1").await;
    assert_eq!(second.connections(), 1);
}

async fn eventually_bind(addr: std::net::SocketAddr) -> TcpListener {
    for _ in 0..100 {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("set");
        if socket.bind(addr).is_ok() {
            return socket.listen(16).expect("listening");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("`{addr}` stays taken");
}

/// The pooled connection looks alive when it is checked out, and dies with the CONNECT under way.
#[tokio::test]
async fn a_request_lost_with_a_pooled_connection_is_tried_once_more() {
    let mesh = TestMesh::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let certificate = mesh.certificates.get(&identity("a", "server")).await.expect("a certificate");
    let requests = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let seen = Arc::clone(&requests);
    // Each connection answers one request and dies of the second.
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut connection =
                ambit_hbone::accept(stream, Arc::clone(&certificate), &quick()).await.expect("accepted");
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let mut tunnels = Vec::new();
                while let Some(Ok(request)) = connection.next().await {
                    seen.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    if tunnels.len() == 1 {
                        return;
                    }
                    tunnels.push(request.accept(http::HeaderMap::new()).expect("accepted"));
                }
            });
        }
    });
    let client = Client::new(&mesh, quick());
    let _first = client.open("x", addr, "echo:1").await;
    let _second = client.open("x", addr, "echo:1").await;
    assert_eq!(requests.load(std::sync::atomic::Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_draining_server_gets_no_new_tunnel_and_keeps_the_old_ones() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let client = Client::new(&mesh, quick());
    let mut old = client.open("x", server.addr, "echo:1").await;
    server.drain();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let _new = client.open("x", server.addr, "echo:1").await;
    assert_eq!(server.connections(), 2);
    old.write_all(b"still here").await.expect("written");
    old.shutdown().await.expect("ended");
    let mut echo = String::new();
    soon(old.read_to_string(&mut echo)).await.expect("echoed");
    assert_eq!(echo, "still here");
    drop(old);
    eventually("the first connection ends", || server.ended() == 1).await;
}

#[tokio::test]
async fn idle_connections_are_released_and_busy_ones_kept() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let client = Client::new(&mesh, Limits { idle_timeout: Duration::from_millis(200), ..quick() });
    let mut tunnel = client.open("x", server.addr, "echo:1").await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    tunnel.write_all(b"!").await.expect("written");
    soon(tunnel.read_u8()).await.expect("echoed");
    drop(tunnel);
    client.open("x", server.addr, "echo:1").await;
    assert_eq!(server.connections(), 1);
    eventually("the connection is closed", || server.ended() == 1).await;
    assert_eq!(format!("{:?}", client.pool), "Pool { peers: 0, .. }");
}

#[tokio::test]
async fn a_peer_that_answers_no_ping_is_dropped() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let limits = Limits {
        keepalive_interval: Duration::from_millis(100),
        keepalive_timeout: Duration::from_millis(200),
        ..quick()
    };
    // Between them, a relay that can fall silent without closing anything.
    let relay = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = relay.local_addr().expect("bound");
    let (mute, muted) = tokio::sync::watch::channel(false);
    let upstream = server.addr;
    tokio::spawn(async move {
        while let Ok((mut near, _)) = relay.accept().await {
            let mut far = tokio::net::TcpStream::connect(upstream).await.expect("connected");
            let mut muted = muted.clone();
            tokio::spawn(async move {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = muted.changed() => std::future::pending::<()>().await,
                }
            });
        }
    });
    let client = Client::new(&mesh, limits);
    let mut tunnel = client.open("x", addr, "echo:1").await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    tunnel.write_all(b"!").await.expect("pings keep it alive");
    soon(tunnel.read_u8()).await.expect("echoed");
    mute.send_replace(true);
    let started = Instant::now();
    let error = soon(tunnel.read_u8()).await.expect_err("dead");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_server_drops_a_client_that_answers_no_ping() {
    let mesh = TestMesh::new();
    let limits = Limits {
        keepalive_interval: Duration::from_millis(50),
        keepalive_timeout: Duration::from_millis(100),
        ..quick()
    };
    let server = server(&mesh, limits).await;
    let certificate = mesh.certificates.get(&identity("a", "x")).await.expect("a certificate");
    let tcp = tokio::net::TcpStream::connect(server.addr).await.expect("connected");
    let connector = tokio_rustls::TlsConnector::from(certificate.client_config(&[identity("a", "server")]));
    let tls = connector.connect("nobody.invalid".try_into().expect("a name"), tcp).await.expect("TLS");
    // Held, never driven: no PONG.
    let _held = h2::client::handshake(tls).await.expect("HTTP/2");
    eventually("the connection is accepted", || server.connections() == 1).await;
    eventually("the connection is dropped", || server.ended() == 1).await;
}

#[tokio::test]
async fn the_wrong_server_gets_no_tunnel() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let client = Client::new(&mesh, quick());
    let mut request = client.request("x", server.addr, "echo:1");
    for expected in [vec![], vec![identity("a", "another"), identity("b", "server")]] {
        request.expected = expected;
        let error = client.pool.connect(request.clone()).await.expect_err("refused");
        assert!(matches!(&error, ConnectError::Tls { reason, .. } if reason.contains("expected SAN")), "{error}");
    }
    assert_eq!(server.requests(), 0);
}

#[tokio::test]
async fn each_wait_is_bounded_and_names_the_peer() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let client = Client::new(&mesh, quick());
    let silent = client.pool.connect(client.request("x", server.addr, "silent:1")).await.expect_err("no answer");
    assert!(matches!(silent, ConnectError::ResponseTimeout { peer, .. } if peer == server.addr), "{silent}");

    // Accepted by the kernel, and no one there to do TLS.
    let deaf = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = deaf.local_addr().expect("bound");
    let started = Instant::now();
    let tries = (0..20).map(|_| client.pool.connect(client.request("x", addr, "echo:1")));
    for outcome in futures_util::future::join_all(tries).await {
        let error = outcome.expect_err("no TLS");
        assert!(matches!(error, ConnectError::HandshakeTimeout { peer, .. } if peer == addr), "{error}");
    }
    assert!(started.elapsed() < Duration::from_secs(2), "those who waited share the failure");

    drop(deaf);
    let refused = client.pool.connect(client.request("x", addr, "echo:1")).await.expect_err("nobody there");
    assert!(matches!(refused, ConnectError::Tcp { peer, .. } if peer == addr), "{refused}");
    assert_eq!(format!("{:?}", client.pool), "Pool { peers: 1, .. }", "failures leave nothing behind");
}

#[tokio::test]
async fn nothing_new_goes_over_a_connection_whose_certificate_expired() {
    let clock = ManualClock::new();
    let mesh = TestMesh::with_clock(clock.clone());
    let client = Client::new(&mesh, quick());
    let first = server(&mesh, quick()).await;
    let _old = client.open("x", first.addr, "echo:1").await;
    clock.advance(Duration::from_secs(25 * 3600));
    let second = server(&mesh, quick()).await;
    let error =
        client.pool.connect(client.request("x", first.addr, "echo:1")).await.expect_err("its server expired too");
    assert!(matches!(error, ConnectError::Tls { .. } | ConnectError::Dropped { .. }), "{error}");
    let _new = client.open("x", second.addr, "echo:1").await;
}

#[tokio::test]
async fn drain_lets_tunnels_finish_and_close_does_not() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let client = Client::new(&mesh, quick());
    let mut tunnel = client.open("x", server.addr, "echo:1").await;
    client.pool.drain();
    let error = client.pool.connect(client.request("x", server.addr, "echo:1")).await.expect_err("draining");
    assert!(matches!(error, ConnectError::Closed), "{error}");
    tunnel.write_all(b"!").await.expect("written");
    assert_eq!(soon(tunnel.read_u8()).await.expect("echoed"), b'!');
    client.pool.close();
    soon(tunnel.read_u8()).await.expect_err("closed");
    eventually("the connection ends", || server.ended() == 1).await;
}

#[tokio::test]
async fn a_dropped_pool_leaves_its_tunnels_alone() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let client = Client::new(&mesh, quick());
    let mut tunnel = client.open("x", server.addr, "echo:1").await;
    drop(client);
    tokio::time::sleep(Duration::from_millis(100)).await;
    tunnel.write_all(b"!").await.expect("written");
    assert_eq!(soon(tunnel.read_u8()).await.expect("echoed"), b'!');
    drop(tunnel);
    eventually("the connection ends", || server.ended() == 1).await;
}
