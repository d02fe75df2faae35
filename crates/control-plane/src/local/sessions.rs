//! Where a session's pod goes: into the place of a declared pod that waits, or into one of its own.

use std::sync::Arc;

use ambit_mesh::{
    derive::{DATAPLANE_MODE, NOT_IN_MESH},
    inputs::{DEFAULT_NAMESPACE, DEFAULT_SERVICE_ACCOUNT, Gateway, Labels, NamespacedName},
};
use ambit_xds::DeltaResponse;

use super::{
    cluster::{Cluster, Outcome, Slot, SlotState},
    desired::letters,
    plan::{PodCommand, PodKind, PodPlan, RestartPolicy},
    pod_spec::Declared,
    session::{SessionError, SessionRequest},
};
use crate::limits::MAX_PODS;

/// Longest pod name: it is a host name.
const MAX_NAME_BYTES: usize = 63;

impl Cluster {
    /// Makes a pod for a session. It is known to the proxies when the returned responses are applied; the session's
    /// side makes the pod itself, there is no command for it.
    pub(super) fn add_session(
        &mut self,
        request: &SessionRequest,
    ) -> Result<(Arc<PodPlan>, Vec<DeltaResponse>), SessionError> {
        self.check_session(request)?;
        let (name, declared) = self.session_place(request)?;
        let mut pod = declared.clone().unwrap_or_else(|| Declared {
            labels: Labels::new(),
            service_account: request.service_account.clone(),
            containers: Vec::new(),
            restart_policy: RestartPolicy::Never,
            owner: None,
            waypoint: None,
        });
        pod.labels.extend(request.labels.clone());
        if !request.captured {
            pod.labels.insert(DATAPLANE_MODE.into(), NOT_IN_MESH.into());
        }
        let ip = match self.slots.get(&name) {
            Some(waiting) => waiting.plan.ip,
            None => self.pod_addresses.take().map_err(|error| SessionError::TooMany(error.to_string()))?,
        };
        let stands_in_for =
            declared.as_ref().map(|declared| declared.owner.clone().unwrap_or_else(|| name.name.to_string()));
        let inputs = self.index.inputs().clone();
        let kind = PodKind::Session { stands_in_for };
        let plan = self.plan(&name, &pod, &inputs, kind, ip).map_err(SessionError::TooMany)?;
        let plan = Arc::new(plan);
        let slot = Slot { declared, state: SlotState::Session, ready: false, plan: Arc::clone(&plan) };
        self.slots.insert(name, slot);
        Ok((plan, self.sync_pods()))
    }

    fn check_session(&self, request: &SessionRequest) -> Result<(), SessionError> {
        let inputs = self.index.inputs();
        let namespace = request.namespace.as_str();
        if namespace != DEFAULT_NAMESPACE && !inputs.namespaces.contains_key(namespace) {
            return Err(SessionError::UnknownNamespace(namespace.into()));
        }
        let account = NamespacedName::new(namespace, &request.service_account);
        if inputs.gateways.get(&account).is_some_and(Gateway::is_waypoint) {
            return Err(SessionError::WaypointIdentity(account.to_string()));
        }
        if &*account.name != DEFAULT_SERVICE_ACCOUNT && !inputs.service_accounts.contains(&account) {
            let known = inputs.service_accounts.iter().filter(|known| known.namespace == account.namespace);
            let known: Vec<_> = known.map(|known| format!("`{}`", known.name)).take(16).collect();
            return Err(SessionError::UnknownServiceAccount {
                namespace: namespace.into(),
                account: request.service_account.clone(),
                known: if known.is_empty() { "only `default`".into() } else { known.join(", ") },
            });
        }
        if let Some(name) = request.name.as_ref().filter(|name| !is_pod_name(name)) {
            return Err(SessionError::BadName(name.chars().take(MAX_NAME_BYTES + 1).collect()));
        }
        Ok(())
    }

    /// The place for a session, and the declared pod whose place it is.
    fn session_place(&mut self, request: &SessionRequest) -> Result<(NamespacedName, Option<Declared>), SessionError> {
        let waiting = |(name, slot): (&NamespacedName, &Slot)| {
            let declared = slot.declared.as_ref().filter(|_| slot.state == SlotState::Waiting)?;
            (*name.namespace == *request.namespace).then(|| (name.clone(), declared.clone()))
        };
        let mut waiting = self.slots.iter().filter_map(waiting);
        let Some(wanted) = &request.name else {
            let mut fitting =
                waiting.filter(|(_, declared)| request.stand_in && declared.service_account == request.service_account);
            if let (Some((name, declared)), None) = (fitting.next(), fitting.next()) {
                return Ok((name, Some(declared)));
            }
            return self.own_place(&request.namespace).map(|name| (name, None));
        };
        let by_name = |(name, declared): &(NamespacedName, Declared)| {
            *name.name == **wanted || declared.owner.as_ref() == Some(wanted)
        };
        if let Some((name, declared)) = waiting.find(by_name) {
            if declared.service_account == request.service_account {
                return Ok((name, Some(declared)));
            }
            return Err(SessionError::OtherServiceAccount {
                pod: name.to_string(),
                declared: declared.service_account,
                asked: request.service_account.clone(),
            });
        }
        let name = NamespacedName::new(&request.namespace, wanted);
        if self.slots.contains_key(&name) {
            return Err(SessionError::NameTaken(name.to_string()));
        }
        self.check_room()?;
        Ok((name, None))
    }

    fn check_room(&self) -> Result<(), SessionError> {
        if self.slots.len() < MAX_PODS {
            return Ok(());
        }
        Err(SessionError::TooMany(format!("{MAX_PODS} run already")))
    }

    fn own_place(&mut self, namespace: &str) -> Result<NamespacedName, SessionError> {
        self.check_room()?;
        // More names than places: one of them is free.
        for step in 0..=u64::try_from(MAX_PODS).unwrap_or(u64::MAX) {
            let ending = letters(&format!("session {}", self.made + step));
            let name = NamespacedName::new(namespace, &format!("session-{ending}"));
            if !self.slots.contains_key(&name) {
                return Ok(name);
            }
        }
        Err(SessionError::TooMany("no name is free".into()))
    }

    /// Ends a session; a declared pod whose place it had is as before.
    pub(super) fn remove_session(&mut self, uid: &str) -> Option<Outcome> {
        let name = self.find(uid).filter(|name| self.slots[name].state == SlotState::Session)?;
        let mut commands = Vec::new();
        let slot = self.slots.remove(&name)?;
        let mut put_back = None;
        if let Some(declared) = slot.declared {
            let inputs = self.index.inputs().clone();
            put_back = self.fill(&name, declared, &inputs).ok();
        }
        self.pod_addresses.free(slot.plan.ip);
        if let Some(slot) = put_back {
            if slot.state == SlotState::Running {
                commands.push(PodCommand::Add(Arc::clone(&slot.plan)));
            }
            self.slots.insert(name, slot);
        }
        Some(Outcome { responses: self.sync_pods(), commands, changed: 1 })
    }
}

fn is_pod_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}
