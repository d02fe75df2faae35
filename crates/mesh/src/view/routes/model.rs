//! What a rule says, ready to be done.

use std::{sync::Arc, time::Duration};

use ::http::{HeaderName, HeaderValue, StatusCode};

use crate::view::ServiceKey;

/// A rule for HTTP requests.
#[derive(Debug)]
pub struct HttpRule {
    /// Kind, namespace and name of the route, and which rule of it: for records.
    pub name: Arc<str>,
    /// Why it can't be done; such requests are answered 500.
    pub fault: Option<Arc<str>>,
    /// What is done to every request.
    pub filters: Filters,
    /// Where they go.
    pub backends: Vec<Backend>,
    /// How long all tries may take together.
    pub request_timeout: Option<Duration>,
    /// How long one try may take.
    pub backend_timeout: Option<Duration>,
    /// When it is tried again.
    pub retry: Retry,
}

/// A rule for connections.
#[derive(Debug)]
pub struct StreamRule {
    /// Kind, namespace and name of the route: for records.
    pub name: Arc<str>,
    /// Why it can't be done; such connections are refused.
    pub fault: Option<Arc<str>>,
    /// Where they go.
    pub backends: Vec<Backend>,
}

/// What is done to requests and responses.
#[derive(Debug, Default)]
pub struct Filters {
    /// Changes to the request's headers.
    pub request_headers: Option<HeaderEdits>,
    /// Changes to the response's headers.
    pub response_headers: Option<HeaderEdits>,
    /// Copies to elsewhere.
    pub mirrors: Vec<Mirror>,
    /// An answer that sends the client elsewhere.
    pub redirect: Option<Redirect>,
    /// Another host or path.
    pub rewrite: Option<Rewrite>,
    /// What pages of other origins may do.
    pub cors: Option<Cors>,
}

/// Changes to headers, made in the order of the fields.
#[derive(Debug, Default)]
pub struct HeaderEdits {
    /// Lines to remove.
    pub remove: Vec<HeaderName>,
    /// Lines to replace.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Lines to add.
    pub add: Vec<(HeaderName, HeaderValue)>,
}

/// Where requests or connections go, and how many of them.
#[derive(Debug)]
pub struct Backend {
    /// The service, or why there is none.
    pub to: Result<BackendService, Arc<str>>,
    /// Its share.
    pub weight: u32,
    /// What is done to what goes there.
    pub filters: Filters,
}

/// A service that a route names.
#[derive(Debug)]
pub struct BackendService {
    /// The service.
    pub key: ServiceKey,
    /// Its port.
    pub port: u16,
    /// It is of another namespace than the route, whose owner has no say about who may reach it.
    pub foreign: bool,
    /// The part of its endpoints that is meant, if not all.
    pub subset: Option<Arc<str>>,
}

/// A copy of requests.
#[derive(Debug)]
pub struct Mirror {
    /// The service, or why there is none.
    pub to: Result<BackendService, Arc<str>>,
    /// So many of [`Mirror::whole`].
    pub part: u32,
    /// Not zero.
    pub whole: u32,
}

/// An answer that sends the client elsewhere.
#[derive(Debug)]
pub struct Redirect {
    /// Scheme, if not the request's.
    pub scheme: Option<&'static str>,
    /// Host, if not the request's.
    pub hostname: Option<Box<str>>,
    /// Port, if not the scheme's or the request's.
    pub port: Option<u16>,
    /// Path, if not the request's.
    pub path: Option<PathEdit>,
    /// Status.
    pub status: StatusCode,
}

/// Another host or path.
#[derive(Debug)]
pub struct Rewrite {
    /// Host.
    pub hostname: Option<Box<str>>,
    /// Path.
    pub path: Option<PathEdit>,
}

/// Another path.
#[derive(Debug, PartialEq, Eq)]
pub enum PathEdit {
    /// Instead of all of it.
    Full(Box<str>),
    /// Instead of the prefix that matched; without a slash at its end.
    Prefix(Box<str>),
}

/// When a request is tried again.
#[derive(Debug)]
pub struct Retry {
    /// How often.
    pub attempts: u32,
    /// Statuses that are worth it.
    pub codes: Vec<StatusCode>,
    /// Shortest time between two tries.
    pub backoff: Duration,
    /// The rule speaks of retries, so broken connections are worth it, too.
    pub explicit: bool,
}

/// What pages of other origins may do.
#[derive(Debug)]
pub struct Cors {
    /// Which origins.
    pub origins: Origins,
    /// With cookies and the like.
    pub credentials: bool,
    /// `access-control-allow-methods`; nothing for any.
    pub methods: Option<HeaderValue>,
    /// `access-control-allow-headers`; nothing for any.
    pub headers: Option<HeaderValue>,
    /// `access-control-expose-headers`.
    pub expose: Option<HeaderValue>,
    /// `access-control-max-age`.
    pub max_age: HeaderValue,
}

/// Which origins.
#[derive(Debug, Default)]
pub struct Origins {
    /// All of them.
    pub any: bool,
    /// These, in lower case.
    pub exact: Vec<Box<str>>,
    /// Scheme with `://`, and the end of the host with its dot.
    pub suffixes: Vec<(Box<str>, Box<str>)>,
}

/// Retries of rules that say nothing of them: as Istio's.
pub const DEFAULT_RETRIES: u32 = 2;
/// Shortest time between two tries of such rules.
pub const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);

// === impl Retry ===

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: DEFAULT_RETRIES, codes: Vec::new(), backoff: DEFAULT_BACKOFF, explicit: false }
    }
}

// === impl PathEdit ===

impl PathEdit {
    /// The target (path and query) with its path changed. `prefix` is the length of the prefix that matched, without a
    /// slash at its end.
    #[must_use]
    pub fn apply(&self, target: &str, prefix: usize) -> String {
        let path_end = target.find('?').unwrap_or(target.len());
        let (path, query) = target.split_at(path_end);
        let (start, rest) = match self {
            Self::Full(path) => (&**path, ""),
            Self::Prefix(start) => (&**start, path.get(prefix..).unwrap_or_default()),
        };
        let slash = if start.is_empty() && !rest.starts_with('/') { "/" } else { "" };
        format!("{slash}{start}{rest}{query}")
    }
}

// === impl Origins ===

impl Origins {
    /// True if pages of this origin are meant.
    #[must_use]
    pub fn admit(&self, origin: &str) -> bool {
        let ends = |host: &str, suffix: &str| {
            let start = host.len().checked_sub(suffix.len()).filter(|start| *start > 0);
            start.and_then(|start| host.get(start..)).is_some_and(|end| end.eq_ignore_ascii_case(suffix))
        };
        let wild = |(scheme, suffix): &(Box<str>, Box<str>)| {
            let host = origin.get(..scheme.len()).filter(|start| start.eq_ignore_ascii_case(scheme));
            host.and_then(|_| origin.get(scheme.len()..)).is_some_and(|host| ends(host, suffix))
        };
        self.any || self.exact.iter().any(|exact| exact.eq_ignore_ascii_case(origin)) || self.suffixes.iter().any(wild)
    }
}
