//! HTTP/1 at its edges, as raw bytes: what is served.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ambit_hbone::Tunnel;
use ambit_waypoint::Refusal;
use ambit_xds::workload::AppProtocol;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, oneshot},
};

use crate::{
    backend::Raw,
    mesh::{Mesh, Shape, allow_all, exchange, header, response, soon, status},
};

pub async fn open(app: SocketAddr) -> Mesh {
    let mut shape = Shape::of(app);
    shape.policies = vec![allow_all()];
    // Bytes that aren't HTTP must meet the HTTP server, not TCP.
    shape.protocol = AppProtocol::Http11;
    Mesh::start(shape).await
}

pub fn count(mesh: &Mesh, refusal: Refusal) -> u64 {
    mesh.waypoint.as_ref().expect("running").refusals().count(refusal)
}

/// Waits until a refusal was counted so often.
pub async fn counted(mesh: &Mesh, refusal: Refusal, times: u64) {
    let all = || mesh.waypoint.as_ref().expect("running").refusals().iter().filter(|(_, count)| *count > 0);
    let counted = async {
        while count(mesh, refusal) < times {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(5), counted).await;
    assert!(waited.is_ok(), "{refusal:?} isn't counted {times} times, but {:?}", all().collect::<Vec<_>>());
}

/// All that comes until the waypoint ends the connection.
pub async fn rest(stream: &mut Tunnel) -> String {
    let mut all = Vec::new();
    let _ = soon(stream.read_to_end(&mut all)).await;
    String::from_utf8(all).expect("text")
}

pub async fn send(stream: &mut Tunnel, bytes: impl AsRef<[u8]>) {
    soon(stream.write_all(bytes.as_ref())).await.expect("written");
    soon(stream.flush()).await.expect("flushed");
}

/// An application that answers every request (head only) with what `answer` makes of it.
async fn application(answer: fn(&str) -> String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                while let Some(head) = head(&mut stream).await {
                    if stream.write_all(answer(&head).as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

fn target_of(head: &str) -> String {
    let target = head.split(' ').nth(1).expect("a target");
    let body = if head.starts_with("HEAD ") { "" } else { target };
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", target.len())
}

fn chunked(_: &str) -> String {
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 42\r\n\r\n"
        .to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http10_is_served_by_its_own_rules() {
    let mesh = open(application(target_of).await).await;
    let mut stream = mesh.tunnel("any").await;
    send(&mut stream, "GET /one HTTP/1.0\r\nhost: a\r\n\r\nGET /two HTTP/1.0\r\nhost: a\r\n\r\n").await;
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("\r\n\r\n/one"), "{answer}");

    let mut stream = mesh.tunnel("any").await;
    for target in ["/one", "/two"] {
        let request = format!("GET {target} HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n");
        let (head, body) = exchange(&mut stream, &request).await;
        assert!(head.starts_with("HTTP/1.0 200 OK\r\n"), "{head}");
        assert_eq!(header(&head, "connection"), Some("keep-alive"), "{head}");
        assert_eq!(body, target.as_bytes());
    }

    // No chunks for those who don't know them.
    let mesh = open(application(chunked).await).await;
    let mut stream = mesh.tunnel("any").await;
    send(&mut stream, "GET / HTTP/1.0\r\nhost: a\r\n\r\n").await;
    let answer = rest(&mut stream).await;
    assert!(!answer.contains("transfer-encoding") && answer.ends_with("\r\n\r\nabc"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_sent_ahead_are_answered_in_order() {
    let mesh = open(application(target_of).await).await;
    let mut stream = mesh.tunnel("any").await;
    let requests: String = (0..20).map(|i| format!("GET /{i} HTTP/1.1\r\nhost: a\r\n\r\n")).collect();
    send(&mut stream, format!("\r\n{requests}")).await;
    for i in 0..20 {
        let (head, body) = response(&mut stream, false).await;
        assert_eq!((status(&head), body), (200, format!("/{i}").into_bytes()));
    }
    // One that is refused comes after those before it, and is the last.
    let good = "GET /good HTTP/1.1\r\nhost: a\r\n\r\n";
    let both = "POST /bad HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    send(&mut stream, format!("{good}{both}{good}")).await;
    let (head, body) = response(&mut stream, false).await;
    assert_eq!((status(&head), body.as_slice()), (200, &b"/good"[..]));
    let last = rest(&mut stream).await;
    assert!(last.starts_with("HTTP/1.1 400 ") && last.matches("HTTP/1.").count() == 1, "{last}");
    counted(&mesh, Refusal::LengthAndEncoding, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_live_as_long_as_both_sides_want() {
    let mesh = open(application(target_of).await).await;
    let mut stream = mesh.tunnel("any").await;
    let (head, body) = exchange(&mut stream, "HEAD /long HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!((status(&head), header(&head, "content-length"), body.len()), (200, Some("5"), 0));
    let (head, body) = exchange(&mut stream, "GET http://a/absolute HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!((status(&head), body.as_slice()), (200, &b"/absolute"[..]));
    let closing = "GET /last HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\nGET /never HTTP/1.1\r\nhost: a\r\n\r\n";
    send(&mut stream, closing).await;
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n/last"), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_with_extensions_and_trailers_go_on() {
    let request = "POST /c HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\ntrailer: x-sum\r\n\r\n\
        00003;name=\"value\"\r\nabc\r\n2;x\r\n\r\n\r\n0;last\r\nx-sum: 42\r\ncontent-length: 7\r\nhost: b\r\n\r\n";
    let mesh = open(application(chunked).await).await;
    let mut client = mesh.tunnel("any").await;
    send(&mut client, "GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te, close\r\n\r\n").await;
    let answer = rest(&mut client).await;
    assert!(answer.ends_with("3\r\nabc\r\n0\r\nx-sum: 42\r\n\r\n"), "{answer}");
    // And up.
    let (address, got) = upload().await;
    let mesh = open(address).await;
    let mut client = mesh.tunnel("any").await;
    send(&mut client, request).await;
    let got = soon(got).await.expect("arrived");
    assert!(got.contains("abc") && got.ends_with("0\r\nx-sum: 42\r\n\r\n"), "{got:?}");
    assert_eq!(header(&got, "transfer-encoding"), Some("chunked"), "{got:?}");
    assert!(!got.contains("content-length: 7") && !got.contains("host: b") && !got.contains("name="), "{got:?}");
}

/// An application that tells all bytes of a request up to the end of its trailers.
async fn upload() -> (SocketAddr, oneshot::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("free port");
    let address = listener.local_addr().expect("bound");
    let (told, got) = oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        let mut all = head(&mut stream).await.expect("a head").into_bytes();
        while !all.ends_with(b"42\r\n\r\n") {
            all.push(stream.read_u8().await.expect("more"));
        }
        let _ = told.send(String::from_utf8(all).expect("text"));
    });
    (address, got)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_of_protocols_starts_where_the_request_ends() {
    let app = Raw::start().await;
    let mesh = open(app.address).await;
    let ask = "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let mut stream = mesh.tunnel("any").await;
    // What follows isn't HTTP, and no reader of HTTP gets to see it.
    send(&mut stream, format!("{ask}\x01\nearly\r")).await;
    let (head, _) = response(&mut stream, false).await;
    assert_eq!(status(&head), 101, "{head}");
    send(&mut stream, "\n\nlate").await;
    let mut echoed = [0; 14];
    soon(stream.read_exact(&mut echoed)).await.expect("echoed");
    assert_eq!(&echoed, b"\x01\nearly\r\n\nlate");

    // Not granted, it is HTTP that follows, and is read as strictly.
    let ask = ask.replace("websocket", "other");
    let mut stream = mesh.tunnel("any").await;
    send(&mut stream, format!("{ask}{ask}GET /next HTTP/1.1\r\nhost: a\r\n\r\n")).await;
    for _ in 0..3 {
        assert_eq!(status(&response(&mut stream, false).await.0), 200);
    }
    send(&mut stream, format!("{ask}GET / HTTP/1.1\r\nhost: a\n\n")).await;
    assert_eq!(status(&response(&mut stream, false).await.0), 200);
    assert_eq!(status(&response(&mut stream, false).await.0), 400);
    counted(&mesh, Refusal::BareLineFeed, 1).await;
    assert_eq!(app.seen().len(), 5, "{:?}", app.seen());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_told_to_go_on_only_when_it_may() {
    let app = Raw::start().await;
    let mesh = open(app.address).await;
    let mut stream = mesh.tunnel("any").await;
    let ask = "POST /e HTTP/1.1\r\nhost: a\r\nexpect: 100-Continue\r\ncontent-length: 2\r\n\r\n";
    send(&mut stream, ask).await;
    assert_eq!(status(&response(&mut stream, false).await.0), 100);
    send(&mut stream, "hi").await;
    assert_eq!(status(&response(&mut stream, false).await.0), 200);
    mesh.policies(&[crate::mesh::policy(serde_json::json!({"action": "ALLOW"}))]);
    send(&mut stream, ask).await;
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.matches("HTTP/1.").count() == 1, "{answer}");
    assert_eq!(app.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_arrive_when_they_are_sent() {
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("free port");
    let address = listener.local_addr().expect("bound");
    let go_on = Arc::new(Notify::new());
    let told = Arc::clone(&go_on);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        head(&mut stream).await.expect("a head");
        let start = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(start.as_bytes()).await.expect("written");
        for index in 0..5 {
            told.notified().await;
            stream.write_all(format!("9\r\ndata: {index}\n\n\r\n").as_bytes()).await.expect("written");
        }
        stream.write_all(b"0\r\n\r\n").await.expect("written");
    });
    let mesh = open(address).await;
    let mut stream = mesh.tunnel("any").await;
    send(&mut stream, "GET /events HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\n\r\n").await;
    let (head, _) = response(&mut stream, false).await;
    assert_eq!(header(&head, "content-type"), Some("text/event-stream"));
    for index in 0..5 {
        // The next is sent only when this one is here.
        go_on.notify_one();
        let mut event = [0; 14];
        soon(stream.read_exact(&mut event)).await.expect("an event");
        assert_eq!(String::from_utf8_lossy(&event), format!("9\r\ndata: {index}\n\n\r\n"));
    }
    let mut end = [0; 5];
    soon(stream.read_exact(&mut end)).await.expect("the end");
    assert_eq!(&end, b"0\r\n\r\n");
}

/// What both of a tunnel's HBONE windows, the waypoint and the kernels' buffers may hold of a body together.
const HELD_BYTES: usize = 32 << 20;
const BODY_BYTES: usize = 64 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_upload_waits_for_an_application_that_does_not_read() {
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("free port");
    let address = listener.local_addr().expect("bound");
    let go_on = Arc::new(Notify::new());
    let told = Arc::clone(&go_on);
    let app = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        head(&mut stream).await.expect("a head");
        told.notified().await;
        let (mut block, mut got) = (vec![0; 256 << 10], 0);
        while got < BODY_BYTES {
            got += stream.read(&mut block).await.expect("more");
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("written");
        got
    });
    let mesh = open(address).await;
    let mut stream = mesh.tunnel("any").await;
    let written = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&written);
    let client = tokio::spawn(async move {
        send(&mut stream, format!("POST /big HTTP/1.1\r\nhost: a\r\ncontent-length: {BODY_BYTES}\r\n\r\n")).await;
        let block = vec![b'x'; 256 << 10];
        while counter.load(Ordering::SeqCst) < BODY_BYTES {
            stream.write_all(&block).await.expect("written");
            counter.fetch_add(block.len(), Ordering::SeqCst);
        }
        stream.flush().await.expect("flushed");
        response(&mut stream, false).await
    });
    // Until nothing moves any more.
    let (mut last, mut still) = (0, 0);
    while still < 4 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        let now = written.load(Ordering::SeqCst);
        still = if now == last && now > 0 { still + 1 } else { 0 };
        last = now;
    }
    assert!(last < HELD_BYTES, "{last} bytes were taken in ahead of the application");
    go_on.notify_one();
    let (head, _) = tokio::time::timeout(Duration::from_secs(60), client).await.expect("in time").expect("no panic");
    assert_eq!(status(&head), 200);
    assert_eq!(soon(app).await.expect("no panic"), BODY_BYTES);
}
