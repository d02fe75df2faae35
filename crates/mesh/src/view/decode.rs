//! From wire messages to the view's types. Nothing here trusts its input.

mod address;

use ambit_api::AuthorizationPolicy;
use ambit_policy::{Options, PathNormalization, ProviderKind};
use ambit_xds::{
    mesh::{Mesh, PathNormalization as WirePaths},
    security::{Authorization, POLICY_EXTENSION, POLICY_TYPE, Policy, Scope},
    workload as wire,
};
use prost::Message;

pub(super) use self::address::{Address, Names, WorkloadFacts, address, service_key};

/// Addresses, ports, memberships or guards one resource may list.
pub(super) const MAX_LIST_ENTRIES: usize = 4096;

fn bounded(what: &str, length: usize) -> Result<(), String> {
    if length <= MAX_LIST_ENTRIES {
        Ok(())
    } else {
        Err(format!("{length} {what}, at most {MAX_LIST_ENTRIES} are read"))
    }
}

/// Reads what holds for the whole mesh.
pub(super) fn mesh(value: &[u8]) -> Option<(Options, PathNormalization)> {
    let message = Mesh::decode(value).ok().filter(|message| !message.trust_domains.is_empty())?;
    let paths = match WirePaths::try_from(message.path_normalization).ok()? {
        WirePaths::AllReadings => PathNormalization::AllReadings,
        WirePaths::None => PathNormalization::None,
        WirePaths::Base => PathNormalization::Base,
        WirePaths::MergeSlashes => PathNormalization::MergeSlashes,
        WirePaths::DecodeAndMergeSlashes => PathNormalization::DecodeAndMergeSlashes,
    };
    let several_providers = message.several_providers;
    let kind = |grpc: bool| if grpc { ProviderKind::Grpc } else { ProviderKind::Http };
    let options = Options {
        trust_domains: message.trust_domains,
        root_namespace: message.root_namespace,
        providers: message.providers.into_iter().map(|provider| (provider.name, kind(provider.grpc))).collect(),
        several_providers,
    };
    Some((options, paths))
}

/// An [`Authorization`], read as far as it could be.
pub(super) struct AuthorizationFacts {
    /// What it applies to; nothing if even that can't be read.
    pub(super) scope: Option<Scope>,
    pub(super) dry_run: bool,
    pub(super) policy: Result<AuthorizationPolicy, String>,
}

/// Reads an authorization resource of this name.
pub(super) fn authorization(name: &str, value: &[u8]) -> AuthorizationFacts {
    let message = match Authorization::decode(value) {
        Ok(message) => message,
        Err(error) => {
            let policy = Err(format!("not an authorization: {error}"));
            return AuthorizationFacts { scope: None, dry_run: false, policy };
        }
    };
    let scope = Scope::try_from(message.scope).ok();
    let policy = match scope {
        None => Err(format!("unknown scope {}", message.scope)),
        Some(_) if format!("{}/{}", message.namespace, message.name) != name => {
            Err("the resource's name isn't that of its content".into())
        }
        Some(_) => match message.extensions.iter().find(|extension| extension.name == POLICY_EXTENSION) {
            Some(extension) => policy_extension(extension)
                .and_then(|policy| self::policy(&policy))
                .and_then(|policy| named(policy, &message.namespace, &message.name)),
            // Another control plane's, or a local file's: all it says is in its groups.
            None => message.policy(),
        },
    };
    AuthorizationFacts { scope, dry_run: message.dry_run, policy }
}

fn policy_extension(extension: &wire::Extension) -> Result<Policy, String> {
    match &extension.config {
        Some(any) if any.type_url == POLICY_TYPE => {
            Policy::decode(any.value.as_slice()).map_err(|error| format!("its policy can't be read: {error}"))
        }
        _ => Err(format!("its extension isn't a `{POLICY_TYPE}`")),
    }
}

fn named(policy: AuthorizationPolicy, namespace: &str, name: &str) -> Result<AuthorizationPolicy, String> {
    if policy.namespace == namespace && policy.name == name {
        Ok(policy)
    } else {
        Err(format!("it carries another policy, `{}/{}`", policy.namespace, policy.name))
    }
}

/// Reads a policy as the user wrote it.
pub(super) fn policy(message: &Policy) -> Result<AuthorizationPolicy, String> {
    if !message.rejection.is_empty() {
        return Err(message.rejection.clone());
    }
    let policy = serde_json::from_slice(&message.json).map_err(|error| format!("it can't be read: {error}"))?;
    named(policy, &message.namespace, &message.name)
}
