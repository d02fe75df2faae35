//! Who a peer is, from its certificate (`spec/ztunnel.md` 2.3).
//!
//! The certificate is read with the parser that also verifies it, so there are no two opinions on what it says.

use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;

use crate::{SpiffeId, limits::MAX_PEER_IDENTITIES};

/// The peer's identity for policies, metrics and logs: the first of [`peer_identities`]. `certs` has the leaf first.
#[must_use]
pub fn peer_identity(certs: &[CertificateDer<'_>]) -> Option<SpiffeId> {
    peer_identities(certs.first()?).into_iter().next()
}

/// The workload identities in `leaf`, in its order: of its URI names those that read
/// `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`. Other names are skipped.
#[must_use]
pub fn peer_identities(leaf: &CertificateDer<'_>) -> Vec<SpiffeId> {
    let Ok(leaf) = EndEntityCert::try_from(leaf) else { return Vec::new() };
    let identity = |uri: &str| {
        uri.parse().inspect_err(|error| tracing::debug!(?error, "a name in the peer's certificate is skipped")).ok()
    };
    leaf.valid_uri_names().filter_map(identity).take(MAX_PEER_IDENTITIES).collect()
}

/// The rule for servers: the first of the identities `presented` that is one of those `expected`. With none expected
/// there is none.
#[must_use]
pub fn expected_identity<'a>(presented: &'a [SpiffeId], expected: &[SpiffeId]) -> Option<&'a SpiffeId> {
    presented.iter().find(|identity| expected.contains(identity))
}

/// The rule for clients: whether one of the identities `presented` is of `trust_domain`. There are no aliases. What the
/// client may do is for policies to say.
#[must_use]
pub fn in_trust_domain(presented: &[SpiffeId], trust_domain: &str) -> bool {
    presented.iter().any(|identity| identity.trust_domain() == trust_domain)
}
