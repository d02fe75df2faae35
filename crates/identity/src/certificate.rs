//! A workload's certificate and the TLS configurations made from it (`spec/ztunnel.md` 2.2).

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustls::{
    ClientConfig, ServerConfig, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::{
    ChainError, Clock, Distrust, IssuedChain, SourceError, SpiffeId,
    chain::Validity,
    distrust,
    limits::MAX_CLIENT_CONFIGS,
    tls,
    trust::Trust,
    verify::{ClockTime, ExpectedIdentity, SameTrustDomain},
};

const ALPN_H2: &[u8] = b"h2";

/// A certificate with its private key, in the form TLS uses. The key exists nowhere else and can't be taken out. Peers
/// are judged by what the store trusts at the time of the handshake, so one configuration lasts as long as the
/// certificate. Past the certificate's time, its configurations present nothing and every handshake with them fails.
pub struct WorkloadCertificate {
    identity: SpiffeId,
    chain: Vec<CertificateDer<'static>>,
    roots: Arc<[CertificateDer<'static>]>,
    trust: Arc<Trust>,
    key: Arc<TimedKey>,
    server_config: Arc<ServerConfig>,
    /// By sorted set of expected identities.
    client_configs: Mutex<HashMap<Box<[SpiffeId]>, Arc<ClientConfig>>>,
}

/// A key that is there while its certificate is valid.
pub(crate) struct TimedKey {
    key: Arc<CertifiedKey>,
    validity: Validity,
    renewal: SystemTime,
    /// Its end and its renewal, counted from boot: these hold when the wall clock is set back.
    boot_time: Option<BootTimes>,
    clock: Arc<dyn Clock>,
}

#[derive(Clone, Copy)]
struct BootTimes {
    end: Duration,
    renewal: Duration,
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
        public_key: &[u8],
        key: PrivateKeyDer<'static>,
        trust: Arc<Trust>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CertificateError> {
        let now = clock.now();
        let answer =
            |error: ChainError| CertificateError::Unusable { identity: identity.clone(), reason: error.to_string() };
        let validity = issued.checked(&identity, public_key, now).map_err(answer)?;
        let IssuedChain { chain, roots } = issued;
        let no_key = |reason: String| CertificateError::Key { identity: identity.clone(), reason };
        // Also compares the key with the leaf's.
        let key = CertifiedKey::from_der(chain.clone(), key, tls::provider(trust.key_exchange()))
            .map_err(|error| no_key(error.to_string()))?;
        let key = Arc::new(TimedKey::new(Arc::new(key), validity, now, clock));
        let server_config = Arc::new(server_config(&identity, &trust, &key));
        let roots = trust.learn(roots, now);
        let client_configs = Mutex::new(HashMap::new());
        Ok(Self { identity, chain, roots, trust, key, server_config, client_configs })
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

    /// The trust bundle it came with.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Start of its validity.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.key.validity.not_before
    }

    /// End of its validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.key.validity.not_after
    }

    /// When to fetch its successor: at half of its life; if it was past that when it came, at half of what remained.
    #[must_use]
    pub fn renew_at(&self) -> SystemTime {
        self.key.renewal
    }

    /// Whether it may be used now: by the wall clock, and by the time since it was made, which nobody can set back.
    #[must_use]
    pub fn is_valid_now(&self) -> bool {
        self.key.is_valid_now()
    }

    /// How long until its successor is to be fetched; zero when that is due, or it isn't valid.
    pub(crate) fn until_renewal(&self) -> Duration {
        self.key.until_renewal()
    }

    /// How long it can still be used.
    pub(crate) fn until_end(&self) -> Duration {
        if self.is_valid_now() { self.key.until(self.not_after(), |times| times.end) } else { Duration::ZERO }
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

    /// Counts the changes of what its holder trusts. Whoever keeps connections asks again about their peers when it moves.
    #[must_use]
    pub fn trust_changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.trust.changes()
    }

    /// Why a client that was let in with `chain` (leaf first) no longer would be; nothing if it is still trusted. That its
    /// certificate has expired since is no reason.
    #[must_use]
    pub fn distrust_of_client(&self, chain: &[CertificateDer<'_>]) -> Option<Distrust> {
        distrust::of_client(&self.trust, chain, self.key.clock.now())
    }

    /// The same for a server, which was to be one of `expected`.
    #[must_use]
    pub fn distrust_of_server(&self, chain: &[CertificateDer<'_>], expected: &[SpiffeId]) -> Option<Distrust> {
        distrust::of_server(&self.trust, chain, expected, self.key.clock.now())
    }

    fn make_client_config(&self, expected: Box<[SpiffeId]>) -> ClientConfig {
        let verifier = Arc::new(ExpectedIdentity { trust: Arc::clone(&self.trust), expected });
        let time = Arc::new(ClockTime(Arc::clone(&self.key.clock)));
        let builder = ClientConfig::builder_with_details(Arc::clone(tls::provider(self.trust.key_exchange())), time)
            .with_protocol_versions(&[&TLS13])
            .expect("INVARIANT: our own provider has TLS 1.3 suites and groups");
        // "dangerous" only in that it is a verifier of our own: it checks chain, validity, revocation and name.
        let mut config = builder
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::clone(&self.key) as _);
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        // For `hbone`, which protects the records itself once the handshake is done.
        config.enable_secret_extraction = true;
        config
    }
}

fn server_config(identity: &SpiffeId, trust: &Arc<Trust>, key: &Arc<TimedKey>) -> ServerConfig {
    let verifier = SameTrustDomain { trust: Arc::clone(trust), trust_domain: identity.trust_domain().into() };
    let time = Arc::new(ClockTime(Arc::clone(&key.clock)));
    let mut config = ServerConfig::builder_with_details(Arc::clone(tls::provider(trust.key_exchange())), time)
        .with_protocol_versions(&[&TLS13])
        .expect("INVARIANT: our own provider has TLS 1.3 suites and groups")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::clone(key) as _);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    // A resumed session would carry on an identity past its certificate's end.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // For `hbone`, which protects the records itself once the handshake is done.
    config.enable_secret_extraction = true;
    config
}

// === impl TimedKey ===

impl TimedKey {
    pub(crate) fn new(key: Arc<CertifiedKey>, validity: Validity, now: SystemTime, clock: Arc<dyn Clock>) -> Self {
        let renewal = validity.renewal(now);
        let boot_time = clock.since_boot().map(|since_boot| {
            let after = |time: SystemTime| since_boot + time.duration_since(now).unwrap_or_default();
            BootTimes { end: after(validity.not_after), renewal: after(renewal) }
        });
        Self { key, validity, renewal, boot_time, clock }
    }

    pub(crate) fn is_valid_now(&self) -> bool {
        let now = self.clock.now();
        self.validity.not_before <= now && !self.until(self.validity.not_after, |times| times.end).is_zero()
    }

    /// Time left until `wall` or its counterpart in boot time, whichever comes first.
    fn until(&self, wall: SystemTime, boot: impl Fn(BootTimes) -> Duration) -> Duration {
        let by_wall = wall.duration_since(self.clock.now()).unwrap_or_default();
        let by_boot = self.boot_time.zip(self.clock.since_boot());
        by_boot.map_or(by_wall, |(times, now)| by_wall.min(boot(times).saturating_sub(now)))
    }

    /// How long until its successor is to be made; zero when it isn't valid.
    pub(crate) fn until_renewal(&self) -> Duration {
        if self.is_valid_now() { self.until(self.renewal, |times| times.renewal) } else { Duration::ZERO }
    }

    pub(crate) fn current(&self) -> Option<Arc<CertifiedKey>> {
        self.is_valid_now().then(|| Arc::clone(&self.key))
    }
}

impl ResolvesServerCert for TimedKey {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current()
    }
}

impl ResolvesClientCert for TimedKey {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.current()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for TimedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimedKey").field("validity", &self.validity).finish_non_exhaustive()
    }
}

// === impl WorkloadCertificate ===

impl fmt::Debug for WorkloadCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCertificate")
            .field("identity", &self.identity)
            .field("validity", &self.key.validity)
            .finish_non_exhaustive()
    }
}
