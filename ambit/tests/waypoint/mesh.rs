//! The MLflow example's objects, as a control plane has them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use ambit_api::{AuthorizationPolicy, Resource};
use ambit_identity::SpiffeId;
use ambit_mesh::inputs::{
    AllowedNamespaces, Change, Gateway, Labels, Listener, Namespace, NamespacedName, Pod, Policy, Service, ServicePort,
    TargetPort,
};
use ambit_xds::workload::AppProtocol;

pub const NAMESPACE: &str = "kagenti-system";
/// The Gateway, and the service account of its pods.
pub const WAYPOINT: &str = "mlflow-waypoint";
/// The Service's own address and port.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 7);
pub const PORT: u16 = 5000;
/// Of a service that no waypoint serves.
pub const OTHER_VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 8);

/// The identity of a service account in the example's namespace.
pub fn account(name: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", NAMESPACE, name).expect("a valid name")
}

/// Everything but the Gateway: namespace, services, the server's pod at this address and port, a client's pod, and the policy
/// of the example's first file.
pub fn objects(server: (Ipv4Addr, u16), client: Ipv4Addr) -> Vec<Change> {
    let labels = |pairs: &[(&str, &str)]| -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let namespace = Namespace { labels: labels(&[("istio.io/dataplane-mode", "ambient")]) };
    let service = |vip: Ipv4Addr, own: &[(&str, &str)]| Service {
        labels: labels(own),
        selector: labels(&[("app", "mlflow")]),
        ports: vec![ServicePort {
            port: PORT,
            target: TargetPort::Number(server.1),
            protocol: AppProtocol::Http11,
            name: String::new(),
        }],
        vips: vec![vip.into()],
    };
    let bound = service(VIP, &[("istio.io/use-waypoint", WAYPOINT)]);
    vec![
        Change::Namespace(NAMESPACE.into(), Some(namespace)),
        Change::Service(name("mlflow"), Some(bound)),
        Change::Service(name("other"), Some(service(OTHER_VIP, &[]))),
        Change::Pod(name("mlflow"), Some(pod("mlflow", server.0, &[("app", "mlflow")]))),
        Change::Pod(name("client"), Some(pod("client", client, &[]))),
        policy_of("complete-example.yaml"),
    ]
}

/// The Gateway, there or gone.
pub fn gateway(is_there: bool) -> Change {
    gateway_named(WAYPOINT, is_there)
}

/// A Gateway of this name.
pub fn gateway_named(gateway: &str, is_there: bool) -> Change {
    let object = Gateway {
        labels: BTreeMap::from([("istio.io/waypoint-for".to_owned(), "service".to_owned())]),
        class: "istio-waypoint".to_owned(),
        listeners: vec![Listener { port: 15008, protocol: "HBONE".to_owned(), allowed: AllowedNamespaces::Same }],
        vip: Some(IpAddr::from([10, 96, 0, 1])),
        settings: ambit_api::GatewaySettings::default(),
    };
    Change::Gateway(name(gateway), is_there.then_some(object))
}

/// The AuthorizationPolicy in this file of the example.
pub fn policy_of(file: &str) -> Change {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/mlflow").join(file);
    let loaded = ambit_api::load(&[path]);
    let policy = loaded.objects.iter().find_map(|object| match &object.resource {
        Resource::AuthorizationPolicy(policy) => Some(AuthorizationPolicy::clone(policy)),
        _ => None,
    });
    let policy = policy.unwrap_or_else(|| panic!("`{file}` has a policy: {:?}", loaded.diagnostics));
    Change::Policy(name(&policy.name.clone()), Some(Policy::new(policy)))
}

/// An object of the example's namespace.
pub fn name(name: &str) -> NamespacedName {
    NamespacedName::new(NAMESPACE, name)
}

fn pod(pod: &str, ip: Ipv4Addr, labels: &[(&str, &str)]) -> Pod {
    Pod {
        uid: format!("Kubernetes//Pod/{NAMESPACE}/{pod}").into(),
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        service_account: pod.to_owned(),
        ip: Some(ip.into()),
        ready: true,
        host_network: false,
        captured: None,
        node: "node".to_owned(),
        owner: None,
        named_ports: BTreeMap::new(),
        waypoint: None,
    }
}
