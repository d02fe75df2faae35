//! `/config_dump` in ztunnel's shape, which `istioctl ztunnel-config` reads.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ambit_identity::CertificateRecord;
use ambit_mesh::{
    View,
    view::{Families, Gateway, GatewayRef, Mode, Scope, Service, ServiceKey, Workload, WorkloadType},
};
use serde::Serialize;
use serde_json::Value;

use super::{connections::WorkloadState, policies::PolicyDump};
use crate::Ztunnel;

/// What a dump shows besides the proxy's own state.
#[derive(Clone, Debug, Default)]
pub struct DumpFacts {
    /// Every setting, by its name in camel case. Nothing secret belongs here.
    pub config: Value,
    /// What the local configuration file says: `workloads`, `services` and `policies`.
    pub static_config: Option<Value>,
    /// Which program this is.
    pub version: Version,
    /// Pods that wait for a proxy, by uid.
    pub pending: BTreeMap<Arc<str>, WorkloadState>,
}

/// Which program this is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    /// Of the program.
    pub version: String,
    /// Of its sources.
    pub git_revision: String,
    /// Of the compiler.
    pub rust_version: String,
    /// `debug` or `release`
    pub build_profile: String,
    /// `Clean` or `Modified`
    pub build_status: String,
    /// Of the mesh, as its installer says.
    pub istio_version: String,
    /// What TLS computes with.
    pub crypto_provider: String,
}

/// Writes the dump as indented JSON. May take long in a large mesh: not for a thread that carries traffic.
///
/// # Errors
/// When a value can't be written; the message says which kind.
pub fn config_dump(proxy: &Ztunnel, facts: &DumpFacts) -> Result<Vec<u8>, String> {
    let view = proxy.shared.store.load();
    let policies = proxy.shared.store.named_policies();
    let named = |workload: &Workload| policies.get(&workload.uid).map_or(&[][..], Vec::as_slice);
    let mut workloads: Vec<_> = view.workloads().map(|workload| WorkloadDump::new(workload, named(workload))).collect();
    workloads.sort_by(|a, b| a.uid.cmp(b.uid));
    let mut services: Vec<_> = view.services().map(|service| ServiceDump::new(&view, service)).collect();
    services.sort_by(|a, b| (a.namespace, a.hostname).cmp(&(b.namespace, b.hostname)));
    let mut workload_state = facts.pending.clone();
    workload_state.extend(proxy.workload_states());
    let empty = serde_json::json!({"workloads": [], "services": [], "policies": []});
    let dump = Dump {
        workloads,
        services,
        policies: proxy.shared.store.policies().into_iter().map(PolicyDump::from).collect(),
        staged_services: BTreeMap::new(),
        static_config: facts.static_config.as_ref().unwrap_or(&empty),
        version: &facts.version,
        config: &facts.config,
        certificates: proxy.shared.certificates.list(),
        workload_state,
    };
    serde_json::to_vec_pretty(&dump).map_err(|error| error.to_string())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dump<'a> {
    workloads: Vec<WorkloadDump<'a>>,
    services: Vec<ServiceDump<'a>>,
    policies: Vec<PolicyDump>,
    /// Endpoints whose service hasn't come: they are kept elsewhere here, so there are none.
    staged_services: BTreeMap<String, Value>,
    static_config: &'a Value,
    version: &'a Version,
    config: &'a Value,
    certificates: Vec<CertificateRecord>,
    workload_state: BTreeMap<Arc<str>, WorkloadState>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WorkloadDump<'a> {
    workload_ips: &'a [IpAddr],
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<GatewayDump>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network_gateway: Option<GatewayDump>,
    protocol: &'static str,
    network_mode: &'static str,
    uid: &'a str,
    name: &'a str,
    namespace: &'a str,
    trust_domain: &'a str,
    service_account: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    network: &'a str,
    workload_name: &'a str,
    workload_type: &'static str,
    canonical_name: &'a str,
    canonical_revision: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    hostname: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    node: &'a str,
    native_tunnel: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_tunnel: Option<TunnelDump>,
    authorization_policies: &'a [Arc<str>],
    status: &'static str,
    cluster_id: &'a str,
    locality: LocalityDump<'a>,
    services: Vec<String>,
    capacity: u32,
}

#[derive(Serialize)]
struct LocalityDump<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    region: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    zone: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    subzone: &'a str,
}

#[derive(Serialize)]
struct TunnelDump {
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GatewayDump {
    destination: String,
    hbone_mtls_port: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceDump<'a> {
    name: &'a str,
    namespace: &'a str,
    hostname: &'a str,
    vips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cidr_vips: Vec<String>,
    /// Port of the service to that of the container, 0 where each endpoint has its own.
    ports: BTreeMap<u16, u16>,
    endpoints: BTreeMap<&'a str, EndpointDump<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subject_alt_names: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<GatewayDump>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    weighted_waypoints: Vec<WeightedDump>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_balancer: Option<BalancerDump>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_families: Option<&'static str>,
    canonical: bool,
    visibility: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointDump<'a> {
    workload_uid: &'a str,
    service: String,
    port: &'a BTreeMap<u16, u16>,
    status: &'static str,
}

#[derive(Serialize)]
struct WeightedDump {
    destination: GatewayDump,
    weight: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BalancerDump {
    routing_preferences: Vec<&'static str>,
    mode: &'static str,
    health_policy: &'static str,
}

// === impl WorkloadDump ===

impl<'a> WorkloadDump<'a> {
    fn new(workload: &'a Workload, authorization_policies: &'a [Arc<str>]) -> Self {
        Self {
            workload_ips: &workload.addresses,
            waypoint: workload.waypoint.as_ref().map(GatewayDump::new),
            network_gateway: workload.network_gateway.as_ref().map(GatewayDump::new),
            protocol: if workload.hbone { "HBONE" } else { "TCP" },
            network_mode: if workload.host_network { "HostNetwork" } else { "Standard" },
            uid: &workload.uid,
            name: &workload.name,
            namespace: &workload.namespace,
            trust_domain: workload.identity.trust_domain(),
            service_account: workload.identity.service_account(),
            network: &workload.network,
            workload_name: &workload.canonical.workload,
            workload_type: match workload.canonical.kind {
                WorkloadType::Deployment => "deployment",
                WorkloadType::Cronjob => "cronjob",
                WorkloadType::Pod => "pod",
                WorkloadType::Job => "job",
            },
            canonical_name: &workload.canonical.name,
            canonical_revision: &workload.canonical.revision,
            hostname: workload.hostname.as_deref().unwrap_or_default(),
            node: &workload.node,
            native_tunnel: workload.native_tunnel,
            application_tunnel: workload
                .application_tunnel
                .map(|tunnel| TunnelDump { protocol: if tunnel.proxy { "PROXY" } else { "NONE" }, port: tunnel.port }),
            authorization_policies,
            status: status(workload),
            cluster_id: &workload.cluster,
            locality: LocalityDump {
                region: &workload.locality.region,
                zone: &workload.locality.zone,
                subzone: &workload.locality.subzone,
            },
            services: workload.services.keys().map(named).collect(),
            capacity: workload.capacity,
        }
    }
}

// === impl ServiceDump ===

impl<'a> ServiceDump<'a> {
    fn new(view: &'a View, service: &'a Service) -> Self {
        let own = service.vips.iter().map(|ip| format!("{}/{ip}", view.network()));
        let remote = service.remote_vips.iter().map(|address| format!("{}/{}", address.network, address.ip));
        let endpoint = |workload: &'a Arc<Workload>| {
            let port = workload.services.get(&service.key)?;
            let service = named(&service.key);
            let dump = EndpointDump { workload_uid: &workload.uid, service, port, status: status(workload) };
            Some((&*workload.uid, dump))
        };
        let weighted = service.weighted_waypoints.iter();
        Self {
            name: &service.name,
            namespace: &service.key.namespace,
            hostname: &service.key.hostname,
            vips: own.chain(remote).collect(),
            cidr_vips: service.ranges.iter().map(|(network, range)| format!("{network}/{range}")).collect(),
            ports: service.ports.iter().map(|(port, facts)| (*port, facts.target.unwrap_or(0))).collect(),
            endpoints: view.endpoints(&service.key).iter().filter_map(endpoint).collect(),
            subject_alt_names: service.identities.iter().map(ToString::to_string).collect(),
            waypoint: service.waypoint.as_ref().map(GatewayDump::new),
            weighted_waypoints: weighted
                .map(|(waypoint, weight)| WeightedDump { destination: GatewayDump::new(waypoint), weight: *weight })
                .collect(),
            load_balancer: BalancerDump::new(service),
            ip_families: match service.families {
                Families::Any => None,
                Families::V4 => Some("IPv4"),
                Families::V6 => Some("IPv6"),
            },
            canonical: service.canonical,
            visibility: if service.private { "Namespace" } else { "Public" },
        }
    }
}

// === impl BalancerDump ===

impl BalancerDump {
    /// Nothing where any healthy endpoint will do.
    fn new(service: &Service) -> Option<Self> {
        let balancing = &service.balancing;
        let mode = match balancing.mode {
            Mode::Unspecified => "Standard",
            Mode::Strict => "Strict",
            Mode::Failover => "Failover",
            Mode::Passthrough => "Passthrough",
        };
        let scope = |scope: &Scope| match scope {
            Scope::Unspecified => "Unspecified",
            Scope::Region => "Region",
            Scope::Zone => "Zone",
            Scope::Subzone => "Subzone",
            Scope::Node => "Node",
            Scope::Cluster => "Cluster",
            Scope::Network => "Network",
        };
        let is_plain = balancing.mode == Mode::Unspecified && !balancing.unhealthy_too;
        (!is_plain || !balancing.preferences.is_empty()).then(|| Self {
            routing_preferences: balancing.preferences.iter().map(scope).collect(),
            mode,
            health_policy: if balancing.unhealthy_too { "AllowAll" } else { "OnlyHealthy" },
        })
    }
}

// === impl GatewayDump ===

impl GatewayDump {
    fn new(gateway: &GatewayRef) -> Self {
        let destination = match &gateway.destination {
            Gateway::Service(key) => named(key),
            Gateway::Address(address) => format!("{}/{}", address.network, address.ip),
        };
        Self { destination, hbone_mtls_port: gateway.hbone_port }
    }
}

fn named(key: &ServiceKey) -> String {
    format!("{}/{}", key.namespace, key.hostname)
}

fn status(workload: &Workload) -> &'static str {
    if workload.healthy { "Healthy" } else { "Unhealthy" }
}
