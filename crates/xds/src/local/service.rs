//! Services.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    Problem,
    value::{Gateway, Ports, cidr_vip, ports, vip},
    workload::Workload,
};
use crate::workload::{self as wire, Address, NetworkAddress, address, load_balancing};

/// A service as it is written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Service {
    name: String,
    namespace: String,
    hostname: String,
    #[serde(default)]
    vips: Vec<String>,
    #[serde(default)]
    cidr_vips: Vec<String>,
    ports: Ports,
    #[serde(default)]
    subject_alt_names: Vec<String>,
    #[serde(default)]
    waypoint: Option<Gateway>,
    #[serde(default)]
    weighted_waypoints: Vec<Weighted>,
    #[serde(default)]
    load_balancer: Option<LoadBalancer>,
    #[serde(default)]
    ip_families: Option<Families>,
    #[serde(default)]
    canonical: bool,
    #[serde(default)]
    visibility: Visibility,
    /// What a dump of ztunnel's state adds. Endpoints are made from the workloads' `services`.
    #[serde(default)]
    endpoints: BTreeMap<String, Endpoint>,
}

#[derive(Debug, Deserialize)]
struct Weighted {
    destination: Gateway,
    weight: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LoadBalancer {
    #[serde(default)]
    routing_preferences: Vec<Scope>,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    health_policy: Health,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Scope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum Mode {
    #[default]
    Standard,
    Strict,
    Failover,
    Passthrough,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum Health {
    #[default]
    OnlyHealthy,
    AllowAll,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Families {
    Dual,
    IPv4,
    IPv6,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum Visibility {
    #[default]
    Public,
    Namespace,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    workload_uid: String,
    #[serde(default, rename = "port")]
    _port: serde::de::IgnoredAny,
    #[serde(default, rename = "status")]
    _status: serde::de::IgnoredAny,
}

// === impl Service ===

impl Service {
    /// Its resource name and message.
    pub(super) fn convert(&self, workloads: &[Workload]) -> Result<(String, Address), Problem> {
        for (field, text) in [("name", &self.name), ("namespace", &self.namespace), ("hostname", &self.hostname)] {
            if text.is_empty() {
                return Err(Problem::new(field, "it is empty", "every service has one"));
            }
        }
        let key = format!("{}/{}", self.namespace, self.hostname);
        self.check_endpoints(&key, workloads)?;
        let message = wire::Service {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            hostname: self.hostname.clone(),
            addresses: self.addresses()?,
            ports: ports(&self.ports, "ports")?,
            subject_alt_names: self.subject_alt_names.clone(),
            waypoint: match &self.waypoint {
                Some(waypoint) => Some(waypoint.convert().map_err(|problem| problem.under("waypoint"))?),
                None => None,
            },
            load_balancing: self.load_balancer.as_ref().map(LoadBalancer::convert),
            ip_families: match self.ip_families {
                None => wire::IpFamilies::Automatic,
                Some(Families::Dual) => wire::IpFamilies::Dual,
                Some(Families::IPv4) => wire::IpFamilies::Ipv4Only,
                Some(Families::IPv6) => wire::IpFamilies::Ipv6Only,
            } as i32,
            canonical: self.canonical,
            weighted_waypoints: self.weighted()?,
            visibility: match self.visibility {
                Visibility::Public => wire::Visibility::Public,
                Visibility::Namespace => wire::Visibility::Namespace,
            } as i32,
            ..wire::Service::default()
        };
        Ok((key, Address { r#type: Some(address::Type::Service(message)) }))
    }

    fn addresses(&self) -> Result<Vec<NetworkAddress>, Problem> {
        let read = |field, texts: &[String], read: fn(&str) -> Option<NetworkAddress>, help| {
            let texts = texts.iter().enumerate();
            let address = texts.map(|(index, text)| {
                let wrong = || Problem::new(format!("{field}[{index}]"), format!("`{text}` is no address here"), help);
                read(text).ok_or_else(wrong)
            });
            address.collect::<Result<Vec<_>, _>>()
        };
        let mut addresses = read("vips", &self.vips, vip, "write `network/ip`, like `/10.96.0.1`")?;
        addresses.extend(read(
            "cidrVips",
            &self.cidr_vips,
            cidr_vip,
            "write `network/ip/length`, like `/10.96.0.0/16`",
        )?);
        Ok(addresses)
    }

    fn weighted(&self) -> Result<Vec<wire::WeightedWaypoint>, Problem> {
        let weighted = |(index, Weighted { destination, weight }): (usize, &Weighted)| {
            let field = format!("weightedWaypoints[{index}].destination");
            let destination = destination.convert().map_err(|problem| problem.under(&field))?;
            Ok(wire::WeightedWaypoint { destination: Some(destination), weight: *weight })
        };
        self.weighted_waypoints.iter().enumerate().map(weighted).collect()
    }

    /// An endpoint that no workload makes would be missing without a word.
    fn check_endpoints(&self, key: &str, workloads: &[Workload]) -> Result<(), Problem> {
        let made = |endpoint: &Endpoint| {
            let uid = |workload: &&Workload| workload.uid().is_ok_and(|uid| uid == endpoint.workload_uid);
            workloads.iter().find(uid).is_some_and(|workload| workload.is_member(key))
        };
        match self.endpoints.iter().find(|(_, endpoint)| !made(endpoint)) {
            None => Ok(()),
            Some((name, _)) => {
                let message = format!("no workload of this file says that it belongs to `{key}` and has that uid");
                Err(Problem::new(
                    format!("endpoints[\"{name}\"]"),
                    message,
                    "put the service into its `services` instead",
                ))
            }
        }
    }
}

// === impl LoadBalancer ===

impl LoadBalancer {
    fn convert(&self) -> wire::LoadBalancing {
        let scope = |scope: &Scope| match scope {
            Scope::Region => load_balancing::Scope::Region as i32,
            Scope::Zone => load_balancing::Scope::Zone as i32,
            Scope::Subzone => load_balancing::Scope::Subzone as i32,
            Scope::Node => load_balancing::Scope::Node as i32,
            Scope::Cluster => load_balancing::Scope::Cluster as i32,
            Scope::Network => load_balancing::Scope::Network as i32,
        };
        wire::LoadBalancing {
            routing_preference: self.routing_preferences.iter().map(scope).collect(),
            mode: match self.mode {
                Mode::Standard => load_balancing::Mode::Unspecified,
                Mode::Strict => load_balancing::Mode::Strict,
                Mode::Failover => load_balancing::Mode::Failover,
                Mode::Passthrough => load_balancing::Mode::Passthrough,
            } as i32,
            health_policy: match self.health_policy {
                Health::OnlyHealthy => load_balancing::HealthPolicy::OnlyHealthy,
                Health::AllowAll => load_balancing::HealthPolicy::AllowAll,
            } as i32,
        }
    }
}
