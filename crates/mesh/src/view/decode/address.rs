//! Workloads and services, read from their wire messages (`spec/control-plane.md` 4.1).

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    sync::{Arc, LazyLock, OnceLock},
};

use ambit_api::SpiffeId;
use ambit_policy::Compiled;
use ambit_xds::workload::{
    self as wire, AppProtocol, IpFamilies, NetworkMode, TunnelProtocol, Visibility, WAYPOINT_GUARD_EXTENSION,
    WAYPOINT_GUARD_TYPE, WaypointGuard, WorkloadStatus, WorkloadType, address, application_tunnel,
    gateway_address::Destination, load_balancing,
};
use ipnet::IpNet;
use prost::Message;

use super::bounded;
use crate::view::{
    endpoints::MAX_PREFERENCES,
    model::{
        ApplicationTunnel, Balancing, Canonical, Families, Gateway, GatewayRef, GuardedPort, Locality, Mode,
        NetworkAddress, Scope, Service, ServiceKey, ServicePort, Workload,
    },
};

/// Trust domain, cluster and service account that the wire leaves out.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
const DEFAULT_CLUSTER: &str = "Kubernetes";
const DEFAULT_ACCOUNT: &str = "default";
/// Names that are kept even if nobody uses them; cleaning up for fewer isn't worth it.
const FEW_NAMES: usize = 1024;

/// An [`wire::Address`], read.
pub(in crate::view) enum Address {
    Workload(Box<WorkloadFacts>),
    Service(Box<Service>),
}

/// A workload, but for the policies in force for it.
#[derive(Clone, Debug)]
pub(in crate::view) struct WorkloadFacts {
    /// Denies everything as long as its policies haven't been looked up.
    pub(in crate::view) workload: Arc<Workload>,
    /// Selector policies it names, `namespace/name`.
    pub(in crate::view) policies: BTreeSet<Arc<str>>,
}

/// Texts that many resources have in common, kept once.
#[derive(Debug, Default)]
pub(in crate::view) struct Names {
    known: HashSet<Arc<str>>,
    clean_at: usize,
}

/// Reads an address resource of this name, for a proxy in this network.
pub(in crate::view) fn address(names: &mut Names, network: &str, name: &str, value: &[u8]) -> Result<Address, String> {
    let message = wire::Address::decode(value).map_err(|error| format!("not an address: {error}"))?;
    match message.r#type {
        Some(address::Type::Workload(message)) if message.uid == name => {
            workload(names, message).map(|facts| Address::Workload(Box::new(facts)))
        }
        Some(address::Type::Service(message)) if format!("{}/{}", message.namespace, message.hostname) == name => {
            service(names, network, message).map(|service| Address::Service(Box::new(service)))
        }
        Some(_) => Err("the resource's name isn't that of its content".into()),
        None => Err("neither a workload nor a service".into()),
    }
}

/// Reads a `namespace/hostname`.
pub(in crate::view) fn service_key(names: &mut Names, text: &str) -> Result<ServiceKey, String> {
    match text.split_once('/') {
        Some((namespace, hostname)) if !namespace.is_empty() && !hostname.is_empty() && !hostname.contains('/') => {
            Ok(ServiceKey { namespace: names.get(namespace), hostname: names.get(hostname) })
        }
        _ => Err(format!("`{text}` is not `namespace/hostname`")),
    }
}

fn workload(names: &mut Names, message: wire::Workload) -> Result<WorkloadFacts, String> {
    static NO_POLICIES_YET: LazyLock<Arc<Compiled>> =
        LazyLock::new(|| Arc::new(Compiled::deny_all("the workload's policies are not known yet")));
    bounded("addresses", message.addresses.len())?;
    bounded("services", message.services.len())?;
    bounded("authorization policies", message.authorization_policies.len())?;
    let trust_domain = or_default(&message.trust_domain, DEFAULT_TRUST_DOMAIN);
    let account = or_default(&message.service_account, DEFAULT_ACCOUNT);
    let identity = SpiffeId::new(trust_domain, &message.namespace, account).map_err(|error| error.to_string())?;
    let services = message.services.iter().map(|(key, ports)| Ok((service_key(names, key)?, port_map(ports)?)));
    let services = services.collect::<Result<BTreeMap<_, _>, String>>()?;
    let locality = message.locality.unwrap_or_default();
    let kind = WorkloadType::try_from(message.workload_type).unwrap_or(WorkloadType::Pod);
    let policies = message.authorization_policies.iter().map(|name| names.get(name)).collect();
    let workload = Workload {
        guard: guard(&message.extensions, trust_domain)?,
        addresses: message.addresses.iter().map(|bytes| ip(bytes)).collect::<Result<_, _>>()?,
        hostname: (!message.hostname.is_empty()).then(|| names.get(&message.hostname.to_ascii_lowercase())),
        network: names.get(&message.network),
        host_network: match NetworkMode::try_from(message.network_mode) {
            Ok(NetworkMode::Standard) => false,
            Ok(NetworkMode::HostNetwork) => true,
            Err(_) => return Err(format!("unknown network mode {}", message.network_mode)),
        },
        services,
        hbone: match TunnelProtocol::try_from(message.tunnel_protocol) {
            Ok(TunnelProtocol::Hbone) => true,
            Ok(TunnelProtocol::None) => false,
            Err(_) => return Err(format!("unknown tunnel protocol {}", message.tunnel_protocol)),
        },
        native_tunnel: message.native_tunnel,
        healthy: message.status == WorkloadStatus::Healthy as i32,
        capacity: message.capacity.map_or(1, |capacity| capacity.value),
        locality: Locality {
            region: names.get(&locality.region),
            zone: names.get(&locality.zone),
            subzone: names.get(&locality.subzone),
        },
        node: names.get(&message.node),
        cluster: names.get(or_default(&message.cluster_id, DEFAULT_CLUSTER)),
        canonical: Canonical {
            name: names.get(&message.canonical_name),
            revision: names.get(&message.canonical_revision),
            workload: names.get(&message.workload_name),
            kind,
        },
        waypoint: gateway(names, "waypoint", message.waypoint.as_ref())?,
        network_gateway: gateway(names, "network gateway", message.network_gateway.as_ref())?,
        application_tunnel: message.application_tunnel.as_ref().map(application_tunnel).transpose()?,
        rejected: None,
        full_name: OnceLock::new(),
        policies: Arc::clone(&NO_POLICIES_YET),
        load_key: Workload::load_key_of(&message.uid),
        uid: message.uid.into(),
        name: message.name.into(),
        namespace: names.get(&message.namespace),
        identity,
    };
    Ok(WorkloadFacts { workload: Arc::new(workload), policies })
}

fn service(names: &mut Names, network: &str, message: wire::Service) -> Result<Service, String> {
    bounded("addresses", message.addresses.len())?;
    bounded("ports", message.ports.len())?;
    bounded("waypoints", message.weighted_waypoints.len())?;
    bounded("identities", message.subject_alt_names.len())?;
    let mut service = Service {
        key: service_key(names, &format!("{}/{}", message.namespace, message.hostname))?,
        name: message.name.as_str().into(),
        vips: Vec::new(),
        remote_vips: Vec::new(),
        ranges: Vec::new(),
        ports: message.ports.iter().map(service_port).collect::<Result<_, _>>()?,
        waypoint: gateway(names, "waypoint", message.waypoint.as_ref())?,
        weighted_waypoints: Vec::new(),
        identities: identities(&message),
        balancing: message.load_balancing.as_ref().map(balancing).transpose()?.unwrap_or_default(),
        families: match IpFamilies::try_from(message.ip_families) {
            Ok(IpFamilies::Ipv4Only) => Families::V4,
            Ok(IpFamilies::Ipv6Only) => Families::V6,
            Ok(IpFamilies::Automatic | IpFamilies::Dual) => Families::Any,
            Err(_) => return Err(format!("unknown address families {}", message.ip_families)),
        },
        canonical: message.canonical,
        // Who may look a name up isn't a matter of security, and Istio reads what it doesn't know as public.
        private: message.visibility == Visibility::Namespace as i32,
        rejected: None,
        full_name: OnceLock::new(),
    };
    for entry in &message.addresses {
        let ip = ip(&entry.address)?;
        match entry.length {
            Some(length) if !is_single(ip, length) => {
                let range = u8::try_from(length).ok().and_then(|length| IpNet::new(ip, length).ok());
                let range = range.ok_or_else(|| format!("{ip}/{length} is not a range of addresses"))?;
                service.ranges.push((names.get(&entry.network), range.trunc()));
            }
            _ if entry.network == network => service.vips.push(ip),
            _ => service.remote_vips.push(NetworkAddress { network: names.get(&entry.network), ip }),
        }
    }
    for weighted in &message.weighted_waypoints {
        let waypoint = gateway(names, "weighted waypoint", weighted.destination.as_ref())?;
        let waypoint = waypoint.ok_or("one of its weighted waypoints has no destination")?;
        service.weighted_waypoints.push((waypoint, weighted.weight));
    }
    Ok(service)
}

/// Identities that can't be read are left out: fewer servers are believed then.
fn identities(message: &wire::Service) -> Vec<SpiffeId> {
    let read = |text: &String| match text.parse() {
        Ok(identity) => Some(identity),
        Err(error) => {
            tracing::warn!(service = message.hostname, san = text, %error, "left out an identity of a service");
            None
        }
    };
    message.subject_alt_names.iter().filter_map(read).collect()
}

fn service_port(entry: &wire::Port) -> Result<(u16, ServicePort), String> {
    let protocol = AppProtocol::try_from(entry.app_protocol).unwrap_or(AppProtocol::Unknown);
    let target = if entry.target_port == 0 { None } else { Some(port(entry.target_port)?) };
    Ok((port(entry.service_port)?, ServicePort { protocol, target }))
}

fn balancing(message: &wire::LoadBalancing) -> Result<Balancing, String> {
    let mut preferences = Vec::new();
    for scope in &message.routing_preference {
        match Scope::try_from(*scope) {
            Ok(Scope::Unspecified) | Err(_) => return Err(format!("unknown load balancing scope {scope}")),
            // Matching it twice says nothing new.
            Ok(scope) if preferences.contains(&scope) => {}
            Ok(scope) => preferences.push(scope),
        }
    }
    debug_assert!(preferences.len() <= MAX_PREFERENCES, "there are only so many scopes");
    let mode = Mode::try_from(message.mode).map_err(|_| format!("unknown load balancing mode {}", message.mode))?;
    let unhealthy_too = match load_balancing::HealthPolicy::try_from(message.health_policy) {
        Ok(load_balancing::HealthPolicy::OnlyHealthy) => false,
        Ok(load_balancing::HealthPolicy::AllowAll) => true,
        Err(_) => return Err(format!("unknown health policy {}", message.health_policy)),
    };
    // Without a meaning, they would only cost.
    let ranked = matches!(mode, Mode::Strict | Mode::Failover);
    Ok(Balancing { preferences: if ranked { preferences } else { Vec::new() }, mode, unhealthy_too })
}

fn gateway(
    names: &mut Names,
    what: &str,
    address: Option<&wire::GatewayAddress>,
) -> Result<Option<GatewayRef>, String> {
    let Some(address) = address else { return Ok(None) };
    let destination = match &address.destination {
        Some(Destination::Hostname(name)) => {
            Gateway::Service(ServiceKey { namespace: names.get(&name.namespace), hostname: names.get(&name.hostname) })
        }
        Some(Destination::Address(address)) => {
            Gateway::Address(NetworkAddress { network: names.get(&address.network), ip: ip(&address.address)? })
        }
        None => return Err(format!("its {what} has no destination")),
    };
    let hbone_port = port(address.hbone_mtls_port).map_err(|error| format!("HBONE port of its {what}: {error}"))?;
    Ok(Some(GatewayRef { destination, hbone_port }))
}

fn application_tunnel(message: &wire::ApplicationTunnel) -> Result<ApplicationTunnel, String> {
    let proxy = match application_tunnel::Protocol::try_from(message.protocol) {
        Ok(application_tunnel::Protocol::None) => false,
        Ok(application_tunnel::Protocol::Proxy) => true,
        Err(_) => return Err(format!("unknown application tunnel protocol {}", message.protocol)),
    };
    let port = if message.port == 0 { None } else { Some(port(message.port)?) };
    Ok(ApplicationTunnel { proxy, port })
}

fn guard(extensions: &[wire::Extension], trust_domain: &str) -> Result<Vec<GuardedPort>, String> {
    let mut guarded = Vec::new();
    for extension in extensions.iter().filter(|extension| extension.name == WAYPOINT_GUARD_EXTENSION) {
        let guard = match &extension.config {
            Some(any) if any.type_url == WAYPOINT_GUARD_TYPE => WaypointGuard::decode(any.value.as_slice()).ok(),
            _ => None,
        };
        let guard = guard.ok_or("its waypoint guard can't be read")?;
        bounded("guarded ports", guard.ports.len())?;
        for entry in guard.ports {
            let identity = SpiffeId::new(trust_domain, &entry.waypoint_namespace, &entry.waypoint_name);
            guarded.push(GuardedPort {
                port: if entry.target_port == 0 { None } else { Some(port(entry.target_port)?) },
                service: entry.service.into(),
                waypoint: format!("{}/{}", entry.waypoint_namespace, entry.waypoint_name).into(),
                identity: identity.map_err(|error| format!("its waypoint guard: {error}"))?,
            });
        }
    }
    Ok(guarded)
}

/// A target port of 0 is none of its own: the service's counts then.
fn port_map(list: &wire::PortList) -> Result<BTreeMap<u16, u16>, String> {
    bounded("ports", list.ports.len())?;
    let named = list.ports.iter().filter(|entry| entry.target_port != 0);
    named.map(|entry| Ok((port(entry.service_port)?, port(entry.target_port)?))).collect()
}

fn port(number: u32) -> Result<u16, String> {
    u16::try_from(number).ok().filter(|port| *port != 0).ok_or_else(|| format!("{number} is not a port"))
}

fn ip(bytes: &[u8]) -> Result<IpAddr, String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        Ok(IpAddr::from(v4))
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        Ok(IpAddr::from(v6).to_canonical())
    } else {
        Err(format!("an address of {} bytes", bytes.len()))
    }
}

fn is_single(ip: IpAddr, length: u32) -> bool {
    length == if ip.is_ipv4() { 32 } else { 128 }
}

fn or_default<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

// === impl Names ===

impl Names {
    pub(in crate::view) fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(name) = self.known.get(text) {
            return Arc::clone(name);
        }
        let name: Arc<str> = text.into();
        self.known.insert(Arc::clone(&name));
        name
    }

    /// Forgets what nobody uses any more, now and then.
    pub(in crate::view) fn clean(&mut self) {
        if self.known.len() > self.clean_at.max(FEW_NAMES) {
            self.known.retain(|name| Arc::strong_count(name) > 1);
            self.clean_at = 2 * self.known.len();
        }
    }
}
