//! Which policies are known, and the sets of them that workloads and waypoints enforce.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use ambit_api::AuthorizationPolicy;
use ambit_policy::{Compiled, Options, PathNormalization, PolicyName};
use ambit_xds::{
    security::{Policy, Scope},
    waypoint::{BoundService, RequestAuthentication, TrafficPolicy},
};

use super::{
    authentication::authentication,
    decode::{self, WorkloadFacts},
    listing::PolicyRecord,
    traffic,
};
use crate::enforcement::{Enforced, Refusal, enforce};

/// The L4 policies by `namespace/name`.
#[derive(Debug)]
pub(super) struct Policies {
    options: Options,
    paths: PathNormalization,
    entries: BTreeMap<Arc<str>, Entry>,
    global: BTreeSet<Arc<str>>,
    by_namespace: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Removed, but workloads still name them: they stay in force until none does.
    kept: BTreeSet<Arc<str>>,
    /// Compiled sets by what they were made of, so that workloads with the same policies share one.
    cache: HashMap<SetKey, Arc<Compiled>>,
    /// Moves with every change; names versions within this store.
    revision: u64,
}

/// Names and revisions; a name that isn't known has none.
type SetKey = Vec<(Arc<str>, Option<u64>)>;

#[derive(Debug)]
struct Entry {
    scope: Reach,
    revision: u64,
    /// Nothing for a dry run, which never takes part in a verdict.
    policy: Result<Option<AuthorizationPolicy>, String>,
}

/// What a policy applies to, besides the workloads that name it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reach {
    Everything,
    Namespace(Arc<str>),
    OnlyNamed,
}

/// What a change of policies touches.
#[derive(Debug, Default)]
pub(super) struct Touched {
    everything: bool,
    namespaces: BTreeSet<Arc<str>>,
    names: BTreeSet<Arc<str>>,
}

// === impl Touched ===

impl Touched {
    fn add(&mut self, name: &Arc<str>, reach: &Reach) {
        self.names.insert(Arc::clone(name));
        match reach {
            Reach::Everything => self.everything = true,
            Reach::Namespace(namespace) => drop(self.namespaces.insert(Arc::clone(namespace))),
            Reach::OnlyNamed => {}
        }
    }

    /// True if nothing is touched.
    pub(super) fn is_empty(&self) -> bool {
        !self.everything && self.namespaces.is_empty() && self.names.is_empty()
    }

    /// True if the policies of every workload may have changed.
    pub(super) fn everything(&self) -> bool {
        self.everything
    }

    /// True if the policies of this workload may have changed.
    pub(super) fn includes(&self, workload: &WorkloadFacts) -> bool {
        self.everything
            || self.namespaces.contains(&workload.workload.namespace)
            || (!self.names.is_empty() && workload.policies.iter().any(|name| self.names.contains(name)))
    }
}

// === impl Policies ===

impl Policies {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            paths: PathNormalization::default(),
            entries: BTreeMap::new(),
            global: BTreeSet::new(),
            by_namespace: HashMap::new(),
            kept: BTreeSet::new(),
            cache: HashMap::new(),
            revision: 0,
        }
    }

    /// Every policy by `namespace/name`, for whoever lists them.
    pub(super) fn list(&self) -> impl Iterator<Item = PolicyRecord> {
        self.entries.iter().map(|(name, entry)| PolicyRecord {
            name: Arc::clone(name),
            scope: match entry.scope {
                Reach::Everything => Scope::Global,
                Reach::Namespace(_) => Scope::Namespace,
                Reach::OnlyNamed => Scope::WorkloadSelector,
            },
            policy: entry.policy.clone(),
        })
    }

    /// What policies mean from now on.
    pub(super) fn set_mesh(&mut self, options: Options, paths: PathNormalization, touched: &mut Touched) {
        if self.options == options && self.paths == paths {
            return;
        }
        (self.options, self.paths) = (options, paths);
        self.cache.clear();
        touched.everything = true;
    }

    /// Takes a policy in. What can't be read or compiled stays as a refusal of all that it may apply to.
    pub(super) fn upsert(&mut self, name: &str, value: &[u8], touched: &mut Touched) -> Result<(), String> {
        let facts = decode::authorization(name, value);
        let checked = facts.policy.and_then(|policy| match enforce([Ok(&policy)], &self.options, self.paths).refusal {
            Some(refusal) => Err(refusal.reason),
            None => Ok(policy),
        });
        let outcome = checked.as_ref().map(|_| ()).map_err(Clone::clone);
        let scope = self.reach(name, facts.scope);
        self.remove(name, touched);
        let name: Arc<str> = name.into();
        touched.add(&name, &scope);
        match &scope {
            Reach::Everything => drop(self.global.insert(Arc::clone(&name))),
            Reach::Namespace(ns) => {
                self.by_namespace.entry(Arc::clone(ns)).or_default().insert(Arc::clone(&name));
            }
            Reach::OnlyNamed => {}
        }
        self.revision += 1;
        let policy = checked.map(|policy| (!facts.dry_run).then_some(policy));
        self.entries.insert(name, Entry { scope, revision: self.revision, policy });
        outcome
    }

    /// Forgets a policy.
    pub(super) fn remove(&mut self, name: &str, touched: &mut Touched) {
        let Some((name, entry)) = self.entries.remove_entry(name) else { return };
        self.kept.remove(&name);
        touched.add(&name, &entry.scope);
        match &entry.scope {
            Reach::Everything => drop(self.global.remove(&name)),
            Reach::Namespace(namespace) => {
                if let Some(names) = self.by_namespace.get_mut(namespace) {
                    names.remove(&name);
                    if names.is_empty() {
                        self.by_namespace.remove(namespace);
                    }
                }
            }
            Reach::OnlyNamed => {}
        }
    }

    /// Takes note that a policy was removed while workloads name it. The control plane says the one and the other in
    /// different messages; if the policy went at once, the workloads would be closed until the next one. False if the
    /// policy isn't one that only workloads that name it have.
    pub(super) fn keep_while_named(&mut self, name: &str) -> bool {
        match self.entries.get_key_value(name) {
            Some((name, entry)) if entry.scope == Reach::OnlyNamed => {
                self.kept.insert(Arc::clone(name));
                true
            }
            _ => false,
        }
    }

    /// Those that were removed while workloads named them.
    pub(super) fn kept(&self) -> &BTreeSet<Arc<str>> {
        &self.kept
    }

    /// Forgets those of them that aren't named any more.
    pub(super) fn release(&mut self, named: &BTreeSet<Arc<str>>) {
        let unnamed: Vec<_> = self.kept.difference(named).cloned().collect();
        for name in unnamed {
            // Nobody names it, so nothing is touched.
            self.remove(&name, &mut Touched::default());
        }
    }

    /// A scope that can't be read is taken as the widest that the policy could have.
    fn reach(&self, name: &str, scope: Option<Scope>) -> Reach {
        let namespace = name.split_once('/').map(|(namespace, _)| namespace);
        match (scope, namespace) {
            (Some(Scope::WorkloadSelector), _) => Reach::OnlyNamed,
            (Some(Scope::Global), _) | (_, None) => Reach::Everything,
            (None, Some(namespace)) if namespace == self.options.root_namespace => Reach::Everything,
            (Some(Scope::Namespace) | None, Some(namespace)) => Reach::Namespace(namespace.into()),
        }
    }

    /// The compiled policies of a workload: those of the mesh, of its namespace, and those it names.
    pub(super) fn of_workload(&mut self, workload: &WorkloadFacts) -> Arc<Compiled> {
        let mut names = self.global.clone();
        names.extend(self.by_namespace.get(&workload.workload.namespace).into_iter().flatten().cloned());
        names.extend(workload.policies.iter().cloned());
        let revision = |name: &Arc<str>| self.entries.get(name).map(|entry| entry.revision);
        let key: SetKey = names.into_iter().map(|name| (Arc::clone(&name), revision(&name))).collect();
        if let Some(compiled) = self.cache.get(&key) {
            return Arc::clone(compiled);
        }
        let compiled = Arc::new(self.compile_set(&key));
        self.cache.insert(key, Arc::clone(&compiled));
        compiled
    }

    fn compile_set(&self, key: &SetKey) -> Compiled {
        let read = |name: &Arc<str>| match self.entries.get(name).map(|entry| &entry.policy) {
            None => Some(Err(refusal(name, format!("policy `{name}` isn't loaded")))),
            Some(Err(reason)) => Some(Err(rejected(name, reason))),
            Some(Ok(None)) => None,
            Some(Ok(Some(policy))) => Some(Ok(policy)),
        };
        enforce(key.iter().filter_map(|(name, _)| read(name)), &self.options, self.paths).compiled
    }

    /// Forgets compiled sets that nothing uses any more.
    pub(super) fn forget_unused(&mut self) {
        self.cache.retain(|_, compiled| Arc::strong_count(compiled) > 1);
    }

    /// The compiled policies of a service at its waypoint. The error says why everything is denied.
    pub(super) fn of_service(&self, service: &BoundService) -> (Arc<Compiled>, Result<(), String>) {
        self.at_waypoint(&service.policies, &service.authentications, &service.traffic_policies)
    }

    /// The same for any policies that a waypoint is sent.
    pub(super) fn at_waypoint(
        &self,
        policies: &[Policy],
        authentications: &[RequestAuthentication],
        traffic_policies: &[TrafficPolicy],
    ) -> (Arc<Compiled>, Result<(), String>) {
        // Whose tokens are to be believed is part of what the policies mean; and who must not come through too often is
        // not to come through at all when nobody knows how often that is.
        let readable = authentication(authentications).and_then(|_| traffic::readable(traffic_policies));
        if let Err(reason) = readable {
            return (Arc::new(Compiled::deny_all(&reason)), Err(reason));
        }
        let policies: Vec<_> = policies.iter().map(|policy| (policy, decode::policy(policy))).collect();
        let read = policies.iter().map(|(wire, policy)| {
            policy.as_ref().map_err(|reason| rejected(&format!("{}/{}", wire.namespace, wire.name), reason))
        });
        let Enforced { compiled, refusal } = enforce(read, &self.options, self.paths);
        (Arc::new(compiled), refusal.map_or(Ok(()), |refusal| Err(refusal.reason)))
    }
}

fn rejected(name: &str, reason: &str) -> Refusal {
    refusal(name, format!("policy `{name}` was rejected: {reason}"))
}

fn refusal(name: &str, reason: String) -> Refusal {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    Refusal { policy: PolicyName { namespace: namespace.into(), name: name.into() }, reason }
}
