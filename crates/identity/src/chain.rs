//! What a CA answers, and whether it may be used (`spec/control-plane.md` 6.1, `spec/ztunnel.md` 8).

use std::time::SystemTime;

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    SpiffeId,
    crl::Crls,
    limits::{MAX_CHAIN_BYTES, MAX_CHAIN_CERTIFICATES, MAX_ROOTS},
    peer::peer_identity,
    verify::{Usage, system_time, timestamp, verify_path},
};

/// What a CA answers.
#[derive(Clone, Debug)]
pub struct IssuedChain {
    /// The leaf, then its intermediates in order. The root is not among them.
    pub chain: Vec<CertificateDer<'static>>,
    /// The trust bundle: every root that peers may chain to.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Why a CA's answer is no certificate to use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// There is nothing in it.
    #[error("it is empty; expected the leaf first and the roots last")]
    Empty,
    /// There is more in it than any CA sends.
    #[error("it holds {count} {what}, more than {limit}")]
    TooMuch {
        /// Bytes, certificates or roots.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many are read.
        limit: usize,
    },
    /// A part is not PEM.
    #[error("part {part} is not PEM: {reason}")]
    Pem {
        /// Which part, from 0.
        part: usize,
        /// What the parser said.
        reason: String,
    },
    /// A part is PEM without a certificate.
    #[error("part {part} holds no certificate")]
    NoCertificate {
        /// Which part, from 0.
        part: usize,
    },
    /// The leaf comes alone.
    #[error("it has no roots; expected them as the last part")]
    NoRoots,
    /// A certificate can't be parsed.
    #[error("certificate {index} can't be parsed: {reason}")]
    Certificate {
        /// Which certificate of the chain; 0 is the leaf.
        index: usize,
        /// What the parser said.
        reason: String,
    },
    /// A root can't be used as one.
    #[error("root {index} can't be used: {reason}")]
    Root {
        /// Which root, from 0.
        index: usize,
        /// What the parser said.
        reason: String,
    },
    /// It is somebody else's.
    #[error("it is for `{got}`, not for `{expected}`")]
    Identity {
        /// Whose was asked for.
        expected: SpiffeId,
        /// Whose came.
        got: SpiffeId,
    },
    /// It is nobody's.
    #[error("it has no workload identity; expected `{expected}`")]
    NoIdentity {
        /// Whose was asked for.
        expected: SpiffeId,
    },
    /// It is over another key than ours.
    #[error("it is for another key than the request's")]
    Key,
    /// Its time has not come.
    #[error("it is valid from {from} on, and our clock shows {now}; set the clock of this machine or of the CA's")]
    NotYetValid {
        /// Start of its validity, RFC 3339.
        from: String,
        /// Our time, RFC 3339.
        now: String,
    },
    /// Its time is over.
    #[error("it was valid until {until}, and our clock shows {now}; set the clock of this machine or of the CA's")]
    Expired {
        /// End of its validity, RFC 3339.
        until: String,
        /// Our time, RFC 3339.
        now: String,
    },
    /// It doesn't chain to the roots it came with, or may not be used for TLS.
    #[error("peers would refuse it: {reason}")]
    Untrusted {
        /// What the check said.
        reason: String,
    },
}

/// The validity of a leaf.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Validity {
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

impl IssuedChain {
    /// Reads the answer of `IstioCertificateService/CreateCertificate`: PEM parts, the leaf in the first, one root or
    /// several in the last, intermediates between. Whether the parts fit together is for [`check`](Self::check).
    ///
    /// # Errors
    /// When a part is missing, isn't PEM, holds no certificate, or there is too much.
    pub fn from_response<S: AsRef<str>>(parts: &[S]) -> Result<Self, ChainError> {
        let too_much = |what, count, limit| Err(ChainError::TooMuch { what, count, limit });
        let bytes = parts.iter().map(|part| part.as_ref().len()).sum();
        if bytes > MAX_CHAIN_BYTES {
            return too_much("bytes", bytes, MAX_CHAIN_BYTES);
        }
        let (bundle, rest) = parts.split_last().ok_or(ChainError::Empty)?;
        if rest.is_empty() {
            return Err(ChainError::NoRoots);
        }
        let mut chain = Vec::new();
        for (part, text) in rest.iter().enumerate() {
            chain.extend(read_part(part, text.as_ref())?);
            if chain.len() > MAX_CHAIN_CERTIFICATES {
                return too_much("certificates", chain.len(), MAX_CHAIN_CERTIFICATES);
            }
        }
        let roots = read_part(rest.len(), bundle.as_ref())?;
        if roots.len() > MAX_ROOTS {
            return too_much("roots", roots.len(), MAX_ROOTS);
        }
        Ok(Self { chain, roots })
    }

    /// Whether `id` may use it at `now` with the key whose public half is `public_key` (SubjectPublicKeyInfo, DER): the
    /// leaf names `id`, is over that key, is valid, and chains to the roots for both ends of a connection.
    ///
    /// # Errors
    /// Says which of these doesn't hold.
    pub fn check(&self, id: &SpiffeId, public_key: &[u8], now: SystemTime) -> Result<(), ChainError> {
        self.checked(id, public_key, now).map(|_| ())
    }

    /// [`check`](Self::check), and the leaf's validity.
    pub(crate) fn checked(&self, id: &SpiffeId, public_key: &[u8], now: SystemTime) -> Result<Validity, ChainError> {
        let leaf = self.chain.first().ok_or(ChainError::Empty)?;
        let unreadable = |reason: String| ChainError::Certificate { index: 0, reason };
        let (rest, parsed) = X509Certificate::from_der(leaf).map_err(|error| unreadable(error.to_string()))?;
        if !rest.is_empty() {
            return Err(unreadable("bytes follow it".to_owned()));
        }
        match peer_identity(&self.chain) {
            Some(got) if got == *id => {}
            Some(got) => return Err(ChainError::Identity { expected: id.clone(), got }),
            None => return Err(ChainError::NoIdentity { expected: id.clone() }),
        }
        if parsed.public_key().raw != public_key {
            return Err(ChainError::Key);
        }
        let validity = Validity::from(parsed.validity());
        if now < validity.not_before {
            return Err(ChainError::NotYetValid { from: timestamp(validity.not_before), now: timestamp(now) });
        }
        if now >= validity.not_after {
            return Err(ChainError::Expired { until: timestamp(validity.not_after), now: timestamp(now) });
        }
        let roots = anchors(&self.roots)?;
        let untrusted = |error: rustls::Error| ChainError::Untrusted { reason: error.to_string() };
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(now);
        for usage in [Usage::Server, Usage::Client] {
            verify_path(leaf, &self.chain[1..], &roots, &Crls::default(), now, usage).map_err(untrusted)?;
        }
        Ok(validity)
    }
}

/// The roots in the form the verifier takes.
pub(crate) fn anchors(roots: &[CertificateDer<'static>]) -> Result<RootCertStore, ChainError> {
    if roots.is_empty() {
        return Err(ChainError::NoRoots);
    }
    if roots.len() > MAX_ROOTS {
        return Err(ChainError::TooMuch { what: "roots", count: roots.len(), limit: MAX_ROOTS });
    }
    let mut store = RootCertStore::empty();
    for (index, root) in roots.iter().enumerate() {
        store.add(root.clone()).map_err(|error| ChainError::Root { index, reason: error.to_string() })?;
    }
    Ok(store)
}

/// The certificates of one part; at least one.
fn read_part(part: usize, text: &str) -> Result<Vec<CertificateDer<'static>>, ChainError> {
    let certificates = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| ChainError::Pem { part, reason: error.to_string() })?;
    if certificates.is_empty() { Err(ChainError::NoCertificate { part }) } else { Ok(certificates) }
}

// === impl Validity ===

impl Validity {
    /// Of this certificate, or why it can't be read.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
        Ok(parsed.validity().into())
    }

    /// When to fetch the successor of a certificate that came at `now`: at half of its life. If that is over already,
    /// because the CA's clock or ours is wrong, at half of what remains.
    pub(crate) fn renewal(&self, now: SystemTime) -> SystemTime {
        let half = self.not_before + self.not_after.duration_since(self.not_before).unwrap_or_default() / 2;
        if half > now { half } else { now + self.not_after.duration_since(now).unwrap_or_default() / 2 }
    }
}

impl From<&x509_parser::certificate::Validity> for Validity {
    fn from(validity: &x509_parser::certificate::Validity) -> Self {
        Self {
            not_before: system_time(validity.not_before.timestamp()),
            not_after: system_time(validity.not_after.timestamp()),
        }
    }
}
