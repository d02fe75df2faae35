//! `gateway.networking.x-k8s.io/v1alpha1 XBackendTrafficPolicy` (GEP-3388): how much of a Service's traffic retries may be.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    authorization_policy::null_as_default,
    routes::{self, SessionPersistence, spec},
};

/// Group of the kind.
pub const GROUP: &str = "gateway.networking.x-k8s.io";
/// Retries per hundred requests, unless a policy says otherwise.
pub const DEFAULT_PERCENT: u32 = 20;
/// The time over which they are counted, unless a policy says otherwise.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
/// Retries per [`DEFAULT_RATE_INTERVAL`] that are always allowed, unless a policy says otherwise.
pub const DEFAULT_COUNT: u32 = 10;
/// The time in which they are, unless a policy says otherwise.
pub const DEFAULT_RATE_INTERVAL: Duration = Duration::from_secs(1);
/// Longest of these times.
pub const MAX_INTERVAL: Duration = Duration::from_secs(3600);

/// An XBackendTrafficPolicy with the metadata that gives it its place among others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendTrafficPolicy {
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// When it was made, in RFC 3339; nothing for one read from a file. Of several for one Service the oldest counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// What it says.
    #[serde(default)]
    pub spec: BackendTrafficPolicySpec,
}

spec! {
    /// The `spec` of an XBackendTrafficPolicy.
    BackendTrafficPolicySpec {
        /// The Services of its namespace that it is for.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub target_refs: Vec<BackendTarget>,
        /// How much retries may be.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub retry_constraint: Option<RetryConstraint>,
        /// Sticky sessions: not supported.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub session_persistence: Option<SessionPersistence>,
    }
}

spec! {
    /// A Service of the policy's namespace.
    BackendTarget {
        /// API group; empty is that of Services.
        #[serde(default, deserialize_with = "null_as_default")]
        pub group: String,
        /// Kind.
        #[serde(default, deserialize_with = "null_as_default")]
        pub kind: String,
        /// Name.
        #[serde(default, deserialize_with = "null_as_default")]
        pub name: String,
    }
}

spec! {
    /// How much of a Service's traffic retries may be.
    RetryConstraint {
        /// A part of the requests.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub budget: Option<BudgetDetails>,
        /// What is always allowed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub min_retry_rate: Option<RequestRate>,
    }
}

spec! {
    /// A part of the requests.
    BudgetDetails {
        /// Retries per hundred requests, 0 to 100; absent is [`DEFAULT_PERCENT`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub percent: Option<u32>,
        /// The time over which requests are counted; absent is [`DEFAULT_INTERVAL`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub interval: Option<String>,
    }
}

spec! {
    /// Requests in a time.
    RequestRate {
        /// How many; absent is [`DEFAULT_COUNT`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub count: Option<u32>,
        /// In which time; absent is [`DEFAULT_RATE_INTERVAL`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub interval: Option<String>,
    }
}

/// A time of a constraint; nothing if what is written can't be one.
#[must_use]
pub fn interval(text: &str) -> Option<Duration> {
    routes::duration(text).filter(|interval| !interval.is_zero() && *interval <= MAX_INTERVAL)
}

// === impl BackendTarget ===

impl BackendTarget {
    /// True if it names a Service.
    #[must_use]
    pub fn is_service(&self) -> bool {
        matches!(self.group.as_str(), "" | "core") && self.kind == "Service"
    }
}
