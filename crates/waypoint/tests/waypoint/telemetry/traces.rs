//! W3C trace context, and spans on their way to a collector.

use std::time::Duration;

use ambit_telemetry::trace::TraceContext;

use super::{
    collector::{Collector, attribute},
    configure, counted, operators, tracing,
};
use crate::{
    backend::Raw,
    mesh::{Mesh, Shape, exchange, header, status, traces_only},
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn post(headers: &str) -> String {
    format!(
        "POST /v1/traces?key=secret HTTP/1.1\r\nhost: mlflow\r\nuser-agent: test\r\n{headers}content-length: 3\r\n\r\nabc"
    )
}

/// The context that the application got with its last request.
fn received(app: &Raw) -> TraceContext {
    let head = app.seen().last().expect("a request").to_ascii_lowercase();
    let value = header(&head, "traceparent").unwrap_or_else(|| panic!("no traceparent in {head}"));
    TraceContext::parse(value.as_bytes()).expect("a valid one")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_goes_on_through_the_waypoint_and_its_span_to_the_collector() {
    let (app, collector) = (Raw::start().await, Collector::start(200).await);
    let mesh = Mesh::start(Shape::of(app.address)).await;
    configure(&mesh, &traces_only(), Some(tracing(collector.address, 0)));
    let mut tunnel = mesh.tunnel("otel-collector").await;
    let sent = format!("traceparent: 00-{TRACE}-{PARENT}-01\r\ntracestate: a=1\r\ntracestate: b=2\r\n");
    assert_eq!(status(&exchange(&mut tunnel, &post(&sent)).await.0), 200);

    let context = received(&app);
    assert_eq!((hex(&context.trace_id), context.sampled), (TRACE.to_owned(), true));
    assert_ne!(hex(&context.span_id), PARENT, "the application's parent is the waypoint's span");
    let head = app.seen().last().expect("a request").clone();
    assert!(head.contains("tracestate: a=1") && head.contains("tracestate: b=2"), "{head}");

    let spans = collector.spans(1).await;
    let [span] = &spans[..] else { panic!("one span: {spans:?}") };
    assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.to_owned(), PARENT.to_owned()));
    assert_eq!((hex(&span.span_id), span.trace_state.as_str()), (hex(&context.span_id), "a=1,b=2"));
    assert_eq!((span.name.as_str(), span.kind), ("mlflow.kagenti-system.svc.cluster.local:5000/*", 2));
    assert!(span.start_time_unix_nano > 0 && span.end_time_unix_nano > span.start_time_unix_nano);
    for (name, value) in [
        ("http.method", "POST"),
        ("http.url", "http://mlflow/v1/traces"),
        ("http.protocol", "HTTP/1.1"),
        ("http.status_code", "200"),
        ("user_agent", "test"),
        ("response_flags", "-"),
        ("request_size", "3"),
        ("response_size", "2"),
        ("source.principal", "spiffe://cluster.local/ns/kagenti-system/sa/otel-collector"),
        ("ambit.verdict", "allow"),
        ("ambit.policy", "kagenti-system/mlflow"),
        ("ambit.rule", "0"),
    ] {
        assert_eq!(attribute(span, name), value, "{name}");
    }
    let id = header(&head.to_ascii_lowercase(), "x-request-id").expect("an identifier").to_owned();
    assert_eq!(attribute(span, "guid:x-request-id"), id, "the same one that the application got");
    let (headers, request) = collector.first();
    assert_eq!(headers["content-type"], "application/x-protobuf");
    assert_eq!(headers["x-mlflow-experiment-id"], "0");
    let resource = request.resource_spans[0].resource.clone().expect("a resource");
    assert!(format!("{resource:?}").contains("waypoint.kagenti-system"), "{resource:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_begins_here_by_the_rate_and_the_callers_no_stays_no() {
    let (app, collector) = (Raw::start().await, Collector::start(200).await);
    let mesh = Mesh::start(Shape::of(app.address)).await;
    let mut tunnel = mesh.tunnel("otel-collector").await;

    configure(&mesh, &traces_only(), Some(tracing(collector.address, 0)));
    exchange(&mut tunnel, &post("tracestate: a=1\r\n")).await;
    let unsampled = received(&app);
    assert!(!unsampled.sampled);
    assert!(!app.seen().last().expect("a request").contains("tracestate"), "the state of no trace");

    configure(&mesh, &traces_only(), Some(tracing(collector.address, 100_000)));
    exchange(&mut tunnel, &post("")).await;
    let sampled = received(&app);
    assert!(sampled.sampled && sampled.trace_id != unsampled.trace_id);

    exchange(&mut tunnel, &post(&format!("traceparent: 00-{TRACE}-{PARENT}-00\r\n"))).await;
    let declined = received(&app);
    assert_eq!((hex(&declined.trace_id), declined.sampled), (TRACE.to_owned(), false));

    // A denial is part of the trace, too; nothing of it reaches the application.
    let (head, _) = exchange(&mut tunnel, "GET /secret HTTP/1.1\r\nhost: mlflow\r\n\r\n").await;
    assert_eq!(status(&head), 403);
    let spans = collector.spans(2).await;
    assert_eq!(spans.len(), 2, "neither what wasn't drawn nor what the caller declined: {spans:?}");
    assert_eq!(hex(&spans[0].trace_id), hex(&sampled.trace_id));
    assert!(spans[0].parent_span_id.is_empty());
    let denied = &spans[1];
    assert_eq!(
        (attribute(denied, "http.status_code"), attribute(denied, "ambit.verdict")),
        ("403".into(), "deny".into())
    );
    assert_eq!(denied.status, None, "a denial is no failure");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_context_that_cant_be_believed_is_replaced_and_none_is_touched_where_nothing_is_traced() {
    let (app, collector) = (Raw::start().await, Collector::start(200).await);
    let mesh = Mesh::start(Shape::of(app.address)).await;
    let mut tunnel = mesh.tunnel("otel-collector").await;
    let odd = [
        "traceparent: nonsense\r\n".to_owned(),
        format!("traceparent: 00-{}-{PARENT}-01\r\n", "0".repeat(32)),
        format!("traceparent: 00-{TRACE}-{PARENT}-01\r\ntraceparent: 00-{TRACE}-{PARENT}-01\r\n"),
    ];
    for headers in &odd {
        exchange(&mut tunnel, &post(&format!("{headers}tracestate: a=1\r\n"))).await;
        let head = app.seen().last().expect("a request").clone();
        assert!(head.contains(headers.lines().next().expect("a line")) && head.contains("tracestate: a=1"), "{head}");
    }
    configure(&mesh, &traces_only(), Some(tracing(collector.address, 0)));
    for headers in &odd {
        exchange(&mut tunnel, &post(&format!("{headers}tracestate: a=1\r\n"))).await;
        assert_ne!(hex(&received(&app).trace_id), TRACE, "{headers}");
        let head = app.seen().last().expect("a request").clone();
        assert!(!head.contains("tracestate"), "{head}");
        assert_eq!(head.matches("traceparent").count(), 1, "{head}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_gone_costs_requests_nothing_and_its_spans_are_counted() {
    let app = Raw::start().await;
    let gone = Collector::start(400).await;
    let mesh = Mesh::start(Shape::of(app.address)).await;
    let metrics = operators(&mesh).await;
    configure(&mesh, &traces_only(), Some(tracing(gone.address, 100_000)));
    let mut tunnel = mesh.tunnel("otel-collector").await;
    for _ in 0..3 {
        assert_eq!(status(&exchange(&mut tunnel, &post("")).await.0), 200);
    }
    counted(metrics, "ambit_trace_spans_failed_total", &[], 3).await;
    counted(metrics, "ambit_trace_spans_dropped_total", &[], 0).await;

    let taking = Collector::start(200).await;
    configure(&mesh, &traces_only(), Some(tracing(taking.address, 100_000)));
    assert_eq!(status(&exchange(&mut tunnel, &post("")).await.0), 200);
    taking.spans(1).await;
    counted(metrics, "ambit_trace_spans_exported_total", &[], 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_spans_are_sent_when_the_waypoint_drains() {
    let (app, collector) = (Raw::start().await, Collector::start(200).await);
    let mut mesh = Mesh::start(Shape::of(app.address)).await;
    configure(&mesh, &traces_only(), Some(tracing(collector.address, 100_000)));
    let mut tunnel = mesh.tunnel("otel-collector").await;
    assert_eq!(status(&exchange(&mut tunnel, &post("")).await.0), 200);
    drop(tunnel);
    mesh.waypoint.take().expect("running").drain(Duration::from_secs(5)).await;
    assert_eq!(collector.so_far().len(), 1, "sent before the drain was over");
}
