//! The live connections of one pod, so that a change of configuration reaches them too, and so that each has its account.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ambit_hbone::copy::Moved;
use ambit_mesh::view::WaypointRef;
use ambit_telemetry::Recorder;
use tokio::sync::Notify;

use crate::{
    account::{Account, End, Verdicted},
    guard::Caller,
    record::Timing,
};

/// The table. It holds nothing but connections that have a slot, so their limit bounds it.
#[derive(Debug)]
pub(crate) struct Tracked {
    next: AtomicU64,
    entries: Mutex<HashMap<u64, Arc<Entry>>>,
    recorder: Recorder,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) what: What,
    /// Bytes from the client, and from the server.
    pub(crate) moved: Moved,
    /// Why it is to be cut.
    ending: OnceLock<Box<Verdicted>>,
    /// Told once `ending` is set.
    cut: Notify,
    /// From the time when it is known what the connection is until its end.
    account: Mutex<Option<Box<Account>>>,
}

/// What is needed to judge a connection again.
#[derive(Debug)]
pub(crate) enum What {
    /// To the pod.
    Inbound {
        /// Who connected.
        caller: Caller,
        /// To which address and port of the pod.
        destination: SocketAddr,
    },
    /// From the pod.
    Outbound {
        /// The application's address.
        origin: SocketAddr,
        /// Where it wanted to go.
        destination: SocketAddr,
        /// The waypoint it went to.
        waypoint: Option<WaypointRef>,
    },
}

/// Keeps a connection in the table. Dropped without an end, the connection was drained.
#[derive(Debug)]
pub(crate) struct Ticket {
    table: Arc<Tracked>,
    id: u64,
    entry: Arc<Entry>,
}

// === impl Tracked ===

impl Tracked {
    /// A table that tells of its connections here.
    pub(crate) fn new(recorder: Recorder) -> Arc<Self> {
        Arc::new(Self { next: AtomicU64::new(0), entries: Mutex::default(), recorder })
    }

    /// Adds a connection. INVARIANT: it is added before it is judged, so no change can fall between the two.
    pub(crate) fn track(self: &Arc<Self>, what: What) -> Ticket {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(Entry {
            what,
            moved: Moved::default(),
            ending: OnceLock::new(),
            cut: Notify::new(),
            account: Mutex::default(),
        });
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::clone(&entry));
        Ticket { table: Arc::clone(self), id, entry }
    }

    /// The connections at this moment.
    pub(crate) fn snapshot(&self) -> Vec<Arc<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Counts what the live connections have moved so far.
    pub(crate) fn flush(&self) {
        for entry in self.snapshot() {
            if let Some(account) = &mut *entry.account() {
                account.flush(&entry.moved);
            }
        }
    }
}

// === impl Entry ===

impl Entry {
    /// Has the connection cut, for this reason, unless it already is to be; says whether it was the first to. Who carries
    /// the connection records it.
    pub(crate) fn cut(&self, verdict: Verdicted) -> bool {
        let first = self.ending.set(Box::new(verdict)).is_ok();
        self.cut.notify_waiters();
        first
    }

    /// Its account, while it has one.
    pub(crate) fn account(&self) -> MutexGuard<'_, Option<Box<Account>>> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Ticket ===

impl Ticket {
    /// Completes when the connection is to be cut.
    pub(crate) async fn ended(&self) {
        // INVARIANT: who waits is told from here on, so a cut is either seen here or heard of there.
        let cut = self.entry.cut.notified();
        if self.entry.ending.get().is_none() {
            cut.await;
        }
    }

    /// Why it is to be cut; nothing as long as it isn't.
    pub(crate) fn ending(&self) -> Option<&Verdicted> {
        self.entry.ending.get().map(|verdict| &**verdict)
    }

    /// What has moved.
    pub(crate) fn moved(&self) -> &Moved {
        &self.entry.moved
    }

    /// It is known what the connection is.
    pub(crate) fn open(&self, account: Box<Account>) {
        *self.entry.account() = Some(account);
    }

    /// The other side is there.
    pub(crate) fn opened(&self, timing: Timing) {
        if let Some(account) = &mut *self.entry.account() {
            account.opened(timing, &self.table.recorder);
        }
    }

    /// The connection has ended. Only the first end counts.
    pub(crate) fn close(&self, end: End) {
        let account = self.entry.account().take();
        if let Some(account) = account {
            account.close(&self.entry.moved, end, &self.table.recorder);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.close(match self.ending() {
            Some(verdict) => End::Refused(verdict.clone()),
            None => End::Drained,
        });
        self.table.entries.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}
