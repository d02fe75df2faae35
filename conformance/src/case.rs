//! What is compared: a set of policies, and requests to what they protect.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use ambit_api::AuthorizationPolicy;
use ambit_policy::{Claims, Options, PathNormalization, ProviderKind, envoy::Dialect};
use serde_json::{Value, json};

/// Policies, the mesh they are in, and how Envoy is set up for them.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicySet {
    pub policies: Vec<AuthorizationPolicy>,
    pub trust_domains: Vec<String>,
    /// External authorizers, and whether they allow what they are asked.
    pub providers: BTreeMap<String, bool>,
    /// Policies may name different ones.
    pub several_providers: bool,
    pub is_http: bool,
    pub paths: PathNormalization,
    pub dialect: Dialect,
}

/// A request, or at L4 its connection alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub connection: Connection,
    pub method: String,
    /// As sent in the request line.
    pub target: String,
    pub host: String,
    pub headers: Vec<(String, String)>,
    pub claims: Option<Claims>,
}

/// What holds for a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection {
    /// `spiffe://` included.
    pub principal: Option<String>,
    /// The address that really connects: a loopback one.
    pub source_ip: IpAddr,
    /// The client, as a PROXY protocol header names it. Of the family of `destination_ip`.
    pub remote_ip: IpAddr,
    pub destination_ip: IpAddr,
    pub destination_port: u16,
    /// Server name of the TLS handshake with which a connection starts, at L4.
    pub sni: Option<String>,
}

pub const ROOT_NAMESPACE: &str = "istio-system";
pub const NAMESPACE: &str = "default";
pub const SERVICE: &str = "web";
pub const WAYPOINT: &str = "waypoint";

// === impl PolicySet ===

impl PolicySet {
    pub fn options(&self) -> Options {
        Options {
            trust_domains: self.trust_domains.clone(),
            root_namespace: ROOT_NAMESPACE.to_owned(),
            providers: self.providers.keys().map(|name| (name.clone(), ProviderKind::Http)).collect(),
            several_providers: self.several_providers,
        }
    }

    /// The policies as Kubernetes objects.
    pub fn manifests(&self) -> Vec<Value> {
        let manifest = |policy: &AuthorizationPolicy| {
            let mut metadata = json!({"name": policy.name, "namespace": policy.namespace});
            if !policy.annotations.is_empty() {
                metadata["annotations"] = json!(policy.annotations);
            }
            json!({
                "apiVersion": "security.istio.io/v1",
                "kind": "AuthorizationPolicy",
                "metadata": metadata,
                "spec": policy.spec,
            })
        };
        self.policies.iter().map(manifest).collect()
    }

    /// A case in the format of the golden ones. `policies` is the path of the file that holds the policies.
    pub fn golden(&self, id: &str, policies: &str, request: &Request, expect: &str) -> Value {
        let connection = &request.connection;
        let word = |allows: &bool| if *allows { "ALLOW" } else { "DENY" };
        let providers: BTreeMap<_, _> = self.providers.iter().map(|(name, allows)| (name, word(allows))).collect();
        let mut target = json!({
            "protocol": if self.is_http { "http" } else { "tcp" },
            "service": {"kind": "Service", "name": SERVICE, "namespace": NAMESPACE},
            "waypoint": {"name": WAYPOINT, "namespace": NAMESPACE},
            "rootNamespace": ROOT_NAMESPACE,
            "trustDomain": self.trust_domains.first(),
            "trustDomainAliases": self.trust_domains.get(1..),
            "requestAuthentication": request.claims.is_some(),
            "extensionProviders": providers,
        });
        if let Some(mode) = mode_name(self.paths) {
            target["pathNormalization"] = mode.into();
        }
        let mut sent = json!({
            "principal": connection.principal,
            "namespace": connection.principal.as_deref().and_then(|principal| principal.split('/').nth(4)),
            "source_ip": connection.source_ip,
            "remote_ip": connection.remote_ip,
            "dest_ip": connection.destination_ip,
            "dest_port": connection.destination_port,
            "sni": connection.sni.as_deref().unwrap_or_default(),
        });
        if self.is_http {
            let of_http = json!({
                "method": request.method,
                "path": request.target,
                "host": request.host,
                "headers": request.headers,
                "jwt_claims": request.claims,
                "http_version": "1.1",
            });
            if let (Value::Object(sent), Value::Object(of_http)) = (&mut sent, of_http) {
                sent.extend(of_http);
            }
        }
        json!({
            "id": id, "tag": "conformance", "policies": policies, "target": target, "request": sent,
            "expect": expect, "derived": {},
        })
    }
}

/// The name of a mode in the mesh's configuration; nothing where none is set.
pub fn mode_name(paths: PathNormalization) -> Option<&'static str> {
    match paths {
        PathNormalization::AllReadings => None,
        PathNormalization::None => Some("NONE"),
        PathNormalization::Base => Some("BASE"),
        PathNormalization::MergeSlashes => Some("MERGE_SLASHES"),
        PathNormalization::DecodeAndMergeSlashes => Some("DECODE_AND_MERGE_SLASHES"),
    }
}

// === impl Connection ===

impl Default for Connection {
    fn default() -> Self {
        Self {
            principal: Some("spiffe://cluster.local/ns/default/sa/client".to_owned()),
            source_ip: Ipv4Addr::LOCALHOST.into(),
            remote_ip: Ipv4Addr::new(10, 244, 1, 5).into(),
            destination_ip: Ipv4Addr::new(10, 96, 0, 10).into(),
            destination_port: 8080,
            sni: None,
        }
    }
}

// === impl Request ===

impl Default for Request {
    fn default() -> Self {
        Self {
            connection: Connection::default(),
            method: "GET".to_owned(),
            target: "/".to_owned(),
            host: "web.default.svc.cluster.local".to_owned(),
            headers: Vec::new(),
            claims: None,
        }
    }
}
