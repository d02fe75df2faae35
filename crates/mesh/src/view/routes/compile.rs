//! From routes as they were written to tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ::http::{HeaderName, HeaderValue, Method, StatusCode};
use ambit_api::{
    Route,
    routes::{
        self, BackendReference, Cors as CorsFilter, Filter, FilterType, GrpcMatch, GrpcRule, HeaderMatch,
        HeaderModifier, HttpMatch, HttpRule as WrittenRule, MatchType, MirrorFilter, PathMatchType, PathModifier,
        PathModifierType, RouteSpec, Scheme, StreamRule as WrittenStream, WeightedBackend,
    },
};
use ambit_xds::waypoint::{AttachedRoute, BoundService};

use super::{
    PortRoutes, Ports, ServiceRoutes,
    http::{HttpTable, Match, Matches, PathMatch, Value},
    model::{
        Backend, BackendService, Cors, Filters, HeaderEdits, HttpRule, Mirror, Origins, PathEdit, Redirect, Retry,
        Rewrite, StreamRule,
    },
    stream::TlsTable,
};
use crate::view::ServiceKey;

/// Routes that one service can have.
const MAX_ROUTES: usize = 1_024;
/// `access-control-max-age` of a filter that says nothing of it, in seconds.
const DEFAULT_MAX_AGE: u32 = 5;

/// A route as it came, read.
struct Read<'a> {
    wire: &'a AttachedRoute,
    kind: Kind,
    /// The route, or why it can't be read.
    route: Result<Route, Arc<str>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Http,
    Tls,
    Tcp,
}

/// The routes of a service; nothing if it has none. The errors are those of routes that can't be read, which close what
/// they are attached to.
pub(in crate::view) fn compile(service: &BoundService) -> (Option<Arc<ServiceRoutes>>, Vec<String>) {
    if service.routes.is_empty() {
        return (None, Vec::new());
    }
    let mut routes: Vec<_> = service.routes.iter().take(MAX_ROUTES).map(Read::new).collect();
    let mut reasons: Vec<String> =
        routes.iter().filter_map(|read| read.route.as_ref().err().map(ToString::to_string)).collect();
    if service.routes.len() > MAX_ROUTES {
        let reason: Arc<str> = format!("more than {MAX_ROUTES} routes are attached to the service").into();
        reasons.push(reason.to_string());
        routes.iter_mut().for_each(|read| read.route = Err(Arc::clone(&reason)));
    }
    routes.sort_by(|one, other| one.place().cmp(&other.place()));
    let mut namespaces: BTreeMap<&str, Vec<&Read<'_>>> = BTreeMap::new();
    for read in &routes {
        namespaces.entry(&read.wire.namespace).or_default().push(read);
    }
    let producer = namespaces.remove(service.namespace.as_str()).unwrap_or_default();
    let consumers = namespaces.into_iter().map(|(namespace, routes)| (namespace.into(), by_port(&routes)));
    let compiled = ServiceRoutes { producer: by_port(&producer), consumers: consumers.collect() };
    (Some(Arc::new(compiled)), reasons)
}

/// One table for every port that a route names, and one for all others.
fn by_port(routes: &[&Read<'_>]) -> Ports {
    let ports: BTreeSet<u32> = routes.iter().flat_map(|read| read.wire.ports.iter().copied()).collect();
    let of = |port: Option<u32>| {
        let here = |read: &&&Read<'_>| read.wire.ports.is_empty() || port.is_some_and(|p| read.wire.ports.contains(&p));
        port_routes(&routes.iter().copied().filter(|read| here(&read)).collect::<Vec<_>>())
    };
    let named = ports.iter().filter_map(|port| Some((u16::try_from(*port).ok()?, of(Some(*port)))));
    Ports { by_port: named.collect(), others: of(None) }
}

fn port_routes(routes: &[&Read<'_>]) -> PortRoutes {
    let of = |kind: Kind| routes.iter().copied().filter(move |read| read.kind == kind);
    let tcp = of(Kind::Tcp).next().map(|read| {
        Arc::new(match &read.route {
            Ok(Route { spec: RouteSpec::Tcp(spec), .. }) => stream_rule(read, spec.rules.first()),
            Ok(_) => stream_rule(read, None),
            Err(reason) => closed_stream(read, reason),
        })
    });
    let mut tls: Option<TlsTable> = None;
    for read in of(Kind::Tls) {
        let table = tls.get_or_insert_default();
        match &read.route {
            Ok(Route { spec: RouteSpec::Tls(spec), .. }) => {
                let rule = Arc::new(stream_rule(read, spec.rules.first()));
                if spec.hostnames.is_empty() {
                    table.add(None, &rule);
                }
                spec.hostnames.iter().for_each(|name| table.add(Some(name), &rule));
            }
            Ok(_) => table.add(None, &Arc::new(stream_rule(read, None))),
            // Nobody knows which names it is for.
            Err(reason) => {
                let mut closed = TlsTable::default();
                closed.add(None, &Arc::new(closed_stream(read, reason)));
                *table = closed;
                break;
            }
        }
    }
    PortRoutes { http: http_table(of(Kind::Http)).map(Arc::new), tls: tls.map(Arc::new), tcp }
}

fn http_table<'a>(routes: impl Iterator<Item = &'a Read<'a>>) -> Option<HttpTable> {
    let (mut rules, mut matches, mut closed, mut any) = (Vec::new(), Vec::new(), None, false);
    for read in routes {
        any = true;
        match &read.route {
            Err(reason) => drop(closed.get_or_insert_with(|| Arc::clone(reason))),
            Ok(Route { spec: RouteSpec::Http(spec), .. }) => {
                let default = [WrittenRule::default()];
                for (index, written) in spec.rules.as_deref().unwrap_or(&default).iter().enumerate() {
                    let everything = [HttpMatch::default()];
                    let wanted = if written.matches.is_empty() { &everything[..] } else { &written.matches };
                    let read_matches = wanted.iter().map(|wanted| http_match(wanted, rules.len()));
                    add(&mut matches, &mut closed, read, read_matches);
                    rules.push(Arc::new(http_rule(read, index, written)));
                }
            }
            Ok(Route { spec: RouteSpec::Grpc(spec), .. }) => {
                let default = [GrpcRule::default()];
                let written = if spec.rules.is_empty() { &default[..] } else { &spec.rules };
                for (index, written) in written.iter().enumerate() {
                    let everything = [GrpcMatch::default()];
                    let wanted = if written.matches.is_empty() { &everything[..] } else { &written.matches };
                    let read_matches = wanted.iter().map(|wanted| grpc_match(wanted, rules.len()));
                    add(&mut matches, &mut closed, read, read_matches);
                    rules.push(Arc::new(grpc_rule(read, index, written)));
                }
            }
            Ok(_) => {}
        }
    }
    any.then(|| HttpTable::new(rules, matches, closed))
}

/// A match that can't be read closes the table: nobody knows which requests it is for.
fn add(
    matches: &mut Vec<Match>,
    closed: &mut Option<Arc<str>>,
    read: &Read<'_>,
    found: impl Iterator<Item = Result<Match, String>>,
) {
    for wanted in found {
        match wanted {
            Ok(wanted) => matches.push(wanted),
            Err(reason) => drop(closed.get_or_insert_with(|| format!("{}: {reason}", read.name()).into())),
        }
    }
}

fn http_match(wanted: &HttpMatch, rule: usize) -> Result<Match, String> {
    let (kind, value) = match &wanted.path {
        None => (PathMatchType::PathPrefix, "/"),
        Some(path) => (path.kind.unwrap_or_default(), path.value.as_deref().unwrap_or("/")),
    };
    let path = match kind {
        PathMatchType::Exact => PathMatch::Exact(value.into()),
        PathMatchType::PathPrefix => PathMatch::Prefix(value.trim_end_matches('/').into()),
        PathMatchType::RegularExpression => path_pattern(value)?,
    };
    let mut queries: Vec<(Box<str>, Value)> = Vec::new();
    for query in &wanted.query_params {
        if !queries.iter().any(|(name, _)| **name == *query.name) {
            queries.push((query.name.as_str().into(), value_of(query.kind, &query.value)?));
        }
    }
    let method = wanted.method.as_ref().map(|method| Method::from_bytes(method.as_bytes())).transpose();
    let method = method.map_err(|_| "a match has a method that is none".to_owned())?;
    Ok(Match { path, method, headers: headers(&wanted.headers)?, queries, rule })
}

/// Service and method of a call are its path.
fn grpc_match(wanted: &GrpcMatch, rule: usize) -> Result<Match, String> {
    let given = |part: &Option<String>| part.clone().filter(|part| !part.is_empty());
    let method = wanted.method.as_ref().map(|m| (m.kind.unwrap_or_default(), given(&m.service), given(&m.method)));
    let path = match method {
        None | Some((_, None, None)) => PathMatch::Prefix("".into()),
        Some((MatchType::Exact, Some(service), Some(method))) => {
            PathMatch::Exact(format!("/{service}/{method}").into())
        }
        Some((MatchType::Exact, Some(service), None)) => PathMatch::Prefix(format!("/{service}").into()),
        Some((MatchType::Exact, None, Some(method))) => {
            path_pattern(&format!("/[^/]+/{}", method.replace('.', r"\.")))?
        }
        Some((MatchType::RegularExpression, service, method)) => {
            let part = |part: Option<String>| part.map_or("[^/]+".to_owned(), |part| format!("(?:{part})"));
            path_pattern(&format!("/{}/{}", part(service), part(method)))?
        }
    };
    // Only POST carries calls, but what else comes to the path is the server's to answer.
    Ok(Match { path, method: None, headers: headers(&wanted.headers)?, queries: Vec::new(), rule })
}

fn path_pattern(text: &str) -> Result<PathMatch, String> {
    Ok(PathMatch::Pattern { pattern: routes::pattern(text)?, length: text.len() })
}

/// Of several entries for one name the first counts.
fn headers(wanted: &[HeaderMatch]) -> Result<Vec<(HeaderName, Value)>, String> {
    let mut headers: Vec<(HeaderName, Value)> = Vec::new();
    for header in wanted {
        let name = header_name(&header.name)?;
        if !headers.iter().any(|(known, _)| *known == name) {
            headers.push((name, value_of(header.kind, &header.value)?));
        }
    }
    Ok(headers)
}

fn value_of(kind: Option<MatchType>, value: &str) -> Result<Value, String> {
    Ok(match kind.unwrap_or_default() {
        MatchType::Exact => Value::Exact(value.into()),
        MatchType::RegularExpression => Value::Pattern(routes::pattern(value)?),
    })
}

fn header_name(name: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("`{name}` is not a header's name"))
}

fn http_rule(read: &Read<'_>, index: usize, written: &WrittenRule) -> HttpRule {
    let mut faults = Faults::default();
    let filters = faults.filters(read, &written.filters);
    let backends = faults.backends(read, &written.backend_refs);
    if written.session_persistence.is_some() {
        faults.add("sticky sessions aren't supported".to_owned());
    }
    let timeouts = written.timeouts.clone().unwrap_or_default();
    let (request_timeout, backend_timeout) =
        (faults.timeout(timeouts.request.as_deref()), faults.timeout(timeouts.backend_request.as_deref()));
    let mut retry = Retry::default();
    if let Some(written) = &written.retry {
        retry.explicit = true;
        retry.attempts = written.attempts.unwrap_or(retry.attempts);
        retry.codes = written.codes.iter().filter_map(|code| StatusCode::from_u16(*code).ok()).collect();
        retry.backoff = faults.timeout(written.backoff.as_deref()).unwrap_or(retry.backoff);
    }
    let name = read.rule(index, written.name.as_deref());
    HttpRule { name, fault: faults.first, filters, backends, request_timeout, backend_timeout, retry }
}

fn grpc_rule(read: &Read<'_>, index: usize, written: &GrpcRule) -> HttpRule {
    let as_http = WrittenRule {
        name: written.name.clone(),
        filters: written.filters.clone(),
        backend_refs: written.backend_refs.clone(),
        session_persistence: written.session_persistence.clone(),
        ..WrittenRule::default()
    };
    http_rule(read, index, &as_http)
}

fn stream_rule(read: &Read<'_>, written: Option<&WrittenStream>) -> StreamRule {
    let mut faults = Faults::default();
    let backends = written.map(|written| faults.backends(read, &written.backend_refs)).unwrap_or_default();
    StreamRule { name: read.name().into(), fault: faults.first, backends }
}

fn closed_stream(read: &Read<'_>, reason: &Arc<str>) -> StreamRule {
    StreamRule { name: read.name().into(), fault: Some(Arc::clone(reason)), backends: Vec::new() }
}

/// The first reason why a rule can't be done.
#[derive(Default)]
struct Faults {
    first: Option<Arc<str>>,
}

// === impl Faults ===

impl Faults {
    fn add(&mut self, reason: String) {
        self.first.get_or_insert_with(|| reason.into());
    }

    fn note<T>(&mut self, read: Result<T, String>) -> Option<T> {
        read.map_err(|reason| self.add(reason)).ok()
    }

    /// `0s` is no timeout.
    fn timeout(&mut self, text: Option<&str>) -> Option<Duration> {
        let text = text?;
        let duration = routes::duration(text).ok_or_else(|| format!("`{text}` is not a duration"));
        self.note(duration).filter(|duration| !duration.is_zero())
    }

    fn backends(&mut self, read: &Read<'_>, written: &[WeightedBackend]) -> Vec<Backend> {
        let backend = |written: &WeightedBackend| {
            let (subsets, filters): (Vec<_>, Vec<_>) =
                written.filters.iter().cloned().partition(|filter| routes::subset_of(filter).is_some());
            if subsets.len() > 1 {
                self.add("a backend names more than one subset".to_owned());
            }
            let mut to = read.backend(&written.reference());
            if let (Ok(to), Some(subset)) = (&mut to, subsets.first().and_then(routes::subset_of)) {
                to.subset = Some(subset.into());
            }
            Backend { to, weight: written.weight.unwrap_or(1), filters: self.filters(read, &filters) }
        };
        written.iter().map(backend).collect()
    }

    fn filters(&mut self, read: &Read<'_>, written: &[Filter]) -> Filters {
        let mut filters = Filters::default();
        for filter in written {
            match filter.kind {
                FilterType::RequestHeaderModifier => {
                    filters.request_headers = filter.request_header_modifier.as_ref().and_then(|h| self.note(edits(h)));
                }
                FilterType::ResponseHeaderModifier => {
                    filters.response_headers =
                        filter.response_header_modifier.as_ref().and_then(|h| self.note(edits(h)));
                }
                FilterType::RequestMirror => {
                    filters.mirrors.extend(filter.request_mirror.as_ref().map(|written| mirror(read, written)));
                }
                FilterType::RequestRedirect => {
                    filters.redirect = filter.request_redirect.as_ref().and_then(|r| self.note(redirect(r)));
                }
                FilterType::UrlRewrite => {
                    filters.rewrite = filter.url_rewrite.as_ref().map(|written| Rewrite {
                        hostname: written.hostname.as_deref().map(Into::into),
                        path: written.path.as_ref().map(path_edit),
                    });
                }
                FilterType::Cors => filters.cors = filter.cors.as_ref().and_then(|c| self.note(cors(c))),
                FilterType::ExternalAuth => self.add("the filter `ExternalAuth` isn't supported".to_owned()),
                FilterType::ExtensionRef => self.add("the filter `ExtensionRef` isn't supported".to_owned()),
            }
        }
        filters
    }
}

fn edits(written: &HeaderModifier) -> Result<HeaderEdits, String> {
    let name = |name: &str| match routes::may_modify(name) {
        true => header_name(name),
        false => Err(format!("`{name}` can't be changed by a route")),
    };
    let line = |header: &routes::HeaderValue| {
        let value =
            HeaderValue::from_str(&header.value).map_err(|_| format!("a value of `{}` is none", header.name))?;
        Ok::<_, String>((name(&header.name)?, value))
    };
    Ok(HeaderEdits {
        remove: written.remove.iter().map(|removed| name(removed)).collect::<Result<_, _>>()?,
        set: written.set.iter().map(line).collect::<Result<_, _>>()?,
        add: written.add.iter().map(line).collect::<Result<_, _>>()?,
    })
}

fn mirror(read: &Read<'_>, written: &MirrorFilter) -> Mirror {
    let (part, whole) = match (written.percent, &written.fraction) {
        (Some(percent), _) => (percent, 100),
        (None, Some(fraction)) => (fraction.numerator, fraction.denominator.unwrap_or(100).max(1)),
        (None, None) => (1, 1),
    };
    Mirror { to: read.backend(&written.backend_ref), part, whole }
}

fn redirect(written: &routes::Redirect) -> Result<Redirect, String> {
    let status = written.status_code.unwrap_or(302);
    Ok(Redirect {
        scheme: written.scheme.map(|scheme| match scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }),
        hostname: written.hostname.as_deref().map(Into::into),
        port: written.port,
        path: written.path.as_ref().map(path_edit),
        status: StatusCode::from_u16(status).map_err(|_| format!("{status} is not a status"))?,
    })
}

fn path_edit(written: &PathModifier) -> PathEdit {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    match written.kind {
        PathModifierType::ReplaceFullPath => PathEdit::Full(text(&written.replace_full_path).into()),
        PathModifierType::ReplacePrefixMatch => {
            PathEdit::Prefix(text(&written.replace_prefix_match).trim_end_matches('/').into())
        }
    }
}

fn cors(written: &CorsFilter) -> Result<Cors, String> {
    let list = |values: &[String]| match values {
        values if values.iter().any(|value| value == "*") => Ok(None),
        values => {
            HeaderValue::from_str(&values.join(", ")).map(Some).map_err(|_| "a name in `cors` is none".to_owned())
        }
    };
    let mut origins = Origins::default();
    for origin in &written.allow_origins {
        match origin.split_once("://") {
            _ if origin == "*" => origins.any = true,
            Some((scheme, host)) => match host.strip_prefix('*') {
                Some(suffix) => origins.suffixes.push((format!("{scheme}://").into(), suffix.into())),
                None => origins.exact.push(origin.as_str().into()),
            },
            None => origins.exact.push(origin.as_str().into()),
        }
    }
    let expose = match written.expose_headers.as_slice() {
        [] => None,
        values => Some(list(values)?.unwrap_or(HeaderValue::from_static("*"))),
    };
    Ok(Cors {
        origins,
        credentials: written.allow_credentials.unwrap_or(false),
        methods: list(&written.allow_methods)?,
        headers: list(&written.allow_headers)?,
        expose,
        max_age: HeaderValue::from(written.max_age.unwrap_or(DEFAULT_MAX_AGE)),
    })
}

// === impl Matches ===

impl Matches {
    /// Reads them.
    ///
    /// # Errors
    /// Why one of them is none.
    pub(in crate::view) fn read(written: &[HttpMatch]) -> Result<Self, String> {
        Ok(Self::new(written.iter().map(|wanted| http_match(wanted, 0)).collect::<Result<_, _>>()?))
    }
}

// === impl Read ===

impl<'a> Read<'a> {
    fn new(wire: &'a AttachedRoute) -> Self {
        let kind = match wire.kind.as_str() {
            "TLSRoute" => Kind::Tls,
            "TCPRoute" => Kind::Tcp,
            _ => Kind::Http,
        };
        let mut read = Self { wire, kind, route: Err("".into()) };
        read.route = read.decode().map_err(|reason| format!("{} was rejected: {reason}", read.name()).into());
        read
    }

    fn decode(&self) -> Result<Route, String> {
        let wire = self.wire;
        if !wire.rejection.is_empty() {
            return Err(wire.rejection.clone());
        }
        let route: Route = serde_json::from_slice(&wire.json).map_err(|error| format!("it can't be read: {error}"))?;
        if (route.kind(), &route.namespace, &route.name) != (wire.kind.as_str(), &wire.namespace, &wire.name) {
            return Err("it carries another route".to_owned());
        }
        Ok(route)
    }

    /// Oldest first, those without an age last; then by name.
    fn place(&self) -> impl Ord + use<'_, 'a> {
        let created = self.route.as_ref().ok().and_then(|route| route.created.as_deref());
        (created.is_none(), created, &self.wire.namespace, &self.wire.name, &self.wire.kind)
    }

    fn name(&self) -> String {
        format!("{} `{}/{}`", self.wire.kind, self.wire.namespace, self.wire.name)
    }

    fn rule(&self, index: usize, name: Option<&str>) -> Arc<str> {
        match name {
            Some(name) => format!("{} rule `{name}`", self.name()).into(),
            None => format!("{} rule {index}", self.name()).into(),
        }
    }

    fn backend(&self, written: &BackendReference) -> Result<BackendService, Arc<str>> {
        let own = self.wire.namespace.as_str();
        let Some((namespace, name)) = written.service(own) else {
            let kind = written.kind.as_deref().unwrap_or("Service");
            return Err(format!("its backend `{}` is a {kind}, not a Service", written.name).into());
        };
        let hostname = format!("{name}.{namespace}.svc.{}", self.wire.cluster_domain);
        let key = ServiceKey { namespace: namespace.into(), hostname: hostname.into() };
        let port = written.port.filter(|port| *port != 0);
        let port = port.ok_or_else(|| Arc::from(format!("its backend `{namespace}/{name}` has no port")))?;
        Ok(BackendService { key, port, foreign: namespace != own, subset: None })
    }
}
