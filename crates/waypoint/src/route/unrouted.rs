//! Requests that no route is for are tried again as Istio tries them (`spec/waypoint.md` 5.3): twice, where the endpoint
//! couldn't be reached or refused the stream, and where a gRPC call is answered "unavailable" or "cancelled" before it has
//! said anything. No status of HTTP is worth another try, nor is a connection that broke off after the request was sent:
//! nobody knows what the endpoint did.

use std::time::{Duration, Instant};

use ::http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use ambit_mesh::view::routes::{DEFAULT_BACKOFF, DEFAULT_RETRIES};
use hyper::body::Incoming;

use super::{attempt::is_grpc_retriable, budget::Budget, replay::Replay, way::Way};
use crate::{
    destination::{self, InFlight},
    http::Allowed,
    limits::{MAX_BACKOFF_FACTOR, MAX_CONNECT_RETRY_TIME},
    random::Random,
    record::Entry,
    request, respond,
    upstream::{self, Body, Error, Protocol, Trail},
};

/// Sends a request to its target, several times if need be.
///
/// # Errors
/// When no endpoint gave an answer.
pub(crate) async fn send(
    allowed: &Allowed,
    request: Request<Body>,
    has_body: bool,
    switches: bool,
    entry: &mut Entry,
) -> Result<(Response<Incoming>, InFlight), Error> {
    let Allowed { session, view, protocol, .. } = allowed;
    let started = Instant::now();
    let mut trail = Trail::default();
    let budget = Budget::of_target(session, allowed.retry_budget.as_ref());
    if let Some(budget) = &budget {
        budget.request(started);
    }
    // A body is kept for another try only where a stream can be refused.
    let repeatable = !switches && (!has_body || *protocol == Protocol::Http2) && is_plain(allowed);
    let Some(budget) = budget.filter(|_| repeatable) else {
        return upstream::send(session, view, &Way::Target, *protocol, request, &mut trail, entry).await;
    };
    let id = request.headers().get(X_REQUEST_ID).cloned();
    let context = entry.has_context().then(|| trace_context(request.headers()));
    let (request, replay) = if has_body {
        let (head, body) = request.into_parts();
        let replay = Replay::new(body);
        (Request::from_parts(head, replay.body()), Some(replay))
    } else {
        (request, None)
    };
    let sent = upstream::send(session, view, &Way::Target, *protocol, request, &mut trail, entry).await;
    if !is_worth_another_try(allowed, &sent, started) {
        return sent;
    }
    Box::pin(again(allowed, sent, Again { budget, replay, id, context, trail, started }, entry)).await
}

/// What further tries need.
struct Again<'a> {
    budget: Budget<'a>,
    replay: Option<Replay>,
    /// One identifier for all of them.
    id: Option<HeaderValue>,
    /// Their place in a trace, if the waypoint gave them one.
    context: Option<HeaderMap>,
    /// Who has had it already.
    trail: Trail,
    started: Instant,
}

type Sent = Result<(Response<Incoming>, InFlight), Error>;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACE_CONTEXT: [HeaderName; 2] = [HeaderName::from_static("traceparent"), HeaderName::from_static("tracestate")];

fn trace_context(headers: &HeaderMap) -> HeaderMap {
    let mut context = HeaderMap::new();
    for name in TRACE_CONTEXT {
        for value in headers.get_all(&name) {
            context.append(name.clone(), value.clone());
        }
    }
    context
}

async fn again(allowed: &Allowed, first: Sent, again: Again<'_>, entry: &mut Entry) -> Sent {
    let Allowed { session, view, protocol, .. } = allowed;
    let Again { budget, replay, id, context, mut trail, started } = again;
    let random = &session.shared.random;
    let mut sent = first;
    let mut counted = None;
    let mut used_up = true;
    for tries in 0..DEFAULT_RETRIES {
        let worth_it = is_worth_another_try(allowed, &sent, started)
            && replay.as_ref().is_none_or(Replay::is_whole)
            && budget.take();
        if !worth_it {
            used_up = false;
            break;
        }
        drop(counted.take());
        counted = destination::retry(session, view, &Way::Target);
        if counted.is_none() {
            used_up = false;
            break;
        }
        // Counted no longer while it waits.
        drop(sent);
        tokio::time::sleep(backoff(DEFAULT_BACKOFF, tries, random)).await;
        let body = replay.as_ref().map_or_else(respond::empty, Replay::body);
        let request = rebuilt(allowed, id.clone(), context.as_ref(), body);
        sent = upstream::send(session, view, &Way::Target, *protocol, request, &mut trail, entry).await;
    }
    if used_up && is_worth_another_try(allowed, &sent, started) {
        entry.exhausted();
    }
    sent
}

/// The same request, made of the facts that were judged: most requests are answered at once, and no copy is made of them.
fn rebuilt(allowed: &Allowed, id: Option<HeaderValue>, context: Option<&HeaderMap>, body: Body) -> Request<Body> {
    let checked = &allowed.checked;
    let (mut head, ()) = Request::new(()).into_parts();
    head.method = checked.method.clone();
    head.version = checked.version;
    head.headers = checked.headers.clone();
    if let Some(id) = id {
        head.headers.insert(X_REQUEST_ID, id);
    }
    if let Some(context) = context {
        TRACE_CONTEXT.iter().for_each(|name| drop(head.headers.remove(name)));
        head.headers.extend(context.clone());
    }
    let random = &allowed.session.shared.random;
    Request::from_parts(request::forwarded(head, checked, allowed.protocol, None, || random.request_id()), body)
}

/// False for a request whose `Connection` header names others: what becomes of those was decided when it was first sent.
fn is_plain(allowed: &Allowed) -> bool {
    let mut lines = allowed.checked.headers.get_all(header::CONNECTION).iter();
    lines.all(|line| ["keep-alive", "close"].iter().any(|plain| line.as_bytes().eq_ignore_ascii_case(plain.as_bytes())))
}

fn is_worth_another_try(allowed: &Allowed, sent: &Sent, started: Instant) -> bool {
    match sent {
        Ok((response, _)) => request::is_grpc(&allowed.checked.headers) && is_grpc_retriable(response),
        Err(Error::Exchange { refused, .. }) => *refused,
        // Each try has its own time to connect: a client isn't kept waiting for several of them.
        Err(Error::Connect { .. }) => started.elapsed() < MAX_CONNECT_RETRY_TIME,
        Err(_) => false,
    }
}

/// Twice as long each time, up to a bound, plus up to half of that at random.
pub(super) fn backoff(shortest: Duration, tries: u32, random: &Random) -> Duration {
    let factor = 2u32.saturating_pow(tries).min(MAX_BACKOFF_FACTOR);
    let shortest = shortest.saturating_mul(factor);
    let half = usize::try_from(shortest.as_micros() / 2).unwrap_or(usize::MAX);
    shortest.saturating_add(Duration::from_micros(random.below(half) as u64))
}
