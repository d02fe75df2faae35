//! Endpoints that fail get nothing for a while, as Envoy has it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ambit_mesh::view::destinations::Outliers;
use http::{HeaderMap, StatusCode};

use crate::{balance::Endpoint, limits::MAX_EJECTION_TIME};

/// What is known of the endpoints of one cluster.
#[derive(Debug)]
pub(super) struct Hosts {
    settings: Outliers,
    started: Instant,
    /// When the last of those that are left out may come back, in milliseconds since the start: the path of a request looks
    /// no further once that has passed.
    last_return: AtomicU64,
    hosts: Mutex<HashMap<Name, Arc<Host>>>,
}

/// What is known of one endpoint.
#[derive(Debug)]
pub(crate) struct Host {
    all: Weak<Hosts>,
    address: SocketAddr,
    errors: AtomicU32,
    gateway_errors: AtomicU32,
    unreachable: AtomicU32,
    /// It gets nothing until then, in milliseconds since the start.
    until: AtomicU64,
    /// How often it was left out, less one for every interval since.
    times: AtomicU32,
}

/// Uid and address: an address alone may have been given to another pod.
type Name = (Arc<str>, SocketAddr);

// === impl Hosts ===

impl Hosts {
    pub(super) fn new(settings: Outliers) -> Arc<Self> {
        Arc::new(Self { settings, started: Instant::now(), last_return: AtomicU64::new(0), hosts: Mutex::default() })
    }

    pub(super) fn settings(&self) -> &Outliers {
        &self.settings
    }

    /// What is known of each of these endpoints. What was known of others is forgotten.
    pub(super) fn of<'a>(self: &Arc<Self>, endpoints: impl Iterator<Item = &'a Endpoint>) -> Vec<Arc<Host>> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = std::mem::take(&mut *hosts);
        let found = endpoints.map(|endpoint| {
            let name = (Arc::clone(&endpoint.workload.uid), endpoint.address);
            let host = known.remove(&name).unwrap_or_else(|| Host::new(self, endpoint.address));
            hosts.entry(name).or_insert(host).clone()
        });
        found.collect()
    }

    /// The moment to compare [`Host::is_out`] with; nothing if nobody is left out.
    pub(super) fn now_if_any(&self) -> Option<u64> {
        let last = self.last_return.load(Ordering::Relaxed);
        if last == 0 {
            return None;
        }
        let now = self.now();
        (now < last).then_some(now)
    }

    fn now(&self) -> u64 {
        millis(self.started.elapsed())
    }

    /// Leaves an endpoint out, unless too many are already.
    fn eject(&self, host: &Host) {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.now();
        let out = hosts.values().filter(|host| host.is_out(now)).count() as u64;
        let total = hosts.len() as u64;
        host.forget();
        if host.is_out(now) || (out + 1) * 100 > total * u64::from(self.settings.most_percent) {
            return;
        }
        let interval = millis(self.settings.interval).max(1);
        let since = now.saturating_sub(host.until.load(Ordering::Relaxed)) / interval;
        let before = host.times.load(Ordering::Relaxed);
        let times = before.saturating_sub(u32::try_from(since).unwrap_or(u32::MAX)).saturating_add(1);
        let longest = MAX_EJECTION_TIME.max(self.settings.base);
        let length = self.settings.base.saturating_mul(times).min(longest);
        // It comes back at the first look after that.
        let until = (now + millis(length)).div_ceil(interval).saturating_mul(interval);
        host.times.store(times, Ordering::Relaxed);
        host.until.store(until, Ordering::Relaxed);
        self.last_return.fetch_max(until, Ordering::Relaxed);
        tracing::info!(endpoint = %host.address, for_ms = until - now, "an endpoint that fails is left out");
    }
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

// === impl Host ===

impl Host {
    fn new(all: &Arc<Hosts>, address: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            all: Arc::downgrade(all),
            address,
            errors: AtomicU32::new(0),
            gateway_errors: AtomicU32::new(0),
            unreachable: AtomicU32::new(0),
            until: AtomicU64::new(0),
            times: AtomicU32::new(0),
        })
    }

    /// True if it gets nothing at this moment.
    pub(super) fn is_out(&self, now: u64) -> bool {
        now < self.until.load(Ordering::Relaxed)
    }

    /// It has answered.
    pub(crate) fn answered(&self, status: StatusCode, headers: &HeaderMap) {
        self.unreachable.store(0, Ordering::Relaxed);
        self.count(status_of_grpc(headers).unwrap_or(status).as_u16());
    }

    /// It was reached, and what it says isn't looked at.
    pub(crate) fn reached(&self) {
        self.unreachable.store(0, Ordering::Relaxed);
        self.count(200);
    }

    /// It couldn't be reached, or gave no answer.
    pub(crate) fn failed(&self) {
        let Some(all) = self.all.upgrade() else { return };
        match all.settings.unreachable {
            None => self.count(503),
            Some(most) => {
                if self.unreachable.fetch_add(1, Ordering::Relaxed).saturating_add(1) >= most {
                    all.eject(self);
                }
            }
        }
    }

    fn count(&self, status: u16) {
        if status < 500 {
            // Stores only where there is something to forget: other cores read these, too.
            if self.errors.load(Ordering::Relaxed) != 0 {
                self.errors.store(0, Ordering::Relaxed);
            }
            if self.gateway_errors.load(Ordering::Relaxed) != 0 {
                self.gateway_errors.store(0, Ordering::Relaxed);
            }
            return;
        }
        let Some(all) = self.all.upgrade() else { return };
        let gateway_errors = if (502..=504).contains(&status) {
            self.gateway_errors.fetch_add(1, Ordering::Relaxed).saturating_add(1)
        } else {
            self.gateway_errors.store(0, Ordering::Relaxed);
            0
        };
        let errors = self.errors.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let Outliers { errors: most_errors, gateway_errors: most_gateway_errors, .. } = all.settings;
        if most_errors.is_some_and(|most| errors >= most)
            || most_gateway_errors.is_some_and(|most| gateway_errors >= most)
        {
            all.eject(self);
        }
    }

    fn forget(&self) {
        for counter in [&self.errors, &self.gateway_errors, &self.unreachable] {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

/// A gRPC answer without a message says in its head how it went; as an HTTP status.
fn status_of_grpc(headers: &HeaderMap) -> Option<StatusCode> {
    let status = headers.get("grpc-status")?.as_bytes();
    Some(match status {
        b"14" => StatusCode::SERVICE_UNAVAILABLE,
        b"4" => StatusCode::GATEWAY_TIMEOUT,
        b"12" => StatusCode::NOT_IMPLEMENTED,
        b"2" | b"13" | b"15" => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::OK,
    })
}
