//! Names and labels: what Kubernetes accepts, and the labels that mean something to the mesh.

use std::collections::BTreeMap;

use super::Check;
use crate::{Resource, codes, text::quoted};

/// Longest DNS label, in bytes (RFC 1123).
const MAX_LABEL_BYTES: usize = 63;

/// Longest DNS subdomain, in bytes (RFC 1123).
const MAX_SUBDOMAIN_BYTES: usize = 253;

/// Labels of the mesh with a closed set of values.
const CLOSED_LABELS: &[(&str, &[&str])] = &[
    ("istio.io/dataplane-mode", &["ambient", "none"]),
    ("istio.io/waypoint-for", &["service", "workload", "all", "none"]),
    (GUARD_LABEL, &["on", "off", "enforce"]),
    (MISSING_LABEL, &["deny", "bypass"]),
];

/// Label of a Service, pod or Namespace that opens ports to others than the waypoint.
const GUARD_LABEL: &str = "ambit.dev/waypoint-guard";

/// Label of a Namespace that says what becomes of traffic for waypoints which can't be had.
const MISSING_LABEL: &str = "ambit.dev/missing-waypoint";

/// Checks the object's name, namespace and labels.
pub(super) fn check(check: &mut Check<'_>, resource: &Resource) {
    let name = resource.name();
    let fault = match resource {
        Resource::Namespace(_) => dns_label(name),
        Resource::Service(_) => dns_label(name).or_else(|| {
            let digit_first = name.starts_with(|c: char| c.is_ascii_digit());
            digit_first.then(|| "a Service's name starts with a letter".to_owned())
        }),
        _ => dns_subdomain(name),
    };
    if let Some(fault) = fault {
        check.error(codes::BAD_NAME, "metadata.name", format!("`{}` is not a name: {fault}", quoted(name)), NAME_HELP);
    }
    if let Some(fault) = resource.namespace().and_then(dns_label) {
        let namespace = quoted(resource.namespace().unwrap_or_default());
        let message = format!("`{namespace}` is not the name of a namespace: {fault}");
        check.error(codes::BAD_NAME, "metadata.namespace", message, NAME_HELP);
    }
    if let Some(labels) = resource.metadata().and_then(|metadata| metadata.labels.as_ref()) {
        check_labels(check, "metadata.labels", labels);
        let can_guard = matches!(resource, Resource::Service(_) | Resource::Pod(_) | Resource::Namespace(_));
        let of_namespace = matches!(resource, Resource::Namespace(_));
        let placed = [
            (GUARD_LABEL, can_guard, "put it on the Service"),
            (MISSING_LABEL, of_namespace, "put it on the Namespace"),
        ];
        for (label, _, help) in placed.into_iter().filter(|(label, can, _)| labels.contains_key(*label) && !can) {
            let message = format!("`{label}` does nothing on a {}", resource.kind());
            check.warning(codes::BAD_MESH_LABEL, &format!("metadata.labels[{label}]"), message, help);
        }
    }
}

const NAME_HELP: &str = "use lower-case letters, digits and `-`, with a letter or digit at both ends";

/// Checks labels that Kubernetes or the mesh would not understand.
pub(super) fn check_labels(check: &mut Check<'_>, field: &str, labels: &BTreeMap<String, String>) {
    for (key, value) in labels {
        let at = format!("{field}[{key}]");
        if !is_label_key(key) {
            let help = "a key is `name` or `prefix/name`: letters, digits, `-`, `_` and `.`";
            check.error(codes::BAD_LABEL, &at, format!("`{}` is not a label's key", quoted(key)), help);
        }
        if !value.is_empty() && !is_label_name(value) {
            let help = "a value has up to 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends";
            check.error(codes::BAD_LABEL, &at, format!("`{}` is not a label's value", quoted(value)), help);
        }
        let closed = CLOSED_LABELS.iter().find(|(known, _)| known == key);
        if let Some((_, values)) = closed.filter(|(_, values)| !values.contains(&value.as_str())) {
            let help = format!("use one of: {}", values.join(", "));
            check.error(codes::BAD_MESH_LABEL, &at, format!("`{}` means nothing for `{key}`", quoted(value)), help);
        }
    }
}

/// Why a text isn't a DNS label: up to 63 lower-case letters, digits and inner dashes.
pub(super) fn dns_label(text: &str) -> Option<String> {
    if text.len() > MAX_LABEL_BYTES {
        return Some(format!("it is longer than {MAX_LABEL_BYTES} characters"));
    }
    not_label_characters(text)
}

/// Why a text isn't a DNS subdomain: labels joined by dots, up to 253 characters.
pub(super) fn dns_subdomain(text: &str) -> Option<String> {
    if text.len() > MAX_SUBDOMAIN_BYTES {
        return Some(format!("it is longer than {MAX_SUBDOMAIN_BYTES} characters"));
    }
    // Only the whole is bounded in length, not each label.
    text.split('.').find_map(not_label_characters)
}

fn not_label_characters(text: &str) -> Option<String> {
    if text.is_empty() {
        return Some("it is empty".to_owned());
    }
    if let Some(found) = text.chars().find(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-')) {
        return Some(format!("`{}` can't be in it", quoted(&found.to_string())));
    }
    (text.starts_with('-') || text.ends_with('-')).then(|| "it starts or ends with `-`".to_owned())
}

fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => !prefix.is_empty() && dns_subdomain(prefix).is_none() && is_label_name(name),
        None => is_label_name(key),
    }
}

fn is_label_name(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    text.len() <= MAX_LABEL_BYTES
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged_as_kubernetes_does() {
        let long = "a".repeat(64);
        for name in ["a", "kagenti-system", "0", "a1"] {
            assert_eq!(dns_label(name), None, "{name}");
        }
        for name in ["", "-a", "a-", "A", "a.b", "a_b", "ä", "a b", &long] {
            assert!(dns_label(name).is_some(), "{name}");
        }
        for name in ["a.b.c", "mlflow-waypoint", "v1.2"] {
            assert_eq!(dns_subdomain(name), None, "{name}");
        }
        assert_eq!(dns_subdomain(&long), None, "only the whole is bounded");
        let (foreign, inside) = (format!("a{}", "\u{fffd}".repeat(26)), format!("{long}_{long}"));
        for name in ["", ".", "a.", ".a", "a..b", "a/b", &"a.".repeat(200), &foreign, &inside, &format!("{long}-")] {
            assert!(dns_subdomain(name).is_some(), "{name}");
        }
        for key in ["app", "istio.io/dataplane-mode", "app.kubernetes.io/name", "A_b.C"] {
            assert!(is_label_key(key), "{key}");
        }
        for key in ["", "/a", "a/", "a/b/c", "-a", "a b", "A.io/x"] {
            assert!(!is_label_key(key), "{key}");
        }
    }
}
