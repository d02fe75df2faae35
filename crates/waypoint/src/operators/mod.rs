//! What operators see of a waypoint: counters, the live stream of decisions, and the administration port.

mod admin;
mod body;
mod dump;
mod ended;
mod meter;
mod spans;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use ambit_policy::{PolicyName, Verdict};
use ambit_telemetry::{
    DecisionRecord,
    metrics::{CountedDecisions, DecisionLabels, WaypointMetrics},
};
use tokio::sync::broadcast;

pub use admin::Exposure;
pub(crate) use admin::serve;
pub(crate) use body::{Counted, Uploaded};
pub(crate) use ended::{Ended, Traced};
pub(crate) use meter::{Kind, Meters, Tally, full_name};
pub(crate) use spans::{Spans, begin as begin_span, export as export_spans};

use crate::limits::{MAX_STREAMED_RECORDS, MAX_STREAMS};

/// What one waypoint counts and shows.
#[derive(Debug)]
pub(crate) struct Operators {
    pub(crate) metrics: Arc<WaypointMetrics>,
    stream: broadcast::Sender<Arc<DecisionRecord>>,
    readers: AtomicUsize,
}

/// A reader of the live stream; its place is free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Reader {
    operators: Arc<Operators>,
    pub(crate) records: broadcast::Receiver<Arc<DecisionRecord>>,
}

// === impl Operators ===

impl Operators {
    pub(crate) fn new() -> Arc<Self> {
        let metrics = WaypointMetrics::new(env!("CARGO_PKG_VERSION"));
        let stream = broadcast::Sender::new(MAX_STREAMED_RECORDS);
        Arc::new(Self { metrics, stream, readers: AtomicUsize::new(0) })
    }

    /// A place among the readers of the live stream, if there is one.
    pub(crate) fn reader(self: &Arc<Self>) -> Option<Reader> {
        let more = |readers| (readers < MAX_STREAMS).then_some(readers + 1);
        self.readers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Reader { operators: Arc::clone(self), records: self.stream.subscribe() })
    }

    /// Counts what policies said besides the verdict, and shows the record to whoever watches. Costs next to nothing if
    /// there is none of either.
    pub(crate) fn observed(&self, record: &DecisionRecord) {
        if let Some(notes) = &record.notes {
            for audit in &notes.audits {
                self.outcome(audit.policy.as_ref(), audit.rule, "audit").count(record.time);
            }
            if let Some(dry_run) = &notes.dry_run {
                let verdict = if dry_run.verdict == Verdict::Allow { "dry_run_allow" } else { "dry_run_deny" };
                self.outcome(dry_run.policy.as_ref(), dry_run.rule, verdict).count(record.time);
            }
        }
        if self.readers.load(Ordering::Relaxed) > 0 {
            // Without a reader meanwhile, nobody misses it.
            let _ = self.stream.send(Arc::new(record.clone()));
        }
    }

    pub(crate) fn outcome(
        &self,
        policy: Option<&PolicyName>,
        rule: Option<u32>,
        verdict: &'static str,
    ) -> CountedDecisions {
        self.metrics.decisions(DecisionLabels { policy: policy.cloned(), rule, verdict })
    }
}

// === impl Reader ===

impl Drop for Reader {
    fn drop(&mut self) {
        self.operators.readers.fetch_sub(1, Ordering::Relaxed);
    }
}
