//! From wire messages to the view's types. Nothing here trusts its input.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ambit_api::{AuthorizationPolicy, SpiffeId};
use ambit_policy::{Options, PathNormalization, ProviderKind};
use ambit_xds::{
    mesh::{Mesh, PathNormalization as WirePaths},
    security::{Authorization, POLICY_EXTENSION, POLICY_TYPE, Policy, Scope},
    workload::{
        self as wire, AppProtocol, TunnelProtocol, WAYPOINT_GUARD_EXTENSION, WAYPOINT_GUARD_TYPE, WaypointGuard,
        WorkloadStatus, address, gateway_address::Destination,
    },
};
use prost::Message;

use super::{GuardedPort, Service, ServiceKey, ServicePort, WaypointRef};

/// Addresses, ports, memberships or guards one resource may list.
pub(super) const MAX_LIST_ENTRIES: usize = 4096;
/// Trust domain that the wire leaves out.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// An [`wire::Address`], read.
pub(super) enum Address {
    Workload(WorkloadFacts),
    Service(Service),
}

/// All of a workload but its compiled policies.
#[derive(Clone, Debug)]
pub(super) struct WorkloadFacts {
    pub(super) uid: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) namespace: Arc<str>,
    pub(super) identity: SpiffeId,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) hbone: bool,
    pub(super) native_tunnel: bool,
    pub(super) healthy: bool,
    pub(super) services: BTreeMap<ServiceKey, BTreeMap<u16, u16>>,
    pub(super) guard: Vec<GuardedPort>,
    /// Selector policies it names, `namespace/name`.
    pub(super) policies: BTreeSet<Arc<str>>,
}

/// Reads an address resource of this name.
pub(super) fn address(name: &str, value: &[u8]) -> Result<Address, String> {
    let message = wire::Address::decode(value).map_err(|error| format!("not an address: {error}"))?;
    match message.r#type {
        Some(address::Type::Workload(workload)) if workload.uid == name => {
            self::workload(workload).map(Address::Workload)
        }
        Some(address::Type::Service(service)) if format!("{}/{}", service.namespace, service.hostname) == name => {
            self::service(service).map(Address::Service)
        }
        Some(_) => Err("the resource's name isn't that of its content".into()),
        None => Err("neither a workload nor a service".into()),
    }
}

fn workload(message: wire::Workload) -> Result<WorkloadFacts, String> {
    bounded("addresses", message.addresses.len())?;
    bounded("services", message.services.len())?;
    bounded("authorization policies", message.authorization_policies.len())?;
    let trust_domain = or_default(&message.trust_domain, DEFAULT_TRUST_DOMAIN);
    let account = or_default(&message.service_account, "default");
    let identity = SpiffeId::new(trust_domain, &message.namespace, account).map_err(|error| error.to_string())?;
    let services = message.services.iter().map(|(key, ports)| Ok((service_key(key)?, port_map(ports)?)));
    Ok(WorkloadFacts {
        guard: guard(&message.extensions, trust_domain)?,
        addresses: message.addresses.iter().map(|bytes| ip(bytes)).collect::<Result<_, _>>()?,
        services: services.collect::<Result<_, String>>()?,
        hbone: match TunnelProtocol::try_from(message.tunnel_protocol) {
            Ok(TunnelProtocol::Hbone) => true,
            Ok(TunnelProtocol::None) => false,
            Err(_) => return Err(format!("unknown tunnel protocol {}", message.tunnel_protocol)),
        },
        native_tunnel: message.native_tunnel,
        healthy: message.status == WorkloadStatus::Healthy as i32,
        policies: message.authorization_policies.iter().map(|name| Arc::from(name.as_str())).collect(),
        uid: message.uid.into(),
        name: message.name.into(),
        namespace: message.namespace.into(),
        identity,
    })
}

fn service(message: wire::Service) -> Result<Service, String> {
    bounded("addresses", message.addresses.len())?;
    bounded("ports", message.ports.len())?;
    let mut ports = BTreeMap::new();
    for entry in &message.ports {
        let protocol = AppProtocol::try_from(entry.app_protocol).unwrap_or(AppProtocol::Unknown);
        ports.insert(port(entry.service_port)?, ServicePort { protocol });
    }
    Ok(Service {
        vips: message.addresses.iter().map(|address| ip(&address.address)).collect::<Result<_, _>>()?,
        waypoint: message.waypoint.as_ref().map(waypoint_ref).transpose()?,
        key: ServiceKey { namespace: message.namespace.into(), hostname: message.hostname.into() },
        name: message.name.into(),
        ports,
    })
}

fn waypoint_ref(address: &wire::GatewayAddress) -> Result<WaypointRef, String> {
    match &address.destination {
        Some(Destination::Hostname(name)) => Ok(WaypointRef {
            service: ServiceKey { namespace: name.namespace.as_str().into(), hostname: name.hostname.as_str().into() },
            hbone_port: port(address.hbone_mtls_port)?,
        }),
        _ => Err("its waypoint isn't named by hostname".into()),
    }
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

fn port_map(list: &wire::PortList) -> Result<BTreeMap<u16, u16>, String> {
    bounded("ports", list.ports.len())?;
    list.ports.iter().map(|entry| Ok((port(entry.service_port)?, port(entry.target_port)?))).collect()
}

pub(super) fn service_key(text: &str) -> Result<ServiceKey, String> {
    match text.split_once('/') {
        Some((namespace, hostname)) if !namespace.is_empty() && !hostname.is_empty() => {
            Ok(ServiceKey { namespace: namespace.into(), hostname: hostname.into() })
        }
        _ => Err(format!("`{text}` is not `namespace/hostname`")),
    }
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

fn bounded(what: &str, length: usize) -> Result<(), String> {
    if length <= MAX_LIST_ENTRIES {
        Ok(())
    } else {
        Err(format!("{length} {what}, at most {MAX_LIST_ENTRIES} are read"))
    }
}

fn or_default<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

/// Reads what holds for the whole mesh.
pub(super) fn mesh(value: &[u8]) -> Option<(Options, PathNormalization)> {
    let message = Mesh::decode(value).ok().filter(|message| !message.trust_domains.is_empty())?;
    let paths = match WirePaths::try_from(message.path_normalization).ok()? {
        WirePaths::AllReadings => PathNormalization::AllReadings,
        WirePaths::None => PathNormalization::None,
        WirePaths::Base => PathNormalization::Base,
        WirePaths::MergeSlashes => PathNormalization::MergeSlashes,
        WirePaths::DecodeAndMergeSlashes => PathNormalization::DecodeAndMergeSlashes,
    };
    let several_providers = message.several_providers;
    let kind = |grpc: bool| if grpc { ProviderKind::Grpc } else { ProviderKind::Http };
    let options = Options {
        trust_domains: message.trust_domains,
        root_namespace: message.root_namespace,
        providers: message.providers.into_iter().map(|provider| (provider.name, kind(provider.grpc))).collect(),
        several_providers,
    };
    Some((options, paths))
}

/// An [`Authorization`], read as far as it could be.
pub(super) struct AuthorizationFacts {
    /// What it applies to; nothing if even that can't be read.
    pub(super) scope: Option<Scope>,
    pub(super) dry_run: bool,
    pub(super) policy: Result<AuthorizationPolicy, String>,
}

/// Reads an authorization resource of this name.
pub(super) fn authorization(name: &str, value: &[u8]) -> AuthorizationFacts {
    let message = match Authorization::decode(value) {
        Ok(message) => message,
        Err(error) => {
            let policy = Err(format!("not an authorization: {error}"));
            return AuthorizationFacts { scope: None, dry_run: false, policy };
        }
    };
    let scope = Scope::try_from(message.scope).ok();
    let policy = match scope {
        None => Err(format!("unknown scope {}", message.scope)),
        Some(_) if format!("{}/{}", message.namespace, message.name) != name => {
            Err("the resource's name isn't that of its content".into())
        }
        Some(_) => message
            .extensions
            .iter()
            .find(|extension| extension.name == POLICY_EXTENSION)
            .ok_or_else(|| format!("it doesn't carry the policy itself (extension `{POLICY_EXTENSION}`)"))
            .and_then(policy_extension)
            .and_then(|policy| self::policy(&policy))
            .and_then(|policy| named(policy, &message.namespace, &message.name)),
    };
    AuthorizationFacts { scope, dry_run: message.dry_run, policy }
}

fn policy_extension(extension: &wire::Extension) -> Result<Policy, String> {
    match &extension.config {
        Some(any) if any.type_url == POLICY_TYPE => {
            Policy::decode(any.value.as_slice()).map_err(|error| format!("its policy can't be read: {error}"))
        }
        _ => Err(format!("its extension isn't a `{POLICY_TYPE}`")),
    }
}

fn named(policy: AuthorizationPolicy, namespace: &str, name: &str) -> Result<AuthorizationPolicy, String> {
    if policy.namespace == namespace && policy.name == name {
        Ok(policy)
    } else {
        Err(format!("it carries another policy, `{}/{}`", policy.namespace, policy.name))
    }
}

/// Reads a policy as the user wrote it.
pub(super) fn policy(message: &Policy) -> Result<AuthorizationPolicy, String> {
    if !message.rejection.is_empty() {
        return Err(message.rejection.clone());
    }
    let policy = serde_json::from_slice(&message.json).map_err(|error| format!("it can't be read: {error}"))?;
    named(policy, &message.namespace, &message.name)
}
