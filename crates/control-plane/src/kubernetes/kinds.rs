//! The kinds that are watched.

use ambit_mesh::inputs::{Change, Inputs, NamespacedName};

use crate::conditions::Told;

/// A kind that the mesh is made of. In the order in which what is read first is taken in: what others refer to comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    MeshConfig,
    Namespace,
    Service,
    Gateway,
    AuthorizationPolicy,
    PeerAuthentication,
    RequestAuthentication,
    HttpRoute,
    GrpcRoute,
    TlsRoute,
    TcpRoute,
    DestinationRule,
    TrafficPolicy,
    BackendTrafficPolicy,
    Pod,
}

/// Where the API has a kind.
pub(super) struct Place {
    pub(super) group: &'static str,
    /// The first that the API serves is read.
    pub(super) versions: &'static [&'static str],
    pub(super) plural: &'static str,
}

// === impl Kind ===

impl Kind {
    /// All of them.
    pub(super) const ALL: &[Self] = &[
        Self::MeshConfig,
        Self::Namespace,
        Self::Service,
        Self::Gateway,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
        Self::RequestAuthentication,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TlsRoute,
        Self::TcpRoute,
        Self::DestinationRule,
        Self::TrafficPolicy,
        Self::BackendTrafficPolicy,
        Self::Pod,
    ];

    /// As it is written.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::MeshConfig => "MeshConfig",
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::Gateway => "Gateway",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::DestinationRule => "DestinationRule",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::BackendTrafficPolicy => "XBackendTrafficPolicy",
            Self::Pod => "Pod",
        }
    }

    /// Where custom kinds are; nothing for those that every API server has.
    pub(super) fn place(self) -> Option<Place> {
        let place = |group, versions, plural| Some(Place { group, versions, plural });
        let (gateways, security) = ("gateway.networking.k8s.io", "security.istio.io");
        match self {
            Self::Namespace | Self::Service | Self::Pod => None,
            Self::MeshConfig => place("ambit.dev", &["v1alpha1"], "meshconfigs"),
            Self::Gateway => place(gateways, &["v1", "v1beta1"], "gateways"),
            Self::AuthorizationPolicy => place(security, &["v1", "v1beta1"], "authorizationpolicies"),
            Self::PeerAuthentication => place(security, &["v1", "v1beta1"], "peerauthentications"),
            Self::RequestAuthentication => place(security, &["v1", "v1beta1"], "requestauthentications"),
            Self::HttpRoute => place(gateways, &["v1", "v1beta1"], "httproutes"),
            Self::GrpcRoute => place(gateways, &["v1", "v1alpha2"], "grpcroutes"),
            Self::TlsRoute => place(gateways, &["v1", "v1alpha3", "v1alpha2"], "tlsroutes"),
            Self::TcpRoute => place(gateways, &["v1alpha2", "v1"], "tcproutes"),
            Self::DestinationRule => place("networking.istio.io", &["v1", "v1beta1", "v1alpha3"], "destinationrules"),
            Self::TrafficPolicy => place("ambit.dev", &["v1"], "trafficpolicies"),
            Self::BackendTrafficPolicy => {
                place("gateway.networking.x-k8s.io", &["v1alpha1"], "xbackendtrafficpolicies")
            }
        }
    }

    /// Its objects are told something, under this name.
    pub(super) fn told(self) -> Option<Told> {
        match self {
            Self::Service => Some(Told::Service),
            Self::AuthorizationPolicy => Some(Told::AuthorizationPolicy),
            Self::RequestAuthentication => Some(Told::RequestAuthentication),
            Self::PeerAuthentication => Some(Told::PeerAuthentication),
            _ => None,
        }
    }

    /// The objects of this kind that there are. MeshConfigs aren't among the inputs; whoever holds them knows.
    pub(super) fn names(self, inputs: &Inputs) -> Vec<NamespacedName> {
        let routes = |kind| {
            let of_kind = inputs.routes.keys().filter(move |(of, _)| *of == kind);
            of_kind.map(|(_, name)| name.clone()).collect()
        };
        match self {
            Self::MeshConfig => Vec::new(),
            Self::Namespace => inputs.namespaces.keys().map(|name| NamespacedName::new("", name)).collect(),
            Self::Service => inputs.services.keys().cloned().collect(),
            Self::Gateway => inputs.gateways.keys().cloned().collect(),
            Self::AuthorizationPolicy => inputs.policies().map(|(name, _)| name.clone()).collect(),
            Self::PeerAuthentication => inputs.peer_authentications.keys().cloned().collect(),
            Self::RequestAuthentication => inputs.request_authentications.keys().cloned().collect(),
            Self::HttpRoute | Self::GrpcRoute | Self::TlsRoute | Self::TcpRoute => routes(self.name()),
            Self::DestinationRule => inputs.destination_rules.keys().cloned().collect(),
            Self::TrafficPolicy => inputs.traffic_policies.keys().cloned().collect(),
            Self::BackendTrafficPolicy => inputs.retry_policies.keys().cloned().collect(),
            Self::Pod => inputs.pods.keys().cloned().collect(),
        }
    }

    /// What it means to the mesh that an object is gone; nothing for MeshConfigs.
    pub(super) fn gone(self, name: NamespacedName) -> Option<Change> {
        Some(match self {
            Self::MeshConfig => return None,
            Self::Namespace => Change::Namespace(name.name, None),
            Self::Service => Change::Service(name, None),
            Self::Gateway => Change::Gateway(name, None),
            Self::AuthorizationPolicy => Change::Policy(name, None),
            Self::PeerAuthentication => Change::PeerAuthentication(name, None),
            Self::RequestAuthentication => Change::RequestAuthentication(name, None),
            Self::HttpRoute | Self::GrpcRoute | Self::TlsRoute | Self::TcpRoute => {
                Change::Route((self.name(), name), None)
            }
            Self::DestinationRule => Change::DestinationRule(name, None),
            Self::TrafficPolicy => Change::TrafficPolicy(name, None),
            Self::BackendTrafficPolicy => Change::RetryPolicy(name, None),
            Self::Pod => Change::Pod(name, None),
        })
    }
}
