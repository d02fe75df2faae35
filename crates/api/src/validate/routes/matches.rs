//! Matches.

use std::fmt::Display;

use super::{Check, at_most, is_name};
use crate::{
    codes,
    limits::MAX_ROUTE_LIST,
    routes::{self, GrpcMatch, HeaderMatch, HttpMatch, MatchType, PathMatch, PathMatchType},
    text::quoted,
};

/// Checks a match of an HTTPRoute.
pub(in crate::validate) fn check_http_match(check: &mut Check<'_>, field: &str, wanted: &HttpMatch) {
    if let Some(path) = &wanted.path {
        check_path(check, &format!("{field}.path"), path);
    }
    check_headers(check, field, &wanted.headers);
    at_most(check, &format!("{field}.queryParams"), wanted.query_params.len(), MAX_ROUTE_LIST);
    for (index, query) in wanted.query_params.iter().enumerate() {
        let at = format!("{field}.queryParams[{index}]");
        if query.name.is_empty() {
            check.error(codes::BAD_MATCH, &format!("{at}.name"), "the parameter has no name", "add it");
        }
        check_value(check, &format!("{at}.value"), query.kind, &query.value);
    }
    const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    if let Some(method) = wanted.method.as_ref().filter(|method| !METHODS.contains(&method.as_str())) {
        let message = format!("`{}` is not a method that can be matched", quoted(method));
        check.error(
            codes::BAD_MATCH,
            &format!("{field}.method"),
            message,
            format!("use one of {}", METHODS.join(", ")),
        );
    }
}

/// Checks a match of a GRPCRoute.
pub(super) fn check_grpc_match(check: &mut Check<'_>, field: &str, wanted: &GrpcMatch) {
    check_headers(check, field, &wanted.headers);
    let Some(method) = &wanted.method else { return };
    let given = |part: &Option<String>| part.as_ref().is_some_and(|part| !part.is_empty());
    if !given(&method.service) && !given(&method.method) {
        let message = "neither `service` nor `method` is written";
        check.error(codes::BAD_MATCH, &format!("{field}.method"), message, "write at least one of the two");
    }
    for (name, value) in [("service", &method.service), ("method", &method.method)] {
        let Some(value) = value.as_ref().filter(|value| !value.is_empty()) else { continue };
        let at = format!("{field}.method.{name}");
        let exact = method.kind.unwrap_or_default() == MatchType::Exact;
        let name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if exact && !value.chars().all(name) {
            let message = format!("`{}` is not a name", quoted(value));
            check.error(codes::BAD_MATCH, &at, message, "use letters, digits, `_` and `.`");
        }
        check_value(check, &at, method.kind, value);
    }
}

fn check_path(check: &mut Check<'_>, field: &str, path: &PathMatch) {
    let value = path.value.as_deref().unwrap_or("/");
    let at = format!("{field}.value");
    match path.kind.unwrap_or_default() {
        PathMatchType::RegularExpression => check_pattern(check, &at, value),
        PathMatchType::Exact | PathMatchType::PathPrefix => {
            let fault = if !value.starts_with('/') {
                Some("it doesn't begin with `/`")
            } else if value.contains("//") {
                Some("it has an empty element")
            } else if value.split('/').any(|element| [".", ".."].contains(&element)) {
                Some("`.` and `..` are resolved before a path is matched")
            } else if value.contains(['#', '?', ' ']) || !value.is_ascii() || value.contains(char::is_control) {
                Some("it has a character that no path has")
            } else {
                None
            };
            if let Some(fault) = fault {
                let message = format!("`{}` is not a path: {fault}", quoted(value));
                check.error(codes::BAD_MATCH, &at, message, "write a path such as `/v1/traces`");
            }
        }
    }
}

fn check_headers(check: &mut Check<'_>, field: &str, headers: &[HeaderMatch]) {
    at_most(check, &format!("{field}.headers"), headers.len(), MAX_ROUTE_LIST);
    for (index, header) in headers.iter().enumerate() {
        let at = format!("{field}.headers[{index}]");
        if !is_name(&header.name) {
            let message = format!("`{}` is not a header's name", quoted(&header.name));
            check.error(codes::BAD_MATCH, &format!("{at}.name"), message, "use letters, digits and `-`");
        }
        check_value(check, &format!("{at}.value"), header.kind, &header.value);
    }
}

fn check_value(check: &mut Check<'_>, field: &(impl Display + ?Sized), kind: Option<MatchType>, value: &str) {
    match kind.unwrap_or_default() {
        MatchType::Exact => {}
        MatchType::RegularExpression => check_pattern(check, field, value),
    }
}

fn check_pattern(check: &mut Check<'_>, field: &(impl Display + ?Sized), value: &str) {
    if let Err(fault) = routes::pattern(value) {
        let message = format!("`{}` is not an expression: {fault}", quoted(value));
        check.error(codes::BAD_MATCH, field, message, "use the syntax of RE2");
    }
}
