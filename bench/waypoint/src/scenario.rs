//! What both proxies are told: one service with its endpoint, who calls it, and who may.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ambit_identity::SpiffeId;
use serde::Serialize;
use serde_json::{Value, json};

pub(crate) const TRUST_DOMAIN: &str = "cluster.local";
pub(crate) const NAMESPACE: &str = "kagenti-system";
pub(crate) const GATEWAY: &str = "waypoint";
pub(crate) const SERVICE: &str = "mlflow";
pub(crate) const HOSTNAME: &str = "mlflow.kagenti-system.svc.cluster.local";
/// The service's virtual address and port.
pub(crate) const VIRTUAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 8080);
/// What clients put into `host`.
pub(crate) const AUTHORITY: &str = "mlflow.kagenti-system:8080";
/// Where the backend listens, as plain HTTP and as a node proxy. Clients come from another address.
pub(crate) const BACKEND_IP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Where the same backend listens as well, for an endpoint that comes and goes.
pub(crate) const OTHER_BACKEND_IP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// Which part of a waypoint is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Shape {
    /// The L7 proxy alone: plain HTTP in and out.
    L7,
    /// The whole: HBONE in and out.
    Hbone,
}

/// What clients speak. Backends always get HTTP/1.1, as a port named `http` does in Istio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Http {
    H1,
    H2,
}

/// One ALLOW policy with one rule.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) name: String,
    pub(crate) principal: SpiffeId,
    pub(crate) methods: Vec<&'static str>,
    /// Exact, or a prefix if it ends with `*`.
    pub(crate) path: String,
}

/// A path that the backend answers with a body of this many bytes.
pub(crate) fn path(body: usize) -> String {
    format!("/bytes/{body}")
}

/// The body that is asked for with such a path.
pub(crate) fn body_of(path: &str) -> Option<usize> {
    path.strip_prefix("/bytes/")?.parse().ok()
}

/// Who calls.
pub(crate) fn client() -> SpiffeId {
    account("kagenti-ui")
}

pub(crate) fn waypoint() -> SpiffeId {
    account("waypoint")
}

/// Whom the backend's node proxy speaks for.
pub(crate) fn server() -> SpiffeId {
    account(SERVICE)
}

/// This many policies, of which only the last lets the client in. The others are about the same client and other paths where
/// there are many, so that none can be left out before a request is seen.
pub(crate) fn policies(count: usize) -> Vec<Policy> {
    let last = Policy {
        name: format!("p-{count:06}"),
        principal: client(),
        methods: vec!["GET", "POST"],
        path: "/bytes/*".to_owned(),
    };
    let mut policies = match count {
        2 => vec![Policy {
            name: "p-000001".to_owned(),
            principal: account("otel-collector"),
            methods: vec!["POST"],
            path: "/v1/traces".to_owned(),
        }],
        _ => (1..count).map(filler).collect(),
    };
    policies.push(last);
    policies
}

fn filler(number: usize) -> Policy {
    Policy {
        name: format!("p-{number:06}"),
        principal: client(),
        methods: vec!["GET"],
        path: format!("/api/{number:06}/items"),
    }
}

fn account(name: &str) -> SpiffeId {
    SpiffeId::new(TRUST_DOMAIN, NAMESPACE, name).expect("constant names are valid")
}

// === impl Shape ===

impl Shape {
    pub(crate) const ALL: [Self; 2] = [Self::L7, Self::Hbone];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::L7 => "l7",
            Self::Hbone => "hbone",
        }
    }
}

impl std::str::FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|shape| shape.name() == text)
            .ok_or_else(|| format!("`{text}` is neither l7 nor hbone"))
    }
}

// === impl Http ===

impl Http {
    pub(crate) const ALL: [Self; 2] = [Self::H1, Self::H2];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::H1 => "h1",
            Self::H2 => "h2",
        }
    }
}

// === impl Policy ===

impl Policy {
    /// As users write it.
    pub(crate) fn spec(&self) -> Value {
        let principal = format!("{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{}", self.principal.service_account());
        json!({"action": "ALLOW", "rules": [{
            "from": [{"source": {"principals": [principal]}}],
            "to": [{"operation": {"methods": self.methods, "paths": [self.path]}}],
        }]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_policy_lets_the_client_in() {
        for count in [1, 2, 10] {
            let policies = policies(count);
            assert_eq!(policies.len(), count);
            let (last, others) = policies.split_last().expect("a policy");
            assert!(last.path == "/bytes/*" && last.principal == client());
            assert!(others.iter().all(|policy| !policy.path.starts_with("/bytes") && policy.name < last.name));
        }
        assert_eq!(body_of(&path(1024)), Some(1024));
        assert_eq!(body_of("/elsewhere"), None);
    }
}
