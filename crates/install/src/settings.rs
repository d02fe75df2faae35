//! What can be chosen.

use serde_json::{Value, json};

/// What can be chosen about an installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The namespace that everything runs in; it is the mesh's root namespace, too.
    pub namespace: String,
    /// Name of the image, with its tag or digest.
    pub image: String,
    /// When a node fetches it: `Always`, `IfNotPresent`, `Never`.
    pub pull_policy: String,
    /// Control planes that run at once; one of them writes.
    pub replicas: u16,
    /// Trust domain of the mesh's identities.
    pub trust_domain: String,
    /// Domain that the names of services end in.
    pub cluster_domain: String,
    /// Name of the cluster.
    pub cluster_id: String,
    /// Run the node proxy on every node.
    pub node_proxy: bool,
    /// Let the API server ask whether objects can be enforced before it takes them.
    pub webhook: bool,
    /// Restrict who reaches the control plane's ports.
    pub network_policy: bool,
    /// Make the GatewayClass of waypoints.
    pub gateway_classes: bool,
}

/// The same as texts for objects: what is chosen, or what stands for it in a chart.
pub(crate) struct Words {
    pub(crate) namespace: String,
    pub(crate) image: String,
    pub(crate) pull_policy: String,
    pub(crate) replicas: Value,
    pub(crate) trust_domain: String,
    pub(crate) cluster_domain: String,
    pub(crate) cluster_id: String,
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespace: "istio-system".to_owned(),
            image: concat!("ambit:", env!("CARGO_PKG_VERSION")).to_owned(),
            pull_policy: "IfNotPresent".to_owned(),
            replicas: 2,
            trust_domain: "cluster.local".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            cluster_id: "Kubernetes".to_owned(),
            node_proxy: true,
            webhook: true,
            network_policy: true,
            gateway_classes: true,
        }
    }
}

impl Settings {
    pub(crate) fn words(&self) -> Words {
        Words {
            namespace: self.namespace.clone(),
            image: self.image.clone(),
            pull_policy: self.pull_policy.clone(),
            replicas: json!(self.replicas),
            trust_domain: self.trust_domain.clone(),
            cluster_domain: self.cluster_domain.clone(),
            cluster_id: self.cluster_id.clone(),
        }
    }
}
