//! A golden case as it is written.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ambit_mesh::{
    attachment::{EnforcementPoint, ServedKind},
    inputs::{Labels, NamespacedName},
};
use ambit_policy::{
    Claims, ConnectionFacts, HeaderLines, HttpVersion, Options, PathNormalization, Peer, ProviderKind, RequestFacts,
    Sni,
};
use serde::{Deserialize, Serialize};

/// One line of a case file.
#[derive(Debug, Deserialize)]
pub struct Case {
    pub id: String,
    /// File with the policies, relative to the root.
    pub policies: String,
    pub target: Target,
    pub request: Request,
    pub expect: Word,
}

/// A verdict as the cases write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Word {
    Allow,
    Deny,
}

/// Where the policies are enforced, and under which configuration.
#[derive(Debug, PartialEq, Eq, Hash, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    protocol: Protocol,
    service: Option<Served>,
    waypoint: Option<Name>,
    /// In place of service and waypoint: a workload whose own proxy enforces.
    workload: Option<Workload>,
    root_namespace: String,
    trust_domain: String,
    #[serde(default)]
    trust_domain_aliases: Vec<String>,
    #[serde(default)]
    request_authentication: bool,
    /// What the external authorizers answer.
    #[serde(default)]
    pub extension_providers: BTreeMap<String, Word>,
    path_normalization: Option<Normalization>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Protocol {
    Http,
    Tcp,
}

#[derive(Debug, PartialEq, Eq, Hash, Clone, Deserialize)]
struct Served {
    #[serde(default)]
    kind: Kind,
    name: String,
    namespace: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
enum Kind {
    #[default]
    Service,
    ServiceEntry,
}

#[derive(Debug, PartialEq, Eq, Hash, Clone, Deserialize)]
struct Name {
    name: String,
    namespace: String,
}

#[derive(Debug, PartialEq, Eq, Hash, Clone, Deserialize)]
struct Workload {
    namespace: String,
    #[serde(default)]
    labels: Labels,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Normalization {
    None,
    Base,
    MergeSlashes,
    DecodeAndMergeSlashes,
}

/// What is asked, and by whom.
#[derive(Debug, Deserialize)]
pub struct Request {
    principal: Option<String>,
    source_ip: IpAddr,
    remote_ip: Option<IpAddr>,
    dest_ip: IpAddr,
    dest_port: u16,
    #[serde(default)]
    method: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    host: String,
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    jwt_claims: Option<Claims>,
    #[serde(default)]
    sni: String,
    http_version: Option<String>,
}

/// The names that an [`EnforcementPoint`] borrows.
pub struct PointNames {
    gateway: NamespacedName,
    service: NamespacedName,
    kind: ServedKind,
}

// === impl Case ===

impl Case {
    /// True if the request is to be judged as HTTP.
    pub fn is_http(&self) -> bool {
        self.target.protocol == Protocol::Http
    }

    /// True if the client sent the length of its (empty) body.
    pub fn sends_length(&self) -> bool {
        let Request { method, http_version, .. } = &self.request;
        http_version.as_deref() != Some("2") && ["POST", "PUT", "PATCH"].contains(&method.as_str())
    }

    /// Who asks what, in a line.
    pub fn summary(&self) -> String {
        let Request { principal, source_ip, dest_port, method, path, host, .. } = &self.request;
        let peer = principal.as_deref().unwrap_or("a client without identity");
        if self.is_http() {
            format!("{method} {path} (host {host}, port {dest_port}) by {peer} at {source_ip}")
        } else {
            format!("a connection to port {dest_port} by {peer} at {source_ip}")
        }
    }

    /// What holds for the connection. A peer whose name isn't a SPIFFE one is as good as none.
    pub fn connection(&self) -> ConnectionFacts {
        let Request { principal, source_ip, remote_ip, dest_ip, dest_port, sni, .. } = &self.request;
        let sni = if sni.is_empty() { Sni::Absent } else { Sni::Name(sni.as_str().into()) };
        ConnectionFacts {
            peer: principal.as_deref().and_then(Peer::new),
            remote_ip: *remote_ip,
            ..ConnectionFacts::new(*source_ip, *dest_ip, *dest_port).with_sni(sni)
        }
    }

    /// What is asked, with these header lines. Nobody verifies a token where no RequestAuthentication is attached.
    pub fn request<'a>(&'a self, headers: &'a dyn HeaderLines) -> RequestFacts<'a> {
        let Request { method, path, host, http_version, jwt_claims, .. } = &self.request;
        let version = if http_version.as_deref() == Some("2") { HttpVersion::Http2 } else { HttpVersion::Http1 };
        RequestFacts::new(method, path, host)
            .with_headers(headers)
            .with_claims(jwt_claims.as_ref().filter(|_| self.target.request_authentication))
            .with_version(version)
    }
}

// === impl Target ===

impl Target {
    /// Where the policies are enforced; it borrows the names.
    pub fn names(&self) -> Option<PointNames> {
        let (service, waypoint) = (self.service.as_ref()?, self.waypoint.as_ref()?);
        Some(PointNames {
            gateway: NamespacedName::new(&waypoint.namespace, &waypoint.name),
            service: NamespacedName::new(&service.namespace, &service.name),
            kind: match service.kind {
                Kind::Service => ServedKind::Service,
                Kind::ServiceEntry => ServedKind::ServiceEntry,
            },
        })
    }

    /// The place where the policies are enforced; nothing if the case names none.
    pub fn point<'a>(&'a self, names: Option<&'a PointNames>) -> Option<EnforcementPoint<'a>> {
        match (&self.workload, names) {
            (Some(Workload { namespace, labels }), _) => Some(EnforcementPoint::NodeProxy { namespace, labels }),
            (None, Some(PointNames { gateway, service, kind })) => {
                Some(EnforcementPoint::Waypoint { gateway, service, kind: *kind })
            }
            (None, None) => None,
        }
    }

    /// Namespace whose policies apply to the whole mesh.
    pub fn root_namespace(&self) -> &str {
        &self.root_namespace
    }

    /// What the mesh brings to the meaning of the policies.
    pub fn options(&self) -> Options {
        let trust_domains = std::iter::once(&self.trust_domain).chain(&self.trust_domain_aliases).cloned();
        Options {
            trust_domains: trust_domains.collect(),
            root_namespace: self.root_namespace.clone(),
            several_providers: false,
            providers: self.extension_providers.keys().map(|name| (name.clone(), ProviderKind::Http)).collect(),
        }
    }

    /// How paths are read.
    pub fn paths(&self) -> PathNormalization {
        match self.path_normalization {
            None => PathNormalization::AllReadings,
            Some(Normalization::None) => PathNormalization::None,
            Some(Normalization::Base) => PathNormalization::Base,
            Some(Normalization::MergeSlashes) => PathNormalization::MergeSlashes,
            Some(Normalization::DecodeAndMergeSlashes) => PathNormalization::DecodeAndMergeSlashes,
        }
    }
}

// === impl Word ===

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
        })
    }
}
