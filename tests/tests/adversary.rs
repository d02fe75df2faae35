//! What a hostile workload, and a config with a slip, must not get.
#![forbid(unsafe_code)]

use std::{fs, thread, time::Duration};

use ambit_tests::{Mesh, Output, Place, each_user, finish};
use serde_json::Value;

const COLLECTOR: &[&str] = &["-n", "kagenti-system", "--sa", "otel-collector"];
const INTRUDER: &[&str] = &["-n", "kagenti-system", "--sa", "intruder"];
const OUTSIDER: &[&str] = &["-n", "legacy", "--sa", "legacy-app"];

fn up(place: &Place) -> Mesh<'_> {
    let mesh = Mesh::up(place, &["-f", "mlflow", "--access-log", "access.jsonl"]);
    mesh.wait_for("is ready");
    mesh
}

fn sh(mesh: &Mesh<'_>, who: &[&str], script: &str) -> Output {
    mesh.run(&[who, &["--", "sh", "-c", script]].concat())
}

/// Its output, if it went well.
fn granted(output: &Output) -> Option<&str> {
    (output.code == 0).then(|| output.stdout.trim())
}

/// The first pod of this kind and service account, as `ambit status` shows it.
fn pod(place: &Place, account: &str) -> Value {
    let output = finish(place.ambit().args(["status", "--output", "json"]));
    let status: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let pods = status["pods"].as_array().expect("pods");
    pods.iter().find(|pod| pod["service_account"] == account).expect("the pod").clone()
}

fn has_landlock() -> bool {
    // The oldest kernel with all that pods need to be kept apart, and the list that turns it on where one is shown.
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let listed = fs::read_to_string("/sys/kernel/security/lsm").map_or(true, |list| list.contains("landlock"));
    version >= (5, 19) && listed
}

/// All pods have one user. The kernel would let one pod's program take another's open connection, and so its identity.
#[test]
fn a_program_cant_reach_into_another_pods_program() {
    if !has_landlock() {
        return eprintln!("SKIPPED: this kernel has no Landlock");
    }
    each_user(|place| {
        let mesh = up(place);
        // `ambit echo` in mlflow's pod; as PID 1 hides from nobody, its own name is found in the list of processes.
        let find = "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^ambit echo' && \
                    echo ${p#/proc/}; done";
        let pid = sh(&mesh, INTRUDER, find).stdout.trim().to_owned();
        assert!(pid.parse::<u32>().is_ok(), "mlflow's process is seen: {pid:?}");
        for forbidden in ["mem", "environ", "maps"] {
            let read = sh(&mesh, INTRUDER, &format!("head -c1 /proc/{pid}/{forbidden}"));
            assert_ne!(read.code, 0, "{forbidden}: {read:?}");
        }
        for forbidden in ["root/etc/resolv.conf", "ns/net", "cwd", "fd/0"] {
            let followed = sh(&mesh, INTRUDER, &format!("stat -L /proc/{pid}/{forbidden}"));
            assert_ne!(followed.code, 0, "{forbidden}: {followed:?}");
        }
        // The node process holds the keys.
        for forbidden in ["mem", "environ", "maps", "fd/0"] {
            assert_ne!(sh(&mesh, INTRUDER, &format!("head -c1 /proc/1/{forbidden}")).code, 0, "{forbidden}");
        }
        // A program's own children stay its own, debuggers included.
        let own = sh(&mesh, INTRUDER, "sleep 5 & head -c1 /proc/$!/maps >/dev/null && kill $! && echo mine");
        assert_eq!(granted(&own), Some("mine"), "{own:?}");
    });
}

#[test]
fn a_program_finds_neither_keys_nor_the_control_socket() {
    each_user(|place| {
        let mesh = up(place);
        let home = place.path("home/ambit");
        assert!(home.join("default/ca/root-key.pem").exists(), "where the key really is");
        let seen = sh(&mesh, INTRUDER, &format!("ls -A {}", home.display()));
        assert_eq!(granted(&seen), Some(""), "{seen:?}");
        let binary = place.path("ambit");
        let within = [INTRUDER, &["--", binary.to_str().expect("a path"), "run"], COLLECTOR, &["--", "true"]].concat();
        let nested = mesh.run(&within);
        assert_ne!(nested.code, 0, "{nested:?}");
    });
}

/// Descriptors that whoever started the mesh had open are nothing for programs in pods.
#[test]
fn containers_inherit_no_descriptors() {
    each_user(|place| {
        let server = fs::read_to_string(place.path("mlflow/server.yaml")).expect("the example");
        let start = server.find("command:").expect("the server has a command");
        let line = &server[start..start + server[start..].find('\n').expect("a line")];
        let listing = "command: [sh, -c, \"ls /proc/self/fd; exec ambit echo --listen 0.0.0.0:5000 || sleep 60\"]";
        place.write("leak/server.yaml", &server.replace(line, listing));
        for file in ["mesh.yaml", "complete-example.yaml", "multiple-rules.yaml"] {
            place.write(
                &format!("leak/{file}"),
                &fs::read_to_string(place.path(&format!("mlflow/{file}"))).expect("it"),
            );
        }
        let ambit = place.path("ambit");
        let script = format!("exec 9</etc/passwd; exec {} up -f leak", ambit.display());
        let mut command = place.command("/bin/sh".as_ref());
        let mut child = command
            .args(["-c", &script])
            .stdout(fs::File::create(place.path("leak.log")).expect("a log"))
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("it starts");
        let mut log = String::new();
        for _ in 0..200 {
            thread::sleep(Duration::from_millis(50));
            log = fs::read_to_string(place.path("leak.log")).expect("the log");
            if log.contains("/mlflow | 0") && log.contains("/mlflow | 2") {
                break;
            }
        }
        thread::sleep(Duration::from_millis(200));
        log.push_str(&fs::read_to_string(place.path("leak.log")).expect("the log"));
        let _ = child.kill();
        let _ = child.wait();
        assert!(log.contains("/mlflow | 2"), "the container listed its descriptors: {log}");
        assert!(!log.contains("/mlflow | 9"), "{log}");
    });
}

#[test]
fn no_address_of_the_server_answers_around_its_waypoint() {
    each_user(|place| {
        let mesh = up(place);
        let server = pod(place, "mlflow")["ip"].as_str().expect("an address").to_owned();
        let waypoint = pod(place, "mlflow-waypoint")["ip"].as_str().expect("an address").to_owned();
        for who in [INTRUDER, OUTSIDER] {
            for host in [&server, &waypoint] {
                for port in [5000, 15001, 15006, 15008, 15053] {
                    let answers = mesh.ask(who, &format!("{host}:{port}"), &[("POST", "/v1/traces")]);
                    // Reset, or refused with a reason.
                    let status = &answers[0]["status"];
                    assert!(status.is_null() || *status == 403, "{who:?} {host}:{port}: {answers:?}");
                }
            }
        }
        assert!(!mesh.printed().contains("POST /v1/traces from"), "nothing got there: {}", mesh.printed());
    });
}

/// The application gets the path that was judged. One that resolves no dots would take the other for `/admin/...`.
#[test]
fn the_path_that_was_judged_is_the_path_that_arrives() {
    each_user(|place| {
        let mesh = up(place);
        for sent in ["/admin/%2e%2e/v1/traces", "/admin/../v1/traces", "/v1\\traces", "/%761/traces"] {
            let answers = mesh.ask(COLLECTOR, "mlflow:5000", &[("POST", sent)]);
            assert_eq!(answers[0]["status"], 200, "{sent}: {answers:?}");
            let body: Value = serde_json::from_str(answers[0]["body"].as_str().expect("a body")).expect("JSON");
            assert_eq!(body["path"], "/v1/traces", "{sent}");
        }
    });
}

#[test]
fn a_slip_that_would_open_the_service_is_refused_at_start() {
    each_user(|place| {
        let slips = [
            ("mesh.yaml", "  labels:\n    istio.io/dataplane-mode: ambient\n", "", "isn't in the mesh"),
            ("mesh.yaml", "istio.io/dataplane-mode: ambient", "istio.io/data-plane-mode: ambient", "isn't in the mesh"),
            (
                "complete-example.yaml",
                "      to:\n        - operation:",
                "      when:\n      to:\n        - operation:",
                "when",
            ),
            ("complete-example.yaml", "  action: ALLOW\n", "  action:\n", "action"),
        ];
        for (file, from, to, word) in slips {
            let path = place.path(&format!("mlflow/{file}"));
            let good = fs::read_to_string(&path).expect("the example");
            assert!(good.contains(from), "nothing to change in {file}");
            fs::write(&path, good.replacen(from, to, 1)).expect("written");
            let mut command = place.command("/usr/bin/env".as_ref());
            command.arg("timeout").arg("5").arg(place.path("ambit")).args(["up", "-f", "mlflow"]);
            let output = finish(&mut command);
            fs::write(&path, good).expect("written");
            assert_ne!(output.code, 0, "{to}: {output:?}");
            assert_ne!(output.code, 124, "{to}: it started: {output:?}");
            assert!(output.stderr.contains(word), "{to}: {output:?}");
        }
    });
}

/// A workload that takes all the files the mesh may open must not keep a change of policy out.
#[test]
fn exhaustion_keeps_no_edit_out() {
    each_user(|place| {
        let mesh = Mesh::up_with_files(place, &["-f", "mlflow"], 256);
        mesh.wait_for("is ready");
        // Each holds as many connections as it may have files itself.
        let hog = "for i in $(seq 220); do exec {held}<>/dev/tcp/mlflow/5000 || break; done; echo holds $i; sleep 4";
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| mesh.run(&[INTRUDER, &["--", "bash", "-c", hog]].concat()));
            }
            thread::sleep(Duration::from_millis(2_500));
            let path = place.path("mlflow/complete-example.yaml");
            let good = fs::read_to_string(&path).expect("the example");
            let mark = mesh.mark();
            fs::write(&path, good.replace("/v1/traces", "/v2/traces")).expect("written");
            mesh.wait_for_after("the edit is in force", mark);
        });
        let answers = mesh.ask(COLLECTOR, "mlflow:5000", &[("POST", "/v2/traces")]);
        assert_eq!(answers[0]["status"], 200, "{answers:?}");
    });
}
