//! The one meaning of authorization: compile policies, decide, and say why (`spec/authorization.md`).
//!
//! What it does: turn AuthorizationPolicy objects into typed matchers ([`compile`]), fold a connection's facts in once
//! ([`Compiled::for_connection`]) and judge each request ([`Residual::decide`]). The node proxy, the waypoint and the
//! command line all call these, so a verdict can't differ between them. [`reference`] says the same slowly.
//! What it refuses to do: read files, resolve names, know where facts come from, wait, or look at a clock.
#![forbid(unsafe_code)]

mod address;
mod buffer;
mod compile;
mod decide;
mod decision;
pub mod envoy;
mod explain;
mod facts;
mod headers;
mod identity;
mod index;
pub mod limits;
mod nearest;
mod path;
mod pattern;
mod principal;
mod program;
pub mod reference;
mod rule;
mod seen;
mod stricter;
mod template;
mod test;
mod token;

use std::collections::BTreeMap;

pub use compile::compile;
pub use decide::{Compiled, Residual};
pub use decision::{Decision, MatchedEntries, NearMiss, PolicyName, Verdict};
pub use explain::{
    Change, ExplainedEntry, ExplainedField, ExplainedPolicy, ExplainedRule, Explanation, FieldOutcome, NearestMiss,
    RuleOutcome,
};
pub use facts::{Claims, ConnectionFacts, HeaderLines, HttpVersion, NoHeaders, Peer, RequestFacts, Sni, Stage};
pub use path::{PathNormalization, Reading, normalized_target};
pub use stricter::{Stricter, stricter};

/// What the mesh as a whole brings to the meaning of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The mesh's own trust domain, then its aliases.
    pub trust_domains: Vec<String>,
    /// Namespace whose policies apply to the whole mesh.
    pub root_namespace: String,
    /// The external authorizers that CUSTOM policies may name.
    pub providers: BTreeMap<String, ProviderKind>,
    /// CUSTOM policies of one target may name different providers. Unless this is set, all that they match is denied
    /// then, as Istio does by default.
    pub several_providers: bool,
}

/// How an external authorizer is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProviderKind {
    /// By an HTTP request: about HTTP requests only.
    Http,
    /// By a gRPC call: about HTTP requests and connections.
    Grpc,
}

impl Default for Options {
    /// A mesh as it is when nothing is configured: `cluster.local`, `istio-system`, no providers.
    fn default() -> Self {
        Self {
            trust_domains: vec!["cluster.local".to_owned()],
            root_namespace: "istio-system".to_owned(),
            providers: BTreeMap::new(),
            several_providers: false,
        }
    }
}

/// Why a policy can't be compiled. Names the policy, field and value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policy `{policy}`: {field}: {message}")]
pub struct CompileError {
    /// The policy.
    pub policy: PolicyName,
    /// Path of the field, for example `spec.rules[0].to[0].operation.ports[1]`.
    pub field: String,
    /// What is wrong and what to write instead.
    pub message: String,
}
