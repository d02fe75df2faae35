//! The metrics port.

use std::{io::Write, sync::Arc};

use ambit_telemetry::metrics::{Metrics, OPENMETRICS_TYPE};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

use super::http::{reply, serve, text};
use crate::limits::MAX_ADMIN_DUMPS;

/// Serves `/metrics` and `/stats/prometheus` until told to stop.
pub async fn serve_metrics(listeners: Vec<TcpListener>, metrics: Arc<Metrics>, until: CancellationToken) {
    let scrapes = Arc::new(Semaphore::new(MAX_ADMIN_DUMPS));
    let handler = move |request: Request<_>| {
        let (metrics, scrapes) = (Arc::clone(&metrics), Arc::clone(&scrapes));
        async move { answer(&request, &metrics, &scrapes).await }
    };
    serve(listeners, handler, until).await;
}

async fn answer<B>(request: &Request<B>, metrics: &Arc<Metrics>, scrapes: &Semaphore) -> Response<Full<Bytes>> {
    match (request.uri().path(), request.method()) {
        ("/metrics" | "/stats/prometheus", &(Method::GET | Method::HEAD)) => {}
        ("/metrics" | "/stats/prometheus", _) => return text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n"),
        _ => return text(StatusCode::NOT_FOUND, "not found\n"),
    }
    // The text can be large: only so many are in memory at a time.
    let Ok(_place) = scrapes.acquire().await else { return text(StatusCode::SERVICE_UNAVAILABLE, "") };
    let (metrics, gzip) = (Arc::clone(metrics), accepts(request.headers(), header::ACCEPT_ENCODING, "gzip"));
    let encoded = tokio::task::spawn_blocking(move || {
        let text = metrics.encode().map_err(|error| error.to_string())?.into_bytes();
        if gzip { compressed(&text).map_err(|error| error.to_string()) } else { Ok(text) }
    });
    let body = match encoded.await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        Err(_) => return text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics can't be written\n"),
    };
    let openmetrics = accepts(request.headers(), header::ACCEPT, "application/openmetrics-text");
    let mut response =
        reply(StatusCode::OK, if openmetrics { OPENMETRICS_TYPE } else { "text/plain; charset=utf-8" }, body);
    if gzip {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept, accept-encoding"));
    response
}

/// True if a list header names this value, other than to refuse it.
fn accepts(headers: &HeaderMap, name: header::HeaderName, wanted: &str) -> bool {
    let lists = headers.get_all(name);
    let mut items = lists.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    items.any(|item| {
        let mut parts = item.split(';').map(str::trim);
        let is_wanted = parts.next().is_some_and(|value| value.eq_ignore_ascii_case(wanted));
        is_wanted && !parts.any(|part| part.strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0)))
    })
}

fn compressed(text: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 8), Compression::fast());
    encoder.write_all(text)?;
    encoder.finish()
}
