//! Routes: what the Gateway API's schema would refuse, and what a mesh doesn't do.

mod filters;
pub(super) mod matches;

use std::collections::HashSet;

use self::matches::{check_grpc_match, check_http_match};
use super::{Check, names, policy::is_token};
use crate::{
    Route, codes,
    limits::{MAX_ROUTE_BACKENDS, MAX_ROUTE_LIST, MAX_ROUTE_MATCHES, MAX_ROUTE_RULES},
    routes::{
        self, GrpcRouteSpec, GrpcRule, HttpRouteSpec, HttpRule, ParentReference, PathMatchType, Retry, RouteSpec,
        SessionPersistence, StreamRule, Timeouts, WeightedBackend,
    },
    text::quoted,
};

/// Largest weight of a backend.
const MAX_WEIGHT: u32 = 1_000_000;
/// Most retries of one request.
const MAX_ATTEMPTS: u32 = 25;

/// Checks a whole route.
pub(super) fn check(check: &mut Check<'_>, route: &Route) {
    check_parents(check, route.parents());
    match &route.spec {
        RouteSpec::Http(spec) => check_http(check, spec),
        RouteSpec::Grpc(spec) => check_grpc(check, spec),
        RouteSpec::Tls(spec) => {
            check_stream(check, &spec.rules);
            at_most(check, "spec.hostnames", spec.hostnames.len(), MAX_ROUTE_LIST);
            for (index, name) in spec.hostnames.iter().enumerate() {
                if let Some(fault) = names::dns_subdomain(name.strip_prefix("*.").unwrap_or(name)) {
                    let message = format!("`{}` is not a server's name: {fault}", quoted(name));
                    let help = "write a name such as `db.example` or `*.example`";
                    check.error(codes::BAD_MATCH, &format!("spec.hostnames[{index}]"), message, help);
                }
            }
        }
        RouteSpec::Tcp(spec) => check_stream(check, &spec.rules),
    }
}

fn check_parents(check: &mut Check<'_>, parents: &[ParentReference]) {
    at_most(check, "spec.parentRefs", parents.len(), MAX_ROUTE_LIST);
    if parents.is_empty() {
        let help = "add `{group: \"\", kind: Service, name: <Service>}`";
        check.warning(codes::BAD_PARENT, "spec.parentRefs", "the route is attached to nothing", help);
    }
    for (index, parent) in parents.iter().enumerate() {
        let field = format!("spec.parentRefs[{index}]");
        if parent.name.is_empty() {
            check.error(codes::BAD_PARENT, &format!("{field}.name"), "the parent has no name", "add `name`");
        }
        if parent.port == Some(0) {
            check.error(codes::BAD_PARENT, &format!("{field}.port"), "0 is not a port", "use 1 to 65535");
        }
    }
}

fn check_http(check: &mut Check<'_>, spec: &HttpRouteSpec) {
    ignored_hostnames(check, &spec.hostnames);
    let rules = spec.rules.as_deref().unwrap_or_default();
    at_most(check, "spec.rules", rules.len(), MAX_ROUTE_RULES);
    check_names(check, rules.iter().map(|rule| rule.name.as_deref()));
    for (index, rule) in rules.iter().enumerate() {
        check_http_rule(check, &format!("spec.rules[{index}]"), rule);
    }
}

fn check_http_rule(check: &mut Check<'_>, field: &str, rule: &HttpRule) {
    at_most(check, &format!("{field}.matches"), rule.matches.len(), MAX_ROUTE_MATCHES);
    for (index, wanted) in rule.matches.iter().enumerate() {
        check_http_match(check, &format!("{field}.matches[{index}]"), wanted);
    }
    // A prefix can only be replaced where one is matched; no matches at all are the prefix `/`.
    let is_prefix = |wanted: &routes::HttpMatch| {
        wanted.path.as_ref().is_none_or(|path| path.kind.unwrap_or_default() == PathMatchType::PathPrefix)
    };
    let prefixes = rule.matches.iter().all(is_prefix);
    filters::check(
        check,
        &format!("{field}.filters"),
        &rule.filters,
        filters::Place { http: true, backend: false, prefixes },
    );
    if filters::redirects(&rule.filters) && !rule.backend_refs.is_empty() {
        let help = "remove `backendRefs`, or the redirect";
        let message = "a rule that redirects sends nothing to backends";
        check.error(codes::BAD_FILTER, &format!("{field}.backendRefs"), message, help);
    }
    check_backends(check, field, &rule.backend_refs, Some(filters::Place { http: true, backend: true, prefixes }));
    if let Some(timeouts) = &rule.timeouts {
        check_timeouts(check, &format!("{field}.timeouts"), timeouts);
    }
    if let Some(retry) = &rule.retry {
        check_retry(check, &format!("{field}.retry"), retry);
    }
    check_sessions(check, field, rule.session_persistence.as_ref());
}

fn check_grpc(check: &mut Check<'_>, spec: &GrpcRouteSpec) {
    ignored_hostnames(check, &spec.hostnames);
    at_most(check, "spec.rules", spec.rules.len(), MAX_ROUTE_RULES);
    check_names(check, spec.rules.iter().map(|rule| rule.name.as_deref()));
    for (index, rule) in spec.rules.iter().enumerate() {
        check_grpc_rule(check, &format!("spec.rules[{index}]"), rule);
    }
}

fn check_grpc_rule(check: &mut Check<'_>, field: &str, rule: &GrpcRule) {
    at_most(check, &format!("{field}.matches"), rule.matches.len(), MAX_ROUTE_MATCHES);
    for (index, wanted) in rule.matches.iter().enumerate() {
        check_grpc_match(check, &format!("{field}.matches[{index}]"), wanted);
    }
    let place = filters::Place { http: false, backend: false, prefixes: false };
    filters::check(check, &format!("{field}.filters"), &rule.filters, place);
    check_backends(check, field, &rule.backend_refs, Some(filters::Place { backend: true, ..place }));
    check_sessions(check, field, rule.session_persistence.as_ref());
}

fn check_stream(check: &mut Check<'_>, rules: &[StreamRule]) {
    check_names(check, rules.iter().map(|rule| rule.name.as_deref()));
    if rules.is_empty() {
        check.error(codes::BAD_BACKEND, "spec.rules", "the route has no rule", "add one with `backendRefs`");
    }
    if rules.len() > 1 {
        let message = "only the first rule counts: none of them says which connections it is for";
        check.warning(codes::ROUTE_WITHOUT_EFFECT, "spec.rules[1]", message, "put the backends into one rule");
    }
    for (index, rule) in rules.iter().enumerate() {
        check_backends(check, &format!("spec.rules[{index}]"), &rule.backend_refs, None);
    }
}

fn check_backends(
    check: &mut Check<'_>,
    rule: &str,
    backends: &[WeightedBackend],
    filters_allowed: Option<filters::Place>,
) {
    at_most(check, &format!("{rule}.backendRefs"), backends.len(), MAX_ROUTE_BACKENDS);
    for (index, backend) in backends.iter().enumerate() {
        let field = format!("{rule}.backendRefs[{index}]");
        check_backend(check, &field, &backend.reference());
        if backend.weight.is_some_and(|weight| weight > MAX_WEIGHT) {
            let message = format!("a weight is at most {MAX_WEIGHT}");
            check.error(codes::BAD_BACKEND, &format!("{field}.weight"), message, "use smaller weights");
        }
        match filters_allowed {
            Some(place) => filters::check(check, &format!("{field}.filters"), &backend.filters, place),
            None if backend.filters.is_empty() => {}
            None => {
                let message = "connections that aren't HTTP can't be filtered";
                check.error(codes::BAD_FILTER, &format!("{field}.filters"), message, "remove it");
            }
        }
    }
}

/// Checks a reference to a backend.
fn check_backend(check: &mut Check<'_>, field: &str, backend: &routes::BackendReference) {
    if backend.name.is_empty() {
        check.error(codes::BAD_BACKEND, &format!("{field}.name"), "the backend has no name", "add `name`");
    }
    match backend.port {
        Some(0) => check.error(codes::BAD_BACKEND, &format!("{field}.port"), "0 is not a port", "use 1 to 65535"),
        None if backend.service("").is_some() => {
            let message = "a backend that is a Service needs a port";
            check.error(codes::BAD_BACKEND, &format!("{field}.port"), message, "add `port`");
        }
        _ => {}
    }
}

fn check_timeouts(check: &mut Check<'_>, field: &str, timeouts: &Timeouts) {
    let mut read = |name: &str, text: &Option<String>| {
        let text = text.as_ref()?;
        let duration = routes::duration(text);
        if duration.is_none() {
            let message = format!("`{}` is not a duration", quoted(text));
            check.error(codes::BAD_TIMEOUT, &format!("{field}.{name}"), message, DURATION_HELP);
        }
        duration
    };
    let (request, backend) = (read("request", &timeouts.request), read("backendRequest", &timeouts.backend_request));
    if let (Some(request), Some(backend)) = (request, backend)
        && !request.is_zero()
        && backend > request
    {
        let message = "one try can't take longer than the whole request";
        check.error(codes::BAD_TIMEOUT, &format!("{field}.backendRequest"), message, "make it shorter than `request`");
    }
}

const DURATION_HELP: &str = "write it like `10s`, `500ms` or `1m30s`";

fn check_retry(check: &mut Check<'_>, field: &str, retry: &Retry) {
    at_most(check, &format!("{field}.codes"), retry.codes.len(), MAX_ROUTE_LIST);
    for (index, code) in retry.codes.iter().enumerate() {
        if !(400..600).contains(code) {
            let message = format!("{code} is not a status that is worth another try");
            check.error(codes::BAD_RETRY, &format!("{field}.codes[{index}]"), message, "use 400 to 599");
        }
    }
    if retry.attempts.is_some_and(|attempts| attempts > MAX_ATTEMPTS) {
        let message = format!("more than {MAX_ATTEMPTS} retries");
        check.error(codes::BAD_RETRY, &format!("{field}.attempts"), message, "try fewer times");
    }
    if let Some(backoff) = retry.backoff.as_ref().filter(|backoff| routes::duration(backoff).is_none()) {
        let message = format!("`{}` is not a duration", quoted(backoff));
        check.error(codes::BAD_RETRY, &format!("{field}.backoff"), message, DURATION_HELP);
    }
}

fn check_sessions(check: &mut Check<'_>, rule: &str, sessions: Option<&SessionPersistence>) {
    if sessions.is_some() {
        let message = "sticky sessions aren't supported; requests that this rule matches are answered 500";
        check.warning(codes::UNSUPPORTED_ROUTE, &format!("{rule}.sessionPersistence"), message, "remove it");
    }
}

fn check_names<'a>(check: &mut Check<'_>, rules: impl Iterator<Item = Option<&'a str>>) {
    let mut seen = HashSet::new();
    for (index, name) in rules.enumerate() {
        let Some(name) = name else { continue };
        let field = format!("spec.rules[{index}].name");
        if let Some(fault) = names::dns_subdomain(name) {
            let message = format!("`{}` is not a rule's name: {fault}", quoted(name));
            check.error(codes::BAD_RULE_NAME, &field, message, "use a name like `canary`");
        } else if !seen.insert(name) {
            let message = format!("a second rule named `{name}`");
            check.error(codes::BAD_RULE_NAME, &field, message, "give each rule its own name");
        }
    }
}

fn ignored_hostnames(check: &mut Check<'_>, hostnames: &[String]) {
    if !hostnames.is_empty() {
        let message = "host names mean nothing where the parent is a Service: its address says what is meant";
        check.warning(codes::ROUTE_WITHOUT_EFFECT, "spec.hostnames", message, "match the header `host` instead");
    }
}

/// True for a header's name or the like.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_token)
}

/// Says that a list is too long.
fn at_most(check: &mut Check<'_>, field: &str, length: usize, most: usize) {
    if length > most {
        check.error(codes::TOO_MANY, field, format!("{length} entries; there can be {most}"), "split the route");
    }
}
