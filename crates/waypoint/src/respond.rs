//! Answers that the waypoint gives itself (`spec/waypoint.md` 5.8).

use std::sync::Arc;

use ambit_mesh::view::Denial;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full};

use crate::upstream::Body;

/// What is said about a denial.
const DENIED: &str = "RBAC: access denied";

/// What the answer depends on in the request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    /// A gRPC call gets its error as a gRPC status.
    pub(crate) grpc: bool,
    /// The answer to HEAD has no body.
    pub(crate) head: bool,
    /// The connection can't go on: the request's body hasn't been read.
    pub(crate) close: bool,
}

/// Refused by policy. The text and its headers are Istio's, to the byte; nothing in it tells which policy.
pub(crate) fn denied(style: Style) -> Response<Body> {
    let mut response = text(StatusCode::FORBIDDEN, DENIED, style);
    response.extensions_mut().insert(Denied(style));
    response
}

/// The end of a call that is no longer allowed, in the Gateway's words if it has any.
pub(crate) fn denied_trailers(denial: Option<&Denial>) -> HeaderMap {
    let message = denial.map_or(HeaderValue::from_static(DENIED), |denial| denial.grpc_message.clone());
    let status = HeaderValue::from(grpc_status(StatusCode::FORBIDDEN));
    [("grpc-status", status), ("grpc-message", message)]
        .map(|(name, value)| (HeaderName::from_static(name), value))
        .into_iter()
        .collect()
}

/// Marks the answer to what policies deny.
#[derive(Clone, Copy, Debug)]
struct Denied(Style);

/// The same answer; if it is a denial, as the Gateway wants it, if it wants anything.
pub(crate) fn in_words_of(
    mut response: Response<Body>,
    denial: impl FnOnce() -> Option<Arc<Denial>>,
) -> Response<Body> {
    let Some(Denied(style)) = response.extensions_mut().remove::<Denied>() else { return response };
    let Some(denial) = denial() else { return response };
    if style.grpc {
        response.headers_mut().insert("grpc-message", denial.grpc_message.clone());
        return response;
    }
    *response.status_mut() = denial.status;
    let message = Bytes::copy_from_slice(denial.message.as_bytes());
    response.headers_mut().insert(header::CONTENT_TYPE, denial.content_type.clone());
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(message.len()));
    let body = Full::new(message).map_err(|never| match never {}).boxed_unsync();
    response.map(|_| if style.head { empty() } else { body })
}

/// No endpoint gave an answer.
pub(crate) fn unavailable(style: Style) -> Response<Body> {
    text(StatusCode::SERVICE_UNAVAILABLE, "upstream connect error", style)
}

/// A short text with this status.
pub(crate) fn text(status: StatusCode, text: &'static str, style: Style) -> Response<Body> {
    let mut response = if style.grpc { grpc(status, text) } else { plain(status, text, style.head) };
    if style.close {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The same answer, on a connection that may have to end.
pub(crate) fn closing(mut response: Response<Body>, style: Style) -> Response<Body> {
    if style.close {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A body without bytes.
pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn plain(status: StatusCode, text: &'static str, head: bool) -> Response<Body> {
    let body = Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(if head { empty() } else { body });
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(text.len()));
    response
}

fn grpc(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(empty());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(grpc_status(status)));
    headers.insert("grpc-message", HeaderValue::from_static(text));
    response
}

/// The gRPC code for an HTTP status (gRPC's own "HTTP to gRPC status code mapping").
pub(crate) fn grpc_status(status: StatusCode) -> u16 {
    match status {
        StatusCode::BAD_REQUEST => 13,
        StatusCode::UNAUTHORIZED => 16,
        StatusCode::FORBIDDEN => 7,
        StatusCode::NOT_FOUND => 12,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => 14,
        _ => 2,
    }
}

// === impl Style ===

impl Style {
    /// For a request with this method and these headers, whose body has been read or will be.
    pub(crate) fn of(method: &Method, headers: &HeaderMap) -> Self {
        Self { grpc: crate::request::is_grpc(headers), head: method == Method::HEAD, close: false }
    }
}
