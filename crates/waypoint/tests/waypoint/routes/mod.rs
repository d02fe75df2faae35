//! Routes: every feature with real backends, and routes as users write them.

pub mod app;
mod filters;
mod matching;
mod owners;
pub mod streams;
mod tries;
mod unrouted;

use std::net::SocketAddr;

use ambit_api::Resource as Loaded;
use ambit_xds::{
    ADDRESS_TYPE,
    waypoint::{AttachedRoute, BoundService},
    workload::{
        Address, AppProtocol, GatewayAddress, NamespacedHostname, NetworkAddress, Port, PortList, Service,
        TunnelProtocol, Workload, address, gateway_address::Destination,
    },
};
use prost::Message;
use serde_json::Value;

use self::app::App;
use crate::{
    mesh::{HOSTNAME, Mesh, NAMESPACE, PORT, Shape, allow_all, exchange, status},
    wire,
};

/// A service that routes may lead to.
#[derive(Clone)]
struct Backend<'a> {
    namespace: &'a str,
    name: &'a str,
    /// Its virtual address.
    vip: [u8; 4],
    /// Its port.
    port: u16,
    protocol: AppProtocol,
    app: SocketAddr,
    /// Namespace and hostname of its waypoint.
    waypoint: Option<(&'a str, &'a str)>,
}

impl<'a> Backend<'a> {
    fn of(name: &'a str, last: u8, app: &App) -> Self {
        let (namespace, protocol) = (NAMESPACE, AppProtocol::Unknown);
        Self { namespace, name, vip: [10, 96, 1, last], port: 80, protocol, app: app.address, waypoint: None }
    }

    fn hostname(&self) -> String {
        format!("{}.{}.svc.cluster.local", self.name, self.namespace)
    }

    fn resources(&self) -> Vec<(String, Vec<u8>)> {
        let key = format!("{}/{}", self.namespace, self.hostname());
        let waypoint = self.waypoint.map(|(namespace, hostname)| GatewayAddress {
            destination: Some(Destination::Hostname(NamespacedHostname {
                namespace: namespace.to_owned(),
                hostname: hostname.to_owned(),
            })),
            hbone_mtls_port: 15008,
        });
        let service = Service {
            name: self.name.to_owned(),
            namespace: self.namespace.to_owned(),
            hostname: self.hostname(),
            addresses: vec![NetworkAddress { address: self.vip.to_vec(), ..NetworkAddress::default() }],
            ports: vec![Port { service_port: self.port.into(), target_port: 0, app_protocol: self.protocol as i32 }],
            waypoint,
            ..Service::default()
        };
        let pod = workload(&format!("{}-{}", self.namespace, self.name), &key, self.port, self.app, "mlflow");
        vec![(key, Address { r#type: Some(address::Type::Service(service)) }.encode_to_vec()), pod]
    }
}

/// A pod of the service with this key.
fn workload(name: &str, service: &str, port: u16, app: SocketAddr, account: &str) -> (String, Vec<u8>) {
    let uid = format!("Kubernetes//Pod/{NAMESPACE}/{name}");
    let SocketAddr::V4(app) = app else { panic!("an IPv4 address") };
    let ports = vec![Port { service_port: port.into(), target_port: app.port().into(), app_protocol: 0 }];
    let workload = Workload {
        uid: uid.clone(),
        name: name.to_owned(),
        namespace: NAMESPACE.to_owned(),
        addresses: vec![app.ip().octets().to_vec()],
        tunnel_protocol: TunnelProtocol::Hbone as i32,
        service_account: account.to_owned(),
        services: [(service.to_owned(), PortList { ports })].into(),
        ..Workload::default()
    };
    (uid, Address { r#type: Some(address::Type::Workload(workload)) }.encode_to_vec())
}

/// The mesh with its service served by this application, everything allowed, and these backends.
async fn mesh(app: &App, backends: &[Backend<'_>]) -> Mesh {
    mesh_for(app.address, AppProtocol::Unknown, backends).await
}

async fn mesh_for(app: SocketAddr, protocol: AppProtocol, backends: &[Backend<'_>]) -> Mesh {
    let mut shape = Shape::of(app);
    shape.policies = vec![allow_all()];
    shape.protocol = protocol;
    let mesh = Mesh::start(shape).await;
    mesh.apply(ADDRESS_TYPE, backends.iter().flat_map(Backend::resources).collect(), &[]);
    mesh
}

/// Puts these routes (YAML documents; those that name no namespace are the service's own) in force.
fn route(mesh: &Mesh, routes: &str) {
    bind(mesh, routes, &[allow_all()], Vec::new());
}

pub(crate) fn bind(mesh: &Mesh, routes: &str, policies: &[Value], others: Vec<BoundService>) {
    let mut services = vec![bound(NAMESPACE, HOSTNAME, policies)];
    services[0].routes = attached(routes);
    services.extend(others);
    let rejected = services[0].routes.iter().any(|route| !route.rejection.is_empty());
    let applied = mesh.try_bundle(services);
    assert_eq!(applied.is_err(), rejected, "what can't be followed is refused by name: {applied:?}");
}

fn bound(namespace: &str, hostname: &str, policies: &[Value]) -> BoundService {
    let (namespace, hostname) = (namespace.to_owned(), hostname.to_owned());
    BoundService { namespace, hostname, ..wire::service(policies) }
}

fn attached(routes: &str) -> Vec<AttachedRoute> {
    let loaded = ambit_api::load_text("routes.yaml", routes);
    let objects = loaded.objects.into_iter().map(|object| {
        let Loaded::Route(route) = object.resource else { panic!("not a route") };
        AttachedRoute {
            kind: route.kind().to_owned(),
            namespace: route.namespace.clone(),
            name: route.name.clone(),
            json: serde_json::to_vec(&route).expect("plain data"),
            rejection: object.rejection.map(|rejection| rejection.reason()).unwrap_or_default(),
            ports: route.parents().iter().filter_map(|parent| parent.port.map(u32::from)).collect(),
            cluster_domain: "cluster.local".to_owned(),
        }
    });
    let attached: Vec<_> = objects.collect();
    assert!(!attached.is_empty() || routes.is_empty(), "{:?}", loaded.diagnostics);
    attached
}

/// An HTTPRoute of this name with these rules.
pub(crate) fn http_route(name: &str, rules: &str) -> String {
    kind_route("HTTPRoute", "v1", NAMESPACE, name, &format!("rules: {rules}"))
}

fn kind_route(kind: &str, version: &str, namespace: &str, name: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
         parentRefs: [{{group: '', kind: Service, name: mlflow, namespace: {NAMESPACE}}}]\n  {}\n",
        rest.trim().replace('\n', "\n  ")
    )
}

/// Sends `METHOD target` with these further header lines (each with its line break) over a connection of its own.
async fn send(mesh: &Mesh, who: &str, request: &str, headers: &str) -> (u16, String, String) {
    let mut tunnel = mesh.tunnel(who).await;
    let text = format!("{request} HTTP/1.1\r\nhost: mlflow:{PORT}\r\n{headers}\r\n");
    let (head, body) = exchange(&mut tunnel, &text).await;
    (status(&head), head, String::from_utf8(body).expect("text"))
}
