//! What a CA signs with: a certificate of its own, the way from there to a root, and the bundle of roots that peers are
//! given (`spec/control-plane.md` 6.4).

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{CertificateParams, Issuer, KeyPair, PublicKeyData};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    CaError, CertificateRequest, ChainError, IssuedChain, SpiffeId,
    ca::{server_profile, workload_profile},
    certificate_pem,
    chain::anchors,
    limits::{MAX_CHAIN_BYTES, MAX_CHAIN_CERTIFICATES, MAX_ROOTS, PROBE_TTL},
    root,
    verify::{system_time, timestamp},
};

/// A signing key with its certificate. Cheap to clone; the key stays in memory and can't be taken out.
#[derive(Clone)]
pub struct Signer {
    issuer: Arc<Issuer<'static, KeyPair>>,
    certificate: CertificateDer<'static>,
    /// From the signing certificate up to, and without, a root. Empty if a root signs.
    intermediates: Arc<[CertificateDer<'static>]>,
    /// The trust bundle.
    roots: Arc<[CertificateDer<'static>]>,
    roots_pem: Arc<str>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// The files that a [`Signer`] is read from, PEM.
#[derive(Clone, Copy)]
pub struct SignerFiles<'a> {
    /// The signing certificate; more certificates behind it count as part of the chain.
    pub certificate: &'a str,
    /// Its private key: PKCS#8, PKCS#1 or SEC 1.
    pub key: &'a str,
    /// What leads from the signing certificate to a root; empty if nothing is between them.
    pub chain: &'a str,
    /// The roots; empty if the signing certificate is the only one.
    pub roots: &'a str,
}

/// A new self-signed root.
pub struct NewRoot {
    /// The certificate, PEM.
    pub certificate: String,
    /// The key, PKCS#8 PEM.
    pub key: String,
}

/// Why files are nothing to sign with. Never quotes them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignerError {
    /// A part can't be read.
    #[error("the {part} can't be read: {reason}")]
    Part {
        /// Which one.
        part: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The key is another certificate's.
    #[error("the key doesn't belong to the certificate; put the right pair in place")]
    OtherKey,
    /// The certificate may not sign others.
    #[error("the certificate is not a CA's (`CA:TRUE`, `keyCertSign`), so peers would refuse what it signs")]
    NotCa,
    /// The certificate's time is over, or has not come.
    #[error(
        "the certificate is valid from {from} until {until}, and our clock shows {now}; renew it, or set the clock"
    )]
    Time {
        /// Start of its validity, RFC 3339.
        from: String,
        /// End of its validity, RFC 3339.
        until: String,
        /// Our time, RFC 3339.
        now: String,
    },
    /// What it signs would be refused.
    #[error("peers would refuse what it signs: {0}")]
    Refused(ChainError),
}

// === impl Signer ===

impl Signer {
    /// Reads a signer for `trust_domain`, and has it sign a certificate on trial that must hold against its own roots.
    ///
    /// # Errors
    /// When a file is malformed, they don't fit together, or are not valid at `now`.
    pub fn read(files: SignerFiles<'_>, trust_domain: &str, now: SystemTime) -> Result<Self, SignerError> {
        let own = certificates("certificate", files.certificate)?;
        let certificate = own.first().cloned().ok_or_else(|| part("certificate", "it holds none"))?;
        let roots = match certificates("roots", files.roots)? {
            none if none.is_empty() => vec![certificate.clone()],
            roots => roots,
        };
        let further = certificates("chain", files.chain)?;
        let mut intermediates = Vec::new();
        for certificate in own.into_iter().chain(further) {
            if !roots.contains(&certificate) && !intermediates.contains(&certificate) {
                intermediates.push(certificate);
            }
        }
        if intermediates.len() >= MAX_CHAIN_CERTIFICATES {
            return Err(part("chain", format!("it has more than {} certificates", MAX_CHAIN_CERTIFICATES - 1)));
        }
        // The parser's own message is left out: it could quote the file.
        let key = KeyPair::from_pem(files.key).map_err(|_| part("key", "it is no private key in PEM"))?;
        let signer = Self::new(certificate, key, intermediates, roots)?;
        signer.try_on(trust_domain, now)?;
        Ok(signer)
    }

    /// Makes a new root for `trust_domain` that lives `life` from `now` on.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn new_root(trust_domain: &str, life: Duration, now: SystemTime) -> Result<NewRoot, CaError> {
        let key = root::new_key()?;
        let certificate = root::self_signed(&key, trust_domain, life, now)?.pem();
        Ok(NewRoot { certificate, key: key.serialize_pem() })
    }

    /// A root that signs directly.
    pub(crate) fn of_root(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, SignerError> {
        Self::new(certificate.clone(), key, Vec::new(), vec![certificate])
    }

    fn new(
        certificate: CertificateDer<'static>,
        key: KeyPair,
        intermediates: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, SignerError> {
        let unreadable = |error: &dyn fmt::Display| part("certificate", error.to_string());
        let (not_before, not_after) = {
            let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|error| unreadable(&error))?;
            if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
                return Err(SignerError::OtherKey);
            }
            let usage = parsed.key_usage().map_err(|error| unreadable(&error))?;
            if !parsed.is_ca() || usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
                return Err(SignerError::NotCa);
            }
            let validity = parsed.validity();
            (system_time(validity.not_before.timestamp()), system_time(validity.not_after.timestamp()))
        };
        // Refuses what can't be a root, so that it never comes to proxies.
        anchors(&roots).map_err(|error| part("roots", error.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|error| unreadable(&error))?;
        Ok(Self {
            issuer: Arc::new(issuer),
            certificate,
            intermediates: intermediates.into(),
            roots_pem: bundle_pem(&roots),
            roots: roots.into(),
            not_before,
            not_after,
        })
    }

    /// The same signer with more roots in its bundle.
    pub(crate) fn with_roots(mut self, more: &[CertificateDer<'static>]) -> Self {
        let mut roots = self.roots.to_vec();
        roots.extend(more.iter().filter(|root| !self.roots.contains(root)).cloned());
        roots.truncate(MAX_ROOTS);
        self.roots_pem = bundle_pem(&roots);
        self.roots = roots.into();
        self
    }

    /// Whether peers that have only `roots` would take what it signs: what must hold before signing goes over to it.
    ///
    /// # Errors
    /// Says why not.
    pub fn is_covered_by(
        &self,
        roots: &[CertificateDer<'static>],
        trust_domain: &str,
        now: SystemTime,
    ) -> Result<(), SignerError> {
        let other = Self { roots: roots.into(), ..self.clone() };
        other.try_on(trust_domain, now)
    }

    fn try_on(&self, trust_domain: &str, now: SystemTime) -> Result<(), SignerError> {
        if now < self.not_before || now >= self.not_after {
            let (from, until) = (timestamp(self.not_before), timestamp(self.not_after));
            return Err(SignerError::Time { from, until, now: timestamp(now) });
        }
        let failed = |error: &dyn fmt::Display| part("certificate", error.to_string());
        let id = SpiffeId::new(trust_domain, "trial", "trial").map_err(|error| failed(&error))?;
        let request = CertificateRequest::new(&id).map_err(|error| failed(&error))?;
        let profile = workload_profile(&id, now).map_err(|error| failed(&error))?;
        let issued = self.sign(profile, request.key(), now + PROBE_TTL).map_err(|error| failed(&error))?;
        request.check_at(&issued, now).map_err(SignerError::Refused)
    }

    /// Signs a leaf that ends at `not_after`, or with this signer if that is sooner.
    pub(crate) fn sign(
        &self,
        mut profile: CertificateParams,
        key: &impl PublicKeyData,
        not_after: SystemTime,
    ) -> Result<IssuedChain, CaError> {
        profile.not_after = not_after.min(self.not_after).into();
        let leaf =
            profile.signed_by(key, &*self.issuer).map_err(|error| CaError::Signing { reason: error.to_string() })?;
        let chain = [leaf.der()].into_iter().chain(&*self.intermediates).cloned().collect();
        Ok(IssuedChain { chain, roots: self.roots.to_vec() })
    }

    /// Signs a server's certificate for these names (DNS names or addresses).
    pub(crate) fn sign_server(
        &self,
        names: &[String],
        key: &impl PublicKeyData,
        now: SystemTime,
        not_after: SystemTime,
    ) -> Result<IssuedChain, CaError> {
        self.sign(server_profile(names, now)?, key, not_after)
    }

    /// Whether it signs with the same certificate, and hands out the same.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.certificate == other.certificate && self.intermediates == other.intermediates && self.roots == other.roots
    }

    /// The trust bundle.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The trust bundle, PEM.
    #[must_use]
    pub fn roots_pem(&self) -> Arc<str> {
        Arc::clone(&self.roots_pem)
    }

    /// Start of the signing certificate's validity.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// End of the signing certificate's validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

fn bundle_pem(roots: &[CertificateDer<'_>]) -> Arc<str> {
    roots.iter().map(certificate_pem).collect::<String>().into()
}

/// Every certificate of a part; perhaps none.
fn certificates(name: &'static str, text: &str) -> Result<Vec<CertificateDer<'static>>, SignerError> {
    if text.len() > MAX_CHAIN_BYTES {
        return Err(part(name, format!("it has {} bytes, more than {MAX_CHAIN_BYTES}", text.len())));
    }
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let certificate = certificate.map_err(|_| part(name, "it is not PEM"))?;
        if found.len() >= MAX_ROOTS {
            return Err(part(name, format!("it holds more than {MAX_ROOTS} certificates")));
        }
        if !found.contains(&certificate) {
            found.push(certificate);
        }
    }
    if found.is_empty() && !text.trim().is_empty() {
        return Err(part(name, "it holds no certificate in PEM"));
    }
    Ok(found)
}

fn part(part: &'static str, reason: impl Into<String>) -> SignerError {
    SignerError::Part { part, reason: reason.into() }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("roots", &self.roots.len())
            .field("intermediates", &self.intermediates.len())
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

// === impl NewRoot ===

impl fmt::Debug for NewRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewRoot").finish_non_exhaustive()
    }
}

// === impl SignerFiles ===

impl fmt::Debug for SignerFiles<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignerFiles").finish_non_exhaustive()
    }
}
