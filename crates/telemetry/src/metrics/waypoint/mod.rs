//! The metrics of a waypoint, under Istio's names (`spec/waypoint.md` 5.6), and its policies' counters beside them.
//!
//! Label sets are resolved once per connection, endpoint and outcome; counting a request is then a few atomic additions.

mod clusters;
mod decisions;
mod refusals;
mod requests;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, registry::Registry};

use self::{clusters::Clusters, decisions::Decisions, refusals::Refusals, requests::Requests};
pub use self::{
    clusters::CountedCluster,
    decisions::{CountedDecisions, DecisionLabels},
    requests::{CarriedConnection, CarriedProtocol, CountedMessages, CountedRequests, RequestLabels},
};
use super::encode::{gauge, single_counter};

/// All metrics of one waypoint.
pub struct WaypointMetrics {
    registry: Registry,
    values: Arc<Values>,
}

#[derive(Debug)]
struct Values {
    tag: String,
    requests: Arc<Requests>,
    decisions: Arc<Decisions>,
    clusters: Arc<Clusters>,
    refusals: Refusals,
    dropped_from_streams: AtomicU64,
    spans: Arc<SpanCounts>,
}

/// What became of spans.
#[derive(Debug, Default)]
pub struct SpanCounts {
    /// A collector took them.
    pub exported: AtomicU64,
    /// They found no place in the queue.
    pub dropped: AtomicU64,
    /// No collector took them.
    pub failed: AtomicU64,
}

#[derive(Debug)]
struct Source(Arc<Values>);

// === impl WaypointMetrics ===

impl WaypointMetrics {
    /// Metrics that are all zero; `istio_build` shows the version `tag`.
    #[must_use]
    pub fn new(tag: &str) -> Arc<Self> {
        let values = Arc::new(Values {
            tag: tag.to_owned(),
            requests: Requests::new(),
            decisions: Decisions::new(),
            clusters: Clusters::new(),
            refusals: Refusals::default(),
            dropped_from_streams: AtomicU64::new(0),
            spans: Arc::default(),
        });
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Source(Arc::clone(&values))));
        Arc::new(Self { registry, values })
    }

    /// The counters of requests with these labels.
    #[must_use]
    pub fn requests(&self, labels: RequestLabels) -> CountedRequests {
        self.values.requests.of(labels)
    }

    /// Counts a TCP connection as opened, and as closed when the returned value is dropped.
    #[must_use]
    pub fn connection(&self, labels: RequestLabels) -> CarriedConnection {
        self.values.requests.open(labels)
    }

    /// The counters of the messages of gRPC calls between these parties.
    #[must_use]
    pub fn messages(&self, labels: RequestLabels) -> CountedMessages {
        self.values.requests.messages(labels)
    }

    /// Shows what was refused for its form, by reason (`ambit_refused_total`); read at each scrape, so the reader must be
    /// quick.
    pub fn watch_refusals(&self, read: impl Fn() -> Vec<(&'static str, u64)> + Send + Sync + 'static) {
        self.values.refusals.watch(read);
    }

    /// What became of spans.
    #[must_use]
    pub fn spans(&self) -> &Arc<SpanCounts> {
        &self.values.spans
    }

    /// The counters of this outcome of a policy or rule.
    #[must_use]
    pub fn decisions(&self, labels: DecisionLabels) -> CountedDecisions {
        self.values.decisions.of(labels)
    }

    /// The counters of this cluster.
    #[must_use]
    pub fn cluster(&self, name: &str) -> CountedCluster {
        self.values.clusters.of(name)
    }

    /// Counts records that a reader of the live stream missed because it was slow.
    pub fn dropped_from_stream(&self, records: u64) {
        self.values.dropped_from_streams.fetch_add(records, Ordering::Relaxed);
    }

    /// What is counted, as OpenMetrics text.
    ///
    /// # Errors
    /// Never in practice: text can always be written to memory.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl fmt::Debug for WaypointMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaypointMetrics").field("values", &self.values).finish_non_exhaustive()
    }
}

// === impl Source ===

impl Collector for Source {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Values { tag, requests, decisions, clusters, refusals, dropped_from_streams, spans } = &*self.0;
        let encoder = &mut encoder;
        let build = [([("component", "waypoint"), ("tag", tag.as_str())], 1)];
        gauge(encoder, "istio_build", "Istio component build info", build)?;
        requests.encode(encoder)?;
        decisions.encode(encoder)?;
        clusters.encode(encoder)?;
        refusals.encode(encoder)?;
        let help = "Decision records that readers of the live stream missed because they were slow";
        let dropped = dropped_from_streams.load(Ordering::Relaxed);
        single_counter(encoder, "ambit_decision_stream_dropped", help, dropped)?;
        for (name, help, count) in [
            ("ambit_trace_spans_exported", "Spans that a collector took", &spans.exported),
            ("ambit_trace_spans_dropped", "Spans dropped because too many were waiting", &spans.dropped),
            ("ambit_trace_spans_failed", "Spans lost because no collector took them", &spans.failed),
        ] {
            single_counter(encoder, name, help, count.load(Ordering::Relaxed))?;
        }
        let overflows = [requests.overflowed(), decisions.overflowed(), clusters.overflowed()]
            .into_iter()
            .fold(0, u64::saturating_add);
        let help = "Label sets counted as `other` because there were too many";
        single_counter(encoder, "ambit_metric_overflows", help, overflows)
    }
}
