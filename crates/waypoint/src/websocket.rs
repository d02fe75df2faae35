//! WebSockets that HTTP/2 clients open by an extended CONNECT (RFC 8441), carried on to endpoints of HTTP/1.1.
//!
//! Such a request is judged, recorded and forwarded as what the endpoint gets: a GET that asks to switch protocols.

use ambit_xds::workload::AppProtocol;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use data_encoding::BASE64;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::{body::Incoming, ext::Protocol};

use crate::{
    respond::{self, Style},
    session::Session,
    upstream::Body,
};

/// One that waits for its answer.
#[derive(Debug)]
pub(crate) struct Bridge {
    /// What an endpoint that agrees has to say.
    accept: String,
}

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
const UPGRADE: HeaderValue = HeaderValue::from_static("upgrade");
/// RFC 6455, 1.3.
const ACCEPT_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const NO_SWITCH: &str = "the endpoint doesn't open a WebSocket";

// === impl Bridge ===

impl Bridge {
    /// Makes an extended CONNECT for a WebSocket the request that it stands for. Every other one is left as it is and so
    /// refused, as are those to a port that is declared to speak HTTP/2: no GET can ask there for what they want.
    pub(crate) fn of(request: &mut Request<Incoming>, session: &Session) -> Option<Self> {
        let asked = request.method() == Method::CONNECT
            && request.extensions().get::<Protocol>().is_some_and(|protocol| protocol.as_str() == "websocket");
        let speaks_http2 =
            || session.standing().is_ok_and(|now| matches!(now.protocol, AppProtocol::Http2 | AppProtocol::Grpc));
        if !asked || speaks_http2() {
            return None;
        }
        let random = &session.shared.random;
        let nonce = [random.next().to_be_bytes(), random.next().to_be_bytes()].concat();
        let key = BASE64.encode(&nonce);
        *request.method_mut() = Method::GET;
        *request.version_mut() = Version::HTTP_11;
        // What is no header value is no authority either, and refused for it.
        let host = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
        let headers = request.headers_mut();
        if let Some(host) = host
            && !headers.contains_key(header::HOST)
        {
            headers.insert(header::HOST, host);
        }
        headers.insert(header::CONNECTION, UPGRADE);
        headers.insert(header::UPGRADE, WEBSOCKET);
        // Base64 is a header value.
        headers.extend(HeaderValue::from_str(&key).ok().map(|key| (header::SEC_WEBSOCKET_KEY, key)));
        let accept = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{ACCEPT_SUFFIX}").as_bytes());
        Some(Self { accept: BASE64.encode(accept.as_ref()) })
    }

    /// The answer as the client expects it: 200 opens the WebSocket, so nothing else may be a success.
    pub(crate) fn answer(&self, mut response: Response<Body>) -> Response<Body> {
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        let agreed = headers.remove(header::SEC_WEBSOCKET_ACCEPT);
        if switched && agreed.is_some_and(|agreed| agreed.as_bytes() == self.accept.as_bytes()) {
            for name in [header::CONNECTION, header::UPGRADE, header::CONTENT_LENGTH, KEEP_ALIVE] {
                headers.remove(name);
            }
            *response.status_mut() = StatusCode::OK;
            return response;
        }
        if switched || response.status().is_success() {
            return respond::text(StatusCode::BAD_GATEWAY, NO_SWITCH, Style::of(&Method::GET, &HeaderMap::new()));
        }
        response
    }
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
