//! Timeouts and retries.

use std::time::{Duration, Instant};

use super::{App, Backend, http_route, mesh, route, send};
use crate::mesh::Mesh;

async fn one() -> (App, Mesh) {
    let (own, a) = (App::start("own").await, App::start("a").await);
    let mesh = mesh(&own, &[Backend::of("a", 1, &a)]).await;
    (a, mesh)
}

fn with(settings: &str) -> String {
    http_route("r", &format!("[{{{settings}, backendRefs: [{{name: a, port: 80}}]}}]"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_tried_again_when_its_rule_says_so() {
    let (a, mesh) = one().await;
    let cases = [
        // Settings, what the backend does, what the client gets, and how often the backend is asked.
        ("retry: {codes: [503], attempts: 2, backoff: 1ms}", "503 503 200", 200, 3),
        ("retry: {codes: [503], attempts: 1, backoff: 1ms}", "503 503 200", 503, 2),
        ("retry: {codes: [503], attempts: 0}", "503 200", 503, 1),
        ("retry: {codes: [500], attempts: 3, backoff: 1ms}", "503 200", 503, 1),
        ("retry: {codes: [500, 503], backoff: 1ms}", "503 500 200", 200, 3),
        ("retry: {attempts: 2, backoff: 1ms}", "break 200", 200, 2),
        ("name: plain", "break 200", 503, 1),
        ("name: plain", "503 200", 503, 1),
        ("retry: {codes: [504], attempts: 1, backoff: 1ms}, timeouts: {backendRequest: 100ms}", "slow 200", 200, 2),
        ("timeouts: {backendRequest: 100ms}", "slow 200", 504, 1),
        ("timeouts: {request: 150ms}", "slow 200", 504, 1),
        ("timeouts: {request: 0s}", "200", 200, 1),
    ];
    for (settings, script, status, tries) in cases {
        route(&mesh, &with(settings));
        for body in ["", "hello"] {
            let before = a.seen().len();
            let headers = format!("x-script: {script}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let answer = send(&mesh, "any", "POST /", &headers).await;
            assert_eq!(answer.0, status, "{settings} {script} {body:?}: {answer:?}");
            let seen = &a.seen()[before..];
            assert_eq!(seen.len(), tries, "{settings} {script} {body:?}");
            assert!(seen.iter().all(|seen| seen.body == body), "each try has the whole body: {seen:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_that_is_unavailable_or_cancelled_is_tried_again_by_default() {
    let (a, mesh) = one().await;
    route(&mesh, &with("name: plain"));
    for (script, code, tries) in
        [("grpc:14 grpc:1 grpc:0", "0", 3), ("grpc:14 grpc:14 grpc:14 grpc:0", "14", 3), ("grpc:13 grpc:0", "13", 1)]
    {
        let before = a.seen().len();
        let headers = format!("content-type: application/grpc\r\nx-script: {script}\r\n");
        let (_, head, _) = send(&mesh, "any", "POST /pkg.S/Do", &headers).await;
        assert_eq!(crate::mesh::header(&head, "grpc-status"), Some(code), "{script}");
        assert_eq!(a.seen().len() - before, tries, "{script}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_too_large_to_keep_is_sent_once() {
    let (a, mesh) = one().await;
    route(&mesh, &with("retry: {codes: [503], attempts: 2, backoff: 1ms}"));
    let body = "x".repeat(65 * 1024);
    let headers = format!("x-script: 503 200\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let answer = send(&mesh, "any", "POST /", &headers).await;
    assert_eq!((answer.0, a.seen().len()), (503, 1));
    assert_eq!(a.seen()[0].body.len(), body.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_timeout_holds_over_all_tries_and_backoff_waits() {
    let (_a, mesh) = one().await;
    route(&mesh, &with("retry: {codes: [503], attempts: 2, backoff: 100ms}"));
    let start = Instant::now();
    assert_eq!(send(&mesh, "any", "GET /", "x-script: 503 503 200\r\n").await.0, 200);
    assert!(start.elapsed() >= Duration::from_millis(300), "100 ms, then 200 ms: {:?}", start.elapsed());
    route(&mesh, &with("retry: {codes: [503], attempts: 25, backoff: 1s}, timeouts: {request: 300ms}"));
    let start = Instant::now();
    assert_eq!(send(&mesh, "any", "GET /", "x-script: 503 503 503 503 503\r\n").await.0, 504);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_end_when_their_budget_is_used_up() {
    let (a, mesh) = one().await;
    route(&mesh, &with("retry: {codes: [503], attempts: 25, backoff: 1ms}"));
    let script = format!("x-script: {}\r\n", "503 ".repeat(40).trim());
    let mut tunnel = mesh.tunnel("any").await;
    let mut requests = 0;
    let started = Instant::now();
    // 100 retries per 10 s and at most 20 % of the requests: nowhere near 25 for each.
    while requests < 20 {
        let text = format!("GET / HTTP/1.1\r\nhost: h\r\n{script}\r\n");
        let (head, _) = crate::mesh::exchange(&mut tunnel, &text).await;
        assert_eq!(crate::mesh::status(&head), 503);
        requests += 1;
    }
    let windows = started.elapsed().as_secs() as usize / 10 + 2;
    let retries = a.seen().len() - requests;
    assert!((100..=100 * windows).contains(&retries), "{retries} in {windows} windows");
}
