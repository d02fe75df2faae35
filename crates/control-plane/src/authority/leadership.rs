//! Which of the replicas writes: the one that holds a Lease.
//!
//! INVARIANT: whoever leads stops before another may start. A holder counts from *before* it sends a renewal and stops after
//! `renew_within`; another takes over only after the record has stood still for `duration`, which is longer, counted from
//! *after* it has seen it. Both count by the time since boot, which nobody can set and which goes on while a machine sleeps.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ambit_identity::Clock;
use futures_util::{Stream, stream};
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::lease::{Observation, held, released};
use crate::limits::{LEASE_DURATION, LEASE_RENEW_WITHIN, LEASE_REQUEST_TIMEOUT, LEASE_RETRY};

/// Whether this replica leads. Cheap to clone.
#[derive(Clone)]
pub struct Leadership {
    shared: Arc<Shared>,
    leads: watch::Receiver<bool>,
}

/// How replicas agree.
#[derive(Clone, Debug)]
pub struct LeadershipSettings {
    /// The Lease's namespace.
    pub namespace: String,
    /// The Lease's name.
    pub name: String,
    /// What this replica is called in it; must differ between processes (a pod's name and something random).
    pub identity: String,
    /// How long others wait after the last renewal. Whole seconds.
    pub duration: Duration,
    /// How long after a renewal this replica counts itself the leader; shorter than `duration`.
    pub renew_within: Duration,
    /// Pause between renewals, and between tries.
    pub retry: Duration,
}

struct Shared {
    /// Until when (time since boot) this replica leads without another renewal.
    until: Mutex<Option<Duration>>,
    clock: Arc<dyn Clock>,
}

/// The task that takes and renews the Lease.
struct Candidate {
    api: Api<Lease>,
    settings: LeadershipSettings,
    shared: Arc<Shared>,
    leads: watch::Sender<bool>,
    observation: Observation,
    /// The Lease as it was written last, while it is ours.
    lease: Option<Lease>,
}

// === impl LeadershipSettings ===

impl LeadershipSettings {
    /// The usual times.
    #[must_use]
    pub fn new(namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            duration: LEASE_DURATION,
            renew_within: LEASE_RENEW_WITHIN,
            retry: LEASE_RETRY,
        }
    }
}

// === impl Leadership ===

impl Leadership {
    /// Takes part until `stop`, then gives the Lease back. The task ends when that is done.
    #[must_use]
    pub fn start(
        client: Client,
        settings: LeadershipSettings,
        clock: Arc<dyn Clock>,
        stop: CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        let (leads, seen) = watch::channel(false);
        let shared = Arc::new(Shared { until: Mutex::new(None), clock });
        let leadership = Self { shared: Arc::clone(&shared), leads: seen };
        let api = Api::namespaced(client, &settings.namespace);
        let candidate = Candidate { api, settings, shared, leads, observation: Observation::default(), lease: None };
        (leadership, tokio::spawn(candidate.run(stop)))
    }

    /// Whether this replica may write at this moment.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        // Asked of the clock, so that a process that stood still doesn't go on writing.
        self.shared.leads()
    }

    /// Told whenever this replica starts to lead: what was left to others until then is to be looked at.
    pub fn gained(&self) -> impl Stream<Item = ()> + Send + use<> {
        stream::unfold(self.leads.clone(), |mut leads| async move {
            loop {
                leads.changed().await.ok()?;
                if *leads.borrow_and_update() {
                    return Some(((), leads));
                }
            }
        })
    }

    /// Tells when that changes. Whoever is told `true` still asks [`is_leader`](Self::is_leader) before each write.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<bool> {
        self.leads.clone()
    }
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leadership").field("leads", &self.is_leader()).finish_non_exhaustive()
    }
}

// === impl Shared ===

impl Shared {
    fn now(&self) -> Duration {
        // Without a clock since boot there is no telling how long a machine slept: then nobody leads.
        self.clock.since_boot().unwrap_or(Duration::MAX)
    }

    fn until(&self) -> Option<Duration> {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, until: Option<Duration>) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    fn leads(&self) -> bool {
        self.until().is_some_and(|until| self.now() < until)
    }
}

// === impl Candidate ===

impl Candidate {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.turn() => {}
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep(self.pause()) => {}
            }
        }
        self.release().await;
    }

    /// One try to take or renew the Lease.
    async fn turn(&mut self) {
        let started = self.shared.now();
        if self.shared.until().is_some_and(|until| until <= started) {
            // Told even if the next renewal succeeds: what was left undone meanwhile must be done then.
            self.shared.set(None);
            self.tell();
        }
        let left = self.shared.until().map(|until| until.saturating_sub(started));
        let allowed = left.unwrap_or(LEASE_REQUEST_TIMEOUT).min(LEASE_REQUEST_TIMEOUT);
        let outcome = timeout(allowed, self.ask(started)).await;
        match outcome.unwrap_or_else(|_| Err(format!("no answer within {allowed:?}"))) {
            Ok(true) => self.shared.set(Some(started.saturating_add(self.settings.renew_within))),
            // Another has it, for sure.
            Ok(false) => self.shared.set(None),
            Err(reason) => {
                self.lease = None;
                tracing::warn!(lease = %self.settings.name, %reason, "the lease can't be asked for");
            }
        }
        self.tell();
    }

    /// Whether the Lease is ours after this.
    async fn ask(&mut self, now: Duration) -> Result<bool, String> {
        let LeadershipSettings { namespace, name, identity, duration, .. } = &self.settings;
        let before = match self.lease.take() {
            Some(lease) => Some(lease),
            None => self.api.get_opt(name).await.map_err(|error| error.to_string())?,
        };
        let written = match before {
            None => {
                let metadata = ObjectMeta {
                    name: Some(name.clone()),
                    namespace: Some(namespace.clone()),
                    ..ObjectMeta::default()
                };
                let spec = Some(held(None, identity, *duration));
                self.api.create(&PostParams::default(), &Lease { metadata, spec }).await
            }
            Some(mut lease) => {
                let spec = lease.spec.take().unwrap_or_default();
                if !self.observation.may_take(&spec, identity, now) {
                    return Ok(false);
                }
                lease.spec = Some(held(Some(&spec), identity, *duration));
                // Its resource version is in it: if another was faster, this fails.
                self.api.replace(name, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(lease) => {
                self.lease = Some(lease);
                Ok(true)
            }
            // Another was faster, or somebody edited it: the next try reads it. Whoever leads leads on until its time is up.
            Err(kube::Error::Api(status)) if status.code == 409 => Err("it was changed by another".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Until the next try, or until this replica no longer leads, if that is sooner.
    fn pause(&self) -> Duration {
        let retry = self.settings.retry;
        let left = self.shared.until().map(|until| until.saturating_sub(self.shared.now()));
        left.filter(|left| !left.is_zero()).map_or(retry, |left| left.min(retry))
    }

    fn tell(&self) {
        let leads = self.shared.leads();
        let changed = self.leads.send_if_modified(|before| std::mem::replace(before, leads) != leads);
        if changed {
            let identity = &self.settings.identity;
            tracing::info!(lease = %self.settings.name, %identity, leads, "leadership changed");
        }
    }

    async fn release(&mut self) {
        self.shared.set(None);
        self.tell();
        let Some(mut lease) = self.lease.take() else { return };
        released(&mut lease);
        let parameters = PostParams::default();
        let written = self.api.replace(&self.settings.name, &parameters, &lease);
        if let Ok(Err(error)) = timeout(LEASE_REQUEST_TIMEOUT, written).await {
            tracing::warn!(%error, "the lease can't be given back; others wait until it ends");
        }
    }
}

impl Drop for Candidate {
    /// However the task ends, nobody goes on in the belief to lead.
    fn drop(&mut self) {
        self.shared.set(None);
        self.tell();
    }
}
