//! Edits of real files, noticed by a real watch, sent over a real channel.

mod support;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use ambit_control_plane::local::{Event, PodKind};
use support::{Mesh, mlflow_example, on_paths};

/// The example in a folder of its own.
fn copy() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(mlflow_example()).expect("the example") {
        let entry = entry.expect("an entry");
        if entry.path().extension().is_some_and(|extension| extension == "yaml") {
            fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("copied");
        }
    }
    folder
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

async fn running(paths: &[&Path]) -> Mesh {
    let mut mesh = on_paths(paths.iter().map(|path| path.to_path_buf()).collect()).expect("no errors");
    mesh.added().await;
    mesh.added().await;
    mesh
}

fn edit(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).expect("readable");
    assert!(text.contains(from), "nothing to edit");
    fs::write(file, text.replace(from, to)).expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_is_in_force_within_100_ms() {
    let folder = copy();
    let mesh = running(&[folder.path()]).await;
    let file = folder.path().join("complete-example.yaml");
    let allowed = |path: &str| mesh.waypoint_verdict("otel-collector", "POST", path).is_allowed();
    assert!(!allowed("/v2/traces"));
    // The best of a few: the machine may be busy with something else.
    let mut best = Duration::MAX;
    for round in 2..7 {
        let started = Instant::now();
        edit(&file, &format!("/v{}/traces", round - 1), &format!("/v{round}/traces"));
        mesh.until("the edit is in force", |_| allowed(&format!("/v{round}/traces"))).await;
        best = best.min(started.elapsed());
        println!("in force after {:?}", started.elapsed());
        // multiple-rules.yaml allows /v1/traces all the time.
        assert!(round == 2 || !allowed(&format!("/v{}/traces", round - 1)), "the old text isn't");
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert!(best < Duration::from_millis(100), "{best:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_edit_keeps_the_last_good_state_and_says_where_it_is_broken() {
    let folder = copy();
    let mut mesh = running(&[folder.path()]).await;
    let file = folder.path().join("complete-example.yaml");
    let good = fs::read_to_string(&file).expect("readable");
    for (from, to, line_text) in [
        ("methods: [\"POST\"]", "methods: [\"POST\"", "methods"),
        ("      name: mlflow\n", "      name: mlfow\n", "mlfow"),
        ("istio.io/use-waypoint: mlflow-waypoint", "istio.io/use-waypoint: gone", "gone"),
        ("      paths:", "      pahts:", "pahts"),
    ] {
        edit(&file, from, to);
        let event = mesh.event().await;
        let Event::Rejected(diagnostics) = event else { panic!("{from}: {event:?}") };
        let error = diagnostics.iter().find(|diagnostic| diagnostic.is_error()).expect("an error");
        let place = error.place.as_ref().expect("a place");
        assert!(place.source.name().ends_with("complete-example.yaml"), "{error}");
        if line_text != "methods" {
            let line = place.source.text().lines().nth(place.line as usize - 1).expect("the line");
            assert!(line.contains(line_text), "{from}: {error}");
        }
        assert!(mesh.waypoint_verdict("otel-collector", "POST", "/v1/traces").is_allowed(), "{from}");
        assert!(!mesh.waypoint_verdict("intruder", "POST", "/v1/traces").is_allowed(), "{from}");

        fs::write(&file, &good).expect("written");
        // Nothing changes in the end, so nothing is told; the next edit is noticed all the same.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(mesh.local.pods.try_recv().is_err(), "no pod was touched");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_an_editor_replaces_is_followed() {
    let folder = copy();
    let file = folder.path().join("complete-example.yaml");
    let paths = files(folder.path());
    let mesh = running(&paths.iter().map(std::path::PathBuf::as_path).collect::<Vec<_>>()).await;
    let text = fs::read_to_string(&file).expect("readable");
    for round in 2..4 {
        let temporary = folder.path().join(".complete-example.yaml.swp");
        fs::write(&temporary, text.replace("/v1/traces", &format!("/v{round}/traces"))).expect("written");
        fs::rename(&temporary, &file).expect("renamed");
        mesh.until("the edit is in force", |_| {
            mesh.waypoint_verdict("otel-collector", "POST", &format!("/v{round}/traces")).is_allowed()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_follow_their_objects() {
    let folder = copy();
    let mut mesh = running(&[folder.path()]).await;
    let before = mesh.local.handle.status().await;
    let server = files(folder.path())
        .into_iter()
        .find(|file| fs::read_to_string(file).expect("readable").contains("kind: Deployment"));
    let server = server.expect("the example has a Deployment");

    edit(&server, "replicas: 1", "replicas: 2");
    let second = mesh.added().await;
    assert!(second.name.starts_with("mlflow-") && second.kind == PodKind::App);

    edit(&server, "0.0.0.0:5000\"]", "0.0.0.0:5000\", \"--verbose\"]");
    let (mut removed, mut added) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        match tokio::time::timeout(support::PATIENCE, mesh.local.pods.recv()).await.expect("in time").expect("alive") {
            ambit_control_plane::local::PodCommand::Remove { uid } => removed.push(uid),
            ambit_control_plane::local::PodCommand::Add(plan) => added.push(plan),
        }
    }
    assert_eq!((removed.len(), added.len()), (2, 2), "a changed template replaces the pods");
    assert!(added.iter().all(|plan| plan.uid != second.uid && plan.ip != second.ip));

    let services = mesh.local.handle.status().await.services;
    assert_eq!(services[0].vip, before.services[0].vip, "the address stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_was_asked_for_returns_when_it_is_in_force() {
    let folder = copy();
    let mesh = running(&[folder.path()]).await;
    let file = folder.path().join("complete-example.yaml");
    edit(&file, "/v1/traces", "/v9/traces");
    mesh.local.handle.reload().await.expect("no errors");
    assert!(mesh.waypoint_verdict("otel-collector", "POST", "/v9/traces").is_allowed());
    edit(&file, "kind: Gateway", "kind: Gateawy");
    let error = mesh.local.handle.reload().await.expect_err("the waypoint is gone");
    assert!(error.diagnostics.iter().any(ambit_api::Diagnostic::is_error));
    assert!(mesh.waypoint_verdict("otel-collector", "POST", "/v9/traces").is_allowed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_being_written_is_not_taken_for_empty() {
    use std::io::Write;
    let folder = copy();
    let mut mesh = running(&[folder.path()]).await;
    let path = folder.path().join("multiple-rules.yaml");
    let start = mesh.local.events.try_recv();
    assert!(matches!(start, Ok(Event::Applied { .. })), "{start:?}");
    let text = fs::read_to_string(&path).expect("readable");
    let mut file = fs::File::create(&path).expect("truncated");
    // Nothing may be told of this until the writer is done.
    let early = tokio::time::timeout(Duration::from_millis(300), mesh.local.events.recv()).await;
    assert!(early.is_err(), "{early:?}");
    assert!(mesh.waypoint_verdict("kagenti-ui", "GET", "/").is_allowed());
    file.write_all(text.replace("/*", "/ui/*").as_bytes()).expect("written");
    drop(file);
    mesh.until("the edit is in force", |_| !mesh.waypoint_verdict("kagenti-ui", "GET", "/").is_allowed()).await;
    assert!(mesh.waypoint_verdict("kagenti-ui", "GET", "/ui/x").is_allowed());
    assert!(matches!(mesh.event().await, Event::Reloaded { changed: 1, .. }), "one edit");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_read_is_read_again_without_another_edit() {
    let (folder, elsewhere) = (copy(), tempfile::tempdir().expect("a folder"));
    let mut mesh = running(&[folder.path()]).await;
    let allowed = |mesh: &Mesh| mesh.waypoint_verdict("otel-collector", "POST", "/v1/traces").is_allowed();
    assert!(allowed(&mesh));
    // A policy that takes the right away, in a file that can't be read for now, and comes to be readable unnoticed.
    let target = elsewhere.path().join("deny.yaml");
    std::os::unix::fs::symlink(&target, folder.path().join("deny.yaml")).expect("a link");
    let event = mesh.event().await;
    assert!(matches!(event, Event::Rejected(_)), "{event:?}");
    assert!(allowed(&mesh), "the last good state stays");
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
        metadata: {name: nobody, namespace: kagenti-system}\n\
        spec: {targetRefs: [{kind: Service, group: \"\", name: mlflow}], action: DENY, rules: [{}]}\n";
    fs::write(&target, policy).expect("written");
    mesh.until("the policy is in force", |_| !allowed(&mesh)).await;
}
