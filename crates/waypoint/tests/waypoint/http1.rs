//! HTTP/1.1: what reaches the backend, and what never does.

use ambit_policy::Verdict;

use crate::{
    backend::Raw,
    mesh::{Mesh, Shape, allow_all, exchange, header, status},
};

async fn open() -> (Raw, Mesh) {
    let app = Raw::start().await;
    let mut shape = Shape::of(app.address);
    shape.policies = vec![allow_all()];
    (app, Mesh::start(shape).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_arrives_as_it_was_judged() {
    let (app, mesh) = open().await;
    let mut stream = mesh.tunnel("any").await;
    let targets = [
        ("/v1/traces?x=1&x=%2F", "/v1/traces?x=1&x=%2F"),
        ("//v1/traces", "//v1/traces"),
        ("/v1%2Ftraces", "/v1%2Ftraces"),
        ("/v1/traces;x=1", "/v1/traces;x=1"),
        ("/v1/traces/..%2fadmin", "/v1/traces/..%2fadmin"),
        ("/x?", "/x?"),
        // An application that resolves no dots would take the target as sent for another one than was judged.
        ("/a/../v1/traces", "/v1/traces"),
        ("/admin/%2e%2e/v1/traces?q=/../", "/v1/traces?q=/../"),
        ("/%2e%2e/x", "/x"),
        ("/v1\\traces", "/v1/traces"),
        ("/%761/tr%61ces", "/v1/traces"),
        ("/caf\u{e9}", "/caf%C3%A9"),
    ];
    for (target, expected) in targets {
        let (head, _) = exchange(&mut stream, &format!("GET {target} HTTP/1.1\r\nhost: mlflow\r\n\r\n")).await;
        assert_eq!(status(&head), 200, "{target}");
        let line = app.seen().pop().expect("arrived");
        assert!(line.starts_with(&format!("GET {expected} HTTP/1.1\r\n")), "{target} became {line:?}");
    }
    let absolute = "GET http://mlflow//x/../y?z HTTP/1.1\r\nhost: mlflow\r\n\r\n";
    assert_eq!(status(&exchange(&mut stream, absolute).await.0), 200);
    assert!(app.seen().pop().expect("arrived").starts_with("GET //y?z HTTP/1.1\r\n"));
    assert_eq!(app.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_of_one_hop_and_of_proxies_stay_behind() {
    let (app, mesh) = open().await;
    let mut stream = mesh.tunnel("any").await;
    let request = "GET / HTTP/1.1\r\nHost: MLflow.kagenti-system:5000\r\nConnection: keep-alive, X-Hop, host\r\n\
        X-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Connection: keep-alive\r\nTE: gzip, trailers\r\nUpgrade: h2c\r\n\
        x-forwarded-client-cert: Hash=1\r\nx-envoy-internal: true\r\nx-envoy-retry-on: 5xx\r\n\
        x-envoy-original-path: /x\r\nx-envoy-upstream-rq-timeout-ms: 1\r\nx-envoy-peer-metadata: x\r\n\
        x-envoy-decorator-operation: x\r\nambit-source: spiffe://a/ns/b/sa/c\r\nx-forwarded-for: 1.2.3.4\r\nauthorization: Bearer t\r\n\r\n";
    let (head, _) = exchange(&mut stream, request).await;
    assert_eq!(status(&head), 200);
    let seen = app.seen().pop().expect("arrived");
    let mut names: Vec<_> = seen.lines().skip(1).filter_map(|line| Some(line.split_once(':')?.0)).collect();
    names.sort_unstable();
    assert_eq!(names, ["authorization", "host", "te", "x-forwarded-for", "x-forwarded-proto", "x-request-id"]);
    assert_eq!(header(&seen, "host"), Some("MLflow.kagenti-system:5000"));
    assert_eq!(header(&seen, "te"), Some("trailers"));
    assert_eq!(header(&seen, "x-forwarded-proto"), Some("http"));
    assert_eq!(header(&seen, "x-request-id").map(str::len), Some(36));

    assert_eq!(header(&head, "server"), Some("app"));
    for name in ["connection", "x-hop", "keep-alive", "x-request-id"] {
        assert_eq!(header(&head, name), None, "{name}");
    }

    let own = "GET / HTTP/1.1\r\nhost: h\r\nx-request-id: mine\r\nx-forwarded-proto: https\r\n\r\n";
    exchange(&mut stream, own).await;
    let seen = app.seen().pop().expect("arrived");
    assert_eq!((header(&seen, "x-request-id"), header(&seen, "x-forwarded-proto")), (Some("mine"), Some("https")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_be_read_in_two_ways_is_refused() {
    let (app, mut mesh) = open().await;
    let cases = [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost:\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\nauthorization: x\r\nAuthorization: y\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: user@a\r\n\r\n", 400),
        ("GET http://b/ HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        ("GET http://a/ HTTP/1.1\r\n\r\n", 400),
        ("GET ftp://a/ HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        ("GET v1/traces HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        ("GET * HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        // No policy on paths has a meaning for it.
        ("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", 403),
        ("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", 403),
        ("GET / HTTP/1.1\r\nhost : a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\n folded: b\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", 400),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\na", 400),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, x\r\n\r\n", 400),
    ];
    for (request, expected) in cases {
        let mut stream = mesh.tunnel("any").await;
        let (head, _) = exchange(&mut stream, request).await;
        assert_eq!(status(&head), expected, "{request:?}");
        mesh.expect_record(Verdict::Deny, Some(expected)).await;
    }
    assert_eq!(app.seen(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_go_both_ways_with_their_framing() {
    let (app, mesh) = open().await;
    let mut stream = mesh.tunnel("any").await;
    let chunked = "POST /c HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    assert_eq!(status(&exchange(&mut stream, chunked).await.0), 200);
    let seen = app.seen().pop().expect("arrived");
    assert_eq!(header(&seen, "transfer-encoding"), Some("chunked"), "{seen}");
    assert!(seen.contains("abc") && seen.contains("de"), "{seen}");

    // GET with a body keeps it, inside of its own framing.
    let get = "GET /g HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n";
    assert_eq!(status(&exchange(&mut stream, get).await.0), 200);
    let seen = app.seen().pop().expect("arrived");
    assert!(seen.ends_with("1\r\nx\r\n0\r\n\r\n"), "{seen}");

    let expecting = "POST /e HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";
    let (head, _) = exchange(&mut stream, expecting).await;
    assert!(head.starts_with("HTTP/1.1 100 Continue\r\n"), "{head}");
    assert_eq!(status(&exchange(&mut stream, "hi").await.0), 200);
    assert!(app.seen().pop().expect("arrived").ends_with("\r\n\r\nhi"));

    let large = format!("POST /l HTTP/1.1\r\nhost: a\r\ncontent-length: 3000000\r\n\r\n{}", "x".repeat(3_000_000));
    assert_eq!(status(&exchange(&mut stream, &large).await.0), 200);
    assert_eq!(
        app.seen().pop().expect("arrived").matches('x').count(),
        3_000_000 + "x-forwarded-protox-request-id".matches('x').count()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_have_bounds() {
    let (app, mut mesh) = open().await;
    let many: String = (0..101).map(|i| format!("h{i}: 1\r\n")).collect();
    let cases = [
        (format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n"), 431),
        (format!("GET / HTTP/1.1\r\nhost: a\r\nbig: {}\r\n\r\n", "x".repeat(70_000)), 431),
        (format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(15_000)), 200),
    ];
    for (request, expected) in cases {
        let mut stream = mesh.tunnel("any").await;
        assert_eq!(status(&exchange(&mut stream, &request).await.0), expected);
        assert_eq!(mesh.record().await.status, Some(expected));
    }
    // On a connection known to be HTTP, the target has a bound of its own.
    let mut stream = mesh.tunnel("any").await;
    exchange(&mut stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    mesh.record().await;
    let long = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(17_000));
    assert_eq!(status(&exchange(&mut stream, &long).await.0), 414);
    assert_eq!(mesh.record().await.status, Some(414));
    assert_eq!(app.seen().len(), 2);
}
