//! `security.istio.io/v1 AuthorizationPolicy` (`spec/authorization.md` 2.1). The crates that exist have no Rust type
//! for Istio's kinds, so this one is ours; field names and nesting are Istio's.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::schema::rules;

/// A policy with the metadata that gives it its meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorizationPolicy {
    /// Namespace of the object; with the root namespace it widens the policy's scope.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// Annotations; only `istio.io/dry-run` has a meaning here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What the policy says.
    #[serde(default)]
    pub spec: AuthorizationPolicySpec,
}

/// The `spec` of an AuthorizationPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules::ONE_ATTACHMENT))]
pub struct AuthorizationPolicySpec {
    /// Pods the policy applies to at their node proxy; absent means the whole namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// Objects the policy is attached to, enforced by their waypoint. At most 16.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// The older, single form of `target_refs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<PolicyTargetReference>,
    /// What a match means.
    #[serde(default, deserialize_with = "null_as_default")]
    pub action: Action,
    /// The external authorizer of a CUSTOM policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
    /// Any rule that matches makes the policy match. At most 512. Absent and empty differ only in validation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub rules: Option<Vec<Rule>>,
}

/// A written `null` is as good as a field that isn't written, as in Kubernetes.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// What a matching policy does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Permit the request; once any ALLOW policy applies, everything else is denied.
    #[default]
    Allow,
    /// Refuse the request, whatever ALLOW policies say.
    Deny,
    /// Record a match without changing the verdict.
    Audit,
    /// Ask an external authorizer.
    Custom,
}

/// Pods by their labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSelector {
    /// All of these labels must be present with these values.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(extend(
        "maxProperties" = rules::MAX_LABELS,
        "x-kubernetes-validations" = rules::LABEL_KEYS,
        "additionalProperties" = {
            "type": "string",
            "maxLength": rules::MAX_LABEL_VALUE,
            "x-kubernetes-validations": rules::LABEL_VALUE,
        },
    ))]
    pub match_labels: BTreeMap<String, String>,
}

/// A reference to the object a policy is attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("required" = ["kind", "name"], "x-kubernetes-validations" = rules::TARGET_KINDS))]
pub struct PolicyTargetReference {
    /// API group; `""` (or left out, or `core`) is the core group.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(length(max = 253), regex(pattern = rules::GROUP_PATTERN))]
    pub group: String,
    /// Kind: Service, ServiceEntry, Gateway or GatewayClass.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(length(min = 1, max = 63), regex(pattern = rules::KIND_PATTERN))]
    pub kind: String,
    /// Name of the object, in the policy's own namespace.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Must be empty: references don't cross namespaces.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    #[schemars(extend("x-kubernetes-validations" = rules::NO_NAMESPACE))]
    pub namespace: String,
}

/// The external authorizer that a CUSTOM policy names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Provider {
    /// Name of a mesh extension provider.
    #[serde(default, deserialize_with = "null_as_default")]
    pub name: String,
}

/// One rule: `from`, `to` and every `when` must all match; an absent part matches anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Any of these sources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub from: Option<Vec<From>>,
    /// Any of these operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub to: Option<Vec<To>>,
    /// All of these conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<Vec<Condition>>,
}

/// An entry of `from`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct From {
    /// The source; its fields are AND-ed, the values in one field OR-ed.
    #[serde(default, deserialize_with = "null_as_default")]
    pub source: Source,
}

/// An entry of `to`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct To {
    /// The operation; its fields are AND-ed, the values in one field OR-ed.
    #[serde(default, deserialize_with = "null_as_default")]
    pub operation: Operation,
}

macro_rules! string_lists {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident),* $(,)? }) => {
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        $(#[$doc])*
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub struct $name {
            $($(#[$fdoc])* #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")] pub $field: Vec<String>,)*
        }

        impl $name {
            /// True if no field has a value.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                true $(&& self.$field.is_empty())*
            }
        }
    };
}

string_lists! {
    /// Who is calling.
    #[schemars(extend("x-kubernetes-validations" = rules::SERVICE_ACCOUNTS_ALONE))]
    Source {
        /// Peer identities without the scheme: `cluster.local/ns/a/sa/b`; exact, prefix, suffix or presence.
        principals,
        /// None of these peer identities.
        not_principals,
        /// Token identities: `issuer/subject`.
        request_principals,
        /// None of these token identities.
        not_request_principals,
        /// Namespaces of the peer identity.
        namespaces,
        /// None of these namespaces.
        not_namespaces,
        /// `account` (in the policy's namespace) or `namespace/account`. At most 16.
        #[schemars(length(max = 16), inner(length(max = 320)))]
        service_accounts,
        /// None of these service accounts.
        #[schemars(length(max = 16), inner(length(max = 320)))]
        not_service_accounts,
        /// Trust domains of the peer identity.
        trust_domains,
        /// None of these trust domains.
        not_trust_domains,
        /// Address or CIDR of the immediate peer.
        ip_blocks,
        /// None of these.
        not_ip_blocks,
        /// Address or CIDR of the original client behind trusted proxies.
        remote_ip_blocks,
        /// None of these.
        not_remote_ip_blocks,
    }
}

string_lists! {
    /// What is called.
    Operation {
        /// `:authority`, case-insensitive, port included.
        hosts,
        /// None of these hosts.
        not_hosts,
        /// Destination ports, decimal.
        ports,
        /// None of these ports.
        not_ports,
        /// HTTP methods.
        methods,
        /// None of these methods.
        not_methods,
        /// Paths without the query; exact, prefix, suffix, presence, or a `{*}`/`{**}` template.
        paths,
        /// None of these paths.
        not_paths,
    }
}

/// A condition on one attribute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("required" = ["key"]))]
pub struct Condition {
    /// The attribute, for example `request.headers[x-team]`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub key: String,
    /// Any of these values.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// None of these values.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub not_values: Vec<String>,
}
