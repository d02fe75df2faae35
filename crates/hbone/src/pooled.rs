//! What the pool keeps: connections by key, how many streams each carries, and when one has been idle for too long.
//!
//! Locks are held for a few instructions and never across an await; only the making of a connection holds a lock over
//! time, and that one belongs to its key alone.

use std::{
    collections::HashMap,
    future::Future,
    hash::{Hash, Hasher},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use ambit_identity::{SpiffeId, WorkloadCertificate};
use tokio::time::{Instant, sleep};

use crate::{ConnectError, Limits, Network, http2::Session, limits::SPREAD_PAUSE};

/// Tunnels with equal keys may share a connection.
#[derive(Clone)]
pub(crate) struct Key {
    /// Compared by pointer. The key keeps it alive, so the pointer can't come to mean another namespace.
    network: Arc<dyn Network>,
    pub(crate) source: SpiffeId,
    /// Sorted, without doubles.
    pub(crate) expected: Box<[SpiffeId]>,
    pub(crate) peer: SocketAddr,
    pub(crate) mark: Option<u32>,
    pub(crate) distant: bool,
}

/// All keys in use.
#[derive(Default)]
pub(crate) struct Peers {
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
}

/// The connections of one key.
#[derive(Default)]
pub(crate) struct Slot {
    /// Guards that point here; changed only under the lock of all slots.
    users: AtomicUsize,
    connections: Mutex<Vec<Pooled>>,
    /// Held while a connection is made, so that many tunnels wanted at once make one connection.
    pub(crate) creating: tokio::sync::Mutex<()>,
    failures: Mutex<(u64, Option<ConnectError>)>,
    /// The peer's limit of concurrent streams, as its connections have told so far; 0 before that.
    max_streams: AtomicUsize,
    /// When a connection to share the load was last tried for and not had.
    spread_failed: Mutex<Option<Instant>>,
}

/// What the connections of a key have to offer.
pub(crate) enum Room {
    Free(Lease),
    /// There is room, but another connection, and with it another task, should share the work.
    Crowded(Lease),
    None,
}

/// A slot in use. The last one to let go of a slot without connections removes it.
pub(crate) struct SlotGuard<'a> {
    peers: &'a Peers,
    key: &'a Key,
    slot: Arc<Slot>,
}

/// A connection to share.
pub(crate) struct Pooled {
    id: u64,
    session: Session,
    activity: Arc<Activity>,
    /// What was shown to the peer. Once it is expired the connection takes no new stream.
    certificate: Arc<WorkloadCertificate>,
}

struct Activity {
    streams: AtomicUsize,
    ended: AtomicBool,
    idle_since: Mutex<Instant>,
}

/// Room for one stream, until dropped.
pub(crate) struct Lease {
    pub(crate) session: Session,
    _stream: Option<StreamCount>,
}

struct StreamCount(Arc<Activity>);

/// What a connection's task needs of the pool. Dropping it takes the connection out.
pub(crate) struct Driver {
    id: u64,
    key: Key,
    activity: Arc<Activity>,
    peers: Weak<Peers>,
    idle_timeout: Duration,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Key ===

impl Key {
    pub(crate) fn new(
        network: Arc<dyn Network>,
        source: SpiffeId,
        mut expected: Vec<SpiffeId>,
        peer: SocketAddr,
        mark: Option<u32>,
        distant: bool,
    ) -> Self {
        expected.sort_unstable();
        expected.dedup();
        Self { network, source, expected: expected.into_boxed_slice(), peer, mark, distant }
    }

    pub(crate) fn network(&self) -> &dyn Network {
        &*self.network
    }

    pub(crate) fn is_in(&self, network: &Arc<dyn Network>) -> bool {
        address(&self.network) == address(network)
    }
}

fn address(network: &Arc<dyn Network>) -> usize {
    Arc::as_ptr(network).cast::<()>().addr()
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.is_in(&other.network)
            && self.source == other.source
            && self.expected == other.expected
            && self.peer == other.peer
            && (self.mark, self.distant) == (other.mark, other.distant)
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (address(&self.network), &self.source, &self.expected, self.peer, self.mark, self.distant).hash(state);
    }
}

// === impl Peers ===

impl Peers {
    pub(crate) fn slot<'a>(&'a self, key: &'a Key) -> SlotGuard<'a> {
        let mut slots = lock(&self.slots);
        let slot = Arc::clone(slots.entry(key.clone()).or_default());
        slot.users.fetch_add(1, Ordering::Relaxed);
        SlotGuard { peers: self, key, slot }
    }

    pub(crate) fn retain(&self, keep: impl Fn(&Key) -> bool) {
        lock(&self.slots).retain(|key, _| keep(key));
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.slots).len()
    }

    /// Removes the connection `id` of `key` when `condition` holds, and the slot when nothing is left in it.
    fn remove(&self, key: &Key, id: u64, condition: impl Fn(&Activity) -> bool) {
        let mut slots = lock(&self.slots);
        let Some(slot) = slots.get(key) else { return };
        lock(&slot.connections).retain(|pooled| pooled.id != id || !condition(&pooled.activity));
        if slot.is_unused() {
            slots.remove(key);
        }
    }
}

// === impl SlotGuard ===

impl std::ops::Deref for SlotGuard<'_> {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        &self.slot
    }
}

impl Drop for SlotGuard<'_> {
    fn drop(&mut self) {
        let mut slots = lock(&self.peers.slots);
        self.slot.users.fetch_sub(1, Ordering::Relaxed);
        // The map may hold another slot by now: this one was taken out by `retain`.
        if self.slot.is_unused() && slots.get(self.key).is_some_and(|slot| Arc::ptr_eq(slot, &self.slot)) {
            slots.remove(self.key);
        }
    }
}

// === impl Slot ===

impl Slot {
    fn is_unused(&self) -> bool {
        self.users.load(Ordering::Relaxed) == 0 && lock(&self.connections).is_empty()
    }

    /// Room on a living connection numbered above `newer_than`: on the one with the fewest streams. Dead ones are thrown
    /// out on the way.
    pub(crate) fn checkout(&self, newer_than: u64, limits: &Limits) -> Room {
        let mut connections = lock(&self.connections);
        connections.retain(Pooled::takes_streams);
        let candidates = connections.iter().filter(|pooled| pooled.id > newer_than);
        let Some(least) = candidates.min_by_key(|pooled| pooled.streams()) else { return Room::None };
        let crowded = least.streams() >= limits.streams_before_spread && connections.len() < limits.spread_connections;
        let learned = self.max_streams.load(Ordering::Relaxed);
        let own = limits.max_streams_per_connection;
        match least.lease(if learned == 0 { own } else { own.min(learned) }, own) {
            Some(lease) if crowded && self.may_spread() => Room::Crowded(lease),
            Some(lease) => Room::Free(lease),
            None => Room::None,
        }
    }

    fn may_spread(&self) -> bool {
        lock(&self.spread_failed).is_none_or(|at| at.elapsed() >= SPREAD_PAUSE)
    }

    /// No further connection could be had, so the present ones must do for a while.
    pub(crate) fn spread_failed(&self) {
        *lock(&self.spread_failed) = Some(Instant::now());
    }

    pub(crate) fn learn_max_streams(&self, limit: usize) {
        self.max_streams.store(limit, Ordering::Relaxed);
    }

    pub(crate) fn insert(&self, pooled: Pooled) {
        lock(&self.connections).push(pooled);
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.connections).len()
    }

    /// How many attempts to make a connection have failed.
    pub(crate) fn failures(&self) -> u64 {
        lock(&self.failures).0
    }

    pub(crate) fn fail(&self, error: ConnectError) {
        let mut failures = lock(&self.failures);
        *failures = (failures.0 + 1, Some(error));
    }

    /// The last failure, if there was one after `seen`.
    pub(crate) fn failure_since(&self, seen: u64) -> Option<ConnectError> {
        let failures = lock(&self.failures);
        if failures.0 > seen { failures.1.clone() } else { None }
    }
}

// === impl Pooled ===

impl Pooled {
    /// A connection that carries its first stream already.
    pub(crate) fn new(id: u64, session: Session, certificate: Arc<WorkloadCertificate>) -> (Self, Lease) {
        let activity = Arc::new(Activity {
            streams: AtomicUsize::new(1),
            ended: AtomicBool::new(false),
            idle_since: Mutex::new(Instant::now()),
        });
        let lease = Lease { session: session.clone(), _stream: Some(StreamCount(Arc::clone(&activity))) };
        (Self { id, session, activity, certificate }, lease)
    }

    fn takes_streams(&self) -> bool {
        !self.activity.ended.load(Ordering::Acquire) && self.session.is_open() && self.certificate.is_valid_now()
    }

    fn streams(&self) -> usize {
        self.activity.streams.load(Ordering::Acquire)
    }

    /// Only called under the slot's lock, so two callers can't take the last place. `assumed` holds until the peer's
    /// own limit is known; `own` always.
    fn lease(&self, assumed: usize, own: usize) -> Option<Lease> {
        let limit = self.session.peer_max_streams().unwrap_or(assumed).min(own);
        if self.streams() >= limit {
            return None;
        }
        self.activity.streams.fetch_add(1, Ordering::AcqRel);
        let stream = StreamCount(Arc::clone(&self.activity));
        Some(Lease { session: self.session.clone(), _stream: Some(stream) })
    }
}

// === impl Lease ===

impl Lease {
    /// Of a connection that isn't pooled.
    pub(crate) fn alone(session: Session) -> Self {
        Self { session, _stream: None }
    }
}

// === impl StreamCount ===

impl Drop for StreamCount {
    fn drop(&mut self) {
        *lock(&self.0.idle_since) = Instant::now();
        self.0.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

// === impl Driver ===

impl Driver {
    pub(crate) fn new(pooled: &Pooled, key: Key, peers: &Arc<Peers>, idle_timeout: Duration) -> Self {
        let activity = Arc::clone(&pooled.activity);
        Self { id: pooled.id, key, activity, peers: Arc::downgrade(peers), idle_timeout }
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.key.peer
    }

    /// Resolves when it is time to see whether the connection is idle.
    pub(crate) fn look_again(&self) -> impl Future<Output = ()> + Send + use<> {
        let idle = lock(&self.activity.idle_since).elapsed();
        let busy = self.activity.streams.load(Ordering::Acquire) > 0;
        let left = if busy { self.idle_timeout } else { self.idle_timeout.saturating_sub(idle) };
        // Not zero, or a connection that is already out of the pool would spin until its last stream ends.
        sleep(left.max(self.idle_timeout / 8))
    }

    /// Takes the connection out of the pool when nothing has used it for long. With no one left to open a stream on it,
    /// HTTP/2 closes it.
    pub(crate) fn retire_if_idle(&self) {
        let Some(peers) = self.peers.upgrade() else { return };
        peers.remove(&self.key, self.id, |activity| {
            activity.streams.load(Ordering::Acquire) == 0 && lock(&activity.idle_since).elapsed() >= self.idle_timeout
        });
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.activity.ended.store(true, Ordering::Release);
        if let Some(peers) = self.peers.upgrade() {
            peers.remove(&self.key, self.id, |_| true);
        }
    }
}
