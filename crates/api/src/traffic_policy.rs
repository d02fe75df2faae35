//! `ambit.dev/v1 TrafficPolicy` (docs/traffic-policy.md): how many requests a client may make, and faults that are made on
//! purpose.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    authorization_policy::{PolicyTargetReference, null_as_default},
    routes::{self, Fraction, HttpMatch, spec},
};

/// Group of the kind.
pub const GROUP: &str = "ambit.dev";
/// Keys that one rate limit counts for, unless it says otherwise.
pub const DEFAULT_KEYS: u32 = 1_024;
/// Most keys that one rate limit can count for.
pub const MAX_KEYS: u32 = 65_536;
/// Most requests that one rate limit lets through in its interval, or at once.
pub const MAX_REQUESTS: u32 = 1_000_000;
/// Shortest interval of a rate limit.
pub const MIN_INTERVAL: Duration = Duration::from_millis(1);
/// Longest interval of a rate limit.
pub const MAX_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Longest delay of a fault.
pub const MAX_DELAY: Duration = Duration::from_secs(300);

/// A TrafficPolicy with the metadata that gives it its place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficPolicy {
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// What it says.
    #[serde(default)]
    pub spec: TrafficPolicySpec,
}

spec! {
    /// The `spec` of a TrafficPolicy.
    TrafficPolicySpec {
        /// Objects it is attached to, at their waypoint. At most 16.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        #[schemars(length(max = 16))]
        pub target_refs: Vec<PolicyTargetReference>,
        /// Bounds on how many requests come through. A request needs leave of all that match it, in this order.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        #[schemars(length(max = 64))]
        pub rate_limits: Vec<RateLimit>,
        /// Faults made on purpose. The first that matches a request is the one that may befall it.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        #[schemars(length(max = 64))]
        pub faults: Vec<Fault>,
    }
}

spec! {
    /// A token bucket for each client, or each value of a header.
    RateLimit {
        /// What records call it; absent is its index.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub name: Option<String>,
        /// Requests that it counts: those that fulfil one of these. None means all.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub matches: Vec<HttpMatch>,
        /// What has a bucket of its own; absent is each principal.
        #[serde(default, deserialize_with = "null_as_default")]
        pub key: RateLimitKey,
        /// Requests per [`RateLimit::interval`], in the long run.
        pub requests: u32,
        /// For example `1s`, `1m`.
        pub interval: String,
        /// Requests that may come at once; absent is as many as [`RateLimit::requests`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub burst: Option<u32>,
        /// Keys that have a bucket of their own at a time; absent is [`DEFAULT_KEYS`]. What comes past it shares one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub max_keys: Option<u32>,
    }
}

spec! {
    /// What has a bucket of its own.
    RateLimitKey {
        /// Absent is each principal.
        #[serde(default, rename = "type", deserialize_with = "null_as_default")]
        pub kind: RateLimitKeyType,
        /// The header, if it is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub header: Option<String>,
    }
}

/// What has a bucket of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RateLimitKeyType {
    /// Each SPIFFE identity, as the client's certificate says it.
    #[default]
    Principal,
    /// Each value of a header. Requests without it share a bucket.
    Header,
    /// All requests together have one.
    All,
}

spec! {
    /// A fault made on purpose.
    Fault {
        /// What records call it; absent is its index.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub name: Option<String>,
        /// Requests that it may befall: those that fulfil one of these. None means all.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub matches: Vec<HttpMatch>,
        /// The request waits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub delay: Option<Delay>,
        /// The request is answered, after the delay if there is one, and goes nowhere.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub abort: Option<Abort>,
    }
}

spec! {
    /// A request waits.
    Delay {
        /// For so long, for example `2s`.
        pub duration: String,
        /// So many of a hundred requests; absent is all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub percent: Option<u32>,
        /// So many of so many requests.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub fraction: Option<Fraction>,
    }
}

spec! {
    /// A request is answered and goes nowhere.
    Abort {
        /// The status, 200 to 599, but none that says that there is no body.
        pub http_status: u16,
        /// The status of a gRPC call, 1 to 16; absent is what gRPC makes of [`Abort::http_status`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub grpc_status: Option<u16>,
        /// So many of a hundred requests; absent is all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub percent: Option<u32>,
        /// So many of so many requests.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub fraction: Option<Fraction>,
    }
}

/// True for a status that a request can be answered with and a text.
#[must_use]
pub fn can_abort_with(status: u16) -> bool {
    (200..600).contains(&status) && ![204, 205, 304].contains(&status)
}

/// The part of requests that `percent` and `fraction` of one fault say, as numerator and denominator.
#[must_use]
pub fn part(percent: Option<u32>, fraction: Option<&Fraction>) -> (u32, u32) {
    match (percent, fraction) {
        (Some(percent), _) => (percent, 100),
        (None, Some(fraction)) => (fraction.numerator, fraction.denominator.unwrap_or(100)),
        (None, None) => (1, 1),
    }
}

// === impl RateLimit ===

impl RateLimit {
    /// The interval; nothing if what is written can't be one.
    #[must_use]
    pub fn interval(&self) -> Option<Duration> {
        routes::duration(&self.interval).filter(|interval| (MIN_INTERVAL..=MAX_INTERVAL).contains(interval))
    }
}

// === impl Delay ===

impl Delay {
    /// How long; nothing if what is written can't be it.
    #[must_use]
    pub fn duration(&self) -> Option<Duration> {
        routes::duration(&self.duration).filter(|delay| !delay.is_zero() && *delay <= MAX_DELAY)
    }
}
