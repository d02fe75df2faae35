//! The store of addresses, told of few of them again and again.

use ambit_mesh::view::fuzzing;
use ambit_xds::workload::{
    Address, GatewayAddress, LoadBalancing, Locality, NamespacedHostname, NetworkAddress, NetworkMode, Port, PortList,
    Service, UInt32Value, Workload, WorkloadStatus, address::Type, gateway_address::Destination,
};
use arbitrary::{Result, Unstructured};
use prost::Message as _;

use crate::list;

const MAX_RESPONSES: usize = 6;
const MAX_CHANGES: usize = 4;
const UIDS: &[&str] = &["a", "b", "c", "d", "ns/web"];
const HOSTNAMES: &[&str] = &["web", "db", "Web", ""];
const NAMESPACES: &[&str] = &["ns", "other"];
const NETWORKS: &[&str] = &["", "", "", "far"];
const PLACES: &[&str] = &["", "x", "y"];

/// Addresses that collide, also with ranges of others.
const IPS: &[&[u8]] =
    &[&[10, 0, 0, 1], &[10, 0, 0, 2], &[10, 0, 1, 0], &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], &[1, 2]];

/// Script of responses.
pub(super) fn changes(bytes: &[u8]) {
    let Ok(responses) = responses(&mut Unstructured::new(bytes)) else { return };
    fuzzing::changes(responses);
}

type Change = (String, Option<Vec<u8>>);

fn responses(u: &mut Unstructured<'_>) -> Result<Vec<Vec<Change>>> {
    let change = |u: &mut Unstructured<'_>| {
        let (name, content) = address(u)?;
        Ok((name, if u.ratio(1, 4)? { None } else { Some(content) }))
    };
    list(u, MAX_RESPONSES, |u| {
        let mut changes = list(u, MAX_CHANGES, change)?;
        // A response says one thing of a name.
        changes.sort();
        changes.dedup_by(|one, other| one.0 == other.0);
        Ok(changes)
    })
}

/// A resource: its name, and its content, now and then one that can't be read.
pub(super) fn address(u: &mut Unstructured<'_>) -> Result<(String, Vec<u8>)> {
    let content = if u.arbitrary()? { Type::Workload(workload(u)?) } else { Type::Service(service(u)?) };
    let name = match &content {
        Type::Workload(workload) => workload.uid.clone(),
        Type::Service(service) => format!("{}/{}", service.namespace, service.hostname),
    };
    let content = if u.ratio(1, 32)? { vec![0xff] } else { Address { r#type: Some(content) }.encode_to_vec() };
    Ok((name, content))
}

fn workload(u: &mut Unstructured<'_>) -> Result<Workload> {
    let joined = |u: &mut Unstructured<'_>| Ok((service_name(u)?, PortList { ports: list(u, 2, port)? }));
    let locality = Locality { region: text(u, PLACES)?, zone: text(u, PLACES)?, subzone: text(u, PLACES)? };
    Ok(Workload {
        uid: text(u, UIDS)?,
        name: text(u, UIDS)?,
        namespace: text(u, NAMESPACES)?,
        addresses: list(u, 2, ip)?,
        hostname: if u.ratio(1, 4)? { text(u, HOSTNAMES)? } else { String::new() },
        network: text(u, NETWORKS)?,
        tunnel_protocol: u.int_in_range(0..=1)?,
        node: text(u, PLACES)?,
        cluster_id: text(u, PLACES)?,
        locality: Some(locality),
        status: if u.ratio(1, 4)? { WorkloadStatus::Unhealthy as i32 } else { 0 },
        network_mode: if u.ratio(1, 8)? { NetworkMode::HostNetwork as i32 } else { 0 },
        services: list(u, 3, joined)?.into_iter().collect(),
        capacity: if u.ratio(1, 4)? { Some(UInt32Value { value: u.int_in_range(0..=3)? }) } else { None },
        waypoint: gateway(u)?,
        authorization_policies: if u.ratio(1, 8)? { vec!["ns/p".to_owned()] } else { Vec::new() },
        ..Workload::default()
    })
}

fn service(u: &mut Unstructured<'_>) -> Result<Service> {
    let vip = |u: &mut Unstructured<'_>| {
        let length = if u.ratio(1, 4)? { Some(u.int_in_range(0..=33)?) } else { None };
        Ok(NetworkAddress { network: text(u, NETWORKS)?, address: ip(u)?, length })
    };
    let balancing = LoadBalancing {
        routing_preference: list(u, 3, |u| u.int_in_range(1..=6))?,
        mode: u.int_in_range(0..=3)?,
        health_policy: u.int_in_range(0..=1)?,
    };
    Ok(Service {
        name: text(u, HOSTNAMES)?,
        namespace: text(u, NAMESPACES)?,
        hostname: text(u, HOSTNAMES)?,
        addresses: list(u, 3, vip)?,
        ports: list(u, 3, port)?,
        waypoint: gateway(u)?,
        load_balancing: if u.ratio(2, 3)? { Some(balancing) } else { None },
        ip_families: u.int_in_range(0..=3)?,
        canonical: u.arbitrary()?,
        visibility: u.int_in_range(0..=1)?,
        ..Service::default()
    })
}

fn gateway(u: &mut Unstructured<'_>) -> Result<Option<GatewayAddress>> {
    if !u.ratio(1, 8)? {
        return Ok(None);
    }
    let name = NamespacedHostname { namespace: text(u, NAMESPACES)?, hostname: text(u, HOSTNAMES)? };
    Ok(Some(GatewayAddress { destination: Some(Destination::Hostname(name)), hbone_mtls_port: 15008 }))
}

fn port(u: &mut Unstructured<'_>) -> Result<Port> {
    let service_port = *u.choose(&[80, 80, 80, 443, 443, 0, 70_000])?;
    Ok(Port { service_port, target_port: *u.choose(&[8080, 0, 443])?, app_protocol: 0 })
}

fn service_name(u: &mut Unstructured<'_>) -> Result<String> {
    Ok(format!("{}/{}", text(u, NAMESPACES)?, text(u, &HOSTNAMES[..3])?))
}

fn ip(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    // The last one is none.
    let sound = if u.ratio(1, 32)? { IPS.len() } else { IPS.len() - 1 };
    u.choose(&IPS[..sound]).map(|ip| ip.to_vec())
}

fn text(u: &mut Unstructured<'_>, pool: &[&str]) -> Result<String> {
    u.choose(pool).map(|text| (*text).to_owned())
}
