//! Custom resource definitions: what an API server takes of the kinds that the mesh reads.
//!
//! The fields come from the Rust types themselves (`schemars`), so a field can't be in one and not in the other; the
//! bounds and rules stand beside the fields, as `#[schemars(...)]`. A schema refuses what Istio's refuses
//! (`spec/authorization.md` 2.1 and 2.11); everything else that [`crate::validate`] finds is for the admission webhook.

mod gateway;
pub(crate) mod rules;
mod structural;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Value, json};

use self::structural::structural;
use crate::{
    authorization_policy::AuthorizationPolicySpec, destination_rule::DestinationRuleSpec, mesh_config::MeshConfigSpec,
    peer_authentication::PeerAuthenticationSpec, request_authentication::RequestAuthenticationSpec,
    traffic_policy::TrafficPolicySpec,
};

/// The label that all definitions made here have, and its value. One without it is somebody else's.
pub const OWNER_LABEL: (&str, &str) = ("app.kubernetes.io/part-of", "ambit");

/// All definitions, Istio's kinds and our own first, those of the Gateway API behind them.
///
/// # Errors
/// Never, unless a type's schema holds what Kubernetes has no word for; a test holds that none does.
pub fn definitions() -> Result<Vec<CustomResourceDefinition>, serde_json::Error> {
    let mut definitions = Vec::new();
    for kind in KINDS {
        definitions.push(serde_json::from_value(kind.definition())?);
    }
    definitions.extend(gateway::definitions()?);
    Ok(definitions)
}

/// What a definition says besides the schema.
struct Kind {
    group: &'static str,
    /// The first one is the one that is stored.
    versions: &'static [&'static str],
    name: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    categories: &'static [&'static str],
    scope: &'static str,
    /// Name, path and type of what `kubectl get` shows.
    columns: &'static [(&'static str, &'static str, &'static str)],
    /// Fields that an object must have.
    required: &'static [&'static str],
    spec: fn() -> Value,
}

const AGE: (&str, &str, &str) = ("Age", ".metadata.creationTimestamp", "date");
const SECURITY: &[&str] = &["istio-io", "security-istio-io"];
const NETWORKING: &[&str] = &["istio-io", "networking-istio-io"];

const KINDS: &[Kind] = &[
    Kind {
        group: "security.istio.io",
        versions: &["v1", "v1beta1"],
        name: "AuthorizationPolicy",
        plural: "authorizationpolicies",
        short: &["ap"],
        categories: SECURITY,
        scope: "Namespaced",
        columns: &[("Action", ".spec.action", "string"), AGE],
        required: &[],
        spec: spec::<AuthorizationPolicySpec>,
    },
    Kind {
        group: "security.istio.io",
        versions: &["v1", "v1beta1"],
        name: "PeerAuthentication",
        plural: "peerauthentications",
        short: &["pa"],
        categories: SECURITY,
        scope: "Namespaced",
        columns: &[("Mode", ".spec.mtls.mode", "string"), AGE],
        required: &[],
        spec: spec::<PeerAuthenticationSpec>,
    },
    Kind {
        group: "security.istio.io",
        versions: &["v1", "v1beta1"],
        name: "RequestAuthentication",
        plural: "requestauthentications",
        short: &["ra"],
        categories: SECURITY,
        scope: "Namespaced",
        columns: &[],
        required: &[],
        spec: spec::<RequestAuthenticationSpec>,
    },
    Kind {
        group: "networking.istio.io",
        versions: &["v1", "v1beta1", "v1alpha3"],
        name: "DestinationRule",
        plural: "destinationrules",
        short: &["dr"],
        categories: NETWORKING,
        scope: "Namespaced",
        columns: &[("Host", ".spec.host", "string"), AGE],
        required: &[],
        spec: spec::<DestinationRuleSpec>,
    },
    Kind {
        group: "ambit.dev",
        versions: &["v1"],
        name: "TrafficPolicy",
        plural: "trafficpolicies",
        short: &[],
        categories: &["ambit"],
        scope: "Namespaced",
        columns: &[AGE],
        required: &["spec"],
        spec: spec::<TrafficPolicySpec>,
    },
    Kind {
        group: "ambit.dev",
        versions: &["v1alpha1"],
        name: "MeshConfig",
        plural: "meshconfigs",
        short: &[],
        categories: &["ambit"],
        scope: "Cluster",
        columns: &[AGE],
        required: &[],
        spec: spec::<MeshConfigSpec>,
    },
];

/// The structural schema of a type.
fn spec<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().for_deserialize().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
        settings.transforms.clear();
    });
    let mut schema = SchemaGenerator::new(settings).into_root_schema_for::<T>().to_value();
    structural(&mut schema);
    schema
}

// === impl Kind ===

impl Kind {
    fn definition(&self) -> Value {
        let schema = json!({
            "type": "object",
            "required": self.required,
            "properties": {"spec": (self.spec)(), "status": status()},
        });
        let column = |(name, path, kind): &(&str, &str, &str)| json!({"name": name, "jsonPath": path, "type": kind});
        let columns: Vec<_> = self.columns.iter().map(column).collect();
        let version = |(index, name): (usize, &&str)| {
            json!({
                "name": name,
                "served": true,
                "storage": index == 0,
                "subresources": {"status": {}},
                "additionalPrinterColumns": columns,
                "schema": {"openAPIV3Schema": schema},
            })
        };
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{}.{}", self.plural, self.group), "labels": {OWNER_LABEL.0: OWNER_LABEL.1}},
            "spec": {
                "group": self.group,
                "names": {
                    "kind": self.name,
                    "listKind": format!("{}List", self.name),
                    "plural": self.plural,
                    "singular": self.name.to_ascii_lowercase(),
                    "shortNames": self.short,
                    "categories": self.categories,
                },
                "scope": self.scope,
                "versions": self.versions.iter().enumerate().map(version).collect::<Vec<_>>(),
            },
        })
    }
}

/// Istio's status. Unlike Istio's its conditions are a map, so that writers of different conditions don't collide.
fn status() -> Value {
    let time = json!({"type": "string", "format": "date-time"});
    let text = json!({"type": "string"});
    let generation = json!({"x-kubernetes-int-or-string": true});
    json!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": {
            "conditions": {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type"],
                    "properties": {
                        "type": text, "status": text, "reason": text, "message": text,
                        "lastProbeTime": time, "lastTransitionTime": time, "observedGeneration": generation,
                    },
                },
            },
            "observedGeneration": generation,
        },
    })
}

#[cfg(test)]
mod tests;
