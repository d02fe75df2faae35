//! From the users' objects to the resources that proxies are sent (`spec/control-plane.md` 4.3 to 4.5,
//! `spec/authorization.md` 2.7): pure, one function per resource.

use std::{collections::BTreeMap, hash::Hasher, net::IpAddr};

use ambit_api::GatewaySettings;
use ambit_api::{authorization_policy::Action as PolicyAction, mesh_config::Normalization};
use ambit_policy::ProviderKind;
use ambit_xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, MESH_TYPE, Resource, WAYPOINT_TYPE,
    mesh::{self, Mesh, Provider},
    security::{self, Authorization, POLICY_EXTENSION, POLICY_TYPE, Scope},
    waypoint::{self as wire_settings, BoundService, Bundle},
    workload::{
        self as wire, Address, Any, Extension, GatewayAddress, NamespacedHostname, NetworkAddress, PortList,
        TunnelProtocol, WAYPOINT_GUARD_EXTENSION, WAYPOINT_GUARD_TYPE, WaypointGuard, WorkloadStatus, WorkloadType,
        address, gateway_address::Destination,
    },
};
use prost::Message;

use crate::{
    attachment::{self, Attachment, EnforcementPoint, ServedKind},
    authentication, authorizers,
    binding::{self, Binding},
    destinations,
    inputs::{HBONE_PORT, Inputs, Labels, NamespacedName, Pod, Policy, Service, Settings, TargetPort},
    peer_authentication, retry_budgets, routes, tracing, traffic,
};

/// Label that puts pods into the mesh: on a Namespace or a pod.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// Value of [`DATAPLANE_MODE`] that puts pods in.
pub const AMBIENT: &str = "ambient";
/// Value of [`DATAPLANE_MODE`] that keeps a pod out.
pub const NOT_IN_MESH: &str = "none";
/// Trust domain and service account that the wire leaves out.
const ELIDED_TRUST_DOMAIN: &str = "cluster.local";
const ELIDED_SERVICE_ACCOUNT: &str = "default";

/// Resources by type URL and name.
pub type Resources = BTreeMap<(&'static str, String), Resource>;

/// Every resource of the mesh, from scratch.
#[must_use]
pub fn derive(inputs: &Inputs) -> Resources {
    let mut resources = Resources::new();
    let mut add = |kind, resource: Option<Resource>| {
        if let Some(resource) = resource {
            resources.insert((kind, resource.name.clone()), resource);
        }
    };
    add(MESH_TYPE, mesh(inputs));
    for (_, policy) in inputs.policies() {
        add(AUTHORIZATION_TYPE, authorization(inputs, policy));
    }
    for policy in peer_authentication::policies(inputs) {
        add(AUTHORIZATION_TYPE, Some(authorization_of(&Policy::new(policy), Scope::WorkloadSelector)));
    }
    for name in inputs.gateways.keys() {
        add(WAYPOINT_TYPE, bundle(inputs, name));
        add(ADDRESS_TYPE, waypoint_service(inputs, name));
    }
    for name in inputs.services.keys() {
        add(ADDRESS_TYPE, service(inputs, name));
    }
    for name in inputs.pods.keys() {
        add(ADDRESS_TYPE, workload(inputs, name));
    }
    resources
}

/// What holds for the whole mesh; nothing while everything has its default.
pub(crate) fn mesh(inputs: &Inputs) -> Option<Resource> {
    let settings = &inputs.settings;
    if settings.clone().with_config(None) == *settings {
        return None;
    }
    let Settings { trust_domain, trust_domain_aliases, root_namespace, path_normalization, providers, .. } = settings;
    let paths = match path_normalization {
        None => mesh::PathNormalization::AllReadings,
        Some(Normalization::None) => mesh::PathNormalization::None,
        Some(Normalization::Base) => mesh::PathNormalization::Base,
        Some(Normalization::MergeSlashes) => mesh::PathNormalization::MergeSlashes,
        Some(Normalization::DecodeAndMergeSlashes) => mesh::PathNormalization::DecodeAndMergeSlashes,
    };
    let provider =
        |(name, kind): (&String, &ProviderKind)| Provider { name: name.clone(), grpc: *kind == ProviderKind::Grpc };
    let message = Mesh {
        trust_domains: std::iter::once(trust_domain).chain(trust_domain_aliases).cloned().collect(),
        root_namespace: root_namespace.clone(),
        path_normalization: paths as i32,
        providers: providers.iter().map(provider).collect(),
        several_providers: settings.several_providers,
    };
    Some(resource(mesh::NAME.to_owned(), &message))
}

/// The L4 form of a policy: nothing for one with target references, which waypoints enforce, and for those that node
/// proxies leave out (findings say so). A rejected one is never left out.
pub(crate) fn authorization(inputs: &Inputs, policy: &Policy) -> Option<Resource> {
    let object = policy.get();
    let scope = match attachment::attachment(object, &inputs.settings.root_namespace) {
        Attachment::Targets(_) => return None,
        Attachment::Mesh => Scope::Global,
        Attachment::Namespace => Scope::Namespace,
        Attachment::Pods { .. } => Scope::WorkloadSelector,
    };
    is_on_the_wire(policy).then(|| authorization_of(policy, scope))
}

/// True if node proxies are told of a policy that is attached to pods.
fn is_on_the_wire(policy: &Policy) -> bool {
    policy.rejection().is_some() || attachment::left_out_by_node_proxies(policy.get()).is_none()
}

fn authorization_of(policy: &Policy, scope: Scope) -> Resource {
    let object = policy.get();
    // Ambit's node proxies read the policy itself, others the groups. What can't be enforced denies all it applies to.
    let (action, groups) = match security::groups(object) {
        Ok(groups) if policy.rejection().is_none() => match object.spec.action {
            PolicyAction::Allow => (security::Action::Allow, groups),
            PolicyAction::Deny | PolicyAction::Audit | PolicyAction::Custom => (security::Action::Deny, groups),
        },
        _ => (security::Action::Deny, security::deny_everything()),
    };
    let message = Authorization {
        name: object.name.clone(),
        namespace: object.namespace.clone(),
        scope: scope as i32,
        action: action as i32,
        groups,
        dry_run: false,
        extensions: vec![extension(POLICY_EXTENSION, POLICY_TYPE, &on_the_wire(policy))],
    };
    resource(format!("{}/{}", object.namespace, object.name), &message)
}

/// What the waypoint of this Gateway must know; nothing if it isn't one.
pub(crate) fn bundle(inputs: &Inputs, gateway: &NamespacedName) -> Option<Resource> {
    let object = inputs.gateways.get(gateway).filter(|object| object.is_waypoint())?;
    let (mut services, mut named) = (Vec::new(), Vec::new());
    let routes = routes::by_service(inputs);
    let hosts = destinations::Hosts::of(inputs, &gateway.namespace);
    for (name, service) in &inputs.services {
        let bound = binding::of_service(inputs, name, service)
            .is_some_and(|binding| binding.problem.is_none() && binding.request.gateway == *gateway);
        if bound && !is_shadowed(inputs, name) {
            let point = EnforcementPoint::Waypoint { gateway, service: name, kind: ServedKind::Service };
            let policies: Vec<_> = inputs.enforced_at(&point).into_iter().map(|(policy, _)| policy).collect();
            let attached = routes.get(name).map_or(&[][..], Vec::as_slice);
            services.push(BoundService {
                namespace: name.namespace.to_string(),
                hostname: inputs.hostname(name),
                policies: policies.iter().map(|policy| on_the_wire(policy)).collect(),
                authentications: authentication::enforced_at(inputs, &point),
                traffic_policies: traffic::enforced_at(inputs, &point),
                retry_budget: retry_budgets::of_service(inputs, name),
                routes: attached.iter().filter_map(|route| routes::attached(inputs, route, name, service)).collect(),
                destination: destinations::settings(inputs, &hosts, name, service),
            });
            named.extend(policies);
        }
    }
    let fronts_workloads = binding::fronts_workloads(object);
    let point = EnforcementPoint::WaypointWorkload { gateway };
    let policies = if fronts_workloads { inputs.enforced_at(&point) } else { Vec::new() };
    let authentications = if fronts_workloads { authentication::enforced_at(inputs, &point) } else { Vec::new() };
    let workload_traffic_policies = if fronts_workloads { traffic::enforced_at(inputs, &point) } else { Vec::new() };
    let providers = authorizers::named(inputs, named.into_iter().chain(policies.iter().map(|(policy, _)| *policy)));
    let message = Bundle {
        namespace: gateway.namespace.to_string(),
        name: gateway.name.to_string(),
        services,
        hostname: if fronts_workloads { inputs.hostname(gateway) } else { String::new() },
        workload_policies: policies.into_iter().map(|(policy, _)| on_the_wire(policy)).collect(),
        workload_authentications: authentications,
        providers,
        settings: settings(inputs, &object.settings),
        workload_traffic_policies,
    };
    Some(resource(gateway.to_string(), &message))
}

/// Nothing where all is as usual.
fn settings(inputs: &Inputs, settings: &GatewaySettings) -> Option<wire_settings::GatewaySettings> {
    let usual = GatewaySettings::default();
    let GatewaySettings { denial_status, denial_content_type, denial_message, client_identity } = settings;
    let denial = wire_settings::Denial {
        status: u32::from(*denial_status),
        content_type: denial_content_type.clone(),
        message: denial_message.clone(),
    };
    let denies_as_usual = GatewaySettings { client_identity: false, ..settings.clone() } == usual;
    let denial = (!denies_as_usual).then_some(denial);
    let tracing = tracing::settings(inputs);
    let client_identity = *client_identity;
    let is_usual = *settings == usual && tracing.is_none();
    (!is_usual).then_some(wire_settings::GatewaySettings { denial, client_identity, tracing })
}

fn on_the_wire(policy: &Policy) -> security::Policy {
    let object = policy.get();
    security::Policy {
        namespace: object.namespace.clone(),
        name: object.name.clone(),
        json: policy.json().to_vec(),
        rejection: policy.rejection().unwrap_or_default().to_owned(),
    }
}

/// A Gateway's own service; nothing if it isn't a waypoint.
pub(crate) fn waypoint_service(inputs: &Inputs, gateway: &NamespacedName) -> Option<Resource> {
    let object = inputs.gateways.get(gateway).filter(|object| object.is_waypoint())?;
    let port = wire::Port {
        service_port: HBONE_PORT.into(),
        target_port: HBONE_PORT.into(),
        app_protocol: wire::AppProtocol::Unknown as i32,
    };
    let message = wire::Service {
        name: gateway.name.to_string(),
        namespace: gateway.namespace.to_string(),
        hostname: inputs.hostname(gateway),
        addresses: object.vip.iter().map(network_address).collect(),
        ports: vec![port],
        canonical: true,
        ..wire::Service::default()
    };
    Some(address(address::Type::Service(message)))
}

/// True if a waypoint's own service has this name; the user's then isn't published.
pub(crate) fn is_shadowed(inputs: &Inputs, service: &NamespacedName) -> bool {
    inputs.gateways.get(service).is_some_and(crate::inputs::Gateway::is_waypoint)
}

/// A Service.
pub(crate) fn service(inputs: &Inputs, name: &NamespacedName) -> Option<Resource> {
    let object = inputs.services.get(name).filter(|_| !is_shadowed(inputs, name))?;
    let port = |port: &crate::inputs::ServicePort| wire::Port {
        service_port: port.port.into(),
        target_port: match port.target {
            TargetPort::Number(number) => number.into(),
            TargetPort::Name(_) => 0,
        },
        app_protocol: port.protocol as i32,
    };
    let message = wire::Service {
        name: name.name.to_string(),
        namespace: name.namespace.to_string(),
        hostname: inputs.hostname(name),
        addresses: object.vips.iter().map(network_address).collect(),
        ports: object.ports.iter().map(port).collect(),
        waypoint: binding::of_service(inputs, name, object).map(|binding| gateway_address(inputs, &binding)),
        canonical: true,
        ..wire::Service::default()
    };
    Some(address(address::Type::Service(message)))
}

fn gateway_address(inputs: &Inputs, binding: &Binding) -> GatewayAddress {
    GatewayAddress {
        destination: Some(Destination::Hostname(NamespacedHostname {
            namespace: binding.request.gateway.namespace.to_string(),
            hostname: binding.hostname(inputs),
        })),
        hbone_mtls_port: HBONE_PORT.into(),
    }
}

/// A pod, once it has an address.
pub(crate) fn workload(inputs: &Inputs, name: &NamespacedName) -> Option<Resource> {
    let pod = inputs.pods.get(name)?;
    let ip = pod.ip?;
    let waypoint = pod.waypoint.is_some();
    let hbone = waypoint || in_mesh(inputs, name, pod);
    let guard = guard(inputs, name, pod);
    let guard = (!guard.is_empty())
        .then(|| extension(WAYPOINT_GUARD_EXTENSION, WAYPOINT_GUARD_TYPE, &WaypointGuard { ports: guard }));
    let label = |keys: &[&str]| keys.iter().find_map(|key| pod.labels.get(*key)).cloned();
    let owner = pod.owner.clone().unwrap_or_else(|| name.name.to_string());
    let message = wire::Workload {
        uid: pod.uid.to_string(),
        name: name.name.to_string(),
        namespace: name.namespace.to_string(),
        addresses: vec![ip_bytes(ip)],
        tunnel_protocol: if hbone { TunnelProtocol::Hbone } else { TunnelProtocol::None } as i32,
        trust_domain: elided(&inputs.settings.trust_domain, ELIDED_TRUST_DOMAIN),
        service_account: elided(&pod.service_account, ELIDED_SERVICE_ACCOUNT),
        waypoint: binding::of_pod(inputs, name, pod).map(|binding| gateway_address(inputs, &binding)),
        node: pod.node.clone(),
        canonical_name: label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"])
            .unwrap_or_else(|| owner.clone()),
        canonical_revision: label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"])
            .unwrap_or_else(|| "latest".into()),
        workload_type: if pod.owner.is_some() { WorkloadType::Deployment } else { WorkloadType::Pod } as i32,
        workload_name: owner,
        native_tunnel: waypoint,
        authorization_policies: selector_policies(inputs, name, pod),
        status: if pod.ready { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy } as i32,
        services: memberships(inputs, name, pod),
        extensions: guard.into_iter().collect(),
        ..wire::Workload::default()
    };
    Some(address(address::Type::Workload(message)))
}

/// True if the node proxy captures this pod.
#[must_use]
pub fn in_mesh(inputs: &Inputs, name: &NamespacedName, pod: &Pod) -> bool {
    let by_labels = || captures(inputs.namespace_labels(&name.namespace), &pod.labels);
    !pod.host_network && pod.captured.unwrap_or_else(by_labels)
}

/// True if the node proxy captures pods with these labels in a namespace with those (`spec/control-plane.md` 5.1).
#[must_use]
pub fn captures(namespace: Option<&Labels>, pod: &Labels) -> bool {
    match pod.get(DATAPLANE_MODE).map(String::as_str) {
        Some(AMBIENT) => true,
        Some(NOT_IN_MESH) => false,
        _ => namespace.and_then(|labels| labels.get(DATAPLANE_MODE)).is_some_and(|mode| mode == AMBIENT),
    }
}

/// Names of the policies that select the pod, sorted. None for a waypoint: it isn't behind a node proxy.
fn selector_policies(inputs: &Inputs, name: &NamespacedName, pod: &Pod) -> Vec<String> {
    if pod.waypoint.is_some() {
        return Vec::new();
    }
    let point = EnforcementPoint::NodeProxy { namespace: &name.namespace, labels: &pod.labels };
    let enforced = inputs.enforced_at(&point).into_iter();
    let selecting = enforced.filter(|(policy, via)| *via == attachment::Via::Selector && is_on_the_wire(policy));
    let mut names: Vec<_> =
        selecting.map(|(policy, _)| format!("{}/{}", policy.get().namespace, policy.get().name)).collect();
    names.extend(peer_authentication::policy_name(inputs, &name.namespace, &pod.labels).map(|name| name.to_string()));
    names.sort();
    names
}

fn memberships(inputs: &Inputs, name: &NamespacedName, pod: &Pod) -> BTreeMap<String, PortList> {
    if let Some(gateway) = &pod.waypoint {
        let gateway = NamespacedName::new(&name.namespace, gateway);
        let port = wire::Port { service_port: HBONE_PORT.into(), target_port: HBONE_PORT.into(), app_protocol: 0 };
        let key = format!("{}/{}", gateway.namespace, inputs.hostname(&gateway));
        return BTreeMap::from([(key, PortList { ports: vec![port] })]);
    }
    let services = services_of(inputs, name, pod).filter(|(service, _)| !is_shadowed(inputs, service));
    let membership = |(service, object): (&NamespacedName, &Service)| {
        let ports = object.ports.iter().filter_map(|port| {
            let target = resolve(pod, &port.target)?;
            let app_protocol = port.protocol as i32;
            Some(wire::Port { service_port: port.port.into(), target_port: target.into(), app_protocol })
        });
        let key = format!("{}/{}", service.namespace, inputs.hostname(service));
        (key, PortList { ports: ports.collect() })
    };
    services.map(membership).collect()
}

/// The Services that select a pod.
pub(crate) fn services_of<'a>(
    inputs: &'a Inputs,
    name: &'a NamespacedName,
    pod: &'a Pod,
) -> impl Iterator<Item = (&'a NamespacedName, &'a Service)> {
    Inputs::in_namespace(&inputs.services, &name.namespace).filter(|(_, service)| service.selects(&pod.labels))
}

/// The pod's port that a service port leads to; nothing if no container port has the name.
#[must_use]
pub fn resolve(pod: &Pod, target: &TargetPort) -> Option<u16> {
    match target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => pod.named_ports.get(name).copied(),
    }
}

/// The pod's ports that only a waypoint may reach: the target ports of every Service that is bound to one. What can't
/// be told apart is guarded, and a waypoint that can't be had guards as well.
pub(crate) fn guard(inputs: &Inputs, name: &NamespacedName, pod: &Pod) -> Vec<wire::GuardedPort> {
    if pod.waypoint.is_some() {
        return Vec::new();
    }
    let mut guarded = Vec::new();
    let mut add = |target_port: u16, asked_by: &NamespacedName, binding: &Binding| {
        let entry = wire::GuardedPort {
            target_port: target_port.into(),
            service: asked_by.to_string(),
            waypoint_namespace: binding.request.gateway.namespace.to_string(),
            waypoint_name: binding.request.gateway.name.to_string(),
        };
        if !guarded.contains(&entry) {
            guarded.push(entry);
        }
    };
    for (service, object) in services_of(inputs, name, pod) {
        if binding::is_guard_off(inputs, &name.namespace, &object.labels) {
            continue;
        }
        if let Some(binding) = binding::of_service(inputs, service, object) {
            object.ports.iter().for_each(|port| add(resolve(pod, &port.target).unwrap_or(0), service, &binding));
        }
    }
    // A node proxy can't tell who called a service from who called the pod. So a pod with a waypoint of its own is reached
    // through that, through its services' waypoints, or not at all.
    let is_guarded = !binding::is_guard_off(inputs, &name.namespace, &pod.labels);
    if let Some(binding) = binding::of_pod(inputs, name, pod).filter(|_| is_guarded) {
        add(0, name, &binding);
    }
    guarded
}

fn address(content: address::Type) -> Resource {
    let name = match &content {
        address::Type::Workload(workload) => workload.uid.clone(),
        address::Type::Service(service) => format!("{}/{}", service.namespace, service.hostname),
    };
    resource(name, &Address { r#type: Some(content) })
}

fn resource(name: String, message: &impl Message) -> Resource {
    let value = message.encode_to_vec();
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(&value);
    Resource { name, version: format!("{:016x}", hasher.finish()), value }
}

fn extension(name: &str, type_url: &str, content: &impl Message) -> Extension {
    let config = Any { type_url: type_url.into(), value: content.encode_to_vec() };
    Extension { name: name.into(), config: Some(config) }
}

fn network_address(ip: &IpAddr) -> NetworkAddress {
    NetworkAddress { network: String::new(), address: ip_bytes(*ip), length: None }
}

fn ip_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn elided(value: &str, default: &str) -> String {
    if value == default { String::new() } else { value.to_owned() }
}
