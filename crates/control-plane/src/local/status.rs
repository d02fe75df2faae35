//! What there is, for `ambit` to show.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ambit_mesh::binding;

use super::{
    cluster::{Cluster, SlotState},
    plan::PodKind,
};

/// All of the mesh at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Pods, by namespace and name.
    pub pods: Vec<PodStatus>,
    /// Services, by namespace and name.
    pub services: Vec<ServiceStatus>,
    /// Number of policies.
    pub policies: usize,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodStatus {
    /// Its key, [`super::PodPlan::uid`].
    pub uid: Arc<str>,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Service account.
    pub service_account: String,
    /// Its address, or the one it will have.
    pub ip: Ipv4Addr,
    /// What it is.
    pub kind: PodKind,
    /// Whether it runs.
    pub phase: PodPhase,
    /// It gets new connections.
    pub ready: bool,
    /// Its traffic goes through the node proxy.
    pub captured: bool,
}

/// Whether a pod runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodPhase {
    /// It runs.
    Running,
    /// It waits for an `ambit run`.
    Waiting,
    /// It was stopped.
    Stopped,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceStatus {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its virtual address; nothing if it is headless.
    pub vip: Option<IpAddr>,
    /// Its ports.
    pub ports: Vec<u16>,
    /// The waypoint that fronts it, `namespace/name` of the Gateway.
    pub waypoint: Option<String>,
    /// Pods that belong to it and run.
    pub endpoints: usize,
    /// Those of them that are ready.
    pub ready: usize,
}

impl Cluster {
    pub(super) fn status(&self) -> Status {
        let inputs = self.index.inputs();
        let pods = self.slots.values().map(|slot| PodStatus {
            uid: Arc::clone(&slot.plan.uid),
            namespace: slot.plan.namespace.clone(),
            name: slot.plan.name.clone(),
            service_account: slot.plan.service_account.clone(),
            ip: slot.plan.ip,
            kind: slot.plan.kind.clone(),
            phase: match slot.state {
                SlotState::Running | SlotState::Session => PodPhase::Running,
                SlotState::Waiting => PodPhase::Waiting,
                SlotState::Stopped => PodPhase::Stopped,
            },
            ready: slot.ready,
            captured: slot.plan.captured,
        });
        let services = inputs.services.iter().map(|(name, service)| {
            let runs = |slot: &&super::cluster::Slot| {
                slot.plan.namespace == *name.namespace
                    && matches!(slot.state, SlotState::Running | SlotState::Session)
                    && service.selects(&slot.plan.labels)
            };
            ServiceStatus {
                namespace: name.namespace.to_string(),
                name: name.name.to_string(),
                vip: service.vips.first().copied(),
                ports: service.ports.iter().map(|port| port.port).collect(),
                waypoint: binding::of_service(inputs, name, service).map(|b| b.request.gateway.to_string()),
                endpoints: self.slots.values().filter(runs).count(),
                ready: self.slots.values().filter(runs).filter(|slot| slot.ready).count(),
            }
        });
        Status { pods: pods.collect(), services: services.collect(), policies: inputs.policies().count() }
    }
}
