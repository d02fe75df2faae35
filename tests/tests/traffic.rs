//! Real traffic through a running mesh.
#![forbid(unsafe_code)]

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use ambit_tests::{Mesh, Place, each_user};

const COLLECTOR: &[&str] = &["-n", "kagenti-system", "--sa", "otel-collector"];

fn up(place: &Place) -> Mesh<'_> {
    let mesh = Mesh::up(place, &["-f", "mlflow", "--access-log", "access.jsonl"]);
    mesh.wait_for("is ready");
    mesh
}

fn run<'a>(who: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
    [who, &["--"], command].concat()
}

#[test]
fn a_program_runs_as_a_workload_with_its_exit_code_and_its_user() {
    each_user(|place| {
        let mesh = up(place);
        assert_eq!(mesh.run(&run(COLLECTOR, &["sh", "-c", "exit 7"])).code, 7);
        assert_eq!(mesh.run(&run(COLLECTOR, &["sh", "-c", "kill -TERM $$"])).code, 128 + 15);
        let who = mesh.run(&run(COLLECTOR, &["id", "-u"]));
        assert_eq!(who.stdout.trim(), if place.is_root() { "0" } else { "65534" });
        let caps = mesh.run(&run(COLLECTOR, &["sh", "-c", "grep CapEff /proc/self/status"]));
        let effective = u64::from_str_radix(caps.stdout.split_whitespace().last().expect("a value"), 16).expect("hex");
        let (net_admin, net_raw, sys_admin) = (1 << 12, 1 << 13, 1 << 21);
        assert_eq!(effective & (net_admin | net_raw | sys_admin), 0, "a workload could undo its capture: {caps:?}");
        let missing = mesh.run(&run(COLLECTOR, &["no-such-program"]));
        assert_eq!(missing.code, 127, "{missing:?}");
        assert!(missing.stderr.contains("no-such-program"), "{missing:?}");
    });
}

#[test]
fn unknown_namespaces_and_accounts_are_refused_by_name() {
    each_user(|place| {
        let mesh = up(place);
        for (arguments, word) in [
            (["-n", "nowhere", "--sa", "x"], "nowhere"),
            (["-n", "kagenti-system", "--sa", "nobody-declared"], "nobody-declared"),
        ] {
            let output = mesh.run(&run(&arguments, &["true"]));
            assert_ne!(output.code, 0);
            assert!(output.stderr.contains(word), "{output:?}");
        }
    });
}

#[test]
fn every_form_of_the_name_resolves() {
    each_user(|place| {
        let mesh = up(place);
        for name in
            ["mlflow", "mlflow.kagenti-system", "mlflow.kagenti-system.svc", "mlflow.kagenti-system.svc.cluster.local"]
        {
            let answers = mesh.ask(COLLECTOR, &format!("{name}:5000"), &[("POST", "/v1/traces")]);
            assert_eq!(answers[0]["status"], 200, "{name}: {answers:?}");
        }
        let unknown = mesh.run(&run(COLLECTOR, &["getent", "hosts", "no-such.kagenti-system.svc.cluster.local"]));
        assert_ne!(unknown.code, 0);
    });
}

#[test]
fn the_application_sees_its_clients_address_and_every_run_takes_the_declared_pods_place() {
    each_user(|place| {
        let mesh = up(place);
        for _ in 0..3 {
            let before = records(place).len();
            let answers = mesh.ask(COLLECTOR, "mlflow:5000", &[("POST", "/v1/traces")]);
            let body: serde_json::Value =
                serde_json::from_str(answers[0]["body"].as_str().expect("a body")).expect("JSON");
            let client = body["client"].as_str().expect("an address");
            let deadline = Instant::now() + Duration::from_secs(5);
            while records(place).len() == before {
                assert!(Instant::now() < deadline, "no record came");
                thread::sleep(Duration::from_millis(5));
            }
            let record = &records(place)[before];
            assert_eq!(record["source"]["workload"], "kagenti-system/otel-collector");
            let source = record["source"]["address"].as_str().expect("an address");
            assert!(client.starts_with("10.244.") && source.starts_with(&format!("{client}:")), "{body} {record}");
        }
    });
}

#[test]
fn a_broken_edit_changes_nothing_and_says_where() {
    each_user(|place| {
        let mesh = up(place);
        let path = place.path("mlflow/complete-example.yaml");
        let good = fs::read_to_string(&path).expect("the example");
        let mark = mesh.mark();
        fs::write(&path, good.replace("methods: [\"POST\"]", "method: [\"POST\"]")).expect("written");
        let (_, (_, line)) = mesh.wait_for_after("complete-example.yaml:", mark);
        assert!(line.contains(':'), "{line}");
        thread::sleep(Duration::from_millis(150));
        assert!(mesh.printed().contains("methods"), "{}", mesh.printed());
        let answers = mesh.ask(COLLECTOR, "mlflow:5000", &[("POST", "/v1/traces"), ("GET", "/v1/traces")]);
        assert_eq!((answers[0]["status"].as_u64(), answers[1]["status"].as_u64()), (Some(200), Some(403)));
        fs::write(&path, good.replace("/v1/traces", "/v3/traces")).expect("written");
        thread::sleep(Duration::from_millis(300));
        let answers = mesh.ask(COLLECTOR, "mlflow:5000", &[("POST", "/v3/traces")]);
        assert_eq!(answers[0]["status"], 200, "{}", mesh.printed());
    });
}

#[test]
fn the_guard_opens_only_by_its_label_and_says_so() {
    each_user(|place| {
        let path = place.path("mlflow/complete-example.yaml");
        let open = fs::read_to_string(&path).expect("the example").replace(
            "    istio.io/use-waypoint: mlflow-waypoint\n",
            "    istio.io/use-waypoint: mlflow-waypoint\n    ambit.dev/waypoint-guard: \"off\"\n",
        );
        let open = place.write("mlflow/complete-example.yaml", &open);
        let mesh = up(place);
        assert!(mesh.printed().contains("waypoint-guard"), "{}", mesh.printed());
        let pod = mlflow_pod(place);
        let answers = mesh.ask(COLLECTOR, &format!("{pod}:5000"), &[("GET", "/anything")]);
        assert_eq!(answers[0]["status"], 200, "{}", mesh.printed());
        drop(mesh);
        fs::write(
            open,
            fs::read_to_string(&path).expect("the example").replace("    ambit.dev/waypoint-guard: \"off\"\n", ""),
        )
        .expect("written");
    });
}

#[test]
fn a_pod_outside_the_mesh_is_recorded_at_the_guard() {
    each_user(|place| {
        let mesh = up(place);
        let pod = mlflow_pod(place);
        let outsider = [COLLECTOR, &["--no-mesh"]].concat();
        let answers = mesh.ask(&outsider, &format!("{pod}:5000"), &[("POST", "/v1/traces")]);
        assert_eq!(answers[0]["status"], 403, "{answers:?}");
        assert!(answers[0]["body"].as_str().is_some_and(|body| body.contains("waypoint-guard")), "{answers:?}");
        mesh.wait_for("[waypoint guard]");
        let records = records(place);
        let record = records.iter().rfind(|record| record["enforcer"]["kind"] == "waypoint-guard").expect("its record");
        assert_eq!(record["verdict"], "deny");
        assert!(record["reason"].as_str().expect("a reason").contains("mlflow-waypoint"), "{record}");
    });
}

fn records(place: &Place) -> Vec<serde_json::Value> {
    let log = fs::read_to_string(place.path("access.jsonl")).expect("the access log");
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn mlflow_pod(place: &Place) -> String {
    let output = ambit_tests::finish(place.ambit().args(["status", "--output", "json"]));
    let status: serde_json::Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let pods = status["pods"].as_array().expect("pods");
    let pod = pods.iter().find(|pod| pod["service_account"] == "mlflow").expect("the mlflow pod");
    pod["ip"].as_str().expect("an address").to_owned()
}
