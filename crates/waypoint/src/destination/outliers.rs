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
use ambit_telemetry::metrics::CountedCluster;
use http::{HeaderMap, StatusCode};

use crate::{balance::Endpoint, limits::MAX_EJECTION_TIME};

/// What is known of the endpoints of one cluster.
#[derive(Debug)]
pub(super) struct Hosts {
    settings: Outliers,
    counted: CountedCluster,
    started: Instant,
    /// When the last of those that are left out may come back, in milliseconds since the start: the path of a request looks
    /// no further once that has passed.
    last_return: AtomicU64,
    hosts: Mutex<HashMap<Name, Arc<Host>>>,
    /// How many of those that are left out metrics show.
    shown: AtomicU64,
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
    pub(super) fn new(settings: Outliers, counted: CountedCluster) -> Arc<Self> {
        let (last_return, shown) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { settings, counted, started: Instant::now(), last_return, hosts: Mutex::default(), shown })
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

    /// Tells metrics how many are left out now: nobody notices when one comes back.
    pub(super) fn show(&self) {
        let now = self.now();
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let out = hosts.values().filter(|host| host.is_out(now)).count() as u64;
        // Under the lock, so that two who look don't tell different things.
        self.counted.ejected_now(self.shown.swap(out, Ordering::Relaxed), out);
    }

    /// They no longer stand for the endpoints.
    pub(super) fn hide(&self) {
        self.counted.ejected_now(self.shown.swap(0, Ordering::Relaxed), 0);
    }

    /// Leaves an endpoint out, unless too many are already.
    fn eject(&self, host: &Host) {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.now();
        let out = hosts.values().filter(|host| host.is_out(now)).count() as u64;
        let total = hosts.len() as u64;
        host.forget();
        if host.is_out(now) {
            return;
        }
        if (out + 1) * 100 > total * u64::from(self.settings.most_percent) {
            self.counted.ejection_overflowed();
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
        self.counted.ejected();
        tracing::info!(endpoint = %host.address, for_ms = until - now, "an endpoint that fails is left out");
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.hide();
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

    /// It has answered. True if that says nothing yet: how a gRPC call went may stand in its trailers only.
    pub(super) fn answered(&self, status: StatusCode, headers: &HeaderMap, is_call: bool) -> bool {
        self.unreachable.store(0, Ordering::Relaxed);
        let of_call = if is_call { status_of_call(headers) } else { None };
        if is_call && of_call.is_none() && status.is_success() {
            return true;
        }
        self.count(of_call.unwrap_or(status.as_u16()));
        false
    }

    /// A gRPC call has ended with these trailers.
    pub(super) fn ended(&self, trailers: &HeaderMap) {
        self.count(status_of_call(trailers).unwrap_or(200));
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

/// What the status of a gRPC call is in HTTP, as in Envoy, where headers or trailers have one. One that isn't among gRPC's is
/// the server's error.
fn status_of_call(headers: &HeaderMap) -> Option<u16> {
    let status = headers.get("grpc-status")?.to_str().ok().and_then(|status| status.parse::<u16>().ok());
    Some(match status {
        Some(0) => 200,
        Some(1) => 499,
        Some(3 | 9 | 11) => 400,
        Some(4) => 504,
        Some(5) => 404,
        Some(6 | 10) => 409,
        Some(7) => 403,
        Some(8) => 429,
        Some(12) => 501,
        Some(14) => 503,
        Some(16) => 401,
        _ => 500,
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::status_of_call;

    #[test]
    fn the_statuses_of_calls_are_envoys_statuses_of_http() {
        let of = |status: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", HeaderValue::from_static(status));
            status_of_call(&headers)
        };
        let all: Vec<_> = (0..17).map(|code: u16| of(code.to_string().leak()).expect("there is one")).collect();
        let expected = [200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401];
        assert_eq!(all, expected);
        assert_eq!([of("17"), of("-1"), of("x"), of("")], [Some(500); 4]);
        assert_eq!(status_of_call(&HeaderMap::new()), None);
    }
}
