//! Token buckets. Sans-IO: who takes a token says what time it is.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// How often buckets that stand for nothing any more are looked for, at most.
const SWEEP_INTERVAL_NANOS: u64 = 100_000_000;
/// Longest time that a full bucket can stand for.
const MAX_CREDIT_NANOS: u64 = u64::MAX / 4;

/// How fast tokens come back, and how many there can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Time in which one comes back.
    token_nanos: u64,
    /// How far ahead of time requests may be.
    credit_nanos: u64,
}

/// One bucket, as the time at which it will be full again: one number, so that taking a token needs no lock.
#[derive(Debug, Default)]
pub struct Bucket {
    full_at: AtomicU64,
}

/// The buckets of one rate limit, by key.
#[derive(Debug)]
pub struct Buckets {
    rate: Rate,
    hashers: [RandomState; 2],
    most: usize,
    by_key: RwLock<Known>,
    /// Of all keys that have none of their own.
    shared: Bucket,
}

#[derive(Debug, Default)]
struct Known {
    /// By the hash of the key under two secret keys: nobody can make two keys meet, and long keys take no room.
    buckets: HashMap<u128, Arc<Bucket>>,
    /// When it is worth looking again for buckets to forget.
    sweep_at: u64,
}

// === impl Rate ===

impl Rate {
    /// So many tokens per interval, and so many at once. None of them is 0.
    #[must_use]
    pub fn new(tokens: u32, interval: Duration, burst: u32) -> Self {
        let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        // Rounded so that never more than the limit comes through.
        let token_nanos = interval.div_ceil(u64::from(tokens.max(1))).clamp(1, MAX_CREDIT_NANOS);
        let credit_nanos = token_nanos.saturating_mul(u64::from(burst.max(1) - 1)).min(MAX_CREDIT_NANOS);
        Self { token_nanos, credit_nanos }
    }
}

// === impl Bucket ===

impl Bucket {
    /// Takes a token at this time, in nanoseconds since some beginning.
    ///
    /// # Errors
    /// How long it takes until there is one.
    pub fn take(&self, rate: &Rate, now: u64) -> Result<(), Duration> {
        let next = |full_at: u64| {
            let from = full_at.max(now);
            (from - now <= rate.credit_nanos).then(|| from.saturating_add(rate.token_nanos))
        };
        let taken = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        taken
            .map(drop)
            .map_err(|full_at| Duration::from_nanos(full_at.saturating_sub(now).saturating_sub(rate.credit_nanos)))
    }

    fn is_full(&self, now: u64) -> bool {
        self.full_at.load(Ordering::Relaxed) <= now
    }
}

// === impl Buckets ===

impl Buckets {
    /// Without keys; at most this many are told apart at a time.
    #[must_use]
    pub fn new(rate: Rate, most: usize) -> Self {
        let hashers = [RandomState::new(), RandomState::new()];
        Self { rate, hashers, most, by_key: RwLock::default(), shared: Bucket::default() }
    }

    /// How fast tokens come back.
    #[must_use]
    pub fn rate(&self) -> &Rate {
        &self.rate
    }

    /// The bucket of everything that has none of its own.
    #[must_use]
    pub fn shared(&self) -> &Bucket {
        &self.shared
    }

    /// The bucket of this key, which several parts make; nothing if there are too many keys now, so that it has to share.
    /// As long as it is held, the key keeps it.
    pub fn of<'a>(&self, key: impl Iterator<Item = &'a [u8]>, now: u64) -> Option<Arc<Bucket>> {
        let key = self.hash(key);
        let known = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = known.buckets.get(&key) {
            return Some(Arc::clone(bucket));
        }
        if known.buckets.len() >= self.most && now < known.sweep_at {
            return None;
        }
        drop(known);
        let mut known = self.by_key.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = known.buckets.get(&key) {
            return Some(Arc::clone(bucket));
        }
        if known.buckets.len() >= self.most {
            known.sweep(now);
        }
        if known.buckets.len() >= self.most {
            return None;
        }
        Some(Arc::clone(known.buckets.entry(key).or_default()))
    }

    /// Keys that have a bucket of their own.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_key.read().unwrap_or_else(PoisonError::into_inner).buckets.len()
    }

    /// True if no key has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn hash<'a>(&self, key: impl Iterator<Item = &'a [u8]>) -> u128 {
        let [mut high, mut low] = self.hashers.each_ref().map(BuildHasher::build_hasher);
        for part in key {
            // With its length, so that no two lists of parts are one.
            part.hash(&mut high);
            part.hash(&mut low);
        }
        u128::from(high.finish()) << 64 | u128::from(low.finish())
    }
}

// === impl Known ===

impl Known {
    /// Forgets keys that are as if they had never come: their bucket is full, and nobody holds it.
    fn sweep(&mut self, now: u64) {
        if now < self.sweep_at {
            return;
        }
        self.sweep_at = now.saturating_add(SWEEP_INTERVAL_NANOS);
        self.buckets.retain(|_, bucket| Arc::strong_count(bucket) > 1 || !bucket.is_full(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn key(text: &str) -> std::iter::Once<&[u8]> {
        std::iter::once(text.as_bytes())
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_as_fast_as_tokens_come_back() {
        let rate = Rate::new(2, Duration::from_secs(1), 3);
        let bucket = Bucket::default();
        let mut now = 7 * SECOND;
        for _ in 0..3 {
            assert_eq!(bucket.take(&rate, now), Ok(()));
        }
        assert_eq!(bucket.take(&rate, now), Err(Duration::from_millis(500)));
        now += SECOND / 4;
        assert_eq!(bucket.take(&rate, now), Err(Duration::from_millis(250)));
        now += SECOND / 4;
        assert_eq!(bucket.take(&rate, now), Ok(()));
        assert_eq!(bucket.take(&rate, now), Err(Duration::from_millis(500)));
        // However long nothing comes, no more than the burst is saved up.
        now += 1_000 * SECOND;
        assert_eq!((0..10).filter(|_| bucket.take(&rate, now).is_ok()).count(), 3);
        // Time may seem to run backwards from one core to another.
        assert!(bucket.take(&rate, now - SECOND).is_err());
    }

    #[test]
    fn no_limit_lets_more_through_than_it_says() {
        for (tokens, interval, burst) in
            [(3, Duration::from_secs(1), 1), (7, Duration::from_secs(10), 7), (1_000_000, Duration::from_secs(1), 10)]
        {
            let (rate, bucket) = (Rate::new(tokens, interval, burst), Bucket::default());
            let window = u64::try_from(interval.as_nanos()).expect("short");
            let step = (window / (u64::from(tokens) * 3)).max(1);
            let mut passed = 0_u64;
            for now in (0..window).step_by(usize::try_from(step).expect("fits")) {
                passed += u64::from(bucket.take(&rate, now).is_ok());
            }
            assert!(passed <= u64::from(tokens + burst), "{passed} of {tokens} and {burst}");
            assert!(passed + 1 >= u64::from(tokens.min(tokens + burst - 1)), "{passed} of {tokens}");
        }
    }

    #[test]
    fn extreme_rates_neither_overflow_nor_open() {
        let rate = Rate::new(1, Duration::from_secs(24 * 3600), 1_000_000);
        let bucket = Bucket::default();
        let passed = (0..2_000_000).filter(|_| bucket.take(&rate, u64::MAX / 8).is_ok()).count();
        assert!(passed <= 1_000_000 && passed > 1_000, "{passed}");
        let rate = Rate::new(1_000_000, Duration::from_millis(1), 1);
        assert_eq!(rate, Rate { token_nanos: 1, credit_nanos: 0 });
    }

    #[test]
    fn many_threads_take_no_more_than_there_are() {
        let (rate, bucket) = (Rate::new(1, Duration::from_secs(3600), 1_000), Bucket::default());
        let count = || (0..1_000).filter(|_| bucket.take(&rate, 1).is_ok()).count();
        let passed: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!(passed, 1_000);
    }

    #[test]
    fn keys_are_bounded_and_only_idle_ones_are_forgotten() {
        let buckets = Buckets::new(Rate::new(1, Duration::from_secs(1), 1), 2);
        let take = |bucket: &Bucket, now| bucket.take(buckets.rate(), now).is_ok();
        let mut now = SECOND;
        let held = buckets.of(key("held"), now).expect("room");
        assert!(take(&buckets.of(key("busy"), now).expect("room"), now));
        assert!(Arc::ptr_eq(&held, &buckets.of(key("held"), now).expect("known")));
        assert!(buckets.of(key("third"), now).is_none(), "one is held, the other in use");
        // Full again, and nobody holds it. It isn't looked for again at once.
        now += SECOND / 1_000;
        assert!(buckets.of(key("third"), now).is_none());
        now += 2 * SECOND;
        assert!(buckets.of(key("third"), now).is_some());
        assert_eq!(buckets.len(), 2);
        assert!(Arc::ptr_eq(&held, &buckets.of(key("held"), now).expect("held")));
        drop(held);
        now += SECOND;
        assert!(buckets.of(key("fourth"), now).is_some());
        assert!(!buckets.is_empty());
    }

    #[test]
    fn a_list_of_values_is_not_the_same_as_another() {
        let buckets = Buckets::new(Rate::new(1, Duration::from_secs(1), 1), 10);
        let lists: [&[&[u8]]; 5] = [&[], &[b""], &[b"a", b"b"], &[b"ab"], &[b"", b""]];
        for list in lists {
            buckets.of(list.iter().copied(), 0).expect("room");
        }
        assert_eq!(buckets.len(), lists.len());
    }
}
