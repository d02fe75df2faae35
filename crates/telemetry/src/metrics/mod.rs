//! The metrics of a node proxy, under Istio's names (`spec/ztunnel.md` 14), and Ambit's own beside them.
//!
//! Counting never blocks and never fails: label sets are bounded in number, and what is past the bound is counted under
//! unknown workloads, which `ambit_metric_overflows_total` tells.

mod control;
mod dns;
mod encode;
mod process;
mod refusal;
mod series;
mod traffic;
mod waypoint;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, registry::Registry};

use self::encode::{gauge, single_counter};
pub use self::{
    control::{Pods, Revocation, Xds, XdsEnd},
    dns::{Dns, DnsLabels, DnsProtocol, DnsQuery, QueryType},
    process::Runtimes,
    refusal::{Refusal, Refusals, Usage},
    traffic::{Flag, OpenConnection, OpenSocket, Party, Reporter, ServiceLabels, Traffic, TrafficLabels},
    waypoint::{
        CarriedConnection, CarriedProtocol, CountedCluster, CountedDecisions, CountedMessages, CountedRequests,
        DecisionLabels, RequestLabels, SpanCounts, WaypointMetrics,
    },
};

/// Type of the body if the scraper asks for OpenMetrics.
pub const OPENMETRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of a node proxy. Make one, and hand its parts to those who count.
pub struct Metrics {
    registry: Registry,
    values: Arc<Values>,
}

/// The parts of [`Metrics`].
#[derive(Debug)]
pub struct Values {
    build: (String, String),
    /// Connections and bytes.
    pub traffic: Arc<Traffic>,
    /// DNS queries.
    pub dns: Arc<Dns>,
    /// The exchange with the control plane.
    pub xds: Xds,
    /// The pods that are served.
    pub pods: Pods,
    /// What revocation lists do.
    pub revocation: Revocation,
    /// What was refused, and the budgets.
    pub refusals: Refusals,
    /// The data plane's runtimes.
    pub runtimes: Runtimes,
    /// Lines of the log that were dropped because the writer was behind.
    pub dropped_log_lines: Arc<AtomicU64>,
    /// Decision records that were dropped because whoever writes them was behind.
    pub dropped_records: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Source(Arc<Values>);

// === impl Metrics ===

impl Metrics {
    /// Metrics that are all zero. `component` (`ztunnel`) and `tag` (the version) are shown by `istio_build`.
    #[must_use]
    pub fn new(component: &str, tag: &str) -> Arc<Self> {
        let values = Arc::new(Values {
            build: (component.to_owned(), tag.to_owned()),
            traffic: Traffic::new(),
            dns: Dns::new(),
            xds: Xds::new(),
            pods: Pods::default(),
            revocation: Revocation::default(),
            refusals: Refusals::new(),
            runtimes: Runtimes::default(),
            dropped_log_lines: Arc::default(),
            dropped_records: Arc::default(),
        });
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Source(Arc::clone(&values))));
        Arc::new(Self { registry, values })
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

impl std::ops::Deref for Metrics {
    type Target = Values;

    fn deref(&self) -> &Values {
        &self.values
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("values", &self.values).finish_non_exhaustive()
    }
}

// === impl Source ===

impl Collector for Source {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Values {
            build,
            traffic,
            dns,
            xds,
            pods,
            revocation,
            refusals,
            runtimes,
            dropped_log_lines,
            dropped_records,
        } = &*self.0;
        let encoder = &mut encoder;
        let build = [([("component", build.0.as_str()), ("tag", build.1.as_str())], 1)];
        gauge(encoder, "istio_build", "Istio component build info", build)?;
        traffic.encode(encoder)?;
        dns.encode(encoder)?;
        xds.encode(encoder)?;
        pods.encode(encoder)?;
        revocation.encode(encoder)?;
        refusals.encode(encoder)?;
        runtimes.encode(encoder)?;
        let help = "Log lines dropped because the log's writer was behind";
        single_counter(encoder, "ambit_log_lines_dropped", help, dropped_log_lines.load(Ordering::Relaxed))?;
        let help = "Decision records dropped, and so missing in the access log, because their writer was behind";
        single_counter(encoder, "ambit_decision_records_dropped", help, dropped_records.load(Ordering::Relaxed))?;
        let help = "Connections and queries counted under unknown workloads because there were too many label sets";
        single_counter(encoder, "ambit_metric_overflows", help, traffic.overflowed().saturating_add(dns.overflowed()))?;
        process::encode(encoder)
    }
}
