//! Metrics of the DNS proxy (`spec/ztunnel.md` 14).

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, LabelSetEncoder},
    metrics::{MetricType, histogram::Histogram},
};

use super::{
    encode::{counter, label, or_unknown, single_counter},
    series::{Series, SeriesSet},
};
use crate::limits::MAX_DNS_SERIES;

/// Seconds that upstream resolvers take.
const BUCKETS: [f64; 6] = [0.0005, 0.001, 0.01, 0.1, 1.0, 5.0];

/// What a query asks for, as far as metrics tell it apart: a client may ask for 65536 types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueryType {
    /// `A`
    A,
    /// `AAAA`
    Aaaa,
    /// `CNAME`
    Cname,
    /// `MX`
    Mx,
    /// `NS`
    Ns,
    /// `PTR`
    Ptr,
    /// `SOA`
    Soa,
    /// `SRV`
    Srv,
    /// `TXT`
    Txt,
    /// `HTTPS` and `SVCB`
    Https,
    /// Any other
    Other,
}

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DnsProtocol {
    /// `udp`
    Udp,
    /// `tcp`
    Tcp,
}

/// The labels of a query.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DnsLabels {
    /// What is asked for.
    pub query_type: QueryType,
    /// How.
    pub protocol: DnsProtocol,
    /// Canonical service of the client.
    pub source_canonical_service: Option<Arc<str>>,
    /// Canonical revision of the client.
    pub source_canonical_revision: Option<Arc<str>>,
}

/// Counts queries. Cheap to share.
#[derive(Debug)]
pub struct Dns {
    queries: SeriesSet<DnsLabels, Counts>,
    cache_hits: AtomicU64,
    cache_misses: AtomicU64,
}

/// The counters of one query's labels.
#[derive(Debug)]
pub struct DnsQuery {
    dns: Arc<Dns>,
    series: Arc<Series<DnsLabels, Counts>>,
}

#[derive(Debug)]
struct Counts {
    requests: AtomicU64,
    upstream_requests: AtomicU64,
    upstream_failures: AtomicU64,
    duration: Histogram,
}

// === impl Dns ===

impl Dns {
    pub(super) fn new() -> Arc<Self> {
        let rest = |labels: &DnsLabels| DnsLabels {
            source_canonical_service: None,
            source_canonical_revision: None,
            ..labels.clone()
        };
        Arc::new(Self {
            queries: SeriesSet::new(MAX_DNS_SERIES, rest),
            cache_hits: AtomicU64::new(0),
            cache_misses: AtomicU64::new(0),
        })
    }

    /// Counts a query, and gives what counts the rest of its way.
    #[must_use]
    pub fn request(self: &Arc<Self>, labels: &DnsLabels) -> DnsQuery {
        let series = self.queries.get(labels);
        series.values.requests.fetch_add(1, Ordering::Relaxed);
        DnsQuery { dns: Arc::clone(self), series }
    }

    /// Counts an answer found, or not found, among those of earlier queries to resolvers.
    pub fn cached(&self, hit: bool) {
        let count = if hit { &self.cache_hits } else { &self.cache_misses };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn overflowed(&self) -> u64 {
        self.queries.overflowed()
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.queries.snapshot();
        let read = |read: fn(&Counts) -> &AtomicU64| {
            all.iter().map(move |s| (&s.labels, read(&s.values).load(Ordering::Relaxed))).filter(|(_, n)| *n > 0)
        };
        counter(encoder, "istio_dns_requests", "The total number of DNS requests (unstable)", read(|c| &c.requests))?;
        let help = "The total number of DNS requests forwarded to upstream resolvers (unstable)";
        counter(encoder, "istio_dns_upstream_requests", help, read(|c| &c.upstream_requests))?;
        let help = "The total number of DNS requests that upstream resolvers failed to answer (unstable)";
        counter(encoder, "istio_dns_upstream_failures", help, read(|c| &c.upstream_failures))?;
        let mut asked = all.iter().filter(|s| s.values.upstream_requests.load(Ordering::Relaxed) > 0).peekable();
        if asked.peek().is_some() {
            let help = "Seconds that upstream resolvers took to answer (unstable)";
            let name = "istio_dns_upstream_request_duration_seconds";
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for series in asked {
                series.values.duration.encode(family.encode_family(&&series.labels)?)?;
            }
        }
        let (hits, misses) = (self.cache_hits.load(Ordering::Relaxed), self.cache_misses.load(Ordering::Relaxed));
        single_counter(encoder, "ambit_dns_cache_hits", "DNS queries answered from earlier answers", hits)?;
        single_counter(encoder, "ambit_dns_cache_misses", "DNS queries that resolvers had to be asked", misses)
    }
}

// === impl DnsQuery ===

impl DnsQuery {
    /// Counts the query as passed on to a resolver, with how long that took and if it gave an answer.
    pub fn upstream(&self, took: Duration, answered: bool) {
        let counts = &self.series.values;
        counts.upstream_requests.fetch_add(1, Ordering::Relaxed);
        if !answered {
            counts.upstream_failures.fetch_add(1, Ordering::Relaxed);
        }
        counts.duration.observe(took.as_secs_f64());
    }
}

impl Drop for DnsQuery {
    fn drop(&mut self) {
        self.dns.queries.touch(&self.series);
    }
}

// === impl Counts ===

impl Default for Counts {
    fn default() -> Self {
        Self {
            requests: AtomicU64::new(0),
            upstream_requests: AtomicU64::new(0),
            upstream_failures: AtomicU64::new(0),
            duration: Histogram::new(BUCKETS),
        }
    }
}

// === impl QueryType ===

impl QueryType {
    /// As in the label `request_query_type`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::Aaaa => "AAAA",
            Self::Cname => "CNAME",
            Self::Mx => "MX",
            Self::Ns => "NS",
            Self::Ptr => "PTR",
            Self::Soa => "SOA",
            Self::Srv => "SRV",
            Self::Txt => "TXT",
            Self::Https => "HTTPS",
            Self::Other => "OTHER",
        }
    }
}

// === impl DnsLabels ===

impl EncodeLabelSet for &DnsLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        label(encoder, "request_query_type", self.query_type.as_str())?;
        let protocol = match self.protocol {
            DnsProtocol::Udp => "udp",
            DnsProtocol::Tcp => "tcp",
        };
        label(encoder, "request_protocol", protocol)?;
        label(encoder, "source_canonical_service", or_unknown(&self.source_canonical_service))?;
        label(encoder, "source_canonical_revision", or_unknown(&self.source_canonical_revision))
    }
}
