//! What operators reach: the administration port and the metrics.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use ambit_node::zds::PendingPod;
use ambit_telemetry::metrics::Metrics;
use ambit_ztunnel::{
    Ztunnel,
    admin::{self, Admin, DumpFacts, Version, WorkloadInfo, WorkloadState},
};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::settings::Settings;
use crate::{
    command::Failure,
    proxy::{log::Log, shutdown::Shutdown, version},
};

/// The pods that wait for a proxy, once there is a node agent that names pods.
pub type Pending = Arc<OnceLock<watch::Receiver<Vec<PendingPod>>>>;

/// What operators are shown and may do.
pub struct Shown<'a> {
    pub settings: &'a Settings,
    pub ztunnel: &'a Arc<Ztunnel>,
    pub log: &'a Log,
    pub metrics: &'a Arc<Metrics>,
    pub shutdown: &'a Shutdown,
    /// What the local configuration says.
    pub local: Option<Value>,
    pub pending: Pending,
}

/// Starts both ports on the current runtime, until told to stop.
///
/// # Errors
/// When a port is taken; the message names it.
pub fn start(shown: Shown<'_>, stop: &CancellationToken) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(error.to_string());
    let (operations, ipv6) = (&shown.settings.operations, shown.settings.pods.ipv6_enabled);
    let listeners = admin::bind_wildcard(operations.stats_port(), ipv6).map_err(failed)?;
    tokio::spawn(admin::serve_metrics(listeners, Arc::clone(shown.metrics), stop.clone()));
    let listeners = admin::bind_loopback(operations.admin_port()).map_err(failed)?;
    tokio::spawn(admin::serve_admin(listeners, administration(shown), stop.clone()));
    Ok(())
}

fn administration(shown: Shown<'_>) -> Admin {
    let Shown { settings, ztunnel, log, shutdown, local, pending, metrics: _ } = shown;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let facts = DumpFacts {
        config: settings.shown(cores),
        static_config: local,
        version: Version {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            build_profile: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            istio_version: version(),
            crypto_provider: "aws-lc".to_owned(),
            ..Version::default()
        },
        pending: BTreeMap::new(),
    };
    let (ztunnel, shutdown) = (Arc::clone(ztunnel), shutdown.clone());
    let trust_domain = settings.mode.trust_domain.clone();
    let dump = move || {
        let pending = pending.get().map(|pending| states(&pending.borrow(), &trust_domain)).unwrap_or_default();
        admin::config_dump(&ztunnel, &DumpFacts { pending, ..facts.clone() })
    };
    Admin::new(dump, log.levels.clone(), move || shutdown.ask("/quitquitquit"))
}

fn states(pending: &[PendingPod], trust_domain: &str) -> BTreeMap<Arc<str>, WorkloadState> {
    let state = |pod: &PendingPod| {
        let info = WorkloadInfo {
            name: pod.info.name.clone(),
            namespace: pod.info.namespace.clone(),
            trust_domain: trust_domain.to_owned(),
            service_account: pod.info.service_account.clone(),
        };
        (Arc::from(&*pod.uid), WorkloadState { state: "Pending", connections: None, info })
    };
    pending.iter().map(state).collect()
}
