//! What the bounds of DestinationRules did, under Envoy's names.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder};

use super::super::{
    encode::{counter, gauge, label},
    series::{Series, SeriesSet},
};
use crate::limits::MAX_CLUSTER_SERIES;

/// The counters of the endpoints of a service's port, or of a subset of it. Held, they are found without a look-up.
#[derive(Clone, Debug)]
pub struct CountedCluster {
    clusters: Arc<Clusters>,
    series: Arc<Series<Key, Counts>>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Clusters {
    kept: SeriesSet<Key, Counts>,
}

/// Its name; nothing stands for all that there is no room for.
type Key = Option<Arc<str>>;

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU64,
    pending: AtomicU64,
    retries: AtomicU64,
    ejections: AtomicU64,
    ejections_refused: AtomicU64,
    ejected: AtomicI64,
}

struct Encoded<'a>(&'a Key);

/// Name without Envoy's prefix, help, and which of the values it shows.
type Family = (&'static str, &'static str, fn(&Counts) -> &AtomicU64);

// === impl Clusters ===

impl Clusters {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { kept: SeriesSet::new(MAX_CLUSTER_SERIES, |_| None) })
    }

    pub(super) fn of(self: &Arc<Self>, name: &str) -> CountedCluster {
        let series = self.kept.get(&Some(name.into()));
        CountedCluster { clusters: Arc::clone(self), series }
    }

    pub(super) fn overflowed(&self) -> u64 {
        self.kept.overflowed()
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.kept.snapshot();
        let counters: [Family; 5] = [
            ("upstream_cx_overflow", "Connections not opened at once because there were as many as may be", |c| {
                &c.connections
            }),
            (
                "upstream_rq_pending_overflow",
                "Requests refused because as many were waiting, or in flight, as may",
                |c| &c.pending,
            ),
            ("upstream_rq_retry_overflow", "Retries not made because as many were in flight as may be", |c| &c.retries),
            ("outlier_detection_ejections_enforced", "Endpoints left out because they failed", |c| &c.ejections),
            (
                "outlier_detection_ejections_overflow",
                "Endpoints that failed and stayed in, because as many were left out as may be",
                |c| &c.ejections_refused,
            ),
        ];
        for (name, help, read) in counters {
            let values = all.iter().map(|s| (Encoded(&s.labels), read(&s.values).load(Ordering::Relaxed)));
            counter(encoder, &format!("envoy_cluster_{name}"), help, values)?;
        }
        let ejected = all.iter().map(|s| (Encoded(&s.labels), s.values.ejected.load(Ordering::Relaxed).max(0)));
        let help = "Endpoints that are left out because they failed";
        gauge(encoder, "envoy_cluster_outlier_detection_ejections_active", help, ejected)
    }
}

// === impl CountedCluster ===

impl CountedCluster {
    /// A connection wasn't opened at once: there are as many as there may be.
    pub fn connections_overflowed(&self) {
        self.series.values.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// A request is refused: as many are waiting, or in flight, as there may be.
    pub fn pending_overflowed(&self) {
        self.series.values.pending.fetch_add(1, Ordering::Relaxed);
    }

    /// A retry isn't made: as many are in flight as there may be.
    pub fn retries_overflowed(&self) {
        self.series.values.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// An endpoint is left out from now on.
    pub fn ejected(&self) {
        self.series.values.ejections.fetch_add(1, Ordering::Relaxed);
    }

    /// One should be, but as many are as may be.
    pub fn ejection_overflowed(&self) {
        self.series.values.ejections_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// So many are left out now, and so many were when this was last said.
    pub fn ejected_now(&self, before: u64, now: u64) {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.series.values.ejected.fetch_add(signed(now) - signed(before), Ordering::Relaxed);
    }
}

impl Drop for CountedCluster {
    fn drop(&mut self) {
        self.clusters.kept.touch(&self.series);
    }
}

// === impl Encoded ===

impl EncodeLabelSet for Encoded<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        label(encoder, "cluster_name", self.0.as_deref().unwrap_or("other"))
    }
}
