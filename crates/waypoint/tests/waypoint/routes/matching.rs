//! Which rule a request falls under.

use ambit_policy::Verdict;
use ambit_xds::workload::AppProtocol;

use super::{App, Backend, http_route, kind_route, mesh, mesh_for, route, send};
use crate::mesh::{NAMESPACE, PORT, exchange, status};

fn to(name: &str) -> String {
    format!("backendRefs: [{{name: {name}, port: 80}}]")
}

async fn three() -> (App, [App; 3]) {
    (App::start("own").await, [App::start("a").await, App::start("b").await, App::start("c").await])
}

fn backends(apps: &[App; 3]) -> [Backend<'static>; 3] {
    [Backend::of("a", 1, &apps[0]), Backend::of("b", 2, &apps[1]), Backend::of("c", 3, &apps[2])]
}

/// What answered: a backend's name, or the status of an answer without one.
fn who(answer: &(u16, String, String)) -> String {
    let app = crate::mesh::header(&answer.1, "x-backend");
    app.map_or_else(|| answer.0.to_string(), str::to_owned)
}

/// Matches with where they lead; requests with headers, and who answers.
type Case = (Vec<(String, &'static str)>, Vec<(&'static str, &'static str, &'static str)>);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_match_takes_what_it_says_and_the_most_specific_wins() {
    let (own, apps) = three().await;
    let mesh = mesh(&own, &backends(&apps)).await;
    let rules = |rules: &[(&str, &str)]| {
        let rules: Vec<_> = rules.iter().map(|(m, name)| format!("{{matches: [{m}], {}}}", to(name))).collect();
        format!("[{}]", rules.join(", "))
    };
    let path = |kind: &str, value: &str| format!("{{path: {{type: {kind}, value: '{value}'}}}}");
    let cases: Vec<Case> = vec![
        (
            vec![(path("Exact", "/a"), "a")],
            vec![("GET /a", "", "a"), ("GET /a?x=1", "", "a"), ("GET /a/", "", "404"), ("GET /A", "", "404")],
        ),
        (
            vec![(path("PathPrefix", "/a/"), "a"), (path("PathPrefix", "/a/b"), "b")],
            vec![
                ("GET /a", "", "a"),
                ("GET /a/", "", "a"),
                ("GET /a/b", "", "b"),
                ("GET /a/b/c", "", "b"),
                ("GET /a/bc", "", "a"),
                ("GET /ab", "", "404"),
                ("GET /x/../a/b", "", "b"),
            ],
        ),
        (
            vec![
                (path("PathPrefix", "/a"), "a"),
                (path("Exact", "/a/b"), "b"),
                (path("RegularExpression", "/[0-9]+(/x)?"), "c"),
            ],
            vec![
                ("GET /a/b", "", "b"),
                ("GET /12", "", "c"),
                ("GET /12/x", "", "c"),
                ("GET /12/xx", "", "404"),
                ("GET /a/12", "", "a"),
            ],
        ),
        (
            vec![
                ("{headers: [{name: X-V, value: 'one,two'}]}".into(), "a"),
                ("{headers: [{type: RegularExpression, name: x-v, value: 't.*'}]}".into(), "b"),
            ],
            vec![
                ("GET /", "x-v: one\r\nx-v: two\r\n", "a"),
                ("GET /", "x-v: two\r\n", "b"),
                ("GET /", "x-v: a-two\r\n", "404"),
                ("GET /", "", "404"),
            ],
        ),
        (vec![("{headers: [{name: host, value: 'mlflow:5000'}]}".into(), "a")], vec![("GET /", "", "a")]),
        (
            vec![
                ("{queryParams: [{name: v, value: 'a b'}]}".into(), "a"),
                (
                    "{queryParams: [{type: RegularExpression, name: v, value: '[xy]'}, {name: w, value: ''}]}".into(),
                    "b",
                ),
            ],
            vec![
                ("GET /?v=a%20b", "", "a"),
                ("GET /?v=a+b&z", "", "a"),
                ("GET /?v=x&w=", "", "b"),
                ("GET /?v=x", "", "404"),
                ("GET /?v=c&v=x&w=", "", "404"),
            ],
        ),
        (
            vec![
                ("{method: GET}".into(), "a"),
                ("{headers: [{name: x, value: '1'}]}".into(), "b"),
                ("{headers: [{name: x, value: '1'}, {name: y, value: '1'}]}".into(), "c"),
            ],
            vec![
                ("GET /", "x: 1\r\ny: 1\r\n", "a"),
                ("DELETE /", "x: 1\r\ny: 1\r\n", "c"),
                ("DELETE /", "x: 1\r\n", "b"),
                ("DELETE /", "", "404"),
            ],
        ),
        (
            vec![
                ("{headers: [{name: x, value: '1'}]}".into(), "b"),
                ("{queryParams: [{name: q, value: '1'}, {name: r, value: '1'}]}".into(), "a"),
            ],
            vec![("GET /?q=1&r=1", "x: 1\r\n", "b"), ("GET /?q=1&r=1", "", "a")],
        ),
    ];
    for (written, requests) in cases {
        let written: Vec<_> = written.iter().map(|(text, name)| (text.as_str(), *name)).collect();
        route(&mesh, &http_route("r", &rules(&written)));
        for (request, headers, wanted) in requests {
            let answer = send(&mesh, "any", request, headers).await;
            assert_eq!(who(&answer), wanted, "{request} {headers:?} by {written:?}: {answer:?}");
        }
    }
    assert!(own.seen().is_empty(), "a service with routes has no other way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_matches_go_to_the_oldest_route_then_by_name_then_by_order() {
    let (own, apps) = three().await;
    let mesh = mesh(&own, &backends(&apps)).await;
    let rule = |name: &str| format!("[{{{}}}]", to(name));
    let aged = |name: &str, backend: &str, created: &str| {
        let created = format!("creationTimestamp: '{created}', name");
        http_route(name, &rule(backend)).replacen("name", &created, 1)
    };
    let (one, two) = (http_route("z", &rule("a")), http_route("y", &rule("b")));
    route(&mesh, &format!("{one}{two}"));
    assert_eq!(who(&send(&mesh, "any", "GET /", "").await), "b", "first by name");
    let old = aged("z", "a", "2024-01-01T00:00:00Z");
    let young = aged("y", "b", "2025-01-01T00:00:00Z");
    route(&mesh, &format!("{young}{old}"));
    assert_eq!(who(&send(&mesh, "any", "GET /", "").await), "a", "the oldest");
    route(&mesh, &http_route("r", &format!("[{{name: first, {}}}, {{{}}}]", to("c"), to("a"))));
    assert_eq!(who(&send(&mesh, "any", "GET /", "").await), "c", "in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_is_matched_by_service_and_method() {
    let (own, apps) = three().await;
    let mesh = mesh(&own, &backends(&apps)).await;
    let grpc = |rules: &str| kind_route("GRPCRoute", "v1", NAMESPACE, "g", &format!("rules: {rules}"));
    let rule = |m: &str, name: &str| format!("{{matches: [{{method: {m}}}], {}}}", to(name));
    let rules = [
        rule("{service: pkg.S}", "a"),
        rule("{service: pkg.S, method: Do}", "b"),
        rule("{method: Any.Thing}", "c"),
        rule("{type: RegularExpression, service: '(x|y)z?', method: 'A+'}", "c"),
    ];
    route(&mesh, &grpc(&format!("[{}]", rules.join(", "))));
    let cases = [
        ("/pkg.S/Do", "b"),
        ("/pkg.S/Other", "a"),
        ("/pkg.ST/Do", "200 12"),
        ("/q/Any.Thing", "c"),
        ("/q/Any-Thing", "200 12"),
        ("/xz/AA", "c"),
        ("/xz/AAB", "200 12"),
    ];
    for (path, wanted) in cases {
        let kind = "content-type: application/grpc\r\n";
        let answer = send(&mesh, "any", &format!("POST {path}"), kind).await;
        let status = crate::mesh::header(&answer.1, "grpc-status").map(|status| format!("{} {status}", answer.0));
        assert_eq!(status.unwrap_or_else(|| who(&answer)), wanted, "{path}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_address_says_which_service_is_meant_and_a_port_which_routes() {
    let (own, apps) = three().await;
    let mesh = mesh(&own, &backends(&apps)).await;
    route(&mesh, &http_route("r", &format!("[{{{}}}]", to("a"))));
    for host in ["10.96.0.7:5000", "somewhere.else", "b"] {
        let mut tunnel = mesh.tunnel("any").await;
        let (head, body) = exchange(&mut tunnel, &format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        assert_eq!((status(&head), body), (200, format!("a saw GET / at {host}").into_bytes()));
    }
    let port = |port: u16| {
        http_route("r", &format!("[{{{}}}]", to("a"))).replace("name: mlflow", &format!("name: mlflow, port: {port}"))
    };
    route(&mesh, &port(PORT));
    assert_eq!(who(&send(&mesh, "any", "GET /", "").await), "a");
    route(&mesh, &port(PORT + 1));
    assert_eq!(who(&send(&mesh, "any", "GET /", "").await), "own", "routes of another port");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_weights_share_and_what_leads_nowhere_is_500() {
    let (own, apps) = three().await;
    let mut mesh = mesh(&own, &backends(&apps)).await;
    let weighted = |backends: &str| http_route("r", &format!("[{{backendRefs: [{backends}]}}]"));
    route(
        &mesh,
        &weighted("{name: a, port: 80, weight: 3}, {name: b, port: 80, weight: 1}, {name: c, port: 80, weight: 0}"),
    );
    let mut counts = std::collections::BTreeMap::<String, u32>::new();
    let mut tunnel = mesh.tunnel("any").await;
    for _ in 0..200 {
        let (head, _) = exchange(&mut tunnel, "GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
        *counts.entry(crate::mesh::header(&head, "x-backend").expect("answered").to_owned()).or_default() += 1;
        mesh.expect_record(Verdict::Allow, Some(200)).await;
    }
    // Expected 150 and 50; five standard deviations are 31.
    assert_eq!(counts.len(), 2, "{counts:?}");
    assert!((119..=181).contains(&counts["a"]), "{counts:?}");
    for (backends, reason) in [
        ("{name: a, port: 80, weight: 0}", "no backend has a share"),
        ("", "no backend has a share"),
        ("{name: gone, port: 80}", "there is no service `gone.kagenti-system.svc.cluster.local`"),
        ("{name: a, port: 81}", "has no port 81"),
        ("{group: x.dev, kind: Bucket, name: a}", "is a Bucket, not a Service"),
        (
            "{name: a, port: 80, filters: [{type: ExtensionRef, extensionRef: {group: x, kind: Y, name: z}}]}",
            "`ExtensionRef` isn't supported",
        ),
    ] {
        route(&mesh, &weighted(backends));
        assert_eq!(who(&send(&mesh, "any", "GET /", "").await), "500", "{backends}");
        let record = mesh.expect_record(Verdict::Allow, Some(500)).await;
        assert!(record.reason.contains(reason), "{backends}: {}", record.reason);
        assert!(record.reason.contains("HTTPRoute `kagenti-system/r` rule 0"), "{}", record.reason);
    }
    // The share of a backend that isn't there is lost, not given to the others.
    route(&mesh, &weighted("{name: gone, port: 80, weight: 1000}, {name: a, port: 80, weight: 1}"));
    let mut lost = 0;
    for _ in 0..10 {
        lost += u32::from(send(&mesh, "any", "GET /", "").await.0 == 500);
    }
    assert!(lost >= 8, "{lost}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_that_cannot_be_read_closes_its_service() {
    let (own, apps) = three().await;
    let mut mesh = mesh(&own, &backends(&apps)).await;
    // Loading finds the fault, and the rejection travels with the route.
    let broken = http_route("broken", "[{matches: [{path: {type: RegularExpression, value: '('}}]}]");
    route(&mesh, &format!("{broken}{}", http_route("fine", &format!("[{{{}}}]", to("a")))));
    let answer = send(&mesh, "any", "GET /", "").await;
    assert_eq!(answer.0, 500, "{answer:?}");
    let record = mesh.expect_record(Verdict::Allow, Some(500)).await;
    assert!(record.reason.contains("HTTPRoute `kagenti-system/broken` was rejected"), "{}", record.reason);
    route(&mesh, "");
    assert_eq!(who(&send(&mesh, "any", "GET /", "").await), "own", "without routes as before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_gets_the_protocol_of_its_port() {
    let (own, apps) = three().await;
    let mut all = backends(&apps);
    all[0].protocol = AppProtocol::Http2;
    all[1].protocol = AppProtocol::Http11;
    let mesh = mesh_for(own.address, AppProtocol::Unknown, &all).await;
    for (name, app) in [("a", &apps[0]), ("b", &apps[1])] {
        route(&mesh, &http_route("r", &format!("[{{{}}}]", to(name))));
        assert_eq!(send(&mesh, "any", "GET /x", "").await.2, format!("{name} saw GET /x at mlflow:5000"));
        let host = app.seen()[0].headers.get("host").is_some();
        assert_eq!(host, name == "b", "HTTP/2 has no host line");
    }
}
