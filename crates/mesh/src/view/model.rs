//! Workloads and services as proxies see them.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{Arc, LazyLock, OnceLock},
};

use ambit_api::SpiffeId;
use ambit_policy::Compiled;
use ambit_xds::workload::AppProtocol;
pub use ambit_xds::workload::{
    WorkloadType,
    load_balancing::{Mode, Scope},
};
use ipnet::IpNet;

/// `namespace` and fully qualified `hostname` of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Fully qualified name.
    pub hostname: Arc<str>,
}

/// An address and the network that it means something in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// Network; empty for the mesh's only one.
    pub network: Arc<str>,
    /// The address.
    pub ip: IpAddr,
}

/// A pod or other endpoint (`spec/ztunnel.md` 9.1).
#[derive(Clone, Debug)]
pub struct Workload {
    /// Primary key, `<cluster>//Pod/<ns>/<name>` for a pod.
    pub uid: Arc<str>,
    /// Stands for the uid where load is counted: its hash, worked out once, with a key that nobody outside knows.
    pub load_key: u32,
    /// Pod name.
    pub name: Arc<str>,
    /// Pod namespace.
    pub namespace: Arc<str>,
    /// Who it is.
    pub identity: SpiffeId,
    /// Its addresses, most preferred first.
    pub addresses: Vec<IpAddr>,
    /// Name that leads to it when it has no addresses.
    pub hostname: Option<Arc<str>>,
    /// Network that its addresses belong to.
    pub network: Arc<str>,
    /// Its addresses are its node's, so nothing is looked up by them.
    pub host_network: bool,
    /// It is reached through HBONE (otherwise by plain TCP).
    pub hbone: bool,
    /// It terminates HBONE itself (a waypoint).
    pub native_tunnel: bool,
    /// It gets new connections.
    pub healthy: bool,
    /// Its share of a service's connections, relative to the other endpoints. With 0 it gets none.
    pub capacity: u32,
    /// Where it runs.
    pub locality: Locality,
    /// Node name.
    pub node: Arc<str>,
    /// Cluster.
    pub cluster: Arc<str>,
    /// What telemetry calls it.
    pub canonical: Canonical,
    /// Services it belongs to: service port to container port.
    pub services: BTreeMap<ServiceKey, BTreeMap<u16, u16>>,
    /// The waypoint for connections to its own addresses.
    pub waypoint: Option<WaypointRef>,
    /// How it is reached from another network.
    pub network_gateway: Option<GatewayRef>,
    /// How its node proxy hands connections to it.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Ports that only a waypoint may reach.
    pub guard: Vec<GuardedPort>,
    /// Why its configuration couldn't be read; nobody connects to it then.
    pub rejected: Option<Arc<str>>,
    /// The L4 policies in force for it. Denies everything when one of them is not known or not readable.
    ///
    /// Workloads with the same policies share it: it changes identity only when what it says may have changed.
    pub policies: Arc<Compiled>,
    /// See [`Self::full_name`].
    pub(super) full_name: OnceLock<Arc<str>>,
}

/// Where a workload runs. What isn't known is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    /// Region.
    pub region: Arc<str>,
    /// Zone.
    pub zone: Arc<str>,
    /// Subzone.
    pub subzone: Arc<str>,
}

/// What telemetry calls a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canonical {
    /// Canonical service name.
    pub name: Arc<str>,
    /// Canonical revision.
    pub revision: Arc<str>,
    /// Name of the owner (a Deployment's, for example).
    pub workload: Arc<str>,
    /// Kind of the owner.
    pub kind: WorkloadType,
}

/// How a node proxy hands connections to a workload that doesn't take them as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApplicationTunnel {
    /// A PROXY v2 header comes first.
    pub proxy: bool,
    /// The port that takes them all; nothing for the connection's own.
    pub port: Option<u16>,
}

/// A port that only one waypoint may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardedPort {
    /// Container port; nothing guards every port.
    pub port: Option<u16>,
    /// `namespace/name` of the Service that asks for it.
    pub service: Arc<str>,
    /// `namespace/name` of the waypoint's Gateway.
    pub waypoint: Arc<str>,
    /// The waypoint's identity.
    pub identity: SpiffeId,
}

/// A service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its key.
    pub key: ServiceKey,
    /// Object name.
    pub name: Arc<str>,
    /// Virtual addresses in the proxy's own network; none for a headless service.
    pub vips: Vec<IpAddr>,
    /// Virtual addresses in other networks.
    pub remote_vips: Vec<NetworkAddress>,
    /// Ranges of virtual addresses, with their networks.
    pub ranges: Vec<(Arc<str>, IpNet)>,
    /// Its ports by service port.
    pub ports: BTreeMap<u16, ServicePort>,
    /// The waypoint that must be used to reach it.
    pub waypoint: Option<WaypointRef>,
    /// Waypoints that share its connections by weight; see [`Service::waypoint_for`].
    pub weighted_waypoints: Vec<(WaypointRef, u32)>,
    /// Identities that its endpoints may have besides their own.
    pub identities: Vec<SpiffeId>,
    /// How endpoints are chosen.
    pub balancing: Balancing,
    /// Address families that clients get.
    pub families: Families,
    /// It wins its hostname across namespaces.
    pub canonical: bool,
    /// Only its own namespace knows it.
    pub private: bool,
    /// Why its configuration couldn't be read; nobody connects to it then.
    pub rejected: Option<Arc<str>>,
    /// See [`Self::full_name`].
    pub(super) full_name: OnceLock<Arc<str>>,
}

/// A port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// What is spoken on it.
    pub protocol: AppProtocol,
    /// Port of those endpoints that name none themselves.
    pub target: Option<u16>,
}

/// How the endpoints of a service are chosen (`spec/ztunnel.md` 6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balancing {
    /// What an endpoint should have in common with the client, most important first.
    pub preferences: Vec<Scope>,
    /// What the preferences mean.
    pub mode: Mode,
    /// Unhealthy endpoints count too.
    pub unhealthy_too: bool,
}

/// Address families.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Families {
    /// Both.
    #[default]
    Any,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// How a service or workload names its waypoint, or a workload its network's gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayRef {
    /// Who it is. It may be unknown: then connections fail, they never go direct.
    pub destination: Gateway,
    /// Its HBONE port.
    pub hbone_port: u16,
}

/// A waypoint, as services and workloads name it.
pub type WaypointRef = GatewayRef;

/// What a [`GatewayRef`] leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gateway {
    /// The endpoints of a service, or a workload by its hostname.
    Service(ServiceKey),
    /// A workload, or a service, by its address.
    Address(NetworkAddress),
}

// === impl Workload ===

impl Workload {
    /// The [load key](Self::load_key) of a uid.
    pub(super) fn load_key_of(uid: &str) -> u32 {
        static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        // The low half is as random as the whole.
        HASHER.hash_one(uid) as u32
    }

    /// `namespace/name`, one text for all connections that say it.
    #[must_use]
    pub fn full_name(&self) -> Arc<str> {
        Arc::clone(self.full_name.get_or_init(|| format!("{}/{}", self.namespace, self.name).into()))
    }

    /// What the workload is, in one scope.
    #[must_use]
    pub fn scope(&self, scope: Scope) -> &Arc<str> {
        match scope {
            Scope::Region => &self.locality.region,
            Scope::Zone => &self.locality.zone,
            Scope::Subzone => &self.locality.subzone,
            Scope::Node => &self.node,
            Scope::Cluster => &self.cluster,
            Scope::Network | Scope::Unspecified => &self.network,
        }
    }

    /// The container port behind a service port: its own, else the service's, else its application tunnel's.
    #[must_use]
    pub fn target_port(&self, service: &Service, port: u16) -> Option<u16> {
        let own = self.services.get(&service.key).and_then(|ports| ports.get(&port)).copied();
        let tunnel = || self.application_tunnel.and_then(|tunnel| tunnel.port).map(|_| port);
        own.or_else(|| service.ports.get(&port)?.target).or_else(tunnel)
    }

    /// The address that a client of this one uses: the same if it is one of the workload's, else the first that the
    /// families admit, of the client's own family if there is one.
    #[must_use]
    pub fn address_for(&self, asked: IpAddr, families: Families) -> Option<IpAddr> {
        if self.addresses.contains(&asked) {
            return Some(asked);
        }
        let admitted = || self.addresses.iter().filter(|ip| families.admit(**ip));
        admitted().find(|ip| ip.is_ipv4() == asked.is_ipv4()).or_else(|| admitted().next()).copied()
    }

    /// It is a pod of a cluster, so its addresses are its own and nobody else's.
    #[must_use]
    pub fn is_pod(&self) -> bool {
        self.uid.contains("//Pod/")
    }
}

// === impl Service ===

impl Service {
    /// `namespace/name`, one text for all connections that say it.
    #[must_use]
    pub fn full_name(&self) -> Arc<str> {
        Arc::clone(self.full_name.get_or_init(|| format!("{}/{}", self.key.namespace, self.name).into()))
    }

    /// The waypoint for one connection: drawn by weight, else the one that is named alone. The same `random` draws
    /// the same waypoint.
    #[must_use]
    pub fn waypoint_for(&self, random: u64) -> Option<&WaypointRef> {
        let total: u64 = self.weighted_waypoints.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut drawn = crate::view::ranking::below(random, total);
        let mut weighted = self.weighted_waypoints.iter();
        let share = weighted.find(|(_, weight)| {
            let hit = drawn < u64::from(*weight);
            drawn = drawn.saturating_sub(u64::from(*weight));
            hit
        });
        share.map(|(waypoint, _)| waypoint).or(self.waypoint.as_ref())
    }

    /// Every waypoint that connections to it may use.
    pub fn waypoints(&self) -> impl Iterator<Item = &WaypointRef> {
        self.weighted_waypoints.iter().map(|(waypoint, _)| waypoint).chain(&self.waypoint)
    }

    /// True if clients of this namespace know it.
    #[must_use]
    pub fn is_visible_to(&self, namespace: &str) -> bool {
        !self.private || *self.key.namespace == *namespace
    }
}

// === impl Families ===

impl Families {
    /// True if this address belongs to them.
    #[must_use]
    pub fn admit(self, ip: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::V4 => ip.is_ipv4(),
            Self::V6 => ip.is_ipv6(),
        }
    }
}

// === impl Balancing ===

impl Default for Balancing {
    fn default() -> Self {
        Self { preferences: Vec::new(), mode: Mode::Unspecified, unhealthy_too: false }
    }
}
