//! What goes over the wire, seen by a peer with the stock TLS library (`spec/ztunnel.md` 2.2, 2.4 to 2.6, 18).

mod support;

use std::{sync::Arc, time::Duration};

use ambit_hbone::{ConnectError, Limits, Pool};
use ambit_identity::{CertificateStore, KeyExchange, SystemClock, Trust};
use ambit_testing::TestMesh;
use support::{
    Client, eventually, quick,
    raw::{END, END_HEADERS, PREFACE, Raw, block, code, kind, settings},
    server, soon,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

#[tokio::test]
async fn the_client_hello_offers_the_hybrid_exchange_first_and_no_name() {
    let mesh = TestMesh::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let client = Client::new(&mesh, quick());
    tokio::spawn(async move { client.pool.connect(client.request("x", addr, "echo:1")).await.map(drop) });
    let (tcp, _) = soon(listener.accept()).await.expect("a connection");
    let acceptor = tokio_rustls::LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp);
    let hello = soon(acceptor).await.expect("a ClientHello");
    let hello = hello.client_hello();
    assert_eq!(hello.server_name(), None);
    assert_eq!(hello.alpn().expect("ALPN").collect::<Vec<_>>(), [b"h2"]);
    use rustls::{CipherSuite, NamedGroup};
    assert_eq!(hello.named_groups().expect("groups")[..2], [NamedGroup::X25519MLKEM768, NamedGroup::X25519]);
    let suites: Vec<_> = hello
        .cipher_suites()
        .iter()
        .filter(|suite| **suite != CipherSuite::TLS_EMPTY_RENEGOTIATION_INFO_SCSV)
        .collect();
    assert_eq!(suites, [&CipherSuite::TLS13_AES_256_GCM_SHA384, &CipherSuite::TLS13_AES_128_GCM_SHA256]);
}

/// `COMPLIANCE_POLICY=pqc`: this group or no connection.
#[tokio::test]
async fn a_post_quantum_only_client_offers_nothing_else() {
    let mesh = TestMesh::new();
    let trust = Trust::new(KeyExchange::PostQuantumOnly);
    let certificates = CertificateStore::with_trust(Arc::clone(&mesh.ca) as _, Arc::new(SystemClock), trust);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let mut client = Client::new(&mesh, quick());
    client.pool = Pool::new(Arc::clone(&certificates), quick());
    let request = client.request("x", addr, "echo:1");
    let pool = Arc::clone(&client.pool);
    tokio::spawn(async move { pool.connect(request).await.map(drop) });
    let (tcp, _) = soon(listener.accept()).await.expect("a connection");
    let acceptor = tokio_rustls::LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp);
    let hello = soon(acceptor).await.expect("a ClientHello");
    assert_eq!(hello.client_hello().named_groups(), Some(&[rustls::NamedGroup::X25519MLKEM768][..]));
    // With a peer that has it, all is as ever.
    let server = server(&mesh, quick()).await;
    let _tunnel = client.open("x", server.addr, "echo:1").await;
}

#[tokio::test]
async fn a_client_says_all_in_its_first_flight() {
    let mesh = TestMesh::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let client = Client::new(&mesh, quick());
    tokio::spawn(async move { client.pool.connect(client.request("x", addr, "10.0.0.1:80")).await.map(drop) });
    let mut raw = soon(Raw::server(&mesh, &listener)).await;
    assert_eq!(raw.tls.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let mut preface = [0; 24];
    soon(raw.tls.read_exact(&mut preface)).await.expect("a preface");
    assert_eq!(preface, PREFACE);
    let first = soon(raw.frame()).await.expect("a frame");
    assert_eq!(
        (first.kind, settings(&first)),
        (kind::SETTINGS, vec![(2, 0), (4, 4 << 20), (5, 1 << 20), (6, 16 << 10)])
    );
    let second = soon(raw.frame()).await.expect("a frame");
    assert_eq!(
        (second.kind, second.stream, &second.payload[..]),
        (kind::WINDOW_UPDATE, 0, &16_711_681_u32.to_be_bytes()[..])
    );
    // Before any word of the server's.
    let third = soon(raw.frame()).await.expect("a frame");
    assert_eq!((third.kind, third.stream, third.flags), (kind::HEADERS, 1, END_HEADERS), "and no END_STREAM");
}

#[tokio::test]
async fn a_server_says_its_settings_unasked() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let mut raw = Raw::client(&mesh, server.addr).await;
    let first = soon(raw.frame()).await.expect("a frame");
    assert_eq!(
        (first.kind, settings(&first)),
        (kind::SETTINGS, vec![(3, 200), (4, 4 << 20), (5, 1 << 20), (6, 64 << 10)])
    );
    let second = soon(raw.frame()).await.expect("a frame");
    assert_eq!(
        (second.kind, second.stream, &second.payload[..]),
        (kind::WINDOW_UPDATE, 0, &16_711_681_u32.to_be_bytes()[..])
    );
}

#[tokio::test]
async fn refusals_end_the_stream_at_once() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let mut raw = Raw::greeted_client(&mesh, server.addr).await;
    for (stream, authority, status) in [(1, "denied:1", &b"401"[..]), (3, "away:1", b"503"), (5, "bad:1", b"400")] {
        raw.connect(stream, authority, &[]).await;
        let answer = soon(raw.expect(kind::HEADERS)).await;
        assert_eq!((answer.stream, answer.flags), (stream, END | END_HEADERS), "{authority}");
        // An indexed field for 400, a literal for the others.
        let shown = answer.payload == [0x8c] || answer.payload.ends_with(status);
        assert!(shown, "{authority}: {:?}", answer.payload);
        let reset = soon(raw.expect(kind::RST_STREAM)).await;
        assert_eq!((reset.stream, code(&reset)), (stream, 0), "{authority}");
    }
}

#[tokio::test]
async fn requests_that_are_none_are_reset_and_the_others_live_on() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let mut raw = Raw::greeted_client(&mesh, server.addr).await;
    let connect = (":method", "CONNECT");
    let cases: [&[(&str, &str)]; 9] = [
        &[connect],
        &[connect, (":authority", "")],
        &[connect, (":authority", "echo:1"), (":protocol", "websocket")],
        &[connect, (":authority", "echo:1"), (":path", "/"), (":scheme", "https")],
        &[connect, (":authority", "echo:1"), (":authority", "echo:1")],
        &[connect, (":authority", "echo:1"), ("Baggage", "upper case")],
        &[connect, (":authority", "echo:1"), ("connection", "close")],
        &[(":authority", "echo:1")],
        &[(":method", "GET"), (":authority", "echo:1")],
    ];
    let mut stream = 1;
    for case in cases {
        raw.send(kind::HEADERS, END_HEADERS, stream, &block(case)).await;
        let reset = soon(raw.expect(kind::RST_STREAM)).await;
        assert_eq!((reset.stream, code(&reset)), (stream, 1), "{case:?}");
        stream += 2;
    }
    raw.connect(stream, "echo:1", &[]).await;
    assert_eq!(soon(raw.expect(kind::HEADERS)).await.stream, stream);
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_the_connection_with_its_code() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let headers = block(&[(":method", "CONNECT"), (":authority", "echo:1")]);
    let huge = vec![0; 40_000];
    /// Kind, flags, stream and payload of a frame.
    type Frame<'f> = (u8, u8, u32, &'f [u8]);
    let cases: &[(&str, u32, &[Frame<'_>])] = &[
        ("data on a stream that was never opened", 1, &[(kind::DATA, 0, 1, b"x")]),
        ("data on stream 0", 1, &[(kind::DATA, 0, 0, b"x")]),
        ("a window that grows too large", 3, &[(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])]),
        ("a window update of nothing", 3, &[(kind::WINDOW_UPDATE, 0, 0, &[0; 4])]),
        ("an initial window that is too large", 3, &[(kind::SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff])]),
        ("a largest frame that is too small", 1, &[(kind::SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1])]),
        ("half a setting", 6, &[(kind::SETTINGS, 0, 0, &[0, 4, 0])]),
        ("a short ping", 6, &[(kind::PING, 0, 0, b"short")]),
        ("a ping on a stream", 1, &[(kind::PING, 0, 1, &[0; 8])]),
        ("a stream with an even number", 1, &[(kind::HEADERS, END_HEADERS, 2, &headers)]),
        ("a corrupt header block", 9, &[(kind::HEADERS, END_HEADERS, 1, &[0xff; 8])]),
        ("a continuation of nothing", 1, &[(kind::CONTINUATION, END_HEADERS, 1, &headers)]),
        ("an interrupted header block", 1, &[(kind::HEADERS, 0, 1, &headers), (kind::PING, 0, 0, &[0; 8])]),
        ("header blocks without end", 11, &[(kind::HEADERS, 0, 1, &huge), (kind::CONTINUATION, 0, 1, &huge)]),
        ("more padding than payload", 1, &[(kind::HEADERS, END_HEADERS | 8, 1, &[9, 0])]),
        ("a push", 1, &[(5, END_HEADERS, 1, &[0; 4])]),
        ("a huge control frame", 6, &[(kind::GOAWAY, 0, 0, &huge)]),
    ];
    for (what, expected, frames) in cases {
        let mut raw = Raw::greeted_client(&mesh, server.addr).await;
        for (kind, flags, stream, payload) in *frames {
            raw.send(*kind, *flags, *stream, payload).await;
        }
        let farewell = soon(raw.expect(kind::GOAWAY)).await;
        assert_eq!(code(&farewell), *expected, "{what}");
        assert_eq!(soon(raw.frame()).await, None, "{what}");
    }
}

#[tokio::test]
async fn the_first_words_must_be_http2() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let mut wrong = Raw::client(&mesh, server.addr).await;
    wrong.tls.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
    assert_eq!(code(&soon(wrong.expect(kind::GOAWAY)).await), 1);
    let mut silent = Raw::client(&mesh, server.addr).await;
    soon(silent.expect(kind::GOAWAY)).await;
    eventually("both are dropped", || server.ended() == 2).await;
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused_until_some_end() {
    let mesh = TestMesh::new();
    let server = server(&mesh, Limits { max_accepted_streams: 2, ..quick() }).await;
    let mut raw = Raw::greeted_client(&mesh, server.addr).await;
    for stream in [1, 3, 5] {
        raw.connect(stream, "stall:1", &[]).await;
    }
    let refused = soon(raw.expect(kind::RST_STREAM)).await;
    assert_eq!((refused.stream, code(&refused)), (5, 7));
    // A stream counts until its handler is done with it, so resets don't make room for endless work.
    raw.send(kind::RST_STREAM, 0, 1, &8_u32.to_be_bytes()).await;
    raw.connect(7, "echo:1", &[]).await;
    let refused = soon(raw.expect(kind::RST_STREAM)).await;
    assert_eq!((refused.stream, code(&refused)), (7, 7));
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn a_drain_has_two_steps_and_leaves_no_stream_hanging() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let mut raw = Raw::greeted_client(&mesh, server.addr).await;
    raw.connect(1, "echo:1", &[]).await;
    soon(raw.expect(kind::HEADERS)).await;
    server.drain();
    let first = soon(raw.expect(kind::GOAWAY)).await;
    assert_eq!((&first.payload[..4], code(&first)), (&0x7fff_ffff_u32.to_be_bytes()[..], 0));
    let ping = soon(raw.expect(kind::PING)).await;
    // Sent before we have answered: the server can't expect us to know.
    raw.connect(3, "echo:1", &[]).await;
    assert_eq!(soon(raw.expect(kind::HEADERS)).await.stream, 3, "answered");
    raw.send(kind::PING, END, 0, &ping.payload).await;
    let last = soon(raw.expect(kind::GOAWAY)).await;
    assert_eq!((&last.payload[..4], code(&last)), (&3_u32.to_be_bytes()[..], 0));
    raw.connect(5, "echo:1", &[]).await;
    let refused = soon(raw.expect(kind::RST_STREAM)).await;
    assert_eq!((refused.stream, code(&refused)), (5, 7), "refused");
    for stream in [1, 3] {
        raw.send(kind::DATA, END, stream, b"still here").await;
        assert_eq!(soon(raw.expect(kind::DATA)).await.payload, b"still here");
    }
    eventually("the connection ends with its last stream", || server.ended() == 1).await;
}

#[tokio::test]
async fn streams_beyond_the_goaway_are_tried_elsewhere() {
    let mesh = TestMesh::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let client = Client::new(&mesh, quick());
    let opening = tokio::spawn(async move {
        let tunnel = client.pool.connect(client.request("x", addr, "echo:1")).await;
        (tunnel, client)
    });
    let mut first = soon(Raw::server(&mesh, &listener)).await;
    first.send(kind::SETTINGS, 0, 0, &[]).await;
    first.send(kind::GOAWAY, 0, 0, &[0; 8]).await;
    let mut second = soon(Raw::server(&mesh, &listener)).await;
    second.send(kind::SETTINGS, 0, 0, &[]).await;
    second.send(kind::HEADERS, END_HEADERS, 1, &[0x88]).await;
    let (tunnel, _client) = soon(opening).await.expect("no panic");
    tunnel.expect("a tunnel, on the second connection");
}

#[tokio::test]
async fn pings_are_answered_and_sent_ten_seconds_apart() {
    let limits = Limits { keepalive_interval: Duration::from_millis(300), ..quick() };
    assert_eq!(
        (Limits::default().keepalive_interval, Limits::default().keepalive_timeout),
        (Duration::from_secs(10), Duration::from_secs(20))
    );
    let mesh = TestMesh::new();
    let server = server(&mesh, limits).await;
    let mut raw = Raw::greeted_client(&mesh, server.addr).await;
    raw.send(kind::PING, 0, 0, b"12345678").await;
    let pong = soon(raw.expect(kind::PING)).await;
    assert_eq!((pong.flags, &pong.payload[..]), (END, &b"12345678"[..]));
    for _ in 0..2 {
        let asked = std::time::Instant::now();
        let ping = soon(raw.expect(kind::PING)).await;
        assert!(ping.flags == 0 && asked.elapsed() > Duration::from_millis(100), "{ping:?} {:?}", asked.elapsed());
        raw.send(kind::PING, END, 0, &ping.payload).await;
    }
}

#[tokio::test]
async fn new_keys_of_the_peer_are_taken_and_answered() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let mut raw = Raw::greeted_client(&mesh, server.addr).await;
    raw.connect(1, "echo:1", &[]).await;
    soon(raw.expect(kind::HEADERS)).await;
    for turn in 0..5_u8 {
        match &mut raw.tls {
            tokio_rustls::TlsStream::Client(tls) => tls.get_mut().1.refresh_traffic_keys().expect("new keys"),
            tokio_rustls::TlsStream::Server(_) => unreachable!("it is a client"),
        }
        raw.send(kind::DATA, 0, 1, &[turn; 100]).await;
        assert_eq!(soon(raw.expect(kind::DATA)).await.payload, [turn; 100]);
    }
}

#[tokio::test]
async fn an_altered_record_ends_the_connection() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    // A relay that flips a bit of what comes after the handshake.
    let relay = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = relay.local_addr().expect("bound");
    let upstream = server.addr;
    let (flip, flips) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        let (near, _) = relay.accept().await.expect("a connection");
        let far = TcpStream::connect(upstream).await.expect("connected");
        let ((mut near_in, mut near_out), (mut far_in, mut far_out)) = (near.into_split(), far.into_split());
        tokio::spawn(async move { tokio::io::copy(&mut far_in, &mut near_out).await });
        let mut buffer = vec![0; 65_536];
        while let Ok(length @ 1..) = near_in.read(&mut buffer).await {
            if *flips.borrow() {
                buffer[length - 1] ^= 1;
            }
            far_out.write_all(&buffer[..length]).await.expect("written");
        }
    });
    let client = Client::new(&mesh, quick());
    let mut tunnel = client.open("x", addr, "echo:1").await;
    tunnel.write_all(b"sound").await.expect("written");
    let mut echo = [0; 5];
    soon(tunnel.read_exact(&mut echo)).await.expect("echoed");
    flip.send_replace(true);
    tunnel.write_all(b"altered").await.expect("written");
    let error = soon(tunnel.read_u8()).await.expect_err("broken");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    eventually("the server gave up too", || server.ended() == 1).await;
}

#[tokio::test]
async fn a_client_without_certificate_or_of_another_domain_gets_an_alert() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let foreign = TestMesh::new();
    let client = Client::new(&foreign, quick());
    let error = client.pool.connect(client.request("x", server.addr, "echo:1")).await.expect_err("a foreign root");
    assert!(matches!(&error, ConnectError::Tls { .. }), "{error}");
    assert_eq!((server.connections(), server.requests()), (0, 0));
}
