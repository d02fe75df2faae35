//! Whether a peer that was let in still would be: what living connections are asked when the trust changes
//! (`spec/ztunnel.md` 20).
//!
//! A peer's certificate may have expired since: it was valid when it counted, and its connection lives on. So paths are
//! looked at as of a time at which the leaf was valid, and only what the operator has changed can end a connection.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    Revocation, SpiffeId,
    crl::Crls,
    peer::{expected_identity, peer_identities},
    trust::{Snapshot, Trust},
    verify::{Usage, system_time, verify_path},
};

/// Why a peer that was let in no longer would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// One of its certificates is revoked.
    Revoked(Revocation),
    /// No root of the trust bundle vouches for it any more.
    Uncovered {
        /// What the check said.
        reason: String,
    },
}

/// The same for a client with this chain (leaf first).
pub(crate) fn of_client(trust: &Arc<Trust>, chain: &[CertificateDer<'_>], now: SystemTime) -> Option<Distrust> {
    let snapshot = trust.snapshot(now);
    let foreign = chain.first().and_then(|leaf| {
        peer_identities(leaf).into_iter().next().filter(|identity| snapshot.is_foreign(identity.trust_domain()))
    });
    if let Some(identity) = foreign {
        return Some(uncovered(format!("our own roots don't vouch for trust domain `{}`", identity.trust_domain())));
    }
    look(&snapshot, chain, snapshot.own(), now, Usage::Client)
}

/// The same for a server with this chain, which was to be one of `expected`.
pub(crate) fn of_server(
    trust: &Arc<Trust>,
    chain: &[CertificateDer<'_>],
    expected: &[SpiffeId],
    now: SystemTime,
) -> Option<Distrust> {
    let snapshot = trust.snapshot(now);
    let got = chain.first().map(peer_identities).unwrap_or_default();
    let roots = expected_identity(&got, expected).map_or(snapshot.own(), |found| snapshot.of(found.trust_domain()));
    look(&snapshot, chain, roots, now, Usage::Server)
}

fn look(
    snapshot: &Snapshot,
    chain: &[CertificateDer<'_>],
    roots: &rustls::RootCertStore,
    now: SystemTime,
    usage: Usage,
) -> Option<Distrust> {
    if let Some(revocation) = snapshot.crls.revocation(chain) {
        return Some(Distrust::Revoked(revocation));
    }
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Some(uncovered("it has no certificate".to_owned()));
    };
    let Some(then) = when_valid(leaf, now) else { return Some(uncovered("its certificate can't be read".to_owned())) };
    let outcome = verify_path(leaf, intermediates, roots, &Crls::default(), then, usage);
    outcome.err().map(|error| uncovered(error.to_string()))
}

/// The time at which `leaf` was last valid, `now` at the latest.
fn when_valid(leaf: &CertificateDer<'_>, now: SystemTime) -> Option<UnixTime> {
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    let from = system_time(parsed.validity().not_before.timestamp());
    let until = system_time(parsed.validity().not_after.timestamp()).checked_sub(Duration::from_secs(1))?;
    let then = now.min(until).max(from);
    then.duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
}

fn uncovered(reason: String) -> Distrust {
    Distrust::Uncovered { reason }
}

// === impl Distrust ===

impl fmt::Display for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Revoked(revocation) => revocation.fmt(f),
            Self::Uncovered { reason } => write!(f, "no root of the trust bundle vouches for it any more: {reason}"),
        }
    }
}
