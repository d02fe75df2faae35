//! The one meaning of authorization: compile policies, decide, and say why (`spec/authorization.md`).
//!
//! What it does: turn AuthorizationPolicy objects into typed matchers ([`compile`]), fold a connection's facts in once
//! ([`Compiled::for_connection`]) and judge each request ([`Residual::decide`]). The node proxy, the waypoint and the
//! command line all call these, so a verdict can't differ between them.
//! What it refuses to do: read files, resolve names, know where facts come from, wait, or look at a clock.
#![forbid(unsafe_code)]

mod decision;
mod facts;

pub use decision::{Decision, PolicyName, Verdict};
pub use facts::{ConnectionFacts, RequestFacts};

use ambit_api::AuthorizationPolicy;

/// Where the policies are enforced; at L4 there are no HTTP facts, so HTTP fields are absent.
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

/// Policies ready to decide for one target.
#[derive(Debug)]
pub struct Compiled {
    fallback: Decision,
}

/// Policies with one connection's facts folded in.
#[derive(Debug)]
pub struct Residual {
    fallback: Decision,
}

/// Compiles the policies that apply to one target.
///
/// # Errors
/// On the first field that has no usable value; nothing is skipped.
pub fn compile(_policies: &[AuthorizationPolicy], _options: &Options) -> Result<Compiled, CompileError> {
    Ok(Compiled::deny_all("the policy engine is not there yet"))
}

impl Compiled {
    /// Denies everything, with this reason: what an enforcement point installs when it can't know the policies.
    #[must_use]
    pub fn deny_all(reason: &str) -> Self {
        Self { fallback: Decision { verdict: Verdict::Deny, policy: None, rule: None, reason: reason.into() } }
    }

    /// Folds in what can't change during a connection.
    #[must_use]
    pub fn for_connection(&self, _facts: &ConnectionFacts) -> Residual {
        Residual { fallback: self.fallback.clone() }
    }
}

impl Residual {
    /// Judges one HTTP request of the connection.
    #[must_use]
    pub fn decide(&self, _facts: &RequestFacts<'_>) -> Decision {
        self.fallback.clone()
    }

    /// Judges the connection itself, without HTTP facts (L4): an ALLOW rule that needs one doesn't match, a DENY rule
    /// denies on what remains of it.
    #[must_use]
    pub fn decide_connection(&self) -> Decision {
        self.fallback.clone()
    }
}
