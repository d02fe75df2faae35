//! What a waypoint decides, on a running mesh: CUSTOM policies with real authorizers, AUDIT and dry run, streams that a change
//! of policies closes, and the Gateway's own answer to what is denied.
#![forbid(unsafe_code)]

use std::{path::Path, time::Duration};

use ambit_tests::{
    Mesh, Place, Running,
    answers::{header, passed_on, statuses},
    each_user, finish, go, records,
};
use serde_json::{Value, json};

const ALICE: &[&str] = &["-n", "shop", "--sa", "alice"];
const BOB: &[&str] = &["-n", "shop", "--sa", "bob"];
/// How long a provider may take, of which one is given less than it takes.
const HASTE: Duration = Duration::from_millis(250);

const BASE: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: alice, namespace: shop}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: bob, namespace: shop}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - name: web
          command: [ambit, echo, --listen, "0.0.0.0:8080"]
          readinessProbe: {httpGet: {path: /health, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: gate}}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: all-of-shop, namespace: shop}
spec:
  targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: gate}]
  rules: [{from: [{source: {namespaces: [shop]}}]}]
---
"#;

const GATEWAY: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
"#;

/// The authorizer, which speaks gRPC on 9000 and HTTP on 8000, in a namespace of its own.
fn authorizer(program: &Path) -> String {
    // It ends with its standard input.
    let command = format!("tail -f /dev/null | '{}'", program.display());
    format!(
        r#"
{{apiVersion: v1, kind: Namespace, metadata: {{name: guard, labels: {{istio.io/dataplane-mode: ambient}}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: authorizer, namespace: guard}}
spec: {{selector: {{app: authorizer}}, ports: [{{name: grpc, port: 9000}}, {{name: http, port: 8000}}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: authorizer, namespace: guard}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: authorizer}}}}
  template:
    metadata: {{labels: {{app: authorizer}}}}
    spec:
      containers:
        - name: authorizer
          command: [sh, -c, "{command}"]
          env:
            - {{name: LISTEN, value: "0.0.0.0"}}
            - {{name: GRPC_PORT, value: "9000"}}
            - {{name: HTTP_PORT, value: "8000"}}
          readinessProbe: {{tcpSocket: {{port: 8000}}, periodSeconds: 1}}
"#
    )
}

/// Providers by name: two of the authorizer's, the same without the time that it takes, and two where nobody is.
fn providers() -> String {
    let haste = HASTE.as_millis();
    let grpc = "service: authorizer.guard.svc.cluster.local, port: 9000";
    let http = "service: authorizer.guard.svc.cluster.local, port: 8000, includeRequestHeadersInCheck: [x-decide]";
    let away = "service: away.guard.svc.cluster.local, port: 9000, timeout: 5s";
    format!(
        r#"
{{apiVersion: v1, kind: Service, metadata: {{name: away, namespace: guard}}, spec: {{selector: {{app: nobody}}, ports: [{{port: 9000}}]}}}}
---
apiVersion: ambit.dev/v1alpha1
kind: MeshConfig
metadata: {{name: mesh}}
spec:
  multipleCustomProviders: true
  extensionProviders:
    - {{name: grpc, envoyExtAuthzGrpc: {{{grpc}, timeout: 5s}}}}
    - {{name: http, envoyExtAuthzHttp: {{{http}, timeout: 5s, headersToUpstreamOnAllow: [x-user], headersToDownstreamOnDeny: [x-why]}}}}
    - {{name: hasty-grpc, envoyExtAuthzGrpc: {{{grpc}, timeout: {haste}ms}}}}
    - {{name: hasty-http, envoyExtAuthzHttp: {{{http}, timeout: {haste}ms}}}}
    - {{name: away, envoyExtAuthzGrpc: {{{away}, statusOnError: "503"}}}}
    - {{name: away-open, envoyExtAuthzGrpc: {{{away}, failOpen: true}}}}
"#
    )
}

/// A policy of Service `web` about some paths.
fn about(name: &str, action: &str, paths: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  targetRefs: [{{kind: Service, group: '', name: web}}]\n  action: {action}\n  \
         rules: [{{to: [{{operation: {{paths: [{paths}]}}}}]}}]\n"
    )
}

fn ask_for(provider: &str, paths: &str) -> String {
    about(&format!("ask-{provider}"), &format!("CUSTOM\n  provider: {{name: {provider}}}"), paths)
}

fn get(path: &str, decide: &str) -> Value {
    json!({"method": "GET", "path": path, "headers": [["x-decide", decide], ["x-secret", "s"], ["x-user", "mallory"]]})
}

fn up<'a>(place: &'a Place, files: &[(&str, String)]) -> Mesh<'a> {
    for (name, text) in files {
        place.write(&format!("shop/{name}"), text);
    }
    Mesh::up(place, &["-f", "shop", "--access-log", "access.jsonl"])
}

#[test]
fn custom_policies_ask_real_authorizers_over_grpc_and_http() {
    each_user(|place| {
        let Some(program) = go::program(place, "ext-authz") else { return };
        let policies = [
            ask_for("grpc", "'/grpc', '/both'"),
            ask_for("http", "'/http', '/both'"),
            ask_for("hasty-grpc", "'/hasty-grpc'"),
            ask_for("hasty-http", "'/hasty-http'"),
            ask_for("away", "'/away'"),
            ask_for("away-open", "'/away-open'"),
        ];
        let files = [
            ("base.yaml", BASE.to_owned() + GATEWAY),
            ("authorizer.yaml", authorizer(&program)),
            ("providers.yaml", providers()),
            ("policies.yaml", policies.concat()),
        ];
        let mesh = up(place, &files);
        mesh.wait_for_pods(2);
        decisions(&mesh, place);
        failures(&mesh, place);
        authorizer_comes_and_goes(&mesh, place, &program);
    });
}

fn decisions(mesh: &Mesh<'_>, place: &Place) {
    let asked = [
        (get("/grpc", "allow"), 200),
        (get("/grpc", "deny"), 403),
        (get("/grpc", "teapot"), 302),
        (get("/http", "allow"), 200),
        (get("/http", "deny"), 403),
        (get("/http", "teapot"), 302),
        (get("/both", "allow"), 200),
        (get("/both", "deny"), 403),
        (get("/neither", "deny"), 200),
    ];
    let requests: Vec<Value> = asked.iter().map(|(request, _)| request.clone()).collect();
    let answers = mesh.ask_all(ALICE, "web:80", &requests);
    for ((request, status), answer) in asked.iter().zip(&answers) {
        assert_eq!(answer["status"], *status, "{request} {answer}\n{}", mesh.printed());
    }
    let (over_grpc, over_http, neither) = (&answers[0], &answers[3], &answers[8]);
    assert_eq!(passed_on(over_grpc, "x-user").as_deref(), Some("alice"), "what the provider says replaces it");
    assert_eq!((passed_on(over_grpc, "x-secret"), header(over_grpc, "x-checked")), (None, Some("yes")));
    assert_eq!(passed_on(over_http, "x-user").as_deref(), Some("alice"));
    assert_eq!(header(over_http, "x-checked"), None, "a header that no option names");
    assert_eq!(passed_on(neither, "x-user").as_deref(), Some("mallory"));
    for denied in [&answers[2], &answers[5]] {
        assert_eq!(
            (header(denied, "location"), &denied["body"]),
            (Some("https://login.example/"), &"go and log in".into())
        );
    }
    assert_eq!(header(&answers[5], "x-why"), Some("unknown"));

    let both = records::wait_for(place, |record| record["path"] == "/both" && record["verdict"] == "allow");
    let checks = both["notes"]["providers"].as_array().expect("its checks");
    let mut told: Vec<_> = checks.iter().map(|check| (&check["provider"], &check["outcome"])).collect();
    told.sort_by_key(|(provider, _)| provider.as_str());
    assert_eq!(told, [(&json!("grpc"), &json!("allowed")), (&json!("http"), &json!("allowed"))], "{both}");
    let denied = records::wait_for(place, |record| record["path"] == "/grpc" && record["status"] == 403);
    assert_eq!((&denied["policy"], &denied["verdict"]), (&json!("shop/ask-grpc"), &json!("deny")), "{denied}");
    // The authorizer learns who asks: an identity, not only an address.
    let question = mesh.wait_for(r#""over":"grpc""#).1;
    assert!(question.contains(r#""source":"spiffe://cluster.local/ns/shop/sa/alice""#), "{question}");
}

/// Without an answer, or without one in time, nothing goes on, unless the provider's settings say so.
fn failures(mesh: &Mesh<'_>, place: &Place) {
    let asked = [get("/hasty-grpc", "hang"), get("/hasty-http", "hang"), get("/away", ""), get("/away-open", "")];
    let answers = mesh.ask_all(ALICE, "web:80", &asked);
    assert_eq!(statuses(&answers), [403, 403, 503, 200], "{answers:?}\n{}", mesh.printed());
    for answer in &answers[..2] {
        let took = Duration::from_micros(answer["elapsed_us"].as_u64().expect("a number"));
        assert!(took >= HASTE, "asked and waited for: {took:?}");
    }
    for (path, outcome) in
        [("/hasty-grpc", "failed"), ("/hasty-http", "failed"), ("/away", "failed"), ("/away-open", "failed-open")]
    {
        let record = records::wait_for(place, |record| record["path"] == path);
        assert_eq!(record["notes"]["providers"][0]["outcome"], outcome, "{record}");
    }
}

fn authorizer_comes_and_goes(mesh: &Mesh<'_>, place: &Place, program: &Path) {
    let ask = || mesh.ask_all(ALICE, "web:80", &[get("/grpc", "allow"), get("/http", "allow"), get("/neither", "")]);
    let mark = mesh.mark();
    let none = authorizer(program).replace("replicas: 1", "replicas: 0");
    place.write("shop/authorizer.yaml", &none);
    mesh.wait_for_after("the edit is in force", mark);
    let answers = ask();
    assert_eq!(statuses(&answers), [403, 403, 200], "{answers:?}");
    let mark = mesh.mark();
    place.write("shop/authorizer.yaml", &authorizer(program));
    mesh.wait_for_after(" is ready", mark);
    let answers = ask();
    assert_eq!(statuses(&answers), [200, 200, 200], "{answers:?}\n{}", mesh.printed());
}

#[test]
fn audits_and_dry_runs_change_nothing_and_are_recorded() {
    each_user(|place| {
        let dry_run = about("dry-deny", "DENY", "'/watched'")
            .replace("namespace: shop}", "namespace: shop, annotations: {istio.io/dry-run: 'true'}}");
        let policies = about("watch", "AUDIT", "'/other', '/watched'") + &dry_run;
        let mesh = up(place, &[("base.yaml", BASE.to_owned() + GATEWAY), ("policies.yaml", policies)]);
        mesh.wait_for_pods(1);
        let answers = mesh.ask(ALICE, "web:80", &[("GET", "/watched"), ("GET", "/unwatched")]);
        assert_eq!((&answers[0]["status"], &answers[1]["status"]), (&json!(200), &json!(200)), "{}", mesh.printed());
        let record = records::wait_for(place, |record| record["path"] == "/watched");
        assert_eq!((&record["verdict"], &record["policy"]), (&json!("allow"), &json!("shop/all-of-shop")), "{record}");
        assert_eq!(record["notes"]["audits"], json!([{"policy": "shop/watch", "rule": 0}]), "{record}");
        let dry_run = &record["notes"]["dryRun"];
        assert_eq!((&dry_run["verdict"], &dry_run["policy"]), (&json!("deny"), &json!("shop/dry-deny")), "{record}");
        let record = records::wait_for(place, |record| record["path"] == "/unwatched");
        assert_eq!(record["notes"]["audits"], Value::Null, "{record}");

        denials_answer(&mesh, place);
    });
}

/// The status, type and text of a denial are the Gateway's to set, while it runs.
fn denials_answer(mesh: &Mesh<'_>, place: &Place) {
    let edit = |name: &str, text: &str| {
        let mark = mesh.mark();
        place.write(name, text);
        mesh.wait_for_after("the edit is in force", mark);
    };
    edit("shop/policies.yaml", &about("denied", "DENY", "'/denied'"));
    let denied = mesh.ask(ALICE, "web:80", &[("GET", "/denied")]).remove(0);
    assert_eq!((&denied["status"], &denied["body"]), (&json!(403), &json!("RBAC: access denied")), "{denied}");
    assert_eq!(header(&denied, "content-type"), Some("text/plain"));
    let annotated = GATEWAY.replace(
        "metadata: {name: gate, namespace: shop}",
        r#"metadata:
  name: gate
  namespace: shop
  annotations:
    ambit.dev/denial-status: "451"
    ambit.dev/denial-content-type: application/problem+json
    ambit.dev/denial-message: '{"title": "not for you"}'"#,
    );
    let before = waypoint(place);
    edit("shop/base.yaml", &(BASE.to_owned() + &annotated));
    assert_eq!(waypoint(place), before, "no edit of a Gateway restarts its waypoint");
    let denied = mesh.ask(ALICE, "web:80", &[("GET", "/denied")]).remove(0);
    assert_eq!((&denied["status"], &denied["body"]), (&json!(451), &json!(r#"{"title": "not for you"}"#)), "{denied}");
    assert_eq!(header(&denied, "content-type"), Some("application/problem+json"));
}

/// What `ambit status` says about the waypoint's pod.
fn waypoint(place: &Place) -> Value {
    let output = finish(place.ambit().args(["status", "--output", "json"]));
    let status: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let pods = status["pods"].as_array().expect("pods");
    pods.iter().find(|pod| pod["kind"] == "waypoint").expect("the waypoint").clone()
}

/// Services for streams: WebSockets, a protocol whose server speaks first, and gRPC.
fn streams(web: &Path, peer: &Path, grpc: &Path) -> String {
    let (web, peer, grpc) = (web.display(), peer.display(), grpc.display());
    let servers = [
        ("sockets", 8081, "http", format!("exec '{web}' serve sockets 0.0.0.0:8081")),
        ("peer", 7000, "tcp", format!("exec '{peer}' listen 0.0.0.0:7000")),
        ("calls", 9001, "grpc", format!("tail -f /dev/null | '{grpc}' serve 0.0.0.0:9001")),
    ];
    let documents = servers.iter().map(|(name, port, protocol, command)| {
        format!(
            r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      containers:
        - name: server
          command: [sh, -c, "{command}"]
          readinessProbe: {{tcpSocket: {{port: {port}}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop, labels: {{istio.io/use-waypoint: gate}}}}
spec: {{selector: {{app: {name}}}, ports: [{{name: {protocol}, port: {port}}}]}}
---
"#
        )
    });
    documents.collect()
}

#[test]
fn a_change_of_policies_closes_the_streams_that_are_now_denied_and_no_others() {
    each_user(|place| {
        let Some(grpc) = go::program(place, "foreign-grpc") else { return };
        let web = place.install(env!("CARGO_BIN_EXE_web").as_ref());
        let peer = place.install(env!("CARGO_BIN_EXE_peer").as_ref());
        let base = BASE.to_owned() + &streams(&web, &peer, &grpc) + GATEWAY;
        let mesh = up(place, &[("base.yaml", base), ("policies.yaml", String::new())]);
        mesh.wait_for_pods(4);
        let (web, grpc) = (web.display().to_string(), grpc.display().to_string());
        let commands: [&[&str]; 3] = [
            &["--", &web, "socket", "sockets:8081", "/live"],
            &["--", &web, "tcp", "peer:7000"],
            &["--", &grpc, "hold", "calls:9001"],
        ];
        let open = |who: &[&str]| -> Vec<Running> {
            commands.iter().map(|command| mesh.begin(&[who, command].concat())).collect()
        };
        let (mut alices, mut bobs) = (open(ALICE), open(BOB));
        for stream in alices.iter_mut().chain(&mut bobs) {
            stream.wait_for("open");
            stream.say("one");
            stream.wait_for("one");
        }

        let not_bob = about("not-bob", "DENY", "'/x'")
            .replace(
                "kind: Service, group: '', name: web",
                "kind: Gateway, group: gateway.networking.k8s.io, name: gate",
            )
            .replace("to: [{operation: {paths: ['/x']}}]", "from: [{source: {serviceAccounts: [bob]}}]");
        assert!(not_bob.contains("name: gate") && not_bob.contains("[bob]"), "{not_bob}");
        place.write("shop/policies.yaml", &not_bob);
        mesh.wait_for("the edit is in force");
        for stream in &bobs {
            stream.wait_for("closed");
        }
        assert!(bobs[2].printed().contains("closed 7 RBAC: access denied"), "{}", bobs[2].printed());
        for stream in &mut alices {
            stream.say("two");
            stream.wait_for("two");
            assert!(!stream.printed().contains("closed"), "{}", stream.printed());
        }
        let ended = |service: &str| {
            let service = format!("shop/{service}");
            records::wait_for(place, |record| {
                record["policy"] == "shop/not-bob" && record["destination"]["service"] == service.as_str()
            })
        };
        for service in ["sockets", "peer", "calls"] {
            assert_eq!(ended(service)["verdict"], "deny");
        }
    });
}
