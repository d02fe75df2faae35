//! Where configuration and certificates come from, as the settings say.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use ambit_identity::{Ca, CertificateSource, CertificateStore, SystemClock};
use ambit_mesh::Store;
use ambit_telemetry::metrics::{Metrics, XdsEnd};
use ambit_xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    ca::{CaClient, CaOptions},
    client::{Handle, NodeIdentity, Options, Stats, Termination, Watch},
    local,
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::settings::{ProxyMode, Settings, Sources};
use crate::{
    command::Failure,
    proxy::{
        control_plane,
        readiness::{Part, Readiness},
        settings::metadata,
    },
};

/// How often what the discovery client counts is taken over into the metrics.
const STATS_PERIOD: Duration = Duration::from_secs(1);

/// Where configuration comes from, once it does.
#[derive(Debug, Default)]
pub struct Configured {
    /// The client of the control plane, if there is one.
    pub discovery: Option<Handle>,
    /// What the local configuration says, if there is one.
    pub local: Option<Value>,
}

/// Brings configuration into the store, and says when the first of it is in force. A local file is there when this
/// returns.
///
/// # Errors
/// When a local file can't be used, or the settings make no client.
pub fn configuration(
    settings: &Settings,
    store: &Arc<Store>,
    readiness: &Readiness,
    metrics: &Arc<Metrics>,
    stop: &CancellationToken,
) -> Result<Configured, Failure> {
    let local = local_configuration(&settings.sources, store)?;
    let Some(address) = settings.control_plane.xds_address() else {
        readiness.set(Part::State, true);
        return Ok(Configured { discovery: None, local });
    };
    let handle = control_plane::discover(discovery(settings, &address)?, store, stop)?;
    tokio::spawn(publish_state(handle.clone(), readiness.clone()));
    tokio::spawn(count(handle.clone(), Arc::clone(metrics)));
    Ok(Configured { discovery: Some(handle), local })
}

/// Puts the local configuration in force, if there is one, and returns what it says.
fn local_configuration(sources: &Sources, store: &Store) -> Result<Option<Value>, Failure> {
    let wrong = |error: local::LocalError| Failure::new(error.to_string());
    let (name, text) = match (&sources.local_xds_path, &sources.local_xds) {
        (Some(path), _) => (path.display().to_string(), local::read(path).map_err(wrong)?),
        (None, Some(text)) => ("LOCAL_XDS".to_owned(), text.clone()),
        (None, None) => return Ok(None),
    };
    let deltas = local::load_text(&name, &text).map_err(wrong)?;
    store.apply(&deltas).map_err(|nack| Failure::new(format!("the local configuration can't be used: {nack}")))?;
    local::content(&name, &text).map(Some).map_err(wrong)
}

/// What the client of the control plane at this address is told.
pub(super) fn discovery(settings: &Settings, address: &str) -> Result<Options, Failure> {
    let control_plane = &settings.control_plane;
    let node = NodeIdentity {
        pod: settings.mode.pod_name.clone(),
        namespace: settings.mode.pod_namespace.clone(),
        address: settings.mode.instance_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        node: settings.mode.node_name.clone().unwrap_or_default(),
        cluster_id: settings.mode.cluster(),
        metadata: node_metadata(settings)?,
        ..NodeIdentity::default()
    };
    let addresses =
        if settings.sources.xds_on_demand { Watch::on_demand(ADDRESS_TYPE) } else { Watch::all(ADDRESS_TYPE) };
    Ok(Options {
        watches: vec![Watch::all(AUTHORIZATION_TYPE), addresses],
        state_file: control_plane.xds_state_file.clone(),
        ..Options::new(control_plane::discovery_endpoint(control_plane, address)?, node)
    })
}

/// What PROXY_CONFIG and the environment add to the node's metadata; the environment comes first.
fn node_metadata(settings: &Settings) -> Result<BTreeMap<String, Value>, Failure> {
    let mut all = settings.mode.proxy_metadata.clone();
    all.extend(metadata().map_err(Failure::new)?);
    Ok(all)
}

async fn publish_state(handle: Handle, readiness: Readiness) {
    // Once there is something to serve by, a control plane that goes away makes nothing worse.
    if handle.servable().await.is_ok() {
        readiness.set(Part::State, true);
    }
}

/// Takes over into the metrics what the discovery client counts.
async fn count(handle: Handle, metrics: Arc<Metrics>) {
    let mut before = Counts::default();
    loop {
        tokio::time::sleep(STATS_PERIOD).await;
        before.take_over(handle.stats(), &metrics);
    }
}

/// What was taken over already.
#[derive(Default)]
struct Counts {
    ends: [u64; Termination::ALL.len()],
    types: std::collections::HashMap<String, (u64, u64)>,
    refused: u64,
}

/// Keeps workloads' certificates, as the settings say.
///
/// # Errors
/// When the CA's settings or the revocation lists can't be used.
pub fn certificates(settings: &Settings) -> Result<Arc<CertificateStore>, Failure> {
    let trust = control_plane::trust(&settings.control_plane)?;
    let source = match &settings.sources.insecure_ca_dir {
        Some(folder) => insecure_ca(settings, folder)?,
        None => Arc::new(CaClient::new(ca(settings)?)),
    };
    Ok(CertificateStore::with_trust(source, Arc::new(SystemClock), trust))
}

fn insecure_ca(settings: &Settings, folder: &Path) -> Result<Arc<dyn CertificateSource>, Failure> {
    tracing::warn!("INSECURE: this process signs for every identity (--insecure-ca-dir)");
    let ca = Ca::open(folder, &settings.mode.trust_domain).map_err(|error| Failure::new(error.to_string()))?;
    Ok(Arc::new(ca.with_ttl(settings.control_plane.secret_ttl)))
}

/// What the client of the CA is told.
pub(super) fn ca(settings: &Settings) -> Result<CaOptions, Failure> {
    // The token of a dedicated proxy is its workload's own.
    let impersonate = settings.mode.proxy_mode == ProxyMode::Shared;
    control_plane::ca_options(&settings.control_plane, settings.mode.cluster(), impersonate)
}

// === impl Counts ===

impl Counts {
    fn take_over(&mut self, stats: &Stats, metrics: &Metrics) {
        for (index, how) in Termination::ALL.into_iter().enumerate() {
            let now = stats.terminations(how);
            let end = match how {
                Termination::ConnectionError => XdsEnd::ConnectionError,
                Termination::Error => XdsEnd::Error,
                Termination::Reconnect => XdsEnd::Reconnect,
                Termination::Complete => XdsEnd::Complete,
            };
            (self.ends[index]..now).for_each(|_| metrics.xds.terminated(end));
            self.ends[index] = now;
        }
        let mut refused = 0;
        for (url, counts) in stats.types() {
            let (messages, bytes) = self.types.entry(url.to_owned()).or_default();
            let (new, new_bytes) = (counts.messages() - *messages, counts.bytes() - *bytes);
            // The sizes of single messages aren't kept: the first carries them all.
            for number in 0..new {
                let bytes = if number == 0 { usize::try_from(new_bytes).unwrap_or(usize::MAX) } else { 0 };
                metrics.xds.message(url, bytes);
            }
            (*messages, *bytes) = (counts.messages(), counts.bytes());
            refused += counts.refused();
        }
        metrics.xds.rejected(usize::try_from(refused - self.refused).unwrap_or(usize::MAX));
        self.refused = refused;
    }
}
