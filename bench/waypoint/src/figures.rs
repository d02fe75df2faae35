//! What is measured of one proxy in one row, and what must hold of both.

use serde::Serialize;

use crate::scenario::Shape;

/// Of one round, or medians of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Figures {
    /// Requests a second when saturated.
    pub(crate) rps: f64,
    /// Processor seconds for 10,000 requests when saturated.
    pub(crate) cpu: f64,
    /// Share of its core that it used when saturated. Well below 1, the clients were what limited it, and more was in it.
    pub(crate) busy: f64,
    /// Milliseconds at the given rate.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    /// Processor seconds for 10,000 requests at the given rate.
    pub(crate) rate_cpu: f64,
    /// Resident MiB after both.
    pub(crate) rss: f64,
}

/// Ambit's figures over Envoy's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[expect(clippy::struct_field_names, reason = "the names that readers of the file know")]
pub(crate) struct Ratios {
    pub(crate) rps_ratio: f64,
    pub(crate) cpu_ratio: f64,
    pub(crate) p50_ratio: f64,
    pub(crate) p99_ratio: f64,
    pub(crate) p999_ratio: f64,
    pub(crate) rate_cpu_ratio: f64,
    pub(crate) rss_ratio: f64,
}

/// What a ratio must hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bar {
    AtLeast(f64),
    AtMost(f64),
}

/// Which ratios a row must hold, as tables name them.
pub(crate) fn bars(shape: Shape, ratios: &Ratios) -> [(&'static str, f64, Bar); 4] {
    let rps = match shape {
        Shape::L7 => 2.5,
        Shape::Hbone => 2.0,
    };
    [
        ("requests/s", ratios.rps_ratio, Bar::AtLeast(rps)),
        ("CPU", ratios.cpu_ratio, Bar::AtMost(0.45)),
        ("p99", ratios.p99_ratio, Bar::AtMost(0.6)),
        ("RSS", ratios.rss_ratio, Bar::AtMost(0.35)),
    ]
}

/// The middle one, or the middle between the two.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values.get(middle).copied(),
        _ => Some(f64::midpoint(*values.get(middle.checked_sub(1)?)?, *values.get(middle)?)),
    }
}

// === impl Figures ===

impl Figures {
    /// Medians, each for itself.
    pub(crate) fn medians(rounds: &[Self]) -> Option<Self> {
        let of = |figure: fn(&Self) -> f64| median(rounds.iter().map(figure).collect());
        Some(Self {
            rps: of(|figures| figures.rps)?,
            cpu: of(|figures| figures.cpu)?,
            busy: of(|figures| figures.busy)?,
            p50: of(|figures| figures.p50)?,
            p99: of(|figures| figures.p99)?,
            p999: of(|figures| figures.p999)?,
            rate_cpu: of(|figures| figures.rate_cpu)?,
            rss: of(|figures| figures.rss)?,
        })
    }
}

// === impl Ratios ===

impl Ratios {
    /// Medians over the rounds: what disturbs one round disturbs both proxies in it, more or less.
    pub(crate) fn of(ours: &[Figures], theirs: &[Figures]) -> Option<Self> {
        let of = |figure: fn(&Figures) -> f64| {
            median(ours.iter().zip(theirs).map(|(ours, theirs)| figure(ours) / figure(theirs)).collect())
                .filter(|ratio| ratio.is_finite())
        };
        Some(Self {
            rps_ratio: of(|figures| figures.rps)?,
            cpu_ratio: of(|figures| figures.cpu)?,
            p50_ratio: of(|figures| figures.p50)?,
            p99_ratio: of(|figures| figures.p99)?,
            p999_ratio: of(|figures| figures.p999)?,
            rate_cpu_ratio: of(|figures| figures.rate_cpu)?,
            rss_ratio: of(|figures| figures.rss)?,
        })
    }
}

// === impl Bar ===

impl Bar {
    pub(crate) fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bar) => value >= bar,
            Self::AtMost(bar) => value <= bar,
        }
    }
}

impl std::fmt::Display for Bar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(bar) => write!(f, ">= {bar}"),
            Self::AtMost(bar) => write!(f, "<= {bar}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_medians_of_the_rounds_ratios() {
        let figures =
            |rps| Figures { rps, cpu: 1.0, busy: 1.0, p50: 1.0, p99: 1.0, p999: 1.0, rate_cpu: 1.0, rss: 1.0 };
        let (ours, theirs) = ([10.0, 30.0, 99.0].map(figures), [10.0, 10.0, 11.0].map(figures));
        let ratios = Ratios::of(&ours, &theirs).expect("three rounds");
        assert!((ratios.rps_ratio - 3.0).abs() < 1e-9 && (ratios.cpu_ratio - 1.0).abs() < 1e-9);
        let medians = Figures::medians(&ours).expect("three rounds");
        assert!((medians.rps - 30.0).abs() < 1e-9);
        assert_eq!(Ratios::of(&[], &[]), None);
        let [(_, value, bar), ..] = bars(Shape::L7, &ratios);
        assert!(bar.holds(value) && !bar.holds(2.4) && Bar::AtMost(0.45).holds(0.45));
    }
}
