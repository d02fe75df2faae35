//! Filters.

use std::collections::HashSet;

use super::{Check, at_most, check_backend, is_name};
use crate::{
    codes,
    limits::{MAX_ROUTE_FILTERS, MAX_ROUTE_LIST},
    routes::{
        Cors, Filter, FilterType, HeaderModifier, MirrorFilter, PathModifier, PathModifierType, Redirect, may_modify,
        subset_of,
    },
    text::quoted,
    validate::names,
};

/// Where filters stand.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// In an HTTPRoute; otherwise in a GRPCRoute.
    pub(super) http: bool,
    /// At a backend; otherwise at a rule.
    pub(super) backend: bool,
    /// Every match of the rule is by a prefix of the path.
    pub(super) prefixes: bool,
}

/// True if one of them answers by itself.
pub(super) fn redirects(filters: &[Filter]) -> bool {
    filters.iter().any(|filter| filter.kind == FilterType::RequestRedirect)
}

/// Checks a list of filters.
pub(super) fn check(check: &mut Check<'_>, field: &str, filters: &[Filter], place: Place) {
    at_most(check, field, filters.len(), MAX_ROUTE_FILTERS);
    let mut seen = HashSet::new();
    for (index, filter) in filters.iter().enumerate() {
        let at = format!("{field}[{index}]");
        let repeatable = matches!(filter.kind, FilterType::RequestMirror | FilterType::ExtensionRef);
        if !seen.insert(name_of(filter.kind)) && !repeatable {
            let message = format!("a second `{}`", name_of(filter.kind));
            check.error(codes::BAD_FILTER, &at, message, "put everything into one");
        }
        if !place.http && !matches!(filter.kind, HEADERS_OF_REQUEST | HEADERS_OF_RESPONSE | MIRROR | EXTENSION) {
            let message = format!("a GRPCRoute has no filter `{}`", name_of(filter.kind));
            check.error(codes::BAD_FILTER, &format!("{at}.type"), message, "use an HTTPRoute");
        }
        check_fields(check, &at, filter);
        check_one(check, &at, filter, place);
    }
    if redirects(filters) && filters.iter().any(|filter| filter.kind == FilterType::UrlRewrite) {
        let message = "a redirect and a rewrite can't stand together";
        check.error(codes::BAD_FILTER, field, message, "remove one of the two");
    }
}

const HEADERS_OF_REQUEST: FilterType = FilterType::RequestHeaderModifier;
const HEADERS_OF_RESPONSE: FilterType = FilterType::ResponseHeaderModifier;
const MIRROR: FilterType = FilterType::RequestMirror;
const EXTENSION: FilterType = FilterType::ExtensionRef;

fn name_of(kind: FilterType) -> &'static str {
    match kind {
        FilterType::RequestHeaderModifier => "RequestHeaderModifier",
        FilterType::ResponseHeaderModifier => "ResponseHeaderModifier",
        FilterType::RequestMirror => "RequestMirror",
        FilterType::RequestRedirect => "RequestRedirect",
        FilterType::UrlRewrite => "URLRewrite",
        FilterType::Cors => "CORS",
        FilterType::ExternalAuth => "ExternalAuth",
        FilterType::ExtensionRef => "ExtensionRef",
    }
}

/// The field of the filter's type is there, and no other one.
fn check_fields(check: &mut Check<'_>, at: &str, filter: &Filter) {
    let fields = [
        (FilterType::RequestHeaderModifier, "requestHeaderModifier", filter.request_header_modifier.is_some()),
        (FilterType::ResponseHeaderModifier, "responseHeaderModifier", filter.response_header_modifier.is_some()),
        (FilterType::RequestMirror, "requestMirror", filter.request_mirror.is_some()),
        (FilterType::RequestRedirect, "requestRedirect", filter.request_redirect.is_some()),
        (FilterType::UrlRewrite, "urlRewrite", filter.url_rewrite.is_some()),
        (FilterType::Cors, "cors", filter.cors.is_some()),
        (FilterType::ExternalAuth, "externalAuth", filter.external_auth.is_some()),
        (FilterType::ExtensionRef, "extensionRef", filter.extension_ref.is_some()),
    ];
    for (kind, name, written) in fields {
        if kind == filter.kind && !written {
            let message = format!("`{}` needs `{name}`", name_of(kind));
            check.error(codes::BAD_FILTER, at, message, format!("add `{name}`"));
        } else if kind != filter.kind && written {
            let message = format!("`{name}` doesn't belong to `{}`", name_of(filter.kind));
            check.error(codes::BAD_FILTER, &format!("{at}.{name}"), message, "remove it, or correct `type`");
        }
    }
}

fn check_one(check: &mut Check<'_>, at: &str, filter: &Filter, place: Place) {
    if let Some(headers) = &filter.request_header_modifier {
        check_headers(check, &format!("{at}.requestHeaderModifier"), headers);
    }
    if let Some(headers) = &filter.response_header_modifier {
        check_headers(check, &format!("{at}.responseHeaderModifier"), headers);
    }
    if let Some(mirror) = &filter.request_mirror {
        check_mirror(check, &format!("{at}.requestMirror"), mirror);
    }
    if let Some(redirect) = &filter.request_redirect {
        check_redirect(check, &format!("{at}.requestRedirect"), redirect, place);
    }
    if let Some(rewrite) = &filter.url_rewrite {
        let at = format!("{at}.urlRewrite");
        check_hostname(check, &at, rewrite.hostname.as_deref());
        check_path(check, &at, rewrite.path.as_ref(), place);
    }
    if let Some(cors) = &filter.cors {
        check_cors(check, &format!("{at}.cors"), cors);
    }
    if let Some(subset) = subset_of(filter).filter(|_| place.backend) {
        if let Some(fault) = names::dns_label(subset) {
            let message = format!("`{}` is not a subset's name: {fault}", quoted(subset));
            check.error(codes::BAD_FILTER, &format!("{at}.extensionRef.name"), message, "use a name like `v1`");
        }
        return;
    }
    if matches!(filter.kind, FilterType::ExternalAuth | FilterType::ExtensionRef) {
        let kind = name_of(filter.kind);
        let message = format!("`{kind}` isn't supported; requests that this rule matches are answered 500");
        let help = match filter.kind {
            FilterType::ExternalAuth => "use an AuthorizationPolicy with `action: CUSTOM`",
            _ => "remove it",
        };
        check.warning(codes::UNSUPPORTED_ROUTE, &format!("{at}.type"), message, help);
    }
}

fn check_headers(check: &mut Check<'_>, field: &str, headers: &HeaderModifier) {
    let mut seen = HashSet::new();
    for (list, entries) in [("set", &headers.set), ("add", &headers.add)] {
        at_most(check, &format!("{field}.{list}"), entries.len(), MAX_ROUTE_LIST);
        for (index, header) in entries.iter().enumerate() {
            let at = format!("{field}.{list}[{index}]");
            check_header_name(check, &format!("{at}.name"), &header.name);
            if !header.value.chars().all(|c| c == '\t' || (!c.is_control() && c.is_ascii())) {
                let message = "the value has a character that no header's value may have";
                check.error(codes::BAD_FILTER, &format!("{at}.value"), message, "use visible ASCII characters");
            }
            if !seen.insert((list, header.name.to_ascii_lowercase())) {
                let message = format!("a second entry for `{}`", quoted(&header.name));
                check.error(codes::BAD_FILTER, &format!("{at}.name"), message, "keep one");
            }
        }
    }
    at_most(check, &format!("{field}.remove"), headers.remove.len(), MAX_ROUTE_LIST);
    for (index, name) in headers.remove.iter().enumerate() {
        check_header_name(check, &format!("{field}.remove[{index}]"), name);
    }
}

fn check_header_name(check: &mut Check<'_>, field: &str, name: &str) {
    if !is_name(name) {
        let message = format!("`{}` is not a header's name", quoted(name));
        check.error(codes::BAD_FILTER, field, message, "use letters, digits and `-`");
    } else if !may_modify(name) {
        let message = format!("`{name}` can't be changed by a route");
        let help = "headers that frame or address a message, concern one hop, or say what only the mesh knows are fixed; \
                    the host is changed by `URLRewrite`";
        check.error(codes::BAD_FILTER, field, message, help);
    }
}

fn check_mirror(check: &mut Check<'_>, field: &str, mirror: &MirrorFilter) {
    check_backend(check, &format!("{field}.backendRef"), &mirror.backend_ref);
    if mirror.percent.is_some() && mirror.fraction.is_some() {
        let message = "`percent` and `fraction` say the same thing twice";
        check.error(codes::BAD_FILTER, &format!("{field}.percent"), message, "remove one of the two");
    }
    if mirror.percent.is_some_and(|percent| percent > 100) {
        let message = "a part is at most 100 %";
        check.error(codes::BAD_FILTER, &format!("{field}.percent"), message, "use 0 to 100");
    }
    if let Some(fraction) = &mirror.fraction {
        let whole = fraction.denominator.unwrap_or(100);
        if whole == 0 || fraction.numerator > whole {
            let message = format!("{} of {whole} is not a part", fraction.numerator);
            check.error(codes::BAD_FILTER, &format!("{field}.fraction"), message, "make the denominator larger");
        }
    }
}

fn check_redirect(check: &mut Check<'_>, field: &str, redirect: &Redirect, place: Place) {
    check_hostname(check, field, redirect.hostname.as_deref());
    check_path(check, field, redirect.path.as_ref(), place);
    if redirect.port == Some(0) {
        check.error(codes::BAD_FILTER, &format!("{field}.port"), "0 is not a port", "use 1 to 65535");
    }
    if let Some(status) = redirect.status_code.filter(|status| ![301, 302, 303, 307, 308].contains(status)) {
        let message = format!("{status} is not a status that redirects");
        check.error(codes::BAD_FILTER, &format!("{field}.statusCode"), message, "use 301, 302, 303, 307 or 308");
    }
}

fn check_hostname(check: &mut Check<'_>, field: &str, hostname: Option<&str>) {
    if let Some((name, fault)) = hostname.and_then(|name| Some((name, names::dns_subdomain(name)?))) {
        let message = format!("`{}` is not a host name: {fault}", quoted(name));
        check.error(codes::BAD_FILTER, &format!("{field}.hostname"), message, "use a name like `api.example`");
    }
}

fn check_path(check: &mut Check<'_>, field: &str, path: Option<&PathModifier>, place: Place) {
    let Some(path) = path else { return };
    let field = format!("{field}.path");
    let (full, prefix) = (&path.replace_full_path, &path.replace_prefix_match);
    let (wanted, name, other) = match path.kind {
        PathModifierType::ReplaceFullPath => (full, "replaceFullPath", prefix),
        PathModifierType::ReplacePrefixMatch => (prefix, "replacePrefixMatch", full),
    };
    if wanted.is_none() || other.is_some() {
        let message = format!("this `type` goes with `{name}` alone");
        check.error(codes::BAD_FILTER, &field, message, format!("write `{name}`"));
    }
    let odd = |c: char| !c.is_ascii_graphic() || c == '#' || c == '?';
    if let Some(value) =
        wanted.as_ref().filter(|value| !(value.is_empty() || value.starts_with('/')) || value.contains(odd))
    {
        let message = format!("`{}` is not a path", quoted(value));
        check.error(codes::BAD_FILTER, &format!("{field}.{name}"), message, "write a path such as `/v2`");
    }
    if path.kind == PathModifierType::ReplacePrefixMatch && !place.prefixes {
        let message = "a prefix can only be replaced where every match of the rule is by prefix";
        check.error(codes::BAD_FILTER, &format!("{field}.type"), message, "match `PathPrefix`");
    }
}

fn check_cors(check: &mut Check<'_>, field: &str, cors: &Cors) {
    for (name, length) in [
        ("allowOrigins", cors.allow_origins.len()),
        ("allowMethods", cors.allow_methods.len()),
        ("allowHeaders", cors.allow_headers.len()),
        ("exposeHeaders", cors.expose_headers.len()),
    ] {
        at_most(check, &format!("{field}.{name}"), length, MAX_ROUTE_LIST);
    }
    for (index, origin) in cors.allow_origins.iter().enumerate() {
        let host = origin.split_once("://").map(|(_, host)| host);
        let wild = host.is_some_and(|host| host.strip_prefix("*.").unwrap_or(host).contains('*') && host != "*");
        let odd = |host: &str| host.is_empty() || host.contains(['/', '@', ' ', '?', '#']) || !host.is_ascii();
        if origin != "*" && (host.is_none_or(odd) || wild) {
            let message = format!("`{}` is not an origin", quoted(origin));
            let help = "write `https://a.example`, `https://*.example` or `*`";
            check.error(codes::BAD_FILTER, &format!("{field}.allowOrigins[{index}]"), message, help);
        }
    }
    let lists = [
        ("allowMethods", &cors.allow_methods),
        ("allowHeaders", &cors.allow_headers),
        ("exposeHeaders", &cors.expose_headers),
    ];
    for (name, values) in lists {
        for (index, value) in values.iter().enumerate().filter(|(_, value)| !is_name(value)) {
            let message = format!("`{}` is not a name", quoted(value));
            check.error(codes::BAD_FILTER, &format!("{field}.{name}[{index}]"), message, "use a name, or `*`");
        }
    }
}
