//! The example `mlflow-oauth2`: a real OAuth2 server as a pod, tokens from it by the client-credentials grant, and a policy
//! that demands a SPIFFE identity and a claim.
#![forbid(unsafe_code)]

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use ambit_tests::{Mesh, Place, each_user, python};
use serde_json::{Value, json};

const COLLECTOR: &[&str] = &["-n", "kagenti-system", "--sa", "otel-collector"];
const INTRUDER: &[&str] = &["-n", "kagenti-system", "--sa", "intruder"];
const SERVER: &str = "http://oauth.identity.svc.cluster.local:9000";

/// How long MLflow may take to start; it prepares a database.
const MLFLOW_START: Duration = Duration::from_secs(120);
const READER_RUNS: &[&str] = &["-n", "kagenti-system", "--sa", "reader"];
/// Someone who may look for traces, and nothing else.
const READER: &str = r#"
{apiVersion: v1, kind: ServiceAccount, metadata: {name: reader, namespace: kagenti-system}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: reader, namespace: kagenti-system}
spec:
  targetRefs: [{kind: Service, group: "", name: mlflow}]
  rules:
    - from: [{source: {serviceAccounts: [reader]}}]
      to: [{operation: {methods: [POST], paths: [/api/3.0/mlflow/traces/search]}}]
"#;
/// Prints MLflow's traces of its first experiment.
const SEARCH: &str = r#"
import json, urllib.request
body = {"locations": [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}]}
request = urllib.request.Request("http://mlflow:5000/api/3.0/mlflow/traces/search", json.dumps(body).encode(),
                                 {"content-type": "application/json"})
print(urllib.request.urlopen(request, timeout=15).read().decode())
"#;

#[test]
fn a_token_of_the_oauth2_server_and_an_identity_together_open_mlflow() {
    let Some(python) = python::oauth2_python() else { return };
    each_user(|place| {
        if python::may_run(place, &python) {
            scenario(place, &python);
        }
    });
}

fn scenario(place: &Place, python: &Path) {
    adapt(place, python);
    let mesh = Mesh::up(place, &["-f", "mlflow-oauth2", "--access-log", "access.jsonl"]);
    mesh.wait_for("identity/oauth");
    mesh.wait_for(&format!("the keys of {SERVER}/jwks.json are in force"));
    let token = |client: &str, secret: &str, scope: &str| fetch(&mesh, place, python, [client, secret, scope]);
    let write = token("otel-collector", "only-for-this-example", "traces:write");
    let read = token("dashboard", "only-for-this-example-too", "traces:read");
    assert_eq!(write.split('.').count(), 3, "a token: {write}");

    let post = |token: Option<&str>, path: &str| {
        let mut headers = vec![("x-oauth-client".to_owned(), "spoofed".to_owned())];
        headers.extend(token.map(|token| ("authorization".to_owned(), format!("Bearer {token}"))));
        json!({"method": "POST", "path": path, "headers": headers})
    };
    let asked = [
        (post(Some(&write), "/v1/traces"), 200, ""),
        (post(Some(&write), "/v1/traces"), 200, ""),
        (post(None, "/v1/traces"), 403, "RBAC: access denied"),
        (post(Some(&read), "/v1/traces"), 403, "RBAC: access denied"),
        (post(Some(&write), "/api/2.0/mlflow/experiments/create"), 403, "RBAC: access denied"),
        (post(Some(&tampered(&write)), "/v1/traces"), 401, "Jwt verification fails"),
        (post(Some("nonsense"), "/v1/traces"), 401, "Jwt is not in the form of Header.Payload.Signature"),
    ];
    let requests: Vec<Value> = asked.iter().map(|(request, ..)| request.clone()).collect();
    let answers = mesh.ask_all(COLLECTOR, "mlflow:5000", &requests);
    for ((request, status, text), answer) in asked.iter().zip(&answers) {
        assert_eq!(answer["status"], *status, "{request} {answer}\n{}", mesh.printed());
        assert!(answer["body"].as_str().is_some_and(|body| body.starts_with(text) || *status == 200), "{answer}");
    }
    // What the server got: who asked for the token, and not the token itself.
    let seen = answers[0]["body"].as_str().expect("what the echo received");
    assert!(seen.contains("otel-collector") && !seen.contains("spoofed"), "{seen}");
    assert!(!seen.contains(&write) && !seen.to_ascii_lowercase().contains("authorization"), "{seen}");

    // A stolen token in another's hands.
    let answers = mesh.ask_all(INTRUDER, "mlflow:5000", &[post(Some(&write), "/v1/traces")]);
    assert_eq!(answers[0]["status"], 403, "{answers:?}");
    let log = fs::read_to_string(place.path("access.jsonl")).expect("the access log");
    assert!(log.contains("RequestAuthentication `kagenti-system/mlflow-tokens`: Jwt verification fails"), "{log}");
    assert!(!log.contains(&write) && !mesh.printed().contains(&write), "no token is recorded");

    // By discovery, and with keys that can't be had: the edit is in force before anything else is asked.
    edit(place, |text| text.replace(&format!("      jwksUri: {SERVER}/jwks.json\n"), ""));
    mesh.wait_for(&format!("the keys of the OpenID configuration of {SERVER} are in force"));
    let answers = mesh.ask_all(COLLECTOR, "mlflow:5000", &[post(Some(&write), "/v1/traces")]);
    assert_eq!(answers[0]["status"], 200, "{answers:?}");
    edit(place, |text| text.replace("      audiences:", &format!("      jwksUri: {SERVER}/missing\n      audiences:")));
    mesh.wait_for(&format!("the keys of {SERVER}/missing can't be fetched"));
    let answers = mesh.ask_all(COLLECTOR, "mlflow:5000", &[post(Some(&write), "/v1/traces")]);
    assert_eq!(answers[0]["status"], 401, "{answers:?}");
    assert_eq!(answers[0]["body"], "Jwks remote fetch is failed");
}

/// MLflow itself in the place of the echo, and OpenTelemetry's exporter as the collector: a trace that was sent with a fetched
/// token is found again in MLflow, and one without isn't taken.
#[test]
fn mlflow_itself_takes_traces_with_a_token_only() {
    let Some(environment) = python::mlflow_environment() else { return };
    let Some(python) = python::oauth2_python() else { return };
    each_user(|place| {
        if python::may_run(place, &python) {
            real_mlflow(place, &python, &environment);
        }
    });
}

fn real_mlflow(place: &Place, python: &Path, environment: &Path) {
    adapt(place, python);
    let (program, data) =
        (environment.join("bin/mlflow").display().to_string(), place.path("home").display().to_string());
    let command = json!([
        program,
        "server",
        "--host",
        "0.0.0.0",
        "--port",
        "5000",
        "--workers",
        "1",
        "--allowed-hosts",
        "*",
        "--backend-store-uri",
        format!("sqlite:///{data}/mlflow.db"),
        "--artifacts-destination",
        format!("{data}/artifacts")
    ]);
    let server = fs::read_to_string(place.path("mlflow-oauth2/server.yaml")).expect("the example");
    let echo = r#"["ambit", "echo", "--listen", "0.0.0.0:5000"]"#;
    assert!(server.contains(echo), "{server}");
    place
        .write("mlflow-oauth2/server.yaml", &server.replace(echo, &format!("{command}\n          workingDir: {data}")));
    place.write("mlflow-oauth2/reader.yaml", READER);
    let mesh = Mesh::up(place, &["-f", "mlflow-oauth2"]);
    mesh.wait_for(&format!("the keys of {SERVER}/jwks.json are in force"));
    let begun = Instant::now();
    while !mesh.printed().contains("pod kagenti-system/mlflow") {
        assert!(begun.elapsed() < MLFLOW_START, "MLflow doesn't start:\n{}", mesh.printed());
        thread::sleep(Duration::from_millis(200));
    }

    let interpreter = environment.join("bin/python").display().to_string();
    let exporter = place.path("mlflow/exporter.py").display().to_string();
    let export = |token: &str, name: &str| {
        let token = format!("TOKEN={token}");
        let command = ["--", "env", &token, &interpreter, &exporter, "http://mlflow:5000/v1/traces", name];
        mesh.run(&[COLLECTOR, &command].concat())
    };
    let token = fetch(&mesh, place, python, ["otel-collector", "only-for-this-example", "traces:write"]);
    let taken = export(&token, "with-token");
    assert_eq!(taken.code, 0, "{taken:?}\n{}", mesh.printed());
    for token in ["", &tampered(&token)] {
        let refused = export(token, "without");
        assert_eq!(refused.code, 1, "{refused:?}");
    }
    let found = mesh.run(&[READER_RUNS, &["--", &interpreter, "-c", SEARCH]].concat());
    assert_eq!(found.code, 0, "{found:?}\n{}", mesh.printed());
    let wanted = format!("tr-{}", taken.stdout.trim());
    assert!(found.stdout.contains(&wanted), "{wanted} in {found:?}");
    assert_eq!(found.stdout.matches("\"trace_id\"").count(), 1, "the others weren't taken: {found:?}");
}

/// Puts the paths of this place into the manifests.
fn adapt(place: &Place, python: &Path) {
    let path = place.path("mlflow-oauth2/oauth-server.yaml");
    let written = fs::read_to_string(&path).expect("the example");
    let script = place.path("mlflow-oauth2/oauth_server.py");
    let adapted = written
        .replace("/repository/target/oauth2-environment/bin/python", &python.display().to_string())
        .replace("/repository/examples/mlflow-oauth2/oauth_server.py", &script.display().to_string());
    assert_ne!(adapted, written);
    place.write("mlflow-oauth2/oauth-server.yaml", &adapted);
}

fn edit(place: &Place, change: impl FnOnce(String) -> String) {
    let path = place.path("mlflow-oauth2/policies.yaml");
    let before = fs::read_to_string(&path).expect("the example");
    let after = change(before.clone());
    assert_ne!(after, before);
    fs::write(path, after).expect("written");
}

/// A token that a client of the OAuth2 server fetches inside of the mesh, as otel-collector.
fn fetch(mesh: &Mesh<'_>, place: &Place, python: &Path, [client, secret, scope]: [&str; 3]) -> String {
    let (python, script) = (python.display().to_string(), place.path("mlflow-oauth2/fetch_token.py"));
    let (script, secret) = (script.display().to_string(), format!("CLIENT_SECRET={secret}"));
    let endpoint = format!("{SERVER}/token");
    let command = ["--", "env", &secret, &python, &script, &endpoint, client, scope];
    let output = mesh.run(&[COLLECTOR, &command].concat());
    assert_eq!(output.code, 0, "{output:?}\n{}", mesh.printed());
    output.stdout.trim().to_owned()
}

/// The same claims under another signature.
fn tampered(token: &str) -> String {
    let (signed, signature) = token.rsplit_once('.').expect("three parts");
    let other = if signature.starts_with('A') { 'B' } else { 'A' };
    format!("{signed}.{other}{}", &signature[1..])
}
