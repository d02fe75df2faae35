//! How endpoints are treated, on the wire.

/// The DestinationRules of a service.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DestinationSettings {
    /// Those for its host, the one that counts most first.
    #[prost(message, repeated, tag = "1")]
    pub rules: Vec<AttachedDestinationRule>,
    /// Who belongs to their subsets. One that isn't here has nobody.
    #[prost(message, repeated, tag = "2")]
    pub subsets: Vec<SubsetMembers>,
}

/// A DestinationRule for a service.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AttachedDestinationRule {
    /// Namespace of the object.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Name of the object.
    #[prost(string, tag = "2")]
    pub name: String,
    /// It as JSON.
    #[prost(bytes = "vec", tag = "3")]
    pub json: Vec<u8>,
    /// Why it can't be followed; nothing reaches the service then. Empty if it can.
    #[prost(string, tag = "4")]
    pub rejection: String,
}

/// Who belongs to a subset.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SubsetMembers {
    /// Name of the subset.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Workloads, by their uids.
    #[prost(string, repeated, tag = "2")]
    pub workloads: Vec<String>,
}
