//! What a real API server makes of the custom resource definitions and of the admission webhook: it takes the definitions
//! and the examples, refuses by schema what Istio's schemas refuse, and with the webhook exactly what the command line does.
#![forbid(unsafe_code)]

mod rows;
mod webhook;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use ambit_tests_kube::{KubeServer, programs_or_skip};

use crate::{rows::Row, webhook::Webhook};

/// Rows of Istio's validation of AuthorizationPolicies (`spec/authorization.md` 2.11) that its schema refuses already.
const BY_SCHEMA: [u32; 8] = [1, 2, 3, 5, 6, 7, 18, 21];

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_answers_as_the_command_line_does() {
    let Some(programs) = programs_or_skip() else { return };
    let server = KubeServer::start(&programs).expect("it starts");
    let folder = tempfile::tempdir().expect("a folder");
    define(&server, folder.path());
    for namespace in ["a", "kagenti-system", "llm-mesh"] {
        // Those that an example makes itself are there then already.
        let _ = server.run(&["create", "namespace", namespace]);
    }
    examples(&server);
    columns(&server);

    let rows = rows::all();
    let by_schema = refused(&server, folder.path(), &rows);
    for row in &rows {
        let refused = by_schema.contains(&row.name);
        assert!(!refused || row.is_wrong(), "the schema refuses what the command line takes: {}", row.text);
        if row.number.is_some_and(|number| BY_SCHEMA.contains(&number)) {
            assert!(refused, "row {:?} is for the schema: {}", row.number, row.text);
        }
    }

    let webhook = Webhook::start(&server).await;
    let by_both = refused(&server, folder.path(), &rows);
    let wrong: BTreeSet<_> = rows.iter().filter(|row| row.is_wrong()).map(|row| row.name.clone()).collect();
    let differing: Vec<_> =
        rows.iter().filter(|row| by_both.contains(&row.name) != wrong.contains(&row.name)).collect();
    assert!(differing.is_empty(), "answered otherwise than by the command line: {differing:#?}");
    assert!(by_both.len() > by_schema.len(), "the webhook refuses what no schema can");
    webhook.says_why(&server, folder.path());
    webhook.is_kept(&server).await;
    webhook.writes_need_it(&server, folder.path()).await;
}

/// Applies the definitions and waits until their kinds are served.
fn define(server: &KubeServer, folder: &Path) {
    let file = folder.join("crds.yaml");
    fs::write(&file, ambit_install::chart::definitions().expect("they can be written")).expect("a file");
    let file = file.to_str().expect("a path in UTF-8");
    // Without `--server-side` a copy goes into an annotation, whose size is bounded.
    run(server, &["apply", "-f", file]);
    run(server, &["wait", "--for=condition=Established", "--timeout=60s", "customresourcedefinition", "--all"]);
    run(server, &["apply", "--server-side", "--force-conflicts", "-f", file]);
    let schemas = run(
        server,
        &["get", "crds", "-o", "jsonpath={.items[*].status.conditions[?(@.type==\"NonStructuralSchema\")]}"],
    );
    assert!(schemas.trim().is_empty(), "{schemas}");
}

/// The examples' manifests, unchanged.
fn examples(server: &KubeServer) {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut applied = 0;
    for folder in ["mlflow", "mlflow-oauth2"] {
        let mut files: Vec<PathBuf> = fs::read_dir(examples.join(folder))
            .expect("a folder")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
        // Namespaces stand in these.
        files.sort_by_key(|file| !file.ends_with("mesh.yaml"));
        for file in files {
            run(server, &["apply", "--validate=strict", "-f", file.to_str().expect("a path in UTF-8")]);
            applied += 1;
        }
    }
    assert!(applied >= 7, "{applied}");
}

/// Short names, and what `kubectl get` shows.
fn columns(server: &KubeServer) {
    let shown = run(server, &["get", "ap", "-A"]);
    assert!(shown.contains("ACTION") && shown.contains("AGE") && shown.contains("ALLOW"), "{shown}");
    for short in ["pa", "ra", "dr", "gtw", "gc"] {
        run(server, &["get", short, "-A"]);
    }
    let kinds = run(server, &["api-resources", "--categories=istio-io", "-o", "name"]);
    assert_eq!(kinds.lines().count(), 4, "{kinds}");
    let older = run(server, &["get", "authorizationpolicies.v1beta1.security.istio.io", "-A", "-o", "name"]);
    assert!(older.lines().count() > 1, "both versions are served: {older}");
}

/// Names of the rows that the API server refuses.
fn refused(server: &KubeServer, folder: &Path, rows: &[Row]) -> BTreeSet<String> {
    let file = folder.join("rows.yaml");
    let documents: Vec<_> = rows.iter().map(|row| row.text.as_str()).collect();
    fs::write(&file, documents.join("---\n")).expect("a file");
    let arguments = ["create", "--dry-run=server", "--validate=strict", "-o", "name", "-f"];
    let arguments = [&arguments[..], &[file.to_str().expect("a path in UTF-8")]].concat();
    let output = server.kubectl(&arguments).output().expect("kubectl runs");
    let taken = String::from_utf8_lossy(&output.stdout).into_owned();
    let taken: BTreeSet<_> = taken.lines().filter_map(|line| line.split_once('/')).map(|(_, name)| name).collect();
    assert!(!taken.is_empty(), "nothing was taken: {}", String::from_utf8_lossy(&output.stderr));
    rows.iter().map(|row| row.name.clone()).filter(|name| !taken.contains(name.as_str())).collect()
}

fn run(server: &KubeServer, arguments: &[&str]) -> String {
    server.run(arguments).unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
}
