//! External authorizers as waypoints ask them (`spec/authorization.md` 2.9).

use std::{collections::HashMap, sync::Arc, time::Duration};

use ambit_api::limits::MAX_CHECKED_BODY_BYTES;
use ambit_xds::waypoint::{self as wire, HttpCheck, Protocol, Provider};

use super::{Authorizers, decode::MAX_LIST_ENTRIES};

/// An external authorizer, and how it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorizer {
    /// Name, as policies write it.
    pub name: Arc<str>,
    /// Namespace of its Service; nothing for any.
    pub namespace: Option<Arc<str>>,
    /// Fully qualified name of its Service, or a DNS name or address outside of the mesh. In lower case.
    pub host: Arc<str>,
    /// Its port.
    pub port: u16,
    /// If no Service has this name, nobody else may answer for it.
    pub mesh_only: bool,
    /// How long an answer may take.
    pub timeout: Duration,
    /// A request goes on if there is no answer.
    pub fail_open: bool,
    /// Status of a request that is refused for want of an answer.
    pub status_on_error: u16,
    /// The part of a request's body that is sent along, if any.
    pub body: Option<CheckedBody>,
    /// How it is asked.
    pub ask: Ask,
}

/// How much of a request's body an authorizer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckedBody {
    /// At most so many bytes.
    pub max_bytes: usize,
    /// Of a longer body its beginning; without it, such a request is refused.
    pub allow_partial: bool,
    /// Over gRPC as bytes, not as text.
    pub as_bytes: bool,
}

/// By what protocol an authorizer is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Envoy's gRPC authorization API.
    Grpc,
    /// An HTTP request.
    Http(Box<HttpAsk>),
}

/// What an HTTP request to an authorizer holds, and what its answer changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpAsk {
    /// Put before the request's path; empty, or starting with `/`.
    pub path_prefix: Arc<str>,
    /// Headers of the request that are sent along.
    pub request_headers: HeaderPatterns,
    /// Headers that are always sent.
    pub additional_headers: Vec<(Box<str>, Box<str>)>,
    /// Headers of a positive answer that go to the application.
    pub to_upstream_on_allow: HeaderPatterns,
    /// Headers of a positive answer that go to the client.
    pub to_downstream_on_allow: HeaderPatterns,
    /// Headers of a negative answer that go to the client; nothing for all.
    pub to_downstream_on_deny: Option<HeaderPatterns>,
}

/// Names of headers, with a `*` at one end at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderPatterns(Box<[HeaderPattern]>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum HeaderPattern {
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
}

/// Reads the authorizers of a bundle. One that can't be read stays, as the reason to deny what it would be asked about.
pub(super) fn authorizers(providers: &[Provider]) -> Authorizers {
    let mut authorizers = HashMap::with_capacity(providers.len());
    for provider in providers.iter().take(MAX_LIST_ENTRIES) {
        let reason = |reason: String| format!("the settings of provider `{}` can't be used: {reason}", provider.name);
        let read = authorizer(provider).map(Arc::new).map_err(|why| reason(why).into());
        let twice = authorizers.insert(Arc::from(provider.name.as_str()), read).is_some();
        if twice {
            let why = reason("there are two of this name".to_owned());
            authorizers.insert(provider.name.as_str().into(), Err(why.into()));
        }
    }
    authorizers
}

pub(super) fn authorizer(provider: &Provider) -> Result<Authorizer, String> {
    let Provider { name, namespace, host, port, mesh_only, timeout_ms, fail_open, status_on_error, .. } = provider;
    let port = u16::try_from(*port).ok().filter(|port| *port != 0).ok_or_else(|| format!("{port} is no port"))?;
    let timeout = Duration::from_millis(*timeout_ms);
    let status = u16::try_from(*status_on_error).ok().filter(|status| (400..=599).contains(status));
    let ask = match &provider.protocol {
        Some(Protocol::Grpc(true)) => Ask::Grpc,
        Some(Protocol::Http(check)) => Ask::Http(Box::new(http(check)?)),
        Some(Protocol::Grpc(false)) | None => return Err("it is asked neither by gRPC nor by HTTP".into()),
    };
    if host.is_empty() {
        return Err("it has no host".into());
    }
    if timeout.is_zero() {
        return Err("it has no time to answer".into());
    }
    Ok(Authorizer {
        name: name.as_str().into(),
        namespace: (!namespace.is_empty()).then(|| namespace.as_str().into()),
        host: host.trim_end_matches('.').to_ascii_lowercase().into(),
        port,
        mesh_only: *mesh_only,
        timeout,
        fail_open: *fail_open,
        status_on_error: status.ok_or_else(|| format!("{status_on_error} is no status of a refusal"))?,
        body: provider.body.map(|body| checked_body(&body)).transpose()?,
        ask,
    })
}

fn checked_body(body: &wire::CheckedBody) -> Result<CheckedBody, String> {
    let max_bytes = Some(body.max_bytes).filter(|bytes| (1..=MAX_CHECKED_BODY_BYTES).contains(bytes));
    let max_bytes = max_bytes.and_then(|bytes| usize::try_from(bytes).ok());
    let max_bytes = max_bytes.ok_or_else(|| format!("it can't be sent {} bytes", body.max_bytes))?;
    Ok(CheckedBody { max_bytes, allow_partial: body.allow_partial, as_bytes: body.as_bytes })
}

fn http(check: &HttpCheck) -> Result<HttpAsk, String> {
    if !check.path_prefix.is_empty() && !check.path_prefix.starts_with('/') {
        return Err("its path prefix doesn't start with `/`".into());
    }
    let additional = check.additional_headers.iter();
    Ok(HttpAsk {
        path_prefix: check.path_prefix.as_str().into(),
        request_headers: HeaderPatterns::parse(&check.request_headers)?,
        additional_headers: additional.map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect(),
        to_upstream_on_allow: HeaderPatterns::parse(&check.to_upstream_on_allow)?,
        to_downstream_on_allow: HeaderPatterns::parse(&check.to_downstream_on_allow)?,
        to_downstream_on_deny: match check.to_downstream_on_deny.as_slice() {
            [] => None,
            names => Some(HeaderPatterns::parse(names)?),
        },
    })
}

// === impl HeaderPatterns ===

impl HeaderPatterns {
    /// Reads names as users write them.
    ///
    /// # Errors
    /// Names the first that can't be read.
    pub fn parse(names: &[String]) -> Result<Self, String> {
        if names.len() > MAX_LIST_ENTRIES {
            return Err(format!("more than {MAX_LIST_ENTRIES} headers"));
        }
        names.iter().map(|name| HeaderPattern::parse(name)).collect::<Result<_, _>>().map(Self)
    }

    /// True if this name, in lower case, is one of them.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| match pattern {
            HeaderPattern::Exact(exact) => **exact == *name,
            HeaderPattern::Prefix(prefix) => name.starts_with(&**prefix),
            HeaderPattern::Suffix(suffix) => name.ends_with(&**suffix),
        })
    }

    /// True if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

// === impl HeaderPattern ===

impl HeaderPattern {
    fn parse(written: &str) -> Result<Self, String> {
        let name = written.to_ascii_lowercase();
        let (pattern, literal): (fn(Box<str>) -> Self, &str) = match (name.strip_prefix('*'), name.strip_suffix('*')) {
            (Some(literal), _) => (Self::Suffix, literal),
            (None, Some(literal)) => (Self::Prefix, literal),
            (None, None) => (Self::Exact, &name),
        };
        if literal.is_empty() || literal.contains('*') {
            return Err(format!("`{written}` is no header"));
        }
        Ok(pattern(literal.into()))
    }
}
