//! Policies: what they are attached to, who enforces them, and whom they name.

use std::collections::BTreeSet;

use ambit_api::{
    AuthorizationPolicy, Severity,
    authorization_policy::{Action, PolicyTargetReference, Rule, Source, To},
};

use super::{Found, at, codes, identities};
use crate::{
    attachment::{self, EnforcementPoint, Target},
    authorizers,
    binding::{self, USE_WAYPOINT},
    inputs::{Inputs, NamespacedName, WAYPOINT_CLASS},
};

pub(super) fn check(inputs: &Inputs, found: &mut Found) {
    for (name, policy) in inputs.policies() {
        let policy = policy.get();
        enforcement(inputs, name, policy, found);
        let mut targeted = false;
        for (field, reference) in attachment::references(policy) {
            targeted = true;
            target(inputs, "AuthorizationPolicy", name, &field, reference, found);
        }
        if !targeted {
            node_proxy(inputs, name, policy, found);
        }
        names(inputs, name, policy, found);
    }
}

/// Actions that need a waypoint.
fn enforcement(inputs: &Inputs, name: &NamespacedName, policy: &AuthorizationPolicy, found: &mut Found) {
    let place = || at("AuthorizationPolicy", name, "spec.action");
    match policy.spec.action {
        Action::Allow | Action::Deny => {}
        Action::Audit if attachment::references(policy).next().is_some() => {}
        Action::Audit => found.add(
            Severity::Warning,
            codes::UNSUPPORTED_POLICY,
            place(),
            "node proxies don't record what AUDIT policies match; this one has no effect".into(),
            "use `targetRefs` with a Service that has a waypoint, whose decision records name the policy",
        ),
        Action::Custom => custom(inputs, name, policy, found),
    }
    if attachment::is_dry_run(policy) == Some(true) {
        found.add(
            Severity::Warning,
            codes::UNSUPPORTED_POLICY,
            at("AuthorizationPolicy", name, format!("metadata.annotations[{}]", attachment::DRY_RUN)),
            "this policy is a dry run: it decides nothing".into(),
            "remove the annotation to enforce it",
        );
    }
}

/// Requests that it matches are denied if no one can ask its provider.
fn custom(inputs: &Inputs, name: &NamespacedName, policy: &AuthorizationPolicy, found: &mut Found) {
    let provider = policy.spec.provider.as_ref().map_or("", |provider| provider.name.as_str());
    if attachment::references(policy).next().is_none() {
        found.add(
            Severity::Error,
            codes::NOT_ENFORCED,
            at("AuthorizationPolicy", name, "spec.action"),
            "the policy isn't enforced: node proxies don't ask external authorizers".into(),
            "use `targetRefs` with a Service that has a waypoint",
        );
    } else if !inputs.settings.providers.contains_key(provider) {
        found.add(
            Severity::Warning,
            codes::UNKNOWN_PROVIDER,
            at("AuthorizationPolicy", name, "spec.provider.name"),
            format!("there is no provider `{provider}`, so requests that the policy matches are denied"),
            "add it to `extensionProviders` of a MeshConfig",
        );
    } else if let Some(problem) = authorizers::problem(inputs, provider) {
        found.add(
            Severity::Warning,
            codes::UNKNOWN_PROVIDER,
            at("AuthorizationPolicy", name, "spec.provider.name"),
            format!("provider `{provider}` can't be asked, so requests that the policy matches are denied: {problem}"),
            "create the Service, or correct `service` and `port` of the provider in the MeshConfig",
        );
    }
}

/// What is wrong with a target reference of a policy of this kind.
pub(super) fn target(
    inputs: &Inputs,
    kind: &str,
    name: &NamespacedName,
    field: &str,
    reference: &PolicyTargetReference,
    found: &mut Found,
) {
    let at_name = || at(kind, name, format!("{field}.name"));
    match attachment::target(&name.namespace, reference) {
        // The kinds that never fit are refused where the policy is read; this one fits but isn't served.
        Some(Target::ServiceEntry(_)) => found.add(
            Severity::Error,
            codes::UNSUPPORTED_POLICY,
            at(kind, name, format!("{field}.kind")),
            "policies on a ServiceEntry aren't enforced yet".into(),
            "target a Service or a Gateway",
        ),
        None => found.add(
            Severity::Error,
            codes::NOT_ENFORCED,
            at(kind, name, field),
            "this reference names nothing that a waypoint enforces policies for".into(),
            format!(
                "target a Service or Gateway of namespace `{}`, or GatewayClass `{WAYPOINT_CLASS}`",
                name.namespace
            ),
        ),
        Some(Target::Service(service)) => match inputs.services.get(&service) {
            None => found.add(
                Severity::Error,
                codes::TARGET_NOT_FOUND,
                at_name(),
                format!("service `{}` doesn't exist in namespace `{}`", service.name, service.namespace),
                similar(&service.name, Inputs::in_namespace(&inputs.services, &service.namespace).map(|(n, _)| n)),
            ),
            // A waypoint that can't be had is the Service's finding.
            Some(object) if binding::of_service(inputs, &service, object).is_none() => {
                found.add(
                    Severity::Error,
                    codes::NOT_ENFORCED,
                    at_name(),
                    format!("the policy isn't enforced: service `{service}` has no waypoint"),
                    format!("label the Service `{USE_WAYPOINT}: <name of a Gateway of class {WAYPOINT_CLASS}>`"),
                );
            }
            Some(_) => {}
        },
        Some(Target::Gateway(gateway)) => match inputs.gateways.get(&gateway) {
            None => found.add(
                Severity::Error,
                codes::TARGET_NOT_FOUND,
                at_name(),
                format!("gateway `{}` doesn't exist in namespace `{}`", gateway.name, gateway.namespace),
                similar(&gateway.name, Inputs::in_namespace(&inputs.gateways, &gateway.namespace).map(|(n, _)| n)),
            ),
            Some(object) if !object.is_waypoint() => found.add(
                Severity::Error,
                codes::NOT_ENFORCED,
                at_name(),
                format!("the policy isn't enforced: gateway `{gateway}` is of class `{}`", object.class),
                format!("target a Gateway of class `{WAYPOINT_CLASS}`"),
            ),
            Some(_) => {}
        },
        Some(Target::WaypointClass { namespace }) if *namespace != *inputs.settings.root_namespace => found.add(
            Severity::Error,
            codes::NOT_ENFORCED,
            at_name(),
            "the policy isn't enforced: only the root namespace may target a GatewayClass".into(),
            format!("move the policy to namespace `{}`", inputs.settings.root_namespace),
        ),
        Some(Target::WaypointClass { .. }) => {}
    }
}

pub(super) fn similar<'a>(wanted: &str, names: impl Iterator<Item = &'a NamespacedName>) -> String {
    let names: Vec<_> = names.map(|name| format!("`{}`", name.name)).take(5).collect();
    if names.is_empty() { format!("create `{wanted}`") } else { format!("there is {}", names.join(", ")) }
}

/// A policy without target references: who it selects, and which of its fields a node proxy can't see.
fn node_proxy(inputs: &Inputs, name: &NamespacedName, policy: &AuthorizationPolicy, found: &mut Found) {
    let selects = |(pod, object): (&NamespacedName, &crate::inputs::Pod)| {
        let point = EnforcementPoint::NodeProxy { namespace: &pod.namespace, labels: &object.labels };
        object.waypoint.is_none() && point.enforces(policy, &inputs.settings.root_namespace).is_some()
    };
    if policy.spec.selector.is_some() && !inputs.pods.iter().any(selects) {
        found.add(
            Severity::Warning,
            codes::POLICY_SELECTS_NOTHING,
            at("AuthorizationPolicy", name, "spec.selector"),
            "its selector matches no pod".into(),
            "correct the selector; a waypoint's pods can't be selected, use `targetRefs` for those",
        );
    }
    let rules = policy.spec.rules.as_deref().unwrap_or_default();
    let http: BTreeSet<_> = rules.iter().flat_map(http_attributes).collect();
    if http.is_empty() {
        return;
    }
    let tail = match policy.spec.action {
        Action::Allow => "rules with them never match, so less is allowed than written",
        _ if rules.iter().any(falls_on_all) => "without them what is left denies all traffic in its scope",
        _ => "the DENY rules are enforced without them, so more is denied than written",
    };
    let list = http.iter().map(|attribute| format!("`{attribute}`")).collect::<Vec<_>>().join(", ");
    found.add(
        Severity::Warning,
        codes::HTTP_AT_L4,
        at("AuthorizationPolicy", name, "spec.rules"),
        format!("a policy without `targetRefs` is enforced by the node proxy, which doesn't see HTTP attributes (found {list}): {tail}"),
        "use `targetRefs` with a Service that has a waypoint",
    );
}

/// The attributes of a rule that only HTTP has, by the name they are written with.
fn http_attributes(rule: &Rule) -> Vec<String> {
    let mut names = Vec::new();
    let mut add = |name: &str, values: &[String]| {
        if !values.is_empty() {
            names.push(name.to_owned());
        }
    };
    for from in rule.from.iter().flatten() {
        let source = &from.source;
        add("requestPrincipals", &source.request_principals);
        add("notRequestPrincipals", &source.not_request_principals);
    }
    for to in rule.to.iter().flatten() {
        let operation = &to.operation;
        add("hosts", &operation.hosts);
        add("notHosts", &operation.not_hosts);
        add("methods", &operation.methods);
        add("notMethods", &operation.not_methods);
        add("paths", &operation.paths);
        add("notPaths", &operation.not_paths);
    }
    let keys = rule.when.iter().flatten().map(|condition| condition.key.as_str());
    names.extend(keys.filter(|key| is_http_key(key)).map(str::to_owned));
    names
}

/// True for an attribute of conditions that node proxies don't see. The remote address is that of the connection there.
fn is_http_key(key: &str) -> bool {
    key.starts_with("request.") || key.starts_with("experimental.") || key == "connection.sni"
}

/// True if the rule matches everything at L4: it has no `from` or an entry of HTTP fields alone, the same of `to`, and all
/// of `when` takes HTTP.
fn falls_on_all(rule: &Rule) -> bool {
    let is_blind_source = |source: &Source| {
        let mut source = source.clone();
        source.request_principals.clear();
        source.not_request_principals.clear();
        source.is_empty()
    };
    let any_source = rule.from.as_ref().is_none_or(|from| from.iter().any(|entry| is_blind_source(&entry.source)));
    let is_portless = |entry: &To| entry.operation.ports.is_empty() && entry.operation.not_ports.is_empty();
    let any_operation = rule.to.as_ref().is_none_or(|to| to.iter().any(is_portless));
    any_source && any_operation && rule.when.iter().flatten().all(|condition| is_http_key(&condition.key))
}

/// Principals and service accounts that nobody in a declared namespace has.
fn names(inputs: &Inputs, name: &NamespacedName, policy: &AuthorizationPolicy, found: &mut Found) {
    for (r, rule) in policy.spec.rules.iter().flatten().enumerate() {
        for (f, from) in rule.from.iter().flatten().enumerate() {
            let source = &from.source;
            let lists = [
                ("principals", &source.principals),
                ("notPrincipals", &source.not_principals),
                ("serviceAccounts", &source.service_accounts),
                ("notServiceAccounts", &source.not_service_accounts),
            ];
            for (field, values) in lists {
                for (v, value) in values.iter().enumerate() {
                    let account = if field.to_ascii_lowercase().ends_with("principals") {
                        principal_account(value)
                    } else {
                        Some(account(&name.namespace, value))
                    };
                    let place = || format!("spec.rules[{r}].from[{f}].source.{field}[{v}]");
                    unknown_account(inputs, name, account, place, found);
                }
            }
        }
    }
}

fn unknown_account(
    inputs: &Inputs,
    policy: &NamespacedName,
    account: Option<NamespacedName>,
    field: impl Fn() -> String,
    found: &mut Found,
) {
    let Some(account) = account else { return };
    let declared = inputs.namespaces.contains_key(&account.namespace);
    if declared && !identities::service_account_exists(inputs, &account) {
        found.add(
            Severity::Warning,
            codes::UNKNOWN_PRINCIPAL,
            at("AuthorizationPolicy", policy, field()),
            format!("service account `{account}` doesn't exist, so nobody has this identity"),
            similar(&account.name, inputs.service_accounts.iter().filter(|name| name.namespace == account.namespace)),
        );
    }
}

fn principal_account(value: &str) -> Option<NamespacedName> {
    match value.split('/').collect::<Vec<_>>()[..] {
        [_, "ns", namespace, "sa", name] if !value.contains('*') => Some(NamespacedName::new(namespace, name)),
        _ => None,
    }
}

fn account(policy_namespace: &str, value: &str) -> NamespacedName {
    let (namespace, name) = value.split_once('/').unwrap_or((policy_namespace, value));
    NamespacedName::new(namespace, name)
}
