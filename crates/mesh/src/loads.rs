//! How much is in flight at endpoints, for choosing the less busy of two.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// Connections or requests in flight per endpoint, without a lock. Endpoints share counters by their key
/// ([`Workload::load_key`](crate::view::Workload::load_key)); a collision only makes the balance less exact.
#[derive(Debug)]
pub struct Loads {
    counters: Box<[AtomicU32]>,
}

/// One connection or request in flight at an endpoint, until dropped.
#[derive(Debug)]
pub struct InFlight {
    loads: Arc<Loads>,
    counter: usize,
}

// === impl Loads ===

impl Loads {
    /// With this many counters, and at least one.
    #[must_use]
    pub fn new(counters: usize) -> Self {
        Self { counters: std::iter::repeat_with(AtomicU32::default).take(counters.max(1)).collect() }
    }

    /// Counts one more until the guard is dropped.
    #[must_use]
    pub fn add(self: &Arc<Self>, key: u32) -> InFlight {
        let counter = self.counter(key);
        self.counters[counter].fetch_add(1, Ordering::Relaxed);
        InFlight { loads: Arc::clone(self), counter }
    }

    /// How much is in flight at what has this key.
    #[must_use]
    pub fn of(&self, key: u32) -> u32 {
        self.counters[self.counter(key)].load(Ordering::Relaxed)
    }

    fn counter(&self, key: u32) -> usize {
        key as usize % self.counters.len()
    }
}

// === impl InFlight ===

impl Drop for InFlight {
    fn drop(&mut self) {
        self.loads.counters[self.counter].fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_flight_counts_until_it_ends() {
        let loads = Arc::new(Loads::new(16));
        let held = [loads.add(3), loads.add(3), loads.add(4)];
        assert_eq!([3, 4, 5].map(|key| loads.of(key)), [2, 1, 0]);
        assert_eq!(loads.of(3 + 16), 2, "a counter is shared");
        drop(held);
        assert_eq!([3, 4].map(|key| loads.of(key)), [0, 0]);
    }

    #[test]
    fn one_counter_is_the_least() {
        let loads = Arc::new(Loads::new(0));
        let _held = loads.add(u32::MAX);
        assert_eq!(loads.of(7), 1);
    }
}
