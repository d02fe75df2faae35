//! The example `mlflow-oauth2`: a real OAuth2 server as a pod, tokens from it by the client-credentials grant, and a policy
//! that demands a SPIFFE identity and a claim.
#![forbid(unsafe_code)]

use std::{fs, path::Path};

use ambit_tests::{Mesh, Place, each_user, python};
use serde_json::{Value, json};

const COLLECTOR: &[&str] = &["-n", "kagenti-system", "--sa", "otel-collector"];
const INTRUDER: &[&str] = &["-n", "kagenti-system", "--sa", "intruder"];
const SERVER: &str = "http://oauth.identity.svc.cluster.local:9000";

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
