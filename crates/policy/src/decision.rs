//! A decision as a value with its reason.

use std::{fmt, sync::Arc};

use serde::Serialize;

use crate::path::Reading;

/// The outcome for one request or connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It may go on.
    Allow,
    /// It is refused.
    Deny,
}

/// A policy's name, printed as `namespace/name`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyName {
    /// Namespace of the object.
    pub namespace: Arc<str>,
    /// Name of the object.
    pub name: Arc<str>,
}

/// A verdict and what led to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The outcome.
    pub verdict: Verdict,
    /// The policy that decided; nothing when no policy applies or none matched.
    pub policy: Option<PolicyName>,
    /// Index of the rule within that policy, from 0.
    pub rule: Option<u32>,
    /// Which entries of that rule matched; nothing when no rule decided.
    pub clause: Option<MatchedEntries>,
    /// A CUSTOM policy wants this provider asked first. Until [`crate::RequestFacts::approved_by`] names it, the verdict
    /// is [`Verdict::Deny`]; if it allows the request, decide again with its approval.
    pub ask: Option<Arc<str>>,
    /// For a default deny with its whole reason ([`crate::Residual::with_reason`]), the ALLOW rule that came nearest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub near_miss: Option<Arc<NearMiss>>,
    /// The reading of the path under which it was decided; nothing for the plain one.
    pub reading: Option<Reading>,
    /// One line in plain words. [`crate::Residual::decide`] says only what decided; [`crate::Residual::with_reason`] says
    /// which fields, or for a default deny what came nearest.
    pub reason: Arc<str>,
}

/// The ALLOW rule that failed on fewest fields. [`crate::NearestMiss`] tells what they saw, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NearMiss {
    /// Its policy.
    pub policy: PolicyName,
    /// Its index within that policy, from 0.
    pub rule: u32,
    /// The fields on which it failed, as they are written (`methods`, `notPaths`, `source.ip`). None at L4, if another
    /// entry of the rule makes it void.
    pub fields: Box<[String]>,
}

/// The entries of a rule that matched, each the first that did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct MatchedEntries {
    /// Index in `from`; nothing if the rule has none.
    pub from: Option<u32>,
    /// Index in `to`; nothing if the rule has none.
    pub to: Option<u32>,
}

impl Decision {
    /// A denial for a reason that is no policy's.
    #[must_use]
    pub fn deny(reason: impl Into<Arc<str>>) -> Self {
        Self {
            verdict: Verdict::Deny,
            policy: None,
            rule: None,
            clause: None,
            ask: None,
            near_miss: None,
            reading: None,
            reason: reason.into(),
        }
    }

    /// An allowance that is no policy's.
    #[must_use]
    pub(crate) fn allow(reason: impl Into<Arc<str>>) -> Self {
        Self { verdict: Verdict::Allow, ..Self::deny(reason) }
    }

    /// True if the verdict is [`Verdict::Allow`].
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.verdict == Verdict::Allow
    }
}

// === impl PolicyName ===

impl Serialize for PolicyName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl Verdict ===

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}
