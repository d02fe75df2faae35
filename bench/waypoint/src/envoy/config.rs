//! The scenario as Envoy's configuration, as Istio would write it (`spec/waypoint.md` 5.1 to 5.3). Istio's own filters are left
//! out, since a plain Envoy lacks them; a real Istio waypoint costs more than this.

use serde_json::{Map, Value, json};

use crate::{
    backend,
    place::PemFiles,
    scenario::{self, HOSTNAME, NAMESPACE, Policy, Shape, TRUST_DOMAIN, VIRTUAL},
};

/// Name of the listener that clients connect to.
pub(crate) const ENTRY: &str = "entry";

const ENVOY: &str = "type.googleapis.com/envoy";
const PRINCIPAL: &str = "io.istio.peer_principal";
const MAIN: &str = "main_internal";
const ORIGINATE: &str = "connect_originate";
const BACKEND: &str = "backend";
/// Istio's format (`spec/waypoint.md` 5.7).
const ACCESS_LOG: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% ",
    "%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% ",
    "%BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" ",
    "\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% ",
    "%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
);

/// The whole configuration.
pub(crate) fn bootstrap(shape: Shape, policies: &[Policy], backend: backend::Address, pem: &PemFiles) -> Value {
    let (listeners, clusters) = match shape {
        Shape::L7 => (vec![plain_listener(policies)], vec![plain_backend(backend)]),
        Shape::Hbone => (
            vec![terminating_listener(pem), main_listener(policies), originating_listener()],
            vec![main_cluster(), inner_backend(backend), originating_cluster(backend, pem)],
        ),
    };
    json!({
        "admin": {"address": {"socketAddress": {"address": "127.0.0.1", "portValue": 0}}},
        "bootstrapExtensions": [extension("bootstrap.internal_listener.v3.InternalListener", json!({}))],
        "staticResources": {"listeners": listeners, "clusters": clusters},
    })
}

/// `{"name": .., "typedConfig": ..}` for an extension of Envoy's; the name is of no consequence.
fn extension(kind: &str, config: Value) -> Value {
    json!({"name": kind, "typedConfig": typed(&format!("extensions.{kind}"), config)})
}

fn typed(kind: &str, mut config: Value) -> Value {
    config["@type"] = format!("{ENVOY}.{kind}").into();
    config
}

fn filter(name: &str, kind: &str, config: Value) -> Value {
    json!({"name": name, "typedConfig": typed(kind, config)})
}

fn plain_listener(policies: &[Policy]) -> Value {
    // There is no certificate, so the client's identity is given.
    let set = set_state(&[(PRINCIPAL, &scenario::client().to_string())]);
    json!({
        "name": ENTRY,
        "address": {"socketAddress": {"address": "127.0.0.1", "portValue": 0}},
        "filterChains": [{"filters": [http(policies, Some(set))]}],
    })
}

fn plain_backend(backend: backend::Address) -> Value {
    cluster(BACKEND, &json!({"socketAddress": socket(backend)}), json!({}))
}

fn socket(backend: backend::Address) -> Value {
    json!({"address": backend.plain.ip().to_string(), "portValue": backend.plain.port()})
}

/// mTLS and CONNECT from the client's node proxy.
fn terminating_listener(pem: &PemFiles) -> Value {
    let states = [
        ("envoy.filters.listener.original_dst.local_ip", "%REQ(:AUTHORITY)%"),
        ("io.istio.connect_authority", "%REQ(:AUTHORITY)%"),
        ("envoy.filters.listener.original_dst.remote_ip", "%DOWNSTREAM_REMOTE_ADDRESS%"),
        (PRINCIPAL, "%DOWNSTREAM_PEER_URI_SAN%"),
        ("io.istio.local_principal", "%DOWNSTREAM_LOCAL_URI_SAN%"),
    ];
    let connect = json!([{"upgradeType": "CONNECT", "connectConfig": {}}]);
    let manager = json!({
        "statPrefix": "connect_terminate",
        "useRemoteAddress": false,
        "streamIdleTimeout": "0s",
        "serverName": "istio-envoy",
        "forwardClientCertDetails": "APPEND_FORWARD",
        "setCurrentClientCertDetails": {"subject": true, "uri": true, "dns": true},
        "upgradeConfigs": [{"upgradeType": "CONNECT"}],
        "http2ProtocolOptions": {
            "allowConnect": true, "maxConcurrentStreams": 100,
            "connectionKeepalive": {"interval": "10s", "timeout": "20s"},
        },
        "routeConfig": {"name": "default", "virtualHosts": [{"name": "default", "domains": ["*"], "routes": [{
            "match": {"connectMatcher": {}}, "route": {"cluster": MAIN, "upgradeConfigs": connect},
        }]}]},
        "httpFilters": [set_state(&states), router()],
    });
    let tls = json!({"requireClientCertificate": true, "commonTlsContext": tls(pem)});
    json!({
        "name": ENTRY,
        "address": {"socketAddress": {"address": "127.0.0.1", "portValue": 0}},
        "connectionBalanceConfig": {"exactBalance": {}},
        "filterChains": [{
            "transportSocket": {
                "name": "tls",
                "typedConfig": typed("extensions.transport_sockets.tls.v3.DownstreamTlsContext", tls),
            },
            "filters": [manager_filter(manager)],
        }],
    })
}

/// Finds the service's chain and handles its HTTP.
fn main_listener(policies: &[Policy]) -> Value {
    let chain = format!("inbound-vip|{}|http|{HOSTNAME}", VIRTUAL.port());
    let kind = "extensions.filters.listener.http_inspector.v3.HttpInspector";
    let mut inspector = filter("http_inspector", kind, json!({}));
    inspector["filterDisabled"] =
        json!({"destinationPortRange": {"start": VIRTUAL.port(), "end": u32::from(VIRTUAL.port()) + 1}});
    let input = |kind: &str| typed(&format!("extensions.matching.common_inputs.network.v3.{kind}"), json!({}));
    let name = json!({"@type": "type.googleapis.com/google.protobuf.StringValue", "value": chain});
    let ports: Map<String, Value> =
        [(VIRTUAL.port().to_string(), json!({"action": {"name": chain, "typedConfig": name}}))].into_iter().collect();
    let by_port = json!({"matcher": {"matcherTree": {
        "input": {"name": "port", "typedConfig": input("DestinationPortInput")}, "exactMatchMap": {"map": ports},
    }}});
    let by_ip = json!({
        "@type": "type.googleapis.com/xds.type.matcher.v3.IPMatcher",
        "rangeMatchers": [{
            "ranges": [{"addressPrefix": VIRTUAL.ip().to_string(), "prefixLen": 32}], "onMatch": by_port,
        }],
    });
    json!({
        "name": MAIN,
        "internalListener": {},
        "trafficDirection": "INBOUND",
        "listenerFilters": [original_destination(), inspector],
        "filterChainMatcher": {"matcherTree": {
            "input": {"name": "ip", "typedConfig": input("DestinationIPInput")},
            "customMatch": {"name": "ip", "typedConfig": by_ip},
        }},
        "filterChains": [{"name": chain, "filters": [http(policies, None)]}],
    })
}

/// Opens tunnels to endpoints.
fn originating_listener() -> Value {
    let proxy = json!({
        "statPrefix": ORIGINATE, "cluster": ORIGINATE, "tunnelingConfig": {"hostname": "%DOWNSTREAM_LOCAL_ADDRESS%"},
    });
    json!({
        "name": ORIGINATE,
        "internalListener": {},
        "listenerFilters": [original_destination()],
        "filterChains": [{
            "filters": [filter("tcp_proxy", "extensions.filters.network.tcp_proxy.v3.TcpProxy", proxy)],
        }],
    })
}

fn main_cluster() -> Value {
    let options = json!({
        "commonHttpProtocolOptions": {"idleTimeout": "300s"},
        "useDownstreamProtocolConfig": {"httpProtocolOptions": {}, "http2ProtocolOptions": {}},
    });
    cluster(
        MAIN,
        &json!({"envoyInternalAddress": {"serverListenerName": MAIN}}),
        json!({"transportSocket": internal(json!({})), "typedExtensionProtocolOptions": http_options(options)}),
    )
}

fn inner_backend(backend: backend::Address) -> Value {
    let endpoint = backend.plain.to_string();
    let address = json!({"envoyInternalAddress": {"serverListenerName": ORIGINATE, "endpointId": endpoint}});
    let passed = json!({"passthroughMetadata": [
        {"kind": {"host": {}}, "name": "envoy.filters.listener.original_dst"}, {"kind": {"host": {}}, "name": "istio"},
    ]});
    let mut cluster = cluster(BACKEND, &address, json!({"transportSocket": internal(passed)}));
    let endpoints = &mut cluster["loadAssignment"]["endpoints"][0]["lbEndpoints"][0];
    endpoints["metadata"] = json!({"filterMetadata": {"envoy.filters.listener.original_dst": {"local": endpoint}}});
    cluster
}

fn originating_cluster(backend: backend::Address, pem: &PemFiles) -> Value {
    let options = json!({
        "commonHttpProtocolOptions": {"idleTimeout": "3600s"},
        "explicitHttpConfig": {"http2ProtocolOptions": {"allowConnect": true}},
    });
    let tls = json!({"commonTlsContext": tls(pem)});
    json!({
        "name": ORIGINATE,
        "type": "ORIGINAL_DST",
        "lbPolicy": "CLUSTER_PROVIDED",
        "connectTimeout": "10s",
        "cleanupInterval": "60s",
        "circuitBreakers": circuit_breakers(),
        "originalDstLbConfig": {"upstreamPortOverride": backend.hbone_port},
        "typedExtensionProtocolOptions": http_options(options),
        "transportSocket": {
            "name": "tls",
            "typedConfig": typed("extensions.transport_sockets.tls.v3.UpstreamTlsContext", tls),
        },
    })
}

fn cluster(name: &str, address: &Value, more: Value) -> Value {
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connectTimeout": "10s",
        "circuitBreakers": circuit_breakers(),
        "loadAssignment": {
            "clusterName": name, "endpoints": [{"lbEndpoints": [{"endpoint": {"address": address}}]}],
        },
    });
    if let (Value::Object(cluster), Value::Object(more)) = (&mut cluster, more) {
        cluster.extend(more);
    }
    cluster
}

fn circuit_breakers() -> Value {
    let most = u32::MAX;
    json!({"thresholds": [{
        "maxConnections": most, "maxPendingRequests": most, "maxRequests": most, "maxRetries": most, "trackRemaining": true,
    }]})
}

fn http_options(options: Value) -> Value {
    let kind = "extensions.upstreams.http.v3.HttpProtocolOptions";
    json!({format!("envoy.{kind}"): typed(kind, options)})
}

/// A connection within the process.
fn internal(mut config: Value) -> Value {
    let raw = typed("extensions.transport_sockets.raw_buffer.v3.RawBuffer", json!({}));
    config["transportSocket"] = json!({"name": "raw_buffer", "typedConfig": raw});
    let kind = "extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport";
    json!({"name": "internal_upstream", "typedConfig": typed(kind, config)})
}

fn tls(pem: &PemFiles) -> Value {
    json!({
        "alpnProtocols": ["h2"],
        "tlsParams": {"tlsMinimumProtocolVersion": "TLSv1_3", "tlsMaximumProtocolVersion": "TLSv1_3"},
        "tlsCertificates": [{"certificateChain": {"filename": pem.chain}, "privateKey": {"filename": pem.key}}],
        "validationContext": {
            "trustedCa": {"filename": pem.roots},
            "matchTypedSubjectAltNames": [
                {"sanType": "URI", "matcher": {"prefix": format!("spiffe://{TRUST_DOMAIN}/")}},
            ],
        },
    })
}

fn original_destination() -> Value {
    filter("original_dst", "extensions.filters.listener.original_dst.v3.OriginalDst", json!({}))
}

fn manager_filter(config: Value) -> Value {
    let kind = "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    filter("http_connection_manager", kind, config)
}

fn set_state(states: &[(&str, &str)]) -> Value {
    let states: Vec<Value> = states
        .iter()
        .map(|(key, format)| {
            let mut state = json!({
                "objectKey": key,
                "formatString": {"textFormatSource": {"inlineString": format}},
                "sharedWithUpstream": "ONCE",
            });
            if key.starts_with("io.istio") {
                state["factoryKey"] = "envoy.hashable_string".into();
            }
            state
        })
        .collect();
    let kind = "extensions.filters.http.set_filter_state.v3.Config";
    filter("set_filter_state", kind, json!({"onRequestHeaders": states}))
}

fn router() -> Value {
    filter("router", "extensions.filters.http.router.v3.Router", json!({"suppressEnvoyHeaders": false}))
}

/// The HTTP chain of the service (`spec/waypoint.md` 5.2).
fn http(policies: &[Policy], first: Option<Value>) -> Value {
    let retries = json!({
        "retryOn": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
        "numRetries": 2,
        "retryHostPredicate": [
            extension("retry.host.previous_hosts.v3.PreviousHostsPredicate", json!({})),
        ],
        "hostSelectionRetryMaxAttempts": "5",
    });
    let route = json!({
        "name": "default",
        "match": {"prefix": "/"},
        "decorator": {"operation": format!("{HOSTNAME}:{}/*", VIRTUAL.port())},
        "route": {"cluster": BACKEND, "timeout": "0s", "maxGrpcTimeout": "0s", "retryPolicy": retries},
    });
    let log = json!({
        "path": "/dev/null", "logFormat": {"textFormatSource": {"inlineString": ACCESS_LOG}},
    });
    let grpc = json!({"emitFilterState": true, "statsForAllMethods": false});
    let filters = first.into_iter().chain([
        rbac(policies),
        filter("grpc_stats", "extensions.filters.http.grpc_stats.v3.FilterConfig", grpc),
        filter("fault", "extensions.filters.http.fault.v3.HTTPFault", json!({})),
        filter("cors", "extensions.filters.http.cors.v3.Cors", json!({})),
        router(),
    ]);
    let filters: Vec<Value> = filters.collect();
    manager_filter(json!({
        "statPrefix": "inbound_8080;",
        "codecType": "AUTO",
        "useRemoteAddress": false,
        "normalizePath": true,
        "pathWithEscapedSlashesAction": "KEEP_UNCHANGED",
        "streamIdleTimeout": "0s",
        "serverName": "istio-envoy",
        "upgradeConfigs": [{"upgradeType": "websocket"}],
        "proxy100Continue": true,
        "accessLog": [filter("file", "extensions.access_loggers.file.v3.FileAccessLog", log)],
        "requestIdExtension": {
            "typedConfig": typed("extensions.request_id.uuid.v3.UuidRequestIdConfig", json!({})),
        },
        "routeConfig": {
            "name": BACKEND,
            "validateClusters": false,
            "virtualHosts": [{"name": "inbound|http|8080", "domains": ["*"], "routes": [route]}],
        },
        "httpFilters": filters,
    }))
}

fn rbac(policies: &[Policy]) -> Value {
    let rules: Map<String, Value> = policies.iter().map(|policy| (name(policy), rule(policy))).collect();
    let config = json!({"rules": {"policies": rules}, "shadowRulesStatPrefix": "istio_dry_run_allow_"});
    filter("rbac", "extensions.filters.http.rbac.v3.RBAC", config)
}

fn name(policy: &Policy) -> String {
    format!("ns[{NAMESPACE}]-policy[{}]-rule[0]", policy.name)
}

fn rule(policy: &Policy) -> Value {
    let method = |method: &&str| json!({"header": {"name": ":method", "stringMatch": {"exact": method}}});
    let methods: Vec<Value> = policy.methods.iter().map(method).collect();
    let path = match policy.path.strip_suffix('*') {
        Some(prefix) => json!({"prefix": prefix}),
        None => json!({"exact": policy.path}),
    };
    let permissions = json!([{"andRules": {"rules": [
        {"orRules": {"rules": methods}}, {"orRules": {"rules": [{"urlPath": {"path": path}}]}},
    ]}}]);
    let matches = json!({"exact": policy.principal.to_string()});
    let principal = json!({"filterState": {"key": PRINCIPAL, "stringMatch": matches}});
    json!({"permissions": permissions, "principals": [{"andIds": {"ids": [{"orIds": {"ids": [principal]}}]}}]})
}
