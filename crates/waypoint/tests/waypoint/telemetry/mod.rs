//! What is told of requests and connections once they have ended: spans, text lines, counters.

mod clusters;
mod collector;
mod counters;
mod flags;
mod lines;
mod mlflow;
mod names;
mod traces;

use std::{
    net::SocketAddr,
    slice,
    time::{Duration, Instant},
};

use ambit_waypoint::Exposure;
use ambit_xds::waypoint::{Bundle, GatewaySettings, HttpCheck, Protocol, Provider, Tracing};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    mesh::{Mesh, PATIENCE, soon},
    wire,
};

/// A collector at this address, sent so many of 100,000 traces.
fn tracing(collector: SocketAddr, sampled: u32) -> Tracing {
    let provider = Provider {
        name: "collector".to_owned(),
        host: collector.ip().to_string(),
        port: collector.port().into(),
        timeout_ms: 2_000,
        status_on_error: 403,
        protocol: Some(Protocol::Http(HttpCheck::default())),
        ..Provider::default()
    };
    let headers = [("x-mlflow-experiment-id".to_owned(), "0".to_owned())].into();
    Tracing { collector: Some(provider), path: "/v1/traces".to_owned(), headers, sampled }
}

fn configure(mesh: &Mesh, policy: &Value, tracing: Option<Tracing>) {
    let settings = Some(GatewaySettings { tracing, ..GatewaySettings::default() });
    let bundle = Bundle { settings, ..wire::bundle(vec![wire::service(slice::from_ref(policy))]) };
    mesh.store.apply(&[wire::response(&bundle)]).expect("readable resources");
}

async fn operators(mesh: &Mesh) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("free port");
    let address = listener.local_addr().expect("bound");
    mesh.waypoint.as_ref().expect("running").serve_operators(vec![listener], Exposure::Loopback, None);
    address
}

/// Scrapes until a series of this name whose labels hold all of these texts has this value; returns its line.
async fn counted(address: SocketAddr, name: &str, labels: &[&str], value: u32) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = scrape(address).await;
        let wanted = |line: &&str| {
            line.split(['{', ' ']).next() == Some(name)
                && labels.iter().all(|label| line.contains(label))
                && line.rsplit(' ').next().and_then(|text| text.parse::<f64>().ok()) == Some(f64::from(value))
        };
        if let Some(line) = text.lines().find(wanted) {
            return line.to_owned();
        }
        assert!(Instant::now() < deadline, "no {name} {labels:?} {value} in {text}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn scrape(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let request = b"GET /stats/prometheus HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.expect("written");
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.expect("text");
    answer
}
