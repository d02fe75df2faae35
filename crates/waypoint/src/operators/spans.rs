//! Traces: a request's place in one, and the way of finished spans to a collector (OTLP over HTTP, protobuf).
//!
//! No request waits for any of this: a span that finds no place in the queue is counted and dropped.

use std::sync::{Arc, atomic::Ordering};

use ambit_mesh::view::Tracing;
use ambit_telemetry::{
    metrics::SpanCounts,
    trace::{
        SpanPlace, TraceContext, export as encoded,
        otlp::{ExportTraceServiceResponse, Span},
    },
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ended::Traced;
use crate::{
    custom,
    limits::{
        EXPORT_BACKOFF, EXPORT_GATHERING, MAX_COLLECTOR_ANSWER_BYTES, MAX_EXPORT_TRIES, MAX_QUEUED_SPANS,
        MAX_SPANS_PER_EXPORT, MAX_TRACE_STATE_BYTES,
    },
    random::Random,
    record::Entry,
    session::Session,
    shared::Shared,
    upstream::describe,
};

/// The spans of one waypoint that wait for a collector.
#[derive(Debug)]
pub(crate) struct Spans {
    sender: mpsc::Sender<Waiting>,
    counts: Arc<SpanCounts>,
    /// What waits is sent, then there will be no more.
    pub(crate) finish: CancellationToken,
}

/// A span, and where it goes.
#[derive(Debug)]
pub(crate) struct Waiting {
    tracing: Arc<Tracing>,
    span: Span,
}

/// Gives the request its place in a trace: that of its `traceparent`, or at the beginning of a new one. The application gets
/// this span as its parent. A header that can't be believed is replaced, and `tracestate` with it.
pub(crate) fn begin<B>(session: &Session, tracing: &Arc<Tracing>, request: &mut Request<B>, entry: &mut Entry) {
    let random = &session.shared.random;
    let headers = request.headers_mut();
    let parent = {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let (first, second) = (values.next(), values.next());
        first.filter(|_| second.is_none()).and_then(|value| TraceContext::parse(value.as_bytes()))
    };
    let span_id = not_zero(random).to_be_bytes();
    let context = match parent {
        Some(parent) => TraceContext { span_id, ..parent },
        None => {
            headers.remove(TRACESTATE);
            let id = u128::from(not_zero(random)) << 64 | u128::from(random.next());
            TraceContext { trace_id: id.to_be_bytes(), span_id, sampled: tracing.draws(random.next()) }
        }
    };
    // Hexadecimal digits and dashes.
    if let Ok(value) = HeaderValue::try_from(context.to_string()) {
        headers.insert(TRACEPARENT, value);
    }
    entry.placed();
    if context.sampled {
        let place = SpanPlace { context, parent: parent.map(|parent| parent.span_id), state: state(headers) };
        let (tracing, spans) = (Arc::clone(tracing), Arc::clone(&session.shared.spans));
        entry.trace(Traced { tracing, place, spans }, || session.exchange());
    }
}

/// Sends what waits until it is told to finish, or nobody can send more.
pub(crate) async fn export(shared: Arc<Shared>, mut queue: mpsc::Receiver<Waiting>) {
    let Spans { counts, finish, .. } = &*shared.spans;
    let (mut next, mut failing) = (None, false);
    loop {
        let first = match next.take() {
            Some(first) => Some(first),
            None => tokio::select! {
                biased;
                first = queue.recv() => first,
                () = finish.cancelled() => None,
            },
        };
        let Some(Waiting { tracing, span }) = first else { return };
        let mut spans = vec![span];
        next = gather(&mut queue, finish, &tracing, &mut spans).await;
        let number = spans.len() as u64;
        match send(&shared, &tracing, spans).await {
            Ok(refused) => {
                failing = false;
                let refused = refused.min(number);
                counts.exported.fetch_add(number - refused, Ordering::Relaxed);
                counts.failed.fetch_add(refused, Ordering::Relaxed);
            }
            Err(reason) => {
                counts.failed.fetch_add(number, Ordering::Relaxed);
                if !failing {
                    tracing::warn!(waypoint = %shared.name, collector = %tracing.collector.name, %reason, "spans are lost");
                }
                failing = true;
                if finish.is_cancelled() {
                    return;
                }
            }
        }
    }
}

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");

/// Why spans weren't taken.
struct NotTaken {
    reason: String,
    /// They may be another time.
    is_passing: bool,
}

/// More spans for the same collector; what is returned is for another.
async fn gather(
    queue: &mut mpsc::Receiver<Waiting>,
    finish: &CancellationToken,
    tracing: &Arc<Tracing>,
    spans: &mut Vec<Span>,
) -> Option<Waiting> {
    let enough = tokio::time::sleep(EXPORT_GATHERING);
    tokio::pin!(enough);
    while spans.len() < MAX_SPANS_PER_EXPORT {
        let more = tokio::select! {
            biased;
            more = queue.recv() => more?,
            () = &mut enough => return None,
            () = finish.cancelled() => return None,
        };
        if !Arc::ptr_eq(&more.tracing, tracing) {
            return Some(more);
        }
        spans.push(more.span);
    }
    None
}

/// Sends spans, several times if need be; returns how many the collector refused.
async fn send(shared: &Shared, tracing: &Tracing, spans: Vec<Span>) -> Result<u64, String> {
    let service = format!("{}.{}", shared.config.name, shared.config.namespace);
    let body = Bytes::from(encoded(&service, env!("CARGO_PKG_VERSION"), spans));
    let finish = &shared.spans.finish;
    let mut backoff = EXPORT_BACKOFF;
    let mut tries = 0;
    loop {
        tries += 1;
        let timeout = tracing.collector.timeout;
        let posted = tokio::time::timeout(timeout, post(shared, tracing, body.clone())).await;
        let failure = match posted {
            Ok(Ok(refused)) => return Ok(refused),
            Ok(Err(failure)) => failure,
            Err(_elapsed) => NotTaken { reason: "no answer in time".to_owned(), is_passing: true },
        };
        if !failure.is_passing || tries >= MAX_EXPORT_TRIES || finish.is_cancelled() {
            return Err(failure.reason);
        }
        tokio::select! {
            () = tokio::time::sleep(backoff) => {}
            () = finish.cancelled() => {}
        }
        backoff *= 2;
    }
}

/// One request, on a connection of its own: tunnels to a collector in the mesh share one connection anyway, and nothing
/// stays open that a drain would have to wait for.
async fn post(shared: &Shared, tracing: &Tracing, body: Bytes) -> Result<u64, NotTaken> {
    let passing = |reason: String| NotTaken { reason, is_passing: true };
    let view = shared.store.load();
    let stream = custom::connect(shared, &view, &tracing.collector).await.map_err(passing)?;
    let broken = |error: hyper::Error| passing(describe(&error));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let mut request = Request::post(tracing.path.clone()).body(Full::new(body)).map_err(|error| {
        let reason = error.to_string();
        NotTaken { reason, is_passing: false }
    })?;
    let headers = request.headers_mut();
    headers.extend(tracing.headers.clone());
    headers.insert(header::CONTENT_TYPE, PROTOBUF);
    headers.insert(header::HOST, tracing.authority.clone());
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(broken)?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_COLLECTOR_ANSWER_BYTES).collect().await;
        Ok::<_, NotTaken>((head.status, body.map(http_body_util::Collected::to_bytes).unwrap_or_default()))
    };
    tokio::pin!(connection);
    tokio::pin!(exchange);
    let (status, answer) = tokio::select! {
        answered = &mut exchange => answered?,
        ended = &mut connection => {
            ended.map_err(broken)?;
            exchange.await?
        }
    };
    match status {
        _ if status.is_success() => {
            let answer = ExportTraceServiceResponse::decode(answer).unwrap_or_default();
            let refused = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
            Ok(u64::try_from(refused).unwrap_or(0))
        }
        _ => {
            let is_passing = [
                StatusCode::TOO_MANY_REQUESTS,
                StatusCode::BAD_GATEWAY,
                StatusCode::SERVICE_UNAVAILABLE,
                StatusCode::GATEWAY_TIMEOUT,
            ]
            .contains(&status);
            Err(NotTaken { reason: format!("it answered status {}", status.as_u16()), is_passing })
        }
    }
}

/// What other tracing systems said, as it goes on anyway.
fn state(headers: &HeaderMap) -> String {
    let values: Vec<_> = headers.get_all(TRACESTATE).iter().filter_map(|value| value.to_str().ok()).collect();
    let state = values.join(",");
    if state.len() <= MAX_TRACE_STATE_BYTES { state } else { String::new() }
}

fn not_zero(random: &Random) -> u64 {
    random.next().max(1)
}

// === impl Spans ===

impl Spans {
    pub(crate) fn new(counts: &Arc<SpanCounts>) -> (Arc<Self>, mpsc::Receiver<Waiting>) {
        let (sender, receiver) = mpsc::channel(MAX_QUEUED_SPANS);
        (Arc::new(Self { sender, counts: Arc::clone(counts), finish: CancellationToken::new() }), receiver)
    }

    /// Never waits.
    pub(crate) fn submit(&self, tracing: &Arc<Tracing>, span: Span) {
        if self.sender.try_send(Waiting { tracing: Arc::clone(tracing), span }).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use ambit_mesh::view::{Ask, Authorizer};
    use ambit_telemetry::metrics::WaypointMetrics;
    use http::Uri;

    use super::*;

    fn tracing() -> Arc<Tracing> {
        let collector = Authorizer {
            name: "collector".into(),
            namespace: None,
            host: "collector".into(),
            port: 4318,
            mesh_only: false,
            timeout: Duration::from_secs(1),
            fail_open: false,
            status_on_error: 403,
            body: None,
            ask: Ask::Grpc,
        };
        let (authority, path) = (HeaderValue::from_static("collector:4318"), Uri::from_static("/v1/traces"));
        let headers = HeaderMap::new();
        Arc::new(Tracing { collector: Arc::new(collector), authority, path, headers, sampled: 100_000 })
    }

    // Not a test of tokio's: there is no runtime here in which anything could wait.
    #[test]
    fn what_finds_no_place_in_the_queue_is_dropped_and_counted() {
        let metrics = WaypointMetrics::new("test");
        let (spans, mut queue) = Spans::new(metrics.spans());
        let tracing = tracing();
        let named = |number: usize| Span { name: number.to_string(), ..Span::default() };
        for number in 0..MAX_QUEUED_SPANS + 3 {
            spans.submit(&tracing, named(number));
        }
        assert_eq!((queue.len(), spans.counts.dropped.load(Ordering::Relaxed)), (MAX_QUEUED_SPANS, 3));
        let shown = metrics.encode().expect("text");
        assert!(shown.lines().any(|line| line == "ambit_trace_spans_dropped_total 3"), "{shown}");
        // The newest are dropped, and what is taken out makes room.
        assert_eq!(queue.try_recv().expect("a span").span.name, "0");
        spans.submit(&tracing, named(MAX_QUEUED_SPANS + 3));
        assert_eq!(spans.counts.dropped.load(Ordering::Relaxed), 3);
        let last = std::iter::from_fn(|| queue.try_recv().ok()).last().expect("more");
        assert_eq!(last.span.name, (MAX_QUEUED_SPANS + 3).to_string());
        // Nobody takes any more: dropped as well.
        drop(queue);
        spans.submit(&tracing, named(0));
        assert_eq!(spans.counts.dropped.load(Ordering::Relaxed), 4);
    }
}
