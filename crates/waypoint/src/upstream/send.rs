//! Sending a request, or opening a connection, to one of the endpoints.

use std::{sync::Arc, time::Instant};

use ambit_mesh::View;
use http::{Method, Request, Response, request};
use http_body::Body as _;
use hyper::body::Incoming;

use super::{
    Body, Protocol, Stream, Trail,
    connect::connect,
    connections::{Reached, Upstreams},
    error::{Broken, Error, describe, is_refused},
};
use crate::{
    balance::Endpoint,
    destination::{Aim, InFlight},
    limits::MAX_ENDPOINT_TRIES,
    record::{Entry, micros_since},
    request::is_grpc,
    respond,
    route::Way,
    session::Session,
};

/// Sends a request to an endpoint of the session's target, one that hasn't had it before if there is one, and waits for the
/// response's head.
///
/// # Errors
/// When no endpoint can be reached, or the one that was reached gave no answer and the request can't be repeated.
pub(crate) async fn send(
    session: &Session,
    view: &View,
    way: &Way,
    protocol: Protocol,
    mut request: Request<Body>,
    trail: &mut Trail,
    entry: &mut Entry,
) -> Result<(Response<Incoming>, InFlight), Error> {
    trail.begin();
    let aim = Aim::request(session, view, way, &request)?;
    let mut permit = aim.cluster().map(|cluster| cluster.request()).transpose()?.flatten();
    let mut may_reuse = true;
    loop {
        let Reached { endpoint, mut sender, reused, on } =
            Upstreams::reach(session, view, &aim, protocol, may_reuse, trail, entry).await?;
        entry.endpoint(&endpoint);
        trail.given(&endpoint);
        let lease = on.as_ref().map(|on| Arc::clone(on.lease()));
        let mut in_flight = InFlight::new(&session.shared, &endpoint, on, permit.take());
        let is_call = endpoint.host.is_some() && is_grpc(request.headers());
        // Only a connection that was idle can turn out to have been closed meanwhile.
        let spare = if reused { Spare::of(&request) } else { None };
        let start = Instant::now();
        let failure = match sender.send(request).await {
            Ok(response) => {
                entry.answered(micros_since(start));
                in_flight.answered(&response, is_call);
                session.upstreams.put_back(endpoint, sender, lease);
                return Ok((response, in_flight));
            }
            Err(failure) => failure,
        };
        let reason = describe(&failure.error);
        // Hyper's word for errors of the body it was given to send.
        if failure.error.is_user() {
            return Err(Error::Request { reason });
        }
        let refused = is_refused(&failure.error);
        let broken = Broken::of(&failure.error);
        let error = Error::Exchange { address: endpoint.address, reason, refused, broken };
        request = match (reused, failure.unsent, spare) {
            (true, Some(unsent), _) => unsent,
            (true, None, Some(spare)) => spare.restore(),
            _ => {
                if let Some(host) = &endpoint.host {
                    host.failed();
                }
                return Err(error);
            }
        };
        may_reuse = false;
        permit = in_flight.into_permit();
    }
}

/// Opens a byte stream to one of the target's endpoints.
///
/// # Errors
/// When none of the tried ones can be reached.
pub(crate) async fn open(
    session: &Session,
    view: &View,
    way: &Way,
    entry: &mut Entry,
) -> Result<(Endpoint, Stream, InFlight), Error> {
    let aim = Aim::connection(session, view, way)?;
    let slot = aim.cluster().map(|cluster| cluster.room()).transpose()?;
    let mut tried = Vec::new();
    let mut last = None;
    while tried.len() < MAX_ENDPOINT_TRIES {
        let Some(endpoint) = session.pick(view, &aim, &tried) else { break };
        match connect(session, &aim, &endpoint, entry).await {
            Ok(stream) => {
                if let Some(host) = &endpoint.host {
                    host.reached();
                }
                let in_flight = InFlight::connection(&session.shared, &endpoint, &aim, slot);
                return Ok((endpoint, stream, in_flight));
            }
            Err(error) => last = Some(error),
        }
        tried.push(endpoint.address);
    }
    Err(last.unwrap_or_else(|| session.no_endpoint(way)))
}

/// A request that may be sent again: it has no body, and doing it twice is doing it once.
struct Spare(request::Parts);

// === impl Spare ===

impl Spare {
    fn of(request: &Request<Body>) -> Option<Self> {
        let idempotent = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE];
        if !request.body().is_end_stream() || !idempotent.contains(request.method()) {
            return None;
        }
        let (mut head, ()) = Request::new(()).into_parts();
        head.method = request.method().clone();
        head.uri = request.uri().clone();
        head.version = request.version();
        head.headers = request.headers().clone();
        Some(Self(head))
    }

    fn restore(self) -> Request<Body> {
        Request::from_parts(self.0, respond::empty())
    }
}
