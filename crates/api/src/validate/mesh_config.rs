//! MeshConfig: aliases, and providers (`spec/authorization.md` 2.9).

use std::collections::HashSet;

use super::{Check, names};
use crate::{
    MeshConfig, codes,
    limits::MAX_CHECKED_BODY_BYTES,
    mesh_config::{self, ExtensionProvider, HttpAuthorizer, OpenTelemetry, RequestBody},
    text::quoted,
};

/// Checks the whole object.
pub(super) fn check(check: &mut Check<'_>, object: &MeshConfig) {
    for (index, alias) in object.spec.trust_domain_aliases.iter().enumerate() {
        if let Some(fault) = names::dns_subdomain(alias) {
            let message = format!("`{}` is not a trust domain: {fault}", quoted(alias));
            let field = format!("spec.trustDomainAliases[{index}]");
            check.error(codes::BAD_MESH_CONFIG, &field, message, "write a trust domain like `old.example.com`");
        }
    }
    for (index, range) in object.spec.jwks_allowed_ranges.iter().enumerate() {
        if !super::policy::is_address_block(range) {
            let message = format!("`{}` is not a range of addresses", quoted(range));
            let field = format!("spec.jwksAllowedRanges[{index}]");
            check.error(codes::BAD_MESH_CONFIG, &field, message, "write an address or a range like `10.244.0.0/16`");
        }
    }
    let mut known = HashSet::new();
    for (index, provider) in object.spec.extension_providers.iter().enumerate() {
        let field = format!("spec.extensionProviders[{index}]");
        if let Some(fault) = names::dns_label(&provider.name) {
            let message = format!("`{}` is not a provider's name: {fault}", quoted(&provider.name));
            check.error(codes::BAD_PROVIDER, &format!("{field}.name"), message, "use a name like `oauth`");
        } else if !known.insert(provider.name.as_str()) {
            let message = format!("a second provider named `{}`", provider.name);
            check.error(codes::BAD_PROVIDER, &format!("{field}.name"), message, "give each its own name");
        }
        check_provider(check, &field, provider);
    }
    check_tracing(check, object);
}

fn check_tracing(check: &mut Check<'_>, object: &MeshConfig) {
    let named = object.spec.default_providers.as_ref().map_or(&[][..], |providers| &providers.tracing);
    let field = "spec.defaultProviders.tracing";
    if named.len() > 1 {
        check.error(codes::BAD_MESH_CONFIG, field, "more than one provider for traces", "name one");
    }
    let collectors = object.spec.extension_providers.iter().filter(|provider| provider.opentelemetry.is_some());
    let known: HashSet<_> = collectors.map(|provider| provider.name.as_str()).collect();
    for (index, name) in named.iter().enumerate().filter(|(_, name)| !known.contains(name.as_str())) {
        let message = format!("`{}` is no provider with `opentelemetry`", quoted(name));
        let help = "add it to `extensionProviders`";
        check.error(codes::BAD_MESH_CONFIG, &format!("{field}[{index}]"), message, help);
    }
}

fn check_provider(check: &mut Check<'_>, field: &str, provider: &ExtensionProvider) {
    match (&provider.envoy_ext_authz_http, &provider.envoy_ext_authz_grpc, &provider.opentelemetry) {
        (None, None, Some(collector)) => check_collector(check, &format!("{field}.opentelemetry"), collector),
        (Some(http), None, None) => {
            let field = format!("{field}.envoyExtAuthzHttp");
            check_address(check, &field, &http.service, http.port, http.timeout.as_deref());
            check_status(check, &field, http.status_on_error.as_deref());
            if let Some(prefix) = http.path_prefix.as_deref().filter(|prefix| !prefix.starts_with('/')) {
                let message = format!("`{}` doesn't start with `/`", quoted(prefix));
                check.error(codes::BAD_PROVIDER, &format!("{field}.pathPrefix"), message, "start it with `/`");
            }
            check_headers(check, &field, http);
            check_body(check, &field, http.include_request_body_in_check.as_ref());
        }
        (None, Some(grpc), None) => {
            let field = format!("{field}.envoyExtAuthzGrpc");
            check_address(check, &field, &grpc.service, grpc.port, grpc.timeout.as_deref());
            check_status(check, &field, grpc.status_on_error.as_deref());
            check_body(check, &field, grpc.include_request_body_in_check.as_ref());
        }
        _ => {
            let message = "a provider is either `envoyExtAuthzHttp`, `envoyExtAuthzGrpc` or `opentelemetry`";
            check.error(codes::BAD_PROVIDER, field, message, "write exactly one of them");
        }
    }
}

fn check_collector(check: &mut Check<'_>, field: &str, collector: &OpenTelemetry) {
    let timeout = collector.http.as_ref().and_then(|http| http.timeout.as_deref());
    check_address(check, field, &collector.service, collector.port, timeout);
    let Some(http) = &collector.http else {
        let help = "add `http: {path: /v1/traces}`";
        return check.error(codes::BAD_PROVIDER, field, "spans are sent over HTTP only", help);
    };
    let is_path = http.path.starts_with('/') && http.path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if !is_path {
        let message = format!("`{}` is not a path", quoted(&http.path));
        check.error(codes::BAD_PROVIDER, &format!("{field}.http.path"), message, "write it like `/v1/traces`");
    }
    for (index, header) in http.headers.iter().enumerate() {
        check_header(check, &format!("{field}.http.headers[{index}]"), &header.name, &header.value);
    }
}

fn check_headers(check: &mut Check<'_>, field: &str, http: &HttpAuthorizer) {
    for (name, list) in [
        ("includeRequestHeadersInCheck", &http.include_request_headers_in_check),
        ("includeHeadersInCheck", &http.include_headers_in_check),
        ("headersToUpstreamOnAllow", &http.headers_to_upstream_on_allow),
        ("headersToDownstreamOnAllow", &http.headers_to_downstream_on_allow),
        ("headersToDownstreamOnDeny", &http.headers_to_downstream_on_deny),
    ] {
        for (index, header) in list.iter().enumerate().filter(|(_, header)| !is_header_pattern(header)) {
            let message = format!("`{}` is not a header's name", quoted(header));
            let help = "write a name, with a `*` at one end at most; `*` alone is not allowed";
            check.error(codes::BAD_PROVIDER, &format!("{field}.{name}[{index}]"), message, help);
        }
    }
    for (name, value) in &http.include_additional_headers_in_check {
        check_header(check, &format!("{field}.includeAdditionalHeadersInCheck[{name}]"), name, value);
    }
}

/// A header that is always sent.
fn check_header(check: &mut Check<'_>, at: &str, name: &str, value: &str) {
    if name.is_empty() || !name.bytes().all(super::policy::is_token) {
        let message = format!("`{}` is not a header's name", quoted(name));
        check.error(codes::BAD_PROVIDER, at, message, "write a name like `x-tenant`");
    } else if FRAMING.iter().any(|framing| framing.eq_ignore_ascii_case(name)) {
        let message = format!("`{name}` says how a message is sent and can't be chosen");
        check.error(codes::BAD_PROVIDER, at, message, "remove it");
    } else if !value.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte)) {
        let message = format!("`{}` is not a header's value", quoted(value));
        check.error(codes::BAD_PROVIDER, at, message, "use visible ASCII on one line");
    }
}

/// Headers that say how a message is sent.
const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

fn check_body(check: &mut Check<'_>, field: &str, body: Option<&RequestBody>) {
    let Some(RequestBody { max_request_bytes, .. }) = body else { return };
    if !(1..=MAX_CHECKED_BODY_BYTES).contains(max_request_bytes) {
        let field = format!("{field}.includeRequestBodyInCheck.maxRequestBytes");
        let help = format!("use 1 to {MAX_CHECKED_BODY_BYTES}");
        check.error(codes::BAD_PROVIDER, &field, format!("a provider can't be sent {max_request_bytes} bytes"), help);
    }
}

fn check_address(check: &mut Check<'_>, field: &str, service: &str, port: u32, timeout: Option<&str>) {
    let (namespace, host) = service.split_once('/').map_or((None, service), |(ns, host)| (Some(ns), host));
    let fault = namespace.and_then(names::dns_label).or_else(|| names::dns_subdomain(host));
    if let Some(fault) = fault {
        let message = format!("`{}` is not a service: {fault}", quoted(service));
        let help = "write `HOST` or `NAMESPACE/HOST`, for example `authz.team-a.svc.cluster.local`";
        check.error(codes::BAD_PROVIDER, &format!("{field}.service"), message, help);
    }
    if !(1..=65535).contains(&port) {
        check.error(codes::BAD_PROVIDER, &format!("{field}.port"), format!("{port} is not a port"), "use 1 to 65535");
    }
    if let Some(timeout) = timeout.filter(|timeout| mesh_config::duration(timeout).is_none()) {
        let message = format!("`{}` is not a duration", quoted(timeout));
        check.error(codes::BAD_PROVIDER, &format!("{field}.timeout"), message, "write it like `500ms` or `2s`");
    }
}

fn check_status(check: &mut Check<'_>, field: &str, status: Option<&str>) {
    let Some(status) = status else { return };
    if mesh_config::status_on_error(status).is_none() {
        let message = format!("`{}` is not a status of a refusal", quoted(status));
        check.error(codes::BAD_PROVIDER, &format!("{field}.statusOnError"), message, "use \"400\" to \"599\"");
    }
}

fn is_header_pattern(name: &str) -> bool {
    let literal = name.strip_prefix('*').or_else(|| name.strip_suffix('*')).unwrap_or(name);
    !literal.is_empty() && !literal.contains('*') && literal.bytes().all(super::policy::is_token)
}
