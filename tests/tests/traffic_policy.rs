//! The manifests of `docs/traffic-policy.md` on a running mesh: rate limits by principal and by header, and faults.
#![forbid(unsafe_code)]

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use ambit_tests::{Mesh, Place, each_user, finish};
use serde_json::{Value, json};

const COLLECTOR: &[&str] = &["-n", "kagenti-system", "--sa", "otel-collector"];
const UI: &[&str] = &["-n", "kagenti-system", "--sa", "kagenti-ui"];

/// The manifests of the document, in order.
fn documented() -> String {
    let document = include_str!("../../docs/traffic-policy.md");
    let blocks = document.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().expect("its end"));
    blocks.collect::<Vec<_>>().join("---\n")
}

fn post(path: &str, header: &[(&str, &str)]) -> Value {
    json!({"method": "POST", "path": path, "headers": header})
}

fn statuses(answers: &[Value]) -> Vec<u64> {
    answers.iter().map(|answer| answer["status"].as_u64().expect("a status")).collect()
}

#[test]
fn the_documented_policies_hold_on_a_running_mesh() {
    each_user(|place| {
        place.write("mlflow/traffic.yaml", &documented());
        let mesh = Mesh::up(place, &["-f", "mlflow", "--access-log", "access.jsonl"]);
        mesh.wait_for("is ready");

        // Five at once for each principal, over however many connections.
        let traces = vec![post("/v1/traces", &[]); 4];
        assert_eq!(statuses(&mesh.ask_all(COLLECTOR, "mlflow:5000", &traces)), [200; 4], "{}", mesh.printed());
        let answers = mesh.ask_all(COLLECTOR, "mlflow:5000", &traces[..3]);
        assert_eq!(statuses(&answers), [200, 429, 429], "{}", mesh.printed());
        assert_eq!(answers[1]["body"], "local_rate_limited");
        assert_eq!(statuses(&mesh.ask_all(UI, "mlflow:5000", &traces)), [200; 4], "another principal's bucket");
        // What policies deny is denied, token or not.
        assert_eq!(statuses(&mesh.ask_all(COLLECTOR, "mlflow:5000", &[post("/other", &[])])), [403]);

        let tenant = |name: &'static str| post("/x", &[("x-tenant", name)]);
        let asked = [tenant("a"), tenant("a"), tenant("a"), tenant("b"), post("/x", &[])];
        assert_eq!(statuses(&mesh.ask_all(UI, "mlflow:5000", &asked)), [200, 200, 429, 200, 200]);

        let start = Instant::now();
        let asked = [post("/x", &[("x-fault", "slow")]), post("/x", &[("x-fault", "broken")])];
        let answers = mesh.ask_all(UI, "mlflow:5000", &asked);
        assert_eq!(statuses(&answers), [200, 503]);
        assert_eq!(answers[1]["body"], "fault filter abort");
        assert!(start.elapsed() >= Duration::from_millis(500), "{:?}", start.elapsed());

        for said in [
            "TrafficPolicy `kagenti-system/mlflow-traffic` rate limit `per-client`: no token is left",
            "TrafficPolicy `kagenti-system/mlflow-traffic` rate limit `per-tenant`: no token is left",
            "TrafficPolicy `kagenti-system/mlflow-traffic` fault `slow` delayed it by 500 ms",
            "TrafficPolicy `kagenti-system/mlflow-traffic` fault `broken` aborted it",
        ] {
            recorded(place, said);
        }
    });
}

#[test]
fn a_policy_that_cannot_work_is_refused_at_its_field() {
    each_user(|place| {
        for (from, to, expected) in [
            (
                "requests: 60",
                "requests: 0",
                ["AMB0901", "traffic.yaml:", "TrafficPolicy kagenti-system/mlflow-traffic"],
            ),
            ("name: mlflow\n", "name: mlfow\n", ["AMB1101", "traffic.yaml:", "service `mlfow` doesn't exist"]),
            ("percent: 20", "percent: 120", ["AMB0903", "traffic.yaml:", "XBackendTrafficPolicy"]),
        ] {
            place.write("mlflow/traffic.yaml", &documented().replacen(from, to, 1));
            let output = finish(place.ambit().args(["up", "-f", "mlflow"]));
            assert_eq!(output.code, 1, "{output:?}");
            let printed = format!("{}{}", output.stdout, output.stderr);
            for text in expected {
                assert!(printed.contains(text), "`{text}` isn't in\n{printed}");
            }
        }
    });
}

fn recorded(place: &Place, said: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let log = fs::read_to_string(place.path("access.jsonl")).expect("the access log");
        if log.contains(said) {
            return;
        }
        assert!(Instant::now() < deadline, "{said}: {log}");
        thread::sleep(Duration::from_millis(20));
    }
}
