//! Ambit's waypoint as a process: the scenario as the control plane would send it, and the records written as JSON.

use std::{
    fs::File,
    io::{BufWriter, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use ambit_hbone::HostNetwork;
use ambit_mesh::Store;
use ambit_telemetry::Records;
use ambit_waypoint::{Config, Waypoint};
use ambit_xds::{
    ADDRESS_TYPE, DeltaResponse, Resource, WAYPOINT_TYPE, security,
    waypoint::{AttachedRoute, BoundService, Bundle},
    workload::{Address, AppProtocol, NetworkAddress, Port, PortList, Service, TunnelProtocol, Workload, address},
};
use prost::Message;
use tokio::net::TcpListener;

use crate::{
    arguments::Proxy,
    backend, child, churn,
    contender::RULES,
    place,
    scenario::{self, GATEWAY, HOSTNAME, NAMESPACE, SERVICE, Shape, TRUST_DOMAIN, VIRTUAL},
};

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Records written before others get their turn.
const MAX_BATCH: usize = 256;

/// Starts one as a process of its own and gives its address.
pub(crate) fn start(
    folder: &Path,
    shape: Shape,
    rules: usize,
    backend: backend::Address,
) -> Result<(child::Running, SocketAddr), String> {
    start_with(folder, shape, rules, backend, None)
}

/// The same, with a configuration that changes all the time; `churn::changes` tells how often it has.
pub(crate) fn start_churning(
    folder: &Path,
    shape: Shape,
    backend: backend::Address,
) -> Result<(child::Running, SocketAddr), String> {
    start_with(folder, shape, RULES, backend, Some("churn"))
}

fn start_with(
    folder: &Path,
    shape: Shape,
    rules: usize,
    backend: backend::Address,
    further: Option<&str>,
) -> Result<(child::Running, SocketAddr), String> {
    let (rules, plain, port) = (rules.to_string(), backend.plain.to_string(), backend.hbone_port.to_string());
    let arguments = ["proxy", shape.name(), &rules, &plain, &port].into_iter().chain(further);
    let (running, line) = child::start(folder, &arguments.map(str::to_owned).collect::<Vec<_>>())?;
    let address = line.parse().map_err(|_| format!("Ambit says `{line}`"))?;
    Ok((running, address))
}

/// In that process.
pub(crate) fn run(proxy: &Proxy, folder: &Path) -> Result<(), String> {
    // One worker, as the Envoy beside it.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let _inside = runtime.enter();
    // As the program `ambit` does.
    runtime.spawn(ambit_node::memory::keep_small());
    let (recorder, records) = ambit_telemetry::recorder();
    let log = File::create("/dev/null").map_err(|error| format!("/dev/null: {error}"))?;
    runtime.spawn(write(records, BufWriter::new(log)));
    let mut config = Config::new(NAMESPACE, GATEWAY, scenario::waypoint(), LOOPBACK);
    config.hbone_port = proxy.backend.hbone_port;
    let (store, certificates) = (store(proxy)?, place::certificates(folder)?);
    let churning = proxy.churns.then(|| churn::run(Arc::clone(&store), proxy.shape, proxy.backend, folder.to_owned()));
    churning.map(|churning| runtime.spawn(churning));
    let waypoint = Waypoint::start(config, Arc::new(HostNetwork), store, certificates, recorder);
    let waypoint = waypoint.map_err(|error| format!("can't listen: {error}"))?;
    let address = match proxy.shape {
        Shape::Hbone => waypoint.address(),
        Shape::L7 => {
            let listener = runtime.block_on(TcpListener::bind(LOOPBACK)).map_err(|error| error.to_string())?;
            let address = listener.local_addr().map_err(|error| error.to_string())?;
            let served = waypoint.serve_plain(listener, scenario::client(), VIRTUAL);
            served.then_some(address).ok_or("the service isn't there")?
        }
    };
    child::ready(&address.to_string());
    Ok(())
}

/// As `ambit up` writes its access log.
async fn write(mut records: Records, mut log: BufWriter<File>) {
    let put = |log: &mut BufWriter<File>, record| {
        // Nothing is lost with what isn't written here.
        let _ = serde_json::to_writer(&mut *log, &record).map_err(Into::into).and_then(|()| log.write_all(b"\n"));
    };
    while let Some(record) = records.next().await {
        // Those who are at work now will have more: one write for all of them.
        tokio::task::yield_now().await;
        put(&mut log, record);
        for _ in 1..MAX_BATCH {
            match records.try_next() {
                Some(record) => put(&mut log, record),
                None => break,
            }
        }
        let _ = log.flush();
    }
}

fn store(proxy: &Proxy) -> Result<Arc<Store>, String> {
    let options = ambit_policy::Options { trust_domains: vec![TRUST_DOMAIN.to_owned()], ..Default::default() };
    let store = Store::new(options);
    let hbone = proxy.shape == Shape::Hbone;
    let backend = Some(proxy.backend.plain);
    let addresses = vec![service(), workload("client", IpAddr::V4(Ipv4Addr::LOCALHOST), "kagenti-ui", None, hbone)];
    let endpoint = workload("mlflow-0", proxy.backend.plain.ip(), SERVICE, backend, hbone);
    let addresses = addresses.into_iter().chain([endpoint]).collect();
    for (type_url, resources) in [(ADDRESS_TYPE, addresses), (WAYPOINT_TYPE, vec![bundle(proxy.rules, Vec::new())])] {
        let response = DeltaResponse { type_url: type_url.to_owned(), resources, removed: Vec::new() };
        store.apply(&[response]).map_err(|nack| format!("the scenario is refused: {nack:?}"))?;
    }
    Ok(store)
}

fn resource(name: String, message: &impl Message) -> Resource {
    Resource { name, version: String::new(), value: message.encode_to_vec() }
}

fn service() -> Resource {
    let port = u32::from(VIRTUAL.port());
    let service = Service {
        name: SERVICE.to_owned(),
        namespace: NAMESPACE.to_owned(),
        hostname: HOSTNAME.to_owned(),
        addresses: vec![NetworkAddress { address: octets(VIRTUAL.ip()), ..NetworkAddress::default() }],
        ports: vec![Port { service_port: port, target_port: 0, app_protocol: AppProtocol::Http11 as i32 }],
        ..Service::default()
    };
    let address = Address { r#type: Some(address::Type::Service(service)) };
    resource(format!("{NAMESPACE}/{HOSTNAME}"), &address)
}

/// A pod, and which of the service's endpoints it is.
pub(crate) fn workload(name: &str, ip: IpAddr, account: &str, serves: Option<SocketAddr>, hbone: bool) -> Resource {
    let uid = format!("Kubernetes//Pod/{NAMESPACE}/{name}");
    let ports = |target: SocketAddr| PortList {
        ports: vec![Port { service_port: VIRTUAL.port().into(), target_port: target.port().into(), app_protocol: 0 }],
    };
    let workload = Workload {
        uid: uid.clone(),
        name: name.to_owned(),
        namespace: NAMESPACE.to_owned(),
        addresses: vec![octets(ip)],
        tunnel_protocol: if hbone { TunnelProtocol::Hbone } else { TunnelProtocol::None } as i32,
        service_account: account.to_owned(),
        services: serves.map(|target| (format!("{NAMESPACE}/{HOSTNAME}"), ports(target))).into_iter().collect(),
        ..Workload::default()
    };
    resource(uid, &Address { r#type: Some(address::Type::Workload(workload)) })
}

/// What the waypoint is told of its service.
pub(crate) fn bundle(rules: usize, routes: Vec<AttachedRoute>) -> Resource {
    let policies = scenario::policies(rules).into_iter().map(|policy| {
        let object = serde_json::json!({"namespace": NAMESPACE, "name": policy.name, "spec": policy.spec()});
        security::Policy {
            namespace: NAMESPACE.to_owned(),
            name: policy.name.clone(),
            json: object.to_string().into_bytes(),
            ..Default::default()
        }
    });
    let service = BoundService {
        namespace: NAMESPACE.to_owned(),
        hostname: HOSTNAME.to_owned(),
        policies: policies.collect(),
        routes,
        ..BoundService::default()
    };
    let bundle = Bundle {
        namespace: NAMESPACE.to_owned(),
        name: GATEWAY.to_owned(),
        services: vec![service],
        ..Bundle::default()
    };
    resource(format!("{NAMESPACE}/{GATEWAY}"), &bundle)
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
