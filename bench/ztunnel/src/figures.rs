//! The figures, what they are called, and what they must hold (`issue 4`).

use std::collections::BTreeMap;

/// What one round found, by figure.
pub(crate) type Figures = BTreeMap<Figure, f64>;

/// One thing that is measured. Figures of processor time and memory are of both ends together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Figure {
    BulkOneGbit,
    BulkOneCpu,
    BulkOneMachine,
    BulkEightGbit,
    BulkEightCpu,
    BulkEightMachine,
    ExchangeManyRate,
    ExchangeManyCpu,
    ExchangeManyTail,
    ExchangeOneRate,
    ExchangeOneMedian,
    ExchangeOneTail,
    ExchangeOneTailAdded,
    ExchangeOneCpu,
    ConnectRate,
    ConnectCpu,
    ConnectTail,
    TunnelRate,
    TunnelCpu,
    SustainedRate,
    SustainedLastRate,
    SustainedFailures,
    IdleMemory,
    HeldMemory,
    AfterMemory,
    AfterMemoryShare,
    ChoiceCpu,
}

/// Whether more or less is better, and how much of it is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bar {
    /// Ambit over ztunnel, at least this; and what to reach for.
    RatioAtLeast(f64, f64),
    /// Ambit over ztunnel, at most this; and what to reach for.
    RatioAtMost(f64, f64),
    /// Ambit alone, at most this.
    AtMost(f64),
    /// Nothing is asked; it explains the others.
    None,
}

// === impl Figure ===

impl Figure {
    pub(crate) const ALL: [Self; 27] = [
        Self::BulkOneGbit,
        Self::BulkOneCpu,
        Self::BulkOneMachine,
        Self::BulkEightGbit,
        Self::BulkEightCpu,
        Self::BulkEightMachine,
        Self::ExchangeManyRate,
        Self::ExchangeManyCpu,
        Self::ExchangeManyTail,
        Self::ExchangeOneRate,
        Self::ExchangeOneMedian,
        Self::ExchangeOneTail,
        Self::ExchangeOneTailAdded,
        Self::ExchangeOneCpu,
        Self::ConnectRate,
        Self::ConnectCpu,
        Self::ConnectTail,
        Self::TunnelRate,
        Self::TunnelCpu,
        Self::SustainedRate,
        Self::SustainedLastRate,
        Self::SustainedFailures,
        Self::IdleMemory,
        Self::HeldMemory,
        Self::AfterMemory,
        Self::AfterMemoryShare,
        Self::ChoiceCpu,
    ];

    /// What it is, with its unit, and its bar.
    pub(crate) fn describe(self) -> (&'static str, Bar) {
        use Bar::{AtMost, None, RatioAtLeast, RatioAtMost};
        match self {
            Self::BulkOneGbit => ("bulk, 1 stream, Gbit/s", RatioAtLeast(1.2, 1.8)),
            Self::BulkOneCpu => ("bulk, 1 stream, proxies' CPU s/GiB", RatioAtMost(0.8, 0.5)),
            Self::BulkOneMachine => ("bulk, 1 stream, whole machine's CPU s/GiB", None),
            Self::BulkEightGbit => ("bulk, 8 streams, Gbit/s", RatioAtLeast(1.2, 1.8)),
            Self::BulkEightCpu => ("bulk, 8 streams, proxies' CPU s/GiB", RatioAtMost(0.8, 0.5)),
            Self::BulkEightMachine => ("bulk, 8 streams, whole machine's CPU s/GiB", None),
            Self::ExchangeManyRate => ("64-byte exchanges at 64 connections, 1/s", RatioAtLeast(1.2, 2.0)),
            Self::ExchangeManyCpu => ("the same, proxies' CPU us each", RatioAtMost(0.8, 0.5)),
            Self::ExchangeManyTail => ("the same, p99 us", None),
            Self::ExchangeOneRate => ("64-byte exchanges at 1 connection, 1/s", None),
            Self::ExchangeOneMedian => ("the same, p50 us", None),
            Self::ExchangeOneTail => ("the same, p99 us", None),
            Self::ExchangeOneTailAdded => ("the same, p99 us added over direct", RatioAtMost(0.8, 0.5)),
            Self::ExchangeOneCpu => ("the same, proxies' CPU us each", None),
            Self::ConnectRate => ("new connections at 16 clients, 1/s", RatioAtLeast(1.5, 3.0)),
            Self::ConnectCpu => ("the same, proxies' CPU us each", None),
            Self::ConnectTail => ("the same, p99 us", None),
            Self::TunnelRate => ("new tunnels at 16 clients, 1/s", RatioAtLeast(1.3, 1.3)),
            Self::TunnelCpu => ("the same, proxies' CPU us each", RatioAtMost(0.7, 0.7)),
            Self::SustainedRate => ("new connections for 60 s, 1/s over all", None),
            Self::SustainedLastRate => ("the same, 1/s in the last half", RatioAtLeast(10.0, 15.0)),
            Self::SustainedFailures => ("the same, connections that failed", AtMost(0.0)),
            Self::IdleMemory => ("memory when idle, KiB", RatioAtMost(1.0, 1.0)),
            Self::HeldMemory => ("memory more per 1,000 idle connections, KiB", RatioAtMost(0.8, 0.8)),
            Self::AfterMemory => ("memory after 10,000 came and went, KiB", None),
            Self::AfterMemoryShare => ("the same, over idle", AtMost(1.2)),
            Self::ChoiceCpu => ("choosing from 10,000 endpoints, CPU us more than from 1", AtMost(2.0)),
        }
    }
}

// === impl Bar ===

impl Bar {
    /// The bar in words, and whether it holds; nothing where it can't be told.
    pub(crate) fn judge(self, ours: f64, theirs: Option<f64>) -> (String, Option<bool>) {
        let ratio = theirs.map(|theirs| ours / theirs);
        match self {
            Self::RatioAtLeast(bar, reach) => (format!(">= {bar} ({reach})"), ratio.map(|ratio| ratio >= bar)),
            Self::RatioAtMost(bar, reach) => (format!("<= {bar} ({reach})"), ratio.map(|ratio| ratio <= bar)),
            Self::AtMost(bar) => (format!("itself <= {bar}"), Some(ours <= bar)),
            Self::None => (String::new(), None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_hold_or_not() {
        let cases = [
            (Bar::RatioAtLeast(1.2, 1.8), 12.0, Some(10.0), Some(true)),
            (Bar::RatioAtLeast(1.2, 1.8), 11.0, Some(10.0), Some(false)),
            (Bar::RatioAtMost(0.8, 0.5), 8.0, Some(10.0), Some(true)),
            (Bar::RatioAtMost(0.8, 0.5), 9.0, Some(10.0), Some(false)),
            (Bar::RatioAtMost(0.8, 0.5), 9.0, None, None),
            (Bar::AtMost(2.0), 2.1, Some(1000.0), Some(false)),
            (Bar::None, 1.0, Some(1.0), None),
        ];
        for (bar, ours, theirs, wanted) in cases {
            assert_eq!(bar.judge(ours, theirs).1, wanted, "{bar:?} {ours} {theirs:?}");
        }
    }

    #[test]
    fn every_figure_is_listed_once() {
        let names: std::collections::BTreeSet<_> = Figure::ALL.iter().map(|figure| figure.describe().0).collect();
        // Four pairs share `the same, ...` lines that follow different figures.
        assert!(names.len() >= Figure::ALL.len() - 6, "{names:?}");
        assert_eq!(Figure::ALL.iter().collect::<std::collections::BTreeSet<_>>().len(), Figure::ALL.len());
    }
}
