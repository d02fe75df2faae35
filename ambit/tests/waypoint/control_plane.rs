//! A control plane that can go away and come back: delta ADS and a CA behind TLS, for who has the right token.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use ambit_identity::{BoxFuture, Ca, SpiffeId};
use ambit_mesh::{Index, inputs::Change};
use ambit_xds::{
    DeltaResponse,
    discovery::Node,
    server::{Authorize, Denied, Peer, Resources, Server},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::mesh::{NAMESPACE, WAYPOINT, account};

/// The token that is believed.
pub const TOKEN: &str = "a-token-of-the-waypoint";

/// What it serves and signs with, and who asked.
pub struct ControlPlane {
    pub address: SocketAddr,
    pub ca: Arc<Ca>,
    pub resources: Arc<Resources>,
    pub gate: Arc<Gate>,
    index: Mutex<Index>,
    root: String,
    tls: Arc<ServerConfig>,
    running: Option<(CancellationToken, JoinHandle<()>)>,
    folder: tempfile::TempDir,
}

/// Lets the waypoint in by its token, as its own service account, and notes what it said.
#[derive(Default)]
pub struct Gate {
    pub nodes: Mutex<Vec<Node>>,
    pub certificates: Mutex<Vec<Option<SpiffeId>>>,
}

/// Which of its services run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Serving {
    Everything,
    /// It signs, and tells nothing.
    CertificatesOnly,
}

// === impl Gate ===

impl Authorize for Gate {
    fn discovery<'a>(&'a self, peer: &'a Peer, node: &'a Node) -> BoxFuture<'a, Result<(), Denied>> {
        let verdict = believed(peer);
        if verdict.is_ok() {
            self.nodes.lock().expect("no panic").push(node.clone());
        }
        Box::pin(std::future::ready(verdict))
    }

    fn certificate<'a>(
        &'a self,
        peer: &'a Peer,
        impersonated: Option<&'a SpiffeId>,
    ) -> BoxFuture<'a, Result<SpiffeId, Denied>> {
        let verdict = believed(peer).and_then(|()| match impersonated {
            Some(other) => Err(Denied::new(format!("it asks for `{other}`"))),
            None => Ok(account(WAYPOINT)),
        });
        self.certificates.lock().expect("no panic").push(impersonated.cloned());
        Box::pin(std::future::ready(verdict))
    }
}

fn believed(peer: &Peer) -> Result<(), Denied> {
    if peer.bearer() == Some(TOKEN) { Ok(()) } else { Err(Denied::new("another token")) }
}

// === impl ControlPlane ===

impl ControlPlane {
    /// One at this address that knows these objects.
    pub async fn start(ip: Ipv4Addr, objects: Vec<Change>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let ca = Arc::new(Ca::open(&folder.path().join("ca"), "cluster.local").expect("a CA"));
        let (root, tls) = server_tls(ip);
        let mut control = Self {
            address: SocketAddr::from((ip, 0)),
            ca,
            resources: Resources::new(),
            gate: Arc::default(),
            index: Mutex::default(),
            root,
            tls,
            running: None,
            folder,
        };
        control.change(objects);
        control.resume(Serving::Everything).await;
        control
    }

    /// Changes objects of the mesh; what follows from that is told to whoever listens.
    pub fn change(&self, changes: impl IntoIterator<Item = Change>) {
        let deltas: Vec<DeltaResponse> = self.index.lock().expect("no panic").apply(changes);
        self.resources.apply(&deltas);
    }

    /// Goes away, and cuts off whoever is there.
    pub async fn stop(&mut self) {
        let (stop, running) = self.running.take().expect("it runs");
        stop.cancel();
        running.await.expect("no panic");
    }

    /// Comes back, at the same address.
    pub async fn resume(&mut self, serving: Serving) {
        let listener = TcpListener::bind(self.address).await.expect("the address is free");
        self.address = listener.local_addr().expect("it is bound");
        let stop = CancellationToken::new();
        let server = Server::new(Arc::clone(&self.gate) as Arc<dyn Authorize>)
            .with_tls(Arc::clone(&self.tls))
            .with_ca(Arc::clone(&self.ca));
        let server = match serving {
            Serving::Everything => server.with_resources(Arc::clone(&self.resources)),
            Serving::CertificatesOnly => server,
        };
        let running = tokio::spawn(server.serve(listener, stop.clone()));
        self.running = Some((stop, running));
    }

    /// How a proxy finds it and believes it.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let root = self.write("root.pem", &self.root);
        let address = format!("https://{}", self.address);
        vec![
            ("XDS_ADDRESS", address.clone()),
            ("CA_ADDRESS", address),
            ("XDS_ROOT_CA", root.display().to_string()),
            ("CA_ROOT_CA", root.display().to_string()),
            ("AUTH_TOKEN", self.write("token", TOKEN).display().to_string()),
            ("POD_NAMESPACE", NAMESPACE.to_owned()),
        ]
    }

    /// A file of the test.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).expect("writable");
        path
    }

    /// Where a file of the test is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// A root (PEM), and a server's configuration with a certificate of it for this address.
fn server_tls(ip: Ipv4Addr) -> (String, Arc<ServerConfig>) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a root");
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::IpAddress(ip.into())];
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .expect("a certificate with its key");
    (issuer.pem(), Arc::new(config))
}
