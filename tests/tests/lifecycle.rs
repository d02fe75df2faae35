//! Starting, stopping and dying.
#![forbid(unsafe_code)]

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use ambit_tests::{Mesh, Place, each_user, finish};

/// Processes whose command line holds this text.
fn processes_with(text: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").expect("there is a /proc");
    entries
        .flatten()
        .filter_map(|entry| {
            let line = String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).ok()?).replace('\0', " ");
            (line.contains(text) && Path::new(&entry.path()).join("exe").exists()).then_some(line)
        })
        .collect()
}

fn wait_until_gone(place: &Place) {
    let marker = place.path("").display().to_string();
    let deadline = Instant::now() + Duration::from_secs(3);
    while !processes_with(&marker).is_empty() {
        assert!(Instant::now() < deadline, "left behind: {:?}", processes_with(&marker));
        thread::sleep(Duration::from_millis(10));
    }
}

/// Network links of the machine's own namespace.
fn links() -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir("/sys/class/net")
        .expect("there is a /sys")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn sockets(place: &Place) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![place.path("home")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            use std::os::unix::fs::FileTypeExt;
            let kind = entry.file_type().expect("a kind");
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_socket() {
                found.push(entry.path().display().to_string());
            }
        }
    }
    found
}

#[test]
fn ready_soon_and_gone_without_a_trace() {
    each_user(|place| {
        let before = links();
        for signal in ["INT", "TERM"] {
            let start = Instant::now();
            let mut mesh = Mesh::start(place, &["-f", "mlflow"]);
            let (ready, _) = mesh.wait_for("ready");
            assert!(ready - start < Duration::from_secs(1), "ready after {:?}:\n{}", ready - start, mesh.printed());
            mesh.wait_for("is ready");
            mesh.signal(signal);
            let (took, code) = mesh.ended();
            assert!(took < Duration::from_secs(2), "{signal}: ended after {took:?}:\n{}", mesh.printed());
            assert_eq!(code, Some(0), "{signal}:\n{}", mesh.printed());
            wait_until_gone(place);
            assert_eq!(links(), before);
            assert_eq!(sockets(place), Vec::<String>::new());
        }
    });
}

#[test]
fn a_killed_mesh_leaves_nothing_that_stops_the_next() {
    each_user(|place| {
        let before = links();
        let mut mesh = Mesh::up(place, &["-f", "mlflow"]);
        mesh.wait_for("is ready");
        mesh.signal("KILL");
        mesh.ended();
        wait_until_gone(place);
        assert_eq!(links(), before);
        let mesh = Mesh::up(place, &["-f", "mlflow"]);
        mesh.wait_for("is ready");
        let answers =
            mesh.ask(&["-n", "kagenti-system", "--sa", "otel-collector"], "mlflow:5000", &[("POST", "/v1/traces")]);
        assert_eq!(answers[0]["status"], 200);
    });
}

#[test]
fn a_second_mesh_of_the_same_name_is_refused_and_another_name_works() {
    each_user(|place| {
        let mesh = Mesh::up(place, &["-f", "mlflow"]);
        let second = finish(place.ambit().args(["up", "-f", "mlflow"]));
        assert_ne!(second.code, 0);
        assert!(second.stderr.contains("already") && second.stderr.contains("--mesh"), "{second:?}");
        let other = Mesh::up(place, &["--mesh", "other", "-f", "mlflow"]);
        drop((mesh, other));
    });
}
