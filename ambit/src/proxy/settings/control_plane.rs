//! Where configuration and certificates come from.

use std::{path::PathBuf, time::Duration};

use super::values::duration;

/// Where istiod is in a cluster.
const IN_CLUSTER: &str = "https://istiod.istio-system.svc:15012";
/// Where it is looked for elsewhere.
const ELSEWHERE: &str = "https://localhost:15012";
/// Set in every container of a cluster.
const CLUSTER_VARIABLE: &str = "KUBERNETES_SERVICE_HOST";

/// Where configuration and certificates come from.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Control plane and certificates")]
pub struct ControlPlane {
    /// The control plane; empty for none [default: istiod's address in a cluster, https://localhost:15012 elsewhere]
    #[arg(long, env, value_name = "[SCHEME://]HOST[:PORT]")]
    pub xds_address: Option<String>,
    /// Who may sign the control plane's certificate: a path, `SYSTEM`, or PEM
    #[arg(
        long,
        env,
        default_value = "./var/run/secrets/istio/root-cert.pem",
        hide_env_values = true,
        value_name = "PATH|SYSTEM|PEM"
    )]
    pub xds_root_ca: String,
    /// A name that the control plane's certificate may have instead of its host's
    #[arg(long, env)]
    pub alt_xds_hostname: Option<String>,
    /// Keep the last good configuration in this file, and serve by it when the control plane isn't there at start
    #[arg(long, env = "AMBIT_XDS_STATE_FILE", value_name = "PATH")]
    pub xds_state_file: Option<PathBuf>,
    /// The CA [default: as XDS_ADDRESS]
    #[arg(long, env, value_name = "[SCHEME://]HOST[:PORT]")]
    pub ca_address: Option<String>,
    /// Who may sign the CA's own certificate: a path, `SYSTEM`, or PEM
    #[arg(
        long,
        env,
        default_value = "./var/run/secrets/istio/root-cert.pem",
        hide_env_values = true,
        value_name = "PATH|SYSTEM|PEM"
    )]
    pub ca_root_ca: String,
    /// A name that the CA's certificate may have instead of its host's
    #[arg(long, env)]
    pub alt_ca_hostname: Option<String>,
    /// What to authenticate with: the path of a token, or a token [default: ./var/run/secrets/tokens/istio-token if that is
    /// there]
    #[arg(long, env, hide_env_values = true, value_name = "PATH|TOKEN")]
    pub auth_token: Option<String>,
    /// Life of certificates to ask for
    #[arg(long, env, default_value = "24h", value_parser = duration, value_name = "DURATION")]
    pub secret_ttl: Duration,
    /// Revocation lists (PEM or DER), read again when they change
    #[arg(long, env, value_name = "PATH")]
    pub crl_path: Option<PathBuf>,
    /// `pqc`: post-quantum key exchange or no connection
    #[arg(long, env, default_value = "", value_name = "pqc")]
    pub compliance_policy: ambit_identity::KeyExchange,
}

// === impl ControlPlane ===

impl ControlPlane {
    /// The control plane's address, if there is one.
    pub fn xds_address(&self) -> Option<String> {
        given_or_default(self.xds_address.as_deref())
    }

    /// The CA's address, if there is one.
    pub fn ca_address(&self) -> Option<String> {
        given_or_default(self.ca_address.as_deref())
    }

    /// The token, or its path; empty for none.
    pub fn token(&self) -> String {
        const USUAL: &str = "./var/run/secrets/tokens/istio-token";
        match &self.auth_token {
            Some(token) => token.clone(),
            None if std::path::Path::new(USUAL).exists() => USUAL.to_owned(),
            None => String::new(),
        }
    }
}

fn given_or_default(given: Option<&str>) -> Option<String> {
    match given {
        Some("") => None,
        Some(address) => Some(address.to_owned()),
        None if std::env::var_os(CLUSTER_VARIABLE).is_some() => Some(IN_CLUSTER.to_owned()),
        None => Some(ELSEWHERE.to_owned()),
    }
}
