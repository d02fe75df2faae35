//! Where else a node proxy has configuration and certificates from.

use std::path::PathBuf;

/// Where else configuration and certificates come from.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Control plane and certificates")]
pub struct Sources {
    /// Ask for services and workloads when they are first needed, instead of being told all; needs
    /// ISTIO_META_DNS_CAPTURE=false
    #[arg(long, env, action = clap::ArgAction::Set, default_value_t = false)]
    pub xds_on_demand: bool,
    /// A file with workloads, services and policies, read once at start (a change takes a restart)
    #[arg(long, env, value_name = "PATH")]
    pub local_xds_path: Option<PathBuf>,
    /// The same, inline (YAML or JSON)
    #[arg(long, env, hide_env_values = true, value_name = "YAML")]
    pub local_xds: Option<String>,
    /// Istio's test CA; only accepted together with --insecure-ca-dir
    #[arg(long, env, action = clap::ArgAction::Set, default_value_t = false)]
    pub fake_ca: bool,
    /// INSECURE, for tests: sign every certificate in this process, with the CA that is kept in this folder
    #[arg(long, env = "AMBIT_INSECURE_CA_DIR", value_name = "DIR")]
    pub insecure_ca_dir: Option<PathBuf>,
}
