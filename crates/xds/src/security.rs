//! Package `istio.security` (`spec/control-plane.md` 4.2): the policies a node proxy enforces.
//!
//! Istio's message can't say all that a policy says, so Ambit's control plane adds the policy itself as an extension
//! ([`POLICY_EXTENSION`]) and Ambit's node proxy compiles that.

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
    /// Evaluated and recorded, never enforced.
    #[prost(bool, tag = "6")]
    pub dry_run: bool,
    /// Named extensions.
    #[prost(message, repeated, tag = "7")]
    pub extensions: Vec<Extension>,
}

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
