//! `security.istio.io/v1 PeerAuthentication` (`spec/control-plane.md` 3.2): whether plaintext is taken.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    authorization_policy::{WorkloadSelector, null_as_default},
    schema::rules,
};

/// A PeerAuthentication with the metadata that gives it its meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAuthentication {
    /// Namespace of the object; without a selector the root namespace's speaks for the whole mesh.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// When it was made, in RFC 3339; nothing for one read from a file. Of several at one level the oldest counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// What it says.
    #[serde(default)]
    pub spec: PeerAuthenticationSpec,
}

/// The `spec` of a PeerAuthentication.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules::PORTS_NEED_SELECTOR))]
pub struct PeerAuthenticationSpec {
    /// Pods it applies to; absent (or without labels) means the whole namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// For every port that isn't named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MutualTls>,
    /// For single ports of the pod, by their number in decimal. Only with a selector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minProperties" = 1, "x-kubernetes-validations" = rules::PORT_KEYS))]
    pub port_level_mtls: Option<BTreeMap<String, MutualTls>>,
}

/// What is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MutualTls {
    /// The mode.
    #[serde(default, deserialize_with = "null_as_default")]
    pub mode: Mode,
}

/// What is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// What the next wider level says; at the widest, [`Mode::Permissive`].
    #[default]
    Unset,
    /// The same as [`Mode::Permissive`]: a node proxy can't refuse mutual TLS.
    Disable,
    /// Mutual TLS and plaintext.
    Permissive,
    /// Only mutual TLS.
    Strict,
}

// === impl PeerAuthentication ===

impl PeerAuthentication {
    /// The labels that it selects pods by; nothing for one that speaks for its whole namespace.
    #[must_use]
    pub fn match_labels(&self) -> Option<&BTreeMap<String, String>> {
        self.spec.selector.as_ref().map(|selector| &selector.match_labels).filter(|labels| !labels.is_empty())
    }

    /// Its mode for the ports that it doesn't name.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.spec.mtls.map_or(Mode::Unset, |mtls| mtls.mode)
    }

    /// Its ports with their modes; a port that isn't a number is left out (validation refuses it).
    pub fn ports(&self) -> impl Iterator<Item = (u16, Mode)> {
        let ports = self.spec.port_level_mtls.iter().flatten();
        ports.filter_map(|(port, mtls)| Some((port.parse().ok()?, mtls.mode)))
    }
}
