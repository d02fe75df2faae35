//! What is going on at the endpoints of a service's port, or of a subset of it, as far as a rule bounds it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use ambit_mesh::view::{
    ServiceKey,
    destinations::{Limits, Treatment},
};
use ambit_telemetry::metrics::CountedCluster;
use ambit_xds::workload::AppProtocol;
use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    candidates::Candidates,
    lease::{Lease, Slot},
    outliers::Hosts,
};
use crate::{
    limits::{MAX_IDLE_CLUSTERS, MAX_PENDING_REQUESTS, PENDING_TIMEOUT},
    shared::Shared,
    upstream::Error,
};

/// The clusters of one waypoint.
#[derive(Debug, Default)]
pub(crate) struct Clusters {
    known: ArcSwap<HashMap<Key, Arc<Cluster>>>,
    /// Held by whoever adds one.
    adding: Mutex<()>,
}

/// Service, port, and subset if it is one.
type Key = (ServiceKey, u16, Option<Arc<str>>);

/// See the module.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(super) key: ServiceKey,
    pub(super) port: u16,
    pub(crate) treatment: Arc<Treatment>,
    requests: AtomicU32,
    pending: AtomicU32,
    retries: AtomicU32,
    /// Room for connections.
    connections: Option<Arc<Semaphore>>,
    /// The open ones, where there isn't room for any number.
    leases: Mutex<Vec<Weak<Lease>>>,
    /// Whose turn it is.
    pub(super) turn: AtomicUsize,
    pub(super) hosts: Option<Arc<Hosts>>,
    counted: CountedCluster,
    pub(super) candidates: ArcSwapOption<Candidates>,
}

/// One of a bounded number, until dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    cluster: Arc<Cluster>,
    of: fn(&Cluster) -> &AtomicU32,
}

// === impl Clusters ===

impl Clusters {
    /// What is known under this name; what is known of endpoints that were treated otherwise is forgotten.
    pub(super) fn get(
        &self,
        shared: &Shared,
        key: &ServiceKey,
        port: u16,
        subset: Option<&Arc<str>>,
        treatment: &Arc<Treatment>,
    ) -> Arc<Cluster> {
        let name = (key.clone(), port, subset.cloned());
        let same =
            |cluster: &&Arc<Cluster>| Arc::ptr_eq(&cluster.treatment, treatment) || cluster.treatment == *treatment;
        if let Some(cluster) = self.known.load().get(&name).filter(same) {
            return Arc::clone(cluster);
        }
        let _adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.known.load();
        if let Some(cluster) = known.get(&name).filter(same) {
            return Arc::clone(cluster);
        }
        let mut now = HashMap::clone(&known);
        if now.len() >= MAX_IDLE_CLUSTERS {
            // Two hold one that nobody uses: the old table and the new.
            now.retain(|_, cluster| Arc::strong_count(cluster) > 2);
        }
        let counted = shared.operators.metrics.cluster(&named(shared, key, port, subset.map(|subset| &**subset)));
        let cluster = Cluster::new(key, port, treatment, counted, now.get(&name));
        now.insert(name, Arc::clone(&cluster));
        drop(known);
        self.known.store(Arc::new(now));
        cluster
    }

    /// Tells metrics who is left out at this moment.
    pub(crate) fn show(&self) {
        self.known.load().values().filter_map(|cluster| cluster.hosts.as_ref()).for_each(|hosts| hosts.show());
    }
}

/// As Istio names the clusters of a waypoint.
fn named(shared: &Shared, key: &ServiceKey, port: u16, subset: Option<&str>) -> String {
    let view = shared.store.load();
    let protocol = view.service(key).and_then(|service| service.ports.get(&port)).map(|port| port.protocol);
    let protocol = if matches!(protocol, Some(AppProtocol::Tcp | AppProtocol::Tls)) { "tcp" } else { "http" };
    let subset = subset.map(|subset| format!("/{subset}")).unwrap_or_default();
    format!("inbound-vip|{port}|{protocol}{subset}|{}", key.hostname)
}

// === impl Cluster ===

impl Cluster {
    fn new(
        key: &ServiceKey,
        port: u16,
        treatment: &Arc<Treatment>,
        counted: CountedCluster,
        before: Option<&Arc<Self>>,
    ) -> Arc<Self> {
        let room = |most: u32| Arc::new(Semaphore::new((most as usize).min(Semaphore::MAX_PERMITS)));
        // Who was left out stays so while the same is asked of endpoints.
        let kept = before.and_then(|before| before.hosts.as_ref());
        let hosts = treatment.outliers.map(|outliers| match kept {
            Some(hosts) if *hosts.settings() == outliers => Arc::clone(hosts),
            _ => Hosts::new(outliers, counted.clone()),
        });
        if let Some(old) = kept.filter(|kept| hosts.as_ref().is_none_or(|hosts| !Arc::ptr_eq(hosts, kept))) {
            old.hide();
        }
        let kept = before.filter(|before| before.limits().connections == treatment.limits.connections);
        let connections = match kept {
            Some(before) => before.connections.clone(),
            None => treatment.limits.connections.map(room),
        };
        Arc::new(Self {
            key: key.clone(),
            port,
            treatment: Arc::clone(treatment),
            requests: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            retries: AtomicU32::new(0),
            connections,
            leases: Mutex::default(),
            turn: AtomicUsize::new(0),
            hosts,
            counted,
            candidates: ArcSwapOption::empty(),
        })
    }

    fn limits(&self) -> &Limits {
        &self.treatment.limits
    }

    /// How long reaching an endpoint may take.
    pub(crate) fn connect_timeout(&self, usual: Duration) -> Duration {
        self.limits().connect_timeout.unwrap_or(usual)
    }

    /// A request in flight.
    ///
    /// # Errors
    /// There are as many as there may be.
    pub(crate) fn request(self: &Arc<Self>) -> Result<Option<Permit>, Error> {
        let Some(most) = self.limits().requests else { return Ok(None) };
        self.take(|cluster| &cluster.requests, most).map(Some).ok_or_else(|| {
            self.counted.pending_overflowed();
            self.overflow("requests")
        })
    }

    /// A retry in flight; nothing if there are as many as there may be.
    pub(crate) fn retry(self: &Arc<Self>) -> Option<Permit> {
        let permit = self.take(|cluster| &cluster.retries, self.limits().retries.unwrap_or(u32::MAX));
        if permit.is_none() {
            self.counted.retries_overflowed();
        }
        permit
    }

    /// A request that waits for a connection.
    ///
    /// # Errors
    /// There are as many as there may be.
    pub(crate) fn pending(self: &Arc<Self>) -> Result<Permit, Error> {
        let most = self.limits().pending_requests.unwrap_or(MAX_PENDING_REQUESTS);
        self.take(|cluster| &cluster.pending, most).ok_or_else(|| {
            self.counted.pending_overflowed();
            self.overflow("requests that wait")
        })
    }

    /// Room for a connection that isn't HTTP.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn room(&self) -> Result<Slot, Error> {
        let Some(connections) = &self.connections else { return Ok(Slot::default()) };
        let permit = Arc::clone(connections).try_acquire_owned().map_err(|_| {
            self.counted.connections_overflowed();
            self.overflow("connections")
        })?;
        Ok(Slot { permit: Some(permit) })
    }

    /// Room for a connection, when it is there. Connections that nobody uses make room.
    ///
    /// # Errors
    /// There is none in time.
    pub(crate) async fn room_soon(&self) -> Result<Slot, Error> {
        let Some(connections) = &self.connections else { return Ok(Slot::default()) };
        if let Ok(permit) = Arc::clone(connections).try_acquire_owned() {
            return Ok(Slot { permit: Some(permit) });
        }
        self.counted.connections_overflowed();
        let waited = tokio::time::timeout(PENDING_TIMEOUT, self.wait(connections)).await;
        let permit = waited.ok().flatten().ok_or_else(|| {
            self.counted.pending_overflowed();
            self.overflow("connections")
        })?;
        Ok(Slot { permit: Some(permit) })
    }

    /// A connection that was opened in this room.
    pub(crate) fn lease(&self, slot: Slot) -> Arc<Lease> {
        let lease = Lease::new(self.limits(), slot, None);
        if self.connections.is_some() {
            let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
            leases.retain(|lease| lease.strong_count() > 0);
            leases.push(Arc::downgrade(&lease));
        }
        lease
    }

    async fn wait(&self, connections: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        let acquired = Arc::clone(connections).acquire_owned();
        tokio::pin!(acquired);
        loop {
            self.close_an_idle_one();
            tokio::select! {
                permit = acquired.as_mut() => return permit.ok(),
                // A connection may have fallen silent, which nobody is told.
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    fn close_an_idle_one(&self) {
        let leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        let _closed = leases.iter().filter_map(Weak::upgrade).any(|lease| lease.close_if_idle());
    }

    fn take(self: &Arc<Self>, of: fn(&Self) -> &AtomicU32, most: u32) -> Option<Permit> {
        let more = |held: u32| (held < most).then_some(held + 1);
        of(self).fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Permit { cluster: Arc::clone(self), of })
    }

    fn overflow(&self, what: &'static str) -> Error {
        Error::Overflow { service: self.key.hostname.to_string(), what }
    }
}

/// How often it is looked for a connection that nobody uses while somebody waits for room.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

// === impl Permit ===

impl Drop for Permit {
    fn drop(&mut self) {
        (self.of)(&self.cluster).fetch_sub(1, Ordering::AcqRel);
    }
}
