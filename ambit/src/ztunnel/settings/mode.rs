//! What this instance is, and which pods it serves.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use crate::proxy::settings::WorkloadName;

/// Whose traffic is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ProxyMode {
    /// That of every pod that a node agent names.
    Shared,
    /// That of one workload, in this process's own network.
    Dedicated,
}

/// What this instance is.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Mode and place")]
pub struct Mode {
    /// Serve all pods of the node (`shared`; needs CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW), or one workload in this
    /// process's own network (`dedicated`)
    #[arg(long, env, value_enum, default_value = "shared")]
    pub proxy_mode: ProxyMode,
    /// The workload that PROXY_MODE=dedicated serves
    #[arg(long, env, value_name = "NAMESPACE/NAME/SERVICE_ACCOUNT")]
    pub proxy_workload_info: Option<WorkloadName>,
    /// Carry connections; without it only DNS is answered
    #[arg(long, env, action = clap::ArgAction::Set, default_value_t = true)]
    pub enable_proxy: bool,
    /// Answer DNS for the pods
    #[arg(long, env = "ISTIO_META_DNS_CAPTURE", action = clap::ArgAction::Set, default_value_t = true, value_name = "ISTIO_META_DNS_CAPTURE")]
    pub dns_capture: bool,
    /// Where DNS is answered; only the port counts, since it is always the pod's loopback
    #[arg(long, env = "ISTIO_META_DNS_PROXY_ADDR", default_value = "localhost:15053", value_parser = port, value_name = "ISTIO_META_DNS_PROXY_ADDR")]
    pub dns_proxy_addr: u16,
    /// Name of the node. Only workloads of this node are served
    #[arg(long, env)]
    pub node_name: Option<String>,
    /// Name of the network that pods of this node are in
    #[arg(long, env, default_value = "")]
    pub network: String,
    /// Name of the cluster (also ISTIO_META_CLUSTER_ID)
    #[arg(long, env)]
    pub cluster_id: Option<String>,
    /// Domain that the names of services end in
    #[arg(long, env, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Trust domain that workloads' identities are in
    #[arg(long, env, default_value = "cluster.local")]
    pub trust_domain: String,
    /// This proxy's own pod
    #[arg(long, env, default_value = "")]
    pub pod_name: String,
    /// The namespace of this proxy's own pod
    #[arg(long, env, default_value = "")]
    pub pod_namespace: String,
    /// The service account of this proxy's own pod
    #[arg(long, env, default_value = "")]
    pub service_account: String,
    /// The address of this proxy's own pod
    #[arg(long, env)]
    pub instance_ip: Option<IpAddr>,
    /// What PROXY_CONFIG adds to the node's metadata.
    #[arg(skip)]
    pub proxy_metadata: BTreeMap<String, serde_json::Value>,
}

/// How pods are served.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Serving pods")]
pub struct Pods {
    /// The node agent's socket (ZDS), in shared mode
    #[arg(long, env, default_value = "/var/run/ztunnel/ztunnel.sock", value_name = "PATH")]
    pub inpod_uds: PathBuf,
    /// Share the listeners' ports with the proxy that takes over in an upgrade (SO_REUSEPORT)
    #[arg(long, env, action = clap::ArgAction::Set, default_value_t = true)]
    pub inpod_port_reuse: bool,
    /// SO_MARK of the proxy's own sockets in pods [default: 1337 in shared mode, none in dedicated mode]
    #[arg(long, env)]
    pub packet_mark: Option<u32>,
    /// Show applications their client's address [default: whether this process may]
    #[arg(long, env)]
    pub enable_orig_src: Option<bool>,
    /// Serve IPv6
    #[arg(long, env, action = clap::ArgAction::Set, default_value_t = true)]
    pub ipv6_enabled: bool,
    /// Reach an application behind an application tunnel at its loopback
    #[arg(long, env, action = clap::ArgAction::Set, default_value_t = true)]
    pub localhost_app_tunnel: bool,
    /// Offer SOCKS5 at 127.0.0.1:15080 in every pod
    #[arg(long, env, action = clap::ArgAction::Set, default_value_t = false)]
    pub unstable_enable_socks5: bool,
    /// Answer DNS questions that several namespaces' services fit with this namespace's first
    #[arg(long, env = "PREFERED_SERVICE_NAMESPACE", value_name = "NAMESPACE")]
    pub preferred_service_namespace: Option<String>,
}

/// The port of `host:port`.
fn port(text: &str) -> Result<u16, String> {
    let port = text.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).filter(|port| *port != 0);
    port.ok_or_else(|| format!("`{text}` has no port; write it like `localhost:15053`"))
}

// === impl Mode ===

impl Mode {
    /// Name of the cluster.
    pub fn cluster(&self) -> String {
        let meta = || std::env::var("ISTIO_META_CLUSTER_ID").ok();
        let name = self.cluster_id.clone().or_else(meta).unwrap_or_default();
        if name.is_empty() { "Kubernetes".to_owned() } else { name }
    }
}

// === impl Pods ===

impl Pods {
    /// The mark of the proxy's own sockets; 0 stands for none.
    pub fn mark(&self, mode: ProxyMode) -> Option<u32> {
        match (self.packet_mark, mode) {
            (Some(mark), _) => Some(mark),
            (None, ProxyMode::Shared) => Some(ambit_ztunnel::PROXY_MARK),
            (None, ProxyMode::Dedicated) => None,
        }
        .filter(|mark| *mark != 0)
    }
}
