//! Metrics of what steers the proxy: xDS, the pods it serves, revocation lists (`spec/ztunnel.md` 14).

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::encoding::DescriptorEncoder;

use super::{
    Reporter,
    encode::{counter, single_counter, single_gauge},
    series::SeriesSet,
};
use crate::limits::MAX_XDS_SERIES;

/// Why a connection to the control plane ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum XdsEnd {
    /// It couldn't be made.
    ConnectionError,
    /// The stream failed.
    Error,
    /// The control plane asked to come back later, or closed an idle stream.
    Reconnect,
    /// The stream ended well.
    Complete,
}

/// Counts the exchange with the control plane.
#[derive(Debug)]
pub struct Xds {
    ends: [AtomicU64; ENDS.len()],
    messages: SeriesSet<Url, Messages>,
    rejected: AtomicU64,
}

/// Counts the pods that the proxy serves.
#[derive(Debug, Default)]
pub struct Pods {
    active: AtomicU64,
    pending: AtomicU64,
    started: AtomicU64,
    stopped: AtomicU64,
}

/// Counts what revocation lists do. Istio's family of connections that lists can't be applied to
/// (`istio_crl_untracked_connections_total`) has no use here: every connection keeps its peer's certificates.
#[derive(Debug, Default)]
pub struct Revocation {
    rejections: [AtomicU64; 2],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Url(Option<Arc<str>>);

#[derive(Debug, Default)]
struct Messages {
    count: AtomicU64,
    bytes: AtomicU64,
}

const ENDS: [(XdsEnd, &str); 4] = [
    (XdsEnd::ConnectionError, "ConnectionError"),
    (XdsEnd::Error, "Error"),
    (XdsEnd::Reconnect, "Reconnect"),
    (XdsEnd::Complete, "Complete"),
];

// === impl Xds ===

impl Xds {
    pub(super) fn new() -> Self {
        let messages = SeriesSet::new(MAX_XDS_SERIES, |_| Url(None));
        Self { ends: Default::default(), messages, rejected: AtomicU64::new(0) }
    }

    /// Counts a received message of this type with its encoded size.
    pub fn message(&self, type_url: &str, bytes: usize) {
        let series = self.messages.get(&Url(Some(type_url.into())));
        series.values.count.fetch_add(1, Ordering::Relaxed);
        series.values.bytes.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.messages.touch(&series);
    }

    /// Counts resources that were refused (NACK).
    pub fn rejected(&self, resources: usize) {
        self.rejected.fetch_add(u64::try_from(resources).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Counts the end of a connection to the control plane.
    pub fn terminated(&self, end: XdsEnd) {
        self.ends[end as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let ends = ENDS.iter().zip(&self.ends).map(|((_, name), count)| ([("reason", *name)], load(count)));
        let help = "The total number of connections to the control plane that ended (unstable)";
        counter(encoder, "istio_xds_connection_terminations", help, ends.filter(|(_, count)| *count > 0))?;
        let all = self.messages.snapshot();
        let url = |labels: &Url| [("url", labels.0.as_deref().unwrap_or("other").to_owned())];
        let counts = all.iter().map(|series| (url(&series.labels), load(&series.values.count)));
        counter(encoder, "istio_xds_message", "The total number of messages received (unstable)", counts)?;
        let bytes = all.iter().map(|series| (url(&series.labels), load(&series.values.bytes)));
        counter(encoder, "istio_xds_message_bytes", "The total number of bytes received (unstable)", bytes)?;
        let help = "Resources from the control plane that could not be read and were refused";
        single_counter(encoder, "ambit_xds_rejected_resources", help, load(&self.rejected))
    }
}

// === impl Pods ===

impl Pods {
    /// Sets how many pods are served, and how many wait for being served.
    pub fn set(&self, active: usize, pending: usize) {
        self.active.store(u64::try_from(active).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.pending.store(u64::try_from(pending).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Counts a pod's proxy as started.
    pub fn started(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a pod's proxy as stopped.
    pub fn stopped(&self) {
        self.stopped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "The total number of proxies that serve a pod now (unstable)";
        single_gauge(encoder, "workload_manager_active_proxy_count", help, load(&self.active))?;
        let help = "The total number of pods that wait for a proxy now (unstable)";
        single_gauge(encoder, "workload_manager_pending_proxy_count", help, load(&self.pending))?;
        let help = "The total number of proxies started (unstable)";
        single_counter(encoder, "workload_manager_proxies_started", help, load(&self.started))?;
        let help = "The total number of proxies stopped (unstable)";
        single_counter(encoder, "workload_manager_proxies_stopped", help, load(&self.stopped))
    }
}

// === impl Revocation ===

impl Revocation {
    /// Counts a connection that was refused or closed because a certificate of its peer is revoked.
    pub fn rejected(&self, reporter: Reporter) {
        self.rejections[reporter as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let by_reporter = |counts: &[AtomicU64; 2]| {
            [Reporter::Source, Reporter::Destination]
                .map(|reporter| ([("reporter", reporter.as_str())], load(&counts[reporter as usize])))
                .into_iter()
                .filter(|(_, count)| *count > 0)
        };
        let help = "The total number of connections refused or closed by a revocation list (unstable)";
        counter(encoder, "istio_crl_policy_rejections", help, by_reporter(&self.rejections))
    }
}

fn load(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}
