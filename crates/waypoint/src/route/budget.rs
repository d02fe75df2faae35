//! How much of a service's traffic retries may be (GEP-3388): a service that is down isn't also buried under retries.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use ambit_mesh::{
    View,
    view::{ServiceKey, traffic::RetryBudget},
};

use super::way::Way;
use crate::{
    limits::{RETRY_BUDGET_MINIMUM, RETRY_BUDGET_PERCENT, RETRY_BUDGET_WINDOW, RETRY_BUDGETS},
    session::{Addressee, Session},
};

/// The usual budgets: requests and retries of the present window per service, without a lock. Services hash to counters,
/// and a collision only makes them share a budget.
#[derive(Debug)]
pub(crate) struct Budgets {
    hasher: RandomState,
    started: Instant,
    counters: Box<[Counter]>,
}

/// The budget of one request.
pub(super) enum Budget<'a> {
    /// The usual one.
    Usual(&'a Budgets, &'a Counter),
    /// The one that the service's XBackendTrafficPolicy gives it.
    Own(&'a Budgets, Arc<RetryBudget>),
}

#[derive(Debug, Default)]
pub(super) struct Counter {
    window: AtomicU64,
    requests: AtomicU64,
    retries: AtomicU64,
}

// === impl Budget ===

impl<'a> Budget<'a> {
    /// The budget of the session's target, which has this one of its own or none; nothing for a workload that was asked
    /// for by its own address.
    pub(super) fn of_target(session: &'a Session, own: Option<&Arc<RetryBudget>>) -> Option<Self> {
        let Addressee::Service(service) = &session.target.addressee else { return None };
        let budgets = &session.shared.budgets;
        Some(match own {
            Some(own) => Self::Own(budgets, Arc::clone(own)),
            None => {
                let index = *session.retry_counter.get_or_init(|| budgets.index(service));
                Self::Usual(budgets, &budgets.counters[index])
            }
        })
    }

    /// The budget of the service that this leads to; that of the session's target if it is none that is served here.
    pub(super) fn of_way(session: &'a Session, view: &View, way: &Way) -> Option<Self> {
        let service = match (way, &session.target.addressee) {
            (Way::Service { key, .. }, _) | (_, Addressee::Service(key)) => key,
            (_, Addressee::Workload(_)) => return None,
        };
        let config = &session.shared.config;
        let budgets = &session.shared.budgets;
        let bundle = view.waypoint(&config.namespace, &config.name);
        Some(match bundle.and_then(|bundle| bundle.retry_budgets.get(service)) {
            Some(own) => Self::Own(budgets, Arc::clone(own)),
            None => Self::Usual(budgets, &budgets.counters[budgets.index(service)]),
        })
    }

    /// Counts a request that begins now.
    pub(super) fn request(&self, now: Instant) {
        match self {
            Self::Usual(budgets, counter) => budgets.request(counter, now),
            Self::Own(budgets, own) => own.request(budgets.milliseconds(now)),
        }
    }

    /// Takes a retry; false if there is none left.
    pub(super) fn take(&self) -> bool {
        match self {
            Self::Usual(budgets, counter) => budgets.take(counter),
            Self::Own(budgets, own) => own.take(budgets.milliseconds(Instant::now())),
        }
    }
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
    fn request(&self, counter: &Counter, now: Instant) {
        self.begin(counter, now);
        counter.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn take(&self, counter: &Counter) -> bool {
        self.begin(counter, Instant::now());
        let requests = counter.requests.load(Ordering::Relaxed);
        let most = (requests * RETRY_BUDGET_PERCENT / 100).max(RETRY_BUDGET_MINIMUM);
        let taken = counter.retries.fetch_add(1, Ordering::Relaxed) < most;
        if !taken {
            counter.retries.fetch_sub(1, Ordering::Relaxed);
        }
        taken
    }

    /// INVARIANT: less than the number of counters.
    fn index(&self, service: &ServiceKey) -> usize {
        (self.hasher.hash_one(service) % self.counters.len() as u64) as usize
    }

    /// Begins a new window if its time has come.
    fn begin(&self, counter: &Counter, now: Instant) {
        let window = now.saturating_duration_since(self.started).as_secs() / RETRY_BUDGET_WINDOW.as_secs();
        let known = counter.window.load(Ordering::Relaxed);
        // Who notices first starts it. A request that began in the last window changes nothing.
        if window > known
            && counter.window.compare_exchange(known, window, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            counter.requests.store(0, Ordering::Relaxed);
            counter.retries.store(0, Ordering::Relaxed);
        }
    }

    fn milliseconds(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_part_of_requests_and_never_fewer_than_the_minimum() {
        let budgets = Budgets::default();
        let key = |name: &str| ServiceKey { namespace: "a".into(), hostname: name.into() };
        let service = &budgets.counters[budgets.index(&key("s"))];
        let taken = |budgets: &Budgets| (0..10_000).filter(|_| budgets.take(service)).count() as u64;
        assert_eq!(taken(&budgets), RETRY_BUDGET_MINIMUM);
        let requests = 10 * RETRY_BUDGET_MINIMUM * 100 / RETRY_BUDGET_PERCENT;
        (0..requests).for_each(|_| budgets.request(service, Instant::now()));
        // A window may have ended meanwhile, never to give more.
        assert!(taken(&budgets) <= 10 * RETRY_BUDGET_MINIMUM);
    }

    #[test]
    fn a_window_begins_anew_when_its_time_has_come_and_not_before() {
        let budgets = Budgets::default();
        let service = &budgets.counters[0];
        let later = budgets.started + 3 * RETRY_BUDGET_WINDOW;
        (0..7).for_each(|_| budgets.request(service, budgets.started));
        assert_eq!(service.requests.load(Ordering::Relaxed), 7);
        budgets.request(service, later);
        assert_eq!(service.requests.load(Ordering::Relaxed), 1);
        budgets.request(service, budgets.started);
        assert_eq!(service.requests.load(Ordering::Relaxed), 2, "a late one takes nothing back");
    }
}
