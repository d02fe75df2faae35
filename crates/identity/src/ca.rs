//! The certificate authority of a mesh (`spec/control-plane.md` 6.4). What it signs with can be replaced while it runs.

use std::{fmt, net::IpAddr, path::Path, path::PathBuf, sync::Arc, time::Duration, time::SystemTime};

use arc_swap::ArcSwap;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use tokio::sync::watch;

use crate::{
    Clock, IssuedChain, Signer, SpiffeId, SystemClock,
    limits::{DEFAULT_CERTIFICATE_TTL, MAX_CERTIFICATE_TTL, MAX_CSR_BYTES, NOT_BEFORE_SLACK},
    root::{self, Root},
    source::{BoxFuture, CertificateSource, SourceError},
};

/// The certificate authority of one trust domain.
pub struct Ca {
    trust_domain: Box<str>,
    signer: ArcSwap<Signer>,
    /// The bundle of `signer`, PEM, for those who publish it.
    bundle: watch::Sender<Arc<str>>,
    ttl: Duration,
    clock: Arc<dyn Clock>,
}

/// Why the CA could not be opened, or did not sign.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CaError {
    /// A file or directory of the state could not be read or written.
    #[error("can't {action} `{}`: {reason}", path.display())]
    State {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system answered.
        reason: String,
    },
    /// Others may read or replace the root key.
    #[error("`{}` {problem}; whoever reads it can pose as any workload: {remedy}", path.display())]
    Exposed {
        /// Which file or directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// Another process holds the state directory's lock.
    #[error("`{}` is locked by another start; wait for it to finish", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The stored root can't be used.
    #[error("the root in `{}` can't be used: {reason}", path.display())]
    Root {
        /// The file at fault.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The trust domain's name is not one.
    #[error("`{trust_domain}` is not a trust domain; use letters, digits, `.`, `-` and `_`, like `cluster.local`")]
    TrustDomain {
        /// The name.
        trust_domain: String,
    },
    /// The identity belongs to another trust domain.
    #[error("`{identity}` is not in this CA's trust domain `{trust_domain}`")]
    ForeignIdentity {
        /// The identity asked for.
        identity: SpiffeId,
        /// The CA's own trust domain.
        trust_domain: String,
    },
    /// The request is not a signed PKCS#10 request that fits.
    #[error("the certificate request for `{identity}` is refused: {reason}")]
    Request {
        /// The identity asked for.
        identity: SpiffeId,
        /// What is wrong with the request.
        reason: String,
    },
    /// The life asked for is zero, or longer than the CA signs.
    #[error("a certificate for {asked:?} is refused; ask for more than zero and at most {longest:?}")]
    Ttl {
        /// The life asked for.
        asked: Duration,
        /// The longest one allowed.
        longest: Duration,
    },
    /// Signing itself failed.
    #[error("signing failed: {reason}")]
    Signing {
        /// What the cryptographic library said.
        reason: String,
    },
}

impl Ca {
    /// Opens the CA kept in `dir`; the first start makes the directory and the root. Blocks on files, and up to
    /// [`STATE_LOCK_TIMEOUT`](crate::limits::STATE_LOCK_TIMEOUT) for another start to finish.
    ///
    /// # Errors
    /// When the state can't be read or made, is open to others, or belongs to another trust domain.
    pub fn open(dir: &Path, trust_domain: &str) -> Result<Self, CaError> {
        check_trust_domain(trust_domain)?;
        let Root { key, certificate, .. } = root::open(dir, trust_domain, SystemClock.now())?;
        let signer =
            Signer::of_root(certificate, key).map_err(|error| CaError::Signing { reason: error.to_string() })?;
        Self::new(trust_domain, signer)
    }

    /// A CA that signs with `signer`, and keeps nothing on disk.
    ///
    /// # Errors
    /// When the trust domain's name is not one.
    pub fn new(trust_domain: &str, signer: Signer) -> Result<Self, CaError> {
        check_trust_domain(trust_domain)?;
        Ok(Self {
            trust_domain: trust_domain.into(),
            bundle: watch::Sender::new(signer.roots_pem()),
            signer: ArcSwap::from_pointee(signer),
            ttl: DEFAULT_CERTIFICATE_TTL,
            clock: Arc::new(SystemClock),
        })
    }

    /// Signs with `signer` from now on, and hands out its bundle.
    pub fn replace(&self, signer: Signer) {
        let bundle = signer.roots_pem();
        self.signer.store(Arc::new(signer));
        // Told in any case: whoever lives on a certificate of this CA may want one of the new signer.
        self.bundle.send_replace(bundle);
    }

    /// What it signs with.
    #[must_use]
    pub fn signer(&self) -> Arc<Signer> {
        self.signer.load_full()
    }

    /// The trust bundle, PEM. Changes with every [`replace`](Self::replace).
    #[must_use]
    pub fn bundle(&self) -> watch::Receiver<Arc<str>> {
        self.bundle.subscribe()
    }

    /// Gives the certificates asked for through [`CertificateSource`] this life instead of 24 h.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Hands out the root of `other` beside its own: while one CA takes over from another, workloads must trust both.
    #[must_use]
    pub fn trusting(self, other: &Ca) -> Self {
        let signer = Signer::clone(&self.signer()).with_roots(other.signer().roots());
        self.replace(signer);
        self
    }

    /// Reads the time here instead of from the system.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Signs the key of `csr_pem` for `id`, valid from two minutes ago until `ttl` from now (or until the root ends).
    /// Of the request only the key is taken: names and extensions are the CA's own.
    ///
    /// # Errors
    /// When the identity is of another trust domain, the request is malformed, badly signed or asks for another name,
    /// or `ttl` is out of bounds.
    pub fn issue(&self, csr_pem: &str, id: &SpiffeId, ttl: Duration) -> Result<IssuedChain, CaError> {
        if id.trust_domain() != &*self.trust_domain {
            let trust_domain = self.trust_domain.to_string();
            return Err(CaError::ForeignIdentity { identity: id.clone(), trust_domain });
        }
        if ttl.is_zero() || ttl > MAX_CERTIFICATE_TTL {
            return Err(CaError::Ttl { asked: ttl, longest: MAX_CERTIFICATE_TTL });
        }
        let csr = read_request(csr_pem, id)?;
        let now = self.clock.now();
        self.signer().sign(workload_profile(id, now)?, &csr.public_key, now + ttl)
    }

    /// A server's certificate for these names (DNS names or addresses) with the key of `key`.
    pub(crate) fn issue_server(&self, names: &[String], key: &KeyPair, ttl: Duration) -> Result<IssuedChain, CaError> {
        let now = self.clock.now();
        self.signer().sign_server(names, key, now, now + ttl)
    }

    /// The clock it reads.
    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The trust bundle as it is now, PEM. Public: hand it to whoever must trust this mesh.
    #[must_use]
    pub fn root_pem(&self) -> String {
        self.bundle.borrow().to_string()
    }

    /// The trust domain this CA signs for.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }
}

/// The name must be able to stand in an identity; the other two parts are placeholders.
fn check_trust_domain(trust_domain: &str) -> Result<(), CaError> {
    match SpiffeId::new(trust_domain, "n", "s") {
        Ok(_) => Ok(()),
        Err(_) => Err(CaError::TrustDomain { trust_domain: trust_domain.chars().take(256).collect() }),
    }
}

/// What a workload's certificate says, but for its end.
pub(crate) fn workload_profile(id: &SpiffeId, now: SystemTime) -> Result<CertificateParams, CaError> {
    let mut params = leaf_profile(now)?;
    params.subject_alt_names = vec![uri_name(&id.to_string())?];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// What the certificate of a server with these names says, but for its end.
pub(crate) fn server_profile(names: &[String], now: SystemTime) -> Result<CertificateParams, CaError> {
    let mut params = leaf_profile(now)?;
    for name in names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.as_str().try_into().map_err(signing)?),
        });
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn leaf_profile(now: SystemTime) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = (now - NOT_BEFORE_SLACK).into();
    params.serial_number = Some(random_serial()?);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn signing(error: rcgen::Error) -> CaError {
    CaError::Signing { reason: error.to_string() }
}

fn read_request(csr_pem: &str, id: &SpiffeId) -> Result<CertificateSigningRequestParams, CaError> {
    let refuse = |reason: String| CaError::Request { identity: id.clone(), reason };
    if csr_pem.len() > MAX_CSR_BYTES {
        return Err(refuse(format!("it has {} bytes, more than {MAX_CSR_BYTES}", csr_pem.len())));
    }
    // Checks the request's signature too: the sender holds the private key.
    let csr = CertificateSigningRequestParams::from_pem(csr_pem).map_err(|error| refuse(error.to_string()))?;
    let algorithm = csr.public_key.algorithm();
    if algorithm != &rcgen::PKCS_ECDSA_P256_SHA256 && algorithm != &rcgen::PKCS_ECDSA_P384_SHA384 {
        return Err(refuse("its key is neither ECDSA P-256 nor P-384".to_owned()));
    }
    let expected = id.to_string();
    let foreign = |name: &SanType| !matches!(name, SanType::URI(uri) if uri.as_str() == expected);
    if csr.params.subject_alt_names.iter().any(foreign) {
        return Err(refuse("it asks for another name".to_owned()));
    }
    Ok(csr)
}

pub(crate) fn uri_name(uri: &str) -> Result<SanType, CaError> {
    Ok(SanType::URI(uri.try_into().map_err(signing)?))
}

/// 16 random bytes with the top bit clear: positive, and unique without any state (RFC 5280 4.1.2.2).
pub(crate) fn random_serial() -> Result<SerialNumber, CaError> {
    let mut bytes = [0_u8; 16];
    crate::tls::provider(crate::KeyExchange::default())
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| CaError::Signing { reason: "no randomness".to_owned() })?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

// === impl Ca ===

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl CertificateSource for Ca {
    fn certificate(&self, id: &SpiffeId, csr_pem: String) -> BoxFuture<'_, Result<IssuedChain, SourceError>> {
        let issued = self.issue(&csr_pem, id, self.ttl).map_err(SourceError::from);
        Box::pin(std::future::ready(issued))
    }
}
