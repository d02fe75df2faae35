//! DestinationRule: what is refused, and what does nothing, at its field.

use ambit_api::{Resource, Severity, codes, load_text};

fn object(spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: r, namespace: a}}\nspec: {spec}\n"
    )
}

fn policy(policy: &str) -> String {
    object(&format!("{{host: s, trafficPolicy: {policy}}}"))
}

fn found(text: &str) -> Vec<(Severity, &'static str, String)> {
    let loaded = load_text("r.yaml", text);
    loaded
        .diagnostics
        .iter()
        .map(|found| (found.severity, found.code, found.field.clone().unwrap_or_default()))
        .collect()
}

/// An error that rejects the object, at a field of its traffic policy.
#[track_caller]
fn trips(text: &str, code: &'static str, field: &str) {
    assert_eq!(found(text), [(Severity::Error, code, field.to_owned())], "{text}");
    let loaded = load_text("r.yaml", text);
    assert!(loaded.objects.first().is_none_or(|object| object.rejection.is_some()), "{text}");
}

#[test]
fn rules_that_work_pass() {
    for good in [
        object("{host: s}"),
        object("{host: \"*\", exportTo: [\".\", \"*\", b]}"),
        object("{host: \"*.a.svc.cluster.local\", subsets: [{name: v1, labels: {version: v1}}, {name: v2}]}"),
        policy(
            "{loadBalancer: {simple: LEAST_CONN}, connectionPool: {tcp: {maxConnections: 1, connectTimeout: 30ms, \
             maxConnectionDuration: 1h, idleTimeout: 0s}, http: {http1MaxPendingRequests: 1, http2MaxRequests: 2, \
             maxRequestsPerConnection: 0, maxRetries: 0, idleTimeout: 1m30s, h2UpgradePolicy: DO_NOT_UPGRADE}}, \
             outlierDetection: {consecutive5xxErrors: 0, consecutiveGatewayErrors: 5, interval: 1s, baseEjectionTime: \
             30s, maxEjectionPercent: 100, minHealthPercent: 0, splitExternalLocalOriginErrors: true, \
             consecutiveLocalOriginFailures: 3}, tls: {mode: ISTIO_MUTUAL}, portLevelSettings: [{port: {number: 80}, \
             loadBalancer: {consistentHash: {httpHeaderName: x-user}}}]}",
        ),
        policy("{loadBalancer: {consistentHash: {httpCookie: {name: c, path: /}}}}"),
        policy("{loadBalancer: {localityLbSetting: {distribute: [{from: \"eu/*\", to: {\"eu/1/*\": 80, us: 20}}]}}}"),
        policy("{loadBalancer: {localityLbSetting: {failover: [{from: eu, to: us}]}}, outlierDetection: {}}"),
    ] {
        assert_eq!(found(&good), [], "{good}");
    }
    let text = object("{host: s}").replace("networking.istio.io/v1", "networking.istio.io/v1beta1");
    let loaded = load_text("r.yaml", &text);
    let Some(Resource::DestinationRule(rule)) = loaded.objects.first().map(|object| &object.resource) else {
        panic!("not one: {:?}", loaded.diagnostics)
    };
    assert_eq!(rule.full_host("cluster.local"), "s.a.svc.cluster.local");
}

#[test]
fn what_cannot_be_is_refused_at_its_field() {
    for (text, code, field) in [
        (object("{}"), codes::BAD_HOST, "spec.host"),
        (object("{host: \"s_1\"}"), codes::BAD_HOST, "spec.host"),
        (object("{host: \"a*\"}"), codes::BAD_HOST, "spec.host"),
        (object("{host: s, exportTo: [\"~\"]}"), codes::BAD_HOST, "spec.exportTo[0]"),
        (object("{host: s, subsets: [{name: \"V 1\"}]}"), codes::BAD_SUBSET, "spec.subsets[0].name"),
        (object("{host: s, subsets: [{name: v1}, {name: v1}]}"), codes::BAD_SUBSET, "spec.subsets[1].name"),
        (object("{host: s, something: 1}"), codes::UNKNOWN_FIELD, "spec.something"),
        (object("{host: s, trafficPolicy: 1}"), codes::WRONG_TYPE, "spec.trafficPolicy"),
    ] {
        trips(&text, code, field);
    }
    let bad = codes::BAD_TRAFFIC_SETTING;
    for (setting, code, field) in [
        ("{connectionPool: {tcp: {maxConnections: 0}}}", bad, "connectionPool.tcp.maxConnections"),
        ("{connectionPool: {tcp: {connectTimeout: soon}}}", bad, "connectionPool.tcp.connectTimeout"),
        ("{connectionPool: {tcp: {connectTimeout: 0s}}}", bad, "connectionPool.tcp.connectTimeout"),
        ("{connectionPool: {tcp: {idleTimeout: 25h}}}", bad, "connectionPool.tcp.idleTimeout"),
        ("{connectionPool: {http: {http2MaxRequests: 0}}}", bad, "connectionPool.http.http2MaxRequests"),
        ("{connectionPool: {http: {http1MaxPendingRequests: 0}}}", bad, "connectionPool.http.http1MaxPendingRequests"),
        (
            "{connectionPool: {http: {useClientProtocol: true, h2UpgradePolicy: UPGRADE}}}",
            bad,
            "connectionPool.http.useClientProtocol",
        ),
        ("{outlierDetection: {interval: 0s}}", bad, "outlierDetection.interval"),
        ("{outlierDetection: {maxEjectionPercent: 101}}", bad, "outlierDetection.maxEjectionPercent"),
        ("{outlierDetection: {minHealthPercent: -1}}", bad, "outlierDetection.minHealthPercent"),
        ("{loadBalancer: {consistentHash: {}}}", bad, "loadBalancer.consistentHash"),
        (
            "{loadBalancer: {consistentHash: {httpHeaderName: \"x y\"}}}",
            bad,
            "loadBalancer.consistentHash.httpHeaderName",
        ),
        (
            "{loadBalancer: {consistentHash: {httpCookie: {name: \"\"}}}}",
            bad,
            "loadBalancer.consistentHash.httpCookie.name",
        ),
        ("{loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}}", bad, "loadBalancer.consistentHash"),
        (
            "{loadBalancer: {localityLbSetting: {distribute: [{from: eu, to: {us: 99}}]}}}",
            bad,
            "loadBalancer.localityLbSetting.distribute[0].to",
        ),
        (
            "{loadBalancer: {localityLbSetting: {distribute: [{from: \"eu/*/a\", to: {us: 100}}]}}}",
            bad,
            "loadBalancer.localityLbSetting.distribute[0].from",
        ),
        (
            "{loadBalancer: {localityLbSetting: {failover: [{from: eu, to: eu}]}}, outlierDetection: {}}",
            bad,
            "loadBalancer.localityLbSetting.failover[0].to",
        ),
        ("{portLevelSettings: [{port: {number: 0}}]}", codes::BAD_PORT, "portLevelSettings[0].port"),
        ("{portLevelSettings: [{port: {number: 80}}, {port: {number: 80}}]}", bad, "portLevelSettings[1].port"),
        ("{tls: {mode: SIMPLE}}", codes::UNSUPPORTED_TRAFFIC_SETTING, "tls.mode"),
        ("{tls: {mode: MUTUAL}}", codes::UNSUPPORTED_TRAFFIC_SETTING, "tls.mode"),
        ("{proxyProtocol: {version: V1}}", codes::UNSUPPORTED_TRAFFIC_SETTING, "proxyProtocol"),
        ("{tunnel: {protocol: CONNECT}}", codes::UNSUPPORTED_TRAFFIC_SETTING, "tunnel"),
    ] {
        trips(&policy(setting), code, &format!("spec.trafficPolicy.{field}"));
    }
}

#[test]
fn what_does_nothing_is_said() {
    let warns = |text: &str, field: &str| {
        let expected = (Severity::Warning, codes::TRAFFIC_SETTING_WITHOUT_EFFECT, field.to_owned());
        assert_eq!(found(text), [expected], "{text}");
    };
    warns(&object("{host: s, workloadSelector: {matchLabels: {app: x}}}"), "spec.workloadSelector");
    for (setting, field) in [
        ("{loadBalancer: {simple: PASSTHROUGH}}", "loadBalancer.simple"),
        ("{loadBalancer: {warmup: {duration: 30s}}}", "loadBalancer.warmup"),
        ("{loadBalancer: {warmupDurationSecs: 30s}}", "loadBalancer.warmupDurationSecs"),
        ("{loadBalancer: {consistentHash: {useSourceIp: true, maglev: {}}}}", "loadBalancer.consistentHash.maglev"),
        (
            "{loadBalancer: {consistentHash: {httpCookie: {name: c, ttl: 0s}}}}",
            "loadBalancer.consistentHash.httpCookie.ttl",
        ),
        (
            "{loadBalancer: {localityLbSetting: {failoverPriority: [x]}}, outlierDetection: {}}",
            "loadBalancer.localityLbSetting.failoverPriority",
        ),
        (
            "{loadBalancer: {localityLbSetting: {failover: [{from: eu, to: us}]}}}",
            "loadBalancer.localityLbSetting.failover",
        ),
        ("{connectionPool: {tcp: {tcpKeepalive: {probes: 1}}}}", "connectionPool.tcp.tcpKeepalive"),
        ("{connectionPool: {http: {maxConcurrentStreams: 1}}}", "connectionPool.http.maxConcurrentStreams"),
        ("{outlierDetection: {consecutiveErrors: 1}}", "outlierDetection.consecutiveErrors"),
        ("{retryBudget: {percent: 20}}", "retryBudget"),
        ("{tls: {mode: DISABLE}}", "tls.mode"),
        ("{tls: {mode: ISTIO_MUTUAL, subjectAltNames: [x]}}", "tls"),
    ] {
        warns(&policy(setting), &format!("spec.trafficPolicy.{field}"));
    }
}

#[test]
fn one_whose_form_is_wrong_still_names_its_host() {
    let loaded = load_text("r.yaml", &object("{host: s, trafficPolicy: {connectionPool: 7}}"));
    assert!(loaded.objects.is_empty());
    let [malformed] = loaded.malformed.as_slice() else { panic!("{:?}", loaded.malformed) };
    let Resource::DestinationRule(rule) = &malformed.resource else { panic!("{malformed:?}") };
    assert_eq!((rule.spec.host.as_str(), malformed.rejection.is_some()), ("s", true));
}
