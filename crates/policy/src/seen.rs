//! What a test looks at, and what it expects, as text.

use std::{borrow::Cow, fmt};

use serde_json::Value;

use crate::{
    facts::{ConnectionFacts, Sni},
    headers::{HeaderSource, SCHEME},
    limits::{MAX_SHOWN_BYTES, MAX_VALUES_SHOWN},
    path::Reading,
    rule::Request,
    test::{Test, Values, trust_domain},
    token::issuer_and_subject,
};

/// What is known when something is explained.
#[derive(Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) connection: &'a ConnectionFacts,
    pub(crate) request: Option<&'a Request<'a>>,
}

/// The value that a test looks at.
#[derive(Debug)]
pub(crate) enum Seen<'a> {
    Value(Cow<'a, str>),
    /// There is none: a sentence that says so.
    Missing(&'static str),
    /// It takes a request (or a TLS handshake that was looked at) to know.
    Unknown,
}

// === impl Facts ===

impl<'a> Facts<'a> {
    /// Whether a test holds; nothing if it takes a request that isn't there.
    pub(crate) fn holds(&self, test: &Test) -> Option<bool> {
        match self.request {
            _ if !test.is_late() => Some(test.holds_for_connection(self.connection)),
            Some(request) => Some(test.holds_for_request(request)),
            None => test.holds_at_l4(self.connection),
        }
    }

    /// What a test looks at.
    pub(crate) fn seen(&self, test: &Test) -> Seen<'a> {
        let connection = self.connection;
        let peer = connection.peer.as_ref();
        let id = peer.and_then(|peer| peer.id());
        let of_peer = |value: Option<Cow<'a, str>>| match (value, peer) {
            (Some(value), _) => Seen::Value(value),
            (None, Some(_)) => Seen::Missing("the client's identity isn't a workload's"),
            (None, None) => Seen::Missing("the client has no identity"),
        };
        match (&test.values, self.request) {
            (Values::Principal(_), _) => of_peer(peer.map(|peer| peer.principal().into())),
            (Values::Namespace(_), _) => of_peer(id.map(|id| id.namespace().into())),
            (Values::ServiceAccount(_), _) => {
                of_peer(id.map(|id| format!("{}/{}", id.namespace(), id.service_account()).into()))
            }
            (Values::TrustDomain(_), _) => of_peer(peer.and_then(trust_domain).map(Into::into)),
            (Values::SourceIp(_), _) => Seen::Value(connection.source_ip.to_string().into()),
            (Values::RemoteIp(_), _) => Seen::Value(connection.remote_ip().to_string().into()),
            (Values::DestinationIp(_), _) => Seen::Value(connection.destination_ip.to_string().into()),
            (Values::DestinationPort(_), _) => Seen::Value(connection.destination_port.to_string().into()),
            (Values::Sni(_), Some(_)) => Seen::Missing("a request has no TLS server name"),
            (Values::Sni(_), None) => match &connection.sni {
                Sni::Unknown => Seen::Unknown,
                Sni::Absent => Seen::Missing("the connection has no TLS server name"),
                Sni::Name(name) => Seen::Value(name.to_ascii_lowercase().into()),
            },
            (_, None) => Seen::Unknown,
            (Values::Host(_), Some(request)) => Seen::Value(host(request.host)),
            (Values::Method(_), Some(request)) => Seen::Value(request.method.into()),
            (Values::Path(_), Some(request)) => Seen::Value(String::from_utf8_lossy(request.path)),
            (Values::RequestPrincipal(_), Some(request)) => match request.claims.and_then(issuer_and_subject) {
                Some((issuer, subject)) => Seen::Value(format!("{issuer}/{subject}").into()),
                None => Seen::Missing("the request has no verified token with issuer and subject"),
            },
            (Values::Claim(path, _), Some(request)) => match request.claims {
                None => Seen::Missing("the request has no verified token"),
                Some(claims) => match path.get(claims) {
                    None => Seen::Missing("the token has no such claim"),
                    Some(Value::String(text)) => Seen::Value(text.as_str().into()),
                    Some(other) => Seen::Value(other.to_string().into()),
                },
            },
            (Values::Header(name, _), Some(request)) => header(&name.source, request),
        }
    }
}

fn header<'a>(source: &HeaderSource, request: &Request<'a>) -> Seen<'a> {
    match source {
        HeaderSource::Authority => Seen::Value(host(request.host)),
        HeaderSource::Method => Seen::Value(request.method.into()),
        HeaderSource::Path => Seen::Value(format!("{}{}", String::from_utf8_lossy(request.path), request.query).into()),
        HeaderSource::Scheme => Seen::Value(SCHEME.into()),
        HeaderSource::Hidden => Seen::Missing("policies never see this header"),
        HeaderSource::Lines { name, .. } => {
            let mut lines = Vec::new();
            request.lines(name, &mut |line| lines.push(String::from_utf8_lossy(line).into_owned()));
            if lines.is_empty() {
                Seen::Missing("the request has no such header")
            } else {
                Seen::Value(lines.join(" | ").into())
            }
        }
    }
}

/// A host that isn't a plain one may hold user information.
fn host(host: &str) -> Cow<'_, str> {
    let is_plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b));
    if is_plain { host.into() } else { "(not a plain host)".into() }
}

/// The text as a reason shows it: bounded, without control characters.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    let cut = &text[..text.floor_char_boundary(MAX_SHOWN_BYTES)];
    if cut.len() == text.len() && !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut shown: String = cut.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
    if cut.len() < text.len() {
        shown.push('…');
    }
    Cow::Owned(shown)
}

/// How the path is read, if not plainly.
pub(crate) fn reading(reading: Option<Reading>, request: Option<&Request<'_>>) -> String {
    match (reading, request) {
        (Some(reading), Some(request)) => {
            let path = String::from_utf8_lossy(request.path);
            format!("the path has more than one reading; with {reading} it is `{}`, and then: ", shown(&path))
        }
        _ => String::new(),
    }
}

// === impl Test ===

impl Test {
    /// The values as written, except that trust domains stand for each other.
    pub(crate) fn expected(&self) -> Vec<String> {
        fn texts<T: fmt::Display>(values: &[T]) -> Vec<String> {
            values.iter().map(ToString::to_string).collect()
        }
        match &self.values {
            Values::Principal(any_of)
            | Values::Method(any_of)
            | Values::Sni(any_of)
            | Values::Claim(_, any_of)
            | Values::Header(_, any_of) => texts(any_of.patterns()),
            Values::TrustDomain(any_of) | Values::Host(any_of) => texts(any_of),
            Values::Namespace(any_of) => texts(any_of),
            Values::ServiceAccount(any_of) => texts(any_of),
            Values::SourceIp(any_of) | Values::RemoteIp(any_of) | Values::DestinationIp(any_of) => texts(any_of),
            Values::DestinationPort(any_of) => texts(any_of),
            Values::Path(any_of) => texts(any_of),
            Values::RequestPrincipal(any_of) => texts(any_of),
        }
    }

    /// What it looks at, in plain words.
    pub(crate) fn subject(&self) -> Cow<'static, str> {
        match &self.values {
            Values::Principal(_) => "principal".into(),
            Values::Namespace(_) => "namespace".into(),
            Values::ServiceAccount(_) => "service account".into(),
            Values::TrustDomain(_) => "trust domain".into(),
            Values::SourceIp(_) => "client address".into(),
            Values::RemoteIp(_) => "remote address".into(),
            Values::DestinationIp(_) => "destination address".into(),
            Values::DestinationPort(_) => "port".into(),
            Values::Sni(_) => "TLS server name".into(),
            Values::Host(_) => "host".into(),
            Values::Method(_) => "method".into(),
            Values::Path(_) => "path".into(),
            Values::RequestPrincipal(_) => "token".into(),
            Values::Claim(path, _) => format!("`{path}`").into(),
            Values::Header(name, _) => format!("header `{name}`").into(),
        }
    }

    /// Whether its value, or the one it wants, may be a secret, as those of headers and tokens are.
    pub(crate) fn is_secret(&self) -> bool {
        matches!(self.values, Values::Claim(..) | Values::Header(..))
    }
}

/// Values in a row: `a`, `b` or `c`.
pub(crate) fn list(values: &[String]) -> String {
    let listed = if values.len() > MAX_VALUES_SHOWN + 1 { MAX_VALUES_SHOWN } else { values.len() };
    let mut text = String::new();
    for (index, value) in values.iter().take(listed).enumerate() {
        text.push_str(match index {
            0 => "",
            _ if index + 1 == values.len() => " or ",
            _ => ", ",
        });
        text.push_str(&format!("`{}`", shown(value)));
    }
    if listed < values.len() {
        text.push_str(&format!(" or {} more", values.len() - listed));
    }
    text
}
