//! Package `istio.workload` (`spec/control-plane.md` 4.1), field numbers as on Istio's wire.

use std::collections::BTreeMap;

/// The unit of workload discovery.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Address {
    /// A workload or a service.
    #[prost(oneof = "address::Type", tags = "1, 2")]
    pub r#type: Option<address::Type>,
}

/// Parts of [`Address`].
pub mod address {
    /// What an address is.
    #[expect(clippy::large_enum_variant, reason = "most are workloads, and it lives only while it is read or written")]
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Type {
        /// A pod or another endpoint.
        #[prost(message, tag = "1")]
        Workload(super::Workload),
        /// A named set of endpoints.
        #[prost(message, tag = "2")]
        Service(super::Service),
    }
}

/// A service. Its resource name is `namespace/hostname`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Service {
    /// Object name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Object namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Fully qualified name.
    #[prost(string, tag = "3")]
    pub hostname: String,
    /// Virtual addresses.
    #[prost(message, repeated, tag = "4")]
    pub addresses: Vec<NetworkAddress>,
    /// Service ports with their numeric target ports (0 if named).
    #[prost(message, repeated, tag = "5")]
    pub ports: Vec<Port>,
    /// Identities its endpoints may present, besides their own.
    #[prost(string, repeated, tag = "6")]
    pub subject_alt_names: Vec<String>,
    /// The waypoint that fronts it.
    #[prost(message, optional, tag = "7")]
    pub waypoint: Option<GatewayAddress>,
    /// How endpoints are chosen; absent, any healthy one will do.
    #[prost(message, optional, tag = "8")]
    pub load_balancing: Option<LoadBalancing>,
    /// Which address families DNS answers with.
    #[prost(enumeration = "IpFamilies", tag = "9")]
    pub ip_families: i32,
    /// Named extensions.
    #[prost(message, repeated, tag = "10")]
    pub extensions: Vec<Extension>,
    /// The winner for its hostname across namespaces.
    #[prost(bool, tag = "11")]
    pub canonical: bool,
    /// Ingress gateways pass its waypoint too.
    #[prost(bool, tag = "12")]
    pub ingress_use_waypoint: bool,
    /// How connections are split over several waypoints (a canary); empty, or all weights 0: `waypoint` alone.
    #[prost(message, repeated, tag = "13")]
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// Who may resolve it. Unknown values are read as [`Visibility::Public`].
    #[prost(enumeration = "Visibility", tag = "14")]
    pub visibility: i32,
}

/// How the endpoints of a service are chosen.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LoadBalancing {
    /// Scopes in order of preference.
    #[prost(enumeration = "load_balancing::Scope", repeated, tag = "1")]
    pub routing_preference: Vec<i32>,
    /// What the scopes mean.
    #[prost(enumeration = "load_balancing::Mode", tag = "2")]
    pub mode: i32,
    /// Which endpoints count.
    #[prost(enumeration = "load_balancing::HealthPolicy", tag = "3")]
    pub health_policy: i32,
}

/// Parts of [`LoadBalancing`].
pub mod load_balancing {
    /// What an endpoint has in common with the client.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub enum Scope {
        /// Nothing said.
        Unspecified = 0,
        /// The region.
        Region = 1,
        /// The zone.
        Zone = 2,
        /// The subzone.
        Subzone = 3,
        /// The node.
        Node = 4,
        /// The cluster.
        Cluster = 5,
        /// The network.
        Network = 6,
    }

    /// What the scopes mean.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub enum Mode {
        /// Nothing: any endpoint will do.
        Unspecified = 0,
        /// Endpoints must match every scope.
        Strict = 1,
        /// Endpoints are ranked by how many leading scopes they match.
        Failover = 2,
        /// The original destination is kept.
        Passthrough = 3,
    }

    /// Which endpoints count.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub enum HealthPolicy {
        /// Healthy ones.
        OnlyHealthy = 0,
        /// All.
        AllowAll = 1,
    }
}

/// Which address families DNS answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum IpFamilies {
    /// Those of its addresses.
    Automatic = 0,
    /// A records only.
    Ipv4Only = 1,
    /// AAAA records only.
    Ipv6Only = 2,
    /// Both.
    Dual = 3,
}

/// Who may resolve a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Visibility {
    /// Everyone.
    Public = 0,
    /// Its own namespace.
    Namespace = 1,
}

/// A waypoint with its share of connections.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WeightedWaypoint {
    /// The waypoint.
    #[prost(message, optional, tag = "1")]
    pub destination: Option<GatewayAddress>,
    /// Its share, of the sum of all.
    #[prost(uint32, tag = "2")]
    pub weight: u32,
}

/// A workload. Its resource name is its `uid`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Workload {
    /// Primary key, `<cluster>//Pod/<ns>/<name>` for a pod.
    #[prost(string, tag = "20")]
    pub uid: String,
    /// Pod name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Pod namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Its addresses, 4 or 16 bytes each.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub addresses: Vec<Vec<u8>>,
    /// Name that clients resolve when it has no addresses.
    #[prost(string, tag = "21")]
    pub hostname: String,
    /// Network name, empty for the single network.
    #[prost(string, tag = "4")]
    pub network: String,
    /// How to reach it.
    #[prost(enumeration = "TunnelProtocol", tag = "5")]
    pub tunnel_protocol: i32,
    /// Trust domain, empty for `cluster.local`.
    #[prost(string, tag = "6")]
    pub trust_domain: String,
    /// Service account, empty for `default`.
    #[prost(string, tag = "7")]
    pub service_account: String,
    /// The waypoint for traffic addressed to the workload itself.
    #[prost(message, optional, tag = "8")]
    pub waypoint: Option<GatewayAddress>,
    /// Node name.
    #[prost(string, tag = "9")]
    pub node: String,
    /// Canonical name for telemetry.
    #[prost(string, tag = "10")]
    pub canonical_name: String,
    /// Canonical revision for telemetry.
    #[prost(string, tag = "11")]
    pub canonical_revision: String,
    /// Kind of owner.
    #[prost(enumeration = "WorkloadType", tag = "12")]
    pub workload_type: i32,
    /// Name of the owner.
    #[prost(string, tag = "13")]
    pub workload_name: String,
    /// It speaks HBONE itself; the node proxy must not terminate for it.
    #[prost(bool, tag = "14")]
    pub native_tunnel: bool,
    /// Selector-scoped policies that apply, `namespace/name`.
    #[prost(string, repeated, tag = "16")]
    pub authorization_policies: Vec<String>,
    /// Health.
    #[prost(enumeration = "WorkloadStatus", tag = "17")]
    pub status: i32,
    /// Cluster, empty for `Kubernetes`.
    #[prost(string, tag = "18")]
    pub cluster_id: String,
    /// How to reach it from another network.
    #[prost(message, optional, tag = "19")]
    pub network_gateway: Option<GatewayAddress>,
    /// Membership: `namespace/hostname` of a service to the resolved ports.
    #[prost(btree_map = "string, message", tag = "22")]
    pub services: BTreeMap<String, PortList>,
    /// How the node proxy hands connections to it, if not as plain TCP.
    #[prost(message, optional, tag = "23")]
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Where it runs.
    #[prost(message, optional, tag = "24")]
    pub locality: Option<Locality>,
    /// Whose network it uses.
    #[prost(enumeration = "NetworkMode", tag = "25")]
    pub network_mode: i32,
    /// Named extensions.
    #[prost(message, repeated, tag = "26")]
    pub extensions: Vec<Extension>,
    /// Weight among the endpoints of a service; absent means 1.
    #[prost(message, optional, tag = "27")]
    pub capacity: Option<UInt32Value>,
}

/// How a node proxy hands connections to a workload.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ApplicationTunnel {
    /// What is spoken.
    #[prost(enumeration = "application_tunnel::Protocol", tag = "1")]
    pub protocol: i32,
    /// On which port; 0 is the connection's own.
    #[prost(uint32, tag = "2")]
    pub port: u32,
}

/// Parts of [`ApplicationTunnel`].
pub mod application_tunnel {
    /// What is spoken.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub enum Protocol {
        /// Plain TCP.
        None = 0,
        /// PROXY v2 with the client's identity in TLV 0xD0.
        Proxy = 1,
    }
}

/// Where a workload runs.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Locality {
    /// Region.
    #[prost(string, tag = "1")]
    pub region: String,
    /// Zone.
    #[prost(string, tag = "2")]
    pub zone: String,
    /// Subzone.
    #[prost(string, tag = "3")]
    pub subzone: String,
}

/// Whose network a workload uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum NetworkMode {
    /// Its own.
    Standard = 0,
    /// Its node's; its address is then not its own, and not looked up by.
    HostNetwork = 1,
}

/// `google.protobuf.UInt32Value`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct UInt32Value {
    /// The number.
    #[prost(uint32, tag = "1")]
    pub value: u32,
}

/// How a workload is reached. (Istio's `LEGACY_ISTIO_MTLS`, 2, isn't spoken: such a workload can't be read.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum TunnelProtocol {
    /// Plain TCP.
    None = 0,
    /// HBONE on port 15008.
    Hbone = 1,
}

/// Kind of a workload's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum WorkloadType {
    /// A Deployment's pod.
    Deployment = 0,
    /// A CronJob's pod.
    Cronjob = 1,
    /// A pod on its own.
    Pod = 2,
    /// A Job's pod.
    Job = 3,
}

/// Health of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum WorkloadStatus {
    /// Ready.
    Healthy = 0,
    /// Not ready; gets no new connections.
    Unhealthy = 1,
}

/// Ports of one service at one workload.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PortList {
    /// The ports.
    #[prost(message, repeated, tag = "1")]
    pub ports: Vec<Port>,
}

/// A service port.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Port {
    /// Port of the service.
    #[prost(uint32, tag = "1")]
    pub service_port: u32,
    /// Port of the container, 0 if it must be looked up per workload.
    #[prost(uint32, tag = "2")]
    pub target_port: u32,
    /// What is spoken on it.
    #[prost(enumeration = "AppProtocol", tag = "3")]
    pub app_protocol: i32,
}

/// Application protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum AppProtocol {
    /// To be detected from the first bytes.
    Unknown = 0,
    /// HTTP/1.1.
    Http11 = 1,
    /// HTTP/2.
    Http2 = 2,
    /// gRPC.
    Grpc = 3,
    /// Opaque bytes.
    Tcp = 4,
    /// TLS passed through.
    Tls = 5,
}

/// Where a gateway or waypoint is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GatewayAddress {
    /// By name or by address.
    #[prost(oneof = "gateway_address::Destination", tags = "1, 2")]
    pub destination: Option<gateway_address::Destination>,
    /// Its HBONE port.
    #[prost(uint32, tag = "3")]
    pub hbone_mtls_port: u32,
}

/// Parts of [`GatewayAddress`].
pub mod gateway_address {
    /// How the gateway is named.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Destination {
        /// By service name.
        #[prost(message, tag = "1")]
        Hostname(super::NamespacedHostname),
        /// By address.
        #[prost(message, tag = "2")]
        Address(super::NetworkAddress),
    }
}

/// An address on a network.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct NetworkAddress {
    /// Network name, empty for the single network.
    #[prost(string, tag = "1")]
    pub network: String,
    /// 4 or 16 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub address: Vec<u8>,
    /// Prefix length, present only for a CIDR.
    #[prost(uint32, optional, tag = "3")]
    pub length: Option<u32>,
}

/// A hostname within a namespace.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct NamespacedHostname {
    /// Namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Fully qualified name.
    #[prost(string, tag = "2")]
    pub hostname: String,
}

/// A named extension.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Extension {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its content.
    #[prost(message, optional, tag = "2")]
    pub config: Option<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Any {
    /// Type of the content.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The encoded content.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// Name of the [`Workload`] extension that carries [`WaypointGuard`].
pub const WAYPOINT_GUARD_EXTENSION: &str = "ambit.dev/waypoint-guard";
/// Type URL of [`WaypointGuard`].
pub const WAYPOINT_GUARD_TYPE: &str = "type.googleapis.com/ambit.workload.v1.WaypointGuard";

/// Ports of a workload that only a waypoint may reach. Ambit's own: it closes the way around L7 policy.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WaypointGuard {
    /// One entry per guarded port and service.
    #[prost(message, repeated, tag = "1")]
    pub ports: Vec<GuardedPort>,
}

/// A port that only one waypoint may reach.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GuardedPort {
    /// Container port; 0 guards every port (a named target port that nothing resolves).
    #[prost(uint32, tag = "1")]
    pub target_port: u32,
    /// The service that asks for the guard, `namespace/name`.
    #[prost(string, tag = "2")]
    pub service: String,
    /// Namespace of the waypoint Gateway.
    #[prost(string, tag = "3")]
    pub waypoint_namespace: String,
    /// Name of the waypoint Gateway; its service account has the same name.
    #[prost(string, tag = "4")]
    pub waypoint_name: String,
}
