//! `ambit run` and `ambit forward` as a person uses them, and containers as processes.
#![forbid(unsafe_code)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use ambit_tests::{Mesh, each_user, finish};

const COLLECTOR: &[&str] = &["-n", "kagenti-system", "--sa", "otel-collector"];

#[test]
fn a_terminal_stays_the_programs_own() {
    each_user(|place| {
        let mesh = Mesh::up(place, &["-f", "mlflow"]);
        let ambit = place.path("ambit");
        let command = format!(
            "{} run -n kagenti-system --sa otel-collector -- sh -c 'tty && test -t 0 && test -t 1 && exit 5'",
            ambit.display()
        );
        let output = finish(place.command("script".as_ref()).args(["-qec", &command, "/dev/null"]));
        assert_eq!(output.code, 5, "{output:?}\n{}", mesh.printed());
        assert!(output.stdout.contains("/dev/pts/"), "{output:?}");
    });
}

#[test]
fn signals_reach_the_program_and_its_end_frees_the_pod() {
    each_user(|place| {
        let mesh = Mesh::up(place, &["-f", "mlflow"]);
        let script = "trap 'echo got it; exit 9' TERM; echo started; while :; do sleep 0.05; done";
        let mut run = place.ambit();
        run.arg("run").args(COLLECTOR).args(["--", "sh", "-c", script]).stdout(Stdio::piped());
        let mut child = run.spawn().expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        assert_eq!(lines.next().expect("a line").expect("text"), "started");
        kill("TERM", child.id());
        assert_eq!(lines.next().expect("a line").expect("text"), "got it");
        assert_eq!(child.wait().expect("it ends").code(), Some(9));

        // Killed outright, the command takes its program along, and the pod can be used again.
        let mut run = place.ambit();
        run.arg("run").args(COLLECTOR).args(["--", "sh", "-c", "echo started; sleep 1000.25"]).stdout(Stdio::piped());
        let mut child = run.spawn().expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        assert_eq!(lines.next().expect("a line").expect("text"), "started");
        kill("KILL", child.id());
        child.wait().expect("it ends");
        let deadline = Instant::now() + Duration::from_secs(3);
        while String::from_utf8_lossy(&Command::new("ps").args(["ax", "-o", "args"]).output().expect("ps").stdout)
            .lines()
            .any(|line| line == "sleep 1000.25")
        {
            assert!(Instant::now() < deadline, "the program outlives its command");
            thread::sleep(Duration::from_millis(10));
        }
        let answers = mesh.ask(COLLECTOR, "mlflow:5000", &[("GET", "/v1/traces")]);
        assert_eq!(answers[0]["status"], 403);
    });
}

fn kill(signal: &str, pid: u32) {
    let status = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status();
    assert!(status.expect("kill runs").success());
}

#[test]
fn a_forward_enters_with_the_identity_it_was_given() {
    each_user(|place| {
        let mesh = Mesh::up(place, &["-f", "mlflow"]);
        mesh.wait_for("is ready");
        for (account, expected) in [("kagenti-ui", "HTTP/1.1 200"), ("intruder", "HTTP/1.1 403")] {
            let mut command = place.ambit();
            let identity = format!("kagenti-system/{account}");
            command.args(["forward", "kagenti-system/mlflow:5000", "--as", &identity]).stdout(Stdio::piped());
            let mut child = command.spawn().expect("it starts");
            let mut line = String::new();
            BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
            let address = line.strip_prefix("http://").and_then(|rest| rest.split(' ').next()).expect("an address");
            let mut stream = TcpStream::connect(address).expect("the listener is there");
            stream.write_all(b"GET /page HTTP/1.1\r\nhost: mlflow:5000\r\nconnection: close\r\n\r\n").expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer");
            assert!(answer.starts_with(expected), "{answer}\n{}", mesh.printed());
            child.kill().expect("it can be ended");
            child.wait().expect("it ends");
        }
        let open = finish(place.ambit().args(["forward", "kagenti-system/mlflow:5000", "--listen", "0.0.0.0:0"]));
        assert_eq!(open.code, 1, "a forward must not be reachable by others: {open:?}");
        let unknown = finish(place.ambit().args(["forward", "kagenti-system/nothing:5000"]));
        assert!(unknown.code == 1 && unknown.stderr.contains("nothing"), "{unknown:?}");
    });
}

#[test]
fn commands_without_a_mesh_say_so() {
    each_user(|place| {
        for arguments in [&["run", "--", "true"][..], &["status"], &["stop", "a/b"], &["forward", "a/b:1"]] {
            let output = finish(place.ambit().args(arguments));
            assert_eq!(output.code, 1, "{output:?}");
            assert!(output.stderr.contains("ambit up"), "{output:?}");
        }
    });
}

const CONTAINERS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: jobs, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: once, namespace: jobs}
spec:
  restartPolicy: Never
  containers:
    - name: one
      workingDir: /usr
      env: [{name: GREETING, value: good day}]
      command: [sh, -c, 'echo "$GREETING from $PWD on $(hostname)"; exit 3']
---
apiVersion: v1
kind: Pod
metadata: {name: again, namespace: jobs}
spec:
  restartPolicy: OnFailure
  containers:
    - name: one
      command: [sh, -c, 'echo another try; exit 1']
---
apiVersion: v1
kind: Pod
metadata: {name: unready, namespace: jobs, labels: {app: unready}}
spec:
  containers:
    - name: web
      command: [ambit, echo, --listen, "0.0.0.0:8080"]
      readinessProbe: {exec: {command: [test, -e, FLAG]}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: unready, namespace: jobs}
spec: {selector: {app: unready}, ports: [{port: 8080}]}
"#;

#[test]
fn containers_run_as_their_pods_say() {
    each_user(|place| {
        let flag = place.path("home/flag");
        place.write("jobs.yaml", &CONTAINERS.replace("FLAG", &flag.display().to_string()));
        let mesh = Mesh::up(place, &["-f", "jobs.yaml"]);
        mesh.wait_for("once/one | good day from /usr on once");
        let mark = mesh.mark();
        mesh.wait_for_after("again/one | another try", mark);
        assert_eq!(mesh.printed().matches("good day").count(), 1, "restartPolicy Never:\n{}", mesh.printed());
        let client = ["-n", "jobs", "--sa", "default"];
        let answers = mesh.ask(&client, "unready:8080", &[("GET", "/")]);
        assert_eq!(answers[0]["status"], 403, "a pod that isn't ready gets no traffic: {answers:?}");
        assert!(answers[0]["body"].as_str().is_some_and(|body| body.contains("no ready endpoint")), "{answers:?}");
        std::fs::write(&flag, "").expect("written");
        mesh.wait_for("pod jobs/unready is ready");
        thread::sleep(Duration::from_millis(50));
        let answers = mesh.ask(&client, "unready:8080", &[("GET", "/")]);
        assert_eq!(answers[0]["status"], 200, "{}", mesh.printed());
    });
}
