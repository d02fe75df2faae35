//! What operators of a local mesh get to see: the text log of its waypoint, and log levels at run time.
#![forbid(unsafe_code)]

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use ambit_tests::{Mesh, each_user};

const COLLECTOR: &[&str] = &["-n", "kagenti-system", "--sa", "otel-collector"];
const PATIENCE: Duration = Duration::from_secs(10);

/// The whole answer of a waypoint's operators' port.
fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connected");
    let head = format!("{request} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer
}

#[test]
fn a_waypoint_writes_istios_text_log_and_its_log_levels_can_be_changed() {
    each_user(|place| {
        let log = ["--access-log", "access.log", "--access-log-format", "text"];
        let mesh = Mesh::up(place, &[&["-f", "mlflow", "--waypoint-admin"], &log[..]].concat());
        mesh.wait_for("is ready");
        let answers = mesh.ask(COLLECTOR, "mlflow:5000", &[("POST", "/v1/traces?key=secret"), ("GET", "/v1/traces")]);
        assert_eq!(
            answers.iter().map(|answer| &answer["status"]).collect::<Vec<_>>(),
            [200, 403],
            "{}",
            mesh.printed()
        );
        let (begun, path) = (Instant::now(), place.path("access.log"));
        let lines = loop {
            let lines = fs::read_to_string(&path).unwrap_or_default();
            if lines.contains("\"POST ") && lines.contains("\"GET ") {
                break lines;
            }
            assert!(begun.elapsed() < PATIENCE, "both in {lines}");
            std::thread::sleep(Duration::from_millis(20));
        };
        let line = |start: &str| lines.lines().find(|line| line.contains(start)).unwrap_or_else(|| panic!("{lines}"));
        let taken = line("] \"POST /v1/traces HTTP/1.1\" 200 - via_upstream - \"-\" ");
        assert!(taken.contains("inbound-vip|5000|http|mlflow.kagenti-system.svc.cluster.local"), "{taken}");
        line("] \"GET /v1/traces HTTP/1.1\" 403 - rbac_access_denied_matched_policy[none] - ");
        assert!(!lines.contains("secret"), "{lines}");

        let printed = mesh.printed();
        let address = printed.split("operators at http://").nth(1).and_then(|rest| rest.lines().next());
        let address = address.unwrap_or_else(|| panic!("no operators' port in {printed}"));
        let asked = |request: &str| ask(address, request);
        assert!(asked("GET /logging").starts_with("HTTP/1.1 405"), "a change is a POST");
        assert!(asked("POST /logging").ends_with("current log level is warn\n"));
        assert!(asked("POST /logging?level=ambit_waypoint=debug").ends_with("ambit_waypoint=debug,warn\n"));
        assert!(asked("POST /logging?level=loud").starts_with("HTTP/1.1 400"));
        assert!(asked("POST /logging?reset").ends_with("current log level is warn\n"));
    });
}
