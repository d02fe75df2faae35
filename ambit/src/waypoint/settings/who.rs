//! Which waypoint this is.

use std::{net::IpAddr, path::PathBuf};

/// Which waypoint this is, and where.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Who and where")]
pub struct Who {
    /// Name of the Gateway, which is in the pod's namespace [default: the pod's label
    /// gateway.networking.k8s.io/gateway-name]
    #[arg(long, env)]
    pub gateway_name: Option<String>,
    /// The pod's labels, as the downward API writes them; read for the Gateway's name
    #[arg(long, env = "AMBIT_POD_LABELS_PATH", default_value = "./etc/istio/pod/labels", value_name = "PATH")]
    pub pod_labels_path: PathBuf,
    /// The pod's name
    #[arg(long, env, default_value = "")]
    pub pod_name: String,
    /// The pod's namespace
    #[arg(long, env, default_value = "")]
    pub pod_namespace: String,
    /// The pod's service account
    #[arg(long, env, default_value = "")]
    pub service_account: String,
    /// The pod's address
    #[arg(long, env)]
    pub instance_ip: Option<IpAddr>,
    /// The pod's node
    #[arg(long, env, default_value = "")]
    pub node_name: String,
    /// Trust domain of the mesh
    #[arg(long, env, default_value = "cluster.local")]
    pub trust_domain: String,
    /// Name of the cluster (also ISTIO_META_CLUSTER_ID) [default: Kubernetes]
    #[arg(long, env)]
    pub cluster_id: Option<String>,
    /// Name of the network that the pod is in (also ISTIO_META_NETWORK)
    #[arg(long, env)]
    pub network: Option<String>,
}

// === impl Who ===

impl Who {
    /// Name of the cluster.
    pub fn cluster(&self) -> String {
        or_metadata(self.cluster_id.as_ref(), "ISTIO_META_CLUSTER_ID").unwrap_or_else(|| "Kubernetes".to_owned())
    }

    /// Name of the network; empty for the mesh's only one.
    pub fn network(&self) -> String {
        or_metadata(self.network.as_ref(), "ISTIO_META_NETWORK").unwrap_or_default()
    }
}

fn or_metadata(given: Option<&String>, variable: &str) -> Option<String> {
    given.cloned().or_else(|| std::env::var(variable).ok()).filter(|name| !name.is_empty())
}
