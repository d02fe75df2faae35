//! Checking a peer: its chain, its validity, and the SPIFFE name in its certificate (`spec/ztunnel.md` 2.2, 2.3).

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    CertificateError as TlsCertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    time_provider::TimeProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{Clock, SpiffeId};

/// The identity in the peer's leaf, which must be the first of `certs`. `None` when there is no leaf, or its URI names
/// are not exactly one workload identity. (A SPIFFE certificate has exactly one URI name; with two, one check could
/// look at the first and another at the second.)
#[must_use]
pub fn peer_identity(certs: &[CertificateDer<'_>]) -> Option<SpiffeId> {
    let (_, leaf) = X509Certificate::from_der(certs.first()?).ok()?;
    let names = leaf.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = uris.next()?;
    if uris.next().is_some() { None } else { uri.parse().ok() }
}

/// The cryptography of every HBONE connection: AES-GCM only, the hybrid post-quantum exchange first.
pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| {
        use aws_lc_rs::{cipher_suite, kx_group};
        Arc::new(CryptoProvider {
            cipher_suites: vec![cipher_suite::TLS13_AES_256_GCM_SHA384, cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
            ..aws_lc_rs::default_provider()
        })
    })
}

/// Seconds since 1970 as a time; before 1970 counts as 1970.
pub(crate) fn system_time(timestamp_s: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(timestamp_s).unwrap_or(0))
}

/// Whether `leaf` chains to `roots` for a server's use at `now`.
pub(crate) fn verify_chain(chain: &[CertificateDer<'_>], roots: &RootCertStore, now: UnixTime) -> Result<(), Error> {
    let (leaf, intermediates) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(leaf)?,
        roots,
        intermediates,
        now,
        algorithms,
    )
}

/// Lets TLS read the injected clock.
#[derive(Debug)]
pub(crate) struct ClockTime(pub(crate) Arc<dyn Clock>);

/// Accepts clients with a valid certificate whose identity is of our trust domain.
#[derive(Debug)]
pub(crate) struct SameTrustDomain {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domain: Box<str>,
}

/// Accepts a server whose identity is one of those expected.
#[derive(Debug)]
pub(crate) struct ExpectedIdentity {
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) expected: Box<[SpiffeId]>,
}

/// What rustls hands on of this is its `Debug` form, so that is made to read like the message.
#[derive(thiserror::Error)]
enum Mismatch {
    #[error("identity verification error: the peer's certificate has no workload identity")]
    Absent,
    #[error("identity verification error: peer did not present the expected SAN ({expected:?}), got `{got}`")]
    Identity { expected: Box<[SpiffeId]>, got: SpiffeId },
    #[error("identity verification error: peer did not present the expected trustdomain (`{expected}`), got `{got}`")]
    TrustDomain { expected: Box<str>, got: SpiffeId },
}

// === impl ClockTime ===

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.now().duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

// === impl SameTrustDomain ===

impl SameTrustDomain {
    /// Fails when `roots` is empty.
    pub(crate) fn new(roots: Arc<RootCertStore>, trust_domain: &str) -> Result<Self, String> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider()))
            .clear_root_hint_subjects()
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { chain, trust_domain: trust_domain.into() })
    }
}

impl ClientCertVerifier for SameTrustDomain {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let got = peer_identity(std::slice::from_ref(end_entity)).ok_or(Mismatch::Absent)?;
        if got.trust_domain() != &*self.trust_domain {
            return Err(Mismatch::TrustDomain { expected: self.trust_domain.clone(), got }.into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12_refused())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

// === impl ExpectedIdentity ===

impl ServerCertVerifier for ExpectedIdentity {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let algorithms = provider().signature_verification_algorithms.all;
        let leaf = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, intermediates, now, algorithms)?;
        let got = peer_identity(std::slice::from_ref(end_entity)).ok_or(Mismatch::Absent)?;
        if !self.expected.contains(&got) {
            return Err(Mismatch::Identity { expected: self.expected.clone(), got }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12_refused())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn tls12_refused() -> Error {
    Error::General("TLS 1.2 is not spoken here".to_owned())
}

// === impl Mismatch ===

impl fmt::Debug for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Mismatch> for Error {
    fn from(mismatch: Mismatch) -> Self {
        Self::InvalidCertificate(TlsCertificateError::Other(OtherError(Arc::new(mismatch))))
    }
}
