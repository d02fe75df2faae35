//! How much of a service's traffic retries may be, where a policy says (GEP-3388). Sans-IO: who counts says what time it is.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use ambit_xds::waypoint::{BoundService, RetryBudget as Wire};

use crate::view::ServiceKey;

/// Budgets by service; one that isn't here has the usual one.
pub type RetryBudgets = HashMap<ServiceKey, Arc<RetryBudget>>;

/// A service's budget, with what was spent of it.
#[derive(Debug)]
pub struct RetryBudget {
    wire: Wire,
    /// Requests, and retries, of the present interval.
    requests: Window,
    retries: Window,
    /// Retries of the present interval of those that are always allowed.
    always: Window,
}

/// A count that begins anew with each interval.
#[derive(Debug, Default)]
struct Window {
    /// Which interval.
    index: AtomicU64,
    count: AtomicU32,
}

/// The budgets of these services. What hasn't changed since `previous` goes on counting where it was.
pub(in crate::view) fn retry_budgets(services: &[BoundService], previous: Option<&RetryBudgets>) -> RetryBudgets {
    let mut budgets = RetryBudgets::new();
    for service in services {
        let Some(wire) = &service.retry_budget else { continue };
        let key =
            ServiceKey { namespace: service.namespace.as_str().into(), hostname: service.hostname.as_str().into() };
        let known = previous.and_then(|previous| previous.get(&key)).filter(|known| known.wire == *wire);
        let budget = known.cloned().unwrap_or_else(|| Arc::new(RetryBudget::new(wire)));
        budgets.insert(key, budget);
    }
    budgets
}

// === impl RetryBudget ===

impl RetryBudget {
    fn new(wire: &Wire) -> Self {
        let (requests, retries, always) = (Window::default(), Window::default(), Window::default());
        Self { wire: wire.clone(), requests, retries, always }
    }

    /// Counts a request at this time, in milliseconds since some beginning.
    pub fn request(&self, now_ms: u64) {
        self.requests.at(now_ms, self.wire.interval_ms).fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a retry at this time; false if none is left.
    #[must_use]
    pub fn take(&self, now_ms: u64) -> bool {
        let requests = u64::from(self.requests.at(now_ms, self.wire.interval_ms).load(Ordering::Relaxed));
        let most = requests * u64::from(self.wire.percent.min(100)) / 100;
        let of_budget = take(self.retries.at(now_ms, self.wire.interval_ms), u32::try_from(most).unwrap_or(u32::MAX));
        of_budget || take(self.always.at(now_ms, self.wire.count_interval_ms), self.wire.count)
    }
}

/// One more, if there are fewer than that.
fn take(count: &AtomicU32, most: u32) -> bool {
    let one_more = |count: u32| (count < most).then(|| count + 1);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
}

// === impl Window ===

impl Window {
    fn at(&self, now_ms: u64, interval_ms: u64) -> &AtomicU32 {
        let index = now_ms / interval_ms.max(1);
        // Who notices first that an interval has begun starts it.
        if self.index.swap(index, Ordering::Relaxed) != index {
            self.count.store(0, Ordering::Relaxed);
        }
        &self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(percent: u32, interval_ms: u64, count: u32, count_interval_ms: u64) -> RetryBudget {
        let policy = "a/p".to_owned();
        RetryBudget::new(&Wire { policy, percent, interval_ms, count, count_interval_ms })
    }

    fn taken(budget: &RetryBudget, now_ms: u64) -> usize {
        (0..1_000).filter(|_| budget.take(now_ms)).count()
    }

    #[test]
    fn retries_are_a_part_of_the_intervals_requests_and_what_is_always_allowed() {
        let budget = budget(20, 10_000, 3, 1_000);
        assert_eq!(taken(&budget, 0), 3, "without requests what is always allowed");
        (0..100).for_each(|_| budget.request(500));
        assert_eq!(taken(&budget, 900), 20);
        assert_eq!(taken(&budget, 1_000), 3, "each second again");
        assert_eq!(taken(&budget, 10_000), 3, "the requests of the last interval are forgotten");
    }

    #[test]
    fn nothing_can_be_nothing() {
        let none = budget(0, 1, 0, 1);
        (0..100).for_each(|_| none.request(5));
        assert_eq!(taken(&none, 5), 0);
        // Zeros on the wire divide nothing.
        assert_eq!(taken(&budget(100, 0, 0, 0), 7), 0);
    }
}
