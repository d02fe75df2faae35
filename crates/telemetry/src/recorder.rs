//! The bounded queue from proxies to readers.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::mpsc;

use crate::DecisionRecord;

/// Records that may wait for the reader; past it the newest are counted and dropped, so a slow disk never slows traffic.
pub const MAX_QUEUED_RECORDS: usize = 16_384;

/// The proxies' end. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder {
    sender: mpsc::Sender<DecisionRecord>,
    dropped: Arc<AtomicU64>,
    openings: Option<Wanted>,
    filter: Option<Filter>,
    exchanges: bool,
}

/// Says whether something is wanted at this moment.
#[derive(Clone)]
struct Wanted(Arc<dyn Fn() -> bool + Send + Sync>);

/// Says whether a record is wanted at this moment.
#[derive(Clone)]
struct Filter(Arc<dyn Fn(&DecisionRecord) -> bool + Send + Sync>);

/// The reader's end.
#[derive(Debug)]
pub struct Records {
    receiver: mpsc::Receiver<DecisionRecord>,
    dropped: Arc<AtomicU64>,
}

/// A connected pair.
#[must_use]
pub fn recorder() -> (Recorder, Records) {
    recorder_counting(Arc::default())
}

/// The same, counting dropped records here.
#[must_use]
pub fn recorder_counting(dropped: Arc<AtomicU64>) -> (Recorder, Records) {
    let (sender, receiver) = mpsc::channel(MAX_QUEUED_RECORDS);
    (
        Recorder { sender, dropped: Arc::clone(&dropped), openings: None, filter: None, exchanges: false },
        Records { receiver, dropped },
    )
}

impl Recorder {
    /// From now on asks, for each connection that opens, whether its reader wants to hear of it. Otherwise it always does.
    #[must_use]
    pub fn with_openings_when(mut self, wanted: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.openings = Some(Wanted(Arc::new(wanted)));
        self
    }

    /// From now on hands over only records that its reader wants. The others cost neither a place in the queue nor a
    /// wake-up of the reader's thread.
    #[must_use]
    pub fn with_records_when(mut self, wanted: impl Fn(&DecisionRecord) -> bool + Send + Sync + 'static) -> Self {
        self.filter = Some(Filter(Arc::new(wanted)));
        self
    }

    /// From now on whoever carries requests also hands over what came of each in all, when it has ended.
    #[must_use]
    pub fn with_exchanges(mut self) -> Self {
        self.exchanges = true;
        self
    }

    /// True if it is wanted what came of a request in all.
    #[must_use]
    pub fn wants_exchanges(&self) -> bool {
        self.exchanges
    }

    /// True if records of connections that open are wanted.
    #[must_use]
    pub fn wants_openings(&self) -> bool {
        self.openings.as_ref().is_none_or(|wanted| (wanted.0)())
    }

    /// Hands a record over, if its reader wants it; counts it as dropped if the queue is full.
    pub fn record(&self, record: DecisionRecord) {
        if self.filter.as_ref().is_some_and(|filter| !(filter.0)(&record)) {
            return;
        }
        if self.sender.try_send(record).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wanted")
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Filter")
    }
}

impl Records {
    /// The next record, or nothing when every proxy is gone.
    pub async fn next(&mut self) -> Option<DecisionRecord> {
        self.receiver.recv().await
    }

    /// The next record if one is there already.
    pub fn try_next(&mut self) -> Option<DecisionRecord> {
        self.receiver.try_recv().ok()
    }

    /// Records dropped so far because the queue was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use ambit_policy::{Decision, Verdict};

    use super::*;
    use crate::Enforcer;

    fn record(verdict: Verdict) -> DecisionRecord {
        let decision = Decision { verdict, ..Decision::deny("because") };
        DecisionRecord::new(Enforcer::ZtunnelInbound, <_>::default(), <_>::default(), "TCP", &decision)
    }

    #[test]
    fn only_what_is_wanted_takes_a_place_in_the_queue() {
        let (recorder, mut records) = recorder();
        let picky = recorder.clone().with_records_when(|record| record.verdict == Verdict::Deny);
        picky.record(record(Verdict::Allow));
        picky.record(record(Verdict::Deny));
        assert_eq!(records.try_next().map(|record| record.verdict), Some(Verdict::Deny));
        assert!(records.try_next().is_none());
        // Nobody asked the other one to choose.
        recorder.record(record(Verdict::Allow));
        assert_eq!(records.try_next().map(|record| record.verdict), Some(Verdict::Allow));
        assert_eq!(records.dropped(), 0, "what isn't wanted isn't lost");
    }
}
