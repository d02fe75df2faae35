//! Requests and TCP connections, with Istio's labels.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ambit_api::SpiffeId;
use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder},
    metrics::MetricType,
};

use super::super::{
    Party, ServiceLabels,
    encode::{NoLabels, UNKNOWN, counter, label, or_unknown},
    series::{Series, SeriesSet},
};
use crate::limits::MAX_REQUEST_SERIES;

/// What is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CarriedProtocol {
    /// HTTP requests.
    Http,
    /// gRPC calls.
    Grpc,
    /// Connections that carry anything else.
    Tcp,
}

/// The labels of requests that ended the same way, or of a TCP connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestLabels {
    /// The client; its principal is the one that TLS proved.
    pub source: Party,
    /// The workload that was chosen, if one was.
    pub destination: Party,
    /// The service that was asked for.
    pub service: ServiceLabels,
    /// What is carried.
    pub protocol: CarriedProtocol,
    /// Status sent to the client; 0 if it got none.
    pub code: u16,
    /// gRPC status sent to the client.
    pub grpc_status: Option<u16>,
    /// Envoy's word for what went wrong, or `-`.
    pub flags: &'static str,
}

/// The counters of one label set of requests.
#[derive(Debug)]
pub struct CountedRequests {
    requests: Arc<Requests>,
    series: Arc<Series<Key, RequestCounts>>,
}

/// The counters of the messages of gRPC calls between two parties.
#[derive(Debug)]
pub struct CountedMessages {
    requests: Arc<Requests>,
    series: Arc<Series<Key, MessageCounts>>,
}

/// An open TCP connection's counters.
#[derive(Debug)]
pub struct CarriedConnection {
    requests: Arc<Requests>,
    series: Arc<Series<Key, ConnectionCounts>>,
}

/// All requests and connections.
#[derive(Debug)]
pub(super) struct Requests {
    requests: SeriesSet<Key, RequestCounts>,
    connections: SeriesSet<Key, ConnectionCounts>,
    messages: SeriesSet<Key, MessageCounts>,
}

/// Nothing stands for all that there is no room for.
type Key = Option<Arc<RequestLabels>>;

#[derive(Debug, Default)]
struct RequestCounts {
    total: AtomicU64,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
}

#[derive(Debug, Default)]
struct MessageCounts {
    requests: AtomicU64,
    responses: AtomicU64,
}

#[derive(Debug, Default)]
struct ConnectionCounts {
    opened: AtomicU64,
    closed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

/// Envoy's default buckets, in thousandths, and one for the rest.
const BOUNDS: [u64; 19] = [
    500,
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];

/// Values are in thousandths: microseconds of milliseconds, or of bytes.
#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
}

struct Encoded<'a>(&'a Key, Shown);

/// Which labels a family has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Requests,
    Connections,
    /// Only the parties: messages are counted while their call lasts.
    Messages,
}

/// Name, help, and which of a series' values it shows.
type Family<C, V> = (&'static str, &'static str, fn(&C) -> &V);

// === impl Requests ===

impl Requests {
    pub(super) fn new() -> Arc<Self> {
        Self::with_limit(MAX_REQUEST_SERIES)
    }

    fn with_limit(limit: usize) -> Arc<Self> {
        let (requests, connections) = (SeriesSet::new(limit, |_| None), SeriesSet::new(limit, |_| None));
        Arc::new(Self { requests, connections, messages: SeriesSet::new(limit, |_| None) })
    }

    pub(super) fn of(self: &Arc<Self>, labels: RequestLabels) -> CountedRequests {
        let series = self.requests.get(&Some(Arc::new(labels)));
        CountedRequests { requests: Arc::clone(self), series }
    }

    pub(super) fn open(self: &Arc<Self>, labels: RequestLabels) -> CarriedConnection {
        let series = self.connections.get(&Some(Arc::new(labels)));
        series.values.opened.fetch_add(1, Ordering::Relaxed);
        CarriedConnection { requests: Arc::clone(self), series }
    }

    /// How the calls ended makes no difference.
    pub(super) fn messages(self: &Arc<Self>, labels: RequestLabels) -> CountedMessages {
        let labels = RequestLabels { code: 0, grpc_status: None, flags: "-", ..labels };
        let series = self.messages.get(&Some(Arc::new(labels)));
        CountedMessages { requests: Arc::clone(self), series }
    }

    pub(super) fn overflowed(&self) -> u64 {
        let sets = [self.requests.overflowed(), self.connections.overflowed(), self.messages.overflowed()];
        sets.into_iter().fold(0, u64::saturating_add)
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.requests.snapshot();
        let totals = all.iter().map(|s| (Encoded(&s.labels, Shown::Requests), s.values.total.load(Ordering::Relaxed)));
        counter(encoder, "istio_requests", "The total number of requests", totals)?;
        let histograms: [Family<RequestCounts, Histogram>; 3] = [
            ("istio_request_duration_milliseconds", "How long requests took, to the end of the response", |c| {
                &c.duration
            }),
            ("istio_request_bytes", "The size of requests' bodies", |c| &c.request_bytes),
            ("istio_response_bytes", "The size of responses' bodies", |c| &c.response_bytes),
        ];
        for (name, help, read) in histograms.into_iter().filter(|_| !all.is_empty()) {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for series in &all {
                let (sum, count, buckets) = read(&series.values).read();
                let labels = Encoded(&series.labels, Shown::Requests);
                family.encode_family(&labels)?.encode_histogram::<NoLabels>(sum, count, &buckets, None)?;
            }
        }
        let all = self.connections.snapshot();
        let counters: [Family<ConnectionCounts, AtomicU64>; 4] = [
            ("istio_tcp_connections_opened", "The total number of TCP connections opened", |c| &c.opened),
            ("istio_tcp_connections_closed", "The total number of TCP connections closed", |c| &c.closed),
            ("istio_tcp_sent_bytes", "Bytes sent to clients of TCP connections", |c| &c.sent),
            ("istio_tcp_received_bytes", "Bytes received from clients of TCP connections", |c| &c.received),
        ];
        for (name, help, read) in counters {
            let value = |s: &Arc<Series<Key, ConnectionCounts>>| read(&s.values).load(Ordering::Relaxed);
            let values = all.iter().map(|s| (Encoded(&s.labels, Shown::Connections), value(s)));
            counter(encoder, name, help, values)?;
        }
        let all = self.messages.snapshot();
        let counters: [Family<MessageCounts, AtomicU64>; 2] = [
            ("istio_request_messages", "Messages of gRPC calls from clients", |c| &c.requests),
            ("istio_response_messages", "Messages of gRPC calls to clients", |c| &c.responses),
        ];
        for (name, help, read) in counters {
            let value = |s: &Arc<Series<Key, MessageCounts>>| read(&s.values).load(Ordering::Relaxed);
            let values = all.iter().map(|s| (Encoded(&s.labels, Shown::Messages), value(s)));
            counter(encoder, name, help, values)?;
        }
        Ok(())
    }
}

// === impl CountedRequests ===

impl CountedRequests {
    /// One more request: how long it took, and the bytes of both bodies.
    pub fn count(&self, took: Duration, request_bytes: u64, response_bytes: u64) {
        let counts = &self.series.values;
        counts.total.fetch_add(1, Ordering::Relaxed);
        counts.duration.add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        counts.request_bytes.add(request_bytes.saturating_mul(1000));
        counts.response_bytes.add(response_bytes.saturating_mul(1000));
    }
}

impl Drop for CountedRequests {
    fn drop(&mut self) {
        self.requests.requests.touch(&self.series);
    }
}

// === impl CountedMessages ===

impl CountedMessages {
    /// So many more of each.
    pub fn count(&self, requests: u64, responses: u64) {
        self.series.values.requests.fetch_add(requests, Ordering::Relaxed);
        self.series.values.responses.fetch_add(responses, Ordering::Relaxed);
    }
}

impl Drop for CountedMessages {
    fn drop(&mut self) {
        self.requests.messages.touch(&self.series);
    }
}

// === impl CarriedConnection ===

impl CarriedConnection {
    /// Bytes that the client sent.
    pub fn received(&self, bytes: u64) {
        self.series.values.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that the client was sent.
    pub fn sent(&self, bytes: u64) {
        self.series.values.sent.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for CarriedConnection {
    fn drop(&mut self) {
        self.series.values.closed.fetch_add(1, Ordering::Relaxed);
        self.requests.connections.touch(&self.series);
    }
}

// === impl Histogram ===

impl Histogram {
    fn add(&self, thousandths: u64) {
        let bucket = BOUNDS.partition_point(|bound| *bound < thousandths);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(thousandths, Ordering::Relaxed);
    }

    /// Sum, count, and the count of each bucket with its upper bound.
    #[expect(clippy::cast_precision_loss, reason = "Prometheus has floating-point numbers only")]
    fn read(&self) -> (f64, u64, Vec<(f64, u64)>) {
        let bounds = BOUNDS.iter().map(|bound| *bound as f64 / 1000.0).chain([f64::MAX]);
        let counts = self.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<_> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        (self.sum.load(Ordering::Relaxed) as f64 / 1000.0, count, buckets)
    }
}

// === impl Encoded ===

impl EncodeLabelSet for Encoded<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let Self(labels, shown) = self;
        label(encoder, "reporter", "waypoint")?;
        match labels {
            Some(labels) => known(encoder, labels, *shown),
            None => {
                let is_shown = |name: &&&str| match shown {
                    Shown::Requests => true,
                    Shown::Connections => !REQUEST_ONLY.contains(name),
                    Shown::Messages => !CALL_ONLY.contains(name),
                };
                let names = LABELS.iter().filter(is_shown);
                names.into_iter().try_for_each(|name| label(encoder, name, "other"))
            }
        }
    }
}

const LABELS: [&str; 24] = [
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
];
const REQUEST_ONLY: [&str; 2] = ["response_code", "grpc_response_status"];
/// What isn't known of a call, or not counted, while it lasts.
const CALL_ONLY: [&str; 5] =
    ["request_protocol", "response_code", "grpc_response_status", "response_flags", "connection_security_policy"];

fn known(encoder: &mut LabelSetEncoder<'_>, labels: &RequestLabels, shown: Shown) -> fmt::Result {
    let RequestLabels { source, destination, service, protocol, code, grpc_status, flags } = labels;
    label(encoder, "source_workload", or_unknown(&source.workload))?;
    label(encoder, "source_canonical_service", or_unknown(&source.canonical_service))?;
    label(encoder, "source_canonical_revision", or_unknown(&source.canonical_revision))?;
    label(encoder, "source_workload_namespace", or_unknown(&source.namespace))?;
    principal(encoder, "source_principal", source.principal.as_ref())?;
    label(encoder, "source_app", or_unknown(&source.canonical_service))?;
    label(encoder, "source_version", or_unknown(&source.canonical_revision))?;
    label(encoder, "source_cluster", or_unknown(&source.cluster))?;
    label(encoder, "destination_workload", or_unknown(&destination.workload))?;
    label(encoder, "destination_workload_namespace", or_unknown(&destination.namespace))?;
    principal(encoder, "destination_principal", destination.principal.as_ref())?;
    label(encoder, "destination_app", or_unknown(&destination.canonical_service))?;
    label(encoder, "destination_version", or_unknown(&destination.canonical_revision))?;
    label(encoder, "destination_service", or_unknown(&service.hostname))?;
    label(encoder, "destination_canonical_service", or_unknown(&destination.canonical_service))?;
    label(encoder, "destination_canonical_revision", or_unknown(&destination.canonical_revision))?;
    label(encoder, "destination_service_name", or_unknown(&service.name))?;
    label(encoder, "destination_service_namespace", or_unknown(&service.namespace))?;
    label(encoder, "destination_cluster", or_unknown(&destination.cluster))?;
    if shown == Shown::Messages {
        return Ok(());
    }
    let protocol = match protocol {
        CarriedProtocol::Http => "http",
        CarriedProtocol::Grpc => "grpc",
        CarriedProtocol::Tcp => "tcp",
    };
    label(encoder, "request_protocol", protocol)?;
    if shown == Shown::Requests {
        label(encoder, "response_code", code)?;
        match grpc_status {
            Some(status) => label(encoder, "grpc_response_status", status)?,
            None => label(encoder, "grpc_response_status", "")?,
        }
    }
    label(encoder, "response_flags", flags)?;
    // A waypoint takes nothing but HBONE.
    label(encoder, "connection_security_policy", "mutual_tls")
}

fn principal(encoder: &mut LabelSetEncoder<'_>, name: &str, principal: Option<&SpiffeId>) -> fmt::Result {
    match principal {
        Some(id) => label(encoder, name, id),
        None => label(encoder, name, UNKNOWN),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{CarriedProtocol, Histogram, RequestLabels, Requests};
    use crate::metrics::{Party, ServiceLabels};

    #[test]
    fn a_value_on_a_bound_is_in_the_bucket_below_it() {
        let histogram = Histogram::default();
        for value in [500, 501, 3_600_000_000, 3_600_000_001] {
            histogram.add(value);
        }
        let (_, count, buckets) = histogram.read();
        let counts: Vec<_> = buckets.iter().map(|(_, count)| *count).collect();
        assert_eq!((count, counts[0], counts[1], counts[18], counts[19]), (4, 1, 1, 1, 1));
    }

    #[test]
    fn past_the_bound_label_sets_are_one_series_named_other() {
        let requests = Requests::with_limit(1);
        for code in 200..210 {
            let labels = RequestLabels {
                source: Party::default(),
                destination: Party::default(),
                service: ServiceLabels::default(),
                protocol: CarriedProtocol::Http,
                code,
                grpc_status: None,
                flags: "-",
            };
            requests.of(labels).count(Duration::from_millis(1), 0, 0);
        }
        let kept = requests.requests.snapshot();
        let total = |other| {
            let series = kept.iter().find(|s| s.labels.is_none() == other).expect("one of each");
            series.values.total.load(std::sync::atomic::Ordering::Relaxed)
        };
        assert_eq!((kept.len(), total(false), total(true), requests.overflowed()), (2, 1, 9, 9));
    }
}
