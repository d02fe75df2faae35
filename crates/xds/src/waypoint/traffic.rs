//! Rate limits, faults made on purpose, and budgets of retries.

/// A TrafficPolicy that is enforced here.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct TrafficPolicy {
    /// Namespace of the object.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Name of the object.
    #[prost(string, tag = "2")]
    pub name: String,
    /// It as the user wrote it, in JSON.
    #[prost(bytes = "vec", tag = "3")]
    pub json: Vec<u8>,
    /// Why it can't be enforced; empty if it can. What it targets is denied then.
    #[prost(string, tag = "4")]
    pub rejection: String,
}

/// How much of a service's traffic retries may be (GEP-3388).
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RetryBudget {
    /// `namespace/name` of the XBackendTrafficPolicy that says so.
    #[prost(string, tag = "1")]
    pub policy: String,
    /// Retries per hundred requests, 0 to 100.
    #[prost(uint32, tag = "2")]
    pub percent: u32,
    /// The time over which requests are counted.
    #[prost(uint64, tag = "3")]
    pub interval_ms: u64,
    /// Retries that are always allowed in each [`RetryBudget::count_interval_ms`].
    #[prost(uint32, tag = "4")]
    pub count: u32,
    /// See [`RetryBudget::count`].
    #[prost(uint64, tag = "5")]
    pub count_interval_ms: u64,
}
