//! What a provider says, and what a client is told that it refuses.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};

use super::changes::{Changes, Edits};
use crate::{
    limits::MAX_GRPC_MESSAGE_BYTES,
    respond::{self, Style},
    upstream::Body,
};

/// What a provider says.
#[derive(Debug)]
pub(super) enum Answer {
    /// It may go on, with these changes.
    Allowed(Box<Changes>),
    /// It is refused, with this answer.
    Denied(Box<Denial>),
}

/// The answer to a client whose request a provider refuses.
#[derive(Debug)]
pub(crate) struct Denial {
    status: StatusCode,
    edits: Edits,
    body: Bytes,
}

/// Headers that say how a message is sent: a provider has no say in them.
pub(super) fn is_framing(name: &HeaderName) -> bool {
    FRAMING.contains(name) || NAMED_FRAMING.contains(&name.as_str())
}

const FRAMING: [HeaderName; 6] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
const NAMED_FRAMING: [&str; 4] = ["host", "keep-alive", "proxy-connection", "http2-settings"];
/// What a gRPC call's status is told by.
const GRPC_STATUS: [&str; 3] = ["grpc-status", "grpc-message", "grpc-status-details-bin"];

// === impl Denial ===

impl Denial {
    /// Status alone.
    pub(super) fn bare(status: StatusCode) -> Self {
        Self { status, edits: Edits::default(), body: Bytes::new() }
    }

    /// All of it. Nothing if no response may have this status.
    pub(super) fn new(status: StatusCode, edits: Edits, body: Bytes) -> Option<Self> {
        (200..600).contains(&status.as_u16()).then_some(Self { status, edits, body })
    }

    /// Its status.
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// As this request's client reads it.
    pub(super) fn response(self, style: Style) -> Response<Body> {
        let mut response = if style.grpc { self.grpc() } else { self.plain(style.head) };
        if style.close {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn plain(self, head: bool) -> Response<Body> {
        // These have no body (RFC 9110 6.4.1).
        let bodyless = matches!(self.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let body = if bodyless { Bytes::new() } else { self.body };
        let length = body.len();
        let sent = if head || body.is_empty() { respond::empty() } else { full(body) };
        let mut response = Response::new(sent);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        if length > 0 {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        self.edits.apply(headers);
        if !bodyless {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        response
    }

    /// A call is refused by its own status; the body becomes the message.
    fn grpc(self) -> Response<Body> {
        let mut response = Response::new(respond::empty());
        let headers = response.headers_mut();
        self.edits.apply(headers);
        for name in GRPC_STATUS {
            headers.remove(name);
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(respond::grpc_status(self.status)));
        if let Some(message) = grpc_message(&self.body) {
            headers.insert("grpc-message", message);
        }
        response
    }
}

fn full(body: Bytes) -> Body {
    Full::new(body).map_err(|never| match never {}).boxed_unsync()
}

/// Percent-encoded, as the gRPC protocol has it.
fn grpc_message(body: &[u8]) -> Option<HeaderValue> {
    let body = body.get(..MAX_GRPC_MESSAGE_BYTES).unwrap_or(body);
    let mut message = Vec::with_capacity(body.len());
    for byte in body {
        if (b' '..=b'~').contains(byte) && *byte != b'%' {
            message.push(*byte);
        } else {
            message.extend(format!("%{byte:02X}").into_bytes());
        }
    }
    HeaderValue::from_bytes(&message).ok().filter(|message| !message.is_empty())
}

/// The headers of an HTTP answer that pass `wanted`, as edits: the first line of a name takes the place of what was
/// there, the others come after it. Cookies are always added.
pub(super) fn edits_of(headers: &HeaderMap, wanted: impl Fn(&str) -> bool) -> Edits {
    let mut edits = Edits::default();
    for name in headers.keys().filter(|name| !is_framing(name) && wanted(name.as_str())) {
        for (index, value) in headers.get_all(name).iter().enumerate() {
            if index == 0 && *name != header::SET_COOKIE {
                edits.set(name.clone(), value.clone());
            } else {
                edits.add(name.clone(), value.clone());
            }
        }
    }
    edits
}

#[cfg(test)]
mod tests {
    use super::*;

    const STYLE: Style = Style { grpc: false, head: false, close: false };

    fn denial(status: u16, lines: &[(&'static str, &'static str)], body: &'static str) -> Denial {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let status = StatusCode::from_u16(status).expect("a status");
        Denial::new(status, edits_of(&headers, |_| true), Bytes::from_static(body.as_bytes())).expect("a response")
    }

    fn shown(response: &Response<Body>) -> Vec<(&str, &str)> {
        response.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().expect("text"))).collect()
    }

    #[test]
    fn a_denial_says_what_the_provider_said_in_a_frame_of_its_own() {
        let lines = [("location", "/login"), ("content-length", "999"), ("transfer-encoding", "chunked"), ("x", "1")];
        let response = denial(302, &lines, "log in").response(STYLE);
        assert_eq!(response.status(), 302);
        let mut headers = shown(&response);
        headers.sort_unstable();
        assert_eq!(
            headers,
            [("content-length", "6"), ("content-type", "text/plain"), ("location", "/login"), ("x", "1")]
        );
        let html = denial(401, &[("content-type", "text/html")], "<p>").response(Style { close: true, ..STYLE });
        assert_eq!(shown(&html), [("content-type", "text/html"), ("content-length", "3"), ("connection", "close")]);
        let empty = Denial::bare(StatusCode::FORBIDDEN).response(STYLE);
        assert_eq!(shown(&empty), [("content-length", "0")]);
        assert_eq!(shown(&denial(204, &[], "body").response(STYLE)), []);
        let head = denial(403, &[], "no").response(Style { head: true, ..STYLE });
        assert_eq!(shown(&head), [("content-type", "text/plain"), ("content-length", "2")]);
        assert!(http_body::Body::is_end_stream(head.body()));
        assert!(Denial::new(StatusCode::SWITCHING_PROTOCOLS, Edits::default(), Bytes::new()).is_none());
    }

    #[test]
    fn a_refused_call_has_a_status_and_the_body_as_its_message() {
        let lines = [("grpc-status", "0"), ("grpc-message", "fine"), ("content-type", "text/html"), ("x", "1")];
        let response = denial(401, &lines, "log in: 100%\né").response(Style { grpc: true, ..STYLE });
        let mut headers = shown(&response);
        headers.sort_unstable();
        let message = ("grpc-message", "log in: 100%25%0A%C3%A9");
        assert_eq!(headers, [("content-type", "application/grpc"), message, ("grpc-status", "16"), ("x", "1")]);
        assert_eq!(response.status(), 200);
        let long = grpc_message(&[b'a'; 2 * MAX_GRPC_MESSAGE_BYTES]).expect("a message");
        assert_eq!(long.len(), MAX_GRPC_MESSAGE_BYTES);
        assert_eq!(grpc_message(b""), None);
    }
}
