//! The figures, what they are called, and what they must hold (`issue 4`).

use std::collections::BTreeMap;

use crate::phases::Phase;

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
    ChoiceTen,
    ChoiceHundred,
    ChoiceThousand,
    ChoiceTenThousand,
    ChoiceGrowth,
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
    pub(crate) const ALL: [Self; 32] = [
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
        Self::ChoiceTen,
        Self::ChoiceHundred,
        Self::ChoiceThousand,
        Self::ChoiceTenThousand,
        Self::ChoiceGrowth,
        Self::ChoiceCpu,
    ];

    /// The phase that measures it.
    pub(crate) fn phase(self) -> Phase {
        match self {
            Self::ConnectRate | Self::ConnectCpu | Self::ConnectTail => Phase::Connect,
            Self::TunnelRate | Self::TunnelCpu => Phase::Tunnels,
            Self::SustainedRate | Self::SustainedLastRate | Self::SustainedFailures => Phase::Sustained,
            Self::IdleMemory | Self::HeldMemory | Self::AfterMemory | Self::AfterMemoryShare => Phase::Memory,
            Self::ChoiceTen
            | Self::ChoiceHundred
            | Self::ChoiceThousand
            | Self::ChoiceTenThousand
            | Self::ChoiceGrowth
            | Self::ChoiceCpu => Phase::Choice,
            Self::BulkOneGbit
            | Self::BulkOneCpu
            | Self::BulkOneMachine
            | Self::BulkEightGbit
            | Self::BulkEightCpu
            | Self::BulkEightMachine
            | Self::ExchangeManyRate
            | Self::ExchangeManyCpu
            | Self::ExchangeManyTail
            | Self::ExchangeOneRate
            | Self::ExchangeOneMedian
            | Self::ExchangeOneTail
            | Self::ExchangeOneTailAdded
            | Self::ExchangeOneCpu => Phase::Steady,
        }
    }

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
            Self::ChoiceTen => ("choosing one of 10 endpoints, ns", AtMost(2_000.0)),
            Self::ChoiceHundred => ("choosing one of 100 endpoints, ns", AtMost(2_000.0)),
            Self::ChoiceThousand => ("choosing one of 1,000 endpoints, ns", AtMost(2_000.0)),
            Self::ChoiceTenThousand => ("choosing one of 10,000 endpoints, ns", AtMost(2_000.0)),
            Self::ChoiceGrowth => ("choosing one of 10,000 over one of 10", AtMost(2.0)),
            Self::ChoiceCpu => ("a connection to a service with 10,000 endpoints, CPU us more than with 1", None),
        }
    }
}

// === impl Bar ===

impl Bar {
    /// The bar in words.
    pub(crate) fn asked(self) -> String {
        match self {
            Self::RatioAtLeast(bar, _) => format!(">= {bar}"),
            Self::RatioAtMost(bar, _) => format!("<= {bar}"),
            Self::AtMost(bar) => format!("itself <= {bar}"),
            Self::None => String::new(),
        }
    }

    /// What to reach for, in words, where that is more.
    pub(crate) fn reach(self) -> String {
        match self {
            Self::RatioAtLeast(bar, reach) | Self::RatioAtMost(bar, reach) if (bar - reach).abs() > f64::EPSILON => {
                reach.to_string()
            }
            _ => String::new(),
        }
    }

    /// Whether it holds; nothing where it can't be told.
    pub(crate) fn holds(self, ours: f64, theirs: Option<f64>) -> Option<bool> {
        let ratio = theirs.map(|theirs| ours / theirs);
        match self {
            Self::RatioAtLeast(bar, _) => ratio.map(|ratio| ratio >= bar),
            Self::RatioAtMost(bar, _) => ratio.map(|ratio| ratio <= bar),
            Self::AtMost(bar) => Some(ours <= bar),
            Self::None => None,
        }
    }

    /// Whether what is to be reached for is reached.
    pub(crate) fn is_reached(self, ours: f64, theirs: Option<f64>) -> Option<bool> {
        match self {
            Self::RatioAtLeast(_, reach) => Self::RatioAtLeast(reach, reach).holds(ours, theirs),
            Self::RatioAtMost(_, reach) => Self::RatioAtMost(reach, reach).holds(ours, theirs),
            Self::AtMost(_) | Self::None => None,
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
            assert_eq!(bar.holds(ours, theirs), wanted, "{bar:?} {ours} {theirs:?}");
        }
        assert_eq!(Bar::RatioAtLeast(1.2, 1.8).is_reached(18.0, Some(10.0)), Some(true));
        assert_eq!(Bar::RatioAtMost(0.8, 0.5).is_reached(6.0, Some(10.0)), Some(false));
        assert_eq!(
            (Bar::RatioAtLeast(1.3, 1.3).reach(), Bar::RatioAtMost(0.8, 0.5).reach()),
            (String::new(), "0.5".to_owned())
        );
    }

    #[test]
    fn every_figure_is_listed_once() {
        let names: std::collections::BTreeSet<_> = Figure::ALL.iter().map(|figure| figure.describe().0).collect();
        // Four pairs share `the same, ...` lines that follow different figures.
        assert!(names.len() >= Figure::ALL.len() - 6, "{names:?}");
        assert_eq!(Figure::ALL.iter().collect::<std::collections::BTreeSet<_>>().len(), Figure::ALL.len());
    }
}
