//! Clients of others: curl, nghttp, gRPC for Go, and a browser. Each talks to a port on loopback, as an application does
//! whose connections its node proxy captures.

mod browser;
mod curl;
mod grpc;
mod nghttp;

use std::{
    io::Write,
    net::SocketAddr,
    path::Path,
    process::{Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use ambit_hbone::copy;
use tokio::net::TcpListener;

use crate::mesh::{Mesh, PATIENCE, PORT, Shape, VIP, allow_all, policy};

/// How long a program of others may take: some are slow to start on a busy machine.
const FOREIGN_PATIENCE: Duration = Duration::from_secs(60);

/// A mesh where everything is allowed but `/denied` and `/test.Echo/Denied`.
async fn mesh(mut shape: Shape) -> Arc<Mesh> {
    let mut denying = policy(serde_json::json!({"action": "DENY", "rules": [
        {"to": [{"operation": {"paths": ["/denied", "/test.Echo/Denied"]}}]}]}));
    denying["name"] = "denying".into();
    shape.policies = vec![allow_all(), denying];
    Arc::new(Mesh::start(shape).await)
}

/// A port whose connections go into the mesh as those of service account `any`.
async fn gate(mesh: &Arc<Mesh>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("free port");
    let address = listener.local_addr().expect("bound");
    let (mesh, pool) = (Arc::clone(mesh), mesh.pool());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (mesh, pool) = (Arc::clone(&mesh), Arc::clone(&pool));
            tokio::spawn(async move {
                let mut tunnel = mesh.connect(&pool, "any", &format!("{VIP}:{PORT}")).await.expect("tunnel");
                // Clients end their connections as they like.
                let _ = copy::bidirectional(&mut stream, &mut tunnel, PATIENCE).await;
            });
        }
    });
    address
}

/// Runs it to its end with this input.
async fn run(program: &Path, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new("timeout");
    command.arg(FOREIGN_PATIENCE.as_secs().to_string()).arg(program).args(arguments).env("no_proxy", "*");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_owned();
    // Who doesn't read it needs none.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.expect("no panic");
    writer.join().expect("no panic");
    output.expect("it ran")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
