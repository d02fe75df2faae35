//! Certificates by identity, fetched once however many ask, and renewed at half of their life (`spec/ztunnel.md` 8).
//!
//! One task per identity does all the fetching; those who want the certificate watch what it publishes. So a fetch is
//! shared by construction, and a caller that goes away takes nothing with it.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls_pki_types::PrivateKeyDer;
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    CertificateError, CertificateSource, Clock, SpiffeId, WorkloadCertificate,
    ca::uri_name,
    limits::{FETCH_TIMEOUT, MAX_BACKOFF, MAX_CONCURRENT_FETCHES, MAX_IDENTITIES, MAX_TIMER_SLICE, MIN_BACKOFF},
};

/// Keeps a valid certificate for every identity that was asked for, until it is forgotten.
pub struct CertificateStore {
    fetcher: Arc<Fetcher>,
    entries: Mutex<HashMap<SpiffeId, Entry>>,
}

/// What the store holds of one identity. When the last copy is dropped, the identity's task ends.
#[derive(Clone)]
struct Entry {
    state: watch::Receiver<State>,
    /// Wakes the task before its time.
    wanted: Arc<Notify>,
}

#[derive(Clone, Default)]
struct State {
    /// Fetches finished so far, well or not.
    attempts: u64,
    certificate: Option<Arc<WorkloadCertificate>>,
    /// Of the last attempt, while the pause after it lasts.
    failure: Option<CertificateError>,
}

struct Fetcher {
    source: Arc<dyn CertificateSource>,
    clock: Arc<dyn Clock>,
    /// Bounds the requests in flight to the CA.
    slots: Semaphore,
}

impl CertificateStore {
    /// An empty store that fetches from `source` and judges validity by `clock`.
    #[must_use]
    pub fn new(source: Arc<dyn CertificateSource>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let fetcher = Arc::new(Fetcher { source, clock, slots: Semaphore::new(MAX_CONCURRENT_FETCHES) });
        Arc::new(Self { fetcher, entries: Mutex::new(HashMap::new()) })
    }

    /// The certificate of `id`, valid at this moment by the wall clock; fetched first if need be. Must be called inside
    /// a tokio runtime that outlives the store: the identity's task runs there.
    ///
    /// # Errors
    /// When the CA doesn't give one. While the pause after a failed fetch lasts (1 s to 150 s), callers without a valid
    /// certificate get that failure at once.
    pub async fn get(&self, id: &SpiffeId) -> Result<Arc<WorkloadCertificate>, CertificateError> {
        let Entry { mut state, wanted } = self.entry(id)?;
        let seen = {
            let now = state.borrow();
            if let Some(valid) = now.certificate.as_ref().filter(|certificate| certificate.is_valid_now()) {
                return Ok(Arc::clone(valid));
            }
            if let Some(failure) = &now.failure {
                return Err(failure.clone());
            }
            now.attempts
        };
        wanted.notify_one();
        let gone = || CertificateError::Unusable { identity: id.clone(), reason: "its task was stopped".to_owned() };
        let answer = state.wait_for(|state| state.attempts > seen).await.map_err(|_| gone())?;
        match (&answer.certificate, &answer.failure) {
            (Some(certificate), _) if certificate.is_valid_now() => Ok(Arc::clone(certificate)),
            (_, Some(failure)) => Err(failure.clone()),
            _ => Err(CertificateError::Unusable { identity: id.clone(), reason: "it is already expired".to_owned() }),
        }
    }

    /// Stops renewing `id` and drops its key. Connections made with it live on.
    pub fn forget(&self, id: &SpiffeId) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    fn entry(&self, id: &SpiffeId) -> Result<Entry, CertificateError> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        match entries.get(id) {
            // A task ends before its entry only with the runtime it ran on; then a new one takes over.
            Some(entry) if entry.state.has_changed().is_ok() => return Ok(entry.clone()),
            Some(_) => {}
            None if entries.len() >= MAX_IDENTITIES => {
                return Err(CertificateError::TooManyIdentities { identity: id.clone(), limit: MAX_IDENTITIES });
            }
            None => {}
        }
        let (publish, state) = watch::channel(State::default());
        let entry = Entry { state, wanted: Arc::new(Notify::new()) };
        tokio::spawn(keep(Arc::clone(&self.fetcher), id.clone(), publish, Arc::clone(&entry.wanted)));
        entries.insert(id.clone(), entry.clone());
        Ok(entry)
    }
}

/// Fetches at once and then whenever the certificate has reached half of its life, until nobody holds the entry.
async fn keep(fetcher: Arc<Fetcher>, id: SpiffeId, publish: watch::Sender<State>, wanted: Arc<Notify>) {
    let mut backoff = MIN_BACKOFF;
    loop {
        let outcome = tokio::select! {
            outcome = fetcher.fetch(&id) => outcome,
            () = publish.closed() => return,
        };
        let pause = match outcome {
            Ok(certificate) => {
                tracing::debug!(identity = %id, not_after = ?certificate.not_after(), "certificate fetched");
                backoff = MIN_BACKOFF;
                let renew_at = certificate.renew_at();
                publish.send_modify(|state| {
                    state.attempts += 1;
                    state.certificate = Some(Arc::new(certificate));
                    state.failure = None;
                });
                Pause::Until(renew_at)
            }
            Err(failure) => {
                tracing::warn!(identity = %id, retry_in = ?backoff, "{failure}");
                publish.send_modify(|state| {
                    state.attempts += 1;
                    state.failure = Some(failure);
                });
                let pause = Pause::For(Instant::now() + backoff);
                backoff = (backoff * 2).min(MAX_BACKOFF);
                pause
            }
        };
        tokio::select! {
            () = pause.over(&*fetcher.clock, &wanted, &publish) => {}
            () = publish.closed() => return,
        }
        // From here on callers wait for the attempt that now begins instead of taking the last failure.
        publish.send_modify(|state| state.failure = None);
    }
}

enum Pause {
    /// The certificate is good until it is to be renewed.
    Until(SystemTime),
    /// The CA failed; nobody may hurry it.
    For(Instant),
}

// === impl Pause ===

impl Pause {
    async fn over(&self, clock: &dyn Clock, wanted: &Notify, publish: &watch::Sender<State>) {
        match self {
            Self::For(instant) => sleep_until(*instant).await,
            Self::Until(renew_at) => loop {
                let left = renew_at.duration_since(clock.now()).unwrap_or(Duration::ZERO);
                if left.is_zero() {
                    return;
                }
                tokio::select! {
                    () = sleep_until(Instant::now() + left.min(MAX_TIMER_SLICE)) => {}
                    // A caller found the certificate unusable: the machine slept through its end. (A permit left over
                    // from a caller that was served meanwhile proves nothing, so look.)
                    () = wanted.notified() => {
                        let valid = publish.borrow().certificate.as_ref().is_some_and(|it| it.is_valid_now());
                        if !valid {
                            return;
                        }
                    }
                }
            },
        }
    }
}

// === impl Fetcher ===

impl Fetcher {
    /// A new key, and the CA's signature on it. The key is dropped when the CA fails.
    async fn fetch(&self, id: &SpiffeId) -> Result<WorkloadCertificate, CertificateError> {
        let unavailable = |reason: String| CertificateError::Key { identity: id.clone(), reason };
        let key =
            KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|error| unavailable(error.to_string()))?;
        let csr_pem = request(id, &key).map_err(unavailable)?;
        let answer = async {
            let _slot = self.slots.acquire().await;
            self.source.certificate(id, csr_pem).await
        };
        let issued = timeout(FETCH_TIMEOUT, answer)
            .await
            .map_err(|_| CertificateError::Timeout { identity: id.clone(), after: FETCH_TIMEOUT })?
            .map_err(|error| CertificateError::Source { identity: id.clone(), error: Box::new(error) })?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        WorkloadCertificate::new(id.clone(), issued, key, Arc::clone(&self.clock))
    }
}

fn request(id: &SpiffeId, key: &KeyPair) -> Result<String, String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri_name(&id.to_string()).map_err(|error| error.to_string())?];
    let request = params.serialize_request(key).map_err(|error| error.to_string())?;
    request.pem().map_err(|error| error.to_string())
}

// === impl CertificateStore ===

impl fmt::Debug for CertificateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identities = self.entries.lock().unwrap_or_else(PoisonError::into_inner).len();
        f.debug_struct("CertificateStore").field("identities", &identities).finish_non_exhaustive()
    }
}
