//! Where Ambit denies on purpose what Istio allows (`docs/differences-from-istio.md`).

use std::fmt;

use ambit_api::AuthorizationPolicy;
use serde::Serialize;

use crate::{
    ConnectionFacts, Options, PathNormalization, RequestFacts, Verdict, compile, compile::UNSUPPORTED_KEYS, reference,
};

/// A deliberate difference from Istio. Each goes from ALLOW to DENY.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stricter {
    /// A path that can be read in several ways must be allowed under each.
    AllReadings,
    /// A client without an identity matches no `principals`, not even `*`.
    NoIdentity,
    /// Namespace and service account are those of a workload's identity, and matched as names, not searched for.
    OddSpiffeId,
    /// A value that can't be used rejects its policy, and while that is so everything it may apply to is denied.
    UnusableValue,
    /// So does an attribute that Ambit has not.
    UnsupportedAttribute,
    /// An IPv4-mapped IPv6 address is judged as both.
    MappedAddress,
    /// Repeated header lines deny if any line does, or all as one.
    HeaderLines,
    /// A TLS server name that nobody has looked at counts as whatever denies.
    UnknownServerName,
    /// A connection that a CUSTOM rule matches is denied when its provider can only be asked about HTTP requests.
    HttpProvider,
}

/// Why Ambit denies something, if Istio would allow it.
///
/// The slow way: it judges anew, with the reference evaluator, without one and then without all of the differences.
/// It answers for denials only; pass `compile`'s policies and options and the case as it was judged.
#[must_use]
pub fn stricter(
    policies: &[AuthorizationPolicy],
    options: &Options,
    paths: PathNormalization,
    connection: &ConnectionFacts,
    request: Option<RequestFacts<'_>>,
) -> Option<Stricter> {
    if compile(policies, options).is_err() {
        let mut rules = policies.iter().flat_map(|policy| policy.spec.rules.iter().flatten());
        let is_unsupported =
            rules.any(|rule| rule.when.iter().flatten().any(|when| when.key.starts_with(UNSUPPORTED_KEYS)));
        return Some(if is_unsupported { Stricter::UnsupportedAttribute } else { Stricter::UnusableValue });
    }
    let case = reference::Case { policies, options, connection, request, paths };
    let allows = |left_out: &[Stricter]| reference::verdict_without(&case, left_out) == Verdict::Allow;
    if allows(&[]) || !allows(&Stricter::ALL) {
        return None;
    }
    // The one that alone makes the difference; or, where it takes several, the first that is needed.
    Stricter::ALL.into_iter().find(|one| allows(&[*one])).or_else(|| {
        Stricter::ALL.into_iter().find(|one| {
            let others: Vec<_> = Stricter::ALL.into_iter().filter(|other| other != one).collect();
            !allows(&others)
        })
    })
}

// === impl Stricter ===

impl Stricter {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::AllReadings,
        Self::NoIdentity,
        Self::OddSpiffeId,
        Self::UnusableValue,
        Self::UnsupportedAttribute,
        Self::MappedAddress,
        Self::HeaderLines,
        Self::UnknownServerName,
        Self::HttpProvider,
    ];

    /// Its name, which stays.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AllReadings => "all-readings",
            Self::NoIdentity => "no-identity",
            Self::OddSpiffeId => "odd-spiffe-id",
            Self::UnusableValue => "unusable-value",
            Self::UnsupportedAttribute => "unsupported-attribute",
            Self::MappedAddress => "mapped-address",
            Self::HeaderLines => "header-lines",
            Self::UnknownServerName => "unknown-server-name",
            Self::HttpProvider => "http-provider",
        }
    }
}

impl fmt::Display for Stricter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
