//! What is known of pods when somebody asks for an identity.

/// The pods of the cluster, as the control plane knows them now.
pub trait PodDirectory: Send + Sync {
    /// The pod of this name.
    fn pod(&self, namespace: &str, name: &str) -> Option<PodFacts>;

    /// Whether a pod of this service account runs on the node and is enrolled in the mesh.
    fn runs_on_node(&self, node: &str, namespace: &str, service_account: &str) -> bool;
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Its unique ID.
    pub uid: String,
    /// Its service account.
    pub service_account: String,
    /// The node it is bound to; empty if none.
    pub node: String,
    /// That it has neither ended nor is being deleted without a proxy needing it any more (phase `Pending` or `Running`).
    pub runs: bool,
    /// That its traffic is the mesh's.
    pub enrolled: bool,
    /// The Gateway it serves (label `gateway.networking.k8s.io/gateway-name`); empty if none.
    pub gateway: String,
}
