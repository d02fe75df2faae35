//! The pods that are served and their connections: `workloadState`.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use serde::Serialize;

use crate::{Ztunnel, tracking::What};

/// One pod. Serialises as one entry of `workloadState`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadState {
    /// `Up`, or `Pending` for a pod whose proxy couldn't be started yet.
    pub state: &'static str,
    /// Its connections; nothing while it is pending.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<Connections>,
    /// Who it is.
    pub info: WorkloadInfo,
}

/// Who a pod is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadInfo {
    /// Pod name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Trust domain.
    pub trust_domain: String,
    /// Its service account.
    pub service_account: String,
}

/// The live connections of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Connections {
    /// To the pod.
    pub inbound: Vec<ConnectionState>,
    /// From the pod.
    pub outbound: Vec<ConnectionState>,
}

/// A live connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionState {
    /// Where it comes from.
    pub src: SocketAddr,
    /// Where it wanted to go.
    pub original_dst: String,
    /// Where it went: with HBONE to the proxy there.
    pub actual_dst: String,
    /// `HBONE` or `TCP`.
    pub protocol: &'static str,
    /// Bytes that the client has sent so far.
    pub received_bytes: u64,
    /// Bytes that the server has sent so far.
    pub sent_bytes: u64,
}

// === impl Ztunnel ===

impl Ztunnel {
    /// The pods that are served, by uid, with their live connections.
    #[must_use]
    pub fn workload_states(&self) -> BTreeMap<Arc<str>, WorkloadState> {
        let view = self.shared.store.load();
        let pods: Vec<_> =
            self.pods.lock().unwrap_or_else(std::sync::PoisonError::into_inner).values().cloned().collect();
        let state = |pod: &crate::pod::PodProxy| {
            let workload = pod.current(&view);
            let in_pod = pod.pod.in_pod.as_ref();
            let name = workload.map(|workload| workload.name.to_string());
            let account = workload.map(|workload| workload.identity.service_account().to_owned());
            let info = WorkloadInfo {
                name: in_pod.map(|in_pod| in_pod.name.clone()).or(name).unwrap_or_default(),
                namespace: pod.pod.namespace.clone(),
                trust_domain: self.shared.config.trust_domain.clone(),
                service_account: in_pod.map(|i| i.service_account.clone()).or(account).unwrap_or_default(),
            };
            WorkloadState { state: "Up", connections: Some(connections(pod)), info }
        };
        pods.iter().map(|pod| (Arc::clone(&pod.pod.uid), state(pod))).collect()
    }
}

fn connections(pod: &crate::pod::PodProxy) -> Connections {
    let mut all = Connections::default();
    for entry in pod.tracked.snapshot() {
        let account = entry.account();
        let facts = account.as_ref().and_then(|account| account.facts());
        let hbone = match &entry.what {
            What::Inbound { caller, .. } => caller.peer.is_some(),
            What::Outbound { .. } => facts.is_some_and(|facts| facts.hbone_address.is_some()),
        };
        let (received_bytes, sent_bytes) = entry.moved.get();
        let state = |src, original: SocketAddr, actual: SocketAddr| ConnectionState {
            src,
            original_dst: original.to_string(),
            actual_dst: actual.to_string(),
            protocol: if hbone { "HBONE" } else { "TCP" },
            received_bytes,
            sent_bytes,
        };
        match &entry.what {
            What::Inbound { caller, destination } => {
                all.inbound.push(state(caller.address, *destination, *destination));
            }
            What::Outbound { origin, destination, .. } => {
                let went = facts.and_then(|facts| facts.address).unwrap_or(*destination);
                all.outbound.push(state(*origin, *destination, went));
            }
        }
    }
    all.inbound.sort();
    all.outbound.sort();
    all
}
