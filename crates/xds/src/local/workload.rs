//! Workloads.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Deserialize;

use super::{
    Problem,
    value::{Gateway, Ports, ip_bytes, ports},
};
use crate::workload::{
    self as wire, Address, ApplicationTunnel, NetworkMode, PortList, TunnelProtocol, UInt32Value, WorkloadStatus,
    WorkloadType, address, application_tunnel,
};

/// A workload as it is written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Workload {
    #[serde(default)]
    uid: String,
    #[serde(default)]
    name: String,
    namespace: String,
    #[serde(default)]
    trust_domain: String,
    #[serde(default)]
    service_account: String,
    workload_ips: Vec<String>,
    #[serde(default)]
    protocol: Protocol,
    #[serde(default)]
    network: String,
    #[serde(default)]
    network_mode: Mode,
    #[serde(default)]
    node: String,
    #[serde(default)]
    waypoint: Option<Gateway>,
    #[serde(default)]
    network_gateway: Option<Gateway>,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    native_tunnel: bool,
    #[serde(default)]
    application_tunnel: Option<Tunnel>,
    #[serde(default)]
    authorization_policies: Vec<String>,
    #[serde(default)]
    status: Status,
    #[serde(default)]
    cluster_id: String,
    #[serde(default)]
    locality: Option<Locality>,
    #[serde(default)]
    workload_name: String,
    #[serde(default)]
    workload_type: Kind,
    #[serde(default)]
    canonical_name: String,
    #[serde(default)]
    canonical_revision: String,
    #[serde(default)]
    capacity: Option<u32>,
    /// `namespace/hostname` of each service it belongs to.
    services: BTreeMap<String, Ports>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum Protocol {
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "HBONE")]
    Hbone,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum Mode {
    #[default]
    Standard,
    HostNetwork,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum Status {
    #[default]
    Healthy,
    Unhealthy,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    #[default]
    Deployment,
    Cronjob,
    Pod,
    Job,
}

#[derive(Debug, Deserialize)]
struct Tunnel {
    protocol: TunnelKind,
    #[serde(default)]
    port: Option<u16>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum TunnelKind {
    None,
    Proxy,
}

#[derive(Debug, Deserialize)]
struct Locality {
    #[serde(default)]
    region: String,
    #[serde(default)]
    zone: String,
    #[serde(default)]
    subzone: String,
}

// === impl Workload ===

impl Workload {
    /// Its resource name and message.
    pub(super) fn convert(&self) -> Result<(String, Address), Problem> {
        let gateway = |gateway: &Option<Gateway>, field: &str| {
            gateway.as_ref().map(|gateway| gateway.convert().map_err(|problem| problem.under(field))).transpose()
        };
        let uid = self.uid()?;
        let message = wire::Workload {
            uid: uid.clone(),
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            addresses: self.addresses()?,
            hostname: self.hostname.clone(),
            network: self.network.clone(),
            tunnel_protocol: match self.protocol {
                Protocol::Tcp => TunnelProtocol::None,
                Protocol::Hbone => TunnelProtocol::Hbone,
            } as i32,
            trust_domain: self.trust_domain.clone(),
            service_account: self.service_account.clone(),
            waypoint: gateway(&self.waypoint, "waypoint")?,
            node: self.node.clone(),
            canonical_name: self.canonical_name.clone(),
            canonical_revision: self.canonical_revision.clone(),
            workload_type: match self.workload_type {
                Kind::Deployment => WorkloadType::Deployment,
                Kind::Cronjob => WorkloadType::Cronjob,
                Kind::Pod => WorkloadType::Pod,
                Kind::Job => WorkloadType::Job,
            } as i32,
            workload_name: self.workload_name.clone(),
            native_tunnel: self.native_tunnel,
            authorization_policies: self.authorization_policies.clone(),
            status: match self.status {
                Status::Healthy => WorkloadStatus::Healthy,
                Status::Unhealthy => WorkloadStatus::Unhealthy,
            } as i32,
            cluster_id: self.cluster_id.clone(),
            network_gateway: gateway(&self.network_gateway, "networkGateway")?,
            services: self.memberships()?,
            application_tunnel: self.application_tunnel.as_ref().map(Tunnel::convert),
            locality: self.locality.as_ref().map(Locality::convert),
            network_mode: match self.network_mode {
                Mode::Standard => NetworkMode::Standard,
                Mode::HostNetwork => NetworkMode::HostNetwork,
            } as i32,
            extensions: Vec::new(),
            capacity: self.capacity.map(|value| UInt32Value { value }),
        };
        Ok((uid, Address { r#type: Some(address::Type::Workload(message)) }))
    }

    /// The uid that is written, or else that of a pod with this name.
    pub(super) fn uid(&self) -> Result<String, Problem> {
        if self.namespace.is_empty() {
            return Err(Problem::new("namespace", "it is empty", "every workload is in one"));
        }
        match (self.uid.as_str(), self.name.as_str()) {
            ("", "") => Err(Problem::new("uid", "neither a uid nor a name", "give it one of the two")),
            ("", name) => Ok(format!("{}//Pod/{}/{name}", self.cluster_id, self.namespace)),
            (uid, _) => Ok(uid.to_owned()),
        }
    }

    /// True if it says that it belongs to this service.
    pub(super) fn is_member(&self, service: &str) -> bool {
        self.services.contains_key(service)
    }

    fn addresses(&self) -> Result<Vec<Vec<u8>>, Problem> {
        let address = |(index, text): (usize, &String)| {
            let ip: IpAddr = text.parse().map_err(|_| {
                Problem::new(
                    format!("workloadIps[{index}]"),
                    format!("`{text}` is no address"),
                    "write it like `10.0.0.1`",
                )
            })?;
            Ok(ip_bytes(ip))
        };
        self.workload_ips.iter().enumerate().map(address).collect()
    }

    fn memberships(&self) -> Result<BTreeMap<String, PortList>, Problem> {
        let membership = |(service, list): (&String, &Ports)| {
            let field = format!("services[\"{service}\"]");
            if service.split_once('/').is_none_or(|(namespace, host)| namespace.is_empty() || host.is_empty()) {
                return Err(Problem::new(field, "it isn't `namespace/hostname`", "name the service by both"));
            }
            Ok((service.clone(), PortList { ports: ports(list, &field)? }))
        };
        self.services.iter().map(membership).collect()
    }
}

// === impl Tunnel ===

impl Tunnel {
    fn convert(&self) -> ApplicationTunnel {
        let protocol = match self.protocol {
            TunnelKind::None => application_tunnel::Protocol::None,
            TunnelKind::Proxy => application_tunnel::Protocol::Proxy,
        };
        ApplicationTunnel { protocol: protocol as i32, port: self.port.unwrap_or_default().into() }
    }
}

// === impl Locality ===

impl Locality {
    fn convert(&self) -> wire::Locality {
        wire::Locality { region: self.region.clone(), zone: self.zone.clone(), subzone: self.subzone.clone() }
    }
}
