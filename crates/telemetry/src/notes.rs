//! What a decision record says besides the verdict: which providers were asked, and what policies that change no verdict
//! had to say.

use std::sync::Arc;

use ambit_policy::{Decision, PolicyName, Verdict};
use serde::Serialize;

use crate::record::display;

/// Most AUDIT rules that one record names.
pub const MAX_AUDITS: usize = 16;

/// Nothing of it changes who decided; most records have none.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Notes {
    /// The providers of CUSTOM policies that were asked, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub providers: Vec<ProviderCheck>,
    /// The AUDIT rules that matched, at most [`MAX_AUDITS`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub audits: Vec<MatchedRule>,
    /// What would have been decided if dry-run policies were enforced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<DryRun>,
}

/// A provider that was asked, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProviderCheck {
    /// Name of the provider.
    pub provider: Arc<str>,
    /// The CUSTOM policy that wanted it asked, `namespace/name`.
    #[serde(serialize_with = "display", skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyName>,
    /// Index of the rule that wanted it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<u32>,
    /// What came of it.
    pub outcome: CheckOutcome,
    /// Why there is no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Arc<str>>,
    /// How long it took, in microseconds.
    pub took_us: u64,
}

/// What came of asking a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckOutcome {
    /// It allows it.
    Allowed,
    /// It denies it.
    Denied,
    /// It couldn't be asked or gave no usable answer, so it is denied.
    Failed,
    /// The same, and the provider's `failOpen` lets it go on.
    FailedOpen,
}

/// A rule that matched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MatchedRule {
    /// Its policy, `namespace/name`.
    #[serde(serialize_with = "display", skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyName>,
    /// Its index within that policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<u32>,
}

/// What dry-run policies would have done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DryRun {
    /// The outcome.
    pub verdict: Verdict,
    /// The policy that would have decided, `namespace/name`.
    #[serde(serialize_with = "display", skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyName>,
    /// Index of the rule that would have decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<u32>,
    /// One line in plain words.
    pub reason: Arc<str>,
}

// === impl MatchedRule ===

impl From<&Decision> for MatchedRule {
    fn from(decision: &Decision) -> Self {
        Self { policy: decision.policy.clone(), rule: decision.rule }
    }
}

// === impl DryRun ===

impl From<Decision> for DryRun {
    fn from(decision: Decision) -> Self {
        Self { verdict: decision.verdict, policy: decision.policy, rule: decision.rule, reason: decision.reason }
    }
}
