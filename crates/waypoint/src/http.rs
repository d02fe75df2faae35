//! The HTTP servers inside of a tunnel, and the way of one request (`spec/waypoint.md` 5.2, 5.8).

use std::{
    convert::Infallible,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use ambit_mesh::{View, loads::InFlight};
use ambit_xds::workload::AppProtocol;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::{body::Incoming, server::conn, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    authn, custom,
    limits::{
        DISCARD_TIMEOUT, HTTP2_CONNECTION_WINDOW_BYTES, HTTP2_FRAME_BYTES, HTTP2_SEND_BUFFER_BYTES,
        HTTP2_STREAM_WINDOW_BYTES, MAX_DISCARDED_BODY_BYTES, MAX_HEADER_BYTES, MAX_HTTP1_BUFFER_BYTES,
        MAX_HTTP2_ERROR_RESETS, MAX_HTTP2_PENDING_RESETS, MAX_HTTP2_STREAMS, SHORT_BODY_BYTES,
    },
    operators::Tally,
    outgoing::Outgoing,
    record::{Entry, micros_since, refusal},
    refusals::Refusal,
    request::{self, Checked},
    respond::{self, Style},
    route::{self, Way},
    session::{Question, Session},
    strict::Strict,
    upgrade::{self, Switch},
    upstream::{self, Body, Protocol, boxed},
};

/// Serves HTTP/1.1 until the client or a drain ends it.
pub(crate) async fn serve_http1<S>(session: Arc<Session>, stream: S)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let drain = session.shared.drain.clone();
    let idle_timeout = session.shared.config.limits.idle_timeout;
    let unparsed = Arc::clone(&session);
    let stream = Strict::new(stream, Arc::clone(&session.shared));
    let (switching, reader) = (stream.state(), stream.state());
    let service = service_fn(move |request: Request<Incoming>| {
        let asked = request.headers().contains_key(header::UPGRADE).then(|| Arc::clone(&switching));
        let answer = answer(Arc::clone(&session), request);
        async move {
            let answer = answer.await;
            if let (Some(asked), Ok(response)) = (asked, &answer) {
                asked.answered(response.status() == StatusCode::SWITCHING_PROTOCOLS);
            }
            answer
        }
    });
    let connection = conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle_timeout)
        .max_header_size(MAX_HEADER_BYTES)
        .max_buf_size(MAX_HTTP1_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        if error.is_parse() {
            let mut entry = unparsed.entry(HTTP1);
            let (status, own) =
                if error.is_parse_too_large() { (431, Refusal::LargeHead) } else { (400, Refusal::MalformedHead) };
            let reason = match reader.refusal() {
                Some(refusal) => refusal.reason().to_owned(),
                None => {
                    unparsed.shared.refusals.add(own);
                    format!("the request can't be read: {error}")
                }
            };
            entry.decided(&refusal(&reason), None);
            entry.finish(Some(status));
        }
        tracing::debug!(service = %unparsed.target.name, %error, "HTTP/1.1 connection ended early");
    }
}

/// Serves HTTP/2 with prior knowledge until the client or a drain ends it.
pub(crate) async fn serve_http2<S>(session: Arc<Session>, stream: S)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let drain = session.shared.drain.clone();
    let tasks = session.shared.tasks.clone();
    let service_name = Arc::clone(&session.target.name);
    let stream = Outgoing::new(stream, Arc::clone(&session.shared));
    let service = service_fn(move |request| answer(Arc::clone(&session), request));
    let connection = conn::http2::Builder::new(tasks)
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_HTTP2_STREAMS)
        .max_pending_accept_reset_streams(MAX_HTTP2_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_HTTP2_ERROR_RESETS)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .max_header_list_size(MAX_HEADER_BYTES as u32)
        .max_send_buf_size(HTTP2_SEND_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(service = %service_name, %error, "HTTP/2 connection ended early");
    }
}

const HTTP1: &str = "HTTP/1.1";
const HTTP2: &str = "HTTP/2";

/// A response's body on its way to the client.
struct Guarded {
    body: Incoming,
    /// Ends when a change of policy denies the request.
    revoked: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Counts the request when this is dropped.
    tally: Option<Tally>,
    _in_flight: InFlight,
}

/// An allowed request.
pub(crate) struct Allowed {
    pub(crate) session: Arc<Session>,
    pub(crate) view: Arc<View>,
    pub(crate) checked: Checked,
    pub(crate) protocol: Protocol,
    pub(crate) style: Style,
    label: &'static str,
    /// What a provider of CUSTOM policies was sent of its body.
    pub(crate) read_ahead: Option<custom::ReadAhead>,
}

#[derive(Debug, thiserror::Error)]
#[error("the request is no longer allowed")]
struct Revoked;

async fn answer(session: Arc<Session>, mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let label = if request.version() == Version::HTTP_2 { HTTP2 } else { HTTP1 };
    let mut style = Style::of(request.method(), request.headers());
    let mut entry = session.entry(label);
    entry.request(request.method(), request.uri().path());
    entry.carries(style.grpc, request.body().size_hint().exact());
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
    let protocol = match (standing.protocol, request.version()) {
        (AppProtocol::Http2 | AppProtocol::Grpc, _) | (AppProtocol::Unknown, Version::HTTP_2) => Protocol::Http2,
        _ => Protocol::Http1,
    };
    let (read_ahead, to_client) = passed.map_or((None, None), custom::Passed::parts);
    let table = standing.routes.as_ref().and_then(|routes| {
        let client_namespace = session.client.identity.namespace();
        routes.http(client_namespace, session.target.address.port()).cloned()
    });
    let allowed = Allowed { view: standing.view, session, checked, protocol, style, label, read_ahead };
    let mut response = match table {
        None => allowed.forward(request, entry).await,
        Some(table) => Box::pin(route::serve(allowed, &table, request, entry)).await,
    };
    if let Some(to_client) = to_client {
        to_client.apply(response.headers_mut());
    }
    Ok(response)
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
    async fn forward(mut self, mut request: Request<Incoming>, mut entry: Entry) -> Response<Body> {
        let asked =
            request::upgrade(&request).filter(|_| self.protocol == Protocol::Http1 && self.read_ahead.is_none());
        let client = asked.is_some().then(|| hyper::upgrade::on(&mut request));
        self.style.close = request.version() < Version::HTTP_2 && !request.body().is_end_stream();
        let has_body = self.read_ahead.is_some() || !request.body().is_end_stream();
        let (head, body) = request.into_parts();
        let random = &self.session.shared.random;
        let mut head = request::forwarded(head, &self.checked, self.protocol, asked, || random.request_id());
        if has_body && self.protocol == Protocol::Http1 && !head.headers.contains_key(header::CONTENT_LENGTH) {
            // Also for methods that seldom have a body.
            head.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let long = !is_short(&body);
        let body = match self.read_ahead.take() {
            None if !has_body => respond::empty(),
            None => boxed(body),
            Some(read_ahead) => read_ahead.into_body(body),
        };
        let request = Request::from_parts(head, body);
        let sent = upstream::send(&self.session, &self.view, &Way::Target, self.protocol, request, &mut entry);
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
            let switch = Switch { client, upstream, in_flight };
            entry.finish(Some(StatusCode::SWITCHING_PROTOCOLS.as_u16()));
            return upgrade::switch(&self.session, self.checked, switch, response);
        }
        request::strip_hop_by_hop(response.headers_mut());
        let tally = entry.finish_streaming(&response);
        response.map(|body| self.guard(body, in_flight, tally))
    }

    /// A long response ends when the request is no longer allowed.
    fn guard(self, body: Incoming, in_flight: InFlight, tally: Option<Tally>) -> Body {
        let revoked = (!is_short(&body)).then(|| {
            let question = Question::Request(Box::new(self.checked));
            Box::pin(self.session.revoked(question, self.label)) as _
        });
        Guarded { body, revoked, tally, _in_flight: in_flight }.boxed_unsync()
    }
}

// === impl Guarded ===

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
            return Poll::Ready(Some(Err(Box::new(Revoked))));
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let (Poll::Ready(Some(Ok(frame))), Some(tally)) = (&polled, &mut self.tally) {
            tally.frame(frame);
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
