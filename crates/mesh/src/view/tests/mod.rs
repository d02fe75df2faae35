//! The view, from messages as a control plane sends them.

mod addresses;
mod endpoints;
mod fields;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ambit_policy::Options;
use ambit_xds::{
    ADDRESS_TYPE, DeltaResponse, Resource,
    workload::{self as wire, address::Type},
};
use prost::Message;

use super::{ServiceKey, Store};

fn store() -> Arc<Store> {
    Store::new(Options::default())
}

fn key(service: &str) -> ServiceKey {
    ServiceKey { namespace: "ns".into(), hostname: format!("{service}.example").into() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn octets(text: &str) -> Vec<u8> {
    match ip(text) {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn vip(network: &str, ip: &str, length: Option<u32>) -> wire::NetworkAddress {
    wire::NetworkAddress { network: network.to_owned(), address: octets(ip), length }
}

/// Service `ns/<name>.example` with port 80.
fn service(name: &str) -> wire::Service {
    wire::Service {
        name: name.to_owned(),
        namespace: "ns".to_owned(),
        hostname: format!("{name}.example"),
        ports: vec![wire::Port { service_port: 80, target_port: 0, app_protocol: 0 }],
        ..wire::Service::default()
    }
}

/// A workload that is an endpoint of these services on port 8080 for their port 80.
fn workload(uid: &str, address: &str, services: &[&str]) -> wire::Workload {
    let ports = wire::PortList { ports: vec![wire::Port { service_port: 80, target_port: 8080, app_protocol: 0 }] };
    wire::Workload {
        uid: uid.to_owned(),
        name: uid.to_owned(),
        namespace: "ns".to_owned(),
        addresses: vec![octets(address)],
        tunnel_protocol: wire::TunnelProtocol::Hbone as i32,
        services: services.iter().map(|name| (format!("ns/{name}.example"), ports.clone())).collect::<BTreeMap<_, _>>(),
        ..wire::Workload::default()
    }
}

fn response(contents: impl IntoIterator<Item = Type>) -> DeltaResponse {
    let resources = contents.into_iter().map(|content| {
        let name = match &content {
            Type::Workload(workload) => workload.uid.clone(),
            Type::Service(service) => format!("{}/{}", service.namespace, service.hostname),
        };
        let value = wire::Address { r#type: Some(content) }.encode_to_vec();
        Resource { name, version: "1".to_owned(), value }
    });
    DeltaResponse { type_url: ADDRESS_TYPE.to_owned(), resources: resources.collect(), removed: Vec::new() }
}

fn push(store: &Store, contents: impl IntoIterator<Item = Type>) {
    store.apply(&[response(contents)]).expect("readable");
}

fn remove(store: &Store, names: &[&str]) {
    let removed = names.iter().map(|name| (*name).to_owned()).collect();
    let response = DeltaResponse { type_url: ADDRESS_TYPE.to_owned(), resources: Vec::new(), removed };
    store.apply(&[response]).expect("a removal");
}

#[test]
fn the_fuzzed_entry_takes_what_control_planes_send() {
    let mut weighted = service("s");
    weighted.addresses = vec![vip("", "10.0.0.1", None), vip("", "10.1.0.0", Some(16)), vip("far", "::1", None)];
    for content in [Type::Service(weighted), Type::Workload(workload("w", "10.0.0.2", &["a", "b"]))] {
        super::fuzzing::address(&wire::Address { r#type: Some(content) }.encode_to_vec());
    }
    for bytes in [&[][..], &[0xff], &[10, 0], &[18, 0]] {
        super::fuzzing::address(bytes);
    }
}
