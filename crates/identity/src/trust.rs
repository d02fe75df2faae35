//! Whom to trust at this moment: roots, other domains' roots and revocation lists, read by every handshake through one
//! atomic snapshot (`spec/ztunnel.md` 8 and 20). A change takes effect with the next handshake; whoever keeps connections
//! hears of it through [`Trust::changes`] and ends those whose peers are no longer trusted.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use rustls::{Error, RootCertStore};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;

use crate::{
    ChainError, KeyExchange,
    chain::anchors,
    crl::{Crls, Revocation},
    limits::{MAX_FOREIGN_TRUST_DOMAINS, ROOT_OVERLAP},
    verified::{Fingerprint, VerifiedChains},
    verify::{Usage, verify_path},
};

/// What peers are judged by. Shared by all certificates of a store.
pub struct Trust {
    key_exchange: KeyExchange,
    current: ArcSwap<Snapshot>,
    /// What `current` is made from. Held for the time of a change only; handshakes never wait for it.
    bundle: Mutex<Bundle>,
    generation: watch::Sender<u64>,
}

/// What one handshake sees.
pub(crate) struct Snapshot {
    own: Arc<RootCertStore>,
    /// By trust domain.
    foreign: HashMap<Box<str>, Arc<RootCertStore>>,
    pub(crate) crls: Arc<Crls>,
    /// When the first of the roots in `own` that were left out of the last bundle ends.
    retires: Option<SystemTime>,
    /// What was found good with all of this.
    pub(crate) verified: VerifiedChains,
}

#[derive(Default)]
struct Bundle {
    /// The last bundle, as it came.
    roots: Arc<[CertificateDer<'static>]>,
    /// Roots that were left out of it, and until when they count.
    retiring: Vec<(CertificateDer<'static>, SystemTime)>,
    foreign: BTreeMap<Box<str>, Arc<RootCertStore>>,
    crls: Arc<Crls>,
}

/// Why a trust bundle was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// A root can't be used, or there is none.
    #[error("the trust bundle can't be used: {0}")]
    Bundle(#[from] ChainError),
    /// There are bundles of too many trust domains.
    #[error("no bundle for trust domain `{trust_domain}`: already {limit} of others")]
    TooManyTrustDomains {
        /// Whose bundle it is.
        trust_domain: String,
        /// How many are kept.
        limit: usize,
    },
}

impl Trust {
    /// Trusts nobody yet: the roots come with the first certificate.
    #[must_use]
    pub fn new(key_exchange: KeyExchange) -> Arc<Self> {
        let bundle = Bundle::default();
        let current = ArcSwap::from_pointee(Snapshot {
            own: Arc::new(RootCertStore::empty()),
            foreign: HashMap::new(),
            crls: Arc::clone(&bundle.crls),
            retires: None,
            verified: VerifiedChains::default(),
        });
        Arc::new(Self { key_exchange, current, bundle: Mutex::new(bundle), generation: watch::Sender::new(0) })
    }

    /// Which key exchanges connections use.
    #[must_use]
    pub fn key_exchange(&self) -> KeyExchange {
        self.key_exchange
    }

    /// Replaces the roots at once. The other way for roots to come is with every certificate from the CA: then the ones
    /// left out of its last answer count for another [`ROOT_OVERLAP`], so that peers can go over to the new ones. Here
    /// they don't: use this to end the trust in a root now.
    ///
    /// # Errors
    /// When there is no root, or one that can't be used; then everything stays as it was.
    pub fn replace_roots(&self, roots: Vec<CertificateDer<'static>>) -> Result<(), TrustError> {
        anchors(&roots)?;
        let mut bundle = self.lock();
        bundle.roots = roots.into();
        bundle.retiring.clear();
        self.publish(&bundle);
        Ok(())
    }

    /// Sets the roots of another trust domain; from then on only these vouch for its identities. None removes them: then
    /// the own roots vouch for them as for all others.
    ///
    /// # Errors
    /// When a root can't be used, or there are bundles of [`MAX_FOREIGN_TRUST_DOMAINS`] others; then everything stays as
    /// it was.
    pub fn set_foreign_roots(&self, trust_domain: &str, roots: &[CertificateDer<'static>]) -> Result<(), TrustError> {
        let mut bundle = self.lock();
        if roots.is_empty() {
            bundle.foreign.remove(trust_domain);
        } else {
            let known = bundle.foreign.contains_key(trust_domain);
            if !known && bundle.foreign.len() >= MAX_FOREIGN_TRUST_DOMAINS {
                let trust_domain = trust_domain.chars().take(256).collect();
                return Err(TrustError::TooManyTrustDomains { trust_domain, limit: MAX_FOREIGN_TRUST_DOMAINS });
            }
            bundle.foreign.insert(trust_domain.into(), Arc::new(anchors(roots)?));
        }
        self.publish(&bundle);
        Ok(())
    }

    /// Replaces the revocation lists.
    pub fn set_crls(&self, crls: Arc<Crls>) {
        let mut bundle = self.lock();
        bundle.crls = crls;
        self.publish(&bundle);
    }

    /// The revocation lists in force.
    #[must_use]
    pub fn crls(&self) -> Arc<Crls> {
        Arc::clone(&self.current.load().crls)
    }

    /// Whether a peer that was accepted with `chain` (leaf first) is revoked by now; see [`Crls::revocation`].
    #[must_use]
    pub fn revocation(&self, chain: &[CertificateDer<'_>]) -> Option<Revocation> {
        self.current.load().crls.revocation(chain)
    }

    /// Counts the changes. Whoever keeps connections looks at them again when it moves.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// The roots of the last bundle, as they came; without those that only count for a while yet.
    #[must_use]
    pub fn roots(&self) -> Arc<[CertificateDer<'static>]> {
        Arc::clone(&self.lock().roots)
    }

    /// Takes over the roots that came with a certificate at `now`. Gives them back in shared form.
    pub(crate) fn learn(&self, roots: Vec<CertificateDer<'static>>, now: SystemTime) -> Arc<[CertificateDer<'static>]> {
        let mut bundle = self.lock();
        if same_set(&bundle.roots, &roots) {
            return Arc::clone(&bundle.roots);
        }
        let before = std::mem::replace(&mut bundle.roots, roots.into());
        let Bundle { roots, retiring, .. } = &mut *bundle;
        // One that came back is no longer on its way out. One that was retiring already gets no more time.
        retiring.retain(|(root, until)| !roots.contains(root) && *until > now);
        let left_out = before.iter().filter(|root| !roots.contains(root));
        retiring.extend(left_out.map(|root| (root.clone(), now + ROOT_OVERLAP)));
        tracing::info!(roots = roots.len(), retiring = retiring.len(), "the trust bundle changed");
        self.publish(&bundle);
        Arc::clone(&bundle.roots)
    }

    /// What a handshake at `now` goes by.
    pub(crate) fn snapshot(&self, now: SystemTime) -> Arc<Snapshot> {
        let snapshot = self.current.load_full();
        if snapshot.retires.is_none_or(|until| now < until) {
            return snapshot;
        }
        let mut bundle = self.lock();
        bundle.retiring.retain(|(_, until)| now < *until);
        self.publish(&bundle);
        self.current.load_full()
    }

    fn lock(&self) -> MutexGuard<'_, Bundle> {
        self.bundle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, bundle: &Bundle) {
        let mut own = RootCertStore::empty();
        // All have been parsed before, so none is left out here.
        own.add_parsable_certificates(bundle.roots.iter().chain(bundle.retiring.iter().map(|(root, _)| root)).cloned());
        self.current.store(Arc::new(Snapshot {
            own: Arc::new(own),
            foreign: bundle.foreign.iter().map(|(domain, roots)| (domain.clone(), Arc::clone(roots))).collect(),
            crls: Arc::clone(&bundle.crls),
            retires: bundle.retiring.iter().map(|(_, until)| *until).min(),
            verified: VerifiedChains::default(),
        }));
        self.generation.send_modify(|generation| *generation += 1);
    }
}

fn same_set(one: &[CertificateDer<'_>], other: &[CertificateDer<'_>]) -> bool {
    one.len() == other.len() && one.iter().all(|root| other.contains(root))
}

// === impl Snapshot ===

impl Snapshot {
    /// Our own roots.
    pub(crate) fn own(&self) -> &RootCertStore {
        &self.own
    }

    /// Whether another domain's roots vouch for identities of `trust_domain`, and ours don't.
    pub(crate) fn is_foreign(&self, trust_domain: &str) -> bool {
        self.foreign.contains_key(trust_domain)
    }

    /// Whether the chain leads to the roots that vouch for `trust_domain`, or to our own, and nothing in it is revoked. What
    /// was found good before is not computed again.
    pub(crate) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        trust_domain: Option<&str>,
        now: UnixTime,
        usage: Usage,
    ) -> Result<(), Error> {
        let foreign = trust_domain.filter(|domain| self.is_foreign(domain));
        let chain = Fingerprint::of(usage, foreign, leaf, intermediates);
        if self.verified.contains(&chain, now) {
            return Ok(());
        }
        let roots = foreign.map_or(self.own(), |domain| self.of(domain));
        verify_path(leaf, intermediates, roots, &self.crls, now, usage)?;
        self.verified.remember(chain, leaf, intermediates, now);
        Ok(())
    }

    /// The roots that vouch for identities of `trust_domain`.
    pub(crate) fn of(&self, trust_domain: &str) -> &RootCertStore {
        self.foreign.get(trust_domain).unwrap_or(&self.own)
    }
}

// === impl Trust ===

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bundle = self.lock();
        f.debug_struct("Trust")
            .field("roots", &bundle.roots.len())
            .field("retiring", &bundle.retiring.len())
            .field("foreign", &bundle.foreign.len())
            .field("crls", &bundle.crls)
            .finish_non_exhaustive()
    }
}
