//! What a client of discovery says of itself (`spec/control-plane.md` 4.6).

use ambit_xds::{
    discovery::Node,
    protobuf::{Struct, value::Kind},
};

const GATEWAY_NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";

/// What it claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    NodeProxy,
    Waypoint,
}

/// A node's claims. None of them is believed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Claims<'a> {
    pub(super) role: Role,
    pub(super) pod: &'a str,
    pub(super) namespace: &'a str,
    /// These only if it says so.
    pub(super) service_account: Option<&'a str>,
    pub(super) node: Option<&'a str>,
    pub(super) cluster: Option<&'a str>,
    pub(super) gateway: Option<&'a str>,
}

// === impl Claims ===

impl<'a> Claims<'a> {
    /// Reads `<kind>~<ip>~<pod>.<namespace>~<namespace>.svc.<domain>` and the metadata, which must agree with it.
    pub(super) fn of(node: &'a Node) -> Result<Self, String> {
        let parts: Vec<_> = node.id.split('~').collect();
        let [kind, _, name, domain] = parts.as_slice() else {
            return Err("the node's ID hasn't four parts".to_owned());
        };
        let role = match *kind {
            "ztunnel" => Role::NodeProxy,
            "waypoint" => Role::Waypoint,
            _ => return Err("only node proxies (`ztunnel`) and waypoints are served".to_owned()),
        };
        // A namespace has no dots, a pod may have.
        let (pod, namespace) = name.rsplit_once('.').ok_or("the node's ID names no pod")?;
        if pod.is_empty() || namespace.is_empty() {
            return Err("the node's ID names no pod".to_owned());
        }
        if domain.split('.').next() != Some(namespace) {
            return Err("the node's ID names two namespaces".to_owned());
        }
        let said = |name| node.metadata.as_ref().and_then(|all| all.text(name)).filter(|text| !text.is_empty());
        if said("NAMESPACE").is_some_and(|said| said != namespace) || said("NAME").is_some_and(|said| said != pod) {
            return Err("the node's metadata name another pod than its ID".to_owned());
        }
        Ok(Self {
            role,
            pod,
            namespace,
            service_account: said("SERVICE_ACCOUNT"),
            node: said("NODE_NAME"),
            cluster: said("CLUSTER_ID"),
            gateway: labels(node).and_then(|labels| labels.text(GATEWAY_NAME_LABEL)).filter(|name| !name.is_empty()),
        })
    }
}

fn labels(node: &Node) -> Option<&Struct> {
    match &node.metadata.as_ref()?.fields.get("LABELS")?.kind {
        Some(Kind::Struct(labels)) => Some(labels),
        _ => None,
    }
}
