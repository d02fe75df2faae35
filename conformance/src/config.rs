//! The configuration of an Envoy that enforces many sets of policies at once, a listener for each.

use std::{collections::BTreeMap, net::SocketAddr};

use ambit_policy::{
    CompileError, PathNormalization,
    envoy::{
        EnvoyFilters, EnvoyTarget, ExternalAuthorizer, ExternalProtocol, IdentitySource, PEER_PRINCIPAL, Protocol,
        filters,
    },
};
use serde_json::{Value, json};

use crate::{case::PolicySet, token};

/// Type of the PROXY protocol's additional value that carries the identity.
pub const PRINCIPAL_TLV: u8 = 0xE1;
/// Prefix of the path of questions that the external authorizer answers with yes.
pub const YES: &str = "/yes";
/// Prefix of those that it answers with no.
pub const NO: &str = "/no";

const AUTHORIZER_CLUSTER: &str = "authorizer";
const AUTHORIZER_TIMEOUT_MS: u32 = 10_000;
const METADATA: &str = "ambit";
const TYPES: &str = "type.googleapis.com/envoy.extensions";

/// Listeners are named by the index of their set.
pub fn bootstrap(sets: &[PolicySet], authorizer: SocketAddr) -> Result<Value, CompileError> {
    let listeners: Vec<_> =
        sets.iter().enumerate().map(|(index, set)| listener(index, set)).collect::<Result<_, _>>()?;
    let endpoint = json!({"endpoint": {"address": address(authorizer)}});
    Ok(json!({
        "admin": {"address": address(SocketAddr::from(([127, 0, 0, 1], 0)))},
        "staticResources": {
            "listeners": listeners,
            "clusters": [{
                "name": AUTHORIZER_CLUSTER,
                "type": "STATIC",
                "connectTimeout": "10s",
                "loadAssignment": {
                    "clusterName": AUTHORIZER_CLUSTER,
                    "endpoints": [{"lbEndpoints": [endpoint]}],
                },
            }],
        },
    }))
}

fn address(address: SocketAddr) -> Value {
    json!({"socketAddress": {"address": address.ip(), "portValue": address.port()}})
}

fn listener(index: usize, set: &PolicySet) -> Result<Value, CompileError> {
    let authorizers: BTreeMap<_, _> =
        set.providers.iter().map(|(name, allows)| (name.clone(), external(*allows))).collect();
    let options = set.options();
    let target = EnvoyTarget {
        options: &options,
        protocol: if set.is_http { Protocol::Http } else { Protocol::Tcp },
        identity: IdentitySource::FilterState(PEER_PRINCIPAL),
        dialect: set.dialect,
        authorizers: &authorizers,
    };
    let policies = filters(&set.policies, &target)?;
    let tlv = json!({"tlvType": PRINCIPAL_TLV, "onTlvPresent": {"metadataNamespace": METADATA, "key": "principal"}});
    let mut listener_filters = vec![json!({
        "name": "proxy_protocol",
        "typedConfig": {"@type": format!("{TYPES}.filters.listener.proxy_protocol.v3.ProxyProtocol"), "rules": [tlv]},
    })];
    let mut filters = vec![peer_principal()];
    if set.is_http {
        filters.push(http_connection_manager(policies, set.paths));
    } else {
        listener_filters.push(json!({
            "name": "tls_inspector",
            "typedConfig": {"@type": format!("{TYPES}.filters.listener.tls_inspector.v3.TlsInspector")},
        }));
        filters.extend(policies.before_authentication);
        filters.extend(policies.after_authentication);
        filters.push(json!({
            "name": "echo",
            "typedConfig": {"@type": format!("{TYPES}.filters.network.echo.v3.Echo")},
        }));
    }
    Ok(json!({
        "name": index.to_string(),
        "address": address(SocketAddr::from(([127, 0, 0, 1], 0))),
        "additionalAddresses": [{"address": address(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 0)))}],
        "listenerFilters": listener_filters,
        "filterChains": [{"filters": filters}],
    }))
}

fn external(allows: bool) -> ExternalAuthorizer {
    ExternalAuthorizer {
        cluster: AUTHORIZER_CLUSTER.to_owned(),
        protocol: ExternalProtocol::Http { path_prefix: if allows { YES } else { NO }.to_owned() },
        timeout_ms: AUTHORIZER_TIMEOUT_MS,
        fail_open: false,
    }
}

/// Takes the identity from the connection's PROXY protocol header, as a waypoint takes it from the tunnel. Without one
/// it is `-`, as there.
fn peer_principal() -> Value {
    let text = format!("%DYNAMIC_METADATA({METADATA}:principal)%");
    json!({
        "name": "peer_principal",
        "typedConfig": {
            "@type": format!("{TYPES}.filters.network.set_filter_state.v3.Config"),
            "onNewConnection": [{
                "objectKey": PEER_PRINCIPAL,
                "factoryKey": "envoy.string",
                "formatString": {"textFormatSource": {"inlineString": text}},
            }],
        },
    })
}

fn http_connection_manager(policies: EnvoyFilters, paths: PathNormalization) -> Value {
    let mut filters = policies.before_authentication;
    filters.push(json_web_tokens());
    filters.extend(policies.after_authentication);
    filters.push(json!({
        "name": "router",
        "typedConfig": {"@type": format!("{TYPES}.filters.http.router.v3.Router")},
    }));
    let merges = matches!(paths, PathNormalization::MergeSlashes | PathNormalization::DecodeAndMergeSlashes);
    let escaped = match paths {
        PathNormalization::DecodeAndMergeSlashes => "UNESCAPE_AND_FORWARD",
        _ => "KEEP_UNCHANGED",
    };
    let route = json!({"match": {"prefix": "/"}, "directResponse": {"status": 200}});
    let config = json!({
        "@type": format!("{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "statPrefix": "http",
        "codecType": "HTTP1",
        "useRemoteAddress": false,
        "normalizePath": paths != PathNormalization::None,
        "mergeSlashes": merges,
        "pathWithEscapedSlashesAction": escaped,
        "routeConfig": {
            "name": "all",
            "virtualHosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [route],
            }],
        },
        "httpFilters": filters,
    });
    json!({"name": "http", "typedConfig": config})
}

/// Verifies a token if there is one, takes it from the request and leaves its claims behind, as for a
/// RequestAuthentication that takes any issuer.
fn json_web_tokens() -> Value {
    json!({
        "name": "envoy.filters.http.jwt_authn",
        "typedConfig": {
            "@type": format!("{TYPES}.filters.http.jwt_authn.v3.JwtAuthentication"),
            "providers": {"any": {
                "localJwks": {"inlineString": token::key_set().to_string()},
                "payloadInMetadata": "payload",
                "normalizePayloadInMetadata": {"spaceDelimitedClaims": ["permission", "scope"]},
            }},
            "rules": [{
                "match": {"prefix": "/"},
                "requires": {"requiresAny": {"requirements": [{"providerName": "any"}, {"allowMissing": {}}]}},
            }],
        },
    })
}
