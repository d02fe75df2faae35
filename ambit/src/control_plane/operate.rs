//! What operators see of a control plane: `/metrics`.

use std::time::Duration;

use ambit_control_plane::authority::Leadership;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

/// Longest life of a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Format of metrics.
const OPEN_METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is asked for at a scrape.
#[derive(Clone, Debug)]
pub struct Monitor {
    pending: watch::Receiver<Vec<&'static str>>,
    problem: watch::Receiver<Option<String>>,
    leadership: Leadership,
}

/// Answers until `stop`.
pub async fn serve(listener: TcpListener, monitor: Monitor, stop: CancellationToken) {
    let handler = move |request: Request<Incoming>| {
        let response = monitor.respond(request.method(), request.uri().path());
        async move { response }
    };
    ambit_admin::serve(vec![listener], handler, CONNECTION_TIMEOUT, stop).await;
}

// === impl Monitor ===

impl Monitor {
    pub fn new(
        pending: watch::Receiver<Vec<&'static str>>,
        problem: watch::Receiver<Option<String>>,
        leadership: Leadership,
    ) -> Self {
        Self { pending, problem, leadership }
    }

    fn respond(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        match (path, method) {
            ("/metrics", &Method::GET) => ambit_admin::reply(StatusCode::OK, OPEN_METRICS, self.metrics()),
            ("/metrics", _) => ambit_admin::text(StatusCode::METHOD_NOT_ALLOWED, ""),
            _ => ambit_admin::text(StatusCode::NOT_FOUND, "metrics are at /metrics\n"),
        }
    }

    fn metrics(&self) -> String {
        let gauge = |name: &str, help: &str, value: usize| {
            format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n")
        };
        [
            gauge("ambit_control_plane_leader", "1 if this replica writes.", usize::from(self.leadership.is_leader())),
            gauge(
                "ambit_control_plane_kinds_pending",
                "Kinds that haven't been read yet; nobody is served before all have.",
                self.pending.borrow().len(),
            ),
            gauge(
                "ambit_control_plane_ca_files_refused",
                "1 while the newest files of the CA aren't in force.",
                usize::from(self.problem.borrow().is_some()),
            ),
        ]
        .concat()
    }
}
