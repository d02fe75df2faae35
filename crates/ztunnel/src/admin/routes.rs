//! The administration port.

use std::{fmt, sync::Arc};

pub(super) use ambit_admin::level_request;
use ambit_admin::{check_origin, logging};
use ambit_telemetry::log::LevelControl;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

use super::http::{reply, serve, text};
use crate::limits::MAX_ADMIN_DUMPS;

/// What the administration port shows and does.
#[derive(Clone)]
pub struct Admin {
    dump: Arc<Dump>,
    levels: LevelControl,
    shut_down: Arc<dyn Fn() + Send + Sync>,
    dumps: Arc<Semaphore>,
}

type Dump = dyn Fn() -> Result<Vec<u8>, String> + Send + Sync;

const INDEX: &str = "<!DOCTYPE html>\n<title>Node proxy</title>\n<h1>Node proxy</h1>\n<ul>\n\
    <li><a href=\"/config_dump\">/config_dump</a>: what it knows and serves, as JSON</li>\n\
    <li>POST /logging: log levels (<code>?level=debug</code>, <code>?level=access=debug,dns=off</code>, \
    <code>?reset</code>)</li>\n\
    <li>POST /quitquitquit: drain and exit</li>\n</ul>\n";

/// Serves the administration port until told to stop. It belongs on loopback addresses only
/// ([`bind_loopback`](super::bind_loopback)).
pub async fn serve_admin(listeners: Vec<TcpListener>, admin: Admin, until: CancellationToken) {
    let handler = move |request| {
        let admin = admin.clone();
        async move { admin.answer(request).await }
    };
    serve(listeners, handler, until).await;
}

// === impl Admin ===

impl Admin {
    /// Shows what `dump` gives (JSON, see [`config_dump`](super::config_dump); it runs on a thread of its own), changes
    /// `levels`, and calls `shut_down` when asked to end.
    #[must_use]
    pub fn new(
        dump: impl Fn() -> Result<Vec<u8>, String> + Send + Sync + 'static,
        levels: LevelControl,
        shut_down: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let dumps = Arc::new(Semaphore::new(MAX_ADMIN_DUMPS));
        Self { dump: Arc::new(dump), levels, shut_down: Arc::new(shut_down), dumps }
    }

    /// Answers one request.
    async fn answer<B>(&self, request: Request<B>) -> Response<Full<Bytes>> {
        if let Err(refusal) = check_origin(request.headers()) {
            return text(StatusCode::FORBIDDEN, refusal);
        }
        match (request.uri().path(), request.method()) {
            ("/", _) => reply(StatusCode::OK, "text/html; charset=utf-8", INDEX),
            ("/config_dump", _) => self.config_dump().await,
            ("/logging", &Method::POST) => logging(&self.levels, request.uri().query().unwrap_or_default()),
            ("/quitquitquit", &Method::POST) => {
                (self.shut_down)();
                text(StatusCode::OK, "shutdown now\n")
            }
            ("/logging" | "/quitquitquit", _) => {
                let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "use POST\n");
                response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("POST"));
                response
            }
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    async fn config_dump(&self) -> Response<Full<Bytes>> {
        // A dump can be large: only so many are in memory at a time.
        let Ok(_place) = self.dumps.try_acquire() else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "other dumps are under way; try again\n");
        };
        let dump = Arc::clone(&self.dump);
        match tokio::task::spawn_blocking(move || dump()).await {
            Ok(Ok(json)) => reply(StatusCode::OK, "application/json", json),
            Ok(Err(error)) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("the dump failed: {error}\n")),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the dump failed\n"),
        }
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("levels", &self.levels).finish_non_exhaustive()
    }
}
