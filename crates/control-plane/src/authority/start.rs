//! All of it together, as `ambit control-plane` runs it.

use std::{path::PathBuf, sync::Arc};

use ambit_identity::{Ca, CaError, Clock, Crls, ServerCertificate, SystemClock};
use kube::Client;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    ApiReviewer, AuthorizationSettings, Authorizer, Leadership, LeadershipSettings, PodDirectory, RootSettings, Roots,
    RootsError, ServiceAccountName, TokenReviews,
    publish::{self, Publication},
    server_names,
};

/// The Lease that writers agree by.
const LEASE: &str = "ambit-control-plane-leader";

/// What an operator says about all of it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The control plane's namespace.
    pub namespace: String,
    /// Its revision; `default` or empty for the only one.
    pub revision: String,
    /// What this replica is called; must differ between processes.
    pub identity: String,
    /// The trust domain (`TRUST_DOMAIN`).
    pub trust_domain: String,
    /// This cluster (`CLUSTER_ID`).
    pub cluster_id: String,
    /// Audiences of accepted tokens (`TOKEN_AUDIENCES`); `istio-ca`.
    pub audiences: Vec<String>,
    /// The accounts of node proxies (`CA_TRUSTED_NODE_ACCOUNTS`).
    pub trusted_node_accounts: Vec<ServiceAccountName>,
    /// Where an operator's CA is mounted (`ROOT_CA_DIR`).
    pub ca_folder: PathBuf,
    /// More names and addresses for the control plane's own certificate.
    pub server_names: Vec<String>,
}

/// What the servers and the writers need. Its tasks end with `stop`; see [`start`].
#[derive(Debug)]
pub struct Authority {
    /// Signs for workloads.
    pub ca: Arc<Ca>,
    /// Says who may ask for what.
    pub authorizer: Arc<Authorizer>,
    /// The control plane's own certificate: `mesh_config()` for 15012, `open_config()` for webhooks.
    pub certificate: Arc<ServerCertificate>,
    /// Which replica writes.
    pub leadership: Leadership,
    /// Why the newest CA files aren't in force; nothing while they are.
    pub problem: watch::Receiver<Option<String>>,
    /// Await it after `stop`, so that the Lease is given back.
    pub tasks: JoinSet<()>,
}

// === impl Settings ===

impl Settings {
    /// The usual ones for a control plane in `namespace`: one node proxy's account, `<namespace>/ztunnel`.
    #[must_use]
    pub fn new(namespace: &str, identity: &str) -> Self {
        let node_proxy = ServiceAccountName { namespace: namespace.to_owned(), name: "ztunnel".to_owned() };
        Self {
            namespace: namespace.to_owned(),
            revision: String::new(),
            identity: identity.to_owned(),
            trust_domain: "cluster.local".to_owned(),
            cluster_id: "Kubernetes".to_owned(),
            audiences: vec!["istio-ca".to_owned()],
            trusted_node_accounts: vec![node_proxy],
            ca_folder: "/etc/cacerts".into(),
            server_names: Vec::new(),
        }
    }
}

/// Opens the CA and starts what keeps it, until `stop`.
///
/// # Errors
/// When there is no CA to sign with.
pub async fn start(
    client: Client,
    pods: Arc<dyn PodDirectory>,
    settings: &Settings,
    stop: CancellationToken,
) -> Result<Authority, RootsError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let trust_domain = AuthorizationSettings::trust_domain_of(&settings.trust_domain);
    let root_settings =
        RootSettings { folder: settings.ca_folder.clone(), ..RootSettings::new(&settings.namespace, &trust_domain) };
    let roots = Roots::open(client.clone(), root_settings, Arc::clone(&clock)).await?;
    let ca = Arc::clone(roots.ca());
    let certificate = server_certificate(settings, &ca)?;
    let lease = LeadershipSettings::new(&settings.namespace, LEASE, &settings.identity);
    let (leadership, leading) = Leadership::start(client.clone(), lease, Arc::clone(&clock), stop.clone());
    let (problem, crl) = (roots.problem(), roots.crl());

    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(leading.await) });
    for publication in [Publication::roots(ca.bundle()), Publication::crl(crl.clone())] {
        tasks.spawn(publish::run(client.clone(), leadership.clone(), publication, stop.clone()));
    }
    tasks.spawn(until(stop.clone(), roots.keep(leadership.clone())));
    tasks.spawn(until(stop.clone(), Arc::clone(&certificate).keep()));
    tasks.spawn(until(stop, revoke(crl, Arc::clone(&certificate))));

    let reviews = TokenReviews::new(Arc::new(ApiReviewer::new(client)), settings.audiences.clone(), clock);
    let authorization = AuthorizationSettings {
        trust_domain,
        cluster_id: settings.cluster_id.clone(),
        trusted_node_accounts: settings.trusted_node_accounts.iter().cloned().collect(),
    };
    let authorizer = Arc::new(Authorizer::new(reviews, pods, authorization));
    Ok(Authority { ca, authorizer, certificate, leadership, problem, tasks })
}

fn server_certificate(settings: &Settings, ca: &Arc<Ca>) -> Result<Arc<ServerCertificate>, CaError> {
    let names = server_names(&settings.namespace, &settings.revision, &settings.server_names);
    ServerCertificate::new(Arc::clone(ca), names)
}

/// Clients with a revoked certificate don't get in.
async fn revoke(mut lists: watch::Receiver<Option<Arc<str>>>, certificate: Arc<ServerCertificate>) {
    lists.mark_changed();
    while lists.changed().await.is_ok() {
        let Some(text) = lists.borrow_and_update().clone() else { continue };
        match Crls::parse(text.as_bytes()) {
            Ok(crls) => certificate.trust().set_crls(Arc::new(crls)),
            // It was read before it came here.
            Err(error) => tracing::error!(%error, "the revocation lists can't be used; those before stay in force"),
        }
    }
}

async fn until(stop: CancellationToken, task: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = task => {}
    }
}
