//! The certificate of a server that signs its own: the control plane's (`spec/control-plane.md` 6.1).

use std::{fmt, sync::Arc};

use arc_swap::ArcSwapOption;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio::time::sleep;

use crate::{
    Ca, CaError, KeyExchange, Trust,
    certificate::TimedKey,
    chain::Validity,
    limits::{MAX_BACKOFF, MAX_TIMER_SLICE, MIN_BACKOFF, MIN_RENEWAL_PAUSE, SERVER_CERTIFICATE_TTL},
    root::new_key,
    tls,
    verify::{ClockTime, SameTrustDomain},
};

/// A server's certificate from the CA in the same process, with a new key for each, renewed at half of its life and when
/// the CA signs with something else. Configurations made from it follow without being made anew.
pub struct ServerCertificate {
    ca: Arc<Ca>,
    names: Vec<String>,
    trust: Arc<Trust>,
    current: ArcSwapOption<TimedKey>,
}

/// Lets clients in without a certificate; one that is shown must be good.
#[derive(Debug)]
struct IfShown(SameTrustDomain);

// === impl ServerCertificate ===

impl ServerCertificate {
    /// A certificate for these names (DNS names or addresses).
    ///
    /// # Errors
    /// When a name is none, or the CA doesn't sign.
    pub fn new(ca: Arc<Ca>, names: Vec<String>) -> Result<Arc<Self>, CaError> {
        let trust = Trust::new(KeyExchange::default());
        let certificate = Arc::new(Self { ca, names, trust, current: ArcSwapOption::empty() });
        certificate.renew()?;
        Ok(certificate)
    }

    /// Renews it for ever, whenever that is due.
    pub async fn keep(self: Arc<Self>) {
        let mut signer = self.ca.bundle();
        // It may have changed since the first certificate.
        signer.mark_changed();
        let mut pause = MIN_BACKOFF;
        loop {
            let left = self.current.load().as_ref().map(|key| key.until_renewal()).unwrap_or_default();
            tokio::select! {
                // In slices: the clock may be set meanwhile.
                () = sleep(left.clamp(MIN_RENEWAL_PAUSE, MAX_TIMER_SLICE)) => {}
                // The CA signs with something else; the old roots may be on their way out. (It lives as long as this.)
                changed = signer.changed() => if changed.is_ok() { self.try_renew(&mut pause).await },
            }
            if self.current.load().as_ref().is_none_or(|key| key.until_renewal().is_zero()) {
                self.try_renew(&mut pause).await;
            }
        }
    }

    async fn try_renew(&self, pause: &mut std::time::Duration) {
        match self.renew() {
            Ok(()) => *pause = MIN_BACKOFF,
            Err(error) => {
                tracing::error!(%error, "the server's own certificate can't be renewed");
                sleep(*pause).await;
                *pause = (*pause * 2).min(MAX_BACKOFF);
            }
        }
    }

    /// Makes a new key and certificate, which the next handshake uses.
    ///
    /// # Errors
    /// When the CA doesn't sign.
    pub fn renew(&self) -> Result<(), CaError> {
        let key = new_key()?;
        let issued = self.ca.issue_server(&self.names, &key, SERVER_CERTIFICATE_TTL)?;
        let failed = |reason: String| CaError::Signing { reason };
        let now = self.ca.clock().now();
        let validity = Validity::of(&issued.chain[0]).map_err(failed)?;
        let private = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let certified = CertifiedKey::from_der(issued.chain, private, tls::provider(self.trust.key_exchange()))
            .map_err(|error| failed(error.to_string()))?;
        let timed = TimedKey::new(Arc::new(certified), validity, now, Arc::clone(self.ca.clock()));
        self.trust.learn(issued.roots, now);
        self.current.store(Some(Arc::new(timed)));
        Ok(())
    }

    /// What clients' certificates are judged by: the CA's bundle, and the revocation lists that are set here.
    #[must_use]
    pub fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    /// TLS 1.3 for clients that may show a certificate of the mesh. One of another trust domain or without an identity ends
    /// the handshake.
    #[must_use]
    pub fn mesh_config(self: &Arc<Self>) -> Arc<ServerConfig> {
        let trust_domain = self.ca.trust_domain().into();
        let verifier = IfShown(SameTrustDomain { trust: Arc::clone(&self.trust), trust_domain });
        self.config(Some(verifier))
    }

    /// TLS 1.3 for clients that aren't asked for a certificate.
    #[must_use]
    pub fn open_config(self: &Arc<Self>) -> Arc<ServerConfig> {
        self.config(None)
    }

    fn config(self: &Arc<Self>, verifier: Option<IfShown>) -> Arc<ServerConfig> {
        let time = Arc::new(ClockTime(Arc::clone(self.ca.clock())));
        let provider = Arc::clone(tls::provider(self.trust.key_exchange()));
        let builder = ServerConfig::builder_with_details(provider, time)
            .with_protocol_versions(&[&TLS13])
            .expect("INVARIANT: our own provider has TLS 1.3 suites and groups");
        let builder = match verifier {
            Some(verifier) => builder.with_client_cert_verifier(Arc::new(verifier)),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::clone(self) as _);
        // A resumed session would carry on an identity past its certificate's end.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Arc::new(config)
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load().as_ref().and_then(|key| key.current())
    }
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCertificate").field("names", &self.names).finish_non_exhaustive()
    }
}

// === impl IfShown ===

impl ClientCertVerifier for IfShown {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.0.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
