//! Fixtures for the tests of the other crates: a CA in a temporary directory with identities and certificates, and a
//! clock that tests set. Never part of the product.
#![forbid(unsafe_code)]

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use ambit_identity::{Ca, CertificateStore, Clock, SpiffeId, SystemClock};
use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber};
use rustls_pki_types::CertificateDer;
use tempfile::TempDir;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The trust domain of [`TestMesh`].
pub const TRUST_DOMAIN: &str = "cluster.local";

/// A CA of its own with a certificate store. Its state directory is removed when it is dropped.
#[derive(Debug)]
pub struct TestMesh {
    /// Signs for [`TRUST_DOMAIN`].
    pub ca: Arc<Ca>,
    /// Fetches from `ca`.
    pub certificates: Arc<CertificateStore>,
    dir: TempDir,
}

/// A clock that stands until it is moved.
#[derive(Debug)]
pub struct ManualClock(Mutex<SystemTime>);

/// `spiffe://cluster.local/ns/<namespace>/sa/<account>`.
///
/// # Panics
/// When a part can't stand in an identity.
#[must_use]
pub fn identity(namespace: &str, account: &str) -> SpiffeId {
    SpiffeId::new(TRUST_DOMAIN, namespace, account).expect("the test names a valid identity")
}

// === impl TestMesh ===

impl TestMesh {
    /// A new root, and the system's clock.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(Arc::new(SystemClock))
    }

    /// A new root; CA and store read `clock`.
    ///
    /// # Panics
    /// When the temporary directory or the CA can't be made.
    #[must_use]
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let ca = Ca::open(&dir.path().join("ca"), TRUST_DOMAIN).expect("a new CA").with_clock(Arc::clone(&clock));
        let ca = Arc::new(ca);
        let certificates = CertificateStore::new(Arc::clone(&ca) as _, clock);
        Self { ca, certificates, dir }
    }

    /// A directory for the test's own files, beside the CA's.
    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// A revocation list of the CA, DER, that names these certificates.
    ///
    /// # Panics
    /// When the CA's key or one of the certificates can't be read.
    #[must_use]
    pub fn revocation_list(&self, revoked: &[&CertificateDer<'_>]) -> Vec<u8> {
        let read = |name: &str| std::fs::read_to_string(self.dir.path().join("ca").join(name)).expect("the CA's file");
        let key = KeyPair::from_pem(&read("root-key.pem")).expect("the CA's key");
        let issuer = Issuer::from_ca_cert_pem(&read("root-cert.pem"), key).expect("the CA's certificate");
        let now = time::OffsetDateTime::now_utc();
        let entry = |certificate: &&CertificateDer<'_>| {
            let (_, parsed) = X509Certificate::from_der(certificate).expect("a certificate");
            RevokedCertParams {
                serial_number: SerialNumber::from_slice(&parsed.tbs_certificate.serial.to_bytes_be()),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            }
        };
        let list = CertificateRevocationListParams {
            this_update: now - time::Duration::hours(1),
            next_update: now + time::Duration::days(1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&issuer).expect("signed").der().to_vec()
    }
}

impl Default for TestMesh {
    fn default() -> Self {
        Self::new()
    }
}

// === impl ManualClock ===

impl ManualClock {
    /// A clock that shows the present.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(SystemTime::now())))
    }

    /// Moves the clock on.
    pub fn advance(&self, by: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
