//! What `ambit waypoint` can be told, by flags or by environment variables. Parsed here and nowhere else: a value that
//! can't be right ends the start.

mod pod_labels;
mod traffic;
mod who;

pub use pod_labels::GATEWAY_NAME_LABEL;
pub use traffic::{AccessLog, Traffic};
pub use who::Who;

use std::collections::BTreeMap;

use ambit_api::SpiffeId;
use serde_json::Value;

use crate::proxy::settings::{ControlPlane, Draining, Operations, SettingsError, proxy_config};

/// All settings, in the groups in which `--help` shows them.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    #[command(flatten)]
    pub who: Who,
    #[command(flatten)]
    pub control_plane: ControlPlane,
    #[command(flatten)]
    pub traffic: Traffic,
    #[command(flatten)]
    pub draining: Draining,
    #[command(flatten)]
    pub operations: Operations,
}

/// Settings that are whole, and make sense together.
#[derive(Clone, Debug)]
pub struct Complete {
    /// Namespace of the Gateway, which is the pod's.
    pub namespace: String,
    /// Name of the Gateway.
    pub gateway: String,
    /// Who the waypoint is.
    pub identity: SpiffeId,
    /// What PROXY_CONFIG adds to the node's metadata.
    pub proxy_metadata: BTreeMap<String, Value>,
    /// The rest, as it was given.
    pub settings: Settings,
}

// === impl Settings ===

impl Settings {
    /// Fills in what PROXY_CONFIG, the mesh's file and the pod's labels say, and checks what no single value shows.
    ///
    /// # Errors
    /// What is missing or wrong, and what to change.
    pub fn complete(mut self) -> Result<Complete, SettingsError> {
        let Self { control_plane, operations, traffic, .. } = &mut self;
        let proxy_metadata = proxy_config::read()?.fill_in(control_plane, operations, &mut traffic.worker_threads);
        control_plane.ca_address = control_plane.ca_address.take().or_else(|| std::env::var("CA_ADDR").ok());
        let gateway = match self.who.gateway_name.clone() {
            Some(name) => name,
            None => pod_labels::gateway_name(&self.who.pod_labels_path)?,
        };
        self.check(gateway, proxy_metadata)
    }

    fn check(self, gateway: String, proxy_metadata: BTreeMap<String, Value>) -> Result<Complete, SettingsError> {
        let given = |value: &str, variable: &str, field: &str| match value {
            "" => Err(SettingsError(format!(
                "{variable} isn't set; give it the pod's own by the downward API (`fieldRef: {field}`)"
            ))),
            value => Ok(value.to_owned()),
        };
        let namespace = given(&self.who.pod_namespace, "POD_NAMESPACE", "metadata.namespace")?;
        let account = given(&self.who.service_account, "SERVICE_ACCOUNT", "spec.serviceAccountName")?;
        if gateway.is_empty() || gateway.contains('/') {
            return Err(SettingsError(format!("GATEWAY_NAME=`{gateway}` is no name of a Gateway in `{namespace}`")));
        }
        let identity = SpiffeId::new(&self.who.trust_domain, &namespace, &account)
            .map_err(|error| SettingsError(format!("TRUST_DOMAIN, POD_NAMESPACE and SERVICE_ACCOUNT: {error}")))?;
        if self.control_plane.xds_address().is_none() {
            return Err(SettingsError(
                "XDS_ADDRESS is empty; a waypoint without a control plane serves nothing".into(),
            ));
        }
        if self.control_plane.ca_address().is_none() {
            return Err(SettingsError("CA_ADDRESS is empty; the waypoint would get no certificate".into()));
        }
        Ok(Complete { namespace, gateway, identity, proxy_metadata, settings: self })
    }
}

#[cfg(test)]
mod tests;
