//! From the policies of an enforcement point to what it decides by. Proxies and tools both come through here.

use std::fmt;

use ambit_api::AuthorizationPolicy;
use ambit_policy::{CompileError, Compiled, Options, PathNormalization, PolicyName, compile};

/// What one enforcement point decides by.
#[derive(Clone, Debug)]
pub struct Enforced {
    /// The compiled policies.
    pub compiled: Compiled,
    /// The first policy that can't be enforced; everything is denied for it.
    pub refusal: Option<Refusal>,
}

/// A policy that can't be enforced, so that what it targets is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The policy.
    pub policy: PolicyName,
    /// Why, as the whole reason of the denials.
    pub reason: String,
}

/// Compiles the policies of one enforcement point. One that can't be read or compiled closes it: half of what its owners
/// wrote is not what they meant.
#[must_use]
pub fn enforce<'a>(
    policies: impl IntoIterator<Item = Result<&'a AuthorizationPolicy, Refusal>>,
    options: &Options,
    paths: PathNormalization,
) -> Enforced {
    let read = policies.into_iter().collect::<Result<Vec<_>, _>>();
    match read.and_then(|policies| compile(&policies, options).map_err(Refusal::from)) {
        Ok(compiled) => Enforced { compiled: compiled.with_path_normalization(paths), refusal: None },
        Err(refusal) => Enforced { compiled: Compiled::deny_all(&refusal.reason), refusal: Some(refusal) },
    }
}

// === impl Refusal ===

impl From<CompileError> for Refusal {
    fn from(error: CompileError) -> Self {
        Self { reason: error.to_string(), policy: error.policy }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}
