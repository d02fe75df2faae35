//! Pauses between attempts: doubling, capped, and drawn evenly from zero to there, so that the clients of a server that
//! went away don't come back together.

use std::time::Duration;

use crate::random;

/// The pauses of one client.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

// === impl Backoff ===

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// The pause before the next attempt.
    pub(super) fn next(&mut self) -> Duration {
        let most = self.upper_end();
        self.failures = self.failures.saturating_add(1);
        most.mul_f64(random::fraction())
    }

    /// The next pause will be a first one.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    fn upper_end(&self) -> Duration {
        // Doubled 31 times, the smallest sensible pause is past any sensible cap.
        self.first.saturating_mul(1 << self.failures.min(31)).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap_and_start_again() {
        let (first, longest) = (Duration::from_millis(10), Duration::from_secs(15));
        let mut backoff = Backoff::new(first, longest);
        let mut ends = Vec::new();
        for _ in 0..100 {
            let end = backoff.upper_end();
            assert!(backoff.next() <= end);
            ends.push(end);
        }
        assert_eq!(ends[..4], [10, 20, 40, 80].map(Duration::from_millis));
        assert!(ends[11..].iter().all(|end| *end == longest));
        backoff.reset();
        assert_eq!(backoff.upper_end(), first);
    }

    #[test]
    fn pauses_are_spread_from_zero_to_their_end() {
        let longest = Duration::from_secs(1);
        let mut backoff = Backoff::new(longest, longest);
        let drawn: Vec<_> = (0..1000).map(|_| backoff.next()).collect();
        for quarter in 0..4 {
            let (from, to) = (longest * quarter / 4, longest * (quarter + 1) / 4);
            let inside = drawn.iter().filter(|pause| (from..to).contains(*pause)).count();
            // 250 are expected; 150 is more than seven standard deviations away.
            assert!((150..350).contains(&inside), "{inside} of 1000 in quarter {quarter}");
        }
    }
}
