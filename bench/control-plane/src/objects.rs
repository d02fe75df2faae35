//! A mesh of a size: a Service for ten workloads, a policy for each Service, a hundred workloads in a namespace, and a waypoint
//! in every other namespace.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use ambit_api::{AuthorizationPolicy, Loaded, Resource, load_text};
use ambit_mesh::inputs::{
    AllowedNamespaces, Change, Gateway, Labels, Listener, Namespace, NamespacedName, Pod, Policy, Service, ServicePort,
    TargetPort,
};
use ambit_xds::workload::AppProtocol;
use serde_json::{Value, json};

/// Workloads of a namespace.
const PER_NAMESPACE: usize = 100;
/// Workloads of a Service.
pub const PER_SERVICE: usize = 10;

/// All of it.
pub fn mesh(workloads: usize) -> Result<Vec<Change>, String> {
    let mut changes = Vec::new();
    for index in 0..workloads.div_ceil(PER_NAMESPACE) {
        changes.push(namespace(index, false));
        if index % 2 == 0 {
            changes.push(gateway(index));
        }
    }
    for index in 0..workloads / PER_SERVICE {
        changes.push(service(index));
        changes.push(policy(index, "cluster.local/ns/a/sa/b")?);
    }
    changes.extend((0..workloads).map(|index| pod(index, true)));
    Ok(changes)
}

fn space(index: usize) -> String {
    format!("ns-{index}")
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A namespace; its Services may ask for a waypoint that isn't there, which all of them and their pods are told.
pub fn namespace(index: usize, asks: bool) -> Change {
    let mut labels = labels(&[("istio.io/dataplane-mode", "ambient")]);
    if asks {
        labels.insert("istio.io/use-waypoint".to_owned(), "gone".to_owned());
    }
    Change::Namespace(space(index).into(), Some(Namespace { labels }))
}

fn gateway(index: usize) -> Change {
    let object = Gateway {
        labels: Labels::new(),
        class: "istio-waypoint".to_owned(),
        listeners: vec![Listener { port: 15008, protocol: "HBONE".to_owned(), allowed: AllowedNamespaces::Same }],
        vip: Some(address(172, index)),
        settings: ambit_api::GatewaySettings::default(),
    };
    Change::Gateway(NamespacedName::new(&space(index), "waypoint"), Some(object))
}

fn service(index: usize) -> Change {
    let namespace = index * PER_SERVICE / PER_NAMESPACE;
    let bound = namespace.is_multiple_of(2);
    let object = Service {
        labels: if bound { labels(&[("istio.io/use-waypoint", "waypoint")]) } else { Labels::new() },
        selector: labels(&[("app", &format!("app-{index}"))]),
        ports: vec![ServicePort {
            port: 80,
            target: TargetPort::Number(8080),
            protocol: AppProtocol::Http11,
            name: "http".to_owned(),
        }],
        vips: vec![address(96, index)],
    };
    Change::Service(NamespacedName::new(&space(namespace), &format!("app-{index}")), Some(object))
}

/// The policy of a Service: at its waypoint where it has one, else at its pods' node proxies.
pub fn policy(index: usize, principal: &str) -> Result<Change, String> {
    let namespace = index * PER_SERVICE / PER_NAMESPACE;
    let app = format!("app-{index}");
    let mut spec = json!({"action": "ALLOW", "rules": [{"from": [{"source": {"principals": [principal]}}]}]});
    if namespace.is_multiple_of(2) {
        spec["targetRefs"] = json!([{"kind": "Service", "group": "", "name": app}]);
    } else {
        spec["selector"] = json!({"matchLabels": {"app": app}});
    }
    read(&space(namespace), &app, &spec)
}

fn read(namespace: &str, name: &str, spec: &Value) -> Result<Change, String> {
    let object = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    });
    let Loaded { objects, diagnostics, .. } = load_text("", &object.to_string());
    let read = objects.into_iter().find_map(|object| match object.resource {
        Resource::AuthorizationPolicy(policy) => Some(policy),
        _ => None,
    });
    let policy: AuthorizationPolicy = *read.ok_or_else(|| format!("{diagnostics:?}"))?;
    let name = NamespacedName::new(&policy.namespace, &policy.name);
    Ok(Change::Policy(name, Some(Policy::new(policy))))
}

/// Namespace of [`selecting`].
pub const SELECTED: &str = "selected";

/// One of many policies of one namespace: for the pods of a Service.
pub fn selecting(index: usize) -> Result<Change, String> {
    read(
        SELECTED,
        &format!("app-{index}"),
        &json!({
            "action": "ALLOW", "rules": [{}], "selector": {"matchLabels": {"app": format!("app-{index}")}},
        }),
    )
}

/// A workload, ready or not.
pub fn pod(index: usize, ready: bool) -> Change {
    let (service, namespace) = (index / PER_SERVICE, index / PER_NAMESPACE);
    let name = NamespacedName::new(&space(namespace), &format!("pod-{index}"));
    let object = Pod {
        uid: format!("Kubernetes//Pod/{name}").into(),
        labels: labels(&[("app", &format!("app-{service}")), ("version", "v1"), ("pod-template-hash", "5d9c7b")]),
        service_account: format!("app-{service}"),
        ip: Some(address(10, index)),
        ready,
        host_network: false,
        captured: Some(true),
        node: format!("node-{}", index % 500),
        owner: Some(format!("app-{service}")),
        named_ports: BTreeMap::new(),
        waypoint: None,
    };
    Change::Pod(name, Some(object))
}

fn address(first: u8, index: usize) -> IpAddr {
    let [_, b, c, d] = u32::try_from(index).unwrap_or_default().to_be_bytes();
    Ipv4Addr::new(first, b, c, d).into()
}
