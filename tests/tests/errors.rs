//! What `ambit up` says about resources it can't accept: the object, file, line and what to do, and no mesh.
#![forbid(unsafe_code)]

use ambit_tests::{each_user, finish};

/// A change to the example and what must be printed about it.
const BROKEN: &[(&str, &str, &str, &[&str])] = &[
    ("not YAML", "spec:\n  gatewayClassName", "spec: [\n  gatewayClassName", &["complete-example.yaml:"]),
    ("a wrong type", "port: 5000", "port: many", &["complete-example.yaml:", "Service kagenti-system/mlflow", "port"]),
    ("an unknown field", "principals:", "principal:", &["complete-example.yaml:", "principal"]),
    (
        "a group that doesn't fit",
        "group: \"\"",
        "group: apps",
        &["complete-example.yaml:", "AuthorizationPolicy kagenti-system/mlflow-traces-from-otel", "group"],
    ),
    ("a missing target", "name: mlflow\n  action", "name: mlfow\n  action", &["complete-example.yaml:", "mlfow"]),
    (
        "another namespace",
        "name: mlflow\n  action",
        "name: mlflow\n      namespace: other-team\n  action",
        &["complete-example.yaml:", "namespace"],
    ),
    (
        "a missing waypoint",
        "use-waypoint: mlflow-waypoint",
        "use-waypoint: mlflow-waypiont",
        &["complete-example.yaml:", "mlflow-waypiont"],
    ),
    ("another port", "port: 15008", "port: 15009", &["complete-example.yaml:", "15008"]),
    ("another protocol", "protocol: HBONE", "protocol: HTTP", &["complete-example.yaml:", "HBONE"]),
    (
        "selector and targetRefs",
        "  targetRefs:",
        "  selector:\n    matchLabels: {app: mlflow}\n  targetRefs:",
        &["complete-example.yaml:", "selector", "targetRefs"],
    ),
    (
        "two Services of one name",
        "---\n# Authorization Policy",
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: mlflow, namespace: kagenti-system}\nspec: {ports: [{port: 1}], selector: {app: mlflow}}\n---\n# Authorization Policy",
        &["complete-example.yaml:", "Service kagenti-system/mlflow"],
    ),
];

#[test]
fn every_mistake_stops_the_start_with_its_place() {
    each_user(|place| {
        let good = std::fs::read_to_string(place.path("mlflow/complete-example.yaml")).expect("the example");
        for (what, from, to, expected) in BROKEN {
            let broken = good.replacen(from, to, 1);
            assert_ne!(good, broken, "{what}: the example no longer holds `{from}`");
            place.write("mlflow/complete-example.yaml", &broken);
            let output = finish(place.ambit().args(["up", "-f", "mlflow"]));
            assert_eq!(output.code, 1, "{what}: {output:?}");
            let printed = format!("{}{}", output.stdout, output.stderr);
            for text in *expected {
                assert!(printed.contains(text), "{what}: `{text}` isn't in\n{printed}");
            }
        }
        place.write("mlflow/complete-example.yaml", &good);
    });
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    each_user(|place| {
        let output = finish(place.ambit().args(["up", "-f", "no-such-folder"]));
        assert_eq!(output.code, 1);
        assert!(output.stderr.contains("no-such-folder"), "{output:?}");
    });
}
