//! `ambit policy export --envoy` on the example's manifests: for the right place, the right policies, in both formats, and
//! nothing at all where something is wrong. What the filters mean is tested in `crates/policy` and against a real Envoy.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

const SERVICE: &str = "kagenti-system/mlflow:5000";

#[test]
fn the_waypoints_filters_are_those_of_the_policies_attached_to_the_service() {
    let output = export(&["-f", &example(), "--to", SERVICE, "--output", "json"]);
    let exported: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let [point] = exported["enforcementPoints"].as_array().expect("a list").as_slice() else {
        panic!("one place, not {exported:#}")
    };
    assert_eq!(point["place"], "waypoint kagenti-system/mlflow-waypoint, for service kagenti-system/mlflow");
    let policies = point["policies"].as_object().expect("policies");
    assert!(policies.values().all(|via| via == "targets Service kagenti-system/mlflow"), "{policies:#?}");
    let filters = point["httpFilters"].as_array().expect("filters");
    let rules = filters[0]["typedConfig"]["rules"]["policies"].as_object().expect("rules");
    assert_eq!(filters.len(), 1, "ALLOW policies are one filter");
    for name in policies.keys() {
        let (namespace, name) = name.split_once('/').expect("a namespace and a name");
        assert!(rules.contains_key(&format!("ns[{namespace}]-policy[{name}]-rule[0]")), "{name} in {rules:#?}");
    }
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("can't be exported") && said.contains("pathWithEscapedSlashesAction"), "{said}");
    let text = exported.to_string();
    assert!(text.contains(r#""key":"io.istio.peer_principal""#), "a waypoint takes the identity from the tunnel");
    assert!(!text.contains("authenticated"));
}

#[test]
fn yaml_says_the_same_as_json() {
    let json: Value =
        serde_json::from_slice(&export(&["-f", &example(), "--to", SERVICE, "--output", "json"]).stdout).expect("JSON");
    let yaml = String::from_utf8(export(&["-f", &example(), "--to", SERVICE]).stdout).expect("text");
    assert!(yaml.starts_with("enforcementPoints:\n  - "), "{yaml}");
    for line in ["- name: envoy.filters.http.rbac\n", "\"@type\": type.googleapis.com/envoy.extensions"] {
        assert!(yaml.contains(line), "`{line}` in\n{yaml}");
    }
    let leaves = |value: &Value| value.to_string().matches(r#""exact":"#).count();
    assert_eq!(yaml.matches(" exact: ").count(), leaves(&json));
}

#[test]
fn in_front_of_a_pod_what_selects_it_is_exported_as_network_filters() {
    let folder = tempfile::tempdir().expect("a folder");
    let policies = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\n\
                    spec: {action: DENY, rules: [{from: [{source: {notNamespaces: [b]}}]}]}\n";
    let file = write(folder.path(), policies);
    let output = export(&["-f", &file, "--to", "a/web:80", "--at", "ztunnel", "-o", "json"]);
    let exported: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let filter = &exported["enforcementPoints"][0]["networkFilters"][0];
    assert_eq!(filter["name"], "envoy.filters.network.rbac");
    assert_eq!(filter["typedConfig"]["rules"]["action"], "DENY");
    assert!(filter.to_string().contains("authenticated"), "the Envoy ends the mutual TLS itself");
    assert!(exported.to_string().contains("holds for the namespace"), "{exported:#}");
    // The same file says nothing for a waypoint.
    let output = export(&["-f", &file, "--to", "a/web:80", "-o", "json"]);
    let exported: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(exported["enforcementPoints"][0]["policies"], serde_json::json!({}));
}

#[test]
fn nothing_is_exported_of_files_with_errors_or_for_a_service_without_a_waypoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let bad = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\n\
               spec: {rules: [{to: [{operation: {ports: [http]}}]}]}\n";
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: a}\n\
                   spec: {ports: [{port: 80}], selector: {app: web}}\n";
    for (text, expected) in [(bad, "http"), (service, "has no waypoint")] {
        let output = run(&["-f", &write(folder.path(), text), "--to", "a/web:80"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && output.stdout.is_empty(), "{said}");
        assert!(said.contains(expected), "`{expected}` in\n{said}");
    }
}

fn example() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/mlflow/complete-example.yaml").display().to_string()
}

fn write(folder: &Path, text: &str) -> String {
    let file = folder.join("policies.yaml");
    fs::write(&file, text).expect("written");
    file.display().to_string()
}

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ambit"));
    command.args(["policy", "export", "--envoy"]).args(arguments).output().expect("ambit runs")
}

fn export(arguments: &[&str]) -> Output {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}
