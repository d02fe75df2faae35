//! What filters do to requests and responses.

use ambit_policy::Verdict;
use serde_json::json;

use super::{App, Backend, bind, http_route, mesh, route, send};
use crate::mesh::{Mesh, header, policy};

async fn two() -> (App, App, App, Mesh) {
    let (own, a, b) = (App::start("own").await, App::start("a").await, App::start("b").await);
    let mesh = mesh(&own, &[Backend::of("a", 1, &a), Backend::of("b", 2, &b)]).await;
    (own, a, b, mesh)
}

const A: &str = "backendRefs: [{name: a, port: 80}]";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_are_set_added_and_removed_in_both_directions_and_at_both_levels() {
    let (_own, a, _b, mesh) = two().await;
    let rule = "[{filters: [
          {type: RequestHeaderModifier, requestHeaderModifier:
            {set: [{name: x-set, value: rule}], add: [{name: x-add, value: rule}], remove: [x-gone]}},
          {type: ResponseHeaderModifier, responseHeaderModifier:
            {set: [{name: x-app, value: rule}], add: [{name: x-new, value: one}]}}],
        backendRefs: [{name: a, port: 80, filters: [
          {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-backend-level, value: yes-it-is}]}},
          {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-new, value: two}], remove: [x-backend]}}]}]}]";
    route(&mesh, &http_route("r", rule));
    let sent = "x-set: mine\r\nx-set: too\r\nx-add: mine\r\nx-gone: 1\r\nx-kept: 1\r\n";
    let (status, head, _) = send(&mesh, "any", "GET /", sent).await;
    assert_eq!(status, 200);
    let seen = &a.seen()[0].headers;
    let all = |name: &str| seen.get_all(name).iter().map(|v| v.to_str().expect("text")).collect::<Vec<_>>();
    assert_eq!(all("x-set"), ["rule"]);
    assert_eq!(all("x-add"), ["mine", "rule"]);
    assert_eq!((all("x-gone").len(), all("x-kept"), all("x-backend-level")), (0, vec!["1"], vec!["yes-it-is"]));
    assert_eq!(header(&head, "x-app"), Some("rule"));
    assert!(head.contains("x-new: one\r\n") && head.contains("x-new: two\r\n"), "{head}");
    assert_eq!(header(&head, "x-backend"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_frame_or_address_a_message_cannot_be_changed() {
    let (_own, a, _b, mut mesh) = two().await;
    for name in ["host", "Transfer-Encoding", "content-length", "connection", "x-forwarded-client-cert"] {
        for change in [format!("set: [{{name: {name}, value: '1'}}]"), format!("remove: [{name}]")] {
            let filter = format!("{{type: RequestHeaderModifier, requestHeaderModifier: {{{change}}}}}");
            route(&mesh, &http_route("r", &format!("[{{filters: [{filter}], {A}}}]")));
            assert_eq!(send(&mesh, "any", "GET /", "").await.0, 500, "{change}");
            mesh.expect_record(Verdict::Allow, Some(500)).await;
        }
    }
    assert!(a.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_and_hosts_are_rewritten_after_policies_have_judged_them() {
    let (_own, _a, _b, mesh) = two().await;
    // Rows of the Gateway API's own table for prefixes.
    let cases = [
        ("/foo", "{type: ReplacePrefixMatch, replacePrefixMatch: /xyz}", "/foo/bar?q=1", "/xyz/bar?q=1"),
        ("/foo", "{type: ReplacePrefixMatch, replacePrefixMatch: /xyz/}", "/foo/bar", "/xyz/bar"),
        ("/foo/", "{type: ReplacePrefixMatch, replacePrefixMatch: /xyz}", "/foo/bar", "/xyz/bar"),
        ("/foo/", "{type: ReplacePrefixMatch, replacePrefixMatch: /xyz/}", "/foo/bar", "/xyz/bar"),
        ("/foo", "{type: ReplacePrefixMatch, replacePrefixMatch: /xyz}", "/foo", "/xyz"),
        ("/foo", "{type: ReplacePrefixMatch, replacePrefixMatch: /xyz}", "/foo/", "/xyz/"),
        ("/foo", "{type: ReplacePrefixMatch, replacePrefixMatch: ''}", "/foo/bar", "/bar"),
        ("/foo", "{type: ReplacePrefixMatch, replacePrefixMatch: ''}", "/foo/", "/"),
        ("/foo", "{type: ReplacePrefixMatch, replacePrefixMatch: ''}", "/foo", "/"),
        ("/foo", "{type: ReplacePrefixMatch, replacePrefixMatch: /}", "/foo/", "/"),
        ("/foo", "{type: ReplacePrefixMatch, replacePrefixMatch: /}", "/foo?x", "/?x"),
        ("/", "{type: ReplacePrefixMatch, replacePrefixMatch: /v2}", "/bar", "/v2/bar"),
        ("/foo", "{type: ReplaceFullPath, replaceFullPath: /one}", "/foo/bar?q=1", "/one?q=1"),
    ];
    for (prefix, path, asked, wanted) in cases {
        let rule = format!(
            "[{{matches: [{{path: {{value: {prefix}}}}}], {A}, filters: [{{type: URLRewrite, urlRewrite: \
             {{hostname: new.example, path: {path}}}}}]}}]"
        );
        let only = policy(json!({"action": "ALLOW", "rules": [{"to": [{"operation":
            {"paths": [asked.split('?').next()], "hosts": ["mlflow:5000"]}}]}]}));
        bind(&mesh, &http_route("r", &rule), &[only], Vec::new());
        let answer = send(&mesh, "any", &format!("GET {asked}"), "").await;
        assert_eq!(answer.2, format!("a saw GET {wanted} at new.example"), "{prefix} {path} {asked}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_answers_by_itself() {
    let (own, a, _b, mesh) = two().await;
    let cases = [
        ("{hostname: new.example}", "GET /x?q=1", 302, "http://new.example:5000/x?q=1"),
        ("{scheme: https}", "GET /x", 302, "https://mlflow/x"),
        ("{scheme: https, port: 8443, statusCode: 301}", "GET /x", 301, "https://mlflow:8443/x"),
        ("{scheme: http, port: 80}", "GET /x", 302, "http://mlflow/x"),
        ("{port: 80, statusCode: 308}", "GET /x", 308, "http://mlflow/x"),
        (
            "{path: {type: ReplaceFullPath, replaceFullPath: /y}, statusCode: 307}",
            "GET /x?q",
            307,
            "http://mlflow:5000/y?q",
        ),
        (
            "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /y}, statusCode: 303}",
            "GET /x",
            303,
            "http://mlflow:5000/y/x",
        ),
    ];
    for (redirect, request, status, location) in cases {
        route(
            &mesh,
            &http_route("r", &format!("[{{filters: [{{type: RequestRedirect, requestRedirect: {redirect}}}]}}]")),
        );
        let answer = send(&mesh, "any", request, "").await;
        assert_eq!((answer.0, header(&answer.1, "location")), (status, Some(location)), "{redirect}");
    }
    assert!(own.seen().is_empty() && a.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_go_to_mirrors_as_often_as_they_should() {
    let (own, a, b, mesh) = two().await;
    let mirror =
        |part: &str| format!("{{type: RequestMirror, requestMirror: {{backendRef: {{name: b, port: 80}}{part}}}}}");
    let own_too = "{type: RequestMirror, requestMirror: {backendRef: {name: mlflow, port: 5000}}}";
    route(&mesh, &http_route("r", &format!("[{{filters: [{}, {own_too}], {A}}}]", mirror(""))));
    let (status, _, body) = send(&mesh, "any", "POST /up?q=1", "content-length: 5\r\n\r\nhello").await;
    assert_eq!((status, body.as_str()), (200, "a saw POST /up?q=1 at mlflow:5000"), "the answer is the backend's");
    for app in [&a, &b, &own] {
        let arrived = async {
            while app.seen().is_empty() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        crate::mesh::soon(arrived).await;
        assert_eq!((app.seen()[0].line.as_str(), app.seen()[0].body.as_str()), ("POST /up?q=1", "hello"));
    }
    for (part, least, most) in [(", percent: 0", 0, 0), (", fraction: {numerator: 1, denominator: 2}", 60, 140)] {
        let before = b.seen().len();
        route(&mesh, &http_route("r", &format!("[{{filters: [{}], {A}}}]", mirror(part))));
        for _ in 0..200 {
            assert_eq!(send(&mesh, "any", "GET /", "").await.0, 200);
        }
        let count = || b.seen().len() - before;
        let enough = async {
            while count() < least {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        crate::mesh::soon(enough).await;
        assert!(count() <= most, "{part}: {}", count());
    }
    // A mirror that isn't there is nobody's loss.
    route(&mesh, &http_route("r", &format!("[{{filters: [{}], {A}}}]", mirror("").replace("name: b", "name: gone"))));
    assert_eq!(send(&mesh, "any", "GET /", "").await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cors_answers_preflights_and_marks_answers() {
    let (_own, a, _b, mesh) = two().await;
    let cors = |cors: &str| http_route("r", &format!("[{{filters: [{{type: CORS, cors: {cors}}}], {A}}}]"));
    route(
        &mesh,
        &cors(
            "{allowOrigins: ['https://app.example', 'https://*.wild.example'], allowCredentials: true, \
        allowMethods: [GET, PUT], allowHeaders: [x-a], exposeHeaders: [x-app], maxAge: 60}",
        ),
    );
    let preflight = |origin: &str| {
        format!("origin: {origin}\r\naccess-control-request-method: PUT\r\naccess-control-request-headers: x-a\r\n")
    };
    for origin in ["https://app.example", "https://x.wild.example"] {
        let (status, head, _) = send(&mesh, "any", "OPTIONS /", &preflight(origin)).await;
        let say = |name: &str| header(&head, &format!("access-control-{name}")).map(str::to_owned);
        assert_eq!((status, say("allow-origin").as_deref()), (204, Some(origin)), "{head}");
        assert_eq!(say("allow-credentials").as_deref(), Some("true"));
        assert_eq!((say("allow-methods").as_deref(), say("allow-headers").as_deref()), (Some("GET, PUT"), Some("x-a")));
        assert_eq!(say("max-age").as_deref(), Some("60"));
    }
    for origin in
        ["https://evil.example", "https://wild.example", "http://app.example", "https://app.example.evil", "null"]
    {
        let (status, head, _) = send(&mesh, "any", "OPTIONS /", &preflight(origin)).await;
        assert_eq!((status, head.contains("access-control-allow")), (204, false), "{origin}: {head}");
        let (status, head, _) = send(&mesh, "any", "GET /", &format!("origin: {origin}\r\n")).await;
        assert_eq!((status, header(&head, "access-control-allow-origin")), (200, None), "{origin}");
    }
    let seen = a.seen().len();
    let (status, head, _) = send(&mesh, "any", "GET /", "origin: https://app.example\r\n").await;
    assert_eq!((status, header(&head, "access-control-allow-origin")), (200, Some("https://app.example")));
    assert_eq!(header(&head, "access-control-expose-headers"), Some("x-app"));
    assert_eq!(header(&head, "vary"), Some("origin"));
    assert_eq!(a.seen().len(), seen + 1, "preflights never reach a backend");

    route(&mesh, &cors("{allowOrigins: ['*'], allowMethods: ['*'], allowHeaders: ['*']}"));
    let (_, head, _) = send(&mesh, "any", "OPTIONS /", &preflight("https://any.example")).await;
    assert_eq!(header(&head, "access-control-allow-origin"), Some("*"));
    assert_eq!(header(&head, "access-control-allow-methods"), Some("PUT"));
    assert_eq!(header(&head, "access-control-max-age"), Some("5"));
}
