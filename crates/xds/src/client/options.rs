//! What a client is told: who it is, where the control plane is, what to watch.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use serde_json::Value as Json;

use crate::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    discovery::Node,
    grpc::Endpoint,
    limits::{MAX_BACKOFF, MAX_RESPONSE_BYTES, MIN_BACKOFF},
};

/// Address that stands for "none" in a node's id.
const NO_ADDRESS: &str = "1.1.1.1";

/// What a client is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The control plane.
    pub endpoint: Endpoint,
    /// Who we are.
    pub node: NodeIdentity,
    /// What to watch, in the order in which a kept state is applied: policies before the workloads that name them.
    pub watches: Vec<Watch>,
    /// Largest response read, in bytes.
    pub max_response_bytes: usize,
    /// Upper end of the first pause before a new attempt.
    pub min_backoff: Duration,
    /// Upper end of the longest one.
    pub max_backoff: Duration,
    /// Where the last good state is kept; nowhere if none. The folder must be there.
    pub state_file: Option<PathBuf>,
}

/// A type to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Its URL.
    pub type_url: String,
    /// Only what is asked for by name ([`super::Handle::demand`]); otherwise everything.
    pub on_demand: bool,
    /// If there are some, only the resources of these names, from the start and whether they exist yet or not.
    pub names: Vec<String>,
}

/// What a client is to the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// The proxy of a node, or of one workload.
    #[default]
    Ztunnel,
    /// The proxy of services.
    Waypoint,
}

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeIdentity {
    /// What it is.
    pub role: Role,
    /// Name of the proxy's pod.
    pub pod: String,
    /// Its namespace.
    pub namespace: String,
    /// Its address; empty if it has none.
    pub address: String,
    /// Its node. The control plane sends the workloads of this node even to a client that watches on demand.
    pub node: String,
    /// Its cluster.
    pub cluster_id: String,
    /// More metadata (`ISTIO_META_*` as text, `ISTIO_METAJSON_*` as JSON), without those prefixes.
    pub metadata: BTreeMap<String, Json>,
}

/// Options that make no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// Nothing to watch, or something twice.
    #[error("{0}")]
    Watches(String),
    /// A bound of zero, or a first pause longer than the longest.
    #[error("`{option}` is out of bounds: {reason}")]
    Bound {
        /// Which one.
        option: &'static str,
        /// What would do.
        reason: &'static str,
    },
}

// === impl Options ===

impl Options {
    /// Watches all addresses and policies, with the usual bounds, and keeps nothing.
    #[must_use]
    pub fn new(endpoint: Endpoint, node: NodeIdentity) -> Self {
        Self {
            endpoint,
            node,
            watches: vec![Watch::all(AUTHORIZATION_TYPE), Watch::all(ADDRESS_TYPE)],
            max_response_bytes: MAX_RESPONSE_BYTES,
            min_backoff: MIN_BACKOFF,
            max_backoff: MAX_BACKOFF,
            state_file: None,
        }
    }

    pub(super) fn check(&self) -> Result<(), OptionsError> {
        if self.watches.is_empty() {
            return Err(OptionsError::Watches("there is nothing to watch; name a type".into()));
        }
        for (index, watch) in self.watches.iter().enumerate() {
            if self.watches[..index].iter().any(|earlier| earlier.type_url == watch.type_url) {
                return Err(OptionsError::Watches(format!("`{}` is watched twice; keep one", watch.type_url)));
            }
            if watch.on_demand && !watch.names.is_empty() {
                return Err(OptionsError::Watches(format!(
                    "`{}` is watched on demand and by name; choose one",
                    watch.type_url
                )));
            }
        }
        if !(1..=u32::MAX as usize).contains(&self.max_response_bytes) {
            let reason = "from 1 to 4294967295 bytes";
            return Err(OptionsError::Bound { option: "max_response_bytes", reason });
        }
        if self.min_backoff.is_zero() || self.min_backoff > self.max_backoff {
            let reason = "it must be above zero and at most `max_backoff`";
            return Err(OptionsError::Bound { option: "min_backoff", reason });
        }
        Ok(())
    }

    /// Whose state the file is. Versions of one control plane mean nothing to another.
    pub(super) fn scope(&self) -> String {
        let names: String = self.watches.iter().flat_map(|watch| &watch.names).map(|name| format!(" {name}")).collect();
        format!("{} {}{names}", self.endpoint.address, self.node.cluster_id)
    }
}

// === impl Watch ===

impl Watch {
    /// Everything of a type.
    #[must_use]
    pub fn all(type_url: &str) -> Self {
        Self { type_url: type_url.to_owned(), on_demand: false, names: Vec::new() }
    }

    /// What is asked for of a type.
    #[must_use]
    pub fn on_demand(type_url: &str) -> Self {
        Self { type_url: type_url.to_owned(), on_demand: true, names: Vec::new() }
    }

    /// The resources of a type that have these names.
    #[must_use]
    pub fn named(type_url: &str, names: impl IntoIterator<Item = String>) -> Self {
        Self { type_url: type_url.to_owned(), on_demand: false, names: names.into_iter().collect() }
    }
}

// === impl NodeIdentity ===

impl NodeIdentity {
    /// As the control plane reads it.
    #[must_use]
    pub fn message(&self) -> Node {
        let Self { role, pod, namespace, address, node, cluster_id, metadata } = self;
        let shown = if address.is_empty() { NO_ADDRESS } else { address.as_str() };
        let own = [
            ("NAME", pod.as_str()),
            ("NAMESPACE", namespace.as_str()),
            ("INSTANCE_IPS", shown),
            ("NODE_NAME", node.as_str()),
            ("CLUSTER_ID", cluster_id.as_str()),
        ];
        let own = own.into_iter().filter(|(_, value)| !value.is_empty());
        // What we know ourselves stands above what was passed through.
        let members = metadata.clone().into_iter().chain(own.map(|(name, value)| (name.to_owned(), Json::from(value))));
        Node {
            // The domain isn't the cluster's own: every node proxy writes it so.
            id: format!("{role}~{shown}~{pod}.{namespace}~{namespace}.svc.cluster.local"),
            cluster: String::new(),
            metadata: Some(members.collect()),
        }
    }
}

// === impl Role ===

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ztunnel => "ztunnel",
            Self::Waypoint => "waypoint",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protobuf::value::Kind;

    #[test]
    fn a_node_is_written_as_control_planes_read_it() {
        let identity = NodeIdentity {
            role: Role::Ztunnel,
            pod: "ztunnel-abc".into(),
            namespace: "istio-system".into(),
            address: "10.0.0.7".into(),
            node: "worker-1".into(),
            cluster_id: "c1".into(),
            metadata: BTreeMap::from([
                ("ISTIO_VERSION".to_owned(), Json::from("1.32")),
                ("LABELS".to_owned(), serde_json::json!({"app": "ztunnel", "n": [1, true, null]})),
                ("NAME".to_owned(), Json::from("another")),
            ]),
        };
        let node = identity.message();
        assert_eq!(node.id, "ztunnel~10.0.0.7~ztunnel-abc.istio-system~istio-system.svc.cluster.local");
        let metadata = node.metadata.expect("metadata");
        for (name, value) in [
            ("NAME", "ztunnel-abc"),
            ("NAMESPACE", "istio-system"),
            ("INSTANCE_IPS", "10.0.0.7"),
            ("NODE_NAME", "worker-1"),
            ("CLUSTER_ID", "c1"),
            ("ISTIO_VERSION", "1.32"),
        ] {
            assert_eq!(metadata.text(name), Some(value), "{name}");
        }
        assert!(
            matches!(&metadata.fields["LABELS"].kind, Some(Kind::Struct(labels)) if labels.text("app") == Some("ztunnel"))
        );
    }

    #[test]
    fn a_node_without_address_has_the_usual_one() {
        let node = NodeIdentity { pod: "z".into(), namespace: "n".into(), ..NodeIdentity::default() }.message();
        assert_eq!(node.id, "ztunnel~1.1.1.1~z.n~n.svc.cluster.local");
        let waypoint = NodeIdentity { role: Role::Waypoint, pod: "w".into(), namespace: "n".into(), ..<_>::default() };
        assert_eq!(waypoint.message().id, "waypoint~1.1.1.1~w.n~n.svc.cluster.local");
    }
}
