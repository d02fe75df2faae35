//! What `ambit ztunnel` can be told, by flags or by the environment variables of Istio's node proxy
//! (`spec/ztunnel.md` 17). Parsed here and nowhere else: a value that can't be right ends the start.

mod limits;
mod mode;
mod shown;
mod sources;
mod threads;

pub use limits::{Budgets, Transport};
pub use mode::{Mode, Pods, ProxyMode};
pub use sources::Sources;
pub use threads::Threads;

use crate::proxy::settings::{ControlPlane, Draining, Operations, SettingsError, proxy_config};

/// All settings, in the groups in which `--help` shows them.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    #[command(flatten)]
    pub mode: Mode,
    #[command(flatten)]
    pub control_plane: ControlPlane,
    #[command(flatten)]
    pub sources: Sources,
    #[command(flatten)]
    pub pods: Pods,
    #[command(flatten)]
    pub transport: Transport,
    #[command(flatten)]
    pub budgets: Budgets,
    #[command(flatten)]
    pub draining: Draining,
    #[command(flatten)]
    pub threads: Threads,
    #[command(flatten)]
    pub operations: Operations,
}

impl Settings {
    /// Fills in what PROXY_CONFIG and the mesh's file say, then [checks](Self::check).
    ///
    /// # Errors
    /// What is wrong, and what to change.
    pub fn complete(mut self) -> Result<Self, SettingsError> {
        let Self { control_plane, operations, threads, .. } = &mut self;
        let config = proxy_config::read()?;
        let metadata = config.fill_in(control_plane, operations, &mut threads.ztunnel_worker_threads);
        self.mode.proxy_metadata = metadata;
        self.check()?;
        Ok(self)
    }

    /// Checks what no single value shows.
    ///
    /// # Errors
    /// What contradicts what, and which to change.
    pub fn check(&self) -> Result<(), SettingsError> {
        let wrong = |reason: &str| Err(SettingsError(reason.to_owned()));
        match (self.mode.proxy_mode, &self.mode.proxy_workload_info) {
            (ProxyMode::Dedicated, None) => {
                return wrong("PROXY_MODE=dedicated needs PROXY_WORKLOAD_INFO=NAMESPACE/NAME/SERVICE_ACCOUNT");
            }
            (ProxyMode::Shared, Some(_)) => {
                return wrong(
                    "PROXY_WORKLOAD_INFO is for PROXY_MODE=dedicated; the node agent names the pods otherwise",
                );
            }
            _ => {}
        }
        if !self.mode.enable_proxy && !self.mode.dns_capture {
            return wrong("ENABLE_PROXY=false and ISTIO_META_DNS_CAPTURE=false leave nothing to do");
        }
        let (control_plane, sources) = (&self.control_plane, &self.sources);
        if sources.local_xds_path.is_some() && sources.local_xds.is_some() {
            return wrong("LOCAL_XDS_PATH and LOCAL_XDS are both set; choose one");
        }
        if control_plane.xds_address().is_none() && sources.local_xds_path.is_none() && sources.local_xds.is_none() {
            return wrong(
                "XDS_ADDRESS is empty and there is neither LOCAL_XDS_PATH nor LOCAL_XDS; nothing would be known",
            );
        }
        if sources.xds_on_demand && self.mode.dns_capture {
            return wrong(
                "XDS_ON_DEMAND=true needs ISTIO_META_DNS_CAPTURE=false: names are answered from all services, and on demand \
                 only those in use are known",
            );
        }
        if sources.xds_on_demand && control_plane.xds_address().is_none() {
            return wrong("XDS_ON_DEMAND=true needs a control plane to ask; set XDS_ADDRESS, or leave it out");
        }
        if sources.fake_ca && sources.insecure_ca_dir.is_none() {
            return wrong(
                "FAKE_CA=true lets this process sign for every identity; say so with --insecure-ca-dir DIR, in tests only",
            );
        }
        if sources.insecure_ca_dir.is_none() && control_plane.ca_address().is_none() {
            return wrong("CA_ADDRESS is empty; no workload would get a certificate");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
