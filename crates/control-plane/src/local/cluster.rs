//! What runs, as a state machine without IO: objects, sessions and readiness in; pod commands and resources out.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc};

use ambit_api::{Diagnostic, Object, Resource, Severity, SpiffeId};
use ambit_mesh::{
    Index, derive, findings,
    inputs::{Change, Inputs, Labels, NamespacedName, Pod, Settings},
};
use ambit_xds::DeltaResponse;
use ipnet::Ipv4Net;

use super::{
    addresses::{PodAddresses, ServiceAddresses},
    codes,
    desired::{Desired, desired},
    plan::{PodCommand, PodKind, PodPlan},
    pod_spec::Declared,
};

/// Name of the one node.
pub(super) const NODE_NAME: &str = "ambit";
/// Start of every pod's key on the wire.
const POD_KEY: &str = "Kubernetes//Pod";

/// The state.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    pub(super) index: Index,
    service_addresses: ServiceAddresses,
    pub(super) pod_addresses: PodAddresses,
    pub(super) slots: BTreeMap<NamespacedName, Slot>,
    /// Counts pods made, for keys and names that are never used again.
    pub(super) made: u64,
    started: bool,
    /// What the user was told of the state in force.
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// A pod's place.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    /// As the files say; nothing for a session that stands in for no declared pod.
    pub(super) declared: Option<Declared>,
    pub(super) state: SlotState,
    pub(super) ready: bool,
    pub(super) plan: Arc<PodPlan>,
}

/// What is in a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotState {
    /// The declared processes, or a waypoint.
    Running,
    /// Nothing until a session comes.
    Waiting,
    /// Nothing, because it was stopped.
    Stopped,
    /// A session.
    Session,
}

/// What has to happen, in this order: resources, then pods.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// To the proxies.
    pub(super) responses: Vec<DeltaResponse>,
    /// To the node side.
    pub(super) commands: Vec<PodCommand>,
    /// Objects that changed.
    pub(super) changed: usize,
}

// === impl Cluster ===

impl Cluster {
    pub(super) fn new(settings: Settings, pod_range: Ipv4Net, service_range: Ipv4Net) -> Self {
        Self {
            index: Index::new(settings),
            service_addresses: ServiceAddresses::new(service_range),
            pod_addresses: PodAddresses::new(pod_range),
            slots: BTreeMap::new(),
            made: 0,
            started: false,
            diagnostics: Vec::new(),
        }
    }

    /// What the objects would be derived from, errors and all; nothing runs.
    pub(super) fn preview(mut self, objects: Vec<Object>) -> (Inputs, Vec<Diagnostic>) {
        let settings = self.index.inputs().settings.clone();
        // Policies are most of what there is, and can be had without copies: nothing else hangs on them here.
        let is_policy = |object: &Object| matches!(object.resource, Resource::AuthorizationPolicy(_));
        let (policies, others): (Vec<_>, Vec<_>) = objects.into_iter().partition(is_policy);
        let mut desired = desired(settings, &others, &mut self.service_addresses);
        for Object { resource, rejection, .. } in policies {
            if let Resource::AuthorizationPolicy(policy) = resource {
                desired.policy(*policy, rejection.as_deref());
            }
        }
        // Nobody is told to make them.
        let _commands = self.replace_pods(&mut desired);
        desired.inputs.pods = self.pods();
        (desired.inputs, desired.diagnostics)
    }

    /// Makes the objects the state, all or nothing.
    ///
    /// # Errors
    /// Everything there is to say about the objects, when an error is among it; the state is then as before.
    pub(super) fn reload(&mut self, objects: &[Object]) -> Result<Outcome, Vec<Diagnostic>> {
        let mut next = self.clone();
        let outcome = next.try_reload(objects)?;
        *self = next;
        Ok(outcome)
    }

    fn try_reload(&mut self, objects: &[Object]) -> Result<Outcome, Vec<Diagnostic>> {
        let settings = self.index.inputs().settings.clone();
        let mut desired = desired(settings, objects, &mut self.service_addresses);
        if desired.has_errors() {
            return Err(desired.diagnostics);
        }
        let commands = self.replace_pods(&mut desired);
        let changes = self.changes(&desired.inputs);
        let changed = changes.len();
        let responses = self.index.apply(changes);
        for finding in findings::findings(self.index.inputs()) {
            let diagnostic = desired.diagnostic(finding);
            desired.diagnostics.push(diagnostic);
        }
        if desired.has_errors() {
            return Err(desired.diagnostics);
        }
        self.diagnostics = desired.diagnostics;
        self.started = true;
        Ok(Outcome { responses, commands, changed })
    }

    /// Brings the places in line with the declared pods.
    fn replace_pods(&mut self, desired: &mut Desired) -> Vec<PodCommand> {
        let mut commands = Vec::new();
        let names: Vec<_> = self.slots.keys().cloned().collect();
        for name in names {
            if !desired.pods.contains_key(&name) {
                self.undeclare(&name, &mut commands);
            }
        }
        for (name, declared) in std::mem::take(&mut desired.pods) {
            if let Err(problem) = self.declare(&name, declared, &desired.inputs, &mut commands) {
                let message = format!("pod `{name}` can't run: {problem}");
                desired.diagnostics.push(Diagnostic::new(Severity::Error, codes::TOO_MANY, message, ""));
            }
        }
        commands
    }

    fn undeclare(&mut self, name: &NamespacedName, commands: &mut Vec<PodCommand>) {
        let Some(slot) = self.slots.get_mut(name) else { return };
        if slot.state == SlotState::Session {
            slot.declared = None;
        } else {
            self.clear(name, commands);
        }
    }

    /// Empties a place.
    pub(super) fn clear(&mut self, name: &NamespacedName, commands: &mut Vec<PodCommand>) {
        let Some(slot) = self.slots.remove(name) else { return };
        self.pod_addresses.free(slot.plan.ip);
        if slot.state == SlotState::Running {
            commands.push(PodCommand::Remove { uid: Arc::clone(&slot.plan.uid) });
        }
    }

    fn declare(
        &mut self,
        name: &NamespacedName,
        declared: Declared,
        inputs: &Inputs,
        commands: &mut Vec<PodCommand>,
    ) -> Result<(), String> {
        if let Some(slot) = self.slots.get_mut(name) {
            let same = slot.declared.as_ref().is_some_and(|old| old.runs_like(&declared));
            let captured = captured(inputs, name, &declared);
            if slot.state == SlotState::Session {
                slot.declared = Some(declared);
                return Ok(());
            }
            if same && slot.plan.captured == captured {
                if slot.plan.labels != declared.labels {
                    slot.plan = Arc::new(PodPlan { labels: declared.labels.clone(), ..(*slot.plan).clone() });
                }
                slot.declared = Some(declared);
                return Ok(());
            }
            self.clear(name, commands);
        }
        let slot = self.fill(name, declared, inputs)?;
        if slot.state == SlotState::Running {
            commands.push(PodCommand::Add(Arc::clone(&slot.plan)));
        }
        self.slots.insert(name.clone(), slot);
        Ok(())
    }

    /// A new pod for a declared place.
    pub(super) fn fill(&mut self, name: &NamespacedName, declared: Declared, inputs: &Inputs) -> Result<Slot, String> {
        let kind = match &declared.waypoint {
            Some(gateway) => PodKind::Waypoint { gateway: gateway.clone() },
            None => PodKind::App,
        };
        let ip = self.pod_addresses.take().map_err(|error| error.to_string())?;
        let plan = self.plan(name, &declared, inputs, kind, ip)?;
        let state = if declared.waits() { SlotState::Waiting } else { SlotState::Running };
        Ok(Slot { declared: Some(declared), state, ready: false, plan: Arc::new(plan) })
    }

    pub(super) fn plan(
        &mut self,
        name: &NamespacedName,
        declared: &Declared,
        inputs: &Inputs,
        kind: PodKind,
        ip: Ipv4Addr,
    ) -> Result<PodPlan, String> {
        let trust_domain = &inputs.settings.trust_domain;
        let identity = SpiffeId::new(trust_domain, &name.namespace, &declared.service_account);
        Ok(PodPlan {
            uid: self.next_uid(name),
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
            ip,
            service_account: declared.service_account.clone(),
            identity: identity.map_err(|error| error.to_string())?,
            labels: declared.labels.clone(),
            kind,
            captured: captured(inputs, name, declared),
            containers: declared.containers(name, ip),
            restart_policy: declared.restart_policy,
        })
    }

    /// As on Istio's wire for the pods of the start; a pod of the same name made later is told apart by a number.
    fn next_uid(&mut self, name: &NamespacedName) -> Arc<str> {
        self.made += 1;
        let key = format!("{POD_KEY}/{name}");
        if self.started { format!("{key}#{}", self.made).into() } else { key.into() }
    }

    /// What is different between the index and these inputs with the pods of the places.
    fn changes(&self, inputs: &Inputs) -> Vec<Change> {
        let old = self.index.inputs();
        let mut changes = Vec::new();
        if old.settings != inputs.settings {
            changes.push(Change::Settings(inputs.settings.clone()));
        }
        differences(&old.peer_authentications, &inputs.peer_authentications, |name, value| {
            changes.push(Change::PeerAuthentication(name, value));
        });
        differences(&old.request_authentications, &inputs.request_authentications, |name, value| {
            changes.push(Change::RequestAuthentication(name, value));
        });
        differences(&old.namespaces, &inputs.namespaces, |name, value| changes.push(Change::Namespace(name, value)));
        for name in old.service_accounts.symmetric_difference(&inputs.service_accounts) {
            changes.push(Change::ServiceAccount(name.clone(), inputs.service_accounts.contains(name)));
        }
        differences(&old.services, &inputs.services, |name, value| changes.push(Change::Service(name, value)));
        differences(&old.gateways, &inputs.gateways, |name, value| changes.push(Change::Gateway(name, value)));
        let policies = |inputs: &Inputs| -> BTreeMap<_, _> {
            inputs.policies().map(|(name, policy)| (name.clone(), policy.clone())).collect()
        };
        differences(&policies(old), &policies(inputs), |name, value| changes.push(Change::Policy(name, value)));
        differences(&old.routes, &inputs.routes, |name, value| changes.push(Change::Route(name, value)));
        differences(&old.traffic_policies, &inputs.traffic_policies, |name, value| {
            changes.push(Change::TrafficPolicy(name, value));
        });
        differences(&old.retry_policies, &inputs.retry_policies, |name, value| {
            changes.push(Change::RetryPolicy(name, value));
        });
        differences(&old.destination_rules, &inputs.destination_rules, |name, value| {
            changes.push(Change::DestinationRule(name, value));
        });
        differences(&old.pods, &self.pods(), |name, value| changes.push(Change::Pod(name, value)));
        changes
    }

    /// Tells the index of the pods as they are now.
    pub(super) fn sync_pods(&mut self) -> Vec<DeltaResponse> {
        let mut changes = Vec::new();
        differences(&self.index.inputs().pods, &self.pods(), |name, value| changes.push(Change::Pod(name, value)));
        self.index.apply(changes)
    }

    fn pods(&self) -> BTreeMap<NamespacedName, Pod> {
        self.slots.iter().map(|(name, slot)| (name.clone(), slot.pod())).collect()
    }

    /// Notes which pods answer.
    pub(super) fn set_ready(&mut self, readiness: &BTreeMap<Arc<str>, bool>) -> Vec<DeltaResponse> {
        for slot in self.slots.values_mut() {
            if let Some(ready) = readiness.get(&slot.plan.uid) {
                slot.ready = *ready;
            }
        }
        self.sync_pods()
    }

    /// The place of the pod with this key.
    pub(super) fn find(&self, uid: &str) -> Option<NamespacedName> {
        self.slots.iter().find(|(_, slot)| &*slot.plan.uid == uid).map(|(name, _)| name.clone())
    }

    /// Stops a declared pod, which stays declared. False if no such pod runs.
    pub(super) fn stop(&mut self, name: &NamespacedName) -> Option<Outcome> {
        let slot = self.slots.get_mut(name).filter(|slot| slot.state == SlotState::Running)?;
        slot.state = SlotState::Stopped;
        slot.ready = false;
        let commands = vec![PodCommand::Remove { uid: Arc::clone(&slot.plan.uid) }];
        Some(Outcome { responses: self.sync_pods(), commands, changed: 1 })
    }

    /// Starts a stopped pod again, as another pod of the same name.
    pub(super) fn start(&mut self, name: &NamespacedName) -> Option<Result<Outcome, String>> {
        let slot = self.slots.get(name).filter(|slot| slot.state == SlotState::Stopped)?;
        let declared = slot.declared.clone()?;
        let mut commands = Vec::new();
        self.clear(name, &mut commands);
        let inputs = self.index.inputs().clone();
        Some(self.declare(name, declared, &inputs, &mut commands).map(|()| Outcome {
            responses: self.sync_pods(),
            commands,
            changed: 1,
        }))
    }
}

/// True if the node proxy captures the pod. A waypoint speaks for itself.
fn captured(inputs: &Inputs, name: &NamespacedName, declared: &Declared) -> bool {
    declared.waypoint.is_none() && captures(inputs, &name.namespace, &declared.labels)
}

fn captures(inputs: &Inputs, namespace: &str, labels: &Labels) -> bool {
    derive::captures(inputs.namespace_labels(namespace), labels)
}

fn differences<K: Ord + Clone, V: PartialEq + Clone>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    mut report: impl FnMut(K, Option<V>),
) {
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        report(key.clone(), None);
    }
    for (key, value) in new {
        if old.get(key) != Some(value) {
            report(key.clone(), Some(value.clone()));
        }
    }
}

// === impl Slot ===

impl Slot {
    fn pod(&self) -> Pod {
        let runs = matches!(self.state, SlotState::Running | SlotState::Session);
        Pod {
            uid: Arc::clone(&self.plan.uid),
            labels: self.plan.labels.clone(),
            service_account: self.plan.service_account.clone(),
            ip: runs.then_some(self.plan.ip.into()),
            ready: runs && self.ready,
            host_network: false,
            captured: None,
            node: NODE_NAME.into(),
            owner: self.declared.as_ref().and_then(|declared| declared.owner.clone()),
            named_ports: self.declared.as_ref().map(Declared::named_ports).unwrap_or_default(),
            waypoint: self.declared.as_ref().and_then(|declared| declared.waypoint.clone()),
        }
    }
}
