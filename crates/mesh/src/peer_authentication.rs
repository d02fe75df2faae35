//! PeerAuthentication: one effective mode per pod, with its port exceptions, said as a DENY policy for the same engine
//! (`spec/control-plane.md` 3.2).

use std::collections::{BTreeMap, BTreeSet};

use ambit_api::{
    AuthorizationPolicy, PeerAuthentication,
    authorization_policy::{Action, AuthorizationPolicySpec, From, Operation, Rule, Source, To},
    peer_authentication::Mode,
};

use crate::inputs::{Inputs, Labels, NamespacedName, contains};

/// Name of the policy that refuses plaintext on every port, in the root namespace.
const STATIC_STRICT: &str = "istio_converted_static_strict";
/// Start of the name of a policy that is made from one PeerAuthentication, in its namespace.
const CONVERTED: &str = "converted_peer_authentication_";

/// What a pod takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// Only mutual TLS, on the ports that aren't exceptions.
    pub strict: bool,
    /// Ports where it is the other way round.
    pub exceptions: BTreeSet<u16>,
    /// The PeerAuthentication that selects the pod, if any.
    pub selected_by: Option<NamespacedName>,
}

/// What a pod of this namespace with these labels takes.
#[must_use]
pub fn effective(inputs: &Inputs, namespace: &str, labels: &Labels) -> Effective {
    let selecting = |object: &PeerAuthentication| object.match_labels().is_some_and(|wanted| contains(labels, wanted));
    let in_root = namespace == inputs.settings.root_namespace;
    // Those of the root namespace that select pods speak for nobody.
    let own = if in_root { None } else { oldest(inputs, namespace, selecting) };
    of(inputs, namespace, own)
}

/// The policies that say it all, for the wire: nothing while there is no PeerAuthentication.
pub(crate) fn policies(inputs: &Inputs) -> Vec<AuthorizationPolicy> {
    if inputs.peer_authentications.is_empty() {
        return Vec::new();
    }
    let root = inputs.settings.root_namespace.as_str();
    let selecting = inputs.peer_authentications.iter().filter(|(_, object)| object.match_labels().is_some());
    let converted = selecting.filter(|(name, _)| *name.namespace != *root).filter_map(|(name, object)| {
        let effective = of(inputs, &name.namespace, Some((name, object)));
        (!effective.exceptions.is_empty()).then(|| policy(&name_of(inputs, &effective)?, &effective))
    });
    let strict = Effective { strict: true, exceptions: BTreeSet::new(), selected_by: None };
    let static_strict = name_of(inputs, &strict).and_then(|name| policy(&name, &strict));
    static_strict.into_iter().chain(converted.flatten()).collect()
}

/// The policy of a pod, ready for the engine; nothing if it takes plaintext everywhere.
#[must_use]
pub fn policy_of(inputs: &Inputs, namespace: &str, labels: &Labels) -> Option<AuthorizationPolicy> {
    let effective = effective(inputs, namespace, labels);
    policy(&name_of(inputs, &effective)?, &effective)
}

/// Name of the policy of a pod; nothing if it takes plaintext everywhere.
pub(crate) fn policy_name(inputs: &Inputs, namespace: &str, labels: &Labels) -> Option<NamespacedName> {
    if inputs.peer_authentications.is_empty() {
        return None;
    }
    name_of(inputs, &effective(inputs, namespace, labels))
}

/// Those of several at one level that don't count, each with the one that does.
pub(crate) fn shadowed(inputs: &Inputs) -> Vec<(&NamespacedName, &NamespacedName)> {
    let mut first: BTreeMap<(&str, Option<&Labels>), &NamespacedName> = BTreeMap::new();
    let mut shadowed = Vec::new();
    for (name, object) in by_age(inputs.peer_authentications.iter().collect()) {
        match first.get(&(&*name.namespace, object.match_labels())) {
            Some(older) => shadowed.push((name, *older)),
            None => drop(first.insert((&name.namespace, object.match_labels()), name)),
        }
    }
    shadowed
}

fn of(inputs: &Inputs, namespace: &str, own: Option<(&NamespacedName, &PeerAuthentication)>) -> Effective {
    let wide = |namespace: &str| {
        let found = oldest(inputs, namespace, |object| object.match_labels().is_none());
        found.map_or(Mode::Unset, |(_, object)| object.mode())
    };
    let root = inputs.settings.root_namespace.as_str();
    let levels = [own.map_or(Mode::Unset, |(_, object)| object.mode()), wide(namespace), wide(root)];
    let mode = levels.into_iter().find(|mode| *mode != Mode::Unset).unwrap_or(Mode::Permissive);
    let strict = mode == Mode::Strict;
    let ports = own.iter().flat_map(|(_, object)| object.ports()).filter(|(_, mode)| *mode != Mode::Unset);
    let exceptions = ports.filter(|(_, mode)| (*mode == Mode::Strict) != strict).map(|(port, _)| port).collect();
    Effective { strict, exceptions, selected_by: own.map(|(name, _)| name.clone()) }
}

/// The oldest of a namespace that is wanted; of equally old ones the first by name.
fn oldest<'a>(
    inputs: &'a Inputs,
    namespace: &'a str,
    wanted: impl Fn(&PeerAuthentication) -> bool,
) -> Option<(&'a NamespacedName, &'a PeerAuthentication)> {
    let all = Inputs::in_namespace(&inputs.peer_authentications, namespace).filter(|(_, object)| wanted(object));
    by_age(all.collect()).into_iter().next()
}

fn by_age<'a>(
    mut objects: Vec<(&'a NamespacedName, &'a PeerAuthentication)>,
) -> Vec<(&'a NamespacedName, &'a PeerAuthentication)> {
    objects.sort_by_key(|(name, object)| (object.created.as_deref(), *name));
    objects
}

fn name_of(inputs: &Inputs, effective: &Effective) -> Option<NamespacedName> {
    match &effective.selected_by {
        Some(own) if !effective.exceptions.is_empty() => {
            Some(NamespacedName::new(&own.namespace, &format!("{CONVERTED}{}", own.name)))
        }
        _ if effective.strict => Some(NamespacedName::new(&inputs.settings.root_namespace, STATIC_STRICT)),
        _ => None,
    }
}

/// "Nobody without an identity", except on some ports or only on some.
fn policy(name: &NamespacedName, effective: &Effective) -> Option<AuthorizationPolicy> {
    let ports: Vec<_> = effective.exceptions.iter().map(u16::to_string).collect();
    let operation = match (effective.strict, ports.is_empty()) {
        (true, true) => None,
        (true, false) => Some(Operation { not_ports: ports, ..Operation::default() }),
        (false, true) => return None,
        (false, false) => Some(Operation { ports, ..Operation::default() }),
    };
    let plaintext = Source { not_principals: vec!["*".to_owned()], ..Source::default() };
    let rule = Rule {
        from: Some(vec![From { source: plaintext }]),
        to: operation.map(|operation| vec![To { operation }]),
        when: None,
    };
    let spec = AuthorizationPolicySpec { action: Action::Deny, rules: Some(vec![rule]), ..Default::default() };
    Some(AuthorizationPolicy {
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        annotations: BTreeMap::new(),
        spec,
    })
}
