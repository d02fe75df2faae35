//! The administration port of a waypoint.

use std::{convert::Infallible, sync::Arc};

use ambit_admin::{check_origin, logging, text};
use ambit_telemetry::{log::LevelControl, metrics::OPENMETRICS_TYPE};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, broadcast::error::RecvError},
};
use tokio_util::sync::CancellationToken;

use super::{Reader, dump};
use crate::{
    limits::{MAX_ADMIN_DUMPS, MAX_STREAM_TIME},
    shared::Shared,
};

/// Who reaches an administration port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// This machine or pod only: everything is shown, to whoever asks under a local name and isn't a web page.
    Loopback,
    /// The network: readiness and metrics, nothing else.
    Network,
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// What is shown, and its content type.
type Made = (Vec<u8>, &'static str);

#[derive(Clone)]
struct Admin {
    shared: Arc<Shared>,
    exposure: Exposure,
    levels: Option<LevelControl>,
    dumps: Arc<Semaphore>,
}

/// Serves until it is to be closed.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    listeners: Vec<TcpListener>,
    exposure: Exposure,
    levels: Option<LevelControl>,
    until: CancellationToken,
) {
    let admin = Admin { shared, exposure, levels, dumps: Arc::new(Semaphore::new(MAX_ADMIN_DUMPS)) };
    let handler = move |request: Request<Incoming>| {
        let (admin, (head, _)) = (admin.clone(), request.into_parts());
        async move { admin.answer(&head).await }
    };
    ambit_admin::serve(listeners, handler, MAX_STREAM_TIME, until).await;
}

// === impl Admin ===

impl Admin {
    async fn answer(&self, request: &Parts) -> Answer {
        if self.exposure == Exposure::Loopback
            && let Err(refusal) = check_origin(&request.headers)
        {
            return whole(text(StatusCode::FORBIDDEN, refusal));
        }
        let (path, method) = (request.uri.path(), &request.method);
        let is_logging = path == "/logging";
        let shown = match path {
            "/healthz/ready" | "/stats/prometheus" | "/metrics" => true,
            "/config_dump" | "/debug/decisions" => self.exposure == Exposure::Loopback,
            "/logging" => self.exposure == Exposure::Loopback && self.levels.is_some(),
            _ => false,
        };
        if !shown {
            return whole(text(StatusCode::NOT_FOUND, "not found\n"));
        }
        if (is_logging && method != Method::POST) || (!is_logging && method != Method::GET && method != Method::HEAD) {
            let allowed = if is_logging { "POST" } else { "GET, HEAD" };
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("use {allowed}\n"));
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
            return whole(response);
        }
        match path {
            "/healthz/ready" => whole(self.ready()),
            "/config_dump" => whole(self.large(|shared| Ok((dump::config(shared)?, "application/json"))).await),
            "/debug/decisions" => self.decisions(),
            "/logging" => {
                let query = request.uri.query().unwrap_or_default();
                let response = self.levels.as_ref().map(|levels| logging(levels, query));
                whole(response.unwrap_or_else(|| text(StatusCode::NOT_FOUND, "not found\n")))
            }
            _ => whole(self.large(metrics).await),
        }
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        let Shared { config, drain, store, certificates, .. } = &*self.shared;
        if drain.is_cancelled() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "draining\n");
        }
        if store.load().waypoint(&config.namespace, &config.name).is_none() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "no configuration yet\n");
        }
        match certificates.current(&config.identity) {
            Some(_) => text(StatusCode::OK, "ready\n"),
            None => text(StatusCode::SERVICE_UNAVAILABLE, "no certificate yet\n"),
        }
    }

    /// Made on a thread of its own, and only so many at a time: it can be large.
    async fn large(&self, make: fn(&Shared) -> Result<Made, String>) -> Response<Full<Bytes>> {
        let Ok(_place) = self.dumps.try_acquire() else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "others are under way; try again\n");
        };
        let shared = Arc::clone(&self.shared);
        match tokio::task::spawn_blocking(move || make(&shared)).await {
            Ok(Ok((body, kind))) => ambit_admin::reply(StatusCode::OK, kind, body),
            Ok(Err(error)) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "it can't be shown\n"),
        }
    }

    /// Decision records as they come, one line of JSON each. A reader that is too slow misses some and is told how many.
    fn decisions(&self) -> Answer {
        let Some(reader) = self.shared.operators.reader() else {
            return whole(text(StatusCode::SERVICE_UNAVAILABLE, "too many are reading already\n"));
        };
        let until = self.shared.drain.clone();
        let lines = stream::unfold((reader, until), |(mut reader, until)| async move {
            let line = next_line(&mut reader, &until).await?;
            Some((Ok(Frame::data(line)), (reader, until)))
        });
        let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

async fn next_line(reader: &mut Reader, until: &CancellationToken) -> Option<Bytes> {
    let record = tokio::select! {
        () = until.cancelled() => return None,
        record = reader.records.recv() => record,
    };
    let mut line = match record {
        Ok(record) => serde_json::to_vec(&*record).ok()?,
        Err(RecvError::Lagged(missed)) => {
            reader.operators.metrics.dropped_from_stream(missed);
            format!("{{\"dropped\":{missed}}}").into_bytes()
        }
        Err(RecvError::Closed) => return None,
    };
    line.push(b'\n');
    Some(line.into())
}

fn metrics(shared: &Shared) -> Result<(Vec<u8>, &'static str), String> {
    shared.clusters.show();
    let text = shared.operators.metrics.encode().map_err(|error| error.to_string())?;
    Ok((text.into_bytes(), OPENMETRICS_TYPE))
}

fn whole(response: Response<Full<Bytes>>) -> Answer {
    response.map(BodyExt::boxed_unsync)
}
