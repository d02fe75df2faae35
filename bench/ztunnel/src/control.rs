//! A control plane for two nodes: Ambit's xDS server and CA, which the contenders share.

use std::{
    fs,
    net::SocketAddrV4,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use ambit_identity::{BoxFuture, Ca, CertificateStore, SpiffeId, SystemClock};
use ambit_node::GATEWAY;
use ambit_xds::{
    AUTHORIZATION_TYPE, Resource,
    discovery::Node,
    local,
    server::{Authorize, Denied, Peer, Resources, Server},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_util::sync::CancellationToken;

/// Where the proxies find it: on the bridge that every pod hangs on.
const ADDRESS: SocketAddrV4 = SocketAddrV4::new(GATEWAY, 15012);
pub(crate) const TRUST_DOMAIN: &str = "cluster.local";
/// What proxies show to it. It is for namespaces that only this process is in.
const TOKEN: &str = "a-token-for-a-benchmark";

/// A running control plane.
pub(crate) struct ControlPlane {
    resources: Arc<Resources>,
    served: Mutex<Vec<ambit_xds::DeltaResponse>>,
    tls: Arc<ServerConfig>,
    ca: Arc<Ca>,
    root: PathBuf,
    stop: CancellationToken,
}

/// Whoever has the token may have everything.
struct Bearer;

// === impl ControlPlane ===

impl ControlPlane {
    /// Starts it on this runtime. `run` is a folder that is this process's own.
    pub(crate) fn start(runtime: &tokio::runtime::Runtime, run: &Path) -> Result<Self, String> {
        let ca = run.join("ca");
        fs::create_dir_all(&ca).map_err(|error| format!("`{}`: {error}", ca.display()))?;
        let ca = Arc::new(Ca::open(&ca, TRUST_DOMAIN).map_err(|error| error.to_string())?);
        let (root_pem, tls) = own_certificate()?;
        let root = run.join("control-plane-root.pem");
        fs::write(&root, root_pem).map_err(|error| format!("`{}`: {error}", root.display()))?;
        let resources = Resources::new();
        let tls = Arc::new(tls);
        let server = Server::new(Arc::new(Bearer))
            .with_tls(Arc::clone(&tls))
            .with_resources(Arc::clone(&resources))
            .with_ca(Arc::clone(&ca));
        let listener = runtime.block_on(tokio::net::TcpListener::bind(ADDRESS)).map_err(|error| error.to_string())?;
        let stop = CancellationToken::new();
        runtime.spawn(server.serve(listener, stop.clone()));
        Ok(Self { resources, served: Mutex::default(), tls, ca, root, stop })
    }

    /// Certificates from its CA, for whoever is to meet the proxies.
    pub(crate) fn certificates(&self) -> Arc<CertificateStore> {
        CertificateStore::new(Arc::clone(&self.ca) as _, Arc::new(SystemClock))
    }

    /// A server of another CA, for whoever trusts this control plane.
    pub(crate) fn authority(&self, ca: Ca) -> Server {
        Server::new(Arc::new(Bearer)).with_tls(Arc::clone(&self.tls)).with_ca(Arc::new(ca))
    }

    /// Serves what this text in ztunnel's local form says, and nothing that an earlier one said.
    pub(crate) fn serve(&self, text: &str) -> Result<(), String> {
        self.serve_with(text, &[])
    }

    /// The same, and these policies as they are.
    pub(crate) fn serve_with(&self, text: &str, policies: &[Resource]) -> Result<(), String> {
        let mut deltas = local::load_text("mesh.yaml", text).map_err(|error| error.to_string())?;
        let authorizations = deltas.iter_mut().filter(|delta| delta.type_url == AUTHORIZATION_TYPE);
        authorizations.for_each(|delta| delta.resources.extend_from_slice(policies));
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        for old in served.iter() {
            let Some(new) = deltas.iter_mut().find(|new| new.type_url == old.type_url) else { continue };
            let gone = old.resources.iter().map(|resource| &resource.name);
            let gone: Vec<String> =
                gone.filter(|name| !new.resources.iter().any(|resource| resource.name == **name)).cloned().collect();
            new.removed.extend(gone);
        }
        self.resources.apply(&deltas);
        *served = deltas;
        Ok(())
    }

    /// What proxies need to find and believe it.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let root = self.root.display().to_string();
        let address = format!("https://{ADDRESS}");
        [
            ("XDS_ADDRESS", address.as_str()),
            ("CA_ADDRESS", &address),
            ("XDS_ROOT_CA", &root),
            ("CA_ROOT_CA", &root),
            ("AUTH_TOKEN", TOKEN),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

// === impl Bearer ===

impl Authorize for Bearer {
    fn discovery<'a>(&'a self, peer: &'a Peer, _node: &'a Node) -> BoxFuture<'a, Result<(), Denied>> {
        Box::pin(async { if peer.bearer() == Some(TOKEN) { Ok(()) } else { Err(Denied::new("another token")) } })
    }

    fn certificate<'a>(
        &'a self,
        peer: &'a Peer,
        impersonated: Option<&'a SpiffeId>,
    ) -> BoxFuture<'a, Result<SpiffeId, Denied>> {
        Box::pin(async move {
            match impersonated {
                Some(identity) if peer.bearer() == Some(TOKEN) => Ok(identity.clone()),
                _ => Err(Denied::new("another token, or no identity")),
            }
        })
    }
}

/// A root, in PEM, and a certificate below it for [`ADDRESS`].
fn own_certificate() -> Result<(String, ServerConfig), String> {
    let failed = |error: rcgen::Error| error.to_string();
    let key = KeyPair::generate().map_err(failed)?;
    let mut root = CertificateParams::new(Vec::new()).map_err(failed)?;
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_pem = root.self_signed(&key).map_err(failed)?.pem();
    let issuer = Issuer::new(root, key);
    let key = KeyPair::generate().map_err(failed)?;
    let mut leaf = CertificateParams::new(Vec::new()).map_err(failed)?;
    leaf.subject_alt_names = vec![SanType::IpAddress((*ADDRESS.ip()).into())];
    let leaf = leaf.signed_by(&key, &issuer).map_err(failed)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(vec![leaf.der().clone()], key));
    Ok((root_pem, config.map_err(|error| error.to_string())?))
}
