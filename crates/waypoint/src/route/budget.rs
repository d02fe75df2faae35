//! How much of a service's traffic retries may be (GEP-3388): a service that is down isn't also buried under retries.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use ambit_mesh::view::ServiceKey;

use crate::limits::{RETRY_BUDGET_MINIMUM, RETRY_BUDGET_PERCENT, RETRY_BUDGET_WINDOW, RETRY_BUDGETS};

/// Requests and retries of the present window per service, without a lock: services hash to counters, and a collision
/// only makes them share a budget.
#[derive(Debug)]
pub(crate) struct Budgets {
    hasher: RandomState,
    started: Instant,
    counters: Box<[Counter]>,
}

#[derive(Debug, Default)]
struct Counter {
    window: AtomicU64,
    requests: AtomicU64,
    retries: AtomicU64,
}

// === impl Budgets ===

impl Default for Budgets {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            started: Instant::now(),
            counters: std::iter::repeat_with(Counter::default).take(RETRY_BUDGETS).collect(),
        }
    }
}

impl Budgets {
    /// Counts a request.
    pub(super) fn request(&self, service: &ServiceKey) {
        self.counter(service).requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a retry from the budget; false if there is none left.
    pub(super) fn take(&self, service: &ServiceKey) -> bool {
        let counter = self.counter(service);
        let requests = counter.requests.load(Ordering::Relaxed);
        let most = (requests * RETRY_BUDGET_PERCENT / 100).max(RETRY_BUDGET_MINIMUM);
        let taken = counter.retries.fetch_add(1, Ordering::Relaxed) < most;
        if !taken {
            counter.retries.fetch_sub(1, Ordering::Relaxed);
        }
        taken
    }

    fn counter(&self, service: &ServiceKey) -> &Counter {
        // INVARIANT: less than the number of counters, which fits in a usize.
        let index = (self.hasher.hash_one(service) % self.counters.len() as u64) as usize;
        let counter = &self.counters[index];
        let window = self.started.elapsed().as_secs() / RETRY_BUDGET_WINDOW.as_secs();
        // Who notices first that a window has begun starts it.
        if counter.window.swap(window, Ordering::Relaxed) != window {
            counter.requests.store(0, Ordering::Relaxed);
            counter.retries.store(0, Ordering::Relaxed);
        }
        counter
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_part_of_requests_and_never_fewer_than_the_minimum() {
        let budgets = Budgets::default();
        let key = |name: &str| ServiceKey { namespace: "a".into(), hostname: name.into() };
        let service = key("s");
        let taken = |budgets: &Budgets| (0..10_000).filter(|_| budgets.take(&service)).count() as u64;
        assert_eq!(taken(&budgets), RETRY_BUDGET_MINIMUM);
        let requests = 10 * RETRY_BUDGET_MINIMUM * 100 / RETRY_BUDGET_PERCENT;
        (0..requests).for_each(|_| budgets.request(&service));
        // A window may have ended meanwhile, never to give more.
        assert!(taken(&budgets) <= 10 * RETRY_BUDGET_MINIMUM);
    }
}
