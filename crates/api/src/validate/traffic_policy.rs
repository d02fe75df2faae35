//! TrafficPolicy: what couldn't be enforced as it is written.

use std::collections::HashSet;

use super::{
    Check, names,
    policy::{self, Attached},
    routes::matches::check_http_match,
};
use crate::{
    TrafficPolicy, codes,
    limits::{MAX_ROUTE_MATCHES, MAX_TRAFFIC_RULES},
    routes::{Fraction, HttpMatch},
    text::quoted,
    traffic_policy::{
        Abort, Delay, Fault, MAX_DELAY, MAX_INTERVAL, MAX_KEYS, MAX_REQUESTS, MIN_INTERVAL, RateLimit,
        RateLimitKeyType, can_abort_with,
    },
};

/// Checks a whole TrafficPolicy.
pub(super) fn check(check: &mut Check<'_>, object: &TrafficPolicy) {
    let spec = &object.spec;
    let attached = Attached { selector: None, target_ref: None, target_refs: &spec.target_refs };
    policy::check_attached(check, &object.namespace, &attached);
    at_most(check, "spec.rateLimits", spec.rate_limits.len(), MAX_TRAFFIC_RULES);
    at_most(check, "spec.faults", spec.faults.len(), MAX_TRAFFIC_RULES);
    check_names(check, "spec.rateLimits", spec.rate_limits.iter().map(|limit| limit.name.as_deref()));
    check_names(check, "spec.faults", spec.faults.iter().map(|fault| fault.name.as_deref()));
    for (index, limit) in spec.rate_limits.iter().enumerate().take(MAX_TRAFFIC_RULES) {
        let field = format!("spec.rateLimits[{index}]");
        check_matches(check, &field, &limit.matches);
        check_rate_limit(check, &field, limit);
    }
    for (index, fault) in spec.faults.iter().enumerate().take(MAX_TRAFFIC_RULES) {
        let field = format!("spec.faults[{index}]");
        check_matches(check, &field, &fault.matches);
        check_fault(check, &field, fault);
    }
}

fn check_rate_limit(check: &mut Check<'_>, field: &str, limit: &RateLimit) {
    let at = |name: &str| format!("{field}.{name}");
    if !(1..=MAX_REQUESTS).contains(&limit.requests) {
        let message = format!("{} is no number of requests for a limit", limit.requests);
        let help = format!("use 1 to {MAX_REQUESTS}; to refuse all requests write an AuthorizationPolicy");
        check.error(codes::BAD_RATE_LIMIT, &at("requests"), message, help);
    }
    if limit.interval().is_none() {
        let message = format!("`{}` is not an interval", quoted(&limit.interval));
        let help = format!("write a duration such as `1s` or `1m`, from {MIN_INTERVAL:?} to {MAX_INTERVAL:?}");
        check.error(codes::BAD_RATE_LIMIT, &at("interval"), message, help);
    }
    if limit.burst.is_some_and(|burst| !(1..=MAX_REQUESTS).contains(&burst)) {
        let message = "no request could come through, or the number is too large";
        check.error(codes::BAD_RATE_LIMIT, &at("burst"), message, format!("use 1 to {MAX_REQUESTS}"));
    }
    if limit.max_keys.is_some_and(|keys| !(1..=MAX_KEYS).contains(&keys)) {
        let message = "this many keys can't be counted for";
        check.error(codes::BAD_RATE_LIMIT, &at("maxKeys"), message, format!("use 1 to {MAX_KEYS}"));
    }
    let at_header = at("key.header");
    match (limit.key.kind, &limit.key.header) {
        (RateLimitKeyType::Header, None) => {
            let help = "add `header`, for example `x-tenant`";
            check.error(codes::BAD_RATE_LIMIT, &at("key"), "the key is a header that isn't named", help);
        }
        (RateLimitKeyType::Header, Some(name)) if name.is_empty() || !name.bytes().all(policy::is_token) => {
            let message = format!("`{}` is not a header's name", quoted(name));
            check.error(codes::BAD_RATE_LIMIT, &at_header, message, "use letters, digits and `-`");
        }
        (RateLimitKeyType::Header, Some(_)) | (_, None) => {}
        (_, Some(_)) => {
            let help = "write `type: Header`, or remove `header`";
            check.error(codes::BAD_RATE_LIMIT, &at_header, "`header` is only for keys of type `Header`", help);
        }
    }
}

fn check_fault(check: &mut Check<'_>, field: &str, fault: &Fault) {
    if fault.delay.is_none() && fault.abort.is_none() {
        check.error(codes::BAD_FAULT, field, "neither `delay` nor `abort` is written", "write at least one of the two");
    }
    if let Some(delay) = &fault.delay {
        let field = format!("{field}.delay");
        let Delay { duration, percent, fraction } = delay;
        if delay.duration().is_none() {
            let message = format!("`{}` is not a delay", quoted(duration));
            let help = format!("write a duration such as `500ms` or `2s`, up to {MAX_DELAY:?}");
            check.error(codes::BAD_FAULT, &format!("{field}.duration"), message, help);
        }
        check_part(check, &field, *percent, fraction.as_ref());
    }
    if let Some(Abort { http_status, grpc_status, percent, fraction }) = &fault.abort {
        let field = format!("{field}.abort");
        if !can_abort_with(*http_status) {
            let message = format!("{http_status} is not a status that a request can be answered with");
            check.error(
                codes::BAD_FAULT,
                &format!("{field}.httpStatus"),
                message,
                "use one from 200 to 599, such as 503",
            );
        }
        if grpc_status.is_some_and(|status| !(1..=16).contains(&status)) {
            let message = "this is not a status of a failed gRPC call";
            check.error(codes::BAD_FAULT, &format!("{field}.grpcStatus"), message, "use 1 to 16, such as 14");
        }
        check_part(check, &field, *percent, fraction.as_ref());
    }
}

fn check_part(check: &mut Check<'_>, field: &str, percent: Option<u32>, fraction: Option<&Fraction>) {
    if percent.is_some() && fraction.is_some() {
        let message = "`percent` and `fraction` say the same thing twice";
        check.error(codes::BAD_FAULT, &format!("{field}.percent"), message, "remove one of the two");
    }
    if percent.is_some_and(|percent| percent > 100) {
        check.error(codes::BAD_FAULT, &format!("{field}.percent"), "a part is at most 100 %", "use 0 to 100");
    }
    if let Some(fraction) = fraction {
        let whole = fraction.denominator.unwrap_or(100);
        if whole == 0 || fraction.numerator > whole {
            let message = format!("{} of {whole} is not a part", fraction.numerator);
            check.error(codes::BAD_FAULT, &format!("{field}.fraction"), message, "make the denominator larger");
        }
    }
}

fn check_matches(check: &mut Check<'_>, field: &str, matches: &[HttpMatch]) {
    at_most(check, &format!("{field}.matches"), matches.len(), MAX_ROUTE_MATCHES);
    for (index, wanted) in matches.iter().enumerate().take(MAX_ROUTE_MATCHES) {
        check_http_match(check, &format!("{field}.matches[{index}]"), wanted);
    }
}

fn check_names<'a>(check: &mut Check<'_>, list: &str, rules: impl Iterator<Item = Option<&'a str>>) {
    let mut seen = HashSet::new();
    for (index, name) in rules.enumerate().take(MAX_TRAFFIC_RULES) {
        let Some(name) = name else { continue };
        let field = format!("{list}[{index}].name");
        if let Some(fault) = names::dns_subdomain(name) {
            let message = format!("`{}` is not a rule's name: {fault}", quoted(name));
            check.error(codes::BAD_RULE_NAME, &field, message, "use a name like `per-client`");
        } else if !seen.insert(name) {
            let message = format!("a second rule named `{}`", quoted(name));
            check.error(codes::BAD_RULE_NAME, &field, message, "give each rule its own name");
        }
    }
}

fn at_most(check: &mut Check<'_>, field: &str, found: usize, most: usize) {
    if found > most {
        let message = format!("{found} entries are more than the {most} allowed");
        check.error(codes::TOO_MANY, field, message, "write fewer");
    }
}
