//! Which policies are enforced where (`spec/authorization.md` 2.7, 2.8). What enforcement is derived from, what findings
//! say and what the command line shows all come from [`attachment`] and [`EnforcementPoint::enforces`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use ambit_api::{
    AuthorizationPolicy,
    authorization_policy::{Action, PolicyTargetReference},
};

use crate::inputs::{Labels, NamespacedName, Policy, WAYPOINT_CLASS, contains};

/// Group of Gateway and GatewayClass.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
/// Group of ServiceEntry.
pub const SERVICE_ENTRY_GROUP: &str = "networking.istio.io";
/// Annotation that makes a policy take no part in verdicts.
pub const DRY_RUN: &str = "istio.io/dry-run";

/// What a target reference names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// A Service of the policy's namespace.
    Service(NamespacedName),
    /// A ServiceEntry of the policy's namespace.
    ServiceEntry(NamespacedName),
    /// A Gateway of the policy's namespace.
    Gateway(NamespacedName),
    /// Every waypoint; only a policy of the root namespace may say so.
    WaypointClass {
        /// Namespace of the policy.
        namespace: Arc<str>,
    },
}

/// What a policy is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment<'a> {
    /// What its target references name, at the waypoints of that. Nothing may be left of them: then it is attached to
    /// nothing.
    Targets(Vec<Target>),
    /// Every pod of the mesh, at its node proxy.
    Mesh,
    /// Every pod of its namespace, at its node proxy.
    Namespace,
    /// Pods with these labels, at their node proxy.
    Pods {
        /// In every namespace; otherwise in its own.
        everywhere: bool,
        /// The labels.
        labels: &'a Labels,
    },
}

/// A place where policies are enforced.
#[derive(Clone, Copy, Debug)]
pub enum EnforcementPoint<'a> {
    /// A waypoint, for one service that it fronts.
    Waypoint {
        /// Name of its Gateway.
        gateway: &'a NamespacedName,
        /// The service.
        service: &'a NamespacedName,
        /// What kind of object the service is.
        kind: ServedKind,
    },
    /// A waypoint, for traffic addressed to the workloads that it fronts.
    WaypointWorkload {
        /// Name of its Gateway.
        gateway: &'a NamespacedName,
    },
    /// The proxy of a pod, which sees connections only.
    NodeProxy {
        /// Namespace of the pod.
        namespace: &'a str,
        /// Labels of the pod.
        labels: &'a Labels,
    },
}

/// What kind of object a waypoint's service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServedKind {
    /// A Service.
    Service,
    /// A ServiceEntry.
    ServiceEntry,
}

/// How a policy comes to be enforced at a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    /// By this target.
    Target(Target),
    /// It selects the pod.
    Selector,
    /// It holds for the whole namespace.
    Namespace,
    /// It holds for the whole mesh.
    Mesh,
}

/// The policies, and which of them are attached to what.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    all: BTreeMap<NamespacedName, Policy>,
    by_target: BTreeMap<Target, BTreeSet<NamespacedName>>,
    /// Those of each namespace that pods have, so that a pod's are found without looking at all.
    for_pods: BTreeMap<Arc<str>, ForPods>,
}

/// The policies of a namespace that are attached to pods.
#[derive(Clone, Debug, Default)]
struct ForPods {
    /// To all of them.
    all: BTreeSet<NamespacedName>,
    /// To those with labels, by one of these: key, then value.
    by_label: HashMap<String, HashMap<String, BTreeSet<NamespacedName>>>,
}

/// What a policy is attached to.
#[must_use]
pub fn attachment<'a>(policy: &'a AuthorizationPolicy, root_namespace: &str) -> Attachment<'a> {
    let in_root = policy.namespace == root_namespace;
    if references(policy).next().is_some() {
        let targets = references(policy).filter_map(|(_, reference)| target(&policy.namespace, reference));
        // Only the root namespace may speak for all waypoints.
        return Attachment::Targets(
            targets.filter(|t| in_root || !matches!(t, Target::WaypointClass { .. })).collect(),
        );
    }
    match &policy.spec.selector {
        Some(selector) => Attachment::Pods { everywhere: in_root, labels: &selector.match_labels },
        None if in_root => Attachment::Mesh,
        None => Attachment::Namespace,
    }
}

/// Why the node proxies leave a policy out that is attached to pods; nothing if they enforce it.
///
/// A rejected policy is never left out, whatever it says.
#[must_use]
pub fn left_out_by_node_proxies(policy: &AuthorizationPolicy) -> Option<&'static str> {
    match policy.spec.action {
        _ if is_dry_run(policy) == Some(true) => Some("it is a dry run"),
        Action::Audit => Some("node proxies don't record AUDIT policies"),
        Action::Custom => Some("node proxies don't ask external authorizers"),
        Action::Allow | Action::Deny => None,
    }
}

/// Whether a policy asks to be a dry run; nothing if its annotation isn't a boolean word.
#[must_use]
pub fn is_dry_run(policy: &AuthorizationPolicy) -> Option<bool> {
    match policy.annotations.get(DRY_RUN).map(String::as_str) {
        None => Some(false),
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Some(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Some(false),
        Some(_) => None,
    }
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
    let name = || NamespacedName::new(namespace, &reference.name);
    match (reference.group.as_str(), reference.kind.as_str()) {
        ("" | "core", "Service") => Some(Target::Service(name())),
        (SERVICE_ENTRY_GROUP, "ServiceEntry") => Some(Target::ServiceEntry(name())),
        (GATEWAY_GROUP, "Gateway") => Some(Target::Gateway(name())),
        (GATEWAY_GROUP, "GatewayClass") if reference.name == WAYPOINT_CLASS => {
            Some(Target::WaypointClass { namespace: namespace.into() })
        }
        _ => None,
    }
}

// === impl EnforcementPoint ===

impl EnforcementPoint<'_> {
    /// How a policy comes to be enforced here; nothing if it isn't.
    ///
    /// Whether it takes part in the verdict is another matter: see [`left_out_by_node_proxies`].
    #[must_use]
    pub fn enforces(&self, policy: &AuthorizationPolicy, root_namespace: &str) -> Option<Via> {
        match (self, attachment(policy, root_namespace)) {
            (Self::Waypoint { .. } | Self::WaypointWorkload { .. }, Attachment::Targets(targets)) => {
                let here = self.targets(root_namespace);
                targets.into_iter().find(|target| here.contains(target)).map(Via::Target)
            }
            (Self::NodeProxy { .. }, Attachment::Mesh) => Some(Via::Mesh),
            (Self::NodeProxy { namespace, .. }, Attachment::Namespace) => {
                (policy.namespace == **namespace).then_some(Via::Namespace)
            }
            (Self::NodeProxy { namespace, labels }, Attachment::Pods { everywhere, labels: wanted }) => {
                let in_reach = everywhere || policy.namespace == **namespace;
                (in_reach && contains(labels, wanted)).then_some(Via::Selector)
            }
            (Self::Waypoint { .. } | Self::WaypointWorkload { .. }, _)
            | (Self::NodeProxy { .. }, Attachment::Targets(_)) => None,
        }
    }

    /// What a reference must name to bring a policy here: nothing does at a node proxy.
    pub(crate) fn targets(&self, root_namespace: &str) -> Vec<Target> {
        let (gateway, service) = match *self {
            Self::Waypoint { gateway, service, kind: ServedKind::Service } => {
                (gateway, Some(Target::Service(service.clone())))
            }
            Self::Waypoint { gateway, service, kind: ServedKind::ServiceEntry } => {
                (gateway, Some(Target::ServiceEntry(service.clone())))
            }
            Self::WaypointWorkload { gateway } => (gateway, None),
            Self::NodeProxy { .. } => return Vec::new(),
        };
        let waypoint = [Target::Gateway(gateway.clone()), Target::WaypointClass { namespace: root_namespace.into() }];
        service.into_iter().chain(waypoint).collect()
    }
}

// === impl Via ===

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(Target::Service(name)) => write!(f, "targets Service {name}"),
            Self::Target(Target::ServiceEntry(name)) => write!(f, "targets ServiceEntry {name}"),
            Self::Target(Target::Gateway(name)) => write!(f, "targets Gateway {name}"),
            Self::Target(Target::WaypointClass { .. }) => f.write_str("targets every waypoint"),
            Self::Selector => f.write_str("selects the pod"),
            Self::Namespace => f.write_str("holds for the namespace"),
            Self::Mesh => f.write_str("holds for the mesh"),
        }
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

    /// Those that are enforced at a point, with how they come to be, in order of namespace and name.
    #[must_use]
    pub fn enforced_at(&self, point: &EnforcementPoint<'_>, root_namespace: &str) -> Vec<(&Policy, Via)> {
        let candidates: BTreeMap<_, _> = match point {
            EnforcementPoint::Waypoint { .. } | EnforcementPoint::WaypointWorkload { .. } => {
                let targets = point.targets(root_namespace);
                let names = targets.iter().filter_map(|target| self.by_target.get(target)).flatten();
                names.filter_map(|name| Some((name, self.all.get(name)?))).collect()
            }
            EnforcementPoint::NodeProxy { namespace, labels } => {
                let root = (*namespace != root_namespace).then_some(root_namespace);
                let groups = [Some(*namespace), root].into_iter().flatten().filter_map(|name| self.for_pods.get(name));
                let names = groups.flat_map(|group| group.candidates(labels));
                names.filter_map(|name| Some((name, self.all.get(name)?))).collect()
            }
        };
        let enforced = |policy: &'_ Policy| point.enforces(policy.get(), root_namespace);
        candidates.into_values().filter_map(|policy| enforced(policy).map(|via| (policy, via))).collect()
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
            if let Some(group) = self.for_pods.get_mut(&name.namespace) {
                group.remove(&name, old.get());
                if group.is_empty() {
                    self.for_pods.remove(&name.namespace);
                }
            }
        }
        if let Some(policy) = policy {
            if references(policy.get()).next().is_none() {
                self.for_pods.entry(Arc::clone(&name.namespace)).or_default().insert(&name, policy.get());
            }
            for target in targets(&policy) {
                self.by_target.entry(target).or_default().insert(name.clone());
            }
            self.all.insert(name, policy);
        }
    }
}

// === impl ForPods ===

impl ForPods {
    /// Those that may be attached to a pod with these labels.
    fn candidates<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a NamespacedName> {
        let selecting = labels.iter().filter_map(|(key, value)| self.by_label.get(key)?.get(value));
        self.all.iter().chain(selecting.flatten())
    }

    fn insert(&mut self, name: &NamespacedName, policy: &AuthorizationPolicy) {
        let names = match selected(policy) {
            None => &mut self.all,
            Some((key, value)) => self.by_label.entry(key.clone()).or_default().entry(value.clone()).or_default(),
        };
        names.insert(name.clone());
    }

    fn remove(&mut self, name: &NamespacedName, policy: &AuthorizationPolicy) {
        let Some((key, value)) = selected(policy) else {
            self.all.remove(name);
            return;
        };
        let Some(values) = self.by_label.get_mut(key) else { return };
        if let Some(names) = values.get_mut(value) {
            names.remove(name);
            if names.is_empty() {
                values.remove(value);
            }
        }
        if values.is_empty() {
            self.by_label.remove(key);
        }
    }

    fn is_empty(&self) -> bool {
        self.all.is_empty() && self.by_label.is_empty()
    }
}

/// A label that a policy's pods have; nothing if it selects all.
fn selected(policy: &AuthorizationPolicy) -> Option<(&String, &String)> {
    policy.spec.selector.as_ref().and_then(|selector| selector.match_labels.iter().next())
}

/// What a policy's references name.
pub(crate) fn targets(policy: &Policy) -> Vec<Target> {
    let policy = policy.get();
    references(policy).filter_map(|(_, reference)| target(&policy.namespace, reference)).collect()
}
