//! Medians over many batches: what a shared machine takes away hits few batches, and a median doesn't see few.

use std::time::{Duration, Instant};

/// Long enough that reading the clock doesn't count.
const BATCH: Duration = Duration::from_micros(200);

/// Batches of one measurement, time allowing.
const MAX_BATCHES: usize = 2001;

/// Time spent on one measurement, except that [`MIN_BATCHES`] are always run.
const MAX_TIME: Duration = Duration::from_millis(600);
const MIN_BATCHES: usize = 9;

/// Median time of one `operation`, in nanoseconds.
pub(crate) fn median_ns(mut operation: impl FnMut()) -> f64 {
    let mut batch = |count: u32| {
        let start = Instant::now();
        (0..count).for_each(|_| operation());
        start.elapsed()
    };
    let mut count = 1;
    while batch(count) < BATCH {
        count *= 2;
    }
    let start = Instant::now();
    let mut times = Vec::with_capacity(MAX_BATCHES);
    while times.len() < MIN_BATCHES || (times.len() < MAX_BATCHES && start.elapsed() < MAX_TIME) {
        times.push(batch(count).as_nanos());
    }
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "a batch is far shorter than 2^52 ns")]
    let median = median as f64;
    median / f64::from(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_of_one_operation() {
        let slow = median_ns(|| std::thread::sleep(Duration::from_millis(2)));
        assert!((2e6..2e7).contains(&slow), "{slow}");
        let fast = median_ns(|| std::hint::black_box(()));
        assert!(fast < 1000.0, "{fast}");
    }
}
