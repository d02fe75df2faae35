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
use hyper::{body::Incoming, server::conn, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    limits::{
        DISCARD_TIMEOUT, HTTP2_CONNECTION_WINDOW_BYTES, HTTP2_FRAME_BYTES, HTTP2_SEND_BUFFER_BYTES,
        HTTP2_STREAM_WINDOW_BYTES, MAX_DISCARDED_BODY_BYTES, MAX_HEADER_BYTES, MAX_HTTP1_BUFFER_BYTES,
        MAX_HTTP2_ERROR_RESETS, MAX_HTTP2_PENDING_RESETS, MAX_HTTP2_STREAMS, SHORT_BODY_BYTES,
    },
    record::{Entry, micros_since, refusal},
    request::{self, Checked},
    respond::{self, Style},
    session::{Question, Session},
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
    let service = service_fn(move |request| answer(Arc::clone(&session), request));
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
            entry.decided(&refusal(&format!("the request can't be read: {error}")), None);
            let status = if error.is_parse_too_large() { 431 } else { 400 };
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
    _in_flight: InFlight,
}

/// An allowed request.
struct Allowed {
    session: Arc<Session>,
    view: Arc<View>,
    checked: Checked,
    protocol: Protocol,
    style: Style,
    label: &'static str,
}

#[derive(Debug, thiserror::Error)]
#[error("the request is no longer allowed")]
struct Revoked;

async fn answer(session: Arc<Session>, mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let label = if request.version() == Version::HTTP_2 { HTTP2 } else { HTTP1 };
    let mut style = Style::of(request.method(), request.headers());
    let mut entry = session.entry(label);
    entry.request(request.method(), request.uri().path());
    let checked = match request::check(&request) {
        Ok(checked) => checked,
        Err(rejected) => {
            style.close = must_close(&mut request).await;
            entry.decided(&refusal(rejected.reason), None);
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
    let decision = standing.decide(&checked);
    entry.decided(&decision, Some(micros_since(start)));
    if !decision.is_allowed() {
        style.close = must_close(&mut request).await;
        return Ok(recorded(entry, respond::denied(style)));
    }
    let protocol = match (standing.protocol, request.version()) {
        (AppProtocol::Http2 | AppProtocol::Grpc, _) | (AppProtocol::Unknown, Version::HTTP_2) => Protocol::Http2,
        _ => Protocol::Http1,
    };
    let allowed = Allowed { view: standing.view, session, checked, protocol, style, label };
    Ok(allowed.forward(request, entry).await)
}

/// Short bodies are gone before a change of policy matters to them.
fn is_short(body: &Incoming) -> bool {
    body.size_hint().upper().is_some_and(|bytes| bytes <= SHORT_BODY_BYTES)
}

fn recorded(entry: Entry, response: Response<Body>) -> Response<Body> {
    entry.finish(Some(response.status().as_u16()));
    response
}

/// Whether the connection has to end after a refusal because the request's body stands in the way of the next
/// request. A body that is short and already there is thrown away instead.
async fn must_close(request: &mut Request<Incoming>) -> bool {
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
        let asked = request::upgrade(&request).filter(|_| self.protocol == Protocol::Http1);
        let client = asked.is_some().then(|| hyper::upgrade::on(&mut request));
        self.style.close = request.version() < Version::HTTP_2 && !request.body().is_end_stream();
        let has_body = !request.body().is_end_stream();
        let (head, body) = request.into_parts();
        let random = &self.session.shared.random;
        let mut head = request::forwarded(head, &self.checked, self.protocol, asked, || random.request_id());
        if has_body && self.protocol == Protocol::Http1 && !head.headers.contains_key(header::CONTENT_LENGTH) {
            // Also for methods that seldom have a body.
            head.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let long = !is_short(&body);
        let request = Request::from_parts(head, boxed(body));
        let question = Question::Request(self.checked.clone());
        let sent = tokio::select! {
            sent = upstream::send(&self.session, &self.view, self.protocol, request, &mut entry) => Ok(sent),
            decision = self.session.denied(&question), if long => Err(decision),
        };
        let sent = match sent {
            Ok(sent) => sent,
            Err(decision) => {
                entry.decided(&decision, None);
                return recorded(entry, respond::denied(self.style));
            }
        };
        let (mut response, in_flight) = match sent {
            Ok(answered) => answered,
            Err(error) => {
                entry.failed(&error.to_string());
                let response = match error {
                    // Cut off by the drain's deadline, a request isn't its client's fault.
                    upstream::Error::Request { .. } if !self.session.shared.drain.is_cancelled() => {
                        respond::text(StatusCode::BAD_REQUEST, "Bad Request", self.style)
                    }
                    _ => respond::unavailable(self.style),
                };
                return recorded(entry, response);
            }
        };
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
        entry.finish(Some(response.status().as_u16()));
        response.map(|body| self.guard(body, in_flight))
    }

    /// A long response ends when the request is no longer allowed.
    fn guard(self, body: Incoming, in_flight: InFlight) -> Body {
        let question = Question::Request(self.checked);
        let revoked = (!is_short(&body)).then(|| Box::pin(self.session.revoked(question, self.label)) as _);
        Guarded { body, revoked, _in_flight: in_flight }.boxed_unsync()
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
        Pin::new(&mut self.body).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
