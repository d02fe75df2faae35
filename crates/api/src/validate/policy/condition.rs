//! Conditions of a rule: `when` (rows 11 and 30 to 32).

use super::{Field, List, quoted, values};
use crate::{
    authorization_policy::{Action, Condition},
    codes,
    validate::Check,
};

/// What the values of an attribute are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Address,
    Port,
    Principal,
    Namespace,
    ServiceAccount,
    TrustDomain,
    ServerName,
    /// Text; the key names one of many: `request.headers[x-team]`.
    Map,
}

/// The attributes that exist (2.4).
const ATTRIBUTES: &[(&str, Kind)] = &[
    ("source.ip", Kind::Address),
    ("source.namespace", Kind::Namespace),
    ("source.principal", Kind::Principal),
    ("source.serviceAccount", Kind::ServiceAccount),
    ("source.trustDomain", Kind::TrustDomain),
    ("remote.ip", Kind::Address),
    ("destination.ip", Kind::Address),
    ("destination.port", Kind::Port),
    ("connection.sni", Kind::ServerName),
    ("request.auth.principal", Kind::Text),
    ("request.auth.audiences", Kind::Text),
    ("request.auth.presenter", Kind::Text),
    ("request.headers", Kind::Map),
    ("request.auth.claims", Kind::Map),
];

/// Attributes of filters: `experimental.envoy.filters.<filter>[key]`.
const FILTER_PREFIX: &str = "experimental.envoy.filters.";

/// Attributes of older versions, and what replaced them.
const FORMER: &[(&str, &str)] = &[
    ("destination.namespace", "put the policy into that namespace"),
    ("destination.labels", "use `spec.selector`"),
    ("destination.name", "use `spec.selector` or `spec.targetRefs`"),
    ("destination.user", "use `spec.selector` or `spec.targetRefs`"),
];

/// Checks one condition; `field` is its own.
pub(super) fn check(check: &mut Check<'_>, action: Action, field: &Field<'_>, condition: &Condition) {
    let key = condition.key.as_str();
    if key.is_empty() {
        let help = "name an attribute, for example `key: source.ip`";
        check.error(codes::EMPTY_CONDITION_KEY, &field.key("key"), "a condition needs a key", help);
        return;
    }
    if condition.values.is_empty() && condition.not_values.is_empty() {
        let message = format!("the condition on `{}` has no values", quoted(key));
        check.error(codes::CONDITION_WITHOUT_VALUES, field, message, "add `values` or `notValues`");
    }
    if action == Action::Custom && is_identity(key) {
        let message = format!("`{}` is not supported with CUSTOM", quoted(key));
        check.error(codes::CUSTOM_UNSUPPORTED, &field.key("key"), message, "let the provider decide on it");
    }
    let kind = match attribute(key) {
        Ok(kind) => kind,
        Err((message, help)) => {
            check.error(codes::UNKNOWN_ATTRIBUTE, &field.key("key"), message, help);
            return;
        }
    };
    for (name, values) in [("values", &condition.values), ("notValues", &condition.not_values)] {
        check_values(check, kind, &List { parent: field, name, values });
    }
}

fn is_identity(key: &str) -> bool {
    key.starts_with("request.auth.")
        || matches!(key, "source.namespace" | "source.serviceAccount" | "source.trustDomain" | "source.principal")
}

fn attribute(key: &str) -> Result<Kind, (String, String)> {
    let (name, brackets) = key.split_at(key.find('[').unwrap_or(key.len()));
    if let Some(filter) = name.strip_prefix(FILTER_PREFIX) {
        let whole = !filter.is_empty() && is_bracketed(brackets, false);
        return if whole { Ok(Kind::Map) } else { Err(bad_brackets(key, name)) };
    }
    match ATTRIBUTES.iter().find(|(known, _)| *known == name) {
        Some((_, Kind::Map)) => {
            let whole = is_bracketed(brackets, name == "request.auth.claims");
            if whole && (name != "request.headers" || is_header(brackets)) {
                Ok(Kind::Map)
            } else {
                Err(bad_brackets(key, name))
            }
        }
        Some((_, kind)) if brackets.is_empty() => Ok(*kind),
        Some(_) => Err((format!("`{name}` takes no brackets"), format!("write `key: {name}`"))),
        None => Err(unknown(key, name)),
    }
}

/// `[a]`, or `[a][b]...` where values are nested.
fn is_bracketed(text: &str, nested: bool) -> bool {
    let Some(inner) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) else { return false };
    let mut parts = inner.split("][");
    let first = parts.next().unwrap_or_default();
    let clean = |part: &str| !part.is_empty() && !part.contains(['[', ']']);
    clean(first) && parts.all(|part| nested && clean(part))
}

/// `[x-team]`, or a pseudo-header: `[:method]`.
fn is_header(brackets: &str) -> bool {
    let name = brackets.trim_start_matches('[').trim_end_matches(']');
    let name = name.strip_prefix(':').unwrap_or(name);
    !name.is_empty() && name.bytes().all(values::is_token)
}

fn bad_brackets(key: &str, name: &str) -> (String, String) {
    let message = format!("`{}` doesn't name one of `{}`", quoted(key), quoted(name));
    (message, format!("write it as `{}[NAME]`", quoted(name)))
}

fn unknown(key: &str, name: &str) -> (String, String) {
    let message = format!("there is no attribute `{}`", quoted(key));
    if let Some((_, instead)) = FORMER.iter().find(|(former, _)| *former == name) {
        return (message, (*instead).to_owned());
    }
    let help = match crate::text::nearest(name, ATTRIBUTES.iter().map(|(known, _)| *known)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("use one of: {}", ATTRIBUTES.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", ")),
    };
    (message, help)
}

fn check_values(check: &mut Check<'_>, kind: Kind, list: &List<'_>) {
    match kind {
        Kind::Text | Kind::Map => values::check_not_empty(check, list),
        Kind::Address => values::check_addresses(check, list),
        Kind::Port => values::check_ports(check, list),
        Kind::Principal => values::check_principals(check, list),
        Kind::Namespace => values::check_namespaces(check, list),
        Kind::ServiceAccount => values::check_service_accounts(check, list),
        Kind::TrustDomain => values::check_trust_domains(check, list, true),
        Kind::ServerName => check_server_names(check, list),
    }
}

/// Names are lower-cased before they are compared (2.12, row 22).
fn check_server_names(check: &mut Check<'_>, list: &List<'_>) {
    values::check_not_empty(check, list);
    for (field, value) in list.each().filter(|(_, value)| value.bytes().any(|b| b.is_ascii_uppercase())) {
        let message = format!("`{}` never matches: server names are lower-cased first", quoted(value));
        check.error(codes::NEVER_MATCHES, &field, message, format!("write `{}`", quoted(&value.to_ascii_lowercase())));
    }
}
