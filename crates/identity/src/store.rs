//! Certificates by identity, fetched once however many ask, and renewed at half of their life (`spec/ztunnel.md` 8).
//!
//! One task per identity does all the fetching; those who want the certificate watch what it publishes. So a fetch is
//! shared by construction, and a caller that goes away takes nothing with it.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::watch, task::JoinHandle, time::timeout};

use crate::{
    CertificateError, CertificateSource, Clock, KeyExchange, SpiffeId, WorkloadCertificate,
    keeper::{Entry, Shared, State},
    limits::{DEMAND_TIMEOUT, MAX_IDENTITIES},
    listing::CertificateRecord,
    slots::{Priority, Slots},
    trust::Trust,
    wake::watch_clocks,
};

/// Keeps a valid certificate for every identity that was asked for, until it is forgotten.
pub struct CertificateStore {
    shared: Arc<Shared>,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    by_identity: HashMap<SpiffeId, Entry>,
    /// The task that looks at the clocks.
    watcher: Option<JoinHandle<()>>,
}

/// What a caller finds.
enum Found {
    Certificate(Arc<WorkloadCertificate>),
    /// The state to watch, and how many attempts it had seen.
    Wait(watch::Receiver<State>, u64),
}

impl CertificateStore {
    /// An empty store that fetches from `source` and judges validity by `clock`.
    #[must_use]
    pub fn new(source: Arc<dyn CertificateSource>, clock: Arc<dyn Clock>) -> Arc<Self> {
        Self::with_trust(source, clock, Trust::new(KeyExchange::default()))
    }

    /// The same, with key exchanges, revocation lists and other domains' roots from `trust`. The store adds the roots
    /// that come with its certificates.
    #[must_use]
    pub fn with_trust(source: Arc<dyn CertificateSource>, clock: Arc<dyn Clock>, trust: Arc<Trust>) -> Arc<Self> {
        let wakes = Arc::new(watch::Sender::new(0));
        let shared = Arc::new(Shared { source, clock, trust, slots: Slots::new(), wakes });
        Arc::new(Self { shared, entries: Mutex::default() })
    }

    /// What peers are judged by.
    #[must_use]
    pub fn trust(&self) -> &Arc<Trust> {
        &self.shared.trust
    }

    /// The certificate of `id`, valid at this moment; fetched first if need be, before all that no connection waits
    /// for. Must be called inside a tokio runtime that outlives the store: the identity's task runs there.
    ///
    /// # Errors
    /// When the CA doesn't give one. While the pause after a failed fetch lasts (1 s to 150 s), callers without a valid
    /// certificate get that failure at once.
    pub async fn get(&self, id: &SpiffeId) -> Result<Arc<WorkloadCertificate>, CertificateError> {
        let (mut state, seen) = match self.find(id)? {
            Found::Certificate(certificate) => return Ok(certificate),
            Found::Wait(state, seen) => (state, seen),
        };
        let gone = || CertificateError::Unusable { identity: id.clone(), reason: "its task was stopped".to_owned() };
        let answer = timeout(DEMAND_TIMEOUT, state.wait_for(|state| state.attempts > seen))
            .await
            .map_err(|_| CertificateError::Timeout { identity: id.clone(), after: DEMAND_TIMEOUT })?
            .map_err(|_| gone())?;
        match (&answer.certificate, &answer.failure) {
            (Some(certificate), _) if certificate.is_valid_now() => Ok(Arc::clone(certificate)),
            (_, Some(failure)) => Err(failure.clone()),
            _ => Err(CertificateError::Unusable { identity: id.clone(), reason: "it is already expired".to_owned() }),
        }
    }

    /// The certificate of `id` if there is a valid one now. Fetches nothing.
    #[must_use]
    pub fn current(&self, id: &SpiffeId) -> Option<Arc<WorkloadCertificate>> {
        valid(&self.lock().by_identity.get(id)?.state.borrow())
    }

    /// Has the certificate of `id` fetched before it is needed, after those that connections wait for and before
    /// renewals. Doesn't wait. Must be called inside a tokio runtime that outlives the store.
    ///
    /// # Errors
    /// When the store is full.
    pub fn prefetch(&self, id: &SpiffeId) -> Result<(), CertificateError> {
        self.entry(&mut self.lock(), id, Priority::Warmup).map(|_| ())
    }

    /// Stops renewing `id` and drops its key. Connections made with it live on.
    pub fn forget(&self, id: &SpiffeId) {
        self.lock().by_identity.remove(id);
    }

    /// Forgets every identity that `is_used` doesn't know.
    pub fn retain(&self, mut is_used: impl FnMut(&SpiffeId) -> bool) {
        self.lock().by_identity.retain(|id, _| is_used(id));
    }

    /// All identities with their certificates, in order, for `/config_dump`.
    #[must_use]
    pub fn list(&self) -> Vec<CertificateRecord> {
        let mut states: Vec<_> =
            self.lock().by_identity.iter().map(|(id, entry)| (id.clone(), entry.state.borrow().clone())).collect();
        states.sort_by(|one, other| one.0.cmp(&other.0));
        states.iter().map(|(id, state)| CertificateRecord::new(id, state)).collect()
    }

    fn find(&self, id: &SpiffeId) -> Result<Found, CertificateError> {
        let mut entries = self.lock();
        let entry = self.entry(&mut entries, id, Priority::RealTime)?;
        let seen = {
            let state = entry.state.borrow();
            if let Some(certificate) = valid(&state) {
                return Ok(Found::Certificate(certificate));
            }
            match &state.failure {
                Some(failure) if state.pausing => return Err(failure.clone()),
                _ => state.attempts,
            }
        };
        entry.demand(Priority::RealTime);
        Ok(Found::Wait(entry.state.clone(), seen))
    }

    fn entry<'a>(
        &self,
        entries: &'a mut Entries,
        id: &SpiffeId,
        priority: Priority,
    ) -> Result<&'a Entry, CertificateError> {
        let Entries { by_identity, watcher } = entries;
        // Tasks end by themselves only with the runtime they ran on; then new ones take over.
        if watcher.as_ref().is_none_or(JoinHandle::is_finished) {
            let wakes = Arc::downgrade(&self.shared.wakes);
            *watcher = Some(tokio::spawn(watch_clocks(Arc::clone(&self.shared.clock), wakes)));
        }
        let alive = by_identity.get(id).map(Entry::is_alive);
        if alive.is_none() && by_identity.len() >= MAX_IDENTITIES {
            return Err(CertificateError::TooManyIdentities { identity: id.clone(), limit: MAX_IDENTITIES });
        }
        if alive != Some(true) {
            by_identity.insert(id.clone(), Entry::start(&self.shared, id, priority));
        }
        Ok(by_identity.get(id).expect("INVARIANT: it was there or has just been put there"))
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn valid(state: &State) -> Option<Arc<WorkloadCertificate>> {
    state.certificate.as_ref().filter(|certificate| certificate.is_valid_now()).cloned()
}

// === impl CertificateStore ===

impl Drop for CertificateStore {
    fn drop(&mut self) {
        if let Some(watcher) = self.lock().watcher.take() {
            watcher.abort();
        }
    }
}

impl fmt::Debug for CertificateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identities = self.lock().by_identity.len();
        f.debug_struct("CertificateStore").field("identities", &identities).finish_non_exhaustive()
    }
}
