//! What a policy is attached to: selector, target references (rows 1 to 7).

use super::{at_most, quoted};
use crate::{
    AuthorizationPolicy,
    authorization_policy::{PolicyTargetReference, WorkloadSelector},
    codes,
    validate::Check,
};

/// Most target references in a policy (2.1).
const MAX_TARGETS: usize = 16;

/// Longest value of a selector's label, in bytes (2.1).
const MAX_LABEL_VALUE_BYTES: usize = 63;

/// The kinds a policy can be attached to, with their groups.
const TARGETS: &[(&str, &str)] = &[
    ("Service", ""),
    ("ServiceEntry", "networking.istio.io"),
    ("Gateway", "gateway.networking.k8s.io"),
    ("GatewayClass", "gateway.networking.k8s.io"),
];

/// The only GatewayClass whose Gateways are waypoints.
const WAYPOINT_CLASS: &str = "istio-waypoint";

/// What says where a policy applies, of any kind of policy.
pub(in crate::validate) struct Attached<'a> {
    pub(in crate::validate) selector: Option<&'a WorkloadSelector>,
    pub(in crate::validate) target_ref: Option<&'a PolicyTargetReference>,
    pub(in crate::validate) target_refs: &'a [PolicyTargetReference],
}

/// Checks rows 1 to 7.
pub(super) fn check(check: &mut Check<'_>, policy: &AuthorizationPolicy) {
    let spec = &policy.spec;
    let (selector, target_ref) = (spec.selector.as_ref(), spec.target_ref.as_ref());
    check_attached(check, &policy.namespace, &Attached { selector, target_ref, target_refs: &spec.target_refs });
}

/// The same for a policy of any kind in this namespace.
pub(in crate::validate) fn check_attached(check: &mut Check<'_>, namespace: &str, attached: &Attached<'_>) {
    let written = [
        ("selector", attached.selector.is_some()),
        ("targetRef", attached.target_ref.is_some()),
        ("targetRefs", !attached.target_refs.is_empty()),
    ];
    let set: Vec<_> = written.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect();
    if let [first, .., last] = set[..] {
        check.error(
            codes::SELECTOR_AND_TARGET,
            &format!("spec.{last}"),
            format!("only one of `selector`, `targetRef` and `targetRefs` can be set, and `{first}` is set too"),
            "keep `targetRefs` for a Service behind a waypoint, or `selector` for pods; write two policies for both",
        );
    }
    if let Some(selector) = attached.selector {
        check_selector(check, selector);
    }
    for (name, set) in written {
        let field = format!("spec.{name}");
        if !set && check.origin.is_written(&field) {
            let message = format!("`{name}` is empty, so the policy would apply to the whole namespace");
            let code = if name == "selector" { codes::EMPTY_SELECTOR } else { codes::TARGET_WITHOUT_NAME };
            check.error(code, &field, message, format!("say what it applies to, or remove `{name}`"));
        }
    }
    at_most(check, "spec.targetRefs", attached.target_refs.len(), MAX_TARGETS);
    for (index, target) in attached.target_refs.iter().enumerate() {
        check_target(check, namespace, &format!("spec.targetRefs[{index}]"), target);
    }
    if let Some(target) = attached.target_ref {
        check_target(check, namespace, "spec.targetRef", target);
    }
}

pub(in crate::validate) fn check_selector(check: &mut Check<'_>, selector: &WorkloadSelector) {
    if selector.match_labels.is_empty() {
        let message = "a selector without labels selects every pod of the namespace";
        check.warning(codes::EMPTY_SELECTOR, "spec.selector", message, "add labels, or remove `selector` to say so");
    }
    for (key, value) in &selector.match_labels {
        let field = format!("spec.selector.matchLabels[{key}]");
        if key.is_empty() {
            check.error(codes::EMPTY_SELECTOR_KEY, &field, "a label without a key", "write the label's key");
        }
        if key.contains('*') || value.contains('*') {
            let message = format!("`{}: {}` has a `*`", quoted(key), quoted(value));
            check.error(
                codes::SELECTOR_WILDCARD,
                &field,
                message,
                "selectors know no wildcards; write the whole label",
            );
        }
        if value.len() > MAX_LABEL_VALUE_BYTES {
            let message = format!("a label's value has at most {MAX_LABEL_VALUE_BYTES} characters");
            check.error(codes::BAD_LABEL, &field, message, "no pod can have this label");
        }
    }
}

fn check_target(check: &mut Check<'_>, own_namespace: &str, field: &str, target: &PolicyTargetReference) {
    let at = |name: &str| format!("{field}.{name}");
    if target.name.is_empty() {
        check.error(codes::TARGET_WITHOUT_NAME, &at("name"), "a target needs a name", "add `name`");
    }
    if !target.namespace.is_empty() {
        let (message, help) = if target.namespace == own_namespace {
            ("`namespace` can't be set, even to the policy's own".to_owned(), "remove it".to_owned())
        } else {
            let theirs = quoted(&target.namespace);
            (
                format!("a target in another namespace, `{theirs}`: references don't cross namespaces"),
                format!("move the policy to namespace `{theirs}` and remove this line"),
            )
        };
        check.error(codes::TARGET_NAMESPACE, &at("namespace"), message, help);
    }
    check_target_kind(check, field, target);
}

fn check_target_kind(check: &mut Check<'_>, field: &str, target: &PolicyTargetReference) {
    let at = |name: &str| format!("{field}.{name}");
    let Some((kind, group)) = TARGETS.iter().find(|(kind, _)| *kind == target.kind) else {
        let kinds: Vec<_> = TARGETS.iter().map(|(kind, _)| *kind).collect();
        let (message, help) = match crate::text::nearest(&target.kind, kinds.iter().copied()) {
            Some(near) => (format!("there is no kind `{}`", quoted(&target.kind)), format!("did you mean `{near}`?")),
            None if target.kind.is_empty() => ("a target needs a kind".to_owned(), "add `kind: Service`".to_owned()),
            None => (
                format!("a policy can't be attached to a `{}`", quoted(&target.kind)),
                format!("use one of: {}", kinds.join(", ")),
            ),
        };
        check.error(codes::TARGET_KIND, &at("kind"), message, help);
        return;
    };
    let written = if target.group == "core" { "" } else { target.group.as_str() };
    if written != *group {
        let help = if group.is_empty() {
            "write `group: \"\"`, or leave it out".to_owned()
        } else {
            format!("write `group: {group}`")
        };
        let message = match (written, *group) {
            ("", _) => format!("a {kind} is in the group `{group}`, not the core group"),
            (written, "") => format!("a {kind} is in the core group, not `{}`", quoted(written)),
            (written, _) => format!("a {kind} is in the group `{group}`, not `{}`", quoted(written)),
        };
        check.error(codes::TARGET_KIND, &at("group"), message, help);
    }
    if *kind == "GatewayClass" && !target.name.is_empty() && target.name != WAYPOINT_CLASS {
        let message = format!("no waypoint has the class `{}`", quoted(&target.name));
        check.error(codes::NEVER_MATCHES, &at("name"), message, format!("write `name: {WAYPOINT_CLASS}`"));
    }
}
