//! Routes: what is done with a request or connection that policies allow.
//!
//! Policies have judged the request as it was addressed and sent; a route may change it after that, and lead it to other
//! services. It doesn't lead around their policies: what another namespace's service gets through its own waypoint is
//! judged there, and what it would get from this one is judged here, as it will be sent (see [`way`]).
//! A route that can't be followed is answered 500; nothing of a request goes where it wasn't meant to.

mod attempt;
mod budget;
mod cors;
mod edit;
mod mirror;
mod redirect;
mod replay;
mod server_name;
mod stream;
mod unrouted;
mod way;

use std::{sync::Arc, time::Instant};

use ::http::{Request, Response, StatusCode, Version, header};
use ambit_mesh::view::routes::{Backend, HttpTable, Matched, RequestLine};
use http_body::Body as _;
use hyper::body::Incoming;

use self::{attempt::Attempts, way::Leads};
pub(crate) use self::{
    budget::Budgets,
    server_name::{heard, server_name},
    stream::{needs_server_name, open, way_of},
    unrouted::send,
    way::Way,
};
use crate::{
    destination,
    http::{Allowed, is_short, must_close, recorded},
    random::Random,
    record::Entry,
    request, respond,
    upstream::{Body, Protocol},
};

/// Does what the routes say with an allowed request.
pub(crate) async fn serve(
    mut allowed: Allowed,
    table: &HttpTable,
    mut request: Request<Incoming>,
    entry: Entry,
) -> Response<Body> {
    let line = RequestLine {
        method: &allowed.checked.method,
        target: allowed.checked.target.as_str(),
        authority: allowed.checked.authority.as_str(),
        headers: &allowed.checked.headers,
    };
    let found = match &table.closed {
        Some(reason) => Err((StatusCode::INTERNAL_SERVER_ERROR, reason.to_string())),
        None => table.find(&line).ok_or_else(|| (StatusCode::NOT_FOUND, "no route matches the request".to_owned())),
    };
    let found = found.and_then(|matched| match &matched.rule.fault {
        Some(fault) => Err((StatusCode::INTERNAL_SERVER_ERROR, format!("{}: {fault}", matched.rule.name))),
        None => Ok(matched),
    });
    let matched = match found {
        Ok(matched) => matched,
        Err((status, reason)) => return refuse(allowed, request, entry, status, &reason).await,
    };
    let cors = matched.rule.filters.cors.as_ref().map(|cors| cors::Crossing::of(cors, &allowed.checked));
    if let Some(answer) = cors.as_ref().and_then(cors::Crossing::preflight) {
        allowed.style.close = must_close(&mut request).await;
        return recorded(entry, respond::closing(answer, allowed.style));
    }
    if let Some(redirect) = &matched.rule.filters.redirect {
        allowed.style.close = must_close(&mut request).await;
        let port = allowed.session.target.address.port();
        let answer = match redirect::answer(redirect, &allowed.checked, matched.prefix, port) {
            Ok(answer) => respond::closing(answer, allowed.style),
            Err(()) => respond::text(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error", allowed.style),
        };
        return recorded(entry, answer);
    }
    let mut response = forward(allowed, matched, request, entry).await;
    if let Some(cors) = &cors {
        cors.apply(response.headers_mut());
    }
    response
}

/// A backend for the next request, each as often as its weight says; nothing if there is none.
pub(crate) fn choose<'a>(backends: &'a [Backend], random: &Random) -> Option<&'a Backend> {
    // INVARIANT: few backends with weights that fit in 20 bits.
    let total: usize = backends.iter().map(|backend| backend.weight as usize).sum();
    let mut left = if total == 0 { return None } else { random.below(total) };
    for backend in backends {
        match left.checked_sub(backend.weight as usize) {
            None => return Some(backend),
            Some(rest) => left = rest,
        }
    }
    None
}

async fn refuse(
    mut allowed: Allowed,
    mut request: Request<Incoming>,
    mut entry: Entry,
    status: StatusCode,
    reason: &str,
) -> Response<Body> {
    allowed.style.close = must_close(&mut request).await;
    entry.failed(reason);
    if status == StatusCode::NOT_FOUND {
        entry.flag("NR");
    }
    recorded(entry, respond::text(status, status.canonical_reason().unwrap_or_default(), allowed.style))
}

async fn forward(
    mut allowed: Allowed,
    matched: Matched<'_>,
    mut request: Request<Incoming>,
    mut entry: Entry,
) -> Response<Body> {
    let rule = matched.rule;
    entry.route(&rule.name);
    let shared = Arc::clone(&allowed.session.shared);
    let internal = StatusCode::INTERNAL_SERVER_ERROR;
    let Some(backend) = choose(&rule.backends, &shared.random) else {
        let reason = format!("{}: no backend has a share", rule.name);
        return refuse(allowed, request, entry, internal, &reason).await;
    };
    let changed = edit::changed(&allowed.checked, [&rule.filters, &backend.filters], matched.prefix);
    let leads = changed.map_err(|()| "the path can't be rewritten".to_owned()).and_then(|changed| {
        let to = backend.to.as_ref().map_err(ToString::to_string)?;
        Ok((way::resolve(&allowed.session, &allowed.view, to)?, changed))
    });
    let (Leads { way, protocol, judge }, changed) = match leads {
        Ok(leads) => leads,
        Err(reason) => return refuse(allowed, request, entry, internal, &format!("{}: {reason}", rule.name)).await,
    };
    if let Some(judge) = judge {
        let decision = judge.request(&allowed.session, changed.as_ref().unwrap_or(&allowed.checked));
        if !decision.is_allowed() {
            allowed.style.close = must_close(&mut request).await;
            entry.decided(&decision, None);
            return recorded(entry, respond::denied(allowed.style));
        }
    }
    allowed.protocol = match (protocol, request.version()) {
        (ambit_xds::workload::AppProtocol::Http2 | ambit_xds::workload::AppProtocol::Grpc, _)
        | (ambit_xds::workload::AppProtocol::Unknown, Version::HTTP_2) => Protocol::Http2,
        _ => Protocol::Http1,
    };
    allowed.protocol = destination::protocol(&allowed.session, &allowed.view, &way, allowed.protocol, &request);
    let asked =
        request::upgrade(&request).filter(|_| allowed.protocol == Protocol::Http1 && allowed.read_ahead.is_none());
    let client = asked.is_some().then(|| hyper::upgrade::on(&mut request));
    allowed.style.close = request.version() < Version::HTTP_2 && !request.body().is_end_stream();
    let has_body = allowed.read_ahead.is_some() || !request.body().is_end_stream();
    let long = !is_short(request.body());
    let (mut head, body) = request.into_parts();
    head.extensions.clear();
    let body = match allowed.read_ahead.take() {
        None => entry.counting(body),
        Some(read_ahead) => entry.counting(read_ahead.into_body(body)),
    };
    // One identifier for all tries and copies of a request.
    if !head.headers.contains_key("x-request-id") {
        head.headers.insert("x-request-id", shared.random.request_id());
    }
    let template = edit::Template { head, checked: changed, has_body, asked };
    let mirrors = [&rule.filters, &backend.filters];
    let body = mirror::tee(&allowed, &template, mirrors, body);
    allowed.deadline = rule.request_timeout.map(|timeout| Instant::now() + timeout);
    let deadline = allowed.deadline;
    let attempts = Attempts { allowed: &allowed, template: &template, way: &way, rule, deadline, long };
    let outcome = attempts.run(body, mirrors, &mut entry).await;
    let responses = [rule.filters.response_headers.as_ref(), backend.filters.response_headers.as_ref()];
    match outcome {
        attempt::Outcome::Answered(response, in_flight) => {
            let mut response = allowed.answered(response, in_flight, client, entry);
            responses.into_iter().flatten().for_each(|edits| edit::apply(edits, response.headers_mut()));
            response
        }
        attempt::Outcome::Failed(error) => allowed.failed(&error, entry),
        attempt::Outcome::TimedOut => {
            entry.failed(&format!("{}: no answer in time", rule.name));
            entry.flag("UT");
            let status = StatusCode::GATEWAY_TIMEOUT;
            recorded(entry, respond::text(status, "upstream request timeout", allowed.style))
        }
        attempt::Outcome::Denied(decision) => {
            entry.decided(&decision, None);
            recorded(entry, respond::denied(allowed.style))
        }
    }
}

/// True for headers that frame an HTTP/1.1 message.
fn is_framed(headers: &::http::HeaderMap) -> bool {
    headers.contains_key(header::CONTENT_LENGTH)
}
