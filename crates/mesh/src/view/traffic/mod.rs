//! Rate limits and faults of a waypoint's services, ready to be asked (docs/traffic-policy.md), and budgets of retries.

mod buckets;
mod retries;

use std::{collections::HashMap, sync::Arc, time::Duration};

use ::http::{HeaderName, StatusCode};
use ambit_api::{
    TrafficPolicy as Written,
    traffic_policy::{self as written, DEFAULT_KEYS, MAX_KEYS, MAX_REQUESTS, RateLimitKeyType, part},
};
use ambit_xds::waypoint::{BoundService, TrafficPolicy as Wire};

use super::{
    ServiceKey,
    decode::MAX_LIST_ENTRIES,
    routes::{Matches, RequestLine},
};

pub use self::{
    buckets::{Bucket, Buckets, Rate},
    retries::{RetryBudget, RetryBudgets},
};
pub(super) use retries::retry_budgets;

/// Rate limits and faults by the service that they are for. A service without any isn't here.
pub type Traffic = HashMap<ServiceKey, Arc<ServiceTraffic>>;

/// Rate limits and faults of one service, or of a waypoint's workloads.
#[derive(Debug)]
pub struct ServiceTraffic {
    /// In order of namespace and name.
    pub policies: Box<[Arc<TrafficPolicy>]>,
}

/// One TrafficPolicy. Another service that it is attached to has another one, with buckets of its own.
#[derive(Debug)]
pub struct TrafficPolicy {
    /// As it arrived, to see whether it has changed.
    wire: Wire,
    /// In the order of the object.
    pub limits: Box<[RateLimit]>,
    /// In the order of the object.
    pub faults: Box<[Fault]>,
}

/// A rate limit.
#[derive(Debug)]
pub struct RateLimit {
    /// What is said of a request that it refuses: which policy, and which limit of it.
    pub refusal: Arc<str>,
    /// Requests that it counts.
    pub matches: Matches,
    /// What has a bucket of its own.
    pub key: LimitKey,
    /// The buckets.
    pub buckets: Buckets,
}

/// What has a bucket of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitKey {
    /// Each identity of a client.
    Principal,
    /// Each value of this header.
    Header(HeaderName),
    /// All requests have the shared one.
    All,
}

/// A fault made on purpose.
#[derive(Debug)]
pub struct Fault {
    /// Which fault of which policy: for records.
    pub name: Arc<str>,
    /// Requests that it may befall.
    pub matches: Matches,
    /// The request waits.
    pub delay: Option<(Duration, Share)>,
    /// The request is answered.
    pub abort: Option<(Abort, Share)>,
}

/// How a request is answered that goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    /// The status.
    pub status: StatusCode,
    /// The status of a gRPC call; nothing for what gRPC makes of the other.
    pub grpc: Option<u16>,
}

/// A part of all requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// So many of [`Share::whole`].
    pub part: u32,
    /// Not zero.
    pub whole: u32,
}

/// Whether these can be read.
///
/// # Errors
/// Why one of them can't be enforced, as the whole reason of the denials.
pub(super) fn readable(messages: &[Wire]) -> Result<(), String> {
    compile(messages, None).map(drop)
}

/// Reads the TrafficPolicies of one service; nothing if there are none. What hasn't changed since `previous` goes on
/// counting where it was.
///
/// # Errors
/// Why one of them can't be enforced, as the whole reason of the denials.
pub(super) fn compile(
    messages: &[Wire],
    previous: Option<&Arc<ServiceTraffic>>,
) -> Result<Option<Arc<ServiceTraffic>>, String> {
    if messages.is_empty() {
        return Ok(None);
    }
    if messages.len() > MAX_LIST_ENTRIES {
        return Err(format!("TrafficPolicies were rejected: there are more than {MAX_LIST_ENTRIES}"));
    }
    let known = |wire: &Wire| previous?.policies.iter().find(|policy| policy.wire == *wire).cloned();
    let policies = messages.iter().map(|wire| {
        let rejected =
            |reason: String| format!("TrafficPolicy `{}/{}` was rejected: {reason}", wire.namespace, wire.name);
        match known(wire) {
            Some(known) => Ok(known),
            None => TrafficPolicy::read(wire).map(Arc::new).map_err(rejected),
        }
    });
    let policies: Box<[_]> = policies.collect::<Result<_, _>>()?;
    if let Some(previous) = previous
        && previous.policies.len() == policies.len()
        && previous.policies.iter().zip(&policies).all(|(one, other)| Arc::ptr_eq(one, other))
    {
        return Ok(Some(Arc::clone(previous)));
    }
    Ok(Some(Arc::new(ServiceTraffic { policies })))
}

/// The same for each of these services. One whose policies can't be read has none: everything is denied there instead.
pub(super) fn traffic(services: &[BoundService], previous: Option<&Traffic>) -> Traffic {
    let mut traffic = Traffic::new();
    for service in services.iter().filter(|service| !service.traffic_policies.is_empty()) {
        let key =
            ServiceKey { namespace: service.namespace.as_str().into(), hostname: service.hostname.as_str().into() };
        let known = previous.and_then(|previous| previous.get(&key));
        let read = compile(&service.traffic_policies, known).unwrap_or_default();
        traffic.extend(read.map(|read| (key, read)));
    }
    traffic
}

// === impl TrafficPolicy ===

impl TrafficPolicy {
    fn read(wire: &Wire) -> Result<Self, String> {
        if !wire.rejection.is_empty() {
            return Err(wire.rejection.clone());
        }
        let object: Written =
            serde_json::from_slice(&wire.json).map_err(|error| format!("it can't be read: {error}"))?;
        if object.namespace != wire.namespace || object.name != wire.name {
            return Err(format!("it carries another one, `{}/{}`", object.namespace, object.name));
        }
        let called = |what: &str, index: usize, name: Option<&str>| match name {
            Some(name) => format!("TrafficPolicy `{}/{}` {what} `{name}`", object.namespace, object.name),
            None => format!("TrafficPolicy `{}/{}` {what} {index}", object.namespace, object.name),
        };
        let limits = object
            .spec
            .rate_limits
            .iter()
            .enumerate()
            .map(|(index, limit)| RateLimit::read(&called("rate limit", index, limit.name.as_deref()), limit));
        let faults = object
            .spec
            .faults
            .iter()
            .enumerate()
            .map(|(index, fault)| Fault::read(called("fault", index, fault.name.as_deref()), fault));
        Ok(Self {
            wire: wire.clone(),
            limits: limits.collect::<Result<_, _>>()?,
            faults: faults.collect::<Result<_, _>>()?,
        })
    }
}

// === impl RateLimit ===

impl RateLimit {
    fn read(name: &str, limit: &written::RateLimit) -> Result<Self, String> {
        let number = |number: u32, most: u32, what: &str| match (1..=most).contains(&number) {
            true => Ok(number),
            false => Err(format!("{name}: {number} can't be its `{what}`")),
        };
        let requests = number(limit.requests, MAX_REQUESTS, "requests")?;
        let burst = number(limit.burst.unwrap_or(requests), MAX_REQUESTS, "burst")?;
        let keys = number(limit.max_keys.unwrap_or(DEFAULT_KEYS), MAX_KEYS, "maxKeys")?;
        let interval = limit.interval().ok_or_else(|| format!("{name}: `{}` is not an interval", limit.interval))?;
        let key = match (limit.key.kind, &limit.key.header) {
            (RateLimitKeyType::Principal, None) => LimitKey::Principal,
            (RateLimitKeyType::All, None) => LimitKey::All,
            (RateLimitKeyType::Header, Some(header)) => {
                let header = HeaderName::from_bytes(header.as_bytes());
                LimitKey::Header(header.map_err(|_| format!("{name}: its header has no name"))?)
            }
            _ => return Err(format!("{name}: a header goes with a key of type `Header`, and the other way round")),
        };
        let buckets = Buckets::new(Rate::new(requests, interval, burst), keys as usize);
        let refusal = format!("{name}: no token is left").into();
        Ok(Self { refusal, matches: Matches::read(&limit.matches)?, key, buckets })
    }

    /// Whether it counts this request.
    #[must_use]
    pub fn counts(&self, request: &RequestLine<'_>) -> bool {
        self.matches.hold(request)
    }
}

// === impl Fault ===

impl Fault {
    fn read(name: String, fault: &written::Fault) -> Result<Self, String> {
        let delay = fault.delay.as_ref().map(|delay| {
            let duration = delay.duration().ok_or_else(|| format!("{name}: `{}` is not a delay", delay.duration))?;
            Ok::<_, String>((duration, share(&name, part(delay.percent, delay.fraction.as_ref()))?))
        });
        let abort = fault.abort.as_ref().map(|abort| {
            let status =
                StatusCode::from_u16(abort.http_status).ok().filter(|_| written::can_abort_with(abort.http_status));
            let status = status.ok_or_else(|| format!("{name}: {} is no status of an abort", abort.http_status))?;
            if abort.grpc_status.is_some_and(|status| !(1..=16).contains(&status)) {
                return Err(format!("{name}: its `grpcStatus` is none of a failed call"));
            }
            let share = share(&name, part(abort.percent, abort.fraction.as_ref()))?;
            Ok::<_, String>((Abort { status, grpc: abort.grpc_status }, share))
        });
        Ok(Self {
            matches: Matches::read(&fault.matches)?,
            delay: delay.transpose()?,
            abort: abort.transpose()?,
            name: name.into(),
        })
    }
}

fn share(name: &str, (part, whole): (u32, u32)) -> Result<Share, String> {
    match whole != 0 && part <= whole {
        true => Ok(Share { part, whole }),
        false => Err(format!("{name}: {part} of {whole} is no part of all requests")),
    }
}
