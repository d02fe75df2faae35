//! `ambit policy explain`: the way of a request, and why.

use std::{fs, path::Path, process::Command, time::Instant};

use serde_json::Value;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/mlflow");

fn explain(arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ambit")).args(["policy", "explain"]).args(arguments).output();
    let output = output.expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.success(), text(output.stdout), text(output.stderr))
}

fn answer(arguments: &[&str]) -> Value {
    let (success, out, error) = explain(&[arguments, &["-o", "json"]].concat());
    assert!(success, "{error}");
    serde_json::from_str(&out).expect("JSON")
}

const OTEL: [&str; 6] = ["-f", EXAMPLE, "--from", "kagenti-system/otel-collector", "--to", "kagenti-system/mlflow"];

#[test]
fn an_allowed_request_passes_four_points() {
    let answer = answer(&[&OTEL[..], &["POST", "/v1/traces"]].concat());
    assert_eq!(answer["verdict"], "allow", "{answer:#}");
    let steps = answer["steps"].as_array().expect("steps");
    let points: Vec<_> = steps.iter().map(|step| step["point"].as_str().expect("text")).collect();
    assert_eq!(points, ["ztunnel-outbound", "waypoint", "guard", "ztunnel-inbound"]);
    assert_eq!(steps[1]["name"], "kagenti-system/mlflow-waypoint");
    assert_eq!(answer["request"]["port"], 5000);
    assert_eq!(answer["assumptions"], serde_json::json!([]));
}

#[test]
fn a_denied_request_names_the_field_and_the_change() {
    let (success, text, _) = explain(&[&OTEL[..], &["GET", "/api/2.0/x?y=1"]].concat());
    assert!(success);
    for expected in [
        "DENIED: waypoint kagenti-system/mlflow-waypoint",
        "path as policies see it: /api/2.0/x\n",
        "rule 1 doesn't match",
        "NO  from[0] principals: `cluster.local/ns/kagenti-system/sa/otel-collector`; wanted",
        "yes to[0] methods: `GET`",
        "to allow it: in rule 1 of kagenti-system/mlflow-api-access, add",
    ] {
        assert!(text.contains(expected), "no `{expected}` in\n{text}");
    }
}

#[test]
fn one_point_alone_can_be_asked() {
    let only = |at: &str| {
        let answer = answer(&[&OTEL[..], &["GET", "/", "--at", at]].concat());
        let steps = answer["steps"].as_array().expect("steps").clone();
        steps.iter().map(|step| step["point"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(only("waypoint"), ["waypoint"]);
    assert_eq!(only("ztunnel"), ["guard", "ztunnel-inbound"]);
}

#[test]
fn headers_claims_and_addresses_count() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("p.yaml");
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\n\
                  spec:\n  targetRefs: [{kind: Service, name: web}]\n  rules:\n  - from:\n    - source:\n        \
                  requestPrincipals: [\"https://issuer/bob\"]\n        ipBlocks: [10.1.0.0/16]\n    to:\n    - operation: \
                  {hosts: [shop.example], methods: [GET]}\n    when:\n    - {key: \"request.headers[x-team]\", values: \
                  [red]}\n    - {key: \"request.auth.claims[groups]\", values: [buyers]}\n";
    fs::write(&file, policy).expect("written");
    let file = file.to_str().expect("text");
    let asked = |extra: &[&str]| {
        let basic = ["-f", file, "--from", "a/c", "--to", "a/web:80", "GET", "/", "--at", "waypoint"];
        answer(&[&basic[..], extra].concat())
    };
    let all = [
        "-H",
        "Host: shop.example",
        "-H",
        "X-Team: red",
        "--source-ip",
        "10.1.2.3",
        "--claim",
        "iss=https://issuer",
        "--claim",
        "sub=bob",
        "--claim",
        "groups=[\"sellers\",\"buyers\"]",
    ];
    assert_eq!(asked(&all)["verdict"], "allow");
    for left_out in (0..all.len()).step_by(2) {
        let some: Vec<_> = all.iter().enumerate().filter(|(at, _)| at / 2 != left_out / 2).map(|(_, a)| *a).collect();
        assert_eq!(asked(&some)["verdict"], "deny", "without {}", all[left_out + 1]);
    }
    let answer = asked(&[]);
    let assumptions = answer["assumptions"].to_string();
    assert!(assumptions.contains("isn't in the files") && assumptions.contains("--source-ip"), "{assumptions}");
}

#[test]
fn node_proxies_see_connections_and_plaintext_clients_have_no_identity() {
    let folder = tempfile::tempdir().expect("a folder");
    let mesh = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {istio.io/dataplane-mode: ambient}}\n---\n\
                apiVersion: v1\nkind: Namespace\nmetadata: {name: out}\n---\n\
                apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: a}\n\
                spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n---\n\
                apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: a, labels: {app: web}}\n\
                spec: {containers: [{name: c, image: i}]}\n---\n\
                apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: a}\n\
                spec: {mtls: {mode: STRICT}}\n---\n\
                apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: http, namespace: a}\n\
                spec: {selector: {matchLabels: {app: web}}, rules: [{to: [{operation: {methods: [GET], ports: [\"8080\"]}}]}]}\n";
    fs::write(folder.path().join("mesh.yaml"), mesh).expect("written");
    let folder = folder.path().to_str().expect("text");
    let from = |client: &str| answer(&["-f", folder, "--from", client, "--to", "a/web", "GET", "/"]);
    let inside = from("a/default");
    assert_eq!(inside["verdict"], "deny");
    let inbound = &inside["steps"][1];
    assert_eq!(inbound["explanation"]["policies"][1]["rules"][0]["outcome"], "void", "{inbound:#}");
    assert!(inbound["attached"].to_string().contains("PeerAuthentication demands mutual TLS"), "{inbound:#}");
    let outside = from("out/default");
    let reason = outside["reason"].as_str().expect("text");
    assert!(reason.contains("istio_converted_static_strict"), "{reason}");
    let change = &outside["steps"][1]["explanation"]["changes"][0]["text"];
    assert!(change.as_str().expect("text").contains("`mode: PERMISSIVE`"), "{outside:#}");
}

/// What isn't there must never look as if it were allowed.
#[test]
fn misspelled_services_and_ports_are_not_allowed() {
    let ask = |to: &str, request: &[&str]| {
        let basic = ["-f", EXAMPLE, "--from", "kagenti-system/otel-collector", "--to", to];
        explain(&[&basic[..], request].concat())
    };
    let traces = ["POST", "/v1/traces"];
    for to in ["kagenti-system/mflow", "kagenti-sytem/mlflow", "nowhere/nothing"] {
        let (success, _, error) = ask(to, &traces);
        let expected = format!("there is no service `{to}` in the files; there is `kagenti-system/mlflow`");
        assert!(!success && error.contains(&expected), "{error}");
    }
    let (success, text, _) = ask("kagenti-system/mlflow:80", &traces);
    assert!(success);
    for expected in ["DENIED: node proxy of the client", "has no port 80", "to allow it: use a port that it has (5000)"]
    {
        assert!(text.contains(expected), "no `{expected}` in\n{text}");
    }
    let (success, _, error) = ask("kagenti-system/mlflow", &["/v1/traces", "POST"]);
    assert!(!success && error.contains("a method is one word like GET; the path comes after it"), "{error}");
}

#[test]
fn a_denial_that_is_no_rules_says_what_would_change_it() {
    let (_, text, _) = explain(&["-f", EXAMPLE, "--from", "legacy/x", "--to", "kagenti-system/mlflow", "GET", "/"]);
    for expected in ["DENIED: guard of the pod", "from spiffe", "at an unknown address", "label its namespace"] {
        assert!(text.contains(expected), "no `{expected}` in\n{text}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mesh = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {istio.io/dataplane-mode: ambient}}\n---\n\
                apiVersion: v1\nkind: Service\nmetadata: {name: lost, namespace: a, labels: {istio.io/use-waypoint: w}}\n\
                spec: {selector: {app: web}, ports: [{port: 80}]}\n---\n\
                apiVersion: v1\nkind: Service\nmetadata: {name: plain, namespace: a}\n\
                spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}\n---\n\
                apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: a, labels: {app: web}}\n\
                spec: {containers: [{name: c, image: i}]}\n---\n\
                apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: idle, namespace: a}\n\
                spec: {targetRefs: [{kind: Service, name: plain}]}\n";
    fs::write(folder.path().join("mesh.yaml"), mesh).expect("written");
    let folder = folder.path().to_str().expect("text");
    let ask = |to: &str, at: &[&str]| answer(&[&["-f", folder, "--from", "a/c", "--to", to, "GET", "/"], at].concat());
    let remedy = |answer: &Value, step: usize| answer["steps"][step]["remedy"].as_str().expect("a remedy").to_owned();
    let lost = ask("a/lost", &[]);
    assert_eq!(lost["verdict"], "deny");
    assert!(remedy(&lost, 0).contains("mend the Gateway"), "{lost:#}");
    let plain = ask("a/plain", &[]);
    assert_eq!(plain["verdict"], "deny");
    assert!(remedy(&plain, 1).contains("targetPort"), "{plain:#}");
    assert!(plain["assumptions"].to_string().contains("policy `a/idle` isn't enforced"), "{plain:#}");
    let waypoint = ask("a/plain", &["--at", "waypoint"]);
    assert!(waypoint["steps"][0]["reason"].as_str().expect("text").contains("nothing is judged"), "{waypoint:#}");
    assert!(waypoint["reason"].as_str().expect("text").contains("weren't asked"), "{waypoint:#}");
}

#[test]
fn a_rejected_policy_denies_and_other_errors_end_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("p.yaml");
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\n";
    let ask = |spec: &str| {
        fs::write(&file, format!("{policy}{spec}")).expect("written");
        let file = file.to_str().expect("text");
        explain(&["-f", file, "--from", "a/c", "--to", "a/web:80", "GET", "/"])
    };
    for spec in [
        "spec: {targetRefs: [{kind: Service, name: web}], rules: [{to: [{operation: {ports: [http]}}]}]}",
        "spec: {targetRefs: [{kind: Service, name: web}], rules: 5}",
    ] {
        let (success, text, error) = ask(spec);
        assert!(success && text.contains("DENIED") && text.contains("REJECTED"), "{text}{error}");
        assert!(text.contains("to allow it: mend policy a/p"), "{text}");
        assert!(error.contains("AMB0"), "{error}");
    }
    let (success, _, error) = ask("spec: {rules: [");
    assert!(!success && error.contains("AMB0104"), "{error}");
}

/// Not the figure itself, which is a release build's: that it doesn't grow out of hand.
#[test]
fn a_thousand_policies_are_explained_soon() {
    let folder = tempfile::tempdir().expect("a folder");
    write_policies(folder.path(), 1000);
    let folder = folder.path().to_str().expect("text");
    let started = Instant::now();
    let answer = answer(&["-f", folder, "--from", "shop/client-999", "--to", "shop/cart:80", "GET", "/v1/items/999"]);
    assert_eq!(answer["verdict"], "allow");
    let policies = answer["steps"][1]["explanation"]["policies"].as_array().expect("a list").len();
    assert_eq!(policies, 1000);
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

fn write_policies(folder: &Path, count: usize) {
    let policy = |i: usize| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p-{i}, namespace: shop}}\n\
             spec:\n  targetRefs: [{{kind: Service, name: cart}}]\n  rules:\n  - from: [{{source: {{principals: \
             [cluster.local/ns/shop/sa/client-{i}]}}}}]\n    to: [{{operation: {{methods: [GET], paths: [/v1/items/{i}]}}}}]\n"
        )
    };
    fs::write(folder.join("all.yaml"), (0..count).map(policy).collect::<String>()).expect("written");
}
