//! The real MLflow server as the collector of the waypoint's spans: its `/v1/traces` takes OTLP.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{configure, counted, operators, tracing};
use crate::{
    backend::Raw,
    mesh::{Mesh, Shape, exchange, status, traces_only},
};

/// How long MLflow may take to start; it prepares a database.
const START: Duration = Duration::from_secs(120);

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It has children of its own: it is told to end, not killed.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

/// The environment that `cargo xtask real` makes.
fn environment() -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"));
    let environment =
        std::env::var_os("MLFLOW_ENVIRONMENT").map_or_else(|| target.join("mlflow-environment"), PathBuf::from);
    environment.join("bin/mlflow").exists().then_some(environment)
}

async fn post(address: SocketAddr, path: &str, body: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    answer.starts_with("HTTP/1.1 200").then_some(answer)
}

/// MLflow's traces of the experiment with this number.
async fn traces(address: SocketAddr) -> Option<String> {
    let search = json!({"locations": [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}]});
    post(address, "/api/3.0/mlflow/traces/search", &search.to_string()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_mlflow_takes_the_spans_and_shows_their_trace() {
    let Some(environment) = environment() else {
        eprintln!("SKIPPED: there is no MLflow; `cargo xtask real` installs it");
        return;
    };
    let place = tempfile::tempdir().expect("a folder");
    // An address that no workload of the mesh has.
    let free = std::net::TcpListener::bind("127.0.0.9:0").expect("a free port");
    let address = free.local_addr().expect("bound");
    drop(free);
    let log = std::fs::File::create(place.path().join("log")).expect("a log");
    let store = format!("sqlite:///{}/mlflow.db", place.path().display());
    let mut command = Command::new(environment.join("bin/mlflow"));
    command.args(["server", "--workers", "1", "--host", "127.0.0.9", "--allowed-hosts", "*", "--port"]);
    command.arg(address.port().to_string()).args(["--backend-store-uri", &store]).current_dir(place.path());
    command.arg("--artifacts-destination").arg(place.path().join("artifacts"));
    let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("started");
    let _server = Server(child);
    let begun = Instant::now();
    while traces(address).await.is_none() {
        let said = || std::fs::read_to_string(place.path().join("log")).unwrap_or_default();
        assert!(begun.elapsed() < START, "MLflow doesn't start: {}", said());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    let app = Raw::start().await;
    let mesh = Mesh::start(Shape::of(app.address)).await;
    let metrics = operators(&mesh).await;
    let collector = tracing(address, 0);
    configure(
        &mesh,
        &traces_only(),
        Some(ambit_xds::waypoint::Tracing {
            collector: collector
                .collector
                .map(|provider| ambit_xds::waypoint::Provider { timeout_ms: 9_000, ..provider }),
            ..collector
        }),
    );
    let trace = "5b8efff798038103d269b633813fc60c";
    let request = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: mlflow\r\ntraceparent: 00-{trace}-eee19b7ec3c1b174-01\r\ncontent-length: 0\r\n\r\n"
    );
    let mut tunnel = mesh.tunnel("otel-collector").await;
    assert_eq!(status(&exchange(&mut tunnel, &request).await.0), 200);
    counted(metrics, "ambit_trace_spans_exported_total", &[], 1).await;

    let found = traces(address).await.expect("an answer");
    let body: Value = serde_json::from_str(found.split_once("\r\n\r\n").expect("a body").1).unwrap_or_default();
    assert!(found.contains(&format!("tr-{trace}")), "{found} {body}");
}
