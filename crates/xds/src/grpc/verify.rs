//! A server's certificate, for one of two names.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// Accepts a certificate for the name that was asked for, or else for the alternative. Everything else is checked as
/// usual.
#[derive(Debug)]
pub(super) struct EitherName {
    usual: Arc<WebPkiServerVerifier>,
    alternative: Option<ServerName<'static>>,
}

// === impl EitherName ===

impl EitherName {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        provider: &Arc<CryptoProvider>,
        alternative: Option<ServerName<'static>>,
    ) -> Result<Self, String> {
        let usual = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider)).build();
        usual.map(|usual| Self { usual, alternative }).map_err(|error| error.to_string())
    }
}

impl ServerCertVerifier for EitherName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify =
            |name: &ServerName<'_>| self.usual.verify_server_cert(end_entity, intermediates, name, ocsp_response, now);
        match (verify(server_name), &self.alternative) {
            (Err(Error::InvalidCertificate(error)), Some(alternative)) if is_about_name(&error) => verify(alternative),
            (result, _) => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

fn is_about_name(error: &CertificateError) -> bool {
    matches!(error, CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. })
}
