//! Istio's L4 metrics of connections: opened, closed, failed, bytes (`spec/ztunnel.md` 14).

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use ambit_api::SpiffeId;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder};

use super::{
    encode::{UNKNOWN, counter, gauge, label, or_unknown},
    series::{Series, SeriesSet},
};
use crate::limits::{MAX_ON_DEMAND_SERIES, MAX_TRAFFIC_SERIES};

/// Which end of a connection counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reporter {
    /// The client's node proxy.
    Source,
    /// The server's node proxy.
    Destination,
}

/// Why a connection ended otherwise than well: `response_flags`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flag {
    /// `-`
    #[default]
    None,
    /// `DENY`: a policy refused it, at first or later.
    Deny,
    /// `CONNECT`: the next hop couldn't be reached.
    Connect,
    /// `TLS_FAILURE`
    TlsFailure,
    /// `H2_HANDSHAKE_FAILURE`
    H2HandshakeFailure,
    /// `NETWORK_POLICY`: the HBONE port didn't answer; something drops what is sent to it.
    NetworkPolicy,
    /// `IDENTITY_ERROR`: there is no certificate, or the peer isn't who it should be.
    IdentityError,
    /// `CERT_REVOKED`
    CertRevoked,
}

/// What metrics say about a workload. Nothing is shown as `unknown`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Party {
    /// Name of the owner, for example of the Deployment.
    pub workload: Option<Arc<str>>,
    /// Its namespace.
    pub namespace: Option<Arc<str>>,
    /// Canonical service; `app` shows the same.
    pub canonical_service: Option<Arc<str>>,
    /// Canonical revision; `version` shows the same.
    pub canonical_revision: Option<Arc<str>>,
    /// Cluster.
    pub cluster: Option<Arc<str>>,
    /// Region. Region and zone are shown only if one is known of either party.
    pub region: Option<Arc<str>>,
    /// Zone.
    pub zone: Option<Arc<str>>,
    /// Identity. Of a source: as TLS proved it. Of a destination: as the control plane says.
    pub principal: Option<SpiffeId>,
}

/// What metrics say about the service that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServiceLabels {
    /// Fully qualified name.
    pub hostname: Option<Arc<str>>,
    /// Namespace.
    pub namespace: Option<Arc<str>>,
    /// Object name.
    pub name: Option<Arc<str>>,
}

/// The labels of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TrafficLabels {
    /// Who counts.
    pub reporter: Reporter,
    /// The client.
    pub source: Party,
    /// The server.
    pub destination: Party,
    /// The service asked for.
    pub service: ServiceLabels,
    /// Both ends are authenticated (`mutual_tls`), or not (`unknown`).
    pub mutual_tls: bool,
}

/// Counts connections and their bytes. Cheap to share.
#[derive(Debug)]
pub struct Traffic {
    connections: SeriesSet<TrafficLabels, Counts>,
    on_demand_dns: SeriesSet<OnDemandLabels, AtomicU64>,
    sockets: [AtomicI64; 2],
    live: RwLock<Option<Live>>,
}

/// Counts what live connections have moved since it last did.
struct Live(Box<dyn Fn() + Send + Sync>);

/// One open connection's counters. Dropped without [`fail`](Self::fail), it has ended well.
#[derive(Debug)]
pub struct OpenConnection {
    traffic: Arc<Traffic>,
    series: Arc<Series<TrafficLabels, Counts>>,
    /// It failed; this is why.
    failed: Option<Flag>,
}

/// One open socket of an application or peer (`istio_tcp_sockets_open`).
#[derive(Debug)]
pub struct OpenSocket {
    traffic: Arc<Traffic>,
    reporter: Reporter,
}

#[derive(Debug, Default)]
struct Counts {
    opened: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    closed: [AtomicU64; FLAGS.len()],
    failed: [AtomicU64; FLAGS.len()],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct OnDemandLabels {
    source: Party,
    hostname: Option<Arc<str>>,
}

struct Flagged<'a>(&'a TrafficLabels, Flag);

const FLAGS: [(Flag, &str); 8] = [
    (Flag::None, "-"),
    (Flag::Deny, "DENY"),
    (Flag::Connect, "CONNECT"),
    (Flag::TlsFailure, "TLS_FAILURE"),
    (Flag::H2HandshakeFailure, "H2_HANDSHAKE_FAILURE"),
    (Flag::NetworkPolicy, "NETWORK_POLICY"),
    (Flag::IdentityError, "IDENTITY_ERROR"),
    (Flag::CertRevoked, "CERT_REVOKED"),
];

// === impl Reporter ===

impl Reporter {
    /// `source` or `destination`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

// === impl Flag ===

impl Flag {
    /// As in the label `response_flags`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        FLAGS[self as usize].1
    }
}

// === impl Traffic ===

impl Traffic {
    pub(super) fn new() -> Arc<Self> {
        Self::with_limit(MAX_TRAFFIC_SERIES)
    }

    pub(super) fn with_limit(limit: usize) -> Arc<Self> {
        let rest = |labels: &TrafficLabels| TrafficLabels {
            reporter: labels.reporter,
            source: Party::default(),
            destination: Party::default(),
            service: ServiceLabels::default(),
            mutual_tls: labels.mutual_tls,
        };
        let on_demand_rest = |_: &OnDemandLabels| OnDemandLabels { source: Party::default(), hostname: None };
        Arc::new(Self {
            connections: SeriesSet::new(limit, rest),
            on_demand_dns: SeriesSet::new(MAX_ON_DEMAND_SERIES, on_demand_rest),
            sockets: Default::default(),
            live: RwLock::default(),
        })
    }

    /// Calls this before each scrape, so that whoever carries connections counts what they moved so far. It must be quick;
    /// a second one replaces the first.
    pub fn before_scrape(&self, count: impl Fn() + Send + Sync + 'static) {
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = Some(Live(Box::new(count)));
    }

    /// Counts a connection as opened. One lookup; bytes are then counted without any.
    #[must_use]
    pub fn open(self: &Arc<Self>, labels: &TrafficLabels) -> OpenConnection {
        let series = self.connections.get(labels);
        series.values.opened.fetch_add(1, Ordering::Relaxed);
        OpenConnection { traffic: Arc::clone(self), series, failed: None }
    }

    /// Counts an open socket until it is dropped.
    #[must_use]
    pub fn socket(self: &Arc<Self>, reporter: Reporter) -> OpenSocket {
        self.sockets[reporter as usize].fetch_add(1, Ordering::Relaxed);
        OpenSocket { traffic: Arc::clone(self), reporter }
    }

    /// Counts a DNS query for a workload that is known by name only (`istio_on_demand_dns_total`).
    pub fn on_demand_dns(&self, source: &Party, hostname: &Arc<str>) {
        let labels = OnDemandLabels { source: source.clone(), hostname: Some(Arc::clone(hostname)) };
        self.on_demand_dns.get(&labels).values.fetch_add(1, Ordering::Relaxed);
    }

    /// How many connections were counted under unknown workloads because there are too many label sets.
    pub(super) fn overflowed(&self) -> u64 {
        self.connections.overflowed().saturating_add(self.on_demand_dns.overflowed())
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(live) = &*self.live.read().unwrap_or_else(PoisonError::into_inner) {
            (live.0)();
        }
        let all = self.connections.snapshot();
        let plain = |read: fn(&Counts) -> &AtomicU64| {
            let value = move |series: &Series<_, Counts>| read(&series.values).load(Ordering::Relaxed);
            all.iter().map(move |series| (Flagged(&series.labels, Flag::None), value(series)))
        };
        let flagged = |read: fn(&Counts) -> &[AtomicU64; FLAGS.len()]| {
            let flags = move |series: &'_ Arc<Series<TrafficLabels, Counts>>| -> Vec<(Flag, u64)> {
                let counts = read(&series.values).iter().map(|count| count.load(Ordering::Relaxed));
                FLAGS.iter().map(|(flag, _)| *flag).zip(counts).filter(|(_, count)| *count > 0).collect()
            };
            all.iter().flat_map(move |series| {
                flags(series).into_iter().map(move |(flag, count)| (Flagged(&series.labels, flag), count))
            })
        };
        counter(encoder, "istio_tcp_connections_opened", OPENED, plain(|c| &c.opened))?;
        counter(encoder, "istio_tcp_connections_closed", CLOSED, flagged(|c| &c.closed))?;
        counter(encoder, "istio_tcp_received_bytes", RECEIVED, plain(|c| &c.received))?;
        counter(encoder, "istio_tcp_sent_bytes", SENT, plain(|c| &c.sent))?;
        counter(encoder, "istio_tcp_connections_failed", FAILED, flagged(|c| &c.failed))?;
        let sockets = [Reporter::Source, Reporter::Destination].map(|reporter| {
            ([("reporter", reporter.as_str())], self.sockets[reporter as usize].load(Ordering::Relaxed))
        });
        gauge(encoder, "istio_tcp_sockets_open", "The number of TCP sockets that are open now (unstable)", sockets)?;
        let on_demand = self.on_demand_dns.snapshot();
        let on_demand = on_demand.iter().map(|s| (&s.labels, s.values.load(Ordering::Relaxed)));
        let help = "The number of DNS queries for workloads that are known by hostname only (unstable)";
        counter(encoder, "istio_on_demand_dns", help, on_demand)
    }
}

const OPENED: &str = "The total number of TCP connections opened";
const CLOSED: &str = "The total number of TCP connections closed";
const RECEIVED: &str = "The size of total bytes received during request in case of a TCP connection";
const SENT: &str = "The size of total bytes sent during response in case of a TCP connection";
const FAILED: &str = "The total number of TCP connections that failed (unstable)";

// === impl Live ===

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Live")
    }
}

// === impl OpenConnection ===

impl OpenConnection {
    /// Counts bytes that the client sent, whichever end reports.
    pub fn received(&self, bytes: u64) {
        self.series.values.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that the server sent, whichever end reports.
    pub fn sent(&self, bytes: u64) {
        self.series.values.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Ends the connection as failed, for this reason if there is a flag for it.
    pub fn fail(mut self, flag: Flag) {
        self.failed = Some(flag);
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let counts = &self.series.values;
        counts.closed[self.failed.unwrap_or_default() as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(flag) = self.failed {
            counts.failed[flag as usize].fetch_add(1, Ordering::Relaxed);
        }
        self.traffic.connections.touch(&self.series);
    }
}

// === impl OpenSocket ===

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.traffic.sockets[self.reporter as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Flagged ===

impl EncodeLabelSet for Flagged<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let Self(labels, flag) = self;
        let (source, destination, service) = (&labels.source, &labels.destination, &labels.service);
        label(encoder, "reporter", labels.reporter.as_str())?;
        encode_source(encoder, source)?;
        label(encoder, "destination_service", or_unknown(&service.hostname))?;
        label(encoder, "destination_service_namespace", or_unknown(&service.namespace))?;
        label(encoder, "destination_service_name", or_unknown(&service.name))?;
        label(encoder, "destination_workload", or_unknown(&destination.workload))?;
        label(encoder, "destination_canonical_service", or_unknown(&destination.canonical_service))?;
        label(encoder, "destination_canonical_revision", or_unknown(&destination.canonical_revision))?;
        label(encoder, "destination_workload_namespace", or_unknown(&destination.namespace))?;
        principal(encoder, "destination_principal", &destination.principal)?;
        label(encoder, "destination_app", or_unknown(&destination.canonical_service))?;
        label(encoder, "destination_version", or_unknown(&destination.canonical_revision))?;
        label(encoder, "destination_cluster", or_unknown(&destination.cluster))?;
        label(encoder, "request_protocol", "tcp")?;
        label(encoder, "response_flags", flag.as_str())?;
        let security = if labels.mutual_tls { "mutual_tls" } else { UNKNOWN };
        label(encoder, "connection_security_policy", security)?;
        let localities = [&source.region, &source.zone, &destination.region, &destination.zone];
        if localities.iter().any(|locality| locality.is_some()) {
            let names = ["source_region", "source_zone", "destination_region", "destination_zone"];
            for (name, locality) in names.into_iter().zip(localities) {
                label(encoder, name, or_unknown(locality))?;
            }
        }
        Ok(())
    }
}

impl EncodeLabelSet for &OnDemandLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        encode_source(encoder, &self.source)?;
        label(encoder, "hostname", or_unknown(&self.hostname))
    }
}

fn encode_source(encoder: &mut LabelSetEncoder<'_>, source: &Party) -> fmt::Result {
    label(encoder, "source_workload", or_unknown(&source.workload))?;
    label(encoder, "source_canonical_service", or_unknown(&source.canonical_service))?;
    label(encoder, "source_canonical_revision", or_unknown(&source.canonical_revision))?;
    label(encoder, "source_workload_namespace", or_unknown(&source.namespace))?;
    principal(encoder, "source_principal", &source.principal)?;
    label(encoder, "source_app", or_unknown(&source.canonical_service))?;
    label(encoder, "source_version", or_unknown(&source.canonical_revision))?;
    label(encoder, "source_cluster", or_unknown(&source.cluster))
}

fn principal(encoder: &mut LabelSetEncoder<'_>, name: &str, principal: &Option<SpiffeId>) -> fmt::Result {
    match principal {
        Some(id) => label(encoder, name, id),
        None => label(encoder, name, UNKNOWN),
    }
}
