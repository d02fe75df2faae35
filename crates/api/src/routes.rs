//! The routes of the Gateway API: HTTPRoute, GRPCRoute, TLSRoute and TCPRoute, as far as a mesh gives them a meaning.
//!
//! The types are ours rather than the generated ones of the `gateway-api` crate: those repeat every filter for rules and
//! for backends, and take fields that don't exist without a word.

mod filters;
mod matches;
mod values;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    filters::{
        Cors, ExternalAuth, ExternalAuthGrpc, ExternalAuthHttp, ExternalAuthProtocol, Filter, FilterType, ForwardBody,
        Fraction, HeaderModifier, HeaderValue, LocalObjectReference, MirrorFilter, PathModifier, PathModifierType,
        Redirect, Scheme, UrlRewrite, subset_of,
    },
    matches::{GrpcMatch, GrpcMethodMatch, HeaderMatch, HttpMatch, MatchType, PathMatch, PathMatchType, QueryMatch},
    values::{duration, may_modify, pattern},
};
use crate::authorization_policy::null_as_default;

/// Group of all of these kinds.
pub const GROUP: &str = "gateway.networking.k8s.io";

/// A route with the metadata that gives it its place among others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// When it was made, in RFC 3339; nothing for one read from a file. Of several that match equally well the oldest
    /// counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// What it says.
    pub spec: RouteSpec,
}

/// The `spec` of a route, by its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RouteSpec {
    /// Of an HTTPRoute.
    #[serde(rename = "HTTPRoute")]
    Http(HttpRouteSpec),
    /// Of a GRPCRoute.
    #[serde(rename = "GRPCRoute")]
    Grpc(GrpcRouteSpec),
    /// Of a TLSRoute.
    #[serde(rename = "TLSRoute")]
    Tls(TlsRouteSpec),
    /// Of a TCPRoute.
    #[serde(rename = "TCPRoute")]
    Tcp(TcpRouteSpec),
}

macro_rules! spec {
    ($(#[$doc:meta])* $name:ident { $($fields:tt)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub struct $name { $($fields)* }
    };
}
pub(crate) use spec;

spec! {
    /// The `spec` of an HTTPRoute.
    HttpRouteSpec {
        /// What it is attached to.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub parent_refs: Vec<ParentReference>,
        /// Ignored where the parent is a Service, whose address says what is meant.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub hostnames: Vec<String>,
        /// The rules; absent means one that matches everything.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub rules: Option<Vec<HttpRule>>,
        /// Whether it attaches to default Gateways: means nothing in a mesh.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub use_default_gateways: Option<UseDefaultGateways>,
    }
}

spec! {
    /// The `spec` of a GRPCRoute.
    GrpcRouteSpec {
        /// What it is attached to.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub parent_refs: Vec<ParentReference>,
        /// Ignored where the parent is a Service.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub hostnames: Vec<String>,
        /// The rules.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub rules: Vec<GrpcRule>,
        /// Means nothing in a mesh.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub use_default_gateways: Option<UseDefaultGateways>,
    }
}

spec! {
    /// The `spec` of a TLSRoute.
    TlsRouteSpec {
        /// What it is attached to.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub parent_refs: Vec<ParentReference>,
        /// Server names, which may begin with `*.`; none means any.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub hostnames: Vec<String>,
        /// The rules: the first one counts, since none of them says what it matches.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub rules: Vec<StreamRule>,
        /// Means nothing in a mesh.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub use_default_gateways: Option<UseDefaultGateways>,
    }
}

spec! {
    /// The `spec` of a TCPRoute.
    TcpRouteSpec {
        /// What it is attached to.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub parent_refs: Vec<ParentReference>,
        /// The rules: the first one counts, since none of them says what it matches.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub rules: Vec<StreamRule>,
        /// Means nothing in a mesh.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub use_default_gateways: Option<UseDefaultGateways>,
    }
}

/// Whether a route attaches to default Gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the variants are the values")]
pub enum UseDefaultGateways {
    All,
    None,
}

spec! {
    /// What a route is attached to.
    ParentReference {
        /// API group; absent is that of the Gateway API, empty that of Services.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub group: Option<String>,
        /// Kind; absent is Gateway.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub kind: Option<String>,
        /// Namespace; absent is the route's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub namespace: Option<String>,
        /// Name.
        #[serde(default, deserialize_with = "null_as_default")]
        pub name: String,
        /// Name of one of its ports (or listeners).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub section_name: Option<String>,
        /// One of its ports.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub port: Option<u16>,
    }
}

spec! {
    /// Where requests go.
    BackendReference {
        /// API group; absent and empty are that of Services.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub group: Option<String>,
        /// Kind; absent is Service.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub kind: Option<String>,
        /// Namespace; absent is the route's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub namespace: Option<String>,
        /// Name.
        #[serde(default, deserialize_with = "null_as_default")]
        pub name: String,
        /// Port of the Service.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub port: Option<u16>,
    }
}

spec! {
    /// One of several places where requests go.
    WeightedBackend {
        /// API group; absent and empty are that of Services.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub group: Option<String>,
        /// Kind; absent is Service.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub kind: Option<String>,
        /// Namespace; absent is the route's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub namespace: Option<String>,
        /// Name.
        #[serde(default, deserialize_with = "null_as_default")]
        pub name: String,
        /// Port of the Service.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub port: Option<u16>,
        /// Its share; absent is 1.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub weight: Option<u32>,
        /// What is done to what goes there. Only in rules for HTTP.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub filters: Vec<Filter>,
    }
}

spec! {
    /// A rule of an HTTPRoute.
    HttpRule {
        /// Its name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub name: Option<String>,
        /// Any of these; none means everything.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub matches: Vec<HttpMatch>,
        /// What is done to a request, and its response.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub filters: Vec<Filter>,
        /// Where it goes.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub backend_refs: Vec<WeightedBackend>,
        /// How long it may take.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub timeouts: Option<Timeouts>,
        /// When it is tried again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub retry: Option<Retry>,
        /// Sticky sessions: not supported.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub session_persistence: Option<SessionPersistence>,
    }
}

spec! {
    /// A rule of a GRPCRoute.
    GrpcRule {
        /// Its name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub name: Option<String>,
        /// Any of these; none means everything.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub matches: Vec<GrpcMatch>,
        /// What is done to a call, and its response.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub filters: Vec<Filter>,
        /// Where it goes.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub backend_refs: Vec<WeightedBackend>,
        /// Sticky sessions: not supported.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub session_persistence: Option<SessionPersistence>,
    }
}

spec! {
    /// A rule of a TLSRoute or TCPRoute.
    StreamRule {
        /// Its name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub name: Option<String>,
        /// Where connections go.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub backend_refs: Vec<WeightedBackend>,
    }
}

spec! {
    /// How long things may take. `0s` means forever.
    Timeouts {
        /// The whole, tries included.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub request: Option<String>,
        /// One try.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub backend_request: Option<String>,
    }
}

spec! {
    /// When a request is tried again.
    Retry {
        /// Statuses that are worth another try.
        #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
        pub codes: Vec<u16>,
        /// How often it is tried again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub attempts: Option<u32>,
        /// Shortest time between two tries.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub backoff: Option<String>,
    }
}

spec! {
    /// Sticky sessions.
    SessionPersistence {
        /// Name of the cookie or header.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub session_name: Option<String>,
        /// Longest life.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub absolute_timeout: Option<String>,
        /// Longest silence.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub idle_timeout: Option<String>,
        /// `Cookie` or `Header`.
        #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
        pub kind: Option<String>,
        /// What kind of cookie.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub cookie_config: Option<CookieConfig>,
    }
}

spec! {
    /// What kind of cookie.
    CookieConfig {
        /// `Permanent` or `Session`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub lifetime_type: Option<String>,
    }
}

// === impl Route ===

impl Route {
    /// The kind, for example `HTTPRoute`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match &self.spec {
            RouteSpec::Http(_) => "HTTPRoute",
            RouteSpec::Grpc(_) => "GRPCRoute",
            RouteSpec::Tls(_) => "TLSRoute",
            RouteSpec::Tcp(_) => "TCPRoute",
        }
    }

    /// What it is attached to.
    #[must_use]
    pub fn parents(&self) -> &[ParentReference] {
        match &self.spec {
            RouteSpec::Http(spec) => &spec.parent_refs,
            RouteSpec::Grpc(spec) => &spec.parent_refs,
            RouteSpec::Tls(spec) => &spec.parent_refs,
            RouteSpec::Tcp(spec) => &spec.parent_refs,
        }
    }
}

// === impl ParentReference ===

impl ParentReference {
    /// Namespace and name of the Service, if it is one, for a route of this namespace.
    #[must_use]
    pub fn service<'a>(&'a self, namespace: &'a str) -> Option<(&'a str, &'a str)> {
        let core = matches!(self.group.as_deref(), Some("" | "core"));
        let service = core && self.kind.as_deref() == Some("Service");
        service.then(|| (self.namespace.as_deref().unwrap_or(namespace), self.name.as_str()))
    }
}

// === impl BackendReference ===

impl BackendReference {
    /// Namespace and name of the Service, if it is one, for a route of this namespace.
    #[must_use]
    pub fn service<'a>(&'a self, namespace: &'a str) -> Option<(&'a str, &'a str)> {
        let core = matches!(self.group.as_deref(), None | Some("" | "core"));
        let service = core && matches!(self.kind.as_deref(), None | Some("Service"));
        service.then(|| (self.namespace.as_deref().unwrap_or(namespace), self.name.as_str()))
    }
}

// === impl WeightedBackend ===

impl WeightedBackend {
    /// Where requests go, without their share.
    #[must_use]
    pub fn reference(&self) -> BackendReference {
        BackendReference {
            group: self.group.clone(),
            kind: self.kind.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            port: self.port,
        }
    }
}
