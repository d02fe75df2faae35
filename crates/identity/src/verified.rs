//! Chains of peers that have been verified. A peer shows the same chain with each of its connections, and what the check
//! finds depends on nothing but the chain, what it is for, the roots, the revocation lists and the time: to find it again
//! costs each end of a handshake as much as a signature.
//!
//! So a success is remembered together with the time in which every certificate of the chain is valid, next to the roots
//! and lists that it was found with: when those change, all is forgotten. Failures are never remembered. That the peer has
//! the key, and that it is who it must be, is seen anew in every handshake. A list past its `nextUpdate` counts on
//! (see [`crate::crl`]), so that is no bound here.

use std::{
    collections::HashMap,
    fmt,
    ops::RangeInclusive,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{limits::MAX_VERIFIED_CHAINS, verify::Usage};

/// The successes with one set of roots and lists.
#[derive(Default)]
pub(crate) struct VerifiedChains(Mutex<HashMap<Fingerprint, Window>>);

/// SHA-256 over all that a check is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Fingerprint([u8; SHA256_OUTPUT_LEN]);

/// Seconds since 1970 in which a chain is valid, ends included.
type Window = RangeInclusive<u64>;

/// The time in which all of `certificates` are valid, or nothing when one can't be read.
fn window<'a>(certificates: impl Iterator<Item = &'a CertificateDer<'a>>) -> Option<Window> {
    let mut window = 0..=u64::MAX;
    for certificate in certificates {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let from = u64::try_from(parsed.validity().not_before.timestamp()).unwrap_or(0);
        let until = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
        window = from.max(*window.start())..=until.min(*window.end());
    }
    Some(window)
}

// === impl Fingerprint ===

impl Fingerprint {
    /// Of a chain to be shown for `usage`, with the roots of `trust_domain`, or our own.
    pub(crate) fn of(
        usage: Usage,
        trust_domain: Option<&str>,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(&[usage as u8, u8::from(trust_domain.is_some())]);
        // Each part with its length before it, so that no two chains read alike.
        let parts = std::iter::once(leaf).chain(intermediates).map(|certificate| &certificate[..]);
        for part in std::iter::once(trust_domain.unwrap_or_default().as_bytes()).chain(parts) {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut bytes = [0; SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(context.finish().as_ref());
        Self(bytes)
    }
}

// === impl VerifiedChains ===

impl VerifiedChains {
    /// Whether the chain was good, and is within its time.
    pub(crate) fn contains(&self, chain: &Fingerprint, now: UnixTime) -> bool {
        self.lock().get(chain).is_some_and(|window| window.contains(&now.as_secs()))
    }

    /// The chain was found good at `now`.
    pub(crate) fn remember(
        &self,
        chain: Fingerprint,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) {
        // Read with another parser than the one that verified: where they don't agree, nothing is remembered.
        let window = window(std::iter::once(leaf).chain(intermediates));
        let Some(window) = window.filter(|window| window.contains(&now.as_secs())) else { return };
        let mut chains = self.lock();
        // Only holders of good certificates get here, and all that is lost is time.
        if chains.len() >= MAX_VERIFIED_CHAINS {
            chains.clear();
        }
        chains.insert(chain, window);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Fingerprint, Window>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for VerifiedChains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedChains").field("chains", &self.lock().len()).finish()
    }
}

#[cfg(test)]
mod tests;
