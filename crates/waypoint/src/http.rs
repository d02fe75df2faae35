//! The way of one request (`spec/waypoint.md` 5.2, 5.8).

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use ambit_mesh::{View, view::traffic::RetryBudget};
use ambit_xds::workload::AppProtocol;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use tokio::time::Sleep;

use crate::{
    authn, custom,
    destination::{self, InFlight},
    limits::{DISCARD_TIMEOUT, MAX_DISCARDED_BODY_BYTES, SHORT_BODY_BYTES},
    operators::{Meters, Tally, begin_span},
    record::{Entry, micros_since, refusal},
    request::{self, Checked},
    respond::{self, Style},
    route,
    session::{Question, Session},
    upgrade::{self, Switch},
    upstream::{self, Body, Broken, Protocol},
};

pub(crate) const HTTP1: &str = "HTTP/1.1";
const HTTP2: &str = "HTTP/2";

/// A response's body on its way to the client.
struct Guarded {
    body: Incoming,
    /// Ends when a change of policy denies the request.
    revoked: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// A gRPC call over HTTP/2, which is told by its own status that it is no longer allowed.
    call: Option<Arc<Meters>>,
    /// Ends when the response takes longer than its route allows.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Counts the request when this is dropped.
    tally: Option<Tally>,
    /// Nothing more will come of it.
    has_ended: bool,
    in_flight: InFlight,
}

/// An allowed request.
pub(crate) struct Allowed {
    pub(crate) session: Arc<Session>,
    pub(crate) view: Arc<View>,
    pub(crate) checked: Checked,
    pub(crate) protocol: Protocol,
    pub(crate) style: Style,
    label: &'static str,
    /// The service's own budget of retries, if it has one.
    pub(crate) retry_budget: Option<Arc<RetryBudget>>,
    /// What a provider of CUSTOM policies was sent of its body.
    pub(crate) read_ahead: Option<custom::ReadAhead>,
    /// When its response must have ended, if a route says so.
    pub(crate) deadline: Option<Instant>,
}

#[derive(Debug, thiserror::Error)]
#[error("the request is no longer allowed")]
struct Revoked;

#[derive(Debug, thiserror::Error)]
#[error("the response took longer than its route allows")]
struct TooLate;

/// Answers a request.
pub(crate) async fn answer(
    session: Arc<Session>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let label = if request.version() == Version::HTTP_2 { HTTP2 } else { HTTP1 };
    let mut style = Style::of(request.method(), request.headers());
    let mut entry = session.entry(label);
    entry.request(request.method(), request.uri().path());
    entry.carries(style.grpc, request.body().size_hint().exact());
    if entry.is_watched() {
        note_head(&request, &mut entry);
    }
    let checked = match request::check(&request) {
        Ok(checked) => checked,
        Err(rejected) => {
            style.close = must_close(&mut request).await;
            session.shared.refusals.add(rejected.refusal);
            entry.decided(&refusal(rejected.refusal.reason()), None);
            let response = match rejected.status {
                StatusCode::FORBIDDEN => respond::denied(style),
                status => respond::text(status, status.canonical_reason().unwrap_or_default(), style),
            };
            return Ok(recorded(entry, response));
        }
    };
    let start = Instant::now();
    let standing = match session.standing() {
        Ok(standing) => standing,
        Err(refusal) => {
            style.close = must_close(&mut request).await;
            entry.decided(&refusal, Some(micros_since(start)));
            return Ok(recorded(entry, respond::unavailable(style)));
        }
    };
    if let Some(tracing) = &standing.tracing {
        begin_span(&session, tracing, &mut request, &mut entry);
    }
    if entry.is_watched() {
        // Only now: policies judge what the client sent.
        request.headers_mut().entry("x-request-id").or_insert_with(|| session.shared.random.request_id());
        note_head(&request, &mut entry);
    }
    let (standing, checked, passed) = if standing.has_custom() {
        match Box::pin(custom::authorize(&session, standing, checked, &mut request, &mut entry)).await {
            Ok((standing, checked, passed)) => (standing, checked, Some(passed)),
            Err(refused) => {
                style.close = must_close(&mut request).await;
                entry.flag("UAEX");
                return Ok(recorded(entry, refused.response(style)));
            }
        }
    } else {
        (standing, checked, None)
    };
    let mut checked = checked;
    if let Some(authentication) = &standing.authentication {
        let verified = &session.shared.verified_tokens;
        if let Err(refused) = authn::authenticate(authentication, verified, &mut request, &mut checked) {
            style.close = must_close(&mut request).await;
            entry.decided(&refused.decision(), None);
            return Ok(recorded(entry, refused.response(style)));
        }
    }
    let start = Instant::now();
    checked.client_certificate.clone_from(&standing.client_certificate);
    let decision = standing.decide(&checked);
    entry.decided(&decision, Some(micros_since(start)));
    standing.observe(Some(&checked), checked.approvals(), &mut entry);
    if !decision.is_allowed() {
        style.close = must_close(&mut request).await;
        return Ok(recorded(entry, respond::denied(style)));
    }
    let standing = match standing.traffic.clone() {
        None => standing,
        Some(traffic) => match traffic.enforce(&session, standing, &checked, &mut entry).await {
            Ok(standing) => standing,
            Err(refused) => {
                style.close = must_close(&mut request).await;
                return Ok(recorded(entry, refused.response(style)));
            }
        },
    };
    let protocol = match (standing.protocol, request.version()) {
        (AppProtocol::Http2 | AppProtocol::Grpc, _) | (AppProtocol::Unknown, Version::HTTP_2) => Protocol::Http2,
        _ => Protocol::Http1,
    };
    let protocol = destination::protocol(&session, &standing.view, &route::Way::Target, protocol, &request);
    let (read_ahead, to_client) = passed.map_or((None, None), custom::Passed::parts);
    let table = standing.routes.as_ref().and_then(|routes| {
        let client_namespace = session.client.identity.namespace();
        routes.http(client_namespace, session.target.address.port()).cloned()
    });
    let retry_budget = standing.retry_budget.clone();
    let allowed = Allowed {
        view: standing.view,
        session,
        checked,
        protocol,
        style,
        label,
        retry_budget,
        read_ahead,
        deadline: None,
    };
    let mut response = match table {
        None => allowed.forward(request, entry).await,
        Some(table) => Box::pin(route::serve(allowed, &table, request, entry)).await,
    };
    if let Some(to_client) = to_client {
        to_client.apply(response.headers_mut());
    }
    Ok(response)
}

/// Notes the head of a request that somebody wants to hear of when it has ended.
fn note_head(request: &Request<Incoming>, entry: &mut Entry) {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = request.uri().authority().map(http::uri::Authority::as_str).or(host).unwrap_or_default();
    entry.head(authority, request.headers());
}

/// Short bodies are gone before a change of policy matters to them.
pub(crate) fn is_short(body: &Incoming) -> bool {
    body.size_hint().upper().is_some_and(|bytes| bytes <= SHORT_BODY_BYTES)
}

pub(crate) fn recorded(entry: Entry, response: Response<Body>) -> Response<Body> {
    let response = entry.answer(response);
    entry.finish_with(&response);
    response
}

/// Whether the connection has to end after a refusal because the request's body stands in the way of the next
/// request. A body that is short and already there is thrown away instead.
pub(crate) async fn must_close(request: &mut Request<Incoming>) -> bool {
    if request.version() == Version::HTTP_2 || request.body().is_end_stream() {
        return false;
    }
    // A client that waits for "100 Continue" doesn't get to send its body.
    if request.headers().contains_key(header::EXPECT) {
        return true;
    }
    let body = request.body_mut();
    let discard = async {
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > MAX_DISCARDED_BODY_BYTES {
                return false;
            }
        }
        true
    };
    !tokio::time::timeout(DISCARD_TIMEOUT, discard).await.unwrap_or(false)
}

// === impl Allowed ===

impl Allowed {
    #[expect(clippy::manual_async_fn, reason = "an async fn would hold its kilobyte of arguments twice")]
    fn forward(
        mut self,
        mut request: Request<Incoming>,
        mut entry: Entry,
    ) -> impl Future<Output = Response<Body>> + Send {
        async move {
            let asked =
                request::upgrade(&request).filter(|_| self.protocol == Protocol::Http1 && self.read_ahead.is_none());
            let client = asked.is_some().then(|| hyper::upgrade::on(&mut request));
            self.style.close = request.version() < Version::HTTP_2 && !request.body().is_end_stream();
            let has_body = self.read_ahead.is_some() || !request.body().is_end_stream();
            let (head, body) = request.into_parts();
            let random = &self.session.shared.random;
            let switches = asked.is_some();
            let mut head = request::forwarded(head, &self.checked, self.protocol, asked, || random.request_id());
            if has_body && self.protocol == Protocol::Http1 && !head.headers.contains_key(header::CONTENT_LENGTH) {
                // Also for methods that seldom have a body.
                head.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            let long = !is_short(&body);
            let body = match self.read_ahead.take() {
                None if !has_body => respond::empty(),
                None => entry.counting(body),
                Some(read_ahead) => entry.counting(read_ahead.into_body(body)),
            };
            let request = Request::from_parts(head, body);
            let sent = route::send(&self, request, has_body, switches, &mut entry);
            let sent = if long {
                let question = Question::Request(Box::new(self.checked.clone()));
                tokio::select! {
                    sent = sent => Ok(sent),
                    decision = self.session.denied(&question) => Err(decision),
                }
            } else {
                Ok(sent.await)
            };
            let sent = match sent {
                Ok(sent) => sent,
                Err(decision) => {
                    entry.decided(&decision, None);
                    return recorded(entry, respond::denied(self.style));
                }
            };
            match sent {
                Ok((response, in_flight)) => self.answered(response, in_flight, client, entry),
                Err(error) => self.failed(&error, entry),
            }
        }
    }

    /// The answer where no endpoint gave one.
    pub(crate) fn failed(&self, error: &upstream::Error, mut entry: Entry) -> Response<Body> {
        entry.failed(&error.to_string());
        entry.flag(error.flag());
        let response = match error {
            // Cut off by the drain's deadline, a request isn't its client's fault.
            upstream::Error::Request { .. } if !self.session.shared.drain.is_cancelled() => {
                respond::text(StatusCode::BAD_REQUEST, "Bad Request", self.style)
            }
            _ => respond::unavailable(self.style),
        };
        recorded(entry, response)
    }

    /// An endpoint's answer, on its way to the client. `client` is the connection that was asked to switch protocols.
    pub(crate) fn answered(
        self,
        mut response: Response<Incoming>,
        in_flight: InFlight,
        client: Option<OnUpgrade>,
        mut entry: Entry,
    ) -> Response<Body> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client) = client else {
                entry.failed("the endpoint switched protocols without being asked");
                return recorded(entry, respond::unavailable(self.style));
            };
            let upstream = hyper::upgrade::on(&mut response);
            let tally = entry.finish_streaming(&response);
            let switch = Switch { client, upstream, in_flight, tally };
            return upgrade::switch(&self.session, self.checked, switch, response);
        }
        request::strip_hop_by_hop(response.headers_mut());
        let tally = entry.finish_streaming(&response);
        response.map(|body| self.guard(body, in_flight, tally))
    }

    /// A long response ends when the request is no longer allowed.
    fn guard(self, body: Incoming, in_flight: InFlight, tally: Option<Tally>) -> Body {
        let deadline = self.deadline.filter(|_| !body.is_end_stream());
        let deadline = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline.into())));
        let call = (self.style.grpc && self.label == HTTP2).then(|| Arc::clone(&self.session.meters));
        let revoked = (!is_short(&body)).then(|| {
            let question = Question::Request(Box::new(self.checked));
            Box::pin(self.session.revoked(question, self.label)) as _
        });
        Guarded { body, revoked, call, deadline, tally, has_ended: false, in_flight }.boxed_unsync()
    }
}

// === impl Guarded ===

impl Guarded {
    /// What its client gets instead of the rest. Only trailers can't be taken for the rest; where there are none, it breaks off.
    fn revocation(&mut self) -> Result<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>> {
        let Some(meters) = &self.call else { return Err(Box::new(Revoked)) };
        let frame = Frame::trailers(respond::denied_trailers(meters.denial().as_deref()));
        if let Some(tally) = &mut self.tally {
            tally.frame(&frame);
        }
        Ok(frame)
    }
}

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if let Some(revoked) = &mut self.revoked
            && revoked.as_mut().poll(cx).is_ready()
        {
            self.revoked = None;
            self.has_ended = true;
            return Poll::Ready(Some(self.revocation()));
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            (self.deadline, self.has_ended) = (None, true);
            if let Some(tally) = &mut self.tally {
                tally.flag("UT");
            }
            return Poll::Ready(Some(Err(Box::new(TooLate))));
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                let is_last = frame.is_trailers();
                if let Some(trailers) = frame.trailers_ref() {
                    self.in_flight.ended(trailers);
                }
                if let Some(tally) = &mut self.tally {
                    tally.frame(frame);
                }
                self.has_ended |= is_last;
            }
            Poll::Ready(Some(Err(error))) => {
                self.has_ended = true;
                self.in_flight.broke_off();
                if let Some(tally) = &mut self.tally {
                    tally.flag(Broken::of(error).flag());
                }
            }
            Poll::Ready(None) => self.has_ended = true,
            Poll::Pending => {}
        }
        polled.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Guarded {
    /// A response that nobody waits for any more: its client has gone away.
    fn drop(&mut self) {
        if !self.has_ended
            && !self.body.is_end_stream()
            && let Some(tally) = &mut self.tally
        {
            tally.flag("DC");
        }
    }
}
