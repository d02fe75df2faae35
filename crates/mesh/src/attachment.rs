//! Which policies a waypoint enforces for a service (`spec/authorization.md` 2.8).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ambit_api::{AuthorizationPolicy, authorization_policy::PolicyTargetReference};

use crate::inputs::{NamespacedName, Policy, WAYPOINT_CLASS};

/// Group of Gateway and GatewayClass.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// What a target reference names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// A Service of the policy's namespace.
    Service(NamespacedName),
    /// A Gateway of the policy's namespace.
    Gateway(NamespacedName),
    /// Every waypoint; only a policy of the root namespace may say so.
    WaypointClass {
        /// Namespace of the policy.
        namespace: Arc<str>,
    },
}

/// The policies, and which of them are attached to what.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    all: BTreeMap<NamespacedName, Policy>,
    by_target: BTreeMap<Target, BTreeSet<NamespacedName>>,
}

/// The policies in force for a service at its waypoint, in order of namespace and name: those that target the
/// Service, those that target the waypoint's Gateway, and those of the root namespace that target the waypoint class.
pub fn policies_for_service<'a>(
    policies: &'a Policies,
    service: &NamespacedName,
    waypoint: &NamespacedName,
    root_namespace: &str,
) -> impl Iterator<Item = &'a Policy> {
    let targets = [
        Target::Service(service.clone()),
        Target::Gateway(waypoint.clone()),
        Target::WaypointClass { namespace: root_namespace.into() },
    ];
    let names: BTreeSet<_> = targets.iter().filter_map(|target| policies.by_target.get(target)).flatten().collect();
    names.into_iter().filter_map(|name| policies.all.get(name))
}

/// The references of a policy, with the field of each. The older single form counts only when the list is empty.
pub fn references(policy: &AuthorizationPolicy) -> impl Iterator<Item = (String, &PolicyTargetReference)> {
    let spec = &policy.spec;
    let list = spec.target_refs.iter().enumerate().map(|(i, target)| (format!("spec.targetRefs[{i}]"), target));
    let single = spec.target_ref.iter().filter(|_| spec.target_refs.is_empty());
    list.chain(single.map(|target| ("spec.targetRef".to_owned(), target)))
}

/// What a reference of a policy in this namespace names; nothing if no waypoint could ever enforce it.
#[must_use]
pub fn target(namespace: &str, reference: &PolicyTargetReference) -> Option<Target> {
    if !reference.namespace.is_empty() && reference.namespace != namespace {
        return None;
    }
    match (reference.group.as_str(), reference.kind.as_str()) {
        ("" | "core", "Service") => Some(Target::Service(NamespacedName::new(namespace, &reference.name))),
        (GATEWAY_GROUP, "Gateway") => Some(Target::Gateway(NamespacedName::new(namespace, &reference.name))),
        (GATEWAY_GROUP, "GatewayClass") if reference.name == WAYPOINT_CLASS => {
            Some(Target::WaypointClass { namespace: namespace.into() })
        }
        _ => None,
    }
}

// === impl Policies ===

impl Policies {
    /// All policies.
    pub fn iter(&self) -> impl Iterator<Item = (&NamespacedName, &Policy)> {
        self.all.iter()
    }

    /// One policy.
    #[must_use]
    pub fn get(&self, name: &NamespacedName) -> Option<&Policy> {
        self.all.get(name)
    }

    /// Those of one namespace.
    pub(crate) fn of_namespace<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a NamespacedName, &'a Policy)> {
        crate::inputs::Inputs::in_namespace(&self.all, namespace)
    }

    pub(crate) fn put(&mut self, name: NamespacedName, policy: Option<Policy>) {
        if let Some(old) = self.all.remove(&name) {
            for target in targets(&old) {
                if let Some(names) = self.by_target.get_mut(&target) {
                    names.remove(&name);
                    if names.is_empty() {
                        self.by_target.remove(&target);
                    }
                }
            }
        }
        if let Some(policy) = policy {
            for target in targets(&policy) {
                self.by_target.entry(target).or_default().insert(name.clone());
            }
            self.all.insert(name, policy);
        }
    }
}

/// What a policy is attached to.
pub(crate) fn targets(policy: &Policy) -> Vec<Target> {
    let policy = policy.get();
    references(policy).filter_map(|(_, reference)| target(&policy.namespace, reference)).collect()
}
