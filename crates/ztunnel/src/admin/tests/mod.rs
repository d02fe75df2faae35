//! The ports as operators use them: real sockets, real answers.

mod dump;

use std::{
    io::Read,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ambit_admin::limits::{HEADER_TIMEOUT, MAX_CONNECTIONS};
use ambit_telemetry::{
    log::LevelControl,
    metrics::{Metrics, Refusal, Reporter},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

/// An administration port that runs until it is dropped.
struct Port {
    address: SocketAddr,
    levels: LevelControl,
    quits: Arc<AtomicUsize>,
    until: CancellationToken,
    served: Option<tokio::task::JoinHandle<()>>,
}

impl Port {
    fn open(dump: impl Fn() -> Result<Vec<u8>, String> + Send + Sync + 'static) -> Self {
        let listeners = bind_loopback(0).expect("a port");
        let address = listeners[0].local_addr().expect("its address");
        let levels = LevelControl::new("info,dns=off".parse().expect("levels"));
        let (quits, until) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let counted = Arc::clone(&quits);
        let quit = move || {
            counted.fetch_add(1, Ordering::Relaxed);
        };
        let admin = Admin::new(dump, levels.clone(), quit);
        let served = tokio::spawn(serve_admin(listeners, admin, until.clone()));
        Self { address, levels, quits, until, served: Some(served) }
    }

    async fn ask(&self, method: &str, target: &str) -> (u16, String) {
        ask(self.address, method, target, "host: localhost\r\n").await
    }
}

/// The status and the whole text of an answer.
async fn ask(address: SocketAddr, method: &str, target: &str, headers: &str) -> (u16, String) {
    let bytes = ask_bytes(address, method, target, headers).await;
    let text = String::from_utf8(bytes).expect("text");
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, text)
}

async fn ask_bytes(address: SocketAddr, method: &str, target: &str, headers: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let request = format!("{method} {target} HTTP/1.1\r\n{headers}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("in time").expect("an answer");
    answer
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("the end of the headers").1
}

#[tokio::test]
async fn paths_and_methods() {
    let port = Port::open(|| Ok(b"{}".to_vec()));
    let cases = [
        ("GET", "/", 200),
        ("POST", "/", 200),
        ("GET", "/config_dump", 200),
        ("POST", "/config_dump", 200),
        ("POST", "/logging", 200),
        ("GET", "/logging", 405),
        ("GET", "/quitquitquit", 405),
        ("PUT", "/quitquitquit", 405),
        ("GET", "/config_dump/", 404),
        ("GET", "/debug/pprof/profile", 404),
        ("GET", "/healthz/ready", 404),
        ("GET", "/metrics", 404),
    ];
    for (method, path, status) in cases {
        assert_eq!(port.ask(method, path).await.0, status, "{method} {path}");
    }
    assert_eq!(port.quits.load(Ordering::Relaxed), 0);
    let (status, text) = port.ask("POST", "/quitquitquit").await;
    assert_eq!((status, body(&text), port.quits.load(Ordering::Relaxed)), (200, "shutdown now\n", 1));
    assert!(port.ask("GET", "/").await.1.contains("/config_dump"));
}

#[tokio::test]
async fn log_levels_are_shown_set_and_reset() {
    let port = Port::open(|| Ok(Vec::new()));
    // In this order: each builds on what the one before left.
    let cases = [
        ("", 200, "dns=off,info"),
        ("?level=", 200, "dns=off,info"),
        ("?other=1", 200, "dns=off,info"),
        ("?level=debug", 200, "dns=off,debug"),
        ("?level=access=trace,warn", 200, "access=trace,dns=off,warn"),
        ("?level=access%3Ddebug%2Cdns%3Dinfo", 200, "access=debug,dns=info,warn"),
        ("?level=access:debug", 400, "access=debug,dns=info,warn"),
        ("?level=loud", 400, "access=debug,dns=info,warn"),
        ("?level=info,loud", 400, "access=debug,dns=info,warn"),
        ("?reset", 200, "dns=off,info"),
        ("?level=debug", 200, "dns=off,debug"),
        ("?level=a=error&reset", 200, "a=error,dns=off,info"),
        ("?reset&level=", 200, "dns=off,info"),
        ("?reset&level=loud", 400, "dns=off,info"),
    ];
    for (query, status, levels) in cases {
        let (found, text) = port.ask("POST", &format!("/logging{query}")).await;
        assert_eq!(found, status, "{query}: {text}");
        if status == 200 {
            assert_eq!(body(&text), format!("current log level is {levels}\n"), "{query}");
        } else {
            assert!(body(&text).starts_with("failed to set new level: `"), "{query}: {text}");
        }
        assert_eq!(port.levels.current().to_string(), levels, "{query}");
    }
}

#[tokio::test]
async fn web_pages_are_kept_out() {
    let port = Port::open(|| Ok(Vec::new()));
    let cases = [
        ("host: localhost\r\n", 200),
        ("host: localhost:15000\r\n", 200),
        ("host: 127.0.0.1:15000\r\n", 200),
        ("host: [::1]:15000\r\n", 200),
        ("host: rebound.example\r\n", 403),
        ("host: 10.0.0.1\r\n", 403),
        ("host: localhost.example\r\n", 403),
        ("host: localhost\r\norigin: https://example.com\r\n", 403),
        ("host: localhost\r\norigin: null\r\n", 403),
    ];
    for (headers, status) in cases {
        assert_eq!(ask(port.address, "POST", "/logging", headers).await.0, status, "{headers}");
    }
    assert_eq!(ask(port.address, "POST", "/quitquitquit", "host: evil.example\r\n").await.0, 403);
    assert_eq!(port.quits.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn slow_and_large_requests_are_cut_off() {
    let port = Port::open(|| Ok(Vec::new()));
    let mut slow = TcpStream::connect(port.address).await.expect("connected");
    slow.write_all(b"GET / HTTP/1.1\r\nhost: local").await.expect("sent");
    let started = Instant::now();
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, slow.read_to_end(&mut rest)).await.expect("it is cut off");
    let took = started.elapsed();
    assert!(took >= HEADER_TIMEOUT / 2 && took < 3 * HEADER_TIMEOUT, "{took:?}");

    let mut large = TcpStream::connect(port.address).await.expect("connected");
    let header = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(64 << 10));
    // The port may be closed before all is sent.
    let _ = large.write_all(header.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, large.read_to_end(&mut answer)).await.expect("in time");
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(port.ask("GET", "/").await.0, 200, "others are still served");
}

#[tokio::test]
async fn connections_are_bounded_and_the_newest_are_refused() {
    let port = Port::open(|| Ok(Vec::new()));
    let mut open = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut stream = TcpStream::connect(port.address).await.expect("connected");
        stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("sent");
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.expect("an answer");
        assert_eq!(&first, b"HTTP/1.1 200");
        open.push(stream);
    }
    let mut refused = TcpStream::connect(port.address).await.expect("connected");
    let mut byte = [0; 1];
    assert!(!matches!(timeout(PATIENCE, refused.read(&mut byte)).await.expect("in time"), Ok(1)));
    drop(open);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut stream = TcpStream::connect(port.address).await.expect("connected");
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
        let mut answer = String::new();
        if timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("in time").is_ok() && !answer.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "places are given back");
    }
}

#[tokio::test]
async fn when_told_to_stop_it_finishes_what_it_began() {
    let (started, mut is_started) = tokio::sync::mpsc::unbounded_channel();
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let mut port = Port::open(move || {
        let _ = started.send(());
        let _ = gate.lock().expect("not poisoned").recv();
        Ok(b"{\"done\":true}".to_vec())
    });
    let address = port.address;
    let asked = tokio::spawn(ask(address, "GET", "/config_dump", "host: localhost\r\n"));
    is_started.recv().await.expect("the dump is under way");
    port.until.cancel();
    go.send(()).expect("the dump waits");
    let (status, text) = asked.await.expect("no panic");
    assert_eq!((status, body(&text)), (200, "{\"done\":true}"));
    timeout(PATIENCE, port.served.take().expect("the server")).await.expect("it ends").expect("no panic");
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn only_so_many_dumps_at_a_time_and_a_failed_one_says_why() {
    let (started, mut is_started) = tokio::sync::mpsc::unbounded_channel();
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let port = Port::open(move || {
        let _ = started.send(());
        let _ = gate.lock().expect("not poisoned").recv();
        Err("no memory".to_owned())
    });
    let address = port.address;
    let under_way: Vec<_> =
        (0..2).map(|_| tokio::spawn(ask(address, "GET", "/config_dump", "host: localhost\r\n"))).collect();
    for _ in 0..2 {
        is_started.recv().await.expect("a dump is under way");
    }
    assert_eq!(port.ask("GET", "/config_dump").await.0, 503);
    drop(go);
    for dump in under_way {
        let (status, text) = dump.await.expect("no panic");
        assert_eq!((status, body(&text)), (500, "the dump failed: no memory\n"));
    }
}

#[tokio::test]
async fn metrics_in_both_types_and_compressed() {
    let metrics = Metrics::new("ztunnel", "1.2.3");
    metrics.refusals.refused(Reporter::Destination, Refusal::Policy);
    let listeners = bind_loopback(0).expect("a port");
    let address = listeners[0].local_addr().expect("its address");
    tokio::spawn(serve_metrics(listeners, metrics, CancellationToken::new()));
    let cases = [
        ("/metrics", "", "content-type: text/plain; charset=utf-8"),
        ("/stats/prometheus", "", "content-type: text/plain; charset=utf-8"),
        (
            "/metrics",
            "accept: text/plain;q=0.5,application/openmetrics-text;version=1.0.0;q=0.8\r\n",
            "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
        ("/metrics", "accept: application/openmetrics-text;q=0\r\n", "content-type: text/plain; charset=utf-8"),
        ("/metrics", "accept-encoding: gzip;q=0, br\r\n", "content-type: text/plain; charset=utf-8"),
    ];
    for (path, headers, content_type) in cases {
        let (status, text) = ask(address, "GET", path, &format!("host: 10.0.0.1:15020\r\n{headers}")).await;
        assert_eq!(status, 200);
        assert!(text.contains(content_type), "{headers}: {text}");
        assert!(body(&text).contains("ambit_refused_total{reporter=\"destination\",reason=\"policy\"} 1\n"));
        assert!(body(&text).ends_with("# EOF\n"));
    }
    let answer = ask_bytes(address, "GET", "/metrics", "host: x\r\naccept-encoding: br, gzip\r\n").await;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("the end of the headers");
    let head = String::from_utf8_lossy(&answer[..end]);
    assert!(head.contains("content-encoding: gzip"), "{head}");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&answer[end + 4..]).read_to_string(&mut text).expect("gzip");
    assert!(text.starts_with("# HELP istio_build") && text.ends_with("# EOF\n"), "{text}");
    assert_eq!(ask(address, "POST", "/metrics", "host: x\r\n").await.0, 405);
    assert_eq!(ask(address, "GET", "/config_dump", "host: x\r\n").await.0, 404);
}
