//! The tokens that a waypoint believes (`spec/control-plane.md` 3.1).

/// A RequestAuthentication that is enforced here.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RequestAuthentication {
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
    /// The keys of those of its rules that don't hold them themselves.
    #[prost(message, repeated, tag = "5")]
    pub keys: Vec<FetchedKeys>,
}

/// The keys of one rule, as far as they could be fetched.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FetchedKeys {
    /// Index of the rule.
    #[prost(uint32, tag = "1")]
    pub rule: u32,
    /// What came of it.
    #[prost(oneof = "KeysOutcome", tags = "2, 3")]
    pub outcome: Option<KeysOutcome>,
}

/// What came of fetching keys.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum KeysOutcome {
    /// The key set, in JSON.
    #[prost(bytes, tag = "2")]
    KeySet(Vec<u8>),
    /// Why there is none: no token of the rule is believed.
    #[prost(string, tag = "3")]
    Failure(String),
}
