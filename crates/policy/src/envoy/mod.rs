//! Policies as Envoy's own filters, for people who run Envoy and for the comparison of the engine with one.
//!
//! Rendered from the policies as they are written, not from what the engine compiled: the two say the same meaning
//! independently, so running the filters in an Envoy checks the engine (`cargo xtask conformance envoy`). The shape is
//! that of Istio's filters (`spec/authorization.md` 2.3 to 2.6, 2.9, 2.10).

mod condition;
mod custom;
mod field;
mod rule;
mod value;

use std::collections::BTreeMap;

use ambit_api::{AuthorizationPolicy, authorization_policy::Action};
use serde_json::{Map, Value, json};

use crate::{CompileError, Options, PolicyName};

pub use custom::{ExternalAuthorizer, ExternalProtocol};

/// Filter state in which an Istio waypoint keeps the identity of the client, `spiffe://` included.
pub const PEER_PRINCIPAL: &str = "io.istio.peer_principal";

const HTTP_FILTER: &str = "envoy.filters.http.rbac";
const HTTP_TYPE: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
const NETWORK_FILTER: &str = "envoy.filters.network.rbac";
const NETWORK_TYPE: &str = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC";
const NETWORK_STAT_PREFIX: &str = "tcp.";
const DRY_RUN: &str = "istio.io/dry-run";

/// The Envoy that the filters are for.
#[derive(Clone, Debug)]
pub struct EnvoyTarget<'a> {
    /// The mesh.
    pub options: &'a Options,
    /// What the filters see.
    pub protocol: Protocol,
    /// Where they find who is calling.
    pub identity: IdentitySource,
    /// Whose reading of the identity fields.
    pub dialect: Dialect,
    /// The external authorizers that CUSTOM policies can name. One that isn't here denies what its policies match.
    pub authorizers: &'a BTreeMap<String, ExternalAuthorizer>,
}

/// What a filter sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP requests: filters of an HTTP connection manager.
    Http,
    /// Connections: network filters. Rules that need an HTTP field are left out of ALLOW policies; elsewhere only the
    /// field is (`spec/authorization.md` 2.5).
    Tcp,
}

/// Where the identity of the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentitySource {
    /// The certificate of the connection's mutual TLS.
    MutualTls,
    /// A filter state object of this key, as on a waypoint, where the tunnel carried the identity.
    FilterState(&'static str),
}

/// How identity fields are rendered where Istio's filters take more than they should (`spec/authorization.md` 2.12 rows
/// 10, 11 and 13).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// As Ambit means them: what matches must be parts of a whole SPIFFE identity, except where a match denies; there what
    /// Istio matches is matched too.
    #[default]
    Strict,
    /// As Istio renders them: a search anywhere in the identity.
    Istio,
}

/// The filters, in the order in which Envoy must have them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EnvoyFilters {
    /// CUSTOM: before the filter that verifies tokens (`spec/authorization.md` 2.3).
    pub before_authentication: Vec<Value>,
    /// AUDIT, DENY, ALLOW: after it.
    pub after_authentication: Vec<Value>,
}

/// Renders the policies that apply to one target.
///
/// As with [`crate::compile`], attachment is not looked at: the caller passes the policies that apply.
///
/// # Errors
/// On the first value that can't be used. Nothing is left out because it can't be rendered.
pub fn filters(policies: &[AuthorizationPolicy], target: &EnvoyTarget<'_>) -> Result<EnvoyFilters, CompileError> {
    let before_authentication = custom::filters(policies, target)?;
    let mut after_authentication = Vec::new();
    for (action, word, prefix) in [
        (Action::Audit, Some("LOG"), "istio_dry_run_audit_"),
        (Action::Deny, Some("DENY"), "istio_dry_run_deny_"),
        (Action::Allow, None, "istio_dry_run_allow_"),
    ] {
        let (mut enforced, mut shadow) = (None, None);
        for policy in policies.iter().filter(|policy| policy.spec.action == action) {
            let rules = if is_dry_run(policy)? { &mut shadow } else { &mut enforced };
            add_rules(rules.get_or_insert_default(), policy, target, |id| id)?;
        }
        if enforced.is_some() || shadow.is_some() {
            after_authentication.push(rbac(target.protocol, word, enforced, shadow.map(|rules| (rules, prefix))));
        }
    }
    Ok(EnvoyFilters { before_authentication, after_authentication })
}

/// Adds each rule under its id. A policy without rules gets one that never matches: it still counts as a policy.
fn add_rules(
    rules: &mut Map<String, Value>,
    policy: &AuthorizationPolicy,
    target: &EnvoyTarget<'_>,
    name: impl Fn(String) -> String,
) -> Result<(), CompileError> {
    let id = |index| name(format!("ns[{}]-policy[{}]-rule[{index}]", policy.namespace, policy.name));
    let written = policy.spec.rules.as_deref().unwrap_or_default();
    if written.is_empty() {
        let never = json!({"permissions": [{"notRule": {"any": true}}], "principals": [{"notId": {"any": true}}]});
        rules.insert(id(0), never);
    }
    for (index, rule) in written.iter().enumerate() {
        let place = Place { policy, target, field: format!("spec.rules[{index}]"), negated: false };
        if let Some(rule) = rule::render(rule, &place)? {
            rules.insert(id(index), rule);
        }
    }
    Ok(())
}

/// An RBAC filter. `action` is nothing for ALLOW, which is Envoy's default.
fn rbac(
    protocol: Protocol,
    action: Option<&str>,
    rules: Option<Map<String, Value>>,
    shadow: Option<(Map<String, Value>, &str)>,
) -> Value {
    let with_action = |policies: Map<String, Value>| {
        let mut rules = Map::new();
        if let Some(action) = action {
            rules.insert("action".into(), action.into());
        }
        if !policies.is_empty() {
            rules.insert("policies".into(), policies.into());
        }
        Value::Object(rules)
    };
    let (name, kind) = match protocol {
        Protocol::Http => (HTTP_FILTER, HTTP_TYPE),
        Protocol::Tcp => (NETWORK_FILTER, NETWORK_TYPE),
    };
    let mut config = Map::from_iter([("@type".to_owned(), Value::from(kind))]);
    if let Some(rules) = rules {
        config.insert("rules".into(), with_action(rules));
    }
    if let Some((shadow, prefix)) = shadow {
        config.insert("shadowRules".into(), with_action(shadow));
        config.insert("shadowRulesStatPrefix".into(), prefix.into());
    }
    if protocol == Protocol::Tcp {
        config.insert("statPrefix".into(), NETWORK_STAT_PREFIX.into());
    }
    json!({"name": name, "typedConfig": config})
}

fn is_dry_run(policy: &AuthorizationPolicy) -> Result<bool, CompileError> {
    match policy.annotations.get(DRY_RUN).map(String::as_str) {
        None | Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some(other) => Err(CompileError {
            policy: name(policy),
            field: format!("metadata.annotations[{DRY_RUN}]"),
            message: format!("`{other}` isn't a boolean; write `true` or `false`"),
        }),
    }
}

fn name(policy: &AuthorizationPolicy) -> PolicyName {
    PolicyName { namespace: policy.namespace.as_str().into(), name: policy.name.as_str().into() }
}

/// Where in which policy, for which Envoy.
#[derive(Clone, Debug)]
struct Place<'a> {
    policy: &'a AuthorizationPolicy,
    target: &'a EnvoyTarget<'a>,
    field: String,
    /// It is the `not` form of a field.
    negated: bool,
}

// === impl Place ===

impl Place<'_> {
    fn at(&self, part: impl std::fmt::Display) -> Self {
        Self { field: format!("{}{part}", self.field), ..self.clone() }
    }

    fn error(&self, message: impl Into<String>) -> CompileError {
        CompileError { policy: name(self.policy), field: self.field.clone(), message: message.into() }
    }

    /// A match must be of a whole identity: it helps to allow.
    fn is_strict(&self) -> bool {
        let allows = (self.policy.spec.action == Action::Allow) != self.negated;
        self.target.dialect == Dialect::Strict && allows
    }

    fn is_http(&self) -> bool {
        self.target.protocol == Protocol::Http
    }
}
