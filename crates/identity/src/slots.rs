//! Who may ask the CA next: a bounded number at one time, by priority and then in the order they came.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::limits::{MAX_CONCURRENT_FETCHES, RESERVED_FETCHES};

/// Why a certificate is fetched. The greater goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Priority {
    /// Its predecessor is to be renewed.
    Background,
    /// A workload has come that will need it.
    Warmup,
    /// A connection waits for it.
    RealTime,
}

/// The slots, some of which only connections that wait may take: a CA that hangs on renewals doesn't hold them up.
#[derive(Debug)]
pub(crate) struct Slots(Arc<Mutex<Queue>>);

#[derive(Debug)]
struct Queue {
    free: usize,
    sequence: u64,
    /// By reversed priority, then number: the first is next.
    waiting: BTreeMap<Place, oneshot::Sender<()>>,
}

type Place = (std::cmp::Reverse<Priority>, u64);

/// A slot in use, given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot(Arc<Mutex<Queue>>);

/// A place in the queue, left when dropped.
struct Waiting<'a> {
    queue: &'a Arc<Mutex<Queue>>,
    place: Place,
    /// Set once the slot has gone over to a [`Slot`].
    taken: bool,
}

// === impl Slots ===

impl Slots {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Queue { free: MAX_CONCURRENT_FETCHES, sequence: 0, waiting: BTreeMap::new() })))
    }

    /// Waits for a slot. Dropping the future leaves the queue.
    pub(crate) async fn acquire(&self, priority: Priority) -> Slot {
        let (granted, mut waiting) = {
            let mut queue = lock(&self.0);
            let place = (std::cmp::Reverse(priority), queue.sequence);
            queue.sequence += 1;
            let (grant, granted) = oneshot::channel();
            queue.waiting.insert(place, grant);
            queue.grant();
            (granted, Waiting { queue: &self.0, place, taken: false })
        };
        // INVARIANT: a sender leaves the map only to grant the slot, or with `waiting`, which lives longer.
        if granted.await.is_err() {
            tracing::error!("a place in the queue to the CA was lost");
            std::future::pending::<()>().await;
        }
        waiting.taken = true;
        Slot(Arc::clone(&self.0))
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Queue ===

impl Queue {
    /// Gives free slots to those that wait.
    fn grant(&mut self) {
        while let Some(first) = self.waiting.first_entry() {
            let reserved = if first.key().0.0 == Priority::RealTime { 0 } else { RESERVED_FETCHES };
            if self.free <= reserved {
                return;
            }
            self.free -= 1;
            // Its receiver may be about to be dropped; then `Waiting` finds its place gone and gives the slot back.
            let _ = first.remove().send(());
        }
    }
}

// === impl Slot ===

impl Drop for Slot {
    fn drop(&mut self) {
        give_back(&mut lock(&self.0));
    }
}

fn give_back(queue: &mut Queue) {
    queue.free += 1;
    queue.grant();
}

// === impl Waiting ===

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let mut queue = lock(self.queue);
        if queue.waiting.remove(&self.place).is_none() {
            give_back(&mut queue);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, time::Duration};

    use tokio::time::timeout;

    use super::*;

    /// Polls `future` once, and says whether it is done.
    async fn is_done(future: impl Future) -> bool {
        timeout(Duration::ZERO, future).await.is_ok()
    }

    async fn take(slots: &Slots, count: usize) -> Vec<Slot> {
        let mut held = Vec::new();
        for _ in 0..count {
            held.push(slots.acquire(Priority::RealTime).await);
        }
        held
    }

    #[tokio::test]
    async fn the_last_slots_are_for_connections() {
        let slots = Slots::new();
        let _held = take(&slots, MAX_CONCURRENT_FETCHES - RESERVED_FETCHES).await;
        assert!(!is_done(slots.acquire(Priority::Background)).await);
        assert!(!is_done(slots.acquire(Priority::Warmup)).await);
        let _more = take(&slots, RESERVED_FETCHES).await;
        assert!(!is_done(slots.acquire(Priority::RealTime)).await);
    }

    #[tokio::test]
    async fn a_slot_for_somebody_who_left_goes_to_the_next() {
        let slots = Slots::new();
        let mut held = take(&slots, MAX_CONCURRENT_FETCHES).await;
        {
            let mut leaves = pin!(slots.acquire(Priority::RealTime));
            assert!(!is_done(&mut leaves).await);
            // Granted, and dropped before it could be taken.
            held.pop();
        }
        assert!(is_done(slots.acquire(Priority::RealTime)).await);
        held.push(slots.acquire(Priority::RealTime).await);
        let mut waits = pin!(slots.acquire(Priority::RealTime));
        {
            let mut leaves = pin!(slots.acquire(Priority::RealTime));
            assert!(!is_done(&mut leaves).await);
            assert!(!is_done(&mut waits).await);
        }
        held.pop();
        assert!(is_done(waits).await, "whoever left the queue is skipped");
        drop(held);
        assert_eq!(lock(&slots.0).free, MAX_CONCURRENT_FETCHES, "none is lost");
        assert!(lock(&slots.0).waiting.is_empty());
    }
}
