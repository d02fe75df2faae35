//! Package `istio.security` (`spec/control-plane.md` 4.2): the policies a node proxy enforces.
//!
//! Istio's message can't say all that a policy says, so Ambit's control plane adds the policy itself as an extension
//! ([`POLICY_EXTENSION`]) and Ambit's node proxy compiles that. From other control planes only [`Authorization::groups`]
//! come.

mod groups;
mod policy;

pub use groups::{deny_everything, groups};

use crate::workload::Extension;

/// A policy for node proxies. Its resource name is `namespace/name`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Authorization {
    /// Object name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Object namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// What it applies to.
    #[prost(enumeration = "Scope", tag = "3")]
    pub scope: i32,
    /// What a match means.
    #[prost(enumeration = "Action", tag = "4")]
    pub action: i32,
    /// What matches: one group is enough. Without any, nothing matches.
    #[prost(message, repeated, tag = "5")]
    pub groups: Vec<Group>,
    /// Evaluated and recorded, never enforced.
    #[prost(bool, tag = "6")]
    pub dry_run: bool,
    /// Named extensions.
    #[prost(message, repeated, tag = "7")]
    pub extensions: Vec<Extension>,
}

/// Matches when all of its clauses do; without any, always.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Group {
    /// The clauses.
    #[prost(message, repeated, tag = "1")]
    pub rules: Vec<Rules>,
}

/// A clause: matches when one of its matches does; without any, always.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Rules {
    /// The matches.
    #[prost(message, repeated, tag = "2")]
    pub matches: Vec<Match>,
}

/// Matches when every list with entries does: a plain one when one entry does, a `not_` one when none does. Without any
/// entry it never matches.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Match {
    /// Namespaces of the peer.
    #[prost(message, repeated, tag = "1")]
    pub namespaces: Vec<StringMatch>,
    /// Namespaces the peer must not have.
    #[prost(message, repeated, tag = "2")]
    pub not_namespaces: Vec<StringMatch>,
    /// Identities of the peer, without `spiffe://`.
    #[prost(message, repeated, tag = "3")]
    pub principals: Vec<StringMatch>,
    /// Identities the peer must not have.
    #[prost(message, repeated, tag = "4")]
    pub not_principals: Vec<StringMatch>,
    /// Address blocks of the peer.
    #[prost(message, repeated, tag = "5")]
    pub source_ips: Vec<Address>,
    /// Address blocks the peer must not be in.
    #[prost(message, repeated, tag = "6")]
    pub not_source_ips: Vec<Address>,
    /// Address blocks of the destination.
    #[prost(message, repeated, tag = "7")]
    pub destination_ips: Vec<Address>,
    /// Address blocks the destination must not be in.
    #[prost(message, repeated, tag = "8")]
    pub not_destination_ips: Vec<Address>,
    /// Ports of the destination.
    #[prost(uint32, repeated, tag = "9")]
    pub destination_ports: Vec<u32>,
    /// Ports the destination must not have.
    #[prost(uint32, repeated, tag = "10")]
    pub not_destination_ports: Vec<u32>,
    /// Service accounts of the peer, in any trust domain.
    #[prost(message, repeated, tag = "11")]
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// Service accounts the peer must not have.
    #[prost(message, repeated, tag = "12")]
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// Named extensions. One that isn't known makes the whole policy unreadable.
    #[prost(message, repeated, tag = "13")]
    pub extensions: Vec<Extension>,
}

/// An address block.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Address {
    /// 4 or 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub address: Vec<u8>,
    /// Prefix length in bits.
    #[prost(uint32, tag = "2")]
    pub length: u32,
}

/// A service account.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ServiceAccountMatch {
    /// Its namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Its name.
    #[prost(string, tag = "2")]
    pub service_account: String,
}

/// A pattern for text. Case counts.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct StringMatch {
    /// The pattern; absent, the whole policy is unreadable.
    #[prost(oneof = "string_match::MatchType", tags = "1, 2, 3, 4")]
    pub match_type: Option<string_match::MatchType>,
}

/// Parts of [`StringMatch`].
pub mod string_match {
    /// The pattern.
    #[derive(Clone, PartialEq, Eq, Hash, prost::Oneof)]
    pub enum MatchType {
        /// The same text.
        #[prost(string, tag = "1")]
        Exact(String),
        /// It starts so.
        #[prost(string, tag = "2")]
        Prefix(String),
        /// It ends so.
        #[prost(string, tag = "3")]
        Suffix(String),
        /// Any text but the empty one.
        #[prost(message, tag = "4")]
        Presence(super::Empty),
    }
}

/// `google.protobuf.Empty`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Empty {}

/// What a policy applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Scope {
    /// Every workload of the mesh.
    Global = 0,
    /// Every workload of its namespace.
    Namespace = 1,
    /// Workloads that name it in `authorization_policies`.
    WorkloadSelector = 2,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Action {
    /// Permit.
    Allow = 0,
    /// Refuse.
    Deny = 1,
}

/// Name of the [`Authorization`] extension that carries a whole [`Policy`].
pub const POLICY_EXTENSION: &str = "ambit.dev/policy";
/// Type URL of [`Policy`].
pub const POLICY_TYPE: &str = "type.googleapis.com/ambit.policy.v1.Policy";

/// An AuthorizationPolicy as the user wrote it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Policy {
    /// Object namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Object name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// The object (`ambit_api::AuthorizationPolicy`) as JSON.
    #[prost(bytes = "vec", tag = "3")]
    pub json: Vec<u8>,
    /// Why it can't be enforced; empty if it can. What a policy with a reason targets is denied for it.
    #[prost(string, tag = "4")]
    pub rejection: String,
}
