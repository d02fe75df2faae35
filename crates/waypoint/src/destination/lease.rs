//! A connection to an endpoint whose number, age or use a rule bounds.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ambit_mesh::view::destinations::Limits;
use tokio::sync::{Notify, OwnedSemaphorePermit};

/// Room for one connection.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// An open connection. Its room is free again when it has ended and nobody uses it any more.
#[derive(Debug)]
pub(crate) struct Lease {
    /// Who holds it: its task, and each request on it; [`CLOSED`] on top once it takes no more.
    holders: AtomicU32,
    served: AtomicU32,
    opened: Instant,
    /// When it was last used, in milliseconds since it was opened.
    used: AtomicU64,
    slot: Mutex<Option<OwnedSemaphorePermit>>,
    closing: Notify,
    most: u32,
    longest: Option<Duration>,
    idle: Option<Duration>,
}

/// A use of a connection, until dropped.
#[derive(Debug)]
pub(crate) struct Use(Arc<Lease>);

const CLOSED: u32 = 1 << 31;
/// Held by its task alone.
const IDLE: u32 = 1;

// === impl Lease ===

impl Lease {
    pub(super) fn new(limits: &Limits, slot: Slot, usual_idle: Option<Duration>) -> Arc<Self> {
        Arc::new(Self {
            holders: AtomicU32::new(IDLE),
            served: AtomicU32::new(0),
            opened: Instant::now(),
            used: AtomicU64::new(0),
            slot: Mutex::new(slot.permit),
            closing: Notify::new(),
            most: limits.requests_per_connection.unwrap_or(u32::MAX),
            longest: limits.connection_duration,
            idle: limits.http_idle_timeout.unwrap_or(usual_idle),
        })
    }

    /// A use of it; nothing if it takes no more.
    pub(crate) fn begin(self: &Arc<Self>) -> Option<Use> {
        let more = |holders: u32| (holders & CLOSED == 0).then_some(holders + 1);
        self.holders.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        let lease = Use(Arc::clone(self));
        let old = self.longest.is_some_and(|longest| self.opened.elapsed() >= longest);
        if old || self.served.fetch_add(1, Ordering::AcqRel) >= self.most {
            self.holders.fetch_or(CLOSED, Ordering::AcqRel);
            return None;
        }
        Some(lease)
    }

    /// A use of a connection that may have no bounds; nothing if it takes no more.
    #[expect(clippy::option_option, reason = "there may be nothing to count, which isn't the same as no more room")]
    pub(crate) fn begin_any(lease: Option<&Arc<Self>>) -> Option<Option<Use>> {
        match lease {
            None => Some(None),
            Some(lease) => lease.begin().map(Some),
        }
    }

    /// Lets a connection go on until it ends, or has to.
    pub(crate) async fn hold<T>(self: Arc<Self>, connection: impl Future<Output = T>) {
        /// Also when the task is cut off.
        struct Held(Arc<Lease>);
        impl Drop for Held {
            fn drop(&mut self) {
                self.0.gone();
            }
        }
        let held = Held(self);
        tokio::select! {
            _ended = connection => {}
            () = held.0.ended() => {}
        }
    }

    /// True if it takes another request after those it has now.
    pub(crate) fn lasts(&self) -> bool {
        self.served.load(Ordering::Acquire) < self.most && self.holders.load(Ordering::Acquire) & CLOSED == 0
    }

    /// Closes it if nobody uses it.
    pub(super) fn close_if_idle(&self) -> bool {
        let closed = self.holders.compare_exchange(IDLE, IDLE | CLOSED, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if closed {
            self.closing.notify_one();
        }
        closed
    }

    /// Ends when the connection is to end; its task waits for this.
    async fn ended(&self) {
        let Some(idle) = self.idle else { return self.closing.notified().await };
        loop {
            let silent = self.opened.elapsed().saturating_sub(self.last_use());
            tokio::select! {
                () = self.closing.notified() => return,
                () = tokio::time::sleep(idle.saturating_sub(silent)) => {}
            }
            let silent = self.opened.elapsed().saturating_sub(self.last_use());
            if silent >= idle {
                if self.close_if_idle() {
                    return;
                }
                // In use; the time starts anew.
                self.touch();
            }
        }
    }

    /// Its task has ended.
    fn gone(&self) {
        self.holders.fetch_or(CLOSED, Ordering::AcqRel);
        self.release();
    }

    fn release(&self) {
        let before = self.holders.fetch_sub(1, Ordering::AcqRel);
        if before & !CLOSED == 1 {
            drop(self.slot.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }

    fn touch(&self) {
        let now = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.used.store(now, Ordering::Release);
    }

    fn last_use(&self) -> Duration {
        Duration::from_millis(self.used.load(Ordering::Acquire))
    }
}

// === impl Use ===

impl Use {
    /// The connection.
    pub(crate) fn lease(&self) -> &Arc<Lease> {
        &self.0
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.0.touch();
        self.0.release();
    }
}
