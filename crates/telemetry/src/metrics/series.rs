//! Counters by label sets, bounded in number.

use std::{
    borrow::Borrow,
    collections::HashSet,
    hash::{Hash, Hasher},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::limits::{SERIES_IDLE, SERIES_IDLE_WHEN_FULL, SERIES_SWEEP_PAUSE};

/// The values of one label set. Whoever holds it counts without looking it up again, and keeps it from being forgotten.
#[derive(Debug)]
pub(crate) struct Series<K, V> {
    pub(crate) labels: K,
    pub(crate) values: V,
    /// Seconds after the set's start.
    last_use: AtomicU64,
}

/// Label sets of which a bounded number is kept. Past the bound, new ones share what stands for all the rest.
#[derive(Debug)]
pub(crate) struct SeriesSet<K, V> {
    limit: usize,
    /// What a label set is counted as when there is no room for it. It must map onto few label sets.
    rest: fn(&K) -> K,
    kept: RwLock<HashSet<ByLabels<K, V>>>,
    started: Instant,
    last_sweep: AtomicU64,
    overflowed: AtomicU64,
}

#[derive(Debug)]
struct ByLabels<K, V>(Arc<Series<K, V>>);

// === impl SeriesSet ===

impl<K: Clone + Eq + Hash, V: Default> SeriesSet<K, V> {
    pub(crate) fn new(limit: usize, rest: fn(&K) -> K) -> Self {
        Self {
            limit,
            rest,
            kept: RwLock::default(),
            started: Instant::now(),
            last_sweep: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
        }
    }

    /// The series of these labels, or the one that stands for the rest.
    pub(crate) fn get(&self, labels: &K) -> Arc<Series<K, V>> {
        if let Some(found) = self.find(labels) {
            return found;
        }
        self.make_room();
        if let Some(made) = self.insert(labels, self.limit) {
            return made;
        }
        self.overflowed.fetch_add(1, Ordering::Relaxed);
        let rest = (self.rest)(labels);
        self.find(&rest).or_else(|| self.insert(&rest, usize::MAX)).unwrap_or_else(|| self.series(&rest))
    }

    /// Notes that the series was used just now.
    pub(crate) fn touch(&self, series: &Series<K, V>) {
        series.last_use.store(self.seconds(), Ordering::Relaxed);
    }

    /// All series, without those that nobody has used for long: they are forgotten.
    pub(crate) fn snapshot(&self) -> Vec<Arc<Series<K, V>>> {
        self.sweep(SERIES_IDLE);
        self.all()
    }

    /// All series, however long ago they were used.
    pub(crate) fn all(&self) -> Vec<Arc<Series<K, V>>> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        kept.iter().map(|entry| Arc::clone(&entry.0)).collect()
    }

    /// How often a label set had to be counted with the rest.
    pub(crate) fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }

    /// Forgets what nobody holds and nobody has used for this long.
    pub(crate) fn sweep(&self, idle: Duration) {
        let Some(before) = self.seconds().checked_sub(idle.as_secs()) else { return };
        let is_idle = |entry: &ByLabels<K, V>| {
            Arc::strong_count(&entry.0) == 1 && entry.0.last_use.load(Ordering::Relaxed) <= before
        };
        // A search that finds nothing must not keep the data plane waiting.
        if self.kept.read().unwrap_or_else(PoisonError::into_inner).iter().any(is_idle) {
            self.kept.write().unwrap_or_else(PoisonError::into_inner).retain(|entry| !is_idle(entry));
        }
    }

    fn find(&self, labels: &K) -> Option<Arc<Series<K, V>>> {
        self.kept.read().unwrap_or_else(PoisonError::into_inner).get(labels).map(|entry| Arc::clone(&entry.0))
    }

    fn insert(&self, labels: &K, limit: usize) -> Option<Arc<Series<K, V>>> {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = kept.get(labels) {
            return Some(Arc::clone(&found.0));
        }
        if kept.len() >= limit {
            return None;
        }
        let series = self.series(labels);
        kept.insert(ByLabels(Arc::clone(&series)));
        Some(series)
    }

    fn make_room(&self) {
        let (now, last) = (self.seconds(), self.last_sweep.load(Ordering::Relaxed));
        let full = self.kept.read().unwrap_or_else(PoisonError::into_inner).len() >= self.limit;
        let due = now >= last.saturating_add(SERIES_SWEEP_PAUSE.as_secs());
        if full && due && self.last_sweep.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.sweep(SERIES_IDLE_WHEN_FULL);
        }
    }

    fn series(&self, labels: &K) -> Arc<Series<K, V>> {
        let last_use = AtomicU64::new(self.seconds());
        Arc::new(Series { labels: labels.clone(), values: V::default(), last_use })
    }

    fn seconds(&self) -> u64 {
        self.started.elapsed().as_secs()
    }
}

// === impl ByLabels ===

impl<K, V> Borrow<K> for ByLabels<K, V> {
    fn borrow(&self) -> &K {
        &self.0.labels
    }
}

impl<K: Hash, V> Hash for ByLabels<K, V> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.labels.hash(state);
    }
}

impl<K: PartialEq, V> PartialEq for ByLabels<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.0.labels == other.0.labels
    }
}

impl<K: Eq, V> Eq for ByLabels<K, V> {}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, atomic::AtomicU64, atomic::Ordering},
        time::Duration,
    };

    use super::SeriesSet;

    type Set = SeriesSet<u32, AtomicU64>;

    #[test]
    fn past_the_bound_new_label_sets_share_one_and_are_counted() {
        let set = Set::new(2, |_| 0);
        for label in [7, 8, 7, 9, 10, 8] {
            set.get(&label).values.fetch_add(1, Ordering::Relaxed);
        }
        let mut found: Vec<_> =
            set.snapshot().iter().map(|series| (series.labels, series.values.load(Ordering::Relaxed))).collect();
        found.sort_unstable();
        assert_eq!((found, set.overflowed()), (vec![(0, 2), (7, 2), (8, 2)], 2));
    }

    #[test]
    fn what_somebody_holds_or_has_used_lately_is_kept() {
        let set = Set::new(8, |_| 0);
        let held = set.get(&1);
        drop(set.get(&2));
        set.sweep(Duration::from_secs(60));
        assert_eq!(set.snapshot().len(), 2, "both were used lately");
        set.sweep(Duration::ZERO);
        let left = set.snapshot();
        assert_eq!(left.iter().map(|series| series.labels).collect::<Vec<_>>(), [1]);
        drop((held, left));
        set.sweep(Duration::ZERO);
        assert!(set.snapshot().is_empty());
    }

    #[test]
    fn one_label_set_is_one_series_for_all_threads() {
        let set = Arc::new(Set::new(64, |_| 0));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let set = Arc::clone(&set);
                std::thread::spawn(move || {
                    for i in 0..4000 {
                        set.get(&(i % 40)).values.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        let all = set.snapshot();
        assert_eq!(all.len(), 40);
        assert!(all.iter().all(|series| series.values.load(Ordering::Relaxed) == 400));
    }
}
