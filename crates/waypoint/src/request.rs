//! What a request must look like to be judged, and what of it goes on to the backend (`spec/waypoint.md` 5.8).

use std::sync::Arc;

use ambit_policy::{Claims, HeaderLines, HttpVersion, RequestFacts};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, header, request,
    uri::{Authority, PathAndQuery, Scheme},
};

use crate::{
    custom::{Approvals, Asked},
    limits::{MAX_HEADER_BYTES, MAX_HEADERS, MAX_TARGET_BYTES},
    refusals::Refusal,
    upstream::Protocol,
};

/// A request's facts, checked to have one reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    /// The method, as sent.
    pub(crate) method: Method,
    /// `:authority` or `Host`, as sent.
    pub(crate) authority: Authority,
    /// The request target in origin form, query included. Its path is normalised once, here, as in Istio (escapes of
    /// unreserved characters decoded, dot segments resolved), so that the backend gets what was judged; all else is as
    /// sent.
    pub(crate) target: PathAndQuery,
    /// The header lines, as sent.
    pub(crate) headers: HeaderMap,
    /// How it came.
    pub(crate) version: Version,
    /// Providers of CUSTOM policies that allowed it, and what it was before anything of it was changed; nothing if nothing was.
    pub(crate) asked: Option<Arc<Asked>>,
    /// What its verified token says.
    pub(crate) claims: Option<Arc<Claims>>,
    /// What the application is told of the client's certificate; nothing unless the Gateway asks for it.
    pub(crate) client_certificate: Option<HeaderValue>,
}

/// Why a request isn't even judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rejected {
    /// What the client is told.
    pub(crate) status: StatusCode,
    /// What is counted, and what the record says.
    pub(crate) refusal: Refusal,
}

/// Checks a request that could mean different things to different readers.
///
/// # Errors
/// [`Rejected`] with the status to answer.
pub(crate) fn check<B>(request: &Request<B>) -> Result<Checked, Rejected> {
    if request.method() == Method::CONNECT {
        return Err(Rejected::new(StatusCode::FORBIDDEN, Refusal::Connect));
    }
    check_headers(request.headers())?;
    let authority = authority(request)?;
    let target = target(request.method(), request.uri())?;
    let (method, headers, version) = (request.method().clone(), request.headers().clone(), request.version());
    Ok(Checked { method, authority, target, headers, version, asked: None, claims: None, client_certificate: None })
}

/// The head that goes to the backend.
pub(crate) fn forwarded(
    mut head: request::Parts,
    checked: &Checked,
    upstream: Protocol,
    upgrade: Option<HeaderValue>,
    request_id: impl FnOnce() -> HeaderValue,
) -> request::Parts {
    strip_hop_by_hop(&mut head.headers);
    // Rarely is one there, and to look for each takes longer.
    if head.headers.keys().any(|name| CLIENT_MAY_NOT_SEND.contains(name)) {
        for name in CLIENT_MAY_NOT_SEND {
            head.headers.remove(name);
        }
    }
    if let Some(value) = &checked.client_certificate {
        head.headers.insert(X_FORWARDED_CLIENT_CERT, value.clone());
    }
    // The waypoint answers the expectation itself when it starts to read the body.
    head.headers.remove(header::EXPECT);
    head.headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    head.headers.entry(X_REQUEST_ID).or_insert_with(request_id);
    head.extensions.clear();
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(checked.target.clone());
    match upstream {
        Protocol::Http1 => {
            join_cookies(&mut head.headers);
            if !head.headers.contains_key(header::HOST) {
                // From an HTTP/2 client. Every authority is a valid header value.
                if let Ok(host) = HeaderValue::from_str(checked.authority.as_str()) {
                    head.headers.insert(header::HOST, host);
                }
            }
            if let Some(upgrade) = upgrade {
                head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                head.headers.insert(header::UPGRADE, upgrade);
            }
            head.version = Version::HTTP_11;
        }
        Protocol::Http2 => {
            head.headers.remove(header::HOST);
            uri.scheme = Some(Scheme::HTTP);
            uri.authority = Some(checked.authority.clone());
            head.version = Version::HTTP_2;
        }
    }
    // INVARIANT: a path alone, and scheme with authority and path, are the two valid combinations.
    head.uri = Uri::from_parts(uri).unwrap_or_default();
    head
}

/// The protocol that an HTTP/1.1 client asks to switch to. `h2c` isn't offered, and a request with a body can't switch.
pub(crate) fn upgrade<B: http_body::Body>(request: &Request<B>) -> Option<HeaderValue> {
    let headers = request.headers();
    let asked = request.version() == Version::HTTP_11
        && request.body().is_end_stream()
        && connection_options(headers).any(|option| option.eq_ignore_ascii_case("upgrade"));
    let mut values = headers.get_all(header::UPGRADE).iter();
    let (value, None) = (values.next().filter(|_| asked)?, values.next()) else {
        return None;
    };
    let h2c = value.to_str().ok()?.split(',').any(|token| {
        let token = token.trim();
        token.eq_ignore_ascii_case("h2c") || token.eq_ignore_ascii_case("h2")
    });
    (!h2c).then(|| value.clone())
}

/// True for a gRPC call (not gRPC-Web).
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE).and_then(|value| value.as_bytes().strip_prefix(GRPC)) else {
        return false;
    };
    matches!(kind.first(), None | Some(b'+' | b';'))
}

/// Removes what concerns only one hop, in either direction, and what `Connection` names.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Most messages have none of them, and to look for each takes longer.
    if !headers.keys().any(|name| *name == header::TE || HOP_BY_HOP.contains(name)) {
        return;
    }
    let named: Vec<HeaderName> = connection_options(headers)
        .filter_map(|option| HeaderName::from_bytes(option.as_bytes()).ok())
        // A sender can't take away what frames or addresses the message.
        .filter(|name| ![header::HOST, header::CONTENT_LENGTH, header::TE].contains(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    let trailers = headers.get_all(header::TE).iter().any(|value| {
        value.to_str().is_ok_and(|value| value.split(',').any(|token| token.trim().eq_ignore_ascii_case("trailers")))
    });
    headers.remove(header::TE);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

static NO_APPROVALS: Approvals = Approvals::none();
const GRPC: &[u8] = b"application/grpc";
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const HOP_BY_HOP: [HeaderName; 5] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Names that stand for what a proxy says: control of a proxy, and facts about the client that only a proxy knows.
pub(crate) const CLIENT_MAY_NOT_SEND: [HeaderName; 10] = [
    HeaderName::from_static("ambit-source"),
    X_FORWARDED_CLIENT_CERT,
    HeaderName::from_static("x-envoy-internal"),
    HeaderName::from_static("x-envoy-retry-on"),
    HeaderName::from_static("x-envoy-max-retries"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-original-path"),
    HeaderName::from_static("x-envoy-peer-metadata"),
    HeaderName::from_static("x-envoy-peer-metadata-id"),
    HeaderName::from_static("x-envoy-decorator-operation"),
];

fn check_headers(headers: &HeaderMap) -> Result<(), Rejected> {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if headers.len() > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Err(Rejected::new(status, Refusal::LargeHead));
    }
    if headers.contains_key(header::CONTENT_LENGTH) && headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(Rejected::bad(Refusal::LengthAndEncoding));
    }
    // HTTP/2 lets the same length stand twice; a backend of HTTP/1.1 wouldn't.
    if headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err(Rejected::bad(Refusal::RepeatedLength));
    }
    if headers.get_all(header::AUTHORIZATION).iter().nth(1).is_some() {
        return Err(Rejected::bad(Refusal::RepeatedAuthorization));
    }
    Ok(())
}

fn authority<B>(request: &Request<B>) -> Result<Authority, Rejected> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(host), None) => {
            Some(Authority::try_from(host.as_bytes()).map_err(|_| Rejected::bad(Refusal::MalformedHost))?)
        }
        (Some(_), Some(_)) => return Err(Rejected::bad(Refusal::RepeatedHost)),
    };
    let authority = match (request.uri().authority(), host) {
        (Some(target), Some(host)) if !target.as_str().eq_ignore_ascii_case(host.as_str()) => {
            return Err(Rejected::bad(Refusal::ConflictingHost));
        }
        (_, Some(host)) => host,
        // HTTP/1.1 requires the header even with an absolute target.
        (Some(target), None) if request.version() >= Version::HTTP_2 => target.clone(),
        (_, None) => return Err(Rejected::bad(Refusal::NoHost)),
    };
    if authority.as_str().contains('@') {
        return Err(Rejected::bad(Refusal::UserInformation));
    }
    Ok(authority)
}

fn target(method: &Method, uri: &Uri) -> Result<PathAndQuery, Rejected> {
    let malformed = Rejected::bad(Refusal::MalformedTarget);
    if let (Some(scheme), true) = (uri.scheme_str(), uri.authority().is_some())
        && !["http", "https"].contains(&scheme)
    {
        return Err(Rejected::bad(Refusal::ForeignScheme));
    }
    let target = uri.path_and_query().ok_or(malformed)?;
    if target.as_str().len() > MAX_TARGET_BYTES {
        return Err(Rejected::new(StatusCode::URI_TOO_LONG, Refusal::LongTarget));
    }
    match target.as_str().as_bytes().first() {
        Some(b'/') => match ambit_policy::normalized_target(target.as_str()) {
            None => Ok(target.clone()),
            Some(normalized) => PathAndQuery::try_from(normalized).map_err(|_| malformed),
        },
        Some(b'*') if method == Method::OPTIONS && target == "*" => Ok(target.clone()),
        // Absolute form without a path, `http://host?x=1`.
        Some(b'?') | None if uri.authority().is_some() => {
            PathAndQuery::try_from(format!("/{target}").as_str()).map_err(|_| malformed)
        }
        _ => Err(malformed),
    }
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// HTTP/2 may split cookies over several lines; in HTTP/1.1 they are one (RFC 9113 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(header::COOKIE).iter();
    if let (Some(_), Some(_)) = (cookies.next(), cookies.next()) {
        let all: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
            headers.insert(header::COOKIE, joined);
        }
    }
}

// === impl Rejected ===

impl Rejected {
    fn new(status: StatusCode, refusal: Refusal) -> Self {
        Self { status, refusal }
    }

    fn bad(refusal: Refusal) -> Self {
        Self::new(StatusCode::BAD_REQUEST, refusal)
    }
}

// === impl Checked ===

impl HeaderLines for Checked {
    fn lines(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        self.headers.get_all(name).iter().for_each(|value| each(value.as_bytes()));
    }
}

impl Checked {
    /// What policies look at.
    pub(crate) fn facts(&self) -> RequestFacts<'_> {
        let version = if self.version == Version::HTTP_2 { HttpVersion::Http2 } else { HttpVersion::Http1 };
        RequestFacts::new(self.method.as_str(), self.target.as_str(), self.authority.as_str())
            .with_version(version)
            .with_headers(self)
            .with_claims(self.claims.as_deref())
    }

    /// From now on it changes. CUSTOM policies judge what was sent, also those that come while its stream lives.
    pub(crate) fn keep_as_sent(&mut self) {
        if self.asked.is_none() {
            let (target, headers) = (self.target.clone(), self.headers.clone());
            self.asked = Some(Arc::new(Asked { target, headers, approvals: Approvals::none() }));
        }
    }

    /// The same as the client sent them, before a provider changed anything or a token was taken out.
    pub(crate) fn facts_as_sent(&self) -> RequestFacts<'_> {
        let facts = self.facts();
        match &self.asked {
            None => facts,
            Some(asked) => RequestFacts { path: asked.target.as_str(), headers: &**asked, ..facts },
        }
    }

    /// The providers that have allowed it.
    pub(crate) fn approvals(&self) -> &Approvals {
        self.asked.as_ref().map_or(&NO_APPROVALS, |asked| &asked.approvals)
    }

    /// The target without its query, for records: a query may hold secrets.
    pub(crate) fn path(&self) -> &str {
        self.target.as_str().split('?').next().unwrap_or_default()
    }
}
