//! Which DestinationRules hold for a service at a waypoint, and who belongs to their subsets.
//!
//! As in Istio: those of the waypoint's namespace, else of the service's, else of the root namespace; of these the ones
//! for the most specific host. Of several for one host the first traffic policy counts, and the subsets of all.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ambit_api::DestinationRule;
use ambit_xds::waypoint::{AttachedDestinationRule, DestinationSettings, SubsetMembers};

use crate::inputs::{Inputs, NamespacedName, Service, contains};

/// A DestinationRule, with its text for the wire.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    rule: Arc<DestinationRule>,
    json: Arc<[u8]>,
    rejection: Option<Arc<str>>,
}

/// The rules that waypoints of one namespace may follow, by host.
#[derive(Debug)]
pub struct Hosts<'a> {
    waypoint_namespace: &'a str,
    root_namespace: &'a str,
    namespaces: HashMap<&'a str, ByHost<'a>>,
}

#[derive(Debug, Default)]
struct ByHost<'a> {
    exact: HashMap<String, Vec<&'a Rule>>,
    /// Ends of names.
    wild: BTreeMap<String, Vec<&'a Rule>>,
}

/// How the endpoints of a service are treated at a waypoint; nothing if no rule says.
pub(crate) fn settings(
    inputs: &Inputs,
    hosts: &Hosts<'_>,
    name: &NamespacedName,
    service: &Service,
) -> Option<DestinationSettings> {
    let rules = hosts.rules(&name.namespace, &inputs.hostname(name));
    if rules.is_empty() {
        return None;
    }
    let mut subsets: BTreeMap<&str, SubsetMembers> = BTreeMap::new();
    for subset in rules.iter().flat_map(|rule| &rule.rule.spec.subsets) {
        subsets.entry(&subset.name).or_insert_with(|| SubsetMembers {
            name: subset.name.clone(),
            workloads: members(inputs, name, service, &subset.labels).map(|pod| pod.uid.to_string()).collect(),
        });
    }
    let attached = |rule: &&Rule| AttachedDestinationRule {
        namespace: rule.rule.namespace.clone(),
        name: rule.rule.name.clone(),
        json: rule.json.to_vec(),
        rejection: rule.rejection().unwrap_or_default().to_owned(),
    };
    Some(DestinationSettings { rules: rules.iter().map(attached).collect(), subsets: subsets.into_values().collect() })
}

/// Pods of a service with these labels that run.
pub(crate) fn members<'a>(
    inputs: &'a Inputs,
    name: &'a NamespacedName,
    service: &'a Service,
    labels: &'a crate::inputs::Labels,
) -> impl Iterator<Item = &'a crate::inputs::Pod> {
    let pods = Inputs::in_namespace(&inputs.pods, &name.namespace).map(|(_, pod)| pod);
    pods.filter(move |pod| pod.ip.is_some() && service.selects(&pod.labels) && contains(&pod.labels, labels))
}

// === impl Rule ===

impl Rule {
    /// Takes a rule in.
    #[must_use]
    pub fn new(rule: DestinationRule) -> Self {
        // Writing plain data as JSON into memory can't fail; were it to, the empty text is refused by every reader, and
        // the host closed.
        let json = serde_json::to_vec(&rule).unwrap_or_default().into();
        Self { rule: Arc::new(rule), json, rejection: None }
    }

    /// Takes in a rule that can't be followed: nothing reaches its host.
    #[must_use]
    pub fn rejected(rule: DestinationRule, reason: &str) -> Self {
        Self { rejection: Some(reason.into()), ..Self::new(rule) }
    }

    /// The rule.
    #[must_use]
    pub fn get(&self) -> &DestinationRule {
        &self.rule
    }

    /// Why it can't be followed, if it can't.
    #[must_use]
    pub fn rejection(&self) -> Option<&str> {
        self.rejection.as_deref()
    }

    /// True if it may be about a service of this full name.
    pub(crate) fn is_about(&self, hostname: &str, cluster_domain: &str) -> bool {
        let host = self.rule.full_host(cluster_domain);
        match host.strip_prefix('*') {
            Some(end) => hostname.ends_with(end),
            None => host == hostname,
        }
    }

    /// True if it is for single clients, which waypoints don't know.
    pub(crate) fn is_selective(&self) -> bool {
        self.rule.spec.workload_selector.is_some()
    }

    /// Oldest first, those without an age last; then by name.
    fn place(&self) -> impl Ord + use<'_> {
        let created = self.rule.created.as_deref();
        (created.is_none(), created, &self.rule.name)
    }
}

// === impl Hosts ===

impl<'a> Hosts<'a> {
    /// The rules that waypoints of this namespace may follow.
    #[must_use]
    pub fn of(inputs: &'a Inputs, waypoint_namespace: &'a str) -> Self {
        let mut namespaces: HashMap<&str, ByHost<'_>> = HashMap::new();
        for rule in inputs.destination_rules.values() {
            if rule.is_selective() || !rule.rule.is_exported_to(waypoint_namespace) {
                continue;
            }
            let host = rule.rule.full_host(&inputs.settings.cluster_domain);
            let by_host = namespaces.entry(&rule.rule.namespace).or_default();
            let rules = match host.strip_prefix('*') {
                Some(end) => by_host.wild.entry(end.to_owned()).or_default(),
                None => by_host.exact.entry(host).or_default(),
            };
            rules.push(rule);
        }
        for by_host in namespaces.values_mut() {
            for rules in by_host.exact.values_mut().chain(by_host.wild.values_mut()) {
                rules.sort_by(|one, other| one.place().cmp(&other.place()));
            }
        }
        Self { waypoint_namespace, root_namespace: &inputs.settings.root_namespace, namespaces }
    }

    /// Those for a service of this namespace and full name, the one that counts most first.
    #[must_use]
    pub fn rules(&self, namespace: &str, hostname: &str) -> &[&'a Rule] {
        // The root namespace's own rules are for everybody, so a waypoint there doesn't prefer them.
        let own = Some(self.waypoint_namespace).filter(|own| *own != self.root_namespace);
        let mut places = own.into_iter().chain([namespace, self.root_namespace]);
        let found = places.find_map(|namespace| self.namespaces.get(namespace)?.find(hostname));
        found.map_or(&[], Vec::as_slice)
    }
}

// === impl ByHost ===

impl<'a> ByHost<'a> {
    fn find(&self, hostname: &str) -> Option<&Vec<&'a Rule>> {
        let wild = || {
            let ends = self.wild.iter().filter(|(end, _)| hostname.ends_with(end.as_str()));
            ends.max_by_key(|(end, _)| end.len()).map(|(_, rules)| rules)
        };
        self.exact.get(hostname).or_else(wild)
    }
}
