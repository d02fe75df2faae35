//! The self-signed root in its Secret, and how one root follows another (`spec/control-plane.md` 6.4), without IO.
//!
//! 1. In the last fifth of the root's life a next one is made. The bundle holds both, and the old one signs.
//! 2. When that has been handed out long enough, the next one signs. The bundle still holds both.
//! 3. When nothing that the old one has signed can be valid any more, it leaves the bundle.
//!
//! "Long enough" is time in which a leader ran and could hand out bundles, added up in the Secret. No wall clock is in it, so
//! a clock that is set can begin a rotation early, and can't cut one short.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, SystemTime},
};

use ambit_identity::{
    CaError, Signer, SignerError, SignerFiles,
    limits::{MAX_CERTIFICATE_TTL, ROOT_TTL},
};
use k8s_openapi::{ByteString, api::core::v1::Secret};

use crate::limits::MAX_CA_FILE_BYTES;

/// The Secret's type.
pub(super) const SECRET_TYPE: &str = "istio.io/ca-root";
const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const CHAIN: &str = "cert-chain.pem";
const ROOTS: &str = "root-cert.pem";
/// Istio's Secret has this too, and always empty.
const UNUSED: &str = "key.pem";
const NEXT_CERTIFICATE: &str = "next-ca-cert.pem";
const NEXT_KEY: &str = "next-ca-key.pem";
const PREVIOUS_CERTIFICATE: &str = "previous-ca-cert.pem";
/// Seconds of the present step of a rotation.
const OVERLAP: &str = "overlap-seconds";

/// The fraction of a root's life at whose beginning a next one is made: its last fifth.
const ROTATES_IN_LAST: u32 = 5;
/// The fraction of a root's life that a next one is handed out for before it signs, at most.
const SPREADS_FOR: u32 = 20;

/// What the Secret holds.
#[derive(Clone, PartialEq, Eq)]
pub struct RootSecret {
    current: Pair,
    /// Istio leaves these empty.
    chain: String,
    roots: String,
    next: Option<Pair>,
    /// The certificate that signed before.
    previous: Option<String>,
    /// How long the present step of a rotation has lasted while a leader ran.
    overlap: Duration,
}

#[derive(Clone, PartialEq, Eq)]
struct Pair {
    certificate: String,
    key: String,
}

/// What a leader did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A next root was made; proxies are told of it.
    Announced,
    /// A rotation is under way.
    Waited,
    /// The next root signs.
    Switched,
    /// The previous root has left the bundle.
    Retired,
}

/// Why the Secret holds no root. Never quotes it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RootSecretError {
    /// A key of it is missing, too large or no text.
    #[error("its `{key}` is missing, too large or no text")]
    Entry {
        /// Which one.
        key: &'static str,
    },
    /// It can't be signed with.
    #[error("{0}")]
    Signer(#[from] SignerError),
    /// No root can be made.
    #[error("{0}")]
    Make(#[from] CaError),
}

// === impl RootSecret ===

impl RootSecret {
    /// A new root.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn new(trust_domain: &str, life: Duration, now: SystemTime) -> Result<Self, RootSecretError> {
        Ok(Self {
            current: Pair::new(trust_domain, life, now)?,
            chain: String::new(),
            roots: String::new(),
            next: None,
            previous: None,
            overlap: Duration::ZERO,
        })
    }

    /// Reads a Secret, also one that Istio made.
    ///
    /// # Errors
    /// When an entry is missing or no text.
    pub fn read(secret: &Secret) -> Result<Self, RootSecretError> {
        let needed = |key| entry(secret, key)?.ok_or(RootSecretError::Entry { key });
        let optional = |key| Ok::<_, RootSecretError>(entry(secret, key)?.unwrap_or_default());
        let next = match (entry(secret, NEXT_CERTIFICATE)?, entry(secret, NEXT_KEY)?) {
            (Some(certificate), Some(key)) => Some(Pair { certificate, key }),
            (None, None) => None,
            _ => return Err(RootSecretError::Entry { key: NEXT_KEY }),
        };
        let overlap = optional(OVERLAP)?.trim().parse().unwrap_or_default();
        Ok(Self {
            current: Pair { certificate: needed(CERTIFICATE)?, key: needed(KEY)? },
            chain: optional(CHAIN)?,
            roots: optional(ROOTS)?,
            next,
            previous: entry(secret, PREVIOUS_CERTIFICATE)?,
            overlap: Duration::from_secs(overlap),
        })
    }

    /// Puts it into a Secret; other entries stay.
    pub fn write(&self, secret: &mut Secret) {
        let data = secret.data.get_or_insert_default();
        let mut put = |key: &str, text: Option<&str>| match text {
            Some(text) => drop(data.insert(key.to_owned(), ByteString(text.as_bytes().to_vec()))),
            None => drop(data.remove(key)),
        };
        put(CERTIFICATE, Some(&self.current.certificate));
        put(KEY, Some(&self.current.key));
        put(CHAIN, Some(&self.chain));
        put(ROOTS, Some(&self.roots));
        put(UNUSED, Some(""));
        put(NEXT_CERTIFICATE, self.next.as_ref().map(|next| &*next.certificate));
        put(NEXT_KEY, self.next.as_ref().map(|next| &*next.key));
        put(PREVIOUS_CERTIFICATE, self.previous.as_deref());
        let rotates = self.next.is_some() || self.previous.is_some();
        let overlap = self.overlap.as_secs().to_string();
        put(OVERLAP, rotates.then_some(&*overlap));
        secret.type_ = Some(SECRET_TYPE.to_owned());
    }

    /// What the CA signs with now, with every root of it in the bundle.
    ///
    /// # Errors
    /// When an entry is malformed, or the root isn't valid at `now`.
    pub fn signer(&self, trust_domain: &str, now: SystemTime) -> Result<Signer, RootSecretError> {
        let own = if self.roots.trim().is_empty() { &self.current.certificate } else { &self.roots };
        let next = self.next.as_ref().map(|next| &*next.certificate);
        let roots: Vec<_> = [Some(&**own), next, self.previous.as_deref()].into_iter().flatten().collect();
        let files = SignerFiles {
            certificate: &self.current.certificate,
            key: &self.current.key,
            chain: &self.chain,
            roots: &roots.join("\n"),
        };
        Ok(Signer::read(files, trust_domain, now)?)
    }

    /// What a leader does: `lasted` is how long one has led since the last time this was asked. Nothing if nothing is to do;
    /// otherwise the change is to be written.
    ///
    /// # Errors
    /// When the present root can't be read, or no new one can be made.
    pub fn step(
        &mut self,
        trust_domain: &str,
        lasted: Duration,
        now: SystemTime,
    ) -> Result<Option<Step>, RootSecretError> {
        let signer = self.signer(trust_domain, now)?;
        let life = signer.not_after().duration_since(signer.not_before()).unwrap_or_default();
        if let Some(next) = &self.next {
            self.overlap += lasted;
            if self.overlap < MAX_CERTIFICATE_TTL.min(life / SPREADS_FOR) {
                return Ok(Some(Step::Waited));
            }
            if !next.is_usable(trust_domain, now) {
                // Made by a clock that was ahead, most likely. Nobody signs with it; proxies hear of another.
                return self.announce(trust_domain, now);
            }
            let before = std::mem::replace(&mut self.current, next.clone());
            self.previous = Some(before.certificate);
            (self.next, self.overlap) = (None, Duration::ZERO);
            return Ok(Some(Step::Switched));
        }
        if self.previous.is_some() {
            self.overlap += lasted;
            if self.overlap < MAX_CERTIFICATE_TTL.min(life / ROTATES_IN_LAST) {
                return Ok(Some(Step::Waited));
            }
            (self.previous, self.overlap) = (None, Duration::ZERO);
            return Ok(Some(Step::Retired));
        }
        // A root with others above it is an operator's to renew.
        let own = self.chain.trim().is_empty() && self.roots.trim().is_empty();
        if own && now >= signer.not_after() - life / ROTATES_IN_LAST {
            return self.announce(trust_domain, now);
        }
        Ok(None)
    }

    fn announce(&mut self, trust_domain: &str, now: SystemTime) -> Result<Option<Step>, RootSecretError> {
        self.next = Some(Pair::new(trust_domain, ROOT_TTL, now)?);
        self.overlap = Duration::ZERO;
        Ok(Some(Step::Announced))
    }
}

impl fmt::Debug for RootSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootSecret")
            .field("next", &self.next.is_some())
            .field("previous", &self.previous.is_some())
            .field("overlap", &self.overlap)
            .finish_non_exhaustive()
    }
}

// === impl Pair ===

impl Pair {
    fn new(trust_domain: &str, life: Duration, now: SystemTime) -> Result<Self, RootSecretError> {
        let root = Signer::new_root(trust_domain, life, now)?;
        Ok(Self { certificate: root.certificate, key: root.key })
    }

    fn is_usable(&self, trust_domain: &str, now: SystemTime) -> bool {
        let files = SignerFiles { certificate: &self.certificate, key: &self.key, chain: "", roots: "" };
        Signer::read(files, trust_domain, now).is_ok()
    }
}

/// An entry's text; nothing if there is none or it is empty.
fn entry(secret: &Secret, key: &'static str) -> Result<Option<String>, RootSecretError> {
    let empty = BTreeMap::new();
    let Some(ByteString(bytes)) = secret.data.as_ref().unwrap_or(&empty).get(key) else { return Ok(None) };
    if bytes.len() > MAX_CA_FILE_BYTES {
        return Err(RootSecretError::Entry { key });
    }
    let text = String::from_utf8(bytes.clone()).map_err(|_| RootSecretError::Entry { key })?;
    Ok((!text.trim().is_empty()).then_some(text))
}
