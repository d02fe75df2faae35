//! A workload's certificate and the TLS configurations made from it (`spec/ztunnel.md` 2.2).

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
    time_provider::TimeProvider,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    Clock, SourceError, SpiffeId,
    limits::MAX_CLIENT_CONFIGS,
    source::IssuedChain,
    verify::{ClockTime, ExpectedIdentity, SameTrustDomain, peer_identity, provider, system_time, verify_chain},
};

const ALPN_H2: &[u8] = b"h2";

/// A certificate with its private key, in the form TLS uses. The key exists nowhere else and can't be taken out.
pub struct WorkloadCertificate {
    identity: SpiffeId,
    chain: Vec<CertificateDer<'static>>,
    not_before: SystemTime,
    not_after: SystemTime,
    roots: Arc<RootCertStore>,
    key: Arc<CertifiedKey>,
    clock: Arc<dyn Clock>,
    server_config: Arc<ServerConfig>,
    /// By sorted set of expected identities.
    client_configs: Mutex<HashMap<Box<[SpiffeId]>, Arc<ClientConfig>>>,
}

/// Why there is no certificate to use.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CertificateError {
    /// The CA gave none.
    #[error("no certificate for `{identity}`: {error}")]
    Source {
        /// The identity asked for.
        identity: SpiffeId,
        /// Why.
        error: Box<SourceError>,
    },
    /// The CA did not answer in time.
    #[error("no certificate for `{identity}`: the CA didn't answer within {after:?}")]
    Timeout {
        /// The identity asked for.
        identity: SpiffeId,
        /// How long it was waited for.
        after: std::time::Duration,
    },
    /// What the CA gave can't be used: another name, another key, expired, or no chain to its own roots.
    #[error("the certificate that the CA gave for `{identity}` can't be used: {reason}")]
    Unusable {
        /// The identity asked for.
        identity: SpiffeId,
        /// What is wrong with it.
        reason: String,
    },
    /// No key or request could be made.
    #[error("no key for `{identity}`: {reason}")]
    Key {
        /// The identity asked for.
        identity: SpiffeId,
        /// What the cryptographic library said.
        reason: String,
    },
    /// The store is full.
    #[error("no certificate for `{identity}`: already {limit} identities here")]
    TooManyIdentities {
        /// The identity asked for.
        identity: SpiffeId,
        /// How many the store keeps.
        limit: usize,
    },
}

impl WorkloadCertificate {
    /// Takes what the CA issued for `key`, and makes sure that peers would accept it.
    pub(crate) fn new(
        identity: SpiffeId,
        issued: IssuedChain,
        key: PrivateKeyDer<'static>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CertificateError> {
        Self::build(&identity, issued, key, clock)
            .map_err(|reason| CertificateError::Unusable { identity: identity.clone(), reason })
    }

    fn build(
        identity: &SpiffeId,
        issued: IssuedChain,
        key: PrivateKeyDer<'static>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, String> {
        let IssuedChain { chain, roots: root_certificates } = issued;
        match peer_identity(&chain) {
            Some(name) if name == *identity => {}
            Some(name) => return Err(format!("it is for `{name}`")),
            None => return Err("it has no workload identity".to_owned()),
        }
        let leaf = chain.first().ok_or("it is empty")?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| error.to_string())?;
        let not_before = system_time(parsed.validity().not_before.timestamp());
        let not_after = system_time(parsed.validity().not_after.timestamp());
        let mut roots = RootCertStore::empty();
        for root in root_certificates {
            roots.add(root).map_err(|error| format!("a root can't be used: {error}"))?;
        }
        let roots = Arc::new(roots);
        let time: Arc<dyn TimeProvider> = Arc::new(ClockTime(Arc::clone(&clock)));
        let now = time.current_time().ok_or("the clock stands before 1970")?;
        verify_chain(&chain, &roots, now).map_err(|error| error.to_string())?;
        // Also compares the key with the leaf's.
        let key = Arc::new(CertifiedKey::from_der(chain.clone(), key, provider()).map_err(|error| error.to_string())?);
        let server_config = Arc::new(server_config(identity, &roots, &key, time)?);
        Ok(Self {
            identity: identity.clone(),
            chain,
            not_before,
            not_after,
            roots,
            key,
            clock,
            server_config,
            client_configs: Mutex::new(HashMap::new()),
        })
    }

    /// Whose certificate it is.
    #[must_use]
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// The leaf, then its intermediates; without the root.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Start of its validity.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// End of its validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// When to fetch its successor: at half of its life.
    #[must_use]
    pub fn renew_at(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + life / 2
    }

    /// Whether it may be used now, by the wall clock.
    #[must_use]
    pub fn is_valid_now(&self) -> bool {
        let now = self.clock.now();
        self.not_before <= now && now < self.not_after
    }

    /// TLS towards peers that connect: TLS 1.3, `h2`, a client certificate of the same trust domain is mandatory.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server_config)
    }

    /// TLS towards a peer whose identity must be one of `expected`; with none expected, every peer is refused.
    #[must_use]
    pub fn client_config(&self, expected: &[SpiffeId]) -> Arc<ClientConfig> {
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        expected.dedup();
        let expected = expected.into_boxed_slice();
        let mut configs = self.client_configs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = configs.get(&expected) {
            return Arc::clone(config);
        }
        // Making one is cheap beside the handshake it is for, so a full cache simply starts anew.
        if configs.len() >= MAX_CLIENT_CONFIGS {
            configs.clear();
        }
        let config = Arc::new(self.make_client_config(expected.clone()));
        configs.insert(expected, Arc::clone(&config));
        config
    }

    fn make_client_config(&self, expected: Box<[SpiffeId]>) -> ClientConfig {
        let verifier = Arc::new(ExpectedIdentity { roots: Arc::clone(&self.roots), expected });
        let time = Arc::new(ClockTime(Arc::clone(&self.clock)));
        let builder = ClientConfig::builder_with_details(Arc::clone(provider()), time)
            .with_protocol_versions(&[&TLS13])
            .expect("INVARIANT: our own provider has TLS 1.3 suites and groups");
        // "dangerous" only in that it is a verifier of our own: it checks chain, validity and name.
        let mut config = builder
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.key))));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        config
    }
}

fn server_config(
    identity: &SpiffeId,
    roots: &Arc<RootCertStore>,
    key: &Arc<CertifiedKey>,
    time: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, String> {
    let verifier = SameTrustDomain::new(Arc::clone(roots), identity.trust_domain())?;
    let mut config = ServerConfig::builder_with_details(Arc::clone(provider()), time)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(key))));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    // A resumed session would carry on an identity past its certificate's end.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

// === impl WorkloadCertificate ===

impl fmt::Debug for WorkloadCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCertificate")
            .field("identity", &self.identity)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}
