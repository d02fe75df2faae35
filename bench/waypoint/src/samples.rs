//! How long exchanges took.

use std::time::Duration;

/// Times of exchanges, in nanoseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<u32>);

// === impl Samples ===

impl Samples {
    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(u32::try_from(time.as_nanos()).unwrap_or(u32::MAX));
    }

    /// The times in milliseconds that these shares of the exchanges didn't exceed.
    pub(crate) fn quantiles_ms<const N: usize>(mut self, shares: [f64; N]) -> Option<[f64; N]> {
        self.0.sort_unstable();
        let last = self.0.len().checked_sub(1)?;
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counts here are far below 2^52, and shares are between 0 and 1"
        )]
        let at = |share: f64| self.0[((last as f64) * share).round() as usize];
        Some(shares.map(|share| f64::from(at(share)) / 1e6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_that_were_measured() {
        let mut samples = Samples::default();
        (1..=101).rev().for_each(|ms| samples.add(Duration::from_millis(ms)));
        assert_eq!(samples.quantiles_ms([0.5, 0.99, 1.0]), Some([51.0, 100.0, 101.0]));
        assert_eq!(Samples::default().quantiles_ms([0.5]), None);
    }
}
