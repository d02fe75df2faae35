//! Values that workloads, services and policies share.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::Deserialize;

use super::Problem;
use crate::workload::{
    AppProtocol, GatewayAddress, NamespacedHostname, NetworkAddress, Port, gateway_address::Destination,
};

/// A waypoint or network gateway.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Gateway {
    /// `network/ip` or `namespace/hostname`.
    destination: String,
    hbone_mtls_port: u16,
}

/// Service port to target port. Keys are numbers, which YAML and JSON both give as text.
pub(super) type Ports = BTreeMap<String, u16>;

const PORTS_HELP: &str = "write `80: 8080`, the service's port and the workload's";

// === impl Gateway ===

impl Gateway {
    pub(super) fn convert(&self) -> Result<GatewayAddress, Problem> {
        let help = "write `network/ip` or `namespace/hostname`";
        let wrong = |message: String| Problem::new("destination", message, help);
        let Some((left, right)) = self.destination.split_once('/') else {
            return Err(wrong(format!("`{}` has no `/`", self.destination)));
        };
        let destination = match right.parse::<IpAddr>() {
            Ok(ip) => Destination::Address(network_address(left, ip, None)),
            Err(_) if left.is_empty() || right.is_empty() || right.contains('/') => {
                return Err(wrong(format!("`{}` is neither an address nor a name", self.destination)));
            }
            Err(_) => Destination::Hostname(NamespacedHostname { namespace: left.into(), hostname: right.into() }),
        };
        if self.hbone_mtls_port == 0 {
            return Err(Problem::new("hboneMtlsPort", "0 is no port", "usually it is 15008"));
        }
        Ok(GatewayAddress { destination: Some(destination), hbone_mtls_port: self.hbone_mtls_port.into() })
    }
}

pub(super) fn ports(ports: &Ports, field: &str) -> Result<Vec<Port>, Problem> {
    let port = |(service, target): (&String, &u16)| {
        let service_port: u16 = service
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| Problem::new(field, format!("`{service}` is no port"), PORTS_HELP))?;
        let app_protocol = AppProtocol::Unknown as i32;
        Ok(Port { service_port: service_port.into(), target_port: (*target).into(), app_protocol })
    };
    ports.iter().map(port).collect()
}

/// `network/ip`; the network may be empty.
pub(super) fn vip(text: &str) -> Option<NetworkAddress> {
    let (network, ip) = text.split_once('/')?;
    Some(network_address(network, ip.parse().ok()?, None))
}

/// `network/ip/length`.
pub(super) fn cidr_vip(text: &str) -> Option<NetworkAddress> {
    let (network, block) = text.split_once('/')?;
    let block: IpNet = block.parse().ok()?;
    Some(network_address(network, block.addr(), Some(block.prefix_len())))
}

fn network_address(network: &str, ip: IpAddr, length: Option<u8>) -> NetworkAddress {
    NetworkAddress { network: network.to_owned(), address: ip_bytes(ip), length: length.map(Into::into) }
}

pub(super) fn ip_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
