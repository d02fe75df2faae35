//! Answers and requests that last.

use std::{
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ambit_tests::{
    Forward, Mesh, each_user,
    http1::{self, answer_to, send},
};

use crate::{ALICE, up};

#[test]
fn streams_are_carried_as_they_come_and_held_back_in_little_memory() {
    each_user(|place| {
        let (mesh, _) = up(place);
        let web = mesh.forward(ALICE, "shop/web:80");
        events(&web);
        websocket(&web);
        a_slow_reader(&mesh, &web);
        a_slow_server(&mesh, &web);
    });
}

/// Each event is there before the next is sent.
fn events(web: &Forward) {
    let mut stream = web.connect();
    send(&mut stream, "GET /events HTTP/1.1\r\nhost: web\r\naccept: text/event-stream\r\n\r\n");
    let head = http1::head(&mut stream);
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("content-type: text/event-stream\r\n"), "{head}");
    for number in 0..5 {
        assert_eq!(web.ask("POST /next").status, 200);
        let chunk: Vec<_> = (0..4).map(|_| http1::line(&mut stream)).collect();
        assert_eq!(chunk.concat(), format!("9\r\ndata: {number}\n\n\r\n"));
    }
    assert_eq!(http1::line(&mut stream) + &http1::line(&mut stream), "0\r\n\r\n");
}

fn websocket(web: &Forward) {
    let ask = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nhost: web\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
    };
    let mut stream = web.connect();
    send(&mut stream, ask("/socket"));
    let head = http1::head(&mut stream);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
    // A masked text frame, then bytes that are no HTTP at all, with pauses for answers between them.
    for frame in [&b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"[..], b"\x82\x03\0\r\n", b"GET / HTTP/1.1\r\n\r\n"] {
        send(&mut stream, frame);
        let mut back = vec![0; frame.len()];
        stream.read_exact(&mut back).expect("sent back");
        assert_eq!(back, frame);
    }
    let mut stream = web.connect();
    send(&mut stream, ask("/denied"));
    assert_eq!(answer_to(&mut stream, "GET").status, 403);
}

/// More than all that may hold some of it on its way: both tunnels' windows, the waypoint, and the kernel's buffers.
const BODY_BYTES: usize = 64 << 20;
const HELD_BYTES: usize = 32 << 20;
/// What the memory of the process with all proxies may grow by: the windows of both tunnels, and their copies in TLS.
const GROWN_BYTES: u64 = 24 << 20;

fn a_slow_server(mesh: &Mesh<'_>, web: &Forward) {
    let before = mesh.resident_bytes();
    let mut stream = web.connect();
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    let mut writer = stream.try_clone().expect("a second handle");
    let written = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&written);
    let client = thread::spawn(move || {
        send(&mut writer, format!("POST /sink HTTP/1.1\r\nhost: web\r\ncontent-length: {BODY_BYTES}\r\n\r\n"));
        let block = vec![b'x'; 256 << 10];
        while counter.load(Ordering::SeqCst) < BODY_BYTES {
            writer.write_all(&block).expect("written");
            counter.fetch_add(block.len(), Ordering::SeqCst);
        }
    });
    let held = settled(|| written.load(Ordering::SeqCst));
    assert!(held < HELD_BYTES, "{held} bytes were taken in ahead of the application");
    grown(mesh, before);
    assert_eq!(web.ask("POST /next").status, 200);
    let answer = answer_to(&mut stream, "POST");
    client.join().expect("the client doesn't panic");
    assert_eq!((answer.status, answer.body), (200, BODY_BYTES.to_string()));
    grown(mesh, before);
}

fn a_slow_reader(mesh: &Mesh<'_>, web: &Forward) {
    let before = mesh.resident_bytes();
    let mut stream = web.connect();
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    send(&mut stream, format!("GET /source?{BODY_BYTES} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n"));
    let sent = || web.ask("GET /seen").body.matches("PIECE").count() * (64 << 10);
    let held = settled(sent);
    assert!(held < HELD_BYTES, "{held} bytes were taken in ahead of the client");
    grown(mesh, before);
    assert_eq!(answer_to(&mut stream, "GET").body.len(), BODY_BYTES);
    grown(mesh, before);
}

/// A number that has stopped growing.
fn settled(number: impl Fn() -> usize) -> usize {
    let deadline = Instant::now() + Duration::from_secs(30);
    let (mut last, mut still) = (0, 0);
    while still < 4 {
        assert!(Instant::now() < deadline, "it goes on at {last}");
        thread::sleep(Duration::from_millis(100));
        let now = number();
        still = if now == last && now > 0 { still + 1 } else { 0 };
        last = now;
    }
    last
}

fn grown(mesh: &Mesh<'_>, before: u64) {
    let after = mesh.resident_bytes();
    assert!(after < before + GROWN_BYTES, "{before} bytes of memory became {after}");
}
