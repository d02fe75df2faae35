//! What a control plane can be told, by flags or by the environment variables that Istio's has for it.

use std::{
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
};

use ambit_control_plane::authority::ServiceAccountName;
use ambit_telemetry::log::LogFormat;

/// Settings of `ambit control-plane`.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// This replica's name; no other may have it
    #[arg(long, env)]
    pub pod_name: String,
    /// The control plane's namespace, which is the mesh's root namespace
    #[arg(long, env, default_value = "istio-system")]
    pub pod_namespace: String,
    /// Its revision; empty for the only one
    #[arg(long, env, default_value = "")]
    pub revision: String,
    /// This cluster, the first part of workloads' keys
    #[arg(long, env, default_value = "Kubernetes")]
    pub cluster_id: String,
    /// Suffix of service names
    #[arg(long, env, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Trust domain of every identity
    #[arg(long, env, default_value = "cluster.local")]
    pub trust_domain: String,
    /// What waypoints run: an image with `ambit` as its program
    #[arg(long, env, default_value = concat!("ambit:", env!("CARGO_PKG_VERSION")))]
    pub ambit_image: String,
    /// Whether nodes pull that image: Always, IfNotPresent or Never
    #[arg(long, env, default_value = "IfNotPresent", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub ambit_image_pull_policy: String,
    /// Audiences of accepted tokens
    #[arg(long, env, default_value = "istio-ca", value_delimiter = ',')]
    pub token_audiences: Vec<String>,
    /// Accounts of node proxies, `<namespace>/<service account>` [default: `<namespace of the control plane>/ztunnel`]
    #[arg(long, env, value_delimiter = ',')]
    pub ca_trusted_node_accounts: Vec<ServiceAccountName>,
    /// Folder with an operator's own CA, where there is one
    #[arg(long, env, default_value = "/etc/cacerts")]
    pub root_ca_dir: PathBuf,
    /// More names and addresses in the control plane's own certificate
    #[arg(long, env = "AMBIT_SERVER_NAMES", value_delimiter = ',')]
    pub server_names: Vec<String>,
    /// Address to listen on
    #[arg(long, env = "AMBIT_LISTEN_ADDRESS", default_value_t = IpAddr::V6(Ipv6Addr::UNSPECIFIED))]
    pub listen_address: IpAddr,
    /// Port of discovery and certificates
    #[arg(long, env = "AMBIT_XDS_PORT", default_value_t = 15012)]
    pub xds_port: u16,
    /// Port of the same without TLS, on loopback only
    #[arg(long, env = "AMBIT_PLAIN_XDS_PORT", default_value_t = 15010)]
    pub plain_xds_port: u16,
    /// Port of the admission webhook
    #[arg(long, env = "AMBIT_WEBHOOK_PORT", default_value_t = 15017)]
    pub webhook_port: u16,
    /// Port of `/metrics`
    #[arg(long, env = "AMBIT_MONITORING_PORT", default_value_t = 15014)]
    pub monitoring_port: u16,
    /// Port of `/ready`
    #[arg(long, env = "AMBIT_READINESS_PORT", default_value_t = 8080)]
    pub readiness_port: u16,
    /// What is logged: `info`, or `info,ambit_control_plane=debug` and so on
    #[arg(long, env, default_value = "info")]
    pub rust_log: String,
    /// `plain` or `json`
    #[arg(long, env, default_value = "plain", value_name = "plain|json")]
    pub log_format: LogFormat,
}
