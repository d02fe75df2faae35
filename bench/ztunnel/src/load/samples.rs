//! Times, all of them: percentiles of what was measured, not of buckets.

use std::time::Duration;

/// Times in nanoseconds; 4.29 s and more count as 4.29 s.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples {
    times_ns: Vec<u32>,
}

// === impl Samples ===

impl Samples {
    pub(crate) fn add(&mut self, time: Duration) {
        self.times_ns.push(u32::try_from(time.as_nanos()).unwrap_or(u32::MAX));
    }

    pub(crate) fn clear(&mut self) {
        self.times_ns.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.times_ns.len()
    }

    /// The time in microseconds that `share` of all are below.
    pub(crate) fn quantile_us(&mut self, share: f64) -> f64 {
        if self.times_ns.is_empty() {
            return 0.0;
        }
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "fewer than 2^52 samples, and a share is from 0 to 1"
        )]
        let at = ((self.times_ns.len() as f64 * share) as usize).min(self.times_ns.len() - 1);
        f64::from(*self.times_ns.select_nth_unstable(at).1) / 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_samples_themselves() {
        let mut samples = Samples::default();
        (1..=100).rev().for_each(|us| samples.add(Duration::from_micros(us)));
        for (share, wanted) in [(0.0, 1.0), (0.5, 51.0), (0.99, 100.0), (1.0, 100.0)] {
            assert!((samples.quantile_us(share) - wanted).abs() < f64::EPSILON, "{share}");
        }
        samples.clear();
        assert!(samples.quantile_us(0.5).abs() < f64::EPSILON);
    }
}
