//! TrafficPolicies: rate limits by principal, by header and for all; faults; and what stays closed.

use std::time::{Duration, Instant};

use ambit_policy::Verdict;
use ambit_xds::waypoint::{BoundService, TrafficPolicy};
use serde_json::{Value, json};

use crate::{
    mesh::{Mesh, NAMESPACE, Shape, allow_all, exchange, header, status, traces_only},
    routes::app::App,
    wire,
};

const NO_KEY: Value = Value::Null;

async fn mesh(policies: &[Value], traffic: &[(&str, Value)]) -> (App, Mesh) {
    let app = App::start("own").await;
    let mesh = Mesh::start(Shape::of(app.address)).await;
    bind(&mesh, policies, traffic);
    (app, mesh)
}

/// Puts these policies in force for the service.
pub fn bind(mesh: &Mesh, policies: &[Value], traffic: &[(&str, Value)]) {
    let traffic_policies = traffic.iter().map(|(name, spec)| limiting(name, spec)).collect();
    mesh.bundle(vec![BoundService { traffic_policies, ..wire::service(policies) }]);
}

fn limiting(name: &str, spec: &Value) -> TrafficPolicy {
    let json = json!({"namespace": NAMESPACE, "name": name, "spec": spec}).to_string().into_bytes();
    TrafficPolicy { namespace: NAMESPACE.to_owned(), name: name.to_owned(), json, rejection: String::new() }
}

/// So few tokens come back that none does while a test runs.
pub fn hourly(requests: u32, key: Value) -> Value {
    json!({"name": "few", "requests": requests, "interval": "1h", "key": key})
}

/// Statuses of requests (method and target, with further header lines) over one new connection.
async fn ask(mesh: &Mesh, who: &str, requests: &[(&str, &str)]) -> Vec<u16> {
    let mut tunnel = mesh.tunnel(who).await;
    let mut statuses = Vec::new();
    for (request, lines) in requests {
        statuses.push(status(&exchange(&mut tunnel, &text(request, lines)).await.0));
    }
    statuses
}

fn text(request: &str, lines: &str) -> String {
    format!("{request} HTTP/1.1\r\nhost: h\r\n{lines}\r\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_principal_has_a_bucket_and_no_new_connection_gives_another() {
    let (app, mesh) = mesh(&[allow_all()], &[("limits", json!({"rateLimits": [hourly(2, NO_KEY)]}))]).await;
    assert_eq!(ask(&mesh, "one", &[("GET /", ""); 3]).await, [200, 200, 429]);
    assert_eq!(ask(&mesh, "other", &[("GET /", ""); 3]).await, [200, 200, 429]);
    let mut tunnel = mesh.tunnel("one").await;
    let (head, body) = exchange(&mut tunnel, &text("GET /", "")).await;
    assert_eq!((status(&head), body.as_slice()), (429, &b"local_rate_limited"[..]));
    let wait: u64 = header(&head, "retry-after").expect("how long").parse().expect("seconds");
    assert!((1_700..=1_800).contains(&wait), "half an hour for each: {wait}");
    let (head, _) = exchange(&mut tunnel, &text("POST /pkg.S/Do", "content-type: application/grpc\r\n")).await;
    assert_eq!((status(&head), header(&head, "grpc-status")), (200, Some("8")), "not to be tried again at once");
    assert!(header(&head, "retry-after").is_some());
    assert_eq!(app.seen().len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_record_of_a_refusal_says_which_limit_of_which_policy() {
    let traffic = [
        ("a", json!({"rateLimits": [{"requests": 100, "interval": "1s"}]})),
        ("b", json!({"rateLimits": [hourly(100, NO_KEY), {"requests": 1, "interval": "1h"}]})),
    ];
    let (_app, mut mesh) = mesh(&[allow_all()], &traffic).await;
    assert_eq!(ask(&mesh, "one", &[("GET /", ""); 2]).await, [200, 429]);
    mesh.expect_record(Verdict::Allow, Some(200)).await;
    let record = mesh.expect_record(Verdict::Deny, Some(429)).await;
    assert_eq!(&*record.reason, "TrafficPolicy `kagenti-system/b` rate limit 1: no token is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_not_changed_goes_on_counting_and_what_has_begins_anew() {
    let kept =
        ("kept", json!({"rateLimits": [{"requests": 3, "interval": "1h", "matches": [{"path": {"value": "/k"}}]}]}));
    let changing = |requests: u32| {
        ("t", json!({"rateLimits": [{"requests": requests, "interval": "1h", "matches": [{"path": {"value": "/t"}}]}]}))
    };
    let (_app, mesh) = mesh(&[allow_all()], &[kept.clone(), changing(1)]).await;
    assert_eq!(ask(&mesh, "one", &[("GET /k", ""), ("GET /t", ""), ("GET /t", "")]).await, [200, 200, 429]);
    bind(&mesh, &[allow_all(), traces_only()], &[kept.clone(), changing(1)]);
    assert_eq!(ask(&mesh, "one", &[("GET /k", ""), ("GET /t", "")]).await, [200, 429]);
    bind(&mesh, &[allow_all()], &[kept, changing(2)]);
    let asked = [("GET /k", ""), ("GET /k", ""), ("GET /t", ""), ("GET /t", ""), ("GET /t", ""), ("GET /", "")];
    assert_eq!(ask(&mesh, "one", &asked).await, [200, 429, 200, 200, 429, 200]);
    bind(&mesh, &[allow_all()], &[]);
    assert_eq!(ask(&mesh, "one", &asked).await, [200; 6]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_by_header_and_for_all_are_counted_apart() {
    let by_tenant = json!({"type": "Header", "header": "X-Tenant"});
    let mut limit = hourly(1, by_tenant);
    limit["maxKeys"] = json!(3);
    let (_app, mesh) = mesh(&[allow_all()], &[("limits", json!({"rateLimits": [limit]}))]).await;
    let [a, b, list] = ["x-tenant: a\r\n", "x-tenant: b\r\n", "x-tenant: a\r\nx-tenant: b\r\n"];
    let asked = [
        ("GET /", a),
        ("GET /", a),
        ("GET /", b),
        ("GET /", ""),
        ("GET /", ""),
        ("GET /", list),
        ("GET /", "x-tenant: c\r\n"),
    ];
    // Requests without the header are one key, and the fourth and fifth share what is left.
    assert_eq!(ask(&mesh, "one", &asked).await, [200, 429, 200, 200, 429, 200, 429]);
    assert_eq!(ask(&mesh, "other", &[("GET /", a)]).await, [429], "whoever sends it");

    bind(&mesh, &[allow_all()], &[("limits", json!({"rateLimits": [hourly(2, json!({"type": "All"}))]}))]);
    assert_eq!(ask(&mesh, "one", &[("GET /", "")]).await, [200]);
    assert_eq!(ask(&mesh, "other", &[("GET /", ""); 2]).await, [200, 429]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_requests_that_match_and_that_policies_allow_are_counted() {
    let matches = json!([
        {"path": {"type": "Exact", "value": "/v1/traces"}, "method": "POST"},
        {"path": {"type": "RegularExpression", "value": "/x/[0-9]+"}},
        {"queryParams": [{"name": "q", "value": "1"}], "headers": [{"name": "x-a", "value": "b"}]},
    ]);
    let mut limit = hourly(1, json!({"type": "All"}));
    limit["matches"] = matches;
    let traffic = [("limits", json!({"rateLimits": [limit]}))];
    let (app, mesh) = mesh(&[traces_only()], &traffic).await;
    assert_eq!(ask(&mesh, "nobody", &[("POST /v1/traces", ""); 3]).await, [403; 3], "they take no token");
    let others = [("GET /v1/traces", ""), ("GET /x/y", ""), ("GET /?q=1", ""), ("GET /?q=2", "x-a: b\r\n")];
    assert_eq!(ask(&mesh, "kagenti-ui", &others).await, [200; 4]);
    assert_eq!(ask(&mesh, "kagenti-ui", &[("GET /?q=1", "x-a: b\r\n")]).await, [200]);
    assert_eq!(ask(&mesh, "otel-collector", &[("POST /v1/traces", ""), ("GET /v1/traces", "")]).await, [429, 403]);
    assert_eq!(ask(&mesh, "kagenti-ui", &[("GET /x/7?y", "")]).await, [429]);
    assert_eq!(app.seen().len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_answers_in_the_applications_place() {
    let abort = json!({"httpStatus": 418, "grpcStatus": 9});
    let faults = json!([
        {"name": "never", "matches": [{"path": {"value": "/n"}}], "abort": {"httpStatus": 500, "percent": 0}},
        {"name": "always", "matches": [{"headers": [{"name": "x-test", "value": "1"}]}], "abort": abort},
    ]);
    let (app, mut mesh) = mesh(&[allow_all()], &[("faults", json!({"faults": faults}))]).await;
    let mut tunnel = mesh.tunnel("one").await;
    let (head, body) = exchange(&mut tunnel, &text("GET /a", "x-test: 1\r\n")).await;
    assert_eq!((status(&head), body.as_slice()), (418, &b"fault filter abort"[..]));
    let record = mesh.expect_record(Verdict::Allow, Some(418)).await;
    assert!(record.reason.ends_with("; TrafficPolicy `kagenti-system/faults` fault `always` aborted it"), "{record:?}");
    let lines = "x-test: 1\r\ncontent-type: application/grpc+proto\r\n";
    let (head, _) = exchange(&mut tunnel, &text("POST /pkg.S/Do", lines)).await;
    assert_eq!((status(&head), header(&head, "grpc-status")), (200, Some("9")));
    assert!(app.seen().is_empty());
    // The first fault that matches is the one that counts.
    assert_eq!(ask(&mesh, "one", &[("GET /n", "x-test: 1\r\n"), ("GET /", "")]).await, [200, 200]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_the_requests_is_aborted() {
    let abort = json!({"httpStatus": 503, "fraction": {"numerator": 1, "denominator": 2}});
    let (_app, mesh) = mesh(&[allow_all()], &[("faults", json!({"faults": [{"abort": abort}]}))]).await;
    let aborted = ask(&mesh, "one", &[("GET /", ""); 200]).await.iter().filter(|status| **status == 503).count();
    assert!((60..=140).contains(&aborted), "{aborted} of 200");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_request_goes_on_if_it_is_still_allowed_after_that() {
    let slow = |duration: &str| [("slow", json!({"faults": [{"name": "f", "delay": {"duration": duration}}]}))];
    let (app, mut mesh) = mesh(&[allow_all()], &slow("300ms")).await;
    let start = Instant::now();
    assert_eq!(ask(&mesh, "one", &[("GET /", "")]).await, [200]);
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    let record = mesh.expect_record(Verdict::Allow, Some(200)).await;
    assert!(
        record.reason.ends_with("; TrafficPolicy `kagenti-system/slow` fault `f` delayed it by 300 ms"),
        "{record:?}"
    );

    // What came of it before it was delayed holds no longer.
    bind(&mesh, &[allow_all()], &slow("2s"));
    let mut tunnel = mesh.tunnel("one").await;
    let (asked, ()) = tokio::join!(exchange(&mut tunnel, "GET /late HTTP/1.1\r\nhost: h\r\n\r\n"), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        bind(&mesh, &[traces_only()], &slow("2s"));
    });
    assert_eq!(status(&asked.0), 403);
    assert_eq!(app.seen().len(), 1, "it never got there");
    mesh.expect_record(Verdict::Deny, Some(403)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_cannot_be_read_closes_its_service() {
    let (app, mut mesh) = mesh(&[allow_all()], &[]).await;
    let rejected = TrafficPolicy { rejection: "why not".to_owned(), ..limiting("t", &json!({})) };
    let foreign = TrafficPolicy { name: "other".to_owned(), ..limiting("t", &json!({})) };
    let broken = [
        (rejected, "TrafficPolicy `kagenti-system/t` was rejected: why not"),
        (foreign, "it carries another one, `kagenti-system/t`"),
        (limiting("t", &json!({"rateLimits": [{"requests": 0, "interval": "1s"}]})), "0 can't be its `requests`"),
        (limiting("t", &json!({"rateLimits": [{"requests": 1, "interval": "often"}]})), "`often` is not an interval"),
        (
            limiting("t", &json!({"rateLimits": [{"requests": 1, "interval": "1s", "key": {"type": "Header"}}]})),
            "a header",
        ),
        (limiting("t", &json!({"rateLimits": [{"requests": 1, "interval": "1s", "new": 1}]})), "it can't be read"),
        (limiting("t", &json!({"faults": [{"abort": {"httpStatus": 204}}]})), "204 is no status of an abort"),
        (limiting("t", &json!({"faults": [{"delay": {"duration": "1h"}}]})), "`1h` is not a delay"),
        (
            limiting("t", &json!({"faults": [{"matches": [{"path": {"type": "RegularExpression", "value": "("}}]}]})),
            "rejected",
        ),
    ];
    for (policy, reason) in broken {
        let service = BoundService { traffic_policies: vec![policy], ..wire::service(&[allow_all()]) };
        let nack = mesh.try_bundle(vec![service]).expect_err("refused by name");
        assert!(nack.to_string().contains(reason), "{nack}: {reason}");
        assert_eq!(ask(&mesh, "one", &[("GET /", "")]).await, [403]);
        let record = mesh.expect_record(Verdict::Deny, Some(403)).await;
        assert!(record.reason.contains(reason), "{record:?}: {reason}");
    }
    assert!(app.seen().is_empty());
}
