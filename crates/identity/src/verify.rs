//! Checking a peer: its chain, its validity, its revocation, and the SPIFFE name in its certificate
//! (`spec/ztunnel.md` 2.2, 2.3, 20).

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    CertRevocationListError, CertificateError as TlsCertificateError, DigitallySignedStruct, DistinguishedName, Error,
    OtherError, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls13_signature},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    time_provider::TimeProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{
    EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};

use crate::{
    Clock, KeyExchange, SpiffeId,
    crl::Crls,
    peer::{expected_identity, in_trust_domain, peer_identities},
    tls,
    trust::Trust,
};

/// What a certificate is shown for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    Server,
    Client,
}

/// Lets TLS read the injected clock.
#[derive(Debug)]
pub(crate) struct ClockTime(pub(crate) Arc<dyn Clock>);

/// Accepts clients with a valid certificate that has an identity of our trust domain.
#[derive(Debug)]
pub(crate) struct SameTrustDomain {
    pub(crate) trust: Arc<Trust>,
    pub(crate) trust_domain: Box<str>,
}

/// Accepts a server that has one of the identities expected.
#[derive(Debug)]
pub(crate) struct ExpectedIdentity {
    pub(crate) trust: Arc<Trust>,
    pub(crate) expected: Box<[SpiffeId]>,
}

/// What rustls hands on of this is its `Debug` form, so that is made to read like the message.
#[derive(thiserror::Error)]
enum Mismatch {
    #[error("identity verification error: the peer's certificate has no workload identity")]
    Absent,
    #[error("identity verification error: peer did not present the expected SAN ({expected:?}), got {got:?}")]
    Identity { expected: Box<[SpiffeId]>, got: Vec<SpiffeId> },
    #[error("identity verification error: peer did not present the expected trustdomain (`{expected}`), got {got:?}")]
    TrustDomain { expected: Box<str>, got: Vec<SpiffeId> },
}

/// Seconds since 1970 as a time; before 1970 counts as 1970.
pub(crate) fn system_time(timestamp_s: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(timestamp_s).unwrap_or(0))
}

/// RFC 3339, in UTC.
pub(crate) fn timestamp(time: SystemTime) -> String {
    use time::format_description::well_known::Rfc3339;
    // Whole seconds, as certificates have them.
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let time = i64::try_from(seconds).ok().and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{seconds} s after 1970"))
}

/// Whether `leaf` chains to `roots` for `usage` at `now`, and neither it nor an intermediate is revoked by `crls`.
pub(crate) fn verify_path(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    crls: &Crls,
    now: UnixTime,
    usage: Usage,
) -> Result<(), Error> {
    let certificate = EndEntityCert::try_from(leaf).map_err(tls_error)?;
    let usage = match usage {
        Usage::Server => KeyUsage::server_auth(),
        Usage::Client => KeyUsage::client_auth(),
    };
    let lists: Vec<_> = crls.lists().iter().collect();
    let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
        options
            .with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(UnknownStatusPolicy::Allow)
            .with_expiration_policy(ExpirationPolicy::Ignore)
            .build()
    });
    let algorithms = crypto(KeyExchange::default()).signature_verification_algorithms.all;
    let path = certificate
        .verify_for_usage(algorithms, &roots.roots, intermediates, now, usage, revocation, None)
        .map_err(tls_error)?;
    // The library looks into one list per issuer; a bundle may hold several.
    let used = path.intermediate_certificates().map(|certificate| certificate.der());
    let used: Vec<_> = std::iter::once(certificate.der()).chain(used).collect();
    match crls.revocation(&used) {
        Some(_) => Err(Error::InvalidCertificate(TlsCertificateError::Revoked)),
        None => Ok(()),
    }
}

/// The library's errors as TLS's, so that the peer gets the fitting alert.
fn tls_error(error: webpki::Error) -> Error {
    use webpki::Error as Path;
    let certificate = match error {
        Path::CertExpired { time, not_after } => TlsCertificateError::ExpiredContext { time, not_after },
        Path::CertNotValidYet { time, not_before } => TlsCertificateError::NotValidYetContext { time, not_before },
        Path::CertRevoked => TlsCertificateError::Revoked,
        Path::UnknownIssuer => TlsCertificateError::UnknownIssuer,
        Path::InvalidSignatureForPublicKey => TlsCertificateError::BadSignature,
        Path::RequiredEkuNotFoundContext(_) => TlsCertificateError::InvalidPurpose,
        Path::BadDer | Path::BadDerTime | Path::TrailingData(_) => TlsCertificateError::BadEncoding,
        Path::InvalidCrlSignatureForPublicKey => return CertRevocationListError::BadSignature.into(),
        Path::IssuerNotCrlSigner => return CertRevocationListError::IssuerInvalidForCrl.into(),
        other => TlsCertificateError::Other(OtherError(Arc::new(other))),
    };
    Error::InvalidCertificate(certificate)
}

/// Signatures are checked alike whatever the key exchange.
fn crypto(key_exchange: KeyExchange) -> &'static CryptoProvider {
    tls::provider(key_exchange)
}

fn wall_time(now: UnixTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(now.as_secs())
}

// === impl ClockTime ===

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.now().duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

// === impl SameTrustDomain ===

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
        let snapshot = self.trust.snapshot(wall_time(now));
        snapshot.verify(end_entity, intermediates, None, now, Usage::Client)?;
        let got = peer_identities(end_entity);
        if got.is_empty() {
            return Err(Mismatch::Absent.into());
        }
        // The first is who the client will be for policies: our roots must be good for it.
        let vouched = got.first().is_some_and(|first| !snapshot.is_foreign(first.trust_domain()));
        if !vouched || !in_trust_domain(&got, &self.trust_domain) {
            return Err(Mismatch::TrustDomain { expected: self.trust_domain.clone(), got }.into());
        }
        Ok(ClientCertVerified::assertion())
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
        verify_tls13_signature(message, cert, dss, &crypto(self.trust.key_exchange()).signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto(self.trust.key_exchange()).signature_verification_algorithms.supported_schemes()
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
        let snapshot = self.trust.snapshot(wall_time(now));
        let got = peer_identities(end_entity);
        let found = expected_identity(&got, &self.expected);
        // INVARIANT: the roots that vouch for the identity found are those of its own trust domain.
        let trust_domain = found.map(SpiffeId::trust_domain);
        snapshot.verify(end_entity, intermediates, trust_domain, now, Usage::Server)?;
        match found {
            Some(_) => Ok(ServerCertVerified::assertion()),
            None if got.is_empty() => Err(Mismatch::Absent.into()),
            None => Err(Mismatch::Identity { expected: self.expected.clone(), got }.into()),
        }
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
        verify_tls13_signature(message, cert, dss, &crypto(self.trust.key_exchange()).signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto(self.trust.key_exchange()).signature_verification_algorithms.supported_schemes()
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
