//! Certificate revocation lists (`spec/ztunnel.md` 20).
//!
//! Where it is open whether to refuse:
//! * A certificate that no list speaks of is accepted, also when there is no list of its issuer.
//! * A list past its `nextUpdate` counts on: what it revokes stays revoked.
//! * A handshake with a certificate whose issuer's list has a bad signature is refused.
//! * Bytes that are not lists through and through are refused as a whole, and so is a bundle without any list: a file cut
//!   short must not set anybody free. Whoever reloads keeps what was there before.

use std::fmt;

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject};
use webpki::{CertRevocationList, EndEntityCert, OwnedCertRevocationList};

use crate::limits::{MAX_CRL_BYTES, MAX_CRLS};

/// The revocation lists in force. The default is none: nothing is revoked.
#[derive(Default)]
pub struct Crls {
    lists: Vec<CertRevocationList<'static>>,
}

/// Why bytes are not revocation lists.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// There are none in it.
    #[error("it holds no revocation list; expected PEM blocks `X509 CRL`, or one list in DER")]
    Empty,
    /// There is too much of it.
    #[error("it holds {count} {what}, more than {limit}")]
    TooMuch {
        /// Bytes or lists.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many are read.
        limit: usize,
    },
    /// It begins like PEM, but isn't.
    #[error("it is not PEM: {reason}")]
    Pem {
        /// What the parser said.
        reason: String,
    },
    /// A list can't be read, or is of a kind that can't be checked (version 1, delta, indirect).
    #[error("revocation list {index} can't be used: {reason}")]
    List {
        /// Which list, from 0.
        index: usize,
        /// What the parser said.
        reason: String,
    },
}

/// Why a chain is no longer to be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// A list names it.
    Listed {
        /// Which certificate of the chain; 0 is the leaf.
        index: usize,
        /// Its serial number, hexadecimal.
        serial: String,
    },
    /// It can't be read, so nobody can say.
    Unreadable {
        /// Which certificate of the chain; 0 is the leaf, which may also be absent.
        index: usize,
    },
}

impl Crls {
    /// Reads PEM with one block or several (other kinds of blocks are skipped), or one list in DER. Whose they are, and
    /// whether their signatures hold, is seen when they are used.
    ///
    /// # Errors
    /// When there is no list, or one that can't be used.
    pub fn parse(bytes: &[u8]) -> Result<Self, CrlError> {
        if bytes.len() > MAX_CRL_BYTES {
            return Err(CrlError::TooMuch { what: "bytes", count: bytes.len(), limit: MAX_CRL_BYTES });
        }
        if bytes.trim_ascii().is_empty() {
            return Err(CrlError::Empty);
        }
        let ders = if is_pem(bytes) {
            CertificateRevocationListDer::pem_slice_iter(bytes)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| CrlError::Pem { reason: error.to_string() })?
        } else {
            vec![CertificateRevocationListDer::from(bytes)]
        };
        if ders.is_empty() {
            return Err(CrlError::Empty);
        }
        if ders.len() > MAX_CRLS {
            return Err(CrlError::TooMuch { what: "lists", count: ders.len(), limit: MAX_CRLS });
        }
        let list = |(index, der): (usize, &CertificateRevocationListDer<'_>)| {
            OwnedCertRevocationList::from_der(der)
                .map(CertRevocationList::from)
                .map_err(|error| CrlError::List { index, reason: error.to_string() })
        };
        Ok(Self { lists: ders.iter().enumerate().map(list).collect::<Result<_, _>>()? })
    }

    /// How many lists there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lists.len()
    }

    /// Whether there is no list.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// Whether a peer that was accepted with `chain` (leaf first) is revoked by now: one of its certificates stands in
    /// any list of the same issuer name. Neither roots nor validity are looked at: they were right when the peer was
    /// accepted, and may have changed for good reasons. With lists, a chain that can't be read counts as revoked.
    #[must_use]
    pub fn revocation(&self, chain: &[CertificateDer<'_>]) -> Option<Revocation> {
        if self.lists.is_empty() {
            return None;
        }
        if chain.is_empty() {
            return Some(Revocation::Unreadable { index: 0 });
        }
        chain.iter().enumerate().find_map(|(index, certificate)| self.listed(index, certificate))
    }

    fn listed(&self, index: usize, certificate: &CertificateDer<'_>) -> Option<Revocation> {
        let Ok(certificate) = EndEntityCert::try_from(certificate) else {
            return Some(Revocation::Unreadable { index });
        };
        // Any list of the issuer counts: there may be several.
        let names = |list: &CertRevocationList<'_>| {
            list.issuer() == certificate.issuer() && !matches!(list.find_serial(certificate.serial()), Ok(None))
        };
        self.lists.iter().any(names).then(|| Revocation::Listed { index, serial: hexadecimal(certificate.serial()) })
    }

    pub(crate) fn lists(&self) -> &[CertRevocationList<'static>] {
        &self.lists
    }
}

/// DER begins with a SEQUENCE; what doesn't can only be text.
fn is_pem(bytes: &[u8]) -> bool {
    const SEQUENCE: u8 = 0x30;
    bytes.first() != Some(&SEQUENCE)
}

/// A serial number, which DER starts with a zero byte where it would look negative.
fn hexadecimal(serial: &[u8]) -> String {
    use fmt::Write;
    let bytes = match serial {
        [0, rest @ ..] if !rest.is_empty() => rest,
        _ => serial,
    };
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

// === impl Crls ===

impl fmt::Debug for Crls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crls").field("lists", &self.lists.len()).finish_non_exhaustive()
    }
}

// === impl Revocation ===

impl fmt::Display for Revocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listed { index: 0, serial } => write!(f, "the certificate with serial number `{serial}` is revoked"),
            Self::Listed { serial, .. } => write!(f, "the intermediate with serial number `{serial}` is revoked"),
            Self::Unreadable { index } => write!(f, "certificate {index} can't be read, so it counts as revoked"),
        }
    }
}
