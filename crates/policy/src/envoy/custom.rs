//! CUSTOM policies: a filter that notes which requests they match, and one that asks an external authorizer about those
//! (`spec/authorization.md` 2.9).

use std::collections::BTreeMap;

use ambit_api::{AuthorizationPolicy, authorization_policy::Action};
use serde_json::{Map, Value, json};

use super::{EnvoyTarget, HTTP_FILTER, NETWORK_FILTER, NETWORK_STAT_PREFIX, Protocol, add_rules, is_dry_run, rbac};
use crate::CompileError;

const STAT_PREFIX: &str = "istio_ext_authz_";
const BAD_ACTION: &str = "-deny-due-to-bad-CUSTOM-action";

/// An external authorizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalAuthorizer {
    /// The Envoy cluster that leads to it.
    pub cluster: String,
    /// How it is asked.
    pub protocol: ExternalProtocol,
    /// How long it may take to answer.
    pub timeout_ms: u32,
    /// A request goes on if it doesn't answer.
    pub fail_open: bool,
}

/// How an external authorizer is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExternalProtocol {
    /// By an HTTP request of the same path, with this in front of it.
    Http {
        /// Empty for none.
        path_prefix: String,
    },
    /// By Envoy's gRPC authorization API.
    Grpc,
}

/// Two filters for each provider. Where it can't be asked, one that denies what it would be asked about: when it isn't
/// known, when it is one of several and that isn't switched on, and for a dry run, which CUSTOM policies don't have.
pub(super) fn filters(policies: &[AuthorizationPolicy], target: &EnvoyTarget<'_>) -> Result<Vec<Value>, CompileError> {
    let mut by_provider: BTreeMap<&str, Vec<&AuthorizationPolicy>> = BTreeMap::new();
    let mut dry_runs: BTreeMap<&str, Vec<&AuthorizationPolicy>> = BTreeMap::new();
    for policy in policies.iter().filter(|policy| policy.spec.action == Action::Custom) {
        let provider = policy.spec.provider.as_ref().map_or("", |provider| &provider.name);
        let which = if is_dry_run(policy)? { &mut dry_runs } else { &mut by_provider };
        which.entry(provider).or_default().push(policy);
    }
    let can_ask = by_provider.len() <= 1 || target.options.several_providers;
    let mut filters = Vec::new();
    for (provider, policies) in dry_runs {
        let rules = rules(provider, &policies, BAD_ACTION, target)?;
        filters.push(rbac(target.protocol, Some("DENY"), Some(rules), None));
    }
    for (provider, policies) in by_provider {
        let Some(authorizer) = target.authorizers.get(provider).filter(|_| can_ask) else {
            let rules = rules(provider, &policies, BAD_ACTION, target)?;
            filters.push(rbac(target.protocol, Some("DENY"), Some(rules), None));
            continue;
        };
        if target.protocol == Protocol::Tcp && matches!(authorizer.protocol, ExternalProtocol::Http { .. }) {
            continue;
        }
        let rules = rules(provider, &policies, "", target)?;
        filters.push(rbac(target.protocol, Some("DENY"), None, Some((rules, STAT_PREFIX))));
        filters.push(ask(authorizer, target.protocol, &format!("{}ns[", id_prefix(provider))));
    }
    Ok(filters)
}

fn id_prefix(provider: &str) -> String {
    format!("istio-ext-authz-{provider}-")
}

fn rules(
    provider: &str,
    policies: &[&AuthorizationPolicy],
    suffix: &str,
    target: &EnvoyTarget<'_>,
) -> Result<Map<String, Value>, CompileError> {
    let prefix = id_prefix(provider);
    let mut rules = Map::new();
    for policy in policies {
        add_rules(&mut rules, policy, target, |id| format!("{prefix}{id}{suffix}"))?;
    }
    Ok(rules)
}

/// The filter that asks, if the one before it matched a rule of this provider.
fn ask(authorizer: &ExternalAuthorizer, protocol: Protocol, id_prefix: &str) -> Value {
    let (name, kind, rbac_filter) = match protocol {
        Protocol::Http => (
            "envoy.filters.http.ext_authz",
            "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
            HTTP_FILTER,
        ),
        Protocol::Tcp => (
            "envoy.filters.network.ext_authz",
            "type.googleapis.com/envoy.extensions.filters.network.ext_authz.v3.ExtAuthz",
            NETWORK_FILTER,
        ),
    };
    let timeout = format!("{}.{:03}s", authorizer.timeout_ms / 1000, authorizer.timeout_ms % 1000);
    let mut config = json!({
        "@type": kind,
        "transportApiVersion": "V3",
        "failureModeAllow": authorizer.fail_open,
        "filterEnabledMetadata": {
            "filter": rbac_filter,
            "path": [{"key": format!("{STAT_PREFIX}shadow_effective_policy_id")}],
            "value": {"stringMatch": {"prefix": id_prefix}},
        },
    });
    match &authorizer.protocol {
        ExternalProtocol::Grpc => {
            config["grpcService"] = json!({"envoyGrpc": {"clusterName": authorizer.cluster}, "timeout": timeout});
        }
        ExternalProtocol::Http { path_prefix } => {
            let uri = format!("http://{}", authorizer.cluster);
            config["httpService"] =
                json!({"serverUri": {"uri": uri, "cluster": authorizer.cluster, "timeout": timeout}});
            if !path_prefix.is_empty() {
                config["httpService"]["pathPrefix"] = path_prefix.as_str().into();
            }
        }
    }
    match protocol {
        Protocol::Http => config["statusOnError"] = json!({"code": "Forbidden"}),
        Protocol::Tcp => config["statPrefix"] = NETWORK_STAT_PREFIX.into(),
    }
    json!({"name": name, "typedConfig": config})
}
