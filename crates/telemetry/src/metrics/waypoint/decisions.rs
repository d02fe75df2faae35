//! What policies decided: how often, and when last.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use ambit_policy::PolicyName;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder};

use super::super::{
    encode::{counter, gauge, label},
    series::{Series, SeriesSet},
};
use crate::limits::MAX_DECISION_SERIES;

/// One outcome of a policy or rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionLabels {
    /// The policy; nothing if no policy decided.
    pub policy: Option<PolicyName>,
    /// Index of the rule; nothing if no rule decided.
    pub rule: Option<u32>,
    /// `allow`, `deny`, `audit`, `dry_run_allow`, `dry_run_deny`.
    pub verdict: &'static str,
}

/// The counters of one outcome. Held, they are found without a look-up.
#[derive(Debug)]
pub struct CountedDecisions {
    decisions: Arc<Decisions>,
    series: Arc<Series<Key, Counts>>,
}

/// All outcomes.
#[derive(Debug)]
pub(super) struct Decisions {
    kept: SeriesSet<Key, Counts>,
}

/// Nothing stands for all that there is no room for.
type Key = Option<(Option<(Arc<str>, Arc<str>)>, Option<u32>, &'static str)>;

#[derive(Debug, Default)]
struct Counts {
    total: AtomicU64,
    last_hit_s: AtomicU64,
}

struct Encoded<'a>(&'a Key);

// === impl Decisions ===

impl Decisions {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { kept: SeriesSet::new(MAX_DECISION_SERIES, |_| None) })
    }

    pub(super) fn of(self: &Arc<Self>, labels: DecisionLabels) -> CountedDecisions {
        let DecisionLabels { policy, rule, verdict } = labels;
        let policy = policy.map(|policy| (policy.namespace, policy.name));
        let series = self.kept.get(&Some((policy, rule, verdict)));
        CountedDecisions { decisions: Arc::clone(self), series }
    }

    pub(super) fn overflowed(&self) -> u64 {
        self.kept.overflowed()
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        // A rule that nobody has met for a day still has a last hit: nothing is forgotten while there is room.
        let all = self.kept.all();
        let totals = all.iter().map(|s| (Encoded(&s.labels), s.values.total.load(Ordering::Relaxed)));
        let help = "Requests and connections that a policy or rule decided, or observed";
        counter(encoder, "ambit_policy_decisions", help, totals)?;
        let seconds = |s: &Series<Key, Counts>| i64::try_from(s.values.last_hit_s.load(Ordering::Relaxed)).unwrap_or(0);
        let last = all.iter().map(|s| (Encoded(&s.labels), seconds(s)));
        let help = "When a policy or rule last decided or observed something, in seconds since 1970";
        gauge(encoder, "ambit_policy_last_hit_timestamp_seconds", help, last)
    }
}

// === impl CountedDecisions ===

impl CountedDecisions {
    /// One more, at this time.
    pub fn count(&self, at: SystemTime) {
        let counts = &self.series.values;
        counts.total.fetch_add(1, Ordering::Relaxed);
        let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        counts.last_hit_s.fetch_max(seconds, Ordering::Relaxed);
    }
}

impl Drop for CountedDecisions {
    fn drop(&mut self) {
        self.decisions.kept.touch(&self.series);
    }
}

// === impl Encoded ===

impl EncodeLabelSet for Encoded<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let Some((policy, rule, verdict)) = self.0 else {
            return ["policy", "rule", "verdict"].iter().try_for_each(|name| label(encoder, name, "other"));
        };
        match policy {
            Some((namespace, name)) => label(encoder, "policy", format_args!("{namespace}/{name}"))?,
            None => label(encoder, "policy", "none")?,
        }
        match rule {
            Some(rule) => label(encoder, "rule", rule)?,
            None => label(encoder, "rule", "none")?,
        }
        label(encoder, "verdict", verdict)
    }
}
