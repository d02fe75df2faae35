//! A control plane that can be stopped and started again, and a proxy that remembers what it was told.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use ambit_identity::{BoxFuture, Ca, SpiffeId};
use ambit_xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, DeltaResponse, Endpoint, Resource, Roots, Token,
    channel::{self, Nack},
    client::{Client, Handle, NodeIdentity, Options},
    discovery::Node,
    server::{Authorize, Denied, Peer, Resources, Server},
    workload::{Address, NetworkAddress, PortList, Service, Workload, address},
};
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// Longest wait for anything here.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The name in servers' certificates, besides the loopback address unless a test says otherwise.
pub const SERVER_NAME: &str = "istiod.istio-system.svc";
/// The token that [`Gate`] lets in at first.
pub const TOKEN: &str = "first-token";

/// A root of its own, and a folder for the test's files.
pub struct Pki {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: tempfile::TempDir,
}

/// Lets in who has the token, and remembers who came.
#[derive(Debug)]
pub struct Gate {
    pub token: Mutex<String>,
    pub seen: Mutex<Vec<Seen>>,
}

/// A peer that was asked about.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub token: Option<String>,
    pub identity: Option<SpiffeId>,
    pub cluster: Option<String>,
    pub header: Option<String>,
    pub node: Option<Node>,
}

/// A running control plane.
pub struct Control {
    pub address: SocketAddr,
    pub resources: Arc<Resources>,
    pub gate: Arc<Gate>,
    server: Server,
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

/// What a proxy was told.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// In force, by type and name.
    pub resources: BTreeMap<(String, String), Vec<u8>>,
    /// Every push, in order.
    pub pushes: Vec<Vec<DeltaResponse>>,
}

/// A proxy's end: a client, and what came of it.
pub struct Proxy {
    pub handle: Handle,
    pub told: watch::Receiver<Told>,
    /// Names to refuse.
    pub refuse: Arc<Mutex<BTreeSet<String>>>,
    /// While false, nothing is acknowledged.
    pub open: watch::Sender<bool>,
    stop: CancellationToken,
    client: JoinHandle<()>,
}

// === impl Pki ===

impl Pki {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a root");
        Self { issuer, dir: tempfile::tempdir().expect("a directory") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn root_pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn root_file(&self) -> PathBuf {
        let path = self.path("root.pem");
        std::fs::write(&path, self.root_pem()).expect("writable");
        path
    }

    fn issue(&self, names: Vec<SanType>) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.der().clone(), PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    /// For a server with these names; `clients` must show certificates of this root.
    pub fn server(&self, names: &[&str], clients: bool) -> Arc<ServerConfig> {
        let names = names.iter().map(|name| match name.parse() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName((*name).try_into().expect("a name")),
        });
        let (certificate, key) = self.issue(names.collect());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3");
        let builder = if clients {
            let mut roots = RootCertStore::empty();
            roots.add(self.issuer.der().clone()).expect("a root");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.expect("a verifier"))
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_single_cert(vec![certificate], key).expect("a certificate with its key");
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    /// A client's certificate with this identity.
    pub fn client(&self, identity: &SpiffeId) -> Arc<dyn rustls::client::ResolvesClientCert> {
        let uri = SanType::URI(identity.to_string().as_str().try_into().expect("a URI"));
        let (certificate, key) = self.issue(vec![uri]);
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key = CertifiedKey::from_der(vec![certificate], key, &provider).expect("a key that fits");
        Arc::new(rustls::sign::SingleCertAndKey::from(key))
    }

    /// Writes a file anew, by renaming, as a kubelet does.
    pub fn replace(&self, name: &str, content: &str) -> PathBuf {
        let (new, path) = (self.path(&format!("{name}.tmp")), self.path(name));
        std::fs::write(&new, content).expect("writable");
        std::fs::rename(&new, &path).expect("the same folder");
        path
    }
}

// === impl Gate ===

impl Gate {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { token: Mutex::new(TOKEN.into()), seen: Mutex::default() })
    }

    fn check(&self, peer: &Peer, node: Option<&Node>) -> Result<(), Denied> {
        let token = peer.bearer().map(str::to_owned);
        let good = token.as_deref() == Some(&*self.token.lock().expect("no panic"));
        self.seen.lock().expect("no panic").push(Seen {
            token,
            identity: peer.identity.clone(),
            cluster: peer.cluster_id().map(str::to_owned),
            header: peer.header("x-extra").map(str::to_owned),
            node: node.cloned(),
        });
        if good || peer.identity.is_some() { Ok(()) } else { Err(Denied::new("another token")) }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }
}

impl Authorize for Gate {
    fn discovery<'a>(&'a self, peer: &'a Peer, node: &'a Node) -> BoxFuture<'a, Result<(), Denied>> {
        Box::pin(std::future::ready(self.check(peer, Some(node))))
    }

    /// Anyone may pose as anyone but `spiffe://cluster.local/ns/secret/...`.
    fn certificate<'a>(
        &'a self,
        peer: &'a Peer,
        impersonated: Option<&'a SpiffeId>,
    ) -> BoxFuture<'a, Result<SpiffeId, Denied>> {
        let checked = self.check(peer, None).and_then(|()| match impersonated {
            Some(id) if id.to_string().contains("/ns/secret/") => Err(Denied::new("not on this node")),
            Some(id) => Ok(id.clone()),
            None => Ok("spiffe://cluster.local/ns/own/sa/own".parse().expect("an identity")),
        });
        Box::pin(std::future::ready(checked))
    }
}

// === impl Control ===

impl Control {
    /// Serves resources to holders of [`TOKEN`].
    pub async fn start(pki: &Pki) -> Self {
        Self::start_with(pki.server(&[SERVER_NAME, "127.0.0.1"], false), None).await
    }

    pub async fn start_with(tls: Arc<ServerConfig>, ca: Option<Arc<Ca>>) -> Self {
        let (gate, resources) = (Gate::new(), Resources::new());
        let server = Server::new(Arc::clone(&gate) as _).with_tls(tls).with_resources(Arc::clone(&resources));
        let server = match ca {
            Some(ca) => server.with_ca(ca),
            None => server,
        };
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut control = Self { address, resources, gate, server, running: None };
        control.resume().await;
        control
    }

    /// Ends every stream and stops listening.
    pub async fn stop(&mut self) {
        let (stop, running) = self.running.take().expect("it runs");
        stop.cancel();
        timeout(PATIENCE, running).await.expect("it ends in time").expect("no panic");
    }

    /// Listens again, at the same address.
    pub async fn resume(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("the address is free");
        self.address = listener.local_addr().expect("it is bound");
        let stop = CancellationToken::new();
        let running = tokio::spawn(self.server.clone().serve(listener, stop.clone()));
        self.running = Some((stop, running));
    }

    /// What else is there, as another replica of the control plane.
    pub fn replace_resources(&mut self, resources: Arc<Resources>) {
        self.server = self.server.clone().with_resources(Arc::clone(&resources));
        self.resources = resources;
    }

    pub fn endpoint(&self, pki: &Pki) -> Endpoint {
        let address = format!("https://{}", self.address).parse().expect("an address");
        Endpoint { token: Token::Literal(TOKEN.into()), ..Endpoint::new(address, Roots::Inline(pki.root_pem())) }
    }
}

// === impl Proxy ===

/// Options that come back quickly.
pub fn options(endpoint: Endpoint) -> Options {
    let node = NodeIdentity {
        pod: "ztunnel-1".into(),
        namespace: "istio-system".into(),
        node: "node-1".into(),
        cluster_id: "c1".into(),
        ..NodeIdentity::default()
    };
    Options { max_backoff: Duration::from_millis(100), ..Options::new(endpoint, node) }
}

impl Proxy {
    pub fn start(options: Options) -> Self {
        let (sender, mut receiver) = channel::channel();
        let (client, handle) = Client::new(options, sender).expect("good options");
        let refuse = Arc::new(Mutex::new(BTreeSet::new()));
        let (telling, told) = watch::channel(Told::default());
        let (open, mut opened) = watch::channel(true);
        let refused = Arc::clone(&refuse);
        tokio::spawn(async move {
            while let Some(push) = receiver.next().await {
                let rejected: Vec<_> = {
                    let refused: std::sync::MutexGuard<'_, BTreeSet<String>> = refused.lock().expect("no panic");
                    let resources = push.responses.iter().flat_map(|response| &response.resources);
                    // As real appliers do: what can't be decoded isn't taken.
                    let bad = resources.filter(|r| refused.contains(&r.name) || r.value == [0x07]);
                    bad.map(|resource| (resource.name.clone(), "refused by the test".to_owned())).collect()
                };
                telling.send_modify(|told| told.take(&push.responses, &rejected));
                if opened.wait_for(|open| *open).await.is_err() {
                    return;
                }
                push.acknowledge(if rejected.is_empty() { Ok(()) } else { Err(Nack { rejected }) });
            }
        });
        let stop = CancellationToken::new();
        let client = tokio::spawn(client.run(stop.clone()));
        Self { handle, told, refuse, open, stop, client }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.client).await.expect("it ends in time").expect("no panic");
    }

    pub async fn synced(&self) {
        timeout(PATIENCE, self.handle.synced()).await.expect("a sync in time").expect("it runs");
    }

    /// Waits until what was told is so.
    pub async fn until(&self, what: &str, reached: impl FnMut(&Told) -> bool) -> Told {
        let mut told = self.told.clone();
        match timeout(PATIENCE, told.wait_for(reached)).await {
            Ok(told) => told.expect("it runs").clone(),
            Err(_) => panic!("not {what}: {:?}", self.told.borrow().resources.keys()),
        }
    }

    /// Waits until the client says so of itself.
    pub async fn until_state(&self, what: &str, reached: impl FnMut(&ambit_xds::client::State) -> bool) {
        let mut states = self.handle.states();
        if timeout(PATIENCE, states.wait_for(reached)).await.is_err() {
            panic!("not {what}: {:?}", self.handle.state());
        }
    }
}

// === impl Told ===

impl Told {
    fn take(&mut self, responses: &[DeltaResponse], rejected: &[(String, String)]) {
        for response in responses {
            for name in &response.removed {
                self.resources.remove(&(response.type_url.clone(), name.clone()));
            }
            for resource in &response.resources {
                if !rejected.iter().any(|(name, _)| *name == resource.name) {
                    self.resources.insert((response.type_url.clone(), resource.name.clone()), resource.value.clone());
                }
            }
        }
        self.pushes.push(responses.to_vec());
    }

    /// The names of a type in force.
    pub fn names(&self, type_url: &str) -> Vec<&str> {
        self.resources.keys().filter(|(url, _)| url == type_url).map(|(_, name)| name.as_str()).collect()
    }

    /// The content of an address in force.
    pub fn address(&self, name: &str) -> Option<Address> {
        let value = self.resources.get(&(ADDRESS_TYPE.to_owned(), name.to_owned()))?;
        Some(Address::decode(value.as_slice()).expect("an address"))
    }
}

/// Addresses that come and go.
pub fn addresses(changed: Vec<(String, Address)>, removed: &[&str]) -> DeltaResponse {
    let resource = |(name, address): (String, Address)| Resource::digested(name, address.encode_to_vec());
    DeltaResponse {
        type_url: ADDRESS_TYPE.into(),
        resources: changed.into_iter().map(resource).collect(),
        removed: removed.iter().map(|name| (*name).to_owned()).collect(),
    }
}

/// Policies of these names, without content that would matter here.
pub fn policies(names: &[&str]) -> DeltaResponse {
    let resource = |name: &&str| Resource::digested((*name).into(), name.as_bytes().to_vec());
    DeltaResponse {
        type_url: AUTHORIZATION_TYPE.into(),
        resources: names.iter().map(resource).collect(),
        removed: Vec::new(),
    }
}

/// A workload `n/<name>` at `10.0.0.<last>`, on a node, of a service.
pub fn workload(name: &str, last: u8, node: &str, service: Option<&str>) -> (String, Address) {
    let message = Workload {
        uid: name.into(),
        name: name.into(),
        namespace: "n".into(),
        addresses: vec![vec![10, 0, 0, last]],
        node: node.into(),
        services: service.map(|service| (service.to_owned(), PortList::default())).into_iter().collect(),
        ..Workload::default()
    };
    (name.into(), Address { r#type: Some(address::Type::Workload(message)) })
}

/// A service `n/<host>` at `10.96.0.<last>`.
pub fn service(host: &str, last: u8) -> (String, Address) {
    let vip = NetworkAddress { address: vec![10, 96, 0, last], ..NetworkAddress::default() };
    let message = Service {
        name: host.into(),
        namespace: "n".into(),
        hostname: host.into(),
        addresses: vec![vip],
        ..Service::default()
    };
    (format!("n/{host}"), Address { r#type: Some(address::Type::Service(message)) })
}

/// The token in a file.
pub fn token_file(pki: &Pki) -> (PathBuf, impl Fn(&str)) {
    let path = pki.replace("token", TOKEN);
    let dir = path.parent().map(Path::to_owned).expect("a folder");
    let replace = move |token: &str| {
        std::fs::write(dir.join("token.tmp"), token).expect("writable");
        std::fs::rename(dir.join("token.tmp"), dir.join("token")).expect("the same folder");
    };
    (path, replace)
}
