//! A new key and the request for a certificate over it (`spec/ztunnel.md` 8).

use std::{fmt, sync::Arc, time::SystemTime};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData};
use rustls_pki_types::PrivateKeyDer;

use crate::{
    CertificateError, ChainError, Clock, IssuedChain, SpiffeId, WorkloadCertificate, ca::uri_name, trust::Trust,
};

/// A fresh ECDSA P-256 key with a PKCS#10 request: SHA-256, empty subject, the identity as its one URI name. The key
/// lives in memory, until the request is dropped or [accepted](Self::accept).
pub struct CertificateRequest {
    identity: SpiffeId,
    key: KeyPair,
    pem: String,
}

impl CertificateRequest {
    /// Makes a key, and the request for it.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn new(identity: &SpiffeId) -> Result<Self, CertificateError> {
        let no_key = |reason: String| CertificateError::Key { identity: identity.clone(), reason };
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|error| no_key(error.to_string()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri_name(&identity.to_string()).map_err(|error| no_key(error.to_string()))?];
        let request = params.serialize_request(&key).and_then(|request| request.pem());
        let pem = request.map_err(|error| no_key(error.to_string()))?;
        Ok(Self { identity: identity.clone(), key, pem })
    }

    /// Whose certificate is asked for.
    #[must_use]
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// The request, PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Whether `issued` answers this request: the leaf is over its key, names its identity, is valid now by `clock`, and
    /// chains to the roots that came with it.
    ///
    /// # Errors
    /// Says which of these doesn't hold.
    pub fn check(&self, issued: &IssuedChain, clock: &dyn Clock) -> Result<(), ChainError> {
        self.check_at(issued, clock.now())
    }

    pub(crate) fn check_at(&self, issued: &IssuedChain, now: SystemTime) -> Result<(), ChainError> {
        issued.check(&self.identity, &self.key.subject_public_key_info(), now)
    }

    /// The key; only its public half is of use to others.
    pub(crate) fn key(&self) -> &KeyPair {
        &self.key
    }

    /// Makes the certificate to use of the CA's answer, after the same [checks](Self::check). `trust` learns its roots.
    ///
    /// # Errors
    /// When a check fails.
    pub fn accept(
        self,
        issued: IssuedChain,
        trust: &Arc<Trust>,
        clock: &Arc<dyn Clock>,
    ) -> Result<WorkloadCertificate, CertificateError> {
        let Self { identity, key, .. } = self;
        let private_key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let public_key = key.subject_public_key_info();
        WorkloadCertificate::new(identity, issued, &public_key, private_key, Arc::clone(trust), Arc::clone(clock))
    }
}

// === impl CertificateRequest ===

impl fmt::Debug for CertificateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateRequest").field("identity", &self.identity).finish_non_exhaustive()
    }
}
