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
}

/// Says whether something is wanted at this moment.
#[derive(Clone)]
struct Wanted(Arc<dyn Fn() -> bool + Send + Sync>);

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
    (Recorder { sender, dropped: Arc::clone(&dropped), openings: None }, Records { receiver, dropped })
}

impl Recorder {
    /// From now on asks, for each connection that opens, whether its reader wants to hear of it. Otherwise it always does.
    #[must_use]
    pub fn with_openings_when(mut self, wanted: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.openings = Some(Wanted(Arc::new(wanted)));
        self
    }

    /// True if records of connections that open are wanted. Those that end, and refusals, always are.
    #[must_use]
    pub fn wants_openings(&self) -> bool {
        self.openings.as_ref().is_none_or(|wanted| (wanted.0)())
    }

    /// Hands a record over; counts it as dropped if the queue is full.
    pub fn record(&self, record: DecisionRecord) {
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
