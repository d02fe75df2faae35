//! A mesh on loopback: one waypoint, a service with endpoints behind a stand-in for their node proxy, and clients.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use ambit_hbone::{Connect, ConnectError, HostNetwork, Network, Pool, Tunnel, copy};
use ambit_identity::{Ca, CertificateStore, SpiffeId, SystemClock};
use ambit_mesh::Store;
use ambit_policy::Verdict;
use ambit_telemetry::{DecisionRecord, Recorder, Records, recorder};
use ambit_waypoint::{Config, Limits, Waypoint};
use ambit_xds::{
    ADDRESS_TYPE, DeltaResponse, Resource,
    waypoint::{BoundService, RequestAuthentication},
    workload::{Address, AppProtocol, NetworkAddress, Port, PortList, Service, TunnelProtocol, Workload, address},
};
use prost::Message;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::wire;

pub const NAMESPACE: &str = "kagenti-system";
pub const HOSTNAME: &str = "mlflow.kagenti-system.svc.cluster.local";
pub const VIP: &str = "10.96.0.7";
pub const PORT: u16 = 5000;
/// Nothing takes longer, or the test has failed.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What a CONNECT from the waypoint said when it reached the destination.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub peer: SpiffeId,
    pub authority: String,
    pub source: String,
    pub forwarded: String,
}

pub struct Mesh {
    pub waypoint: Option<Waypoint>,
    pub address: SocketAddr,
    /// Where the stand-in for node proxies listens.
    pub hbone_port: u16,
    pub store: Arc<Store>,
    pub arrivals: Arc<Mutex<Vec<Arrival>>>,
    certificates: Arc<CertificateStore>,
    config: Config,
    recorder: Recorder,
    records: Records,
    _state: tempfile::TempDir,
}

/// An endpoint of the service: where its app listens, and whether it is in the mesh.
#[derive(Clone, Copy)]
pub struct Pod {
    pub app: SocketAddr,
    pub hbone: bool,
}

/// How a test's mesh differs from the usual one.
pub struct Shape {
    pub protocol: AppProtocol,
    pub pods: Vec<Pod>,
    pub policies: Vec<Value>,
    pub limits: Limits,
    /// Another waypoint may take over the port.
    pub reuse_port: bool,
    /// Service account that the destination's node proxy really has.
    pub destination_account: &'static str,
    /// Records also tell what came of requests.
    pub exchanges: bool,
}

impl Shape {
    pub fn of(app: SocketAddr) -> Self {
        Self {
            protocol: AppProtocol::Unknown,
            pods: vec![Pod { app, hbone: true }],
            policies: vec![traces_only()],
            limits: Limits { detection_timeout: Duration::from_millis(200), ..Limits::default() },
            reuse_port: false,
            destination_account: "mlflow",
            exchanges: false,
        }
    }
}

/// The example's policy: otel-collector may POST /v1/traces, kagenti-ui may do anything but DELETE.
pub fn traces_only() -> Value {
    policy(json!({"action": "ALLOW", "rules": [
        {"from": [{"source": {"principals": ["cluster.local/ns/kagenti-system/sa/otel-collector"]}}],
         "to": [{"operation": {"methods": ["POST"], "paths": ["/v1/traces"]}}]},
        {"from": [{"source": {"principals": ["cluster.local/ns/kagenti-system/sa/kagenti-ui"]}}],
         "to": [{"operation": {"notMethods": ["DELETE"]}}]}
    ]}))
}

/// Lets everybody do everything.
pub fn allow_all() -> Value {
    policy(json!({"action": "ALLOW", "rules": [{}]}))
}

pub fn policy(spec: Value) -> Value {
    json!({"namespace": NAMESPACE, "name": "mlflow", "spec": spec})
}

pub fn account(name: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", NAMESPACE, name).expect("valid name")
}

/// Fails the test rather than hang it.
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("within the test's patience")
}

// === impl Mesh ===

impl Mesh {
    pub async fn start(shape: Shape) -> Self {
        let state = tempfile::tempdir().expect("temporary directory");
        let ca = Ca::open(state.path(), "cluster.local").expect("new CA");
        let certificates = CertificateStore::new(Arc::new(ca), Arc::new(SystemClock));
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let hbone_port = destinations(&shape.pods, &certificates, account(shape.destination_account), &arrivals).await;
        let store = Store::new(ambit_policy::Options::default());
        let (mut recorder, records) = recorder();
        if shape.exchanges {
            recorder = recorder.with_exchanges();
        }
        let mut config =
            Config::new(NAMESPACE, "waypoint", account("waypoint"), "127.0.0.1:0".parse().expect("address"));
        config.hbone_port = hbone_port;
        config.limits = shape.limits;
        config.reuse_port = shape.reuse_port;
        let waypoint = Waypoint::start(
            config.clone(),
            Arc::new(HostNetwork),
            Arc::clone(&store),
            Arc::clone(&certificates),
            recorder.clone(),
        );
        let waypoint = waypoint.expect("bound");
        let address = waypoint.address();
        config.address = address;
        let mesh = Self {
            waypoint: Some(waypoint),
            address,
            hbone_port,
            store,
            arrivals,
            certificates,
            config,
            recorder,
            records,
            _state: state,
        };
        mesh.apply(ADDRESS_TYPE, resources(&shape), &[]);
        mesh.policies(&shape.policies);
        mesh
    }

    /// Another waypoint on the same port, beside the present one.
    pub fn successor(&self) -> Waypoint {
        let (store, certificates) = (Arc::clone(&self.store), Arc::clone(&self.certificates));
        let network = Arc::new(HostNetwork);
        let waypoint = Waypoint::start(self.config.clone(), network, store, certificates, self.recorder.clone());
        waypoint.expect("the port can be shared")
    }

    /// Puts these policies, and no others, in force for the service.
    pub fn policies(&self, policies: &[Value]) {
        self.bundle(vec![wire::service(policies)]);
    }

    /// The same, with tokens that are believed by these.
    pub fn authenticated(&self, policies: &[Value], authentications: Vec<RequestAuthentication>) {
        self.try_authenticated(policies, authentications).expect("readable resources");
    }

    pub fn try_authenticated(
        &self,
        policies: &[Value],
        authentications: Vec<RequestAuthentication>,
    ) -> Result<(), ambit_xds::channel::Nack> {
        self.try_bundle(vec![BoundService { authentications, ..wire::service(policies) }])
    }

    pub fn bundle(&self, services: Vec<BoundService>) {
        self.try_bundle(services).expect("readable resources");
    }

    pub fn try_bundle(&self, services: Vec<BoundService>) -> Result<(), ambit_xds::channel::Nack> {
        self.store.apply(&[wire::response(&wire::bundle(services))])
    }

    pub fn apply(&self, type_url: &str, resources: Vec<(String, Vec<u8>)>, removed: &[&str]) {
        let resources = resources.into_iter().map(|(name, value)| Resource { name, version: String::new(), value });
        let response = DeltaResponse {
            type_url: type_url.to_owned(),
            resources: resources.collect(),
            removed: removed.iter().map(|name| (*name).to_owned()).collect(),
        };
        self.store.apply(&[response]).expect("readable resources");
    }

    /// A pool as the node proxy of a client has it.
    pub fn pool(&self) -> Arc<Pool> {
        Pool::new(Arc::clone(&self.certificates), ambit_hbone::Limits::default())
    }

    /// A tunnel to the service for this service account.
    pub async fn tunnel(&self, who: &str) -> Tunnel {
        self.connect(&self.pool(), who, &format!("{VIP}:{PORT}")).await.expect("tunnel")
    }

    pub async fn connect(&self, pool: &Pool, who: &str, authority: &str) -> Result<Tunnel, ConnectError> {
        let request = Connect {
            network: Arc::new(HostNetwork) as Arc<dyn Network>,
            source: account(who),
            peer: self.address,
            expected: vec![account("waypoint")],
            authority: authority.to_owned(),
            headers: http::HeaderMap::new(),
            mark: None,
            distant: false,
        };
        soon(pool.connect(request)).await
    }

    pub async fn record(&mut self) -> DecisionRecord {
        soon(self.records.next()).await.expect("a record")
    }

    /// The next record, whose verdict and status must be these.
    pub async fn expect_record(&mut self, verdict: Verdict, status: Option<u16>) -> DecisionRecord {
        let record = self.record().await;
        assert_eq!((record.verdict, record.status), (verdict, status), "{record:?}");
        record
    }

    pub fn sources(&self) -> Vec<String> {
        let arrivals = self.arrivals.lock().expect("unpoisoned");
        arrivals.iter().map(|arrival| arrival.source.clone()).collect()
    }
}

/// Writes a request and reads the whole response: its head as text, its body as bytes.
pub async fn exchange(stream: &mut Tunnel, request: &str) -> (String, Vec<u8>) {
    soon(stream.write_all(request.as_bytes())).await.expect("written");
    soon(stream.flush()).await.expect("flushed");
    response(stream, request.starts_with("HEAD ")).await
}

/// Reads one response with a content-length (or none).
pub async fn response(stream: &mut Tunnel, head_only: bool) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = soon(stream.read_u8()).await.unwrap_or_else(|error| {
            panic!("stream ended inside of the head {:?}: {error}", String::from_utf8_lossy(&head))
        });
        head.push(byte);
    }
    let head = String::from_utf8(head).expect("text");
    let length = header(&head, "content-length").map_or(0, |length| length.parse().expect("number"));
    let mut body = vec![0; if head_only { 0 } else { length }];
    soon(stream.read_exact(&mut body)).await.expect("whole body");
    (head, body)
}

/// Value of a header line, whose name must be in lower case.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

pub fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status in {head:?}"))
}

/// Listens on the HBONE port at every pod's address and pipes what arrives to the authority it names.
async fn destinations(
    pods: &[Pod],
    certificates: &Arc<CertificateStore>,
    identity: SpiffeId,
    arrivals: &Arc<Mutex<Vec<Arrival>>>,
) -> u16 {
    let mut addresses: Vec<_> = pods.iter().filter(|pod| pod.hbone).map(|pod| pod.app.ip()).collect();
    addresses.dedup();
    let Some(first) = addresses.first() else { return 1 };
    // A port that is free on the first address need not be on the others.
    for _ in 0..20 {
        let listener = TcpListener::bind((*first, 0)).await.expect("free port");
        let port = listener.local_addr().expect("bound").port();
        let mut listeners = vec![listener];
        for address in &addresses[1..] {
            listeners.extend(TcpListener::bind((*address, port)).await.ok());
        }
        if listeners.len() == addresses.len() {
            for listener in listeners {
                tokio::spawn(destination(listener, Arc::clone(certificates), identity.clone(), Arc::clone(arrivals)));
            }
            return port;
        }
    }
    panic!("no port is free on all of {addresses:?}");
}

async fn destination(
    listener: TcpListener,
    certificates: Arc<CertificateStore>,
    identity: SpiffeId,
    arrivals: Arc<Mutex<Vec<Arrival>>>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let certificate = certificates.get(&identity).await.expect("certificate");
        let arrivals = Arc::clone(&arrivals);
        tokio::spawn(async move {
            let Ok(mut connection) = ambit_hbone::accept(stream, certificate, &ambit_hbone::Limits::default()).await
            else {
                return;
            };
            while let Some(Ok(request)) = connection.next().await {
                let text = |name: &str| {
                    let value = request.headers().get(name).map(|value| value.to_str().expect("text"));
                    value.unwrap_or_default().to_owned()
                };
                let authority = request.authority().expect("authority").to_string();
                {
                    let mut arrivals = arrivals.lock().expect("unpoisoned");
                    arrivals.push(Arrival {
                        peer: connection.peer().clone(),
                        authority: authority.clone(),
                        source: text("ambit-source"),
                        forwarded: text("forwarded"),
                    });
                }
                tokio::spawn(async move {
                    let Ok(mut app) = TcpStream::connect(&authority).await else {
                        return request.refuse(http::StatusCode::SERVICE_UNAVAILABLE);
                    };
                    let Ok(mut tunnel) = request.accept(http::HeaderMap::new()) else { return };
                    let _ = copy::bidirectional(&mut tunnel, &mut app, PATIENCE).await;
                });
            }
        });
    }
}

pub fn service(shape: &Shape) -> (String, Vec<u8>) {
    let service = Service {
        name: "mlflow".to_owned(),
        namespace: NAMESPACE.to_owned(),
        hostname: HOSTNAME.to_owned(),
        addresses: vec![NetworkAddress { address: vec![10, 96, 0, 7], ..NetworkAddress::default() }],
        ports: vec![Port { service_port: PORT.into(), target_port: 0, app_protocol: shape.protocol as i32 }],
        ..Service::default()
    };
    let address = Address { r#type: Some(address::Type::Service(service)) };
    (format!("{NAMESPACE}/{HOSTNAME}"), address.encode_to_vec())
}

pub fn resources(shape: &Shape) -> Vec<(String, Vec<u8>)> {
    let mut all = vec![service(shape), pod("client", "127.0.0.1".parse().expect("address"), "client", None, true)];
    for (index, endpoint) in shape.pods.iter().enumerate() {
        let name = format!("mlflow-{index}");
        all.push(pod(&name, endpoint.app.ip(), "mlflow", Some(endpoint.app.port()), endpoint.hbone));
    }
    all
}

fn pod(name: &str, ip: std::net::IpAddr, account: &str, target: Option<u16>, hbone: bool) -> (String, Vec<u8>) {
    let uid = format!("Kubernetes//Pod/{NAMESPACE}/{name}");
    let std::net::IpAddr::V4(ip) = ip else { panic!("an IPv4 address") };
    let ports = |target: u16| PortList {
        ports: vec![Port { service_port: PORT.into(), target_port: target.into(), app_protocol: 0 }],
    };
    let workload = Workload {
        uid: uid.clone(),
        name: name.to_owned(),
        namespace: NAMESPACE.to_owned(),
        addresses: vec![ip.octets().to_vec()],
        tunnel_protocol: if hbone { TunnelProtocol::Hbone } else { TunnelProtocol::None } as i32,
        service_account: account.to_owned(),
        services: target.map(|target| (format!("{NAMESPACE}/{HOSTNAME}"), ports(target))).into_iter().collect(),
        ..Workload::default()
    };
    (uid, Address { r#type: Some(address::Type::Workload(workload)) }.encode_to_vec())
}
