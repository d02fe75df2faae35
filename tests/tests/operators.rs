//! What operators see of a waypoint, on a running mesh: metrics, its configuration, decisions as they are made, traces, and who
//! asked.
#![forbid(unsafe_code)]

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ambit_tests::{
    Mesh,
    answers::{passed_on, statuses},
    each_user, http1,
};
use serde_json::{Value, json};

const ALICE: &[&str] = &["-n", "shop", "--sa", "alice"];
const PATIENCE: Duration = Duration::from_secs(10);
/// A trace that begins at a client.
const TRACE: &str = "5b8efff798038103d269b633813fc60c";

const MANIFESTS: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: alice, namespace: shop}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: web, namespace: shop}}
---
apiVersion: ambit.dev/v1alpha1
kind: MeshConfig
metadata: {name: mesh}
spec:
  extensionProviders:
    - name: collector
      opentelemetry:
        service: collector.shop.svc.cluster.local
        port: 4318
        http: {path: /v1/traces, headers: [{name: x-key, value: confidential}]}
  defaultProviders: {tracing: [collector]}
  defaultConfig: {tracing: {sampling: 100}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web, version: v3}}
    spec:
      serviceAccountName: web
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
apiVersion: apps/v1
kind: Deployment
metadata: {name: collector, namespace: shop}
spec:
  selector: {matchLabels: {app: collector}}
  template:
    metadata: {labels: {app: collector}}
    spec:
      containers:
        - name: collector
          command: ["PROGRAM", serve, collector, "0.0.0.0:4318"]
          readinessProbe: {httpGet: {path: /health, port: 4318}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: collector, namespace: shop}
spec: {selector: {app: collector}, ports: [{port: 4318}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: gate
  namespace: shop
  annotations: {ambient.istio.io/xfcc-include-client-identity: "true"}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: reads, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: "", name: web}]
  rules:
    - {to: [{operation: {methods: [HEAD]}}]}
    - {from: [{source: {serviceAccounts: [alice]}}], to: [{operation: {methods: [GET]}}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: secrets, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: "", name: web}]
  action: DENY
  rules: [{to: [{operation: {paths: [/secret]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: watch, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: "", name: web}]
  action: AUDIT
  rules: [{to: [{operation: {paths: [/watched]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: planned, namespace: shop, annotations: {istio.io/dry-run: "true"}}
spec:
  targetRefs: [{kind: Service, group: "", name: web}]
  action: DENY
  rules: [{to: [{operation: {paths: [/watched]}}]}]
"#;

#[test]
fn operators_see_what_a_waypoint_does() {
    each_user(|place| {
        let program = place.install(env!("CARGO_BIN_EXE_web").as_ref());
        place.write("shop.yaml", &MANIFESTS.replace("PROGRAM", &program.display().to_string()));
        let mesh = Mesh::up(place, &["-f", "shop.yaml", "--waypoint-admin"]);
        mesh.wait_for_pods(2);
        assert!(mesh.operators("/healthz/ready").ends_with("\r\n\r\nready\n"));
        decisions_are_streamed(&mesh);
        requests_and_decisions_are_counted(&mesh);
        clients_are_named(&mesh);
        traces_go_on(&mesh);
        configuration_is_shown(&mesh);
    });
}

/// The stream shows each decision when it is made, not when the stream ends.
fn decisions_are_streamed(mesh: &Mesh<'_>) {
    let mut stream = mesh.connect_to_operators();
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    http1::send(&mut stream, "GET /debug/decisions HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let head = http1::head(&mut stream);
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/x-ndjson"), "{head}");
    for (path, verdict, policy) in [("/one", "allow", "shop/reads"), ("/secret", "deny", "shop/secrets")] {
        mesh.ask(ALICE, "web:80", &[("GET", &format!("{path}?key=confidential"))]);
        let line = (0..8).map(|_| http1::line(&mut stream)).find(|line| line.starts_with('{')).expect("a record");
        let record: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let said = [&record["path"], &record["verdict"], &record["policy"], &record["source"]["identity"]];
        assert_eq!(said, [path, verdict, policy, "spiffe://cluster.local/ns/shop/sa/alice"], "{record}");
        assert!(!line.contains("confidential"), "{line}");
    }
}

fn requests_and_decisions_are_counted(mesh: &Mesh<'_>) {
    let paths = ["/a", "/b", "/watched", "/secret"].map(|path| ("GET", path));
    assert_eq!(statuses(&mesh.ask(ALICE, "web:80", &paths)), [200, 200, 200, 403], "{}", mesh.printed());
    // With those that the stream showed.
    let allowed = [
        ("reporter", "waypoint"),
        ("source_workload_namespace", "shop"),
        ("source_principal", "spiffe://cluster.local/ns/shop/sa/alice"),
        ("destination_workload", "web"),
        ("destination_workload_namespace", "shop"),
        ("destination_principal", "spiffe://cluster.local/ns/shop/sa/web"),
        ("destination_app", "web"),
        ("destination_version", "v3"),
        ("destination_canonical_service", "web"),
        ("destination_canonical_revision", "v3"),
        ("destination_service", "web.shop.svc.cluster.local"),
        ("destination_service_name", "web"),
        ("destination_service_namespace", "shop"),
        ("request_protocol", "http"),
        ("response_code", "200"),
        ("response_flags", "-"),
        ("connection_security_policy", "mutual_tls"),
    ];
    counted(mesh, "istio_requests_total", &allowed, 4);
    counted(mesh, "istio_requests_total", &[("response_code", "403"), ("destination_workload", "unknown")], 2);
    counted(mesh, "istio_request_duration_milliseconds_count", &[("response_code", "200")], 4);
    counted(mesh, "istio_response_bytes_count", &[("response_code", "200")], 4);
    for (policy, rule, verdict, count) in [
        ("shop/reads", "1", "allow", 4),
        ("shop/secrets", "0", "deny", 2),
        ("shop/watch", "0", "audit", 1),
        ("shop/planned", "0", "dry_run_deny", 1),
    ] {
        let labels = [("policy", policy), ("rule", rule), ("verdict", verdict)];
        counted(mesh, "ambit_policy_decisions_total", &labels, count);
        let last = value(mesh, "ambit_policy_last_hit_timestamp_seconds", &labels).expect("counted, so hit");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs_f64();
        assert!((now - 60.0..=now).contains(&last), "{policy}: {last} before {now}");
    }
    let never = [("policy", "shop/reads"), ("rule", "0")];
    assert_eq!(value(mesh, "ambit_policy_decisions_total", &never), None, "nobody has met it");
}

fn clients_are_named(mesh: &Mesh<'_>) {
    let forged =
        json!({"method": "GET", "path": "/c", "headers": [["x-forwarded-client-cert", "URI=spiffe://forged"]]});
    let answer = mesh.ask_all(ALICE, "web:80", &[forged]).remove(0);
    let expected = "By=spiffe://cluster.local/ns/shop/sa/gate;URI=spiffe://cluster.local/ns/shop/sa/alice";
    assert_eq!(passed_on(&answer, "x-forwarded-client-cert").as_deref(), Some(expected), "{answer}");
}

/// The application gets the waypoint's span as its parent, and the collector gets that span.
fn traces_go_on(mesh: &Mesh<'_>) {
    let client = "eee19b7ec3c1b174";
    let traced = json!({"method": "GET", "path": "/traced?key=confidential", "headers": [
        ["traceparent", format!("00-{TRACE}-{client}-01")], ["tracestate", "vendor=1"]]});
    let begun = json!({"method": "GET", "path": "/begun"});
    let answers = mesh.ask_all(ALICE, "web:80", &[traced, begun]);
    let parent = passed_on(&answers[0], "traceparent").expect("a parent");
    let [_, trace, span, flags] = parent.split('-').collect::<Vec<_>>()[..] else { panic!("four parts: {parent}") };
    assert_eq!((trace, flags), (TRACE, "01"), "{parent}");
    assert_ne!(span, client, "the waypoint's own span");
    assert_eq!(passed_on(&answers[0], "tracestate").as_deref(), Some("vendor=1"));
    let begun = passed_on(&answers[1], "traceparent").expect("a trace begins here");
    assert!(begun.ends_with("-01") && !begun.contains(TRACE), "{begun}");
    let digits = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let begun = begun.split('-').nth(1).expect("a trace");
    // Bytes as they stand in the protobuf.
    let took = took(mesh, &[TRACE, begun]);
    for said in ["gate.shop", "ambit.policy", "shop/reads", "spiffe://cluster.local/ns/shop/sa/alice", "/traced"] {
        assert!(took.contains(&digits(said)), "{said} in {took}");
    }
    assert!(took.contains(span) && took.contains(client), "the span and its parent: {took}");
    assert!(!took.contains(&digits("confidential")), "{took}");
}

/// What the collector took, once all of this is there.
fn took(mesh: &Mesh<'_>, wanted: &[&str]) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let took = mesh.ask(ALICE, "collector:4318", &[("GET", "/took")]).remove(0);
        let took = took["body"].as_str().expect("a body");
        if wanted.iter().all(|wanted| took.contains(wanted)) {
            return took.to_owned();
        }
        assert!(Instant::now() < deadline, "{wanted:?} isn't all in {took}");
        thread::sleep(Duration::from_millis(100));
    }
}

fn configuration_is_shown(mesh: &Mesh<'_>) {
    let answer = mesh.operators("/config_dump");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let dump: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"));
    assert_eq!(dump["waypoint"]["identity"], "spiffe://cluster.local/ns/shop/sa/gate");
    let policies = dump["bundle"]["services"][0]["policies"].as_array().expect("the service's policies");
    let mut names: Vec<_> = policies.iter().filter_map(|policy| policy["name"].as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["planned", "reads", "secrets", "watch"], "{dump}");
    assert_eq!(dump["bundle"]["tracing"]["provider"], "collector");
    assert!(!body.contains("confidential"), "a collector's headers may be secrets: {body}");
}

/// The value of the only series of this name with all of these labels.
fn value(mesh: &Mesh<'_>, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let text = mesh.operators("/stats/prometheus");
    let start = format!("{name}{{");
    let mut found = text.lines().filter(|line| {
        let has = |(label, value): &(&str, &str)| {
            [',', '{'].iter().any(|before| line.contains(&format!("{before}{label}=\"{value}\"")))
        };
        line.starts_with(&start) && labels.iter().all(has)
    });
    let first = found.next()?;
    // Pods of sessions come and go: what they did is one client's, in several series.
    let others = found.map(number);
    Some(others.fold(number(first), |sum, more| if name.ends_with("_seconds") { sum.max(more) } else { sum + more }))
}

fn number(line: &str) -> f64 {
    line.rsplit_once(' ').and_then(|(_, number)| number.parse().ok()).unwrap_or_else(|| panic!("a number in {line}"))
}

/// Waits until this is counted so often: what a client saw end may be counted a moment later.
fn counted(mesh: &Mesh<'_>, name: &str, labels: &[(&str, &str)], count: u32) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = value(mesh, name, labels);
        if now == Some(count.into()) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{name} {labels:?}: {now:?}, not {count}\n{}",
            mesh.operators("/stats/prometheus")
        );
        thread::sleep(Duration::from_millis(20));
    }
}
