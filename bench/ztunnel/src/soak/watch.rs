//! What the proxies hold, second by second, and whether it grows.

use std::io;

use serde::Serialize;

use crate::machine;

/// What one proxy holds at one moment.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) resident_kib: f64,
    pub(crate) descriptors: f64,
    pub(crate) threads: f64,
}

/// What one proxy held over time.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Record {
    pub(crate) name: &'static str,
    /// Before any traffic.
    pub(crate) before: Option<Sample>,
    /// After all traffic.
    pub(crate) after: Option<Sample>,
    /// Medians of windows of equal length; the first ones are left out as warm-up.
    pub(crate) windows: Vec<Sample>,
    /// From the lowest window to the highest one, as a share of the lowest.
    pub(crate) resident_spread: f64,
    #[serde(skip)]
    samples: Vec<Sample>,
}

// === impl Sample ===

impl Sample {
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let descriptors = u32::try_from(machine::descriptors(pid)?).unwrap_or(u32::MAX);
        let (resident_kib, threads) = (machine::resident_kib(pid)?, machine::threads(pid)?);
        Ok(Self { resident_kib, descriptors: f64::from(descriptors), threads })
    }

    fn median(of: &[Self]) -> Self {
        let middle = |what: fn(&Self) -> f64| {
            let mut values: Vec<f64> = of.iter().map(what).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or_default()
        };
        Self {
            resident_kib: middle(|sample| sample.resident_kib),
            descriptors: middle(|sample| sample.descriptors),
            threads: middle(|sample| sample.threads),
        }
    }
}

// === impl Record ===

impl Record {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, ..Self::default() }
    }

    pub(crate) fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// Makes windows of so many samples, without the first `warm_up` samples.
    pub(crate) fn close(&mut self, warm_up: usize, window: usize) {
        let rest = self.samples.get(warm_up..).unwrap_or_default();
        self.windows = rest.chunks_exact(window.max(1)).map(Sample::median).collect();
        let each = self.windows.iter().map(|window| window.resident_kib);
        let (low, high) = each.fold((f64::MAX, 0.0_f64), |(low, high), kib| (low.min(kib), high.max(kib)));
        self.resident_spread = if self.windows.is_empty() { 0.0 } else { high / low - 1.0 };
    }

    /// By how much the last window exceeds the first, in descriptors and threads.
    pub(crate) fn growth(&self) -> (f64, f64) {
        match (self.windows.first(), self.windows.last()) {
            (Some(first), Some(last)) => (last.descriptors - first.descriptors, last.threads - first.threads),
            _ => (0.0, 0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_show_growth_and_forgive_single_peaks() {
        let mut record = Record::new("test");
        for second in 0..100 {
            let peak = if second % 10 == 3 { 500.0 } else { 0.0 };
            let warm = if second < 20 { 300.0 } else { 0.0 };
            record.add(Sample { resident_kib: 1000.0 + peak + warm, descriptors: 20.0, threads: 4.0 });
        }
        record.close(20, 20);
        assert_eq!(record.windows.len(), 4);
        assert!(record.resident_spread < 0.001, "{record:?}");
        for second in 0..40 {
            record.add(Sample { resident_kib: 1060.0, descriptors: 20.0 + f64::from(second), threads: 5.0 });
        }
        record.close(20, 20);
        assert!((0.05..0.07).contains(&record.resident_spread), "{record:?}");
        assert_eq!(record.growth(), (30.0, 1.0));
    }
}
