//! Distributed tracing: the context that goes from one service to the next, spans, and how they are written for a collector.
//! Sending them is the proxies' business.

mod context;
pub mod otlp;

use std::time::{SystemTime, UNIX_EPOCH};

use ambit_policy::Verdict;
use prost::Message;

pub use self::context::TraceContext;
use self::otlp::{
    Code, ExportTraceServiceRequest, KeyValue, Kind, Resource, ResourceSpans, Scope, ScopeSpans, Span, Status, Value,
};
use crate::{DecisionRecord, Exchange};

/// Where a request's span stands in its trace.
#[derive(Clone, Debug)]
pub struct SpanPlace {
    /// The trace, and the span itself.
    pub context: TraceContext,
    /// The caller's span; nothing if the trace begins here.
    pub parent: Option<[u8; 8]>,
    /// `tracestate`
    pub state: String,
}

/// The span of a request that has ended, with Envoy's and Istio's attributes, and the decision.
#[must_use]
pub fn span(record: &DecisionRecord, exchange: &Exchange, place: &SpanPlace) -> Span {
    let SpanPlace { context, parent, state } = place;
    let start = nanoseconds(record.time);
    let duration = u64::try_from(exchange.duration.as_nanos()).unwrap_or(u64::MAX);
    let status = record.status.unwrap_or(0);
    let failed = status >= 500 || status == 0;
    let message = if failed { record.reason.to_string() } else { String::new() };
    Span {
        trace_id: context.trace_id.to_vec(),
        span_id: context.span_id.to_vec(),
        trace_state: state.clone(),
        parent_span_id: parent.map(|id| id.to_vec()).unwrap_or_default(),
        name: name(record, exchange),
        kind: Kind::Server as i32,
        start_time_unix_nano: start,
        end_time_unix_nano: start.saturating_add(duration),
        attributes: attributes(record, exchange, failed),
        status: failed.then_some(Status { message, code: Code::Error as i32 }),
        flags: u32::from(context.sampled),
    }
}

/// What is sent to a collector: these spans, made by a waypoint of this name (`service.name`) and version.
#[must_use]
pub fn export(service_name: &str, version: &str, spans: Vec<Span>) -> Vec<u8> {
    let resource = Resource { attributes: vec![KeyValue::text("service.name", service_name)] };
    let scope = Scope { name: "ambit".to_owned(), version: version.to_owned() };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
    let resource_spans = vec![ResourceSpans { resource: Some(resource), scope_spans }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

/// Istio's: host and port, and that all its paths are meant.
fn name(record: &DecisionRecord, exchange: &Exchange) -> String {
    let address = record.destination.address;
    match (&exchange.hostname, address) {
        (Some(hostname), Some(address)) => format!("{hostname}:{}/*", address.port()),
        (None, Some(address)) => format!("{address}/*"),
        _ => "/*".to_owned(),
    }
}

fn attributes(record: &DecisionRecord, exchange: &Exchange, failed: bool) -> Vec<KeyValue> {
    let mut all = vec![KeyValue::text("component", "proxy")];
    let mut text = |key: &str, value: Option<&str>| all.extend(value.map(|value| KeyValue::text(key, value)));
    let url = record.path.as_ref().map(|path| {
        let authority = exchange.authority.as_deref().unwrap_or_default();
        format!("http://{authority}{path}")
    });
    text("http.method", record.method.as_deref());
    text("http.url", url.as_deref());
    text("http.protocol", Some(record.protocol));
    text("user_agent", exchange.user_agent.as_deref());
    text("guid:x-request-id", exchange.request_id.as_deref());
    text("response_flags", Some(exchange.flags));
    text("http.status_code", Some(&record.status.unwrap_or(0).to_string()));
    text("peer.address", record.source.address.map(|address| address.ip().to_string()).as_deref());
    text("upstream_address", exchange.endpoint.map(|address| address.to_string()).as_deref());
    text("source.principal", record.source.identity.as_ref().map(ToString::to_string).as_deref());
    text("source.workload", record.source.workload.as_deref());
    text("destination.service", record.destination.service.as_deref());
    text("destination.workload", record.destination.workload.as_deref());
    text("ambit.verdict", Some(if record.verdict == Verdict::Allow { "allow" } else { "deny" }));
    text("ambit.policy", record.policy.as_ref().map(ToString::to_string).as_deref());
    text("ambit.rule", record.rule.map(|rule| rule.to_string()).as_deref());
    text("ambit.reason", Some(&record.reason));
    all.push(KeyValue::number("request_size", exchange.received_bytes));
    all.push(KeyValue::number("response_size", exchange.sent_bytes));
    if failed {
        all.push(KeyValue::new("error", Value::Bool(true)));
    }
    all
}

fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
