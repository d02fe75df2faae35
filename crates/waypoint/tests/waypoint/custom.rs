//! CUSTOM policies against a real external authorizer (`authorizer`).

use std::time::{Duration, Instant};

use ambit_policy::Verdict;
use ambit_telemetry::{CheckOutcome, DecisionRecord, ProviderCheck};
use ambit_xds::{
    DeltaResponse, MESH_TYPE, Resource, mesh as wire_mesh,
    waypoint::{BoundService, Bundle, CheckedBody, HttpCheck, Protocol, Provider, RequestAuthentication},
    workload::AppProtocol,
};
use prost::Message;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    authorizer::{self, over_grpc, over_http},
    backend::{self, Raw},
    mesh::{HOSTNAME, Mesh, NAMESPACE, PORT, Shape, allow_all, exchange, header, policy, soon, status},
    wire,
};

/// Wants provider `ext` asked about everything.
pub fn ask_ext() -> Value {
    ask("ext", json!([{}]))
}

fn ask(provider: &str, rules: Value) -> Value {
    let spec = json!({"action": "CUSTOM", "provider": {"name": provider}, "rules": rules});
    json!({"namespace": NAMESPACE, "name": format!("ask-{provider}"), "spec": spec})
}

/// Puts these policies and providers in force.
pub fn govern(mesh: &Mesh, policies: &[Value], providers: &[Provider]) {
    govern_believing(mesh, policies, Vec::new(), providers);
}

/// The same, with tokens that are believed by these.
pub fn govern_believing(
    mesh: &Mesh,
    policies: &[Value],
    authentications: Vec<RequestAuthentication>,
    providers: &[Provider],
) {
    let grpc = |provider: &Provider| matches!(provider.protocol, Some(Protocol::Grpc(_)));
    let settings = wire_mesh::Mesh {
        trust_domains: vec!["cluster.local".to_owned()],
        root_namespace: "istio-system".to_owned(),
        providers: providers
            .iter()
            .map(|provider| wire_mesh::Provider { name: provider.name.clone(), grpc: grpc(provider) })
            .collect(),
        several_providers: true,
        ..wire_mesh::Mesh::default()
    };
    let service = BoundService { authentications, ..wire::service(policies) };
    let bundle = Bundle { providers: providers.to_vec(), ..wire::bundle(vec![service]) };
    let (name, value) = (wire_mesh::NAME.to_owned(), settings.encode_to_vec());
    let resources = vec![Resource { name, version: String::new(), value }];
    let settings = DeltaResponse { type_url: MESH_TYPE.to_owned(), resources, removed: Vec::new() };
    mesh.store.apply(&[settings, wire::response(&bundle)]).expect("readable resources");
}

/// A mesh in front of a raw application, where `ext` is asked about everything and all else is allowed.
async fn asking(provider: Provider) -> (Mesh, Raw) {
    let app = Raw::start().await;
    let mesh = Mesh::start(Shape::of(app.address)).await;
    govern(&mesh, &[ask_ext(), allow_all()], &[provider]);
    (mesh, app)
}

fn get(decide: &str, more: &str) -> String {
    format!("GET /a/b?x=1&token=t HTTP/1.1\r\nhost: mlflow\r\nx-decide: {decide}\r\n{more}\r\n")
}

fn checks(record: &DecisionRecord) -> &[ProviderCheck] {
    record.notes.as_deref().map_or(&[], |notes| &notes.providers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_provider_is_told_of_the_request_and_may_change_it() {
    let Some(mut ext) = authorizer::start().await else { return };
    let (mut mesh, app) = asking(over_grpc(ext.grpc_port)).await;
    let mut client = mesh.tunnel("otel-collector").await;
    let more =
        "x-groups: admin\r\nx-secret: s\r\ncookie: a=1\r\nx-two: 1\r\nx-two: 2\r\nx-forwarded-client-cert: me\r\n";
    let (head, body) = exchange(&mut client, &get("allow", more)).await;
    assert_eq!((status(&head), body.as_slice()), (200, &b"ok"[..]), "{head}");
    assert_eq!(header(&head, "x-checked"), Some("yes"));
    assert_eq!(header(&head, "server"), Some("authz"), "instead of the application's");

    let asked = ext.asked().await;
    for (field, expected) in [
        ("method", "GET"),
        ("path", "/a/b?x=1&token=t"),
        ("host", "mlflow"),
        ("scheme", "http"),
        ("protocol", "HTTP/1.1"),
        ("body", ""),
        ("source", "spiffe://cluster.local/ns/kagenti-system/sa/otel-collector"),
        ("sourceAddress", "127.0.0.1"),
        ("destination", "spiffe://cluster.local/ns/kagenti-system/sa/waypoint"),
        ("destinationAddress", "10.96.0.7"),
    ] {
        assert_eq!(asked[field], expected, "{field}: {asked}");
    }
    assert_eq!((&asked["size"], &asked["destinationPort"]), (&json!(-1), &json!(PORT)));
    assert_eq!((&asked["hasTime"], &asked["hasDeadline"]), (&json!(true), &json!(true)));
    let headers = &asked["headers"];
    for (name, expected) in [
        (":method", "GET"),
        (":path", "/a/b?x=1&token=t"),
        (":authority", "mlflow"),
        (":scheme", "http"),
        ("cookie", "a=1"),
        ("x-two", "1,2"),
        ("x-forwarded-proto", "http"),
    ] {
        assert_eq!(headers[name], expected, "{name}: {headers}");
    }
    assert_eq!(headers["x-request-id"], asked["id"], "the id that the application gets, too");
    assert_eq!(headers["x-forwarded-client-cert"], Value::Null, "what clients may not say isn't passed on");

    let [request] = &app.seen()[..] else { panic!("one request, not {:?}", app.seen()) };
    assert!(request.starts_with("GET /a/b?x=1&user=alice HTTP/1.1\r\n"), "{request}");
    assert_eq!((header(request, "x-user"), header(request, "x-groups")), (Some("alice"), Some("admin,staff")));
    assert_eq!((header(request, "x-secret"), header(request, "host")), (None, Some("mlflow")));
    assert_eq!(header(request, "x-request-id"), asked["id"].as_str());

    let record = mesh.expect_record(Verdict::Allow, Some(200)).await;
    let [check] = checks(&record) else { panic!("one check, not {record:?}") };
    assert_eq!((&*check.provider, check.outcome, check.rule), ("ext", CheckOutcome::Allowed, Some(0)));
    assert_eq!(check.policy.as_ref().expect("policy").to_string(), "kagenti-system/ask-ext");
    assert_eq!(record.policy.expect("policy").to_string(), "kagenti-system/mlflow", "who allowed it in the end");

    for _ in 0..3 {
        let (head, _) = exchange(&mut client, &get("plain", "")).await;
        assert_eq!(status(&head), 200);
        assert_eq!(ext.asked().await["connections"], 1, "one connection for all questions");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_grpc_provider_does_not_allow_is_denied() {
    let Some(ext) = authorizer::start().await else { return };
    let closed = over_grpc(ext.grpc_port);
    let open = Provider { fail_open: true, status_on_error: 503, ..closed.clone() };
    let gone = Provider { port: 1, ..closed.clone() };
    let gone_open = Provider { port: 1, ..open.clone() };
    use CheckOutcome::{Denied, Failed, FailedOpen};
    let cases = [
        (&closed, "deny", 403, Denied, "denied it (status 403)"),
        (&closed, "teapot", 302, Denied, "denied it (status 302)"),
        (&closed, "contradict", 401, Denied, "denied it (status 401)"),
        (&closed, "empty", 403, Failed, "its answer can't be obeyed: it is empty"),
        (&closed, "path", 403, Failed, "its answer can't be obeyed: a header's name can't be set"),
        (&closed, "fail", 403, Failed, "it answered gRPC status 14"),
        (&gone, "plain", 403, Failed, "it can't be reached"),
        (&open, "deny", 403, Denied, "denied it (status 403)"),
        (&open, "empty", 503, Failed, "its answer can't be obeyed"),
        (&open, "path", 503, Failed, "its answer can't be obeyed"),
        (&open, "fail", 200, FailedOpen, "it answered gRPC status 14"),
        (&gone_open, "plain", 200, FailedOpen, "it can't be reached"),
    ];
    let (mut mesh, app) = asking(closed.clone()).await;
    let mut client = mesh.tunnel("any").await;
    for (provider, decide, expected, outcome, reason) in cases {
        govern(&mesh, &[ask_ext(), allow_all()], std::slice::from_ref(provider));
        let before = app.seen().len();
        let (head, body) = exchange(&mut client, &get(decide, "")).await;
        assert_eq!(status(&head), expected, "{decide}, {provider:?}: {head}");
        let allowed = outcome == FailedOpen;
        assert_eq!(app.seen().len() - before, usize::from(allowed), "{decide}");
        if decide == "teapot" {
            assert_eq!(header(&head, "location"), Some("https://login.example/"));
            assert_eq!((header(&head, "content-length"), body.as_slice()), (Some("13"), &b"go and log in"[..]));
        } else if !allowed {
            assert!(body.is_empty(), "{decide}");
        }
        let record = mesh.record().await;
        let [check] = checks(&record) else { panic!("one check, not {record:?}") };
        assert_eq!((check.outcome, record.verdict == Verdict::Allow), (outcome, allowed), "{decide}: {record:?}");
        let told = if allowed { check.reason.as_deref().unwrap_or_default() } else { &record.reason };
        assert!(told.contains(reason), "{decide}: {told}");
        if !allowed {
            assert_eq!(record.policy.expect("policy").to_string(), "kagenti-system/ask-ext");
            assert!(record.reason.starts_with("rule 0 of kagenti-system/ask-ext wants provider `ext` asked"));
        }
    }
    // A call is refused by its own status.
    govern(&mesh, &[ask_ext(), allow_all()], &[closed]);
    let (head, _) = exchange(&mut client, &get("teapot", "content-type: application/grpc\r\n")).await;
    assert_eq!((status(&head), header(&head, "grpc-status")), (200, Some("2")), "{head}");
    assert_eq!(header(&head, "grpc-message"), Some("go and log in"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http_provider_sees_and_changes_what_its_options_name() {
    let Some(mut ext) = authorizer::start().await else { return };
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let check = HttpCheck {
        path_prefix: "/check".to_owned(),
        request_headers: names(&["x-decide", "X-A*", "*-z"]),
        additional_headers: [("x-tenant".to_owned(), "team".to_owned())].into(),
        to_upstream_on_allow: names(&["x-user"]),
        to_downstream_on_allow: names(&["x-checked", "set-cookie"]),
        to_downstream_on_deny: names(&["x-why"]),
    };
    let (mut mesh, app) = asking(over_http(ext.http_port, check)).await;
    let mut client = mesh.tunnel("any").await;
    let more = "authorization: Bearer t\r\nx-ab: 1\r\nb-z: 2\r\nx-other: 3\r\nx-user: mallory\r\nx-secret: s\r\n\
        x-tenant: mine\r\ncookie: c\r\n";
    let (head, _) = exchange(&mut client, &get("allow", more)).await;
    assert_eq!((status(&head), header(&head, "x-checked")), (200, Some("yes")), "{head}");
    let cookies: Vec<_> = head.lines().filter(|line| line.starts_with("set-cookie: ")).collect();
    assert_eq!(cookies, ["set-cookie: a=1", "set-cookie: b=2"]);
    let asked = ext.asked().await;
    assert_eq!((&asked["method"], &asked["path"]), (&json!("GET"), &json!("/check/a/b?x=1&token=t")));
    assert_eq!((&asked["host"], &asked["size"], &asked["body"]), (&json!("mlflow"), &json!(0), &json!("")));
    let headers = json!({"authorization": "Bearer t", "x-decide": "allow", "x-ab": "1", "b-z": "2", "x-tenant": "team",
        "content-length": "0"});
    assert_eq!(asked["headers"], headers, "nothing else");
    let [request] = &app.seen()[..] else { panic!("one request, not {:?}", app.seen()) };
    assert_eq!((header(request, "x-user"), header(request, "x-other")), (Some("alice"), Some("3")), "{request}");
    assert_eq!((header(request, "x-secret"), header(request, "host")), (None, Some("mlflow")));
    mesh.expect_record(Verdict::Allow, Some(200)).await;

    let (head, body) = exchange(&mut client, &get("teapot", "")).await;
    assert_eq!((status(&head), body.as_slice()), (302, &b"go and log in"[..]), "{head}");
    assert_eq!((header(&head, "x-why"), header(&head, "x-hidden")), (Some("unknown"), None));
    assert_eq!(header(&head, "location"), Some("https://login.example/"), "always");
    mesh.expect_record(Verdict::Deny, Some(302)).await;
    assert_eq!(ext.asked().await["connections"], 1, "the connection is used again");

    // Without any names.
    let plain = over_http(ext.http_port, HttpCheck { request_headers: names(&["x-decide"]), ..HttpCheck::default() });
    let open = Provider { fail_open: true, ..plain.clone() };
    govern(&mesh, &[ask_ext(), allow_all()], &[Provider { status_on_error: 500, ..plain }]);
    let (head, _) = exchange(&mut client, &get("allow", "x-user: mine\r\n")).await;
    assert_eq!((status(&head), header(&head, "x-checked"), header(&head, "set-cookie")), (200, None, None));
    assert_eq!(ext.asked().await["path"], "/a/b?x=1&token=t");
    assert_eq!(header(&app.seen()[1], "x-user"), Some("mine"), "not changed");
    let (head, _) = exchange(&mut client, &get("teapot", "")).await;
    assert_eq!((status(&head), header(&head, "x-hidden")), (302, Some("secret")), "all of them");
    let (head, _) = exchange(&mut client, &get("fail", "")).await;
    assert_eq!(status(&head), 500, "502 is no answer");
    govern(&mesh, &[ask_ext(), allow_all()], &[open]);
    let (head, _) = exchange(&mut client, &get("fail", "")).await;
    assert_eq!(status(&head), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_sent_along_as_far_as_the_options_say_and_reaches_the_application_whole() {
    let Some(mut ext) = authorizer::start().await else { return };
    let names = vec!["x-decide".to_owned()];
    let http = over_http(ext.http_port, HttpCheck { request_headers: names, ..HttpCheck::default() });
    let grpc = over_grpc(ext.grpc_port);
    let whole = CheckedBody { max_bytes: 8, allow_partial: false, as_bytes: false };
    let partial = CheckedBody { allow_partial: true, ..whole };
    let bytes = CheckedBody { as_bytes: true, ..whole };
    let (mesh, app) = asking(grpc.clone()).await;
    // Provider, its option, the body, whether it is chunked; status, and what of it the provider got.
    type Case<'a> = (&'a Provider, Option<CheckedBody>, &'a str, bool, u16, Option<(&'a str, &'a str)>);
    let cases: [Case<'_>; 11] = [
        (&grpc, None, "12345678", false, 200, Some(("", "null"))),
        (&grpc, Some(whole), "12345678", false, 200, Some(("12345678", "\"false\""))),
        (&grpc, Some(whole), "12345678", true, 200, Some(("12345678", "\"false\""))),
        (&grpc, Some(whole), "123456789", false, 413, None),
        (&grpc, Some(whole), "123456789", true, 413, None),
        (&grpc, Some(partial), "123456789", false, 200, Some(("12345678", "\"true\""))),
        (&grpc, Some(partial), "123456789", true, 200, Some(("12345678", "\"true\""))),
        (&grpc, Some(bytes), "12345678", false, 200, Some(("12345678", "\"false\""))),
        (&http, None, "12345678", false, 200, Some(("", "null"))),
        (&http, Some(whole), "12345678", true, 200, Some(("12345678", "\"false\""))),
        (&http, Some(partial), "123456789", false, 200, Some(("12345678", "\"true\""))),
    ];
    for (index, (provider, option, body, chunked, expected, told)) in cases.into_iter().enumerate() {
        govern(&mesh, &[ask_ext(), allow_all()], &[Provider { body: option, ..provider.clone() }]);
        let mut client = mesh.tunnel("any").await;
        let sent = if chunked {
            let (first, second) = body.split_at(3);
            let chunks = format!("3\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n", second.len());
            format!("transfer-encoding: chunked\r\n\r\n{chunks}")
        } else {
            format!("content-length: {}\r\n\r\n{body}", body.len())
        };
        let (head, _) =
            exchange(&mut client, &format!("POST /b HTTP/1.1\r\nhost: mlflow\r\nx-decide: allow\r\n{sent}")).await;
        assert_eq!(status(&head), expected, "case {index}: {head}");
        let Some((excerpt, is_partial)) = told else {
            continue;
        };
        let asked = ext.asked().await;
        let packed = option.is_some_and(|option| option.as_bytes);
        let (field, other) = if packed { ("rawBody", "body") } else { ("body", "rawBody") };
        assert_eq!(asked[field], excerpt, "case {index}: {asked}");
        assert_eq!(asked[other].as_str().unwrap_or_default(), "", "case {index}: {asked}");
        assert_eq!(asked["headers"]["x-envoy-auth-partial-body"].to_string(), is_partial, "case {index}");
        let seen = app.seen().pop().expect("a request");
        let arrived: String = match seen.split_once("\r\n\r\n").expect("a head") {
            (head, chunks) if header(head, "transfer-encoding") == Some("chunked") => {
                chunks.split("\r\n").skip(1).step_by(2).collect()
            }
            (_, body) => body.to_owned(),
        };
        assert_eq!(arrived, body, "case {index}: {seen}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_does_not_answer_in_time_has_not_answered() {
    let Some(mut ext) = authorizer::start().await else { return };
    let names = vec!["x-decide".to_owned()];
    let http = over_http(ext.http_port, HttpCheck { request_headers: names, ..HttpCheck::default() });
    for provider in [over_grpc(ext.grpc_port), http] {
        let slow = Provider { timeout_ms: 300, status_on_error: 504, ..provider.clone() };
        let (mut mesh, app) = asking(slow).await;
        let mut client = mesh.tunnel("any").await;
        let started = Instant::now();
        let (head, _) = exchange(&mut client, &get("hang", "")).await;
        assert_eq!(status(&head), 504, "{head}");
        assert!(started.elapsed() >= Duration::from_millis(300));
        ext.asked().await;
        assert_eq!(ext.asked().await["cancelled"], true, "nobody waits for the answer any more");
        let record = mesh.expect_record(Verdict::Deny, Some(504)).await;
        assert!(record.reason.contains("nothing came within 300 ms"), "{}", record.reason);

        // A client that goes away takes its question with it.
        govern(&mesh, &[ask_ext(), allow_all()], &[Provider { timeout_ms: 60_000, ..provider }]);
        let mut client = mesh.tunnel("any").await;
        soon(client.write_all(get("hang", "").as_bytes())).await.expect("written");
        soon(client.flush()).await.expect("flushed");
        assert_eq!(ext.asked().await["method"], "GET");
        drop(client);
        assert_eq!(ext.asked().await["cancelled"], true);
        let record = mesh.expect_record(Verdict::Deny, None).await;
        assert_eq!(&*record.reason, "the client went away before provider `ext` answered");
        assert!(app.seen().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_grpc_provider_is_asked_about_a_connection() {
    for (decide, allowed) in [("plain", true), ("deny", false), ("fail", false)] {
        let Some(mut ext) = authorizer::start_deciding(decide).await else { return };
        let mut shape = Shape::of(backend::tcp(false).await);
        shape.protocol = AppProtocol::Tcp;
        let mut mesh = Mesh::start(shape).await;
        govern(&mesh, &[ask_ext(), allow_all()], &[over_grpc(ext.grpc_port)]);
        let mut client = mesh.tunnel("otel-collector").await;
        soon(client.write_all(b"\x00hello")).await.expect("written");
        let mut back = [0; 6];
        let arrived = soon(client.read_exact(&mut back)).await;
        assert_eq!(arrived.is_ok(), allowed, "{decide}");
        let asked = ext.asked().await;
        assert_eq!((&asked["hasHttp"], &asked["destinationPort"]), (&json!(false), &json!(PORT)), "{asked}");
        assert_eq!(asked["source"], "spiffe://cluster.local/ns/kagenti-system/sa/otel-collector");
        let record = mesh.record().await;
        assert_eq!((record.verdict == Verdict::Allow, checks(&record).len()), (allowed, 1), "{record:?}");
        assert_eq!(mesh.sources().len(), usize::from(allowed));
        if allowed {
            // A provider can't be asked again about what lives: another one that is wanted now ends it.
            govern(
                &mesh,
                &[ask("other", json!([{}])), allow_all()],
                &[Provider { name: "other".to_owned(), ..over_grpc(ext.grpc_port) }],
            );
            let end = soon(client.read(&mut [0])).await;
            assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
            let record = mesh.expect_record(Verdict::Deny, None).await;
            assert!(record.reason.contains("provider `other` has to allow it first"), "{}", record.reason);
        }
        govern(&mesh, &[ask_ext(), allow_all()], &[over_http(ext.http_port, HttpCheck::default())]);
        let mut client = mesh.tunnel("any").await;
        let end = soon(client.read(&mut [0])).await;
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        let record = mesh.expect_record(Verdict::Deny, None).await;
        assert!(record.reason.contains("can only be asked about HTTP requests"), "{}", record.reason);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_several_providers_have_to_allow() {
    let Some(mut ext) = authorizer::start().await else { return };
    let (mut mesh, app) = asking(over_grpc(ext.grpc_port)).await;
    let check = HttpCheck { request_headers: vec!["x-second".into(), "x-user".into()], ..HttpCheck::default() };
    let check = HttpCheck { additional_headers: [("x-decide".to_owned(), "deny".to_owned())].into(), ..check };
    let second = Provider { name: "second".to_owned(), ..over_http(ext.http_port, check) };
    let post = json!([{"to": [{"operation": {"methods": ["POST"]}}]}]);
    govern(&mesh, &[ask_ext(), ask("second", post), allow_all()], &[over_grpc(ext.grpc_port), second]);
    let mut client = mesh.tunnel("any").await;

    let (head, _) = exchange(&mut client, &get("allow", "")).await;
    assert_eq!(status(&head), 200, "the second isn't asked about this");
    assert_eq!(checks(&mesh.record().await).len(), 1);
    let post = "POST /a HTTP/1.1\r\nhost: mlflow\r\nx-decide: allow\r\ncontent-length: 0\r\n\r\n";
    let (head, body) = exchange(&mut client, post).await;
    assert_eq!((status(&head), body.as_slice()), (403, &b"no"[..]), "{head}");
    let record = mesh.expect_record(Verdict::Deny, Some(403)).await;
    let outcomes: Vec<_> = checks(&record).iter().map(|check| (&*check.provider, check.outcome)).collect();
    assert_eq!(outcomes, [("ext", CheckOutcome::Allowed), ("second", CheckOutcome::Denied)]);
    assert_eq!(record.policy.expect("policy").to_string(), "kagenti-system/ask-second");
    assert_eq!(app.seen().len(), 1);
    for _ in 0..2 {
        assert_eq!(ext.asked().await["over"], "grpc");
    }
    let asked = ext.asked().await;
    assert_eq!(
        (&asked["over"], &asked["headers"]["x-user"]),
        (&json!("http"), &json!("alice")),
        "as the first left it"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_provider_changed_is_judged_by_the_other_policies() {
    let Some(ext) = authorizer::start().await else { return };
    let (mut mesh, _app) = asking(over_grpc(ext.grpc_port)).await;
    let needs_user = policy(json!({"action": "ALLOW", "rules": [
        {"when": [{"key": "request.headers[x-user]", "values": ["alice"]}]}]}));
    // Matches what is sent, not what the provider makes of it.
    let with_secret = ask("ext", json!([{"when": [{"key": "request.headers[x-secret]", "values": ["*"]}]}]));
    govern(&mesh, &[with_secret, needs_user], &[over_grpc(ext.grpc_port)]);
    let mut client = mesh.tunnel("any").await;
    let (head, _) = exchange(&mut client, &get("allow", "x-secret: s\r\n")).await;
    assert_eq!(status(&head), 200, "{head}");
    mesh.expect_record(Verdict::Allow, Some(200)).await;
    let (head, _) = exchange(&mut client, &get("plain", "x-secret: s\r\n")).await;
    assert_eq!(status(&head), 403, "its word isn't the last");
    let record = mesh.expect_record(Verdict::Deny, Some(403)).await;
    assert_eq!(checks(&record)[0].outcome, CheckOutcome::Allowed);
    assert!(record.reason.contains("no ALLOW rule matches"), "{}", record.reason);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_custom_policy_ends_living_streams_that_its_provider_never_saw() {
    let Some(ext) = authorizer::start().await else { return };
    let (mut mesh, _app) = asking(over_grpc(ext.grpc_port)).await;
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\n";
    let mut seen = mesh.tunnel("any").await;
    let (head, _) = exchange(&mut seen, &get("plain", upgrade)).await;
    assert_eq!(status(&head), 101, "{head}");
    mesh.expect_record(Verdict::Allow, Some(101)).await;
    govern(&mesh, &[allow_all()], &[]);
    let mut unseen = mesh.tunnel("any").await;
    let (head, _) = exchange(&mut unseen, &get("plain", upgrade)).await;
    assert_eq!(status(&head), 101, "{head}");
    mesh.expect_record(Verdict::Allow, Some(101)).await;

    govern(&mesh, &[ask_ext(), allow_all()], &[over_grpc(ext.grpc_port)]);
    let end = soon(unseen.read(&mut [0])).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    let record = mesh.expect_record(Verdict::Deny, None).await;
    assert_eq!(record.policy.expect("policy").to_string(), "kagenti-system/ask-ext");
    soon(seen.write_all(b"still")).await.expect("written");
    let mut back = [0; 5];
    soon(seen.read_exact(&mut back)).await.expect("echoed");
    assert_eq!(&back, b"still", "the provider has allowed this one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_in_the_mesh_is_asked_in_the_waypoints_own_name() {
    // The application answers 200 to everything, so it allows everything as a provider.
    let app = Raw::start().await;
    let mut mesh = Mesh::start(Shape::of(app.address)).await;
    let own = Provider {
        host: HOSTNAME.to_owned(),
        port: PORT.into(),
        mesh_only: true,
        ..over_http(0, HttpCheck { path_prefix: "/check".to_owned(), ..HttpCheck::default() })
    };
    govern(&mesh, &[ask_ext(), allow_all()], std::slice::from_ref(&own));
    let mut client = mesh.tunnel("otel-collector").await;
    for _ in 0..3 {
        let (head, _) = exchange(&mut client, &get("x", "")).await;
        assert_eq!(status(&head), 200, "{head}");
        mesh.expect_record(Verdict::Allow, Some(200)).await;
    }
    assert_eq!(
        (app.seen().len(), app.connections()),
        (6, 2),
        "one connection to ask by, one for the client's requests"
    );
    assert!(app.seen()[0].starts_with("GET /check/a/b?x=1&token=t HTTP/1.1\r\n"), "{}", app.seen()[0]);
    let arrivals = mesh.arrivals.lock().expect("unpoisoned").clone();
    let waypoint = "spiffe://cluster.local/ns/kagenti-system/sa/waypoint";
    assert!(arrivals.iter().all(|arrival| arrival.peer.to_string() == waypoint));
    assert_eq!(arrivals.iter().filter(|arrival| arrival.source.is_empty()).count(), 1, "it speaks for nobody");

    for (wrong, reason) in [
        (Provider { port: 1, ..own.clone() }, "has no port 1"),
        (Provider { namespace: "other".to_owned(), ..own.clone() }, "there is no service"),
        (Provider { host: "gone.x.svc.cluster.local".to_owned(), ..own.clone() }, "there is no service"),
        (Provider { host: "localhost".to_owned(), mesh_only: false, ..own }, "leads to this machine or into the mesh"),
    ] {
        govern(&mesh, &[ask_ext(), allow_all()], &[wrong]);
        let (head, _) = exchange(&mut client, &get("x", "")).await;
        assert_eq!(status(&head), 403, "{reason}");
        let record = mesh.expect_record(Verdict::Deny, Some(403)).await;
        assert!(record.reason.contains(reason), "{}", record.reason);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audits_and_dry_runs_are_in_the_record() {
    let app = Raw::start().await;
    let mut mesh = Mesh::start(Shape::of(app.address)).await;
    let named = |name: &str, spec: Value| json!({"namespace": NAMESPACE, "name": name, "spec": spec});
    let gets = json!([{"to": [{"operation": {"methods": ["GET"]}}]}]);
    let mut trial = named("trial", json!({"action": "DENY", "rules": gets}));
    trial["annotations"] = json!({"istio.io/dry-run": "true"});
    mesh.policies(&[allow_all(), named("seen", json!({"action": "AUDIT", "rules": gets})), trial]);
    let mut client = mesh.tunnel("any").await;
    let (head, _) = exchange(&mut client, &get("x", "")).await;
    assert_eq!(status(&head), 200, "they change nothing");
    let notes = mesh.expect_record(Verdict::Allow, Some(200)).await.notes.expect("notes");
    let line = serde_json::to_value(&notes).expect("JSON");
    assert_eq!(line["audits"], json!([{"policy": "kagenti-system/seen", "rule": 0}]));
    assert_eq!(
        (&line["dryRun"]["verdict"], &line["dryRun"]["policy"]),
        (&json!("deny"), &json!("kagenti-system/trial"))
    );
    let post = "POST / HTTP/1.1\r\nhost: mlflow\r\ncontent-length: 0\r\n\r\n";
    let (head, _) = exchange(&mut client, post).await;
    assert_eq!(status(&head), 200);
    let notes = mesh.expect_record(Verdict::Allow, Some(200)).await.notes.expect("notes");
    assert!(notes.audits.is_empty() && notes.dry_run.expect("a trial").verdict == Verdict::Allow);
}
