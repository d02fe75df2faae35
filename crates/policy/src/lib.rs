//! The one meaning of authorization: compile policies, decide, and say why (`spec/authorization.md`).
//!
//! What it does: turn AuthorizationPolicy objects into typed matchers ([`compile`]), fold a connection's facts in once
//! ([`Compiled::for_connection`]) and judge each request ([`Residual::decide`]). The node proxy, the waypoint and the
//! command line all call these, so a verdict can't differ between them. [`reference`] says the same slowly.
//! What it refuses to do: read files, resolve names, know where facts come from, wait, or look at a clock.
#![forbid(unsafe_code)]

mod compile;
mod decide;
mod decision;
mod facts;
pub mod limits;
mod nearest;
mod path;
mod pattern;
mod principal;
pub mod reference;
mod rule;
mod template;

pub use compile::compile;
pub use decide::{Compiled, Residual};
pub use decision::{Decision, PolicyName, Verdict};
pub use facts::{ConnectionFacts, RequestFacts};
pub use path::{PathNormalization, normalized_target};

/// What the mesh as a whole brings to the meaning of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The mesh's own trust domain, then its aliases.
    pub trust_domains: Vec<String>,
    /// Namespace whose policies apply to the whole mesh.
    pub root_namespace: String,
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
