//! A small mesh: a store filled by messages as the control plane sends them, a CA, and pods on loopback addresses.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ambit_api::SpiffeId;
use ambit_hbone::{HostNetwork, Network};
use ambit_identity::{Ca, CertificateStore, SystemClock};
use ambit_mesh::Store;
use ambit_policy::Options;
use ambit_telemetry::{DecisionRecord, Records, recorder};
use ambit_xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, DeltaResponse, Resource,
    security::{self, Authorization, POLICY_EXTENSION, POLICY_TYPE, Policy, Scope},
    workload::{
        Address, Any, Extension, GatewayAddress, GuardedPort, NamespacedHostname, NetworkAddress, Port, PortList,
        Service, TunnelProtocol, WAYPOINT_GUARD_EXTENSION, WAYPOINT_GUARD_TYPE, WaypointGuard, Workload,
        WorkloadStatus, address, gateway_address::Destination,
    },
};
use prost::Message;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::{Config, Pod, Ports, Ztunnel};

/// No wait in a test is longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// The mesh under test.
pub(crate) struct World {
    pub(crate) store: Arc<Store>,
    pub(crate) certificates: Arc<CertificateStore>,
    pub(crate) ztunnel: Arc<Ztunnel>,
    pub(crate) records: Records,
    _directory: Option<tempfile::TempDir>,
}

/// A network whose sockets come from one address.
#[derive(Debug)]
pub(crate) struct From(pub(crate) IpAddr);

impl Network for From {
    fn socket(&self, domain: Domain, ty: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        let socket = HostNetwork.socket(domain, ty, protocol)?;
        socket.bind(&SockAddr::from(SocketAddr::new(self.0, 0)))?;
        Ok(socket)
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Config::default())
    }

    pub(crate) fn with(config: Config) -> Self {
        let directory = tempfile::tempdir().expect("a directory for the CA");
        let ca = Ca::open(directory.path(), "cluster.local").expect("a CA");
        let certificates = CertificateStore::new(Arc::new(ca), Arc::new(SystemClock));
        Self { _directory: Some(directory), ..Self::showing(config, certificates) }
    }

    /// A proxy with certificates of this store.
    pub(crate) fn showing(config: Config, certificates: Arc<CertificateStore>) -> Self {
        let store = store();
        let (recorder, records) = recorder();
        let ports = Ports { outbound: 0, plaintext: 0, hbone: 15008, dns: 0 };
        let config = Config { mark: None, preserve_source: false, ports, ..config };
        let host = Arc::new(HostNetwork);
        let ztunnel = Ztunnel::new(config, Arc::clone(&store), Arc::clone(&certificates), host, recorder);
        Self { store, certificates, ztunnel, records, _directory: None }
    }

    /// Serves a pod of the mesh.
    pub(crate) fn serve(&self, workload: &Workload) {
        self.add(workload, true);
    }

    pub(crate) fn add(&self, workload: &Workload, captured: bool) {
        let pod = Pod {
            uid: workload.uid.as_str().into(),
            ip: ip_of(workload),
            namespace: workload.namespace.clone(),
            network: Arc::new(HostNetwork),
            captured,
            in_pod: None,
        };
        self.ztunnel.add(pod).expect("the pod's listeners");
    }

    /// The next record of a decision.
    pub(crate) async fn record(&mut self) -> DecisionRecord {
        self.record_that(DecisionRecord::announces_decision).await
    }

    /// The next record like that; those before it are passed over.
    pub(crate) async fn record_that(&mut self, wanted: impl Fn(&DecisionRecord) -> bool) -> DecisionRecord {
        let found = async {
            loop {
                let record = self.records.next().await.expect("a record");
                if wanted(&record) {
                    return record;
                }
            }
        };
        timeout(PATIENCE, found).await.expect("a record in time")
    }

    /// Fails if there is a record of a decision within a moment.
    pub(crate) async fn no_record(&mut self) {
        self.no_record_that(DecisionRecord::announces_decision).await;
    }

    /// Fails if there is a record like that within a moment.
    pub(crate) async fn no_record_that(&mut self, unwanted: impl Fn(&DecisionRecord) -> bool) {
        let until = tokio::time::Instant::now() + Duration::from_millis(100);
        while let Ok(record) = tokio::time::timeout_at(until, self.records.next()).await {
            let record = record.expect("a record");
            assert!(!unwanted(&record), "unexpected {record:?}");
        }
    }

    /// A client's connection that enters the mesh as this pod.
    pub(crate) async fn enter(&self, workload: &Workload, destination: SocketAddr) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let client = TcpStream::connect(listener.local_addr().expect("its address")).await.expect("a connection");
        let (stream, _) = listener.accept().await.expect("its other end");
        let (ztunnel, uid) = (Arc::clone(&self.ztunnel), workload.uid.clone());
        tokio::spawn(async move { ztunnel.serve_outbound(&uid, stream, destination).await });
        client
    }
}

pub(crate) fn options() -> Options {
    Options::default()
}

pub(crate) fn store() -> Arc<Store> {
    Store::new(options())
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and port")
}

pub(crate) fn id(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "ns", account).expect("an identity")
}

/// Pod `ns/<name>` with an account of the same name, healthy and in the mesh.
pub(crate) fn pod(name: &str, ip: &str) -> Workload {
    Workload {
        uid: format!("Kubernetes//Pod/ns/{name}"),
        name: name.to_owned(),
        namespace: "ns".to_owned(),
        addresses: vec![octets(ip)],
        tunnel_protocol: TunnelProtocol::Hbone.into(),
        service_account: name.to_owned(),
        status: WorkloadStatus::Healthy.into(),
        ..Workload::default()
    }
}

pub(crate) fn ip_of(workload: &Workload) -> IpAddr {
    let bytes: [u8; 4] = workload.addresses[0].as_slice().try_into().expect("an IPv4 address");
    IpAddr::from(bytes)
}

/// Makes the workload an endpoint of service `ns/<service>`.
pub(crate) fn endpoint(mut workload: Workload, service: &str, port: u16, target: u16) -> Workload {
    let ports = PortList { ports: vec![wire_port(port, target)] };
    workload.services.insert(format!("ns/{}", hostname(service)), ports);
    workload
}

/// Guards this port for waypoint `ns/<waypoint>` in the name of `ns/<service>`.
pub(crate) fn guarded(mut workload: Workload, service: &str, port: u16, waypoint: &str) -> Workload {
    let guard = WaypointGuard {
        ports: vec![GuardedPort {
            target_port: port.into(),
            service: format!("ns/{service}"),
            waypoint_namespace: "ns".to_owned(),
            waypoint_name: waypoint.to_owned(),
        }],
    };
    let config = Any { type_url: WAYPOINT_GUARD_TYPE.to_owned(), value: guard.encode_to_vec() };
    workload.extensions.push(Extension { name: WAYPOINT_GUARD_EXTENSION.to_owned(), config: Some(config) });
    workload
}

/// Pod `ns/<name>` that is a waypoint of that name.
pub(crate) fn waypoint(name: &str, ip: &str) -> Workload {
    Workload { native_tunnel: true, ..endpoint(pod(name, ip), name, 15008, 15008) }
}

/// Service `ns/<name>` with these virtual addresses and one port.
pub(crate) fn service(name: &str, vips: &[&str], port: u16, waypoint: Option<&str>) -> Service {
    let address = |vip: &&str| NetworkAddress { network: String::new(), address: octets(vip), length: None };
    let gateway = |waypoint: &str| GatewayAddress {
        destination: Some(Destination::Hostname(NamespacedHostname {
            namespace: "ns".to_owned(),
            hostname: hostname(waypoint),
        })),
        hbone_mtls_port: 15008,
    };
    Service {
        name: name.to_owned(),
        namespace: "ns".to_owned(),
        hostname: hostname(name),
        addresses: vips.iter().map(address).collect(),
        ports: vec![wire_port(port, 0)],
        waypoint: waypoint.map(gateway),
        ..Service::default()
    }
}

/// Tells the store of these.
pub(crate) fn push(store: &Store, workloads: &[&Workload], services: &[&Service]) {
    let workloads = workloads.iter().map(|w| (w.uid.clone(), address::Type::Workload((*w).clone())));
    let services =
        services.iter().map(|s| (format!("{}/{}", s.namespace, s.hostname), address::Type::Service((*s).clone())));
    let resources = workloads.chain(services).map(|(name, message)| resource(name, &Address { r#type: Some(message) }));
    let response =
        DeltaResponse { type_url: ADDRESS_TYPE.to_owned(), resources: resources.collect(), removed: Vec::new() };
    store.apply(&[response]).expect("readable addresses");
}

/// Removes workloads and services by resource name.
pub(crate) fn remove(store: &Store, names: &[&str]) {
    let removed = names.iter().map(|name| (*name).to_owned()).collect();
    let response = DeltaResponse { type_url: ADDRESS_TYPE.to_owned(), resources: Vec::new(), removed };
    store.apply(&[response]).expect("a removal");
}

/// Puts a policy for namespace `ns` in force; `spec` as the user writes it, as JSON.
pub(crate) fn policy(store: &Store, name: &str, spec: &str) {
    let json = format!(r#"{{"namespace":"ns","name":"{name}","spec":{spec}}}"#).into_bytes();
    let policy = Policy { namespace: "ns".to_owned(), name: name.to_owned(), json, ..Policy::default() };
    let config = Any { type_url: POLICY_TYPE.to_owned(), value: policy.encode_to_vec() };
    let message = Authorization {
        name: name.to_owned(),
        namespace: "ns".to_owned(),
        scope: Scope::Namespace.into(),
        action: security::Action::Allow.into(),
        dry_run: false,
        groups: Vec::new(),
        extensions: vec![Extension { name: POLICY_EXTENSION.to_owned(), config: Some(config) }],
    };
    let resources = vec![resource(format!("ns/{name}"), &message)];
    let response = DeltaResponse { type_url: AUTHORIZATION_TYPE.to_owned(), resources, removed: Vec::new() };
    store.apply(&[response]).expect("a readable policy");
}

/// A policy that allows these accounts of namespace `ns` only.
pub(crate) fn allow(accounts: &[&str]) -> String {
    let principals: Vec<String> = accounts.iter().map(|a| format!("\"cluster.local/ns/ns/sa/{a}\"")).collect();
    format!(r#"{{"action":"ALLOW","rules":[{{"from":[{{"source":{{"principals":[{}]}}}}]}}]}}"#, principals.join(","))
}

/// An application that greets first, then answers each byte with the same byte.
pub(crate) async fn application(ip: IpAddr) -> SocketAddr {
    let listener = TcpListener::bind(SocketAddr::new(ip, 0)).await.expect("the application's listener");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"hi").await?;
                let (mut reader, mut writer) = stream.split();
                tokio::io::copy(&mut reader, &mut writer).await
            });
        }
    });
    address
}

/// Reads the greeting, then checks that bytes come back, then ends and sees the end.
pub(crate) async fn converse<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(stream: &mut S) {
    greeting(stream).await;
    echo(stream).await;
    stream.shutdown().await.expect("an end");
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("an end in time").expect("an end");
    assert!(rest.is_empty(), "only what was sent comes back");
}

pub(crate) async fn greeting<S: tokio::io::AsyncRead + Unpin>(stream: &mut S) {
    let mut greeting = [0; 2];
    timeout(PATIENCE, stream.read_exact(&mut greeting)).await.expect("a greeting in time").expect("a greeting");
    assert_eq!(&greeting, b"hi");
}

pub(crate) async fn echo<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(stream: &mut S) {
    stream.write_all(b"ping").await.expect("sent");
    let mut echo = [0; 4];
    timeout(PATIENCE, stream.read_exact(&mut echo)).await.expect("an echo in time").expect("an echo");
    assert_eq!(&echo, b"ping");
}

/// Waits until the connection is over and says if it was reset.
pub(crate) async fn was_reset<S: tokio::io::AsyncRead + Unpin>(stream: &mut S) -> bool {
    let mut byte = [0; 1];
    match timeout(PATIENCE, stream.read(&mut byte)).await.expect("an end in time") {
        Ok(0) => false,
        Ok(_) => panic!("a byte came through"),
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

fn wire_port(service_port: u16, target_port: u16) -> Port {
    Port { service_port: service_port.into(), target_port: target_port.into(), app_protocol: 0 }
}

fn hostname(service: &str) -> String {
    format!("{service}.ns.svc.cluster.local")
}

pub(crate) fn octets(ip: &str) -> Vec<u8> {
    match self::ip(ip) {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn resource(name: String, message: &impl Message) -> Resource {
    Resource { name, version: "1".to_owned(), value: message.encode_to_vec() }
}
