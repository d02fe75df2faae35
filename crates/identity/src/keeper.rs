//! One identity's task: fetches its certificate, and again when it is time.
//!
//! | what happens | what follows |
//! |---|---|
//! | a certificate came | wait for its renewal time, at least [`MIN_RENEWAL_PAUSE`] |
//! | the fetch failed | wait for the backoff, but not past the end of the certificate that is still in use |
//! | the machine woke, or its clock was set | a fetch under way starts anew; a backoff ends; a certificate is looked at |
//! | a connection finds the certificate unusable | the same look, now |
//! | new revocation lists name the certificate | it is fetched anew, once per change of the lists |

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    CertificateError, CertificateSource, Clock, SpiffeId, WorkloadCertificate,
    limits::{
        FETCH_TIMEOUT, MAX_BACKOFF, MAX_TIMER_SLICE, MIN_BACKOFF, MIN_RENEWAL_PAUSE, WAKE_FETCH_TIMEOUT, WAKE_PAUSE,
        WAKE_WINDOW,
    },
    request::CertificateRequest,
    slots::{Priority, Slots},
    tls,
    trust::Trust,
};

/// What all identities' tasks share.
pub(crate) struct Shared {
    pub(crate) source: Arc<dyn CertificateSource>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) trust: Arc<Trust>,
    pub(crate) slots: Slots,
    /// Counts how often the machine woke or its clock was set.
    pub(crate) wakes: Arc<watch::Sender<u64>>,
}

/// What is published of an identity.
#[derive(Clone, Default)]
pub(crate) struct State {
    /// Fetches finished so far, well or not.
    pub(crate) attempts: u64,
    pub(crate) certificate: Option<Arc<WorkloadCertificate>>,
    /// Of the last attempt, if it failed.
    pub(crate) failure: Option<CertificateError>,
    /// Whether the failure is the answer to whoever asks now: a pause lasts that nobody may cut short.
    pub(crate) pausing: bool,
}

/// What the store keeps of an identity; when it is dropped, the task ends.
pub(crate) struct Entry {
    pub(crate) state: watch::Receiver<State>,
    /// The most urgent reason for the fetch that is under way or comes next.
    demand: Arc<watch::Sender<Priority>>,
}

struct Keeper {
    shared: Arc<Shared>,
    id: SpiffeId,
    publish: watch::Sender<State>,
    demand: Arc<watch::Sender<Priority>>,
    wakes: watch::Receiver<u64>,
    /// Of the next failure.
    backoff: Duration,
    /// Until when failures are taken for the network's that is waking, too.
    waking_until: Option<Instant>,
}

// === impl Entry ===

impl Entry {
    /// Starts the task of `id` on the current runtime.
    pub(crate) fn start(shared: &Arc<Shared>, id: &SpiffeId, priority: Priority) -> Self {
        let (publish, state) = watch::channel(State::default());
        let demand = Arc::new(watch::Sender::new(priority));
        let keeper = Keeper {
            shared: Arc::clone(shared),
            id: id.clone(),
            publish,
            demand: Arc::clone(&demand),
            wakes: shared.wakes.subscribe(),
            backoff: MIN_BACKOFF,
            waking_until: None,
        };
        tokio::spawn(keeper.run());
        Self { state, demand }
    }

    /// A task ends before its entry only with the runtime it ran on.
    pub(crate) fn is_alive(&self) -> bool {
        self.state.has_changed().is_ok()
    }

    /// Says that the certificate is wanted; a task that waits looks at it again.
    pub(crate) fn demand(&self, priority: Priority) {
        self.demand.send_if_modified(|current| {
            let raised = priority > *current;
            *current = priority.max(*current);
            // One that is as urgent already may have come too late to be seen: it may be the last fetch's.
            raised || priority == Priority::RealTime
        });
    }
}

// === impl Keeper ===

impl Keeper {
    async fn run(mut self) {
        let publish = self.publish.clone();
        tokio::select! {
            () = publish.closed() => {}
            () = self.keep() => {}
        }
    }

    /// Never ends by itself.
    async fn keep(&mut self) {
        loop {
            let outcome = self.attempt().await;
            // What comes next is a renewal, until somebody wants it sooner.
            self.demand.send_replace(Priority::Background);
            match outcome {
                Ok(certificate) => self.succeeded(Arc::new(certificate)).await,
                Err(failure) => self.failed(failure).await,
            }
        }
    }

    /// One fetch. It starts anew when the machine wakes: its connection is from before the sleep.
    async fn attempt(&mut self) -> Result<WorkloadCertificate, CertificateError> {
        loop {
            let after = if self.is_waking() { WAKE_FETCH_TIMEOUT } else { FETCH_TIMEOUT };
            tokio::select! {
                outcome = self.shared.fetch(&self.id, self.demand.subscribe(), after) => return outcome,
                Ok(()) = self.wakes.changed() => {}
            }
            self.woke();
        }
    }

    /// Publishes `certificate` and waits until its successor is due.
    async fn succeeded(&mut self, certificate: Arc<WorkloadCertificate>) {
        tracing::debug!(identity = %self.id, not_after = ?certificate.not_after(), "certificate fetched");
        self.backoff = MIN_BACKOFF;
        self.publish.send_modify(|state| {
            state.attempts += 1;
            state.certificate = Some(Arc::clone(&certificate));
            state.failure = None;
            state.pausing = false;
        });
        let earliest = Instant::now() + MIN_RENEWAL_PAUSE;
        let mut demand = self.demand.subscribe();
        let mut trust = self.shared.trust.changes();
        loop {
            let left = certificate.until_renewal();
            if left.is_zero() && earliest <= Instant::now() {
                return;
            }
            let look_again = (Instant::now() + left.min(MAX_TIMER_SLICE)).max(earliest);
            tokio::select! {
                () = sleep_until(look_again) => {}
                // Somebody finds it unusable. (Or was served meanwhile, so this proves nothing: look.)
                Ok(()) = demand.changed() => {}
                // Peers refuse a revoked certificate; its successor has another key and serial number.
                Ok(()) = trust.changed() => if self.shared.trust.revocation(certificate.chain()).is_some() {
                    sleep_until(earliest).await;
                    return;
                },
                Ok(()) = self.wakes.changed() => {
                    self.woke();
                    if certificate.until_renewal().is_zero() {
                        return;
                    }
                }
            }
        }
    }

    /// Publishes `failure` and waits until it is time to try again.
    async fn failed(&mut self, failure: CertificateError) {
        let waking = self.is_waking();
        let pause = jitter(if waking { WAKE_PAUSE } else { self.backoff }).min(MAX_BACKOFF);
        if !waking {
            self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
        }
        let in_use = self.publish.borrow().certificate.as_ref().map(|certificate| certificate.until_end());
        let pause = in_use.filter(|left| !left.is_zero()).map_or(pause, |left| pause.min(left));
        tracing::warn!(identity = %self.id, retry_in = ?pause, "{failure}");
        self.publish.send_modify(|state| {
            state.attempts += 1;
            state.failure = Some(failure);
            // While the machine is waking the next attempt is so near that it is worth waiting for.
            state.pausing = !waking;
        });
        tokio::select! {
            () = sleep(pause) => {}
            Ok(()) = self.wakes.changed() => self.woke(),
        }
        // From here on callers wait for the attempt that now begins instead of taking the last failure.
        self.publish.send_modify(|state| state.pausing = false);
    }

    fn woke(&mut self) {
        self.backoff = MIN_BACKOFF;
        self.waking_until = Some(Instant::now() + WAKE_WINDOW);
    }

    fn is_waking(&self) -> bool {
        self.waking_until.is_some_and(|until| Instant::now() < until)
    }
}

/// `pause`, a fifth shorter to a fifth longer, so that identities that failed together don't try again together.
fn jitter(pause: Duration) -> Duration {
    let mut random = [0x80; 1];
    // Without randomness the pause is simply the middle.
    let _ = tls::provider(Default::default()).secure_random.fill(&mut random);
    pause.mul_f64(0.8 + 0.4 * f64::from(random[0]) / 255.0)
}

// === impl Shared ===

impl Shared {
    /// A new key, and the CA's signature on it within `after` of being asked. The key is dropped when the CA fails.
    async fn fetch(
        &self,
        id: &SpiffeId,
        demand: watch::Receiver<Priority>,
        after: Duration,
    ) -> Result<WorkloadCertificate, CertificateError> {
        let _slot = self.slot(demand).await;
        let request = CertificateRequest::new(id)?;
        let issued = timeout(after, self.source.certificate(id, request.pem().to_owned()))
            .await
            .map_err(|_| CertificateError::Timeout { identity: id.clone(), after })?
            .map_err(|error| CertificateError::Source { identity: id.clone(), error: Box::new(error) })?;
        request.accept(issued, &self.trust, &self.clock)
    }

    /// A slot, waited for with the priority that the demand has at each moment.
    async fn slot(&self, mut demand: watch::Receiver<Priority>) -> crate::slots::Slot {
        loop {
            let priority = *demand.borrow_and_update();
            tokio::select! {
                slot = self.slots.acquire(priority) => return slot,
                // Another caller of the same priority doesn't cost us our place.
                Ok(_) = demand.wait_for(|now| *now > priority) => {}
            }
        }
    }
}
