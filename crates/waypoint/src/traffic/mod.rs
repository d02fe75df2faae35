//! TrafficPolicies: rate limits, and faults made on purpose, for requests that policies allow (docs/traffic-policy.md).
//!
//! A rate limit costs a request one atomic exchange where it goes by clients: the bucket of a session's client is looked up
//! once per configuration. Limits that go by a header look their bucket up under a lock that only new keys hold alone.

use std::{
    iter,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use ambit_mesh::view::{
    routes::RequestLine,
    traffic::{Abort, Bucket, Fault, LimitKey, RateLimit, ServiceTraffic, Share},
};
use ambit_policy::Decision;
use http::{HeaderValue, Response, StatusCode, header};

use crate::{
    random::Random,
    record::Entry,
    request::Checked,
    respond::{self, Style},
    session::{Session, Standing},
    upstream::Body,
};

/// What is in force for one session.
#[derive(Debug)]
pub(crate) struct Traffic {
    service: Arc<ServiceTraffic>,
    /// The bucket of the session's client for each limit of each policy, in order; nothing where a limit doesn't go by
    /// clients, and where there are too many of them now. Held, so that nobody takes them for idle.
    own: Box<[Option<Arc<Bucket>>]>,
}

/// Why a request goes nowhere.
#[derive(Debug)]
pub(crate) enum Refused {
    /// A rate limit is used up; so long until a token is there again.
    Limited(Duration),
    /// A fault was made.
    Aborted(Abort),
    /// While it waited, the configuration changed so that it is no longer allowed.
    Denied,
    /// While it waited, the service went.
    Unavailable,
}

/// Envoy's text for a request that a local rate limit refuses.
const LIMITED: &str = "local_rate_limited";
/// Envoy's text for a request that a fault ends.
const ABORTED: &str = "fault filter abort";
/// gRPC's `RESOURCE_EXHAUSTED`: unlike `UNAVAILABLE` it doesn't ask to be tried again at once.
const RESOURCE_EXHAUSTED: u16 = 8;

/// When counting began.
static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

// === impl Traffic ===

impl Traffic {
    /// What is in force for this client.
    pub(crate) fn of(service: &Arc<ServiceTraffic>, session: &Session) -> Self {
        let now = now();
        let limits = service.policies.iter().flat_map(|policy| policy.limits.iter());
        let own = limits.map(|limit| match limit.key {
            LimitKey::Principal => bucket_of_client(limit, session, now),
            LimitKey::Header(_) | LimitKey::All => None,
        });
        Self { service: Arc::clone(service), own: own.collect() }
    }

    /// Lets a request through when every limit that counts it has a token, and no fault befalls it. Who had to wait goes on
    /// under the configuration of after that.
    ///
    /// # Errors
    /// Why it goes nowhere.
    pub(crate) async fn enforce(
        &self,
        session: &Session,
        standing: Standing,
        checked: &Checked,
        entry: &mut Entry,
    ) -> Result<Standing, Refused> {
        let line = RequestLine {
            method: &checked.method,
            target: checked.target.as_str(),
            authority: checked.authority.as_str(),
            headers: &checked.headers,
        };
        if let Err((limit, wait)) = self.take(session, &line) {
            entry.decided(&Decision::deny(Arc::clone(&limit.refusal)), None);
            entry.flag("RL");
            return Err(Refused::Limited(wait));
        }
        let mut faults = self.service.policies.iter().flat_map(|policy| policy.faults.iter());
        let Some(fault) = faults.find(|fault| fault.matches.hold(&line)) else { return Ok(standing) };
        let random = &session.shared.random;
        let mut standing = standing;
        let mut waited = false;
        if let Some((delay, share)) = fault.delay
            && befalls(share, random)
            && let Ok(_place) = session.shared.delayed.try_acquire()
        {
            waited = true;
            entry.flag("DI");
            entry.also(&format!("{} delayed it by {} ms", fault.name, delay.as_millis()));
            standing = Box::pin(after(delay, session, checked, entry)).await?;
        }
        match fault.abort.filter(|(_, share)| befalls(*share, random)) {
            None => Ok(standing),
            Some((abort, _)) => Err(aborted(fault, abort, waited, entry)),
        }
    }

    /// Takes a token of every limit that counts the request; on the first that has none it stops.
    fn take(&self, session: &Session, line: &RequestLine<'_>) -> Result<(), (&RateLimit, Duration)> {
        let limits = self.service.policies.iter().flat_map(|policy| policy.limits.iter());
        let mut time = None;
        for (limit, own) in limits.zip(&self.own) {
            if !limit.counts(line) {
                continue;
            }
            let now = *time.get_or_insert_with(now);
            let looked_up = match (&limit.key, own) {
                (LimitKey::All, _) | (LimitKey::Principal, Some(_)) => None,
                (LimitKey::Principal, None) => bucket_of_client(limit, session, now),
                (LimitKey::Header(name), _) => {
                    let lines = line.headers.get_all(name).iter().map(HeaderValue::as_bytes);
                    limit.buckets.of(lines, now)
                }
            };
            let bucket = own.as_deref().or(looked_up.as_deref()).unwrap_or_else(|| limit.buckets.shared());
            bucket.take(limit.buckets.rate(), now).map_err(|wait| (limit, wait))?;
        }
        Ok(())
    }
}

fn bucket_of_client(limit: &RateLimit, session: &Session, now: u64) -> Option<Arc<Bucket>> {
    limit.buckets.of(iter::once(session.client.identity.to_string().as_bytes()), now)
}

/// Nanoseconds since counting began: enough for centuries.
fn now() -> u64 {
    u64::try_from(BEGINNING.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn befalls(share: Share, random: &Random) -> bool {
    share.part >= share.whole || (share.part > 0 && random.below(share.whole as usize) < share.part as usize)
}

/// What is in force for a request when it has waited, if that still allows it. A drain cuts the wait short.
async fn after(delay: Duration, session: &Session, checked: &Checked, entry: &mut Entry) -> Result<Standing, Refused> {
    let _ = tokio::time::timeout(delay, session.shared.drain.cancelled()).await;
    match session.standing() {
        Err(refusal) => {
            entry.decided(&refusal, None);
            Err(Refused::Unavailable)
        }
        Ok(standing) => {
            let decision = standing.decide(checked);
            if decision.is_allowed() {
                return Ok(standing);
            }
            entry.decided(&decision, None);
            Err(Refused::Denied)
        }
    }
}

fn aborted(fault: &Fault, abort: Abort, waited: bool, entry: &mut Entry) -> Refused {
    entry.flag(if waited { "DI,FI" } else { "FI" });
    entry.also(&format!("{} aborted it", fault.name));
    Refused::Aborted(abort)
}

// === impl Refused ===

impl Refused {
    /// What the client is told.
    pub(crate) fn response(self, style: Style) -> Response<Body> {
        match self {
            Self::Limited(wait) => {
                let mut response = respond::text(StatusCode::TOO_MANY_REQUESTS, LIMITED, style);
                let headers = response.headers_mut();
                // Whole seconds, and never so few that it would be too early.
                let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
                headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
                if style.grpc {
                    headers.insert("grpc-status", HeaderValue::from(RESOURCE_EXHAUSTED));
                }
                response
            }
            Self::Aborted(abort) => {
                let mut response = respond::text(abort.status, ABORTED, style);
                if let (true, Some(status)) = (style.grpc, abort.grpc) {
                    response.headers_mut().insert("grpc-status", HeaderValue::from(status));
                }
                response
            }
            Self::Denied => respond::denied(style),
            Self::Unavailable => respond::unavailable(style),
        }
    }
}
