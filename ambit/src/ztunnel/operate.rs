//! What operators reach: the administration port and the metrics.

use std::{collections::BTreeMap, sync::Arc};

use ambit_telemetry::metrics::Metrics;
use ambit_ztunnel::{
    Ztunnel,
    admin::{self, Admin, DumpFacts, Version},
};
use tokio_util::sync::CancellationToken;

use super::{log::Log, settings::Settings, shutdown::Shutdown};
use crate::command::Failure;

/// Starts both ports on the current runtime, until told to stop.
///
/// # Errors
/// When a port is taken; the message names it.
pub fn start(
    settings: &Settings,
    ztunnel: &Arc<Ztunnel>,
    log: &Log,
    metrics: &Arc<Metrics>,
    shutdown: &Shutdown,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(error.to_string());
    let operations = &settings.operations;
    let listeners = admin::bind_loopback(operations.admin_port()).map_err(failed)?;
    tokio::spawn(admin::serve_admin(listeners, administration(settings, ztunnel, log, shutdown), stop.clone()));
    let listeners = admin::bind_wildcard(operations.stats_port(), settings.pods.ipv6_enabled).map_err(failed)?;
    tokio::spawn(admin::serve_metrics(listeners, Arc::clone(metrics), stop.clone()));
    Ok(())
}

fn administration(settings: &Settings, ztunnel: &Arc<Ztunnel>, log: &Log, shutdown: &Shutdown) -> Admin {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let facts = DumpFacts {
        config: settings.shown(cores),
        static_config: None,
        version: Version {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            build_profile: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            istio_version: super::version(),
            crypto_provider: "aws-lc".to_owned(),
            ..Version::default()
        },
        pending: BTreeMap::new(),
    };
    let (ztunnel, shutdown) = (Arc::clone(ztunnel), shutdown.clone());
    let dump = move || admin::config_dump(&ztunnel, &facts);
    Admin::new(dump, log.levels.clone(), move || shutdown.ask("/quitquitquit"))
}
