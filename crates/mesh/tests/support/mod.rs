//! Objects for the tests of this crate, as short as they can be written.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ambit_api::{
    AuthorizationPolicy,
    authorization_policy::{
        Action, AuthorizationPolicySpec, From, Operation, PolicyTargetReference, Rule, Source, To, WorkloadSelector,
    },
};
use ambit_mesh::inputs::{
    AllowedNamespaces, Change, Gateway, Inputs, Labels, Listener, Namespace, NamespacedName, Pod, Policy, Service,
    ServicePort, TargetPort,
};
use ambit_xds::{
    DeltaResponse, Resource,
    workload::{self, Address, address::Type},
};
use prost::Message;

pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub fn name(text: &str) -> NamespacedName {
    let (namespace, name) = text.split_once('/').expect("namespace/name");
    NamespacedName::new(namespace, name)
}

pub fn namespace(name: &str, pairs: &[(&str, &str)]) -> Change {
    Change::Namespace(name.into(), Some(Namespace { labels: labels(pairs) }))
}

pub fn port(port: u16, target: TargetPort) -> ServicePort {
    ServicePort { port, target, protocol: workload::AppProtocol::Unknown, name: String::new() }
}

pub fn service(app: &str, pairs: &[(&str, &str)]) -> Service {
    Service {
        labels: labels(pairs),
        selector: labels(&[("app", app)]),
        ports: vec![port(80, TargetPort::Number(8080))],
        vips: vec![IpAddr::from([10, 96, 0, 10])],
    }
}

pub fn pod(uid: &str, app: &str, last: u8) -> Pod {
    Pod {
        uid: uid.into(),
        labels: labels(&[("app", app)]),
        service_account: "default".into(),
        ip: Some(IpAddr::from([10, 244, 0, last])),
        ready: true,
        host_network: false,
        captured: None,
        node: "node".into(),
        owner: None,
        named_ports: BTreeMap::new(),
        waypoint: None,
    }
}

pub fn gateway(pairs: &[(&str, &str)], allowed: AllowedNamespaces) -> Gateway {
    Gateway {
        labels: labels(pairs),
        class: "istio-waypoint".into(),
        listeners: vec![Listener { port: 15008, protocol: "HBONE".into(), allowed }],
        vip: Some(IpAddr::from([10, 96, 0, 1])),
        settings: ambit_api::GatewaySettings::default(),
    }
}

/// A policy that concerns a service account's principal, optionally with a path.
pub fn policy(full_name: &str, action: Action, principal: Option<&str>, path: Option<&str>) -> AuthorizationPolicy {
    let source = |value: &str| Source { principals: vec![value.to_owned()], ..Source::default() };
    let operation = |value: &str| Operation { paths: vec![value.to_owned()], ..Operation::default() };
    let rule = Rule {
        from: principal.map(|value| vec![From { source: source(value) }]),
        to: path.map(|value| vec![To { operation: operation(value) }]),
        when: None,
    };
    let full_name = name(full_name);
    AuthorizationPolicy {
        namespace: full_name.namespace.to_string(),
        name: full_name.name.to_string(),
        annotations: BTreeMap::new(),
        spec: AuthorizationPolicySpec { action, rules: Some(vec![rule]), ..AuthorizationPolicySpec::default() },
    }
}

pub fn targeting(mut policy: AuthorizationPolicy, group: &str, kind: &str, target: &str) -> AuthorizationPolicy {
    policy.spec.target_refs.push(PolicyTargetReference {
        group: group.into(),
        kind: kind.into(),
        name: target.into(),
        namespace: String::new(),
    });
    policy
}

pub fn selecting(mut policy: AuthorizationPolicy, pairs: &[(&str, &str)]) -> AuthorizationPolicy {
    policy.spec.selector = Some(WorkloadSelector { match_labels: labels(pairs) });
    policy
}

pub fn put(policy: AuthorizationPolicy) -> Change {
    let name = NamespacedName::new(&policy.namespace, &policy.name);
    Change::Policy(name, Some(Policy::new(policy)))
}

pub fn inputs(changes: impl IntoIterator<Item = Change>) -> Inputs {
    let mut inputs = Inputs::default();
    changes.into_iter().for_each(|change| inputs.apply(change));
    inputs
}

pub fn decode_address(resource: &Resource) -> Type {
    Address::decode(resource.value.as_slice()).expect("an address").r#type.expect("with a content")
}

pub fn response(type_url: &str, resources: Vec<Resource>) -> DeltaResponse {
    DeltaResponse { type_url: type_url.into(), resources, removed: Vec::new() }
}

pub fn arc(text: &str) -> Arc<str> {
    text.into()
}
