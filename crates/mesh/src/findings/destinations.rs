//! DestinationRules: what they are about, who follows them, and what of them does nothing.

use std::collections::{BTreeMap, BTreeSet};

use ambit_api::{
    Severity,
    destination_rule::{DestinationRuleSpec, OutlierDetection, TrafficPolicy},
    routes::{RouteSpec, subset_of},
};

use super::{Found, at, codes, policies::similar};
use crate::{
    binding::{self, USE_WAYPOINT},
    destinations::{self, Hosts, Rule},
    inputs::{Inputs, NamespacedName, Service, WAYPOINT_CLASS},
};

const KIND: &str = "DestinationRule";
/// Part of the endpoints that are left out at most, unless a rule says otherwise.
const MAX_EJECTION_PERCENT: i64 = 10;

pub(super) fn check(inputs: &Inputs, found: &mut Found) {
    if inputs.destination_rules.is_empty() {
        return;
    }
    let mut hosts: BTreeMap<NamespacedName, Option<Hosts<'_>>> = BTreeMap::new();
    let used = used_subsets(inputs);
    for (name, rule) in &inputs.destination_rules {
        // One for single clients is told of where it is read.
        if rule.is_selective() {
            continue;
        }
        let host = rule.get().full_host(&inputs.settings.cluster_domain);
        let about: Vec<_> = inputs
            .services
            .iter()
            .filter(|(service, _)| rule.is_about(&inputs.hostname(service), &inputs.settings.cluster_domain))
            .collect();
        if about.is_empty() {
            unknown(inputs, name, rule, &host, found);
        }
        // What a rule for many says needn't fit all of them.
        let one = !host.starts_with('*');
        for (service, object) in about {
            let Some(binding) = binding::of_service(inputs, service, object) else {
                if one {
                    not_applied(name, format!("service `{service}` has no waypoint"), found);
                }
                continue;
            };
            let gateway = binding.request.gateway;
            let Some((known, _)) = inputs.gateways.get_key_value(&gateway) else { continue };
            let hosts = hosts.entry(gateway.clone()).or_insert_with(|| Some(Hosts::of(inputs, &known.namespace)));
            let rules = hosts.as_ref().map_or(&[][..], |h| h.rules(&service.namespace, &inputs.hostname(service)));
            if one {
                followed(name, rule, (service, &gateway), rules, found);
                fits(inputs, name, rule, (service, object), &used, found);
            }
        }
    }
}

fn unknown(inputs: &Inputs, name: &NamespacedName, rule: &Rule, host: &str, found: &mut Found) {
    let ending = format!(".svc.{}", inputs.settings.cluster_domain);
    let full = host.strip_suffix(&ending).and_then(|short| short.split_once('.'));
    let help = match full {
        Some((service, namespace)) if !host.starts_with('*') => {
            similar(service, Inputs::in_namespace(&inputs.services, namespace).map(|(name, _)| name))
        }
        _ => format!("write a Service's name, or its full name: `<service>.<namespace>{ending}`"),
    };
    found.add(
        Severity::Warning,
        codes::TARGET_NOT_FOUND,
        at(KIND, name, "spec.host"),
        format!("the rule isn't applied: there is no service `{}`", rule.get().spec.host),
        help,
    );
}

fn not_applied(name: &NamespacedName, why: String, found: &mut Found) {
    found.add(
        Severity::Warning,
        codes::DESTINATION_NOT_TREATED,
        at(KIND, name, "spec.host"),
        format!("the rule isn't applied: {why}"),
        format!("label the Service `{USE_WAYPOINT}: <name of a Gateway of class {WAYPOINT_CLASS}>`"),
    );
}

/// Whether another rule takes its place.
fn followed(
    name: &NamespacedName,
    rule: &Rule,
    (service, gateway): (&NamespacedName, &NamespacedName),
    rules: &[&Rule],
    found: &mut Found,
) {
    let named = |rule: &Rule| format!("`{}/{}`", rule.get().namespace, rule.get().name);
    let is_this = |other: &&&Rule| other.get().name == rule.get().name && other.get().namespace == rule.get().namespace;
    if !rules.iter().any(|other| is_this(&other)) {
        let why = match rules.first() {
            Some(first) => format!("for service `{service}` the rule {} takes its place", named(first)),
            None => format!("it isn't exported to namespace `{}` of waypoint `{gateway}`", gateway.namespace),
        };
        return found.add(
            Severity::Warning,
            codes::DESTINATION_NOT_TREATED,
            at(KIND, name, "spec.host"),
            format!("the rule isn't applied: {why}"),
            "a waypoint follows the rules of its own namespace, else of the Service's, else of the root namespace",
        );
    }
    let first = rules.iter().find(|other| other.get().spec.traffic_policy.is_some());
    if let Some(first) = first.filter(|first| rule.get().spec.traffic_policy.is_some() && !is_this(first)) {
        found.add(
            Severity::Warning,
            codes::DESTINATION_NOT_TREATED,
            at(KIND, name, "spec.trafficPolicy"),
            format!("it does nothing: for the same host the rule {} speaks first", named(first)),
            "put both into one rule",
        );
    }
}

/// Whether the service has what the rule speaks of.
fn fits(
    inputs: &Inputs,
    name: &NamespacedName,
    rule: &Rule,
    (service, object): (&NamespacedName, &Service),
    used: &BTreeSet<(NamespacedName, String)>,
    found: &mut Found,
) {
    let DestinationRuleSpec { traffic_policy, subsets, .. } = &rule.get().spec;
    let policies = traffic_policy.iter().map(|policy| ("spec.trafficPolicy".to_owned(), policy));
    let of_subsets = subsets.iter().enumerate().filter_map(|(index, subset)| {
        Some((format!("spec.subsets[{index}].trafficPolicy"), subset.traffic_policy.as_ref()?))
    });
    let none = crate::inputs::Labels::new();
    let endpoints = destinations::members(inputs, service, object, &none).count();
    for (field, policy) in policies.chain(of_subsets) {
        ports(name, &field, policy, (service, object), found);
        outliers(name, &field, policy, endpoints, found);
    }
    for (index, subset) in subsets.iter().enumerate() {
        let field = format!("spec.subsets[{index}]");
        if destinations::members(inputs, service, object, &subset.labels).next().is_none() {
            found.add(
                Severity::Warning,
                codes::SUBSET_UNUSED,
                at(KIND, name, format!("{field}.labels")),
                format!("no pod of service `{service}` has these labels, so subset `{}` is empty", subset.name),
                "use labels that some of its pods have",
            );
        }
        if !used.contains(&(service.clone(), subset.name.clone())) {
            found.add(
                Severity::Warning,
                codes::SUBSET_UNUSED,
                at(KIND, name, format!("{field}.name")),
                format!("no route leads to subset `{}` of service `{service}`", subset.name),
                "name it in a route: a backend with `filters: [{type: ExtensionRef, extensionRef: {group: ambit.dev, \
                 kind: Subset, name: <subset>}}]`",
            );
        }
    }
}

fn ports(
    name: &NamespacedName,
    field: &str,
    policy: &TrafficPolicy,
    (service, object): (&NamespacedName, &Service),
    found: &mut Found,
) {
    for (index, port) in policy.port_level_settings.iter().enumerate() {
        let number = port.port.as_ref().map_or(0, |port| port.number);
        if object.ports.iter().any(|port| u32::from(port.port) == number) {
            continue;
        }
        let known: Vec<_> = object.ports.iter().map(|port| format!("`{}`", port.port)).collect();
        found.add(
            Severity::Warning,
            codes::TARGET_NOT_FOUND,
            at(KIND, name, format!("{field}.portLevelSettings[{index}].port")),
            format!("service `{service}` has no port {number}, so these settings do nothing"),
            format!("its ports are {}", known.join(", ")),
        );
    }
}

/// As in Envoy, one of few endpoints may be too large a part of them.
fn outliers(name: &NamespacedName, field: &str, policy: &TrafficPolicy, endpoints: usize, found: &mut Found) {
    let whole = policy.outlier_detection.iter().map(|written| (field.to_owned(), written));
    let of_ports = policy.port_level_settings.iter().enumerate().filter_map(|(index, port)| {
        Some((format!("{field}.portLevelSettings[{index}]"), port.outlier_detection.as_ref()?))
    });
    let endpoints = i64::try_from(endpoints).unwrap_or(i64::MAX);
    for (field, OutlierDetection { max_ejection_percent, .. }) in whole.chain(of_ports) {
        let most = max_ejection_percent.unwrap_or(MAX_EJECTION_PERCENT);
        if endpoints > 0 && endpoints.saturating_mul(most) < 100 {
            let place = format!("{field}.outlierDetection");
            found.add(
                Severity::Warning,
                codes::NOBODY_IS_LEFT_OUT,
                at(
                    KIND,
                    name,
                    if max_ejection_percent.is_some() { format!("{place}.maxEjectionPercent") } else { place },
                ),
                format!("no endpoint is ever left out: one of {endpoints} is more than {most} %"),
                format!(
                    "set `maxEjectionPercent` to {} or more",
                    100_i64.div_euclid(endpoints) + i64::from(100 % endpoints != 0)
                ),
            );
        }
    }
}

/// Subsets that routes lead to.
fn used_subsets(inputs: &Inputs) -> BTreeSet<(NamespacedName, String)> {
    let mut used = BTreeSet::new();
    for route in inputs.routes.values() {
        let route = route.get();
        let backends: Vec<_> = match &route.spec {
            RouteSpec::Http(spec) => spec.rules.iter().flatten().flat_map(|rule| &rule.backend_refs).collect(),
            RouteSpec::Grpc(spec) => spec.rules.iter().flat_map(|rule| &rule.backend_refs).collect(),
            RouteSpec::Tls(_) | RouteSpec::Tcp(_) => Vec::new(),
        };
        for backend in backends {
            let subset = backend.filters.iter().find_map(subset_of);
            let reference = backend.reference();
            if let (Some(subset), Some((namespace, name))) = (subset, reference.service(&route.namespace)) {
                used.insert((NamespacedName::new(namespace, name), subset.to_owned()));
            }
        }
    }
    used
}
