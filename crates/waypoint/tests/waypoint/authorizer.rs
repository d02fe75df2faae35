//! A real external authorizer: a process of its own, on Envoy's published API types and gRPC's own server
//! (`tests/ext-authz`). Where the machine has no Go, or can't get its modules, tests that need it say so and pass; on CI
//! they fail.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use ambit_xds::waypoint::{HttpCheck, Protocol, Provider};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::{mesh::soon, tools};

/// Where it listens: at an address that no pod of the tests' mesh has.
const ADDRESS: &str = "127.0.0.3";

pub struct Authorizer {
    pub grpc_port: u32,
    pub http_port: u32,
    questions: mpsc::UnboundedReceiver<String>,
    process: Child,
}

/// Nothing where it can't be built.
pub async fn start() -> Option<Authorizer> {
    start_deciding("deny").await
}

/// The same, deciding connections like this.
pub async fn start_deciding(connections: &str) -> Option<Authorizer> {
    let program = tools::go("ext-authz").await?;
    let mut process = Command::new(program)
        .env("LISTEN", ADDRESS)
        .env("DECIDE_CONNECTIONS", connections)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the authorizer starts");
    let output = process.stdout.take().expect("piped");
    let (sender, questions) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut authorizer = Authorizer { grpc_port: 0, http_port: 0, questions, process };
    let ports = authorizer.asked().await;
    let port = |name: &str| ports[name].as_u64().and_then(|port| u32::try_from(port).ok()).expect("a port");
    (authorizer.grpc_port, authorizer.http_port) = (port("grpc"), port("http"));
    Some(authorizer)
}

/// A provider as a waypoint is told of it, to be asked at this port over gRPC.
pub fn over_grpc(port: u32) -> Provider {
    Provider {
        name: "ext".to_owned(),
        host: ADDRESS.to_owned(),
        port,
        timeout_ms: 10_000,
        status_on_error: 403,
        protocol: Some(Protocol::Grpc(true)),
        ..Provider::default()
    }
}

/// The same over HTTP.
pub fn over_http(port: u32, check: HttpCheck) -> Provider {
    Provider { protocol: Some(Protocol::Http(check)), ..over_grpc(port) }
}

impl Authorizer {
    /// The next question that it was asked.
    pub async fn asked(&mut self) -> Value {
        let line = soon(self.questions.recv()).await.expect("it runs");
        serde_json::from_str(&line).expect("a line of JSON")
    }
}

impl Drop for Authorizer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
