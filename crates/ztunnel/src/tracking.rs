//! The live connections of one pod, so that a change of configuration reaches them too.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use ambit_mesh::view::{Service, WaypointRef};
use tokio_util::sync::CancellationToken;

use crate::guard::Caller;

/// The table. It holds nothing but connections that have a slot, so their limit bounds it.
#[derive(Debug, Default)]
pub(crate) struct Tracked {
    next: AtomicU64,
    entries: Mutex<HashMap<u64, Arc<Entry>>>,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) what: What,
    ended: AtomicBool,
    cancel: CancellationToken,
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
        /// The service behind that address.
        service: Option<Arc<Service>>,
        /// The waypoint it went to.
        waypoint: Option<WaypointRef>,
    },
}

/// Keeps a connection in the table.
#[derive(Debug)]
pub(crate) struct Ticket {
    table: Arc<Tracked>,
    id: u64,
    entry: Arc<Entry>,
}

// === impl Tracked ===

impl Tracked {
    /// Adds a connection. INVARIANT: it is added before it is judged, so no change can fall between the two.
    pub(crate) fn track(self: &Arc<Self>, what: What) -> Ticket {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(Entry { what, ended: AtomicBool::new(false), cancel: CancellationToken::new() });
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::clone(&entry));
        Ticket { table: Arc::clone(self), id, entry }
    }

    /// The connections at this moment.
    pub(crate) fn snapshot(&self) -> Vec<Arc<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

// === impl Entry ===

impl Entry {
    /// Ends the connection. True for the one who ended it, who has to record why.
    pub(crate) fn end(&self) -> bool {
        let first = !self.ended.swap(true, Ordering::AcqRel);
        self.cancel.cancel();
        first
    }
}

// === impl Ticket ===

impl Ticket {
    /// Completes when the connection is to be cut.
    pub(crate) async fn ended(&self) {
        self.entry.cancel.cancelled().await;
    }

    /// See [`Entry::end`].
    pub(crate) fn end(&self) -> bool {
        self.entry.end()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.table.entries.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}
