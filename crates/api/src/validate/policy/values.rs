//! Values of a source or operation (rows 19 to 23 and 26), and those that can never match.

use std::net::IpAddr;

use super::{List, quoted};
use crate::{codes, validate::Check};

/// Most entries of a list of service accounts, and longest entry, in bytes (rows 21 and 22).
const MAX_SERVICE_ACCOUNTS: usize = 16;
const MAX_SERVICE_ACCOUNT_BYTES: usize = 320;

/// The methods that clients and servers spell in upper case; methods are compared as written.
const METHODS: &[&str] = &["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];

/// Row 20: no empty value.
pub(super) fn check_not_empty(check: &mut Check<'_>, list: &List<'_>) {
    for (field, _) in list.each().filter(|(_, value)| value.is_empty()) {
        check.error(codes::EMPTY_VALUE, &field, "an empty value", "remove it; `*` stands for any value");
    }
}

/// Identities: `cluster.local/ns/a/sa/b`, with a `*` at one end or alone.
pub(super) fn check_principals(check: &mut Check<'_>, list: &List<'_>) {
    check_not_empty(check, list);
    for (field, value) in list.each().filter(|(_, value)| !value.is_empty()) {
        if let Some(rest) = value.strip_prefix("spiffe://") {
            let message = format!("`{}` never matches: principals are written without `spiffe://`", quoted(value));
            check.error(codes::NEVER_MATCHES, &field, message, format!("write `{}`", quoted(rest)));
        } else if has_inner_wildcard(value) {
            let message = format!("`{}` never matches: `*` is a wildcard only at the start or the end", quoted(value));
            let help = "use `namespaces` or `serviceAccounts` to leave part of an identity open";
            check.error(codes::NEVER_MATCHES, &field, message, help);
        } else if value.contains(char::is_whitespace) {
            let message = format!("`{}` never matches: an identity has no blanks", quoted(value));
            check.error(codes::NEVER_MATCHES, &field, message, "remove them");
        } else if !value.contains('*') && format!("spiffe://{value}").parse::<crate::SpiffeId>().is_err() {
            let message = format!("`{}` is not shaped like a workload's identity", quoted(value));
            check.warning(codes::SUSPICIOUS_VALUE, &field, message, "write `cluster.local/ns/NAMESPACE/sa/ACCOUNT`");
        }
    }
}

/// Namespaces, with `*` anywhere. Identities of other meshes may hold what Kubernetes' namespaces can't.
pub(super) fn check_namespaces(check: &mut Check<'_>, list: &List<'_>) {
    check_not_empty(check, list);
    for (field, value) in list.each() {
        let help = "write the name of a namespace";
        if !value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '*')) {
            let message = format!("`{}` never matches: no identity has such a namespace", quoted(value));
            check.error(codes::NEVER_MATCHES, &field, message, help);
        } else if !value.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '*')) {
            let message = format!("`{}` can't be a namespace of a cluster", quoted(value));
            check.warning(codes::SUSPICIOUS_VALUE, &field, message, help);
        }
    }
}

/// Rows 21 and 22.
pub(super) fn check_service_accounts(check: &mut Check<'_>, list: &List<'_>) {
    if list.values.len() > MAX_SERVICE_ACCOUNTS {
        let message = format!("{} values are more than the {MAX_SERVICE_ACCOUNTS} allowed", list.values.len());
        check.error(codes::BAD_SERVICE_ACCOUNT, list, message, "write several entries of `from`");
    }
    for (field, value) in list.each() {
        if let Some(fault) = service_account_fault(value) {
            let message = format!("`{}` is not a service account: {fault}", quoted(value));
            let help = "write `ACCOUNT` (in the policy's namespace) or `NAMESPACE/ACCOUNT`";
            check.error(codes::BAD_SERVICE_ACCOUNT, &field, message, help);
        }
    }
}

fn service_account_fault(value: &str) -> Option<&'static str> {
    let mut parts = value.split('/');
    match (parts.next(), parts.next(), parts.next()) {
        _ if value.is_empty() => Some("it is empty"),
        _ if value.contains('*') => Some("it knows no wildcards"),
        _ if value.len() > MAX_SERVICE_ACCOUNT_BYTES => Some("it is longer than 320 characters"),
        (_, _, Some(_)) => Some("it has more than one `/`"),
        (Some(""), Some(_), _) => Some("its namespace is empty"),
        (_, Some(""), _) => Some("its account is empty"),
        _ => None,
    }
}

/// Row 23. In a condition a `/` is let through, as Istio does.
pub(super) fn check_trust_domains(check: &mut Check<'_>, list: &List<'_>, slash_allowed: bool) {
    for (field, value) in list.each() {
        let fault = match value {
            "" => "it is empty",
            _ if value.matches('*').count() > 1 => "it has more than one `*`",
            _ if has_inner_wildcard(value) => "a `*` can only be at the start or the end",
            _ if value.contains('/') && !slash_allowed => "it has a `/`",
            _ => continue,
        };
        let message = format!("`{}` is not a trust domain: {fault}", quoted(value));
        check.error(codes::BAD_TRUST_DOMAIN, &field, message, "write a trust domain like `cluster.local`");
    }
}

/// Rows 19 and 20: addresses and CIDRs, host bits allowed.
pub(super) fn check_addresses(check: &mut Check<'_>, list: &List<'_>) {
    for (field, value) in list.each().filter(|(_, value)| !is_address_block(value)) {
        let what = if value.contains('/') { "a CIDR range" } else { "an IP address" };
        let message = format!("`{}` is not {what}", quoted(value));
        check.error(codes::BAD_IP_BLOCK, &field, message, "write it like `10.0.0.0/8` or `10.1.2.3`");
    }
}

/// An address, or a range of them.
pub(in crate::validate) fn is_address_block(value: &str) -> bool {
    let Some((address, length)) = value.split_once('/') else { return value.parse::<IpAddr>().is_ok() };
    let most = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    is_decimal(length) && length.len() <= 3 && length.parse::<u16>().is_ok_and(|length| length <= most)
}

/// Row 26: ports, 0 accepted as Istio does.
pub(super) fn check_ports(check: &mut Check<'_>, list: &List<'_>) {
    for (field, value) in list.each().filter(|(_, value)| !(is_decimal(value) && value.parse::<u16>().is_ok())) {
        let message = format!("`{}` is not a port", quoted(value));
        check.error(codes::BAD_PORT, &field, message, "use \"1\" to \"65535\"; ranges and names aren't supported");
    }
}

fn is_decimal(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Methods: tokens, compared as written.
pub(super) fn check_methods(check: &mut Check<'_>, list: &List<'_>) {
    check_not_empty(check, list);
    for (field, value) in list.each().filter(|(_, value)| !value.is_empty() && !METHODS.contains(value)) {
        let upper = value.to_ascii_uppercase();
        if !value.bytes().all(is_token) {
            let message = format!("`{}` never matches: a method is one word", quoted(value));
            check.error(codes::NEVER_MATCHES, &field, message, "write one method per value, like \"GET\"");
        } else if upper != value && METHODS.contains(&upper.as_str()) {
            let message = format!("`{value}` is not `{upper}`: methods are compared as written");
            check.warning(codes::SUSPICIOUS_VALUE, &field, message, format!("write \"{upper}\""));
        }
    }
}

/// A byte of an HTTP token (RFC 9110, 5.6.2).
pub(in crate::validate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Hosts: `:authority`, in any case, the port included.
pub(super) fn check_hosts(check: &mut Check<'_>, list: &List<'_>) {
    check_not_empty(check, list);
    for (field, value) in list.each().filter(|(_, value)| !value.is_empty()) {
        if value.contains(|c: char| c == '/' || c.is_whitespace()) {
            let message = format!("`{}` never matches: a host has no scheme, path or blanks", quoted(value));
            check.error(codes::NEVER_MATCHES, &field, message, "write `mlflow.example.com` or `mlflow.example.com:*`");
        } else if has_inner_wildcard(value) {
            let message = format!("`{}`: `*` is a wildcard only at the start or the end", quoted(value));
            check.warning(codes::SUSPICIOUS_VALUE, &field, message, "keep one `*`, at one end");
        }
    }
}

/// True if a `*` stands where it is not a wildcard: anywhere but at exactly one end.
pub(super) fn has_inner_wildcard(value: &str) -> bool {
    let literal = match value.strip_prefix('*') {
        Some(rest) => rest,
        None => value.strip_suffix('*').unwrap_or(value),
    };
    literal.contains('*')
}
