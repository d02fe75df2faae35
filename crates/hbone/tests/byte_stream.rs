//! The table of `spec/ztunnel.md` 2.7, with the improvements that Ambit makes: what an application does on its socket,
//! and what its peer's proxy sees as frames; and the other way round.

mod support;

use std::{io::ErrorKind, time::Duration};

use ambit_hbone::{
    Tunnel,
    copy::{CopyError, Reset, Timeouts, bidirectional_within},
    socket::reset_on_close,
};
use ambit_testing::TestMesh;
use support::{
    Client, quick,
    raw::{END, END_HEADERS, Raw, code, kind},
    soon,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

type Copied = JoinHandle<Result<(u64, u64), CopyError>>;

/// An application whose bytes go through a tunnel, and the peer at the tunnel's other end.
struct Scene {
    app: TcpStream,
    peer: Raw,
    copied: Copied,
    _client: Client,
    _mesh: TestMesh,
}

/// The answer to the CONNECT is sent.
async fn tunnel(mesh: &TestMesh) -> (Tunnel, Raw, Client) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let client = Client::new(mesh, quick());
    let request = client.request("x", addr, "10.0.0.1:80");
    let opening = client.pool.connect(request);
    let answering = async {
        let mut peer = Raw::server(mesh, &listener).await;
        peer.send(kind::SETTINGS, 0, 0, &[]).await;
        let mut preface = [0; 24];
        peer.tls.read_exact(&mut preface).await.expect("a preface");
        peer.expect(kind::HEADERS).await;
        peer.send(kind::HEADERS, END_HEADERS, 1, &[0x88]).await;
        peer
    };
    let (tunnel, peer) = soon(async { tokio::join!(opening, answering) }).await;
    (tunnel.expect("a tunnel"), peer, client)
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let near = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
    (near, listener.accept().await.expect("accepted").0)
}

async fn scene(timeouts: Timeouts) -> Scene {
    let mesh = TestMesh::new();
    let (mut tunnel, peer, client) = tunnel(&mesh).await;
    let (app, mut captured) = pair().await;
    let copied = tokio::spawn(async move { bidirectional_within(&mut captured, &mut tunnel, timeouts).await });
    Scene { app, peer, copied, _client: client, _mesh: mesh }
}

#[tokio::test]
async fn a_fin_is_an_end_of_stream_and_the_other_direction_goes_on() {
    let Scene { mut app, mut peer, copied, .. } = scene(Timeouts::default()).await;
    app.write_all(b"request").await.expect("written");
    assert_eq!(soon(peer.expect(kind::DATA)).await.payload, b"request");
    app.shutdown().await.expect("ended");
    let end = soon(peer.expect(kind::DATA)).await;
    assert_eq!((end.flags, &end.payload[..]), (END, &b""[..]));
    peer.send(kind::DATA, 0, 1, b"answer").await;
    peer.send(kind::DATA, END, 1, b", all of it").await;
    let mut answer = String::new();
    soon(app.read_to_string(&mut answer)).await.expect("ended");
    assert_eq!(answer, "answer, all of it");
    assert_eq!(soon(copied).await.expect("no panic").expect("finished"), (7, 17));
}

#[tokio::test]
async fn an_end_of_stream_is_a_fin_and_the_other_direction_goes_on() {
    let Scene { mut app, mut peer, copied, .. } = scene(Timeouts::default()).await;
    peer.send(kind::DATA, END, 1, b"hello").await;
    let mut greeting = String::new();
    soon(app.read_to_string(&mut greeting)).await.expect("ended");
    assert_eq!(greeting, "hello");
    app.write_all(b"still open this way").await.expect("written");
    assert_eq!(soon(peer.expect(kind::DATA)).await.payload, b"still open this way");
    drop(app);
    assert_eq!(soon(peer.expect(kind::DATA)).await.flags, END);
    assert_eq!(soon(copied).await.expect("no panic").expect("finished"), (19, 5));
}

#[tokio::test]
async fn trailers_end_a_stream_too() {
    let Scene { mut app, mut peer, .. } = scene(Timeouts::default()).await;
    peer.send(kind::DATA, 0, 1, b"hello").await;
    peer.send(kind::HEADERS, END | END_HEADERS, 1, &support::raw::block(&[("x-checksum", "1")])).await;
    let mut greeting = String::new();
    soon(app.read_to_string(&mut greeting)).await.expect("ended");
    assert_eq!(greeting, "hello");
}

#[tokio::test]
async fn a_reset_of_the_application_resets_the_stream() {
    let Scene { mut app, mut peer, copied, .. } = scene(Timeouts::default()).await;
    app.write_all(b"half").await.expect("written");
    assert_eq!(soon(peer.expect(kind::DATA)).await.payload, b"half");
    reset_on_close(&app);
    drop(app);
    let reset = soon(peer.frame()).await.expect("a frame");
    // CONNECT_ERROR: to a stock peer an error that closes its application's socket.
    assert_eq!((reset.kind, reset.stream, code(&reset)), (kind::RST_STREAM, 1, 10));
    let broken = soon(copied).await.expect("no panic").expect_err("broken");
    assert_eq!((broken.a_to_b, broken.error.kind()), (4, ErrorKind::ConnectionReset));
}

/// Every reset but NO_ERROR resets the application, also CANCEL: that is how a proxy drops what a policy forbids.
#[tokio::test]
async fn a_reset_of_the_stream_resets_the_application_unless_it_says_no_error() {
    for (name, number, expected) in [
        ("NO_ERROR", 0, Ok(5)),
        ("PROTOCOL_ERROR", 1, Err(ErrorKind::ConnectionReset)),
        ("INTERNAL_ERROR", 2, Err(ErrorKind::ConnectionReset)),
        ("STREAM_CLOSED", 5, Err(ErrorKind::ConnectionReset)),
        ("REFUSED_STREAM", 7, Err(ErrorKind::ConnectionReset)),
        ("CANCEL", 8, Err(ErrorKind::ConnectionReset)),
        ("CONNECT_ERROR", 10, Err(ErrorKind::ConnectionReset)),
        ("one of the future", 77, Err(ErrorKind::ConnectionReset)),
    ] {
        let Scene { mut app, mut peer, .. } = scene(Timeouts::default()).await;
        peer.send(kind::DATA, 0, 1, b"hello").await;
        let mut got = [0; 5];
        soon(app.read_exact(&mut got)).await.expect("read");
        peer.send(kind::RST_STREAM, 0, 1, &u32::to_be_bytes(number)).await;
        let mut rest = Vec::new();
        let outcome = soon(app.read_to_end(&mut rest)).await.map(|rest| rest + 5).map_err(|error| error.kind());
        assert_eq!(outcome, expected, "{name}");
    }
}

#[tokio::test]
async fn writing_into_a_stream_that_needs_no_more_is_no_failure() {
    let Scene { mut app, mut peer, copied, .. } = scene(Timeouts::default()).await;
    peer.send(kind::DATA, END, 1, b"enough").await;
    peer.send(kind::RST_STREAM, 0, 1, &[0; 4]).await;
    let mut answer = String::new();
    soon(app.read_to_string(&mut answer)).await.expect("ended");
    assert_eq!(answer, "enough");
    app.write_all(b"but I had more").await.expect("taken by the kernel");
    soon(copied).await.expect("no panic").expect("finished");
}

#[tokio::test]
async fn a_dead_connection_resets_the_application() {
    let Scene { mut app, mut peer, .. } = scene(Timeouts::default()).await;
    peer.send(kind::DATA, 0, 1, b"hello").await;
    let mut got = [0; 5];
    soon(app.read_exact(&mut got)).await.expect("read");
    drop(peer);
    let error = soon(app.read_u8()).await.expect_err("broken");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// What a policy change or a drain does.
#[tokio::test]
async fn a_dropped_tunnel_is_cancelled() {
    let mesh = TestMesh::new();
    let (mut tunnel, mut peer, _client) = tunnel(&mesh).await;
    tunnel.write_all(b"half").await.expect("written");
    assert_eq!(soon(peer.expect(kind::DATA)).await.payload, b"half");
    drop(tunnel);
    let reset = soon(peer.expect(kind::RST_STREAM)).await;
    assert_eq!((reset.stream, code(&reset)), (1, 8));
}

#[tokio::test]
async fn what_was_written_before_the_end_arrives_though_the_tunnel_is_dropped() {
    let mesh = TestMesh::new();
    let (mut tunnel, mut peer, _client) = tunnel(&mesh).await;
    tunnel.write_all(&[7; 60_000]).await.expect("written");
    tunnel.shutdown().await.expect("ended");
    drop(tunnel);
    let mut got = 0;
    loop {
        let frame = soon(peer.expect(kind::DATA)).await;
        got += frame.payload.len();
        if frame.flags == END {
            break;
        }
    }
    assert_eq!(got, 60_000);
    assert_eq!(code(&soon(peer.expect(kind::RST_STREAM)).await), 8, "and nobody reads the answer");
}

#[tokio::test]
async fn idle_and_half_closed_connections_are_given_up() {
    let short = Duration::from_millis(200);
    for (idle, half_close, end_first) in [(short, Duration::MAX, false), (Duration::MAX, short, true)] {
        let Scene { mut app, mut peer, copied, .. } = scene(Timeouts { half_close, idle }).await;
        if end_first {
            peer.send(kind::DATA, END, 1, b"").await;
        }
        // As long as bytes come, it is in use.
        for _ in 0..4 {
            tokio::time::sleep(short / 2).await;
            app.write_all(b".").await.expect("written");
            soon(peer.expect(kind::DATA)).await;
        }
        assert!(!copied.is_finished());
        let broken = soon(copied).await.expect("no panic").expect_err("idle");
        assert_eq!((broken.a_to_b, broken.error.kind()), (4, ErrorKind::TimedOut));
        assert_eq!(code(&soon(peer.expect(kind::RST_STREAM)).await), 10);
        let outcome = soon(async {
            loop {
                match app.read_u8().await {
                    Ok(_) => {}
                    Err(error) => break error.kind(),
                }
            }
        });
        assert!(matches!(outcome.await, ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof));
    }
}

#[tokio::test]
async fn padding_and_empty_frames_carry_nothing_and_cost_window() {
    let mesh = TestMesh::new();
    let (mut tunnel, mut peer, _client) = tunnel(&mesh).await;
    let mut padded = vec![100];
    padded.extend_from_slice(b"payload");
    padded.extend_from_slice(&[0; 100]);
    for _ in 0..3 {
        peer.send(kind::DATA, 8, 1, &padded).await;
        peer.send(kind::DATA, 0, 1, b"").await;
    }
    let mut got = vec![0; 21];
    soon(tunnel.read_exact(&mut got)).await.expect("read");
    assert_eq!(got, b"payloadpayloadpayload");
    // Unknown frames mean nothing, wherever they come.
    peer.send(0xbe, 0xff, 1, b"later standards").await;
    peer.send(kind::DATA, END, 1, b"!").await;
    assert_eq!(soon(tunnel.read_u8()).await.expect("read"), b'!');
    tunnel.reset();
    assert_eq!(code(&soon(peer.expect(kind::RST_STREAM)).await), 10);
}

#[tokio::test]
async fn a_peers_window_and_frame_size_are_kept() {
    let mesh = TestMesh::new();
    let (mut tunnel, mut peer, _client) = tunnel(&mesh).await;
    // The peer's window for this stream becomes 10,000 less than the default, so 55,535.
    peer.send(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0xd8, 0xef]).await;
    // Both of our SETTINGS are acknowledged.
    peer.expect(kind::SETTINGS).await;
    peer.expect(kind::SETTINGS).await;
    let writing = tokio::spawn(async move {
        tunnel.write_all(&[1; 100_000]).await.expect("written");
        tunnel
    });
    let mut got = 0;
    while got < 0xd8ef {
        let frame = soon(peer.expect(kind::DATA)).await;
        assert!(frame.payload.len() <= 16_384, "the largest frame of a peer that said nothing");
        got += frame.payload.len();
    }
    assert_eq!(got, 0xd8ef);
    let nothing = tokio::time::timeout(Duration::from_millis(100), peer.frame()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    peer.send(kind::WINDOW_UPDATE, 0, 1, &100_000_u32.to_be_bytes()).await;
    while got < 65_535 {
        got += soon(peer.expect(kind::DATA)).await.payload.len();
    }
    assert_eq!(got, 65_535, "the connection's window");
    peer.send(kind::WINDOW_UPDATE, 0, 0, &100_000_u32.to_be_bytes()).await;
    while got < 100_000 {
        got += soon(peer.expect(kind::DATA)).await.payload.len();
    }
    soon(writing).await.expect("no panic");
}
