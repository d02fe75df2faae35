//! DestinationRule: Istio's own validation, what isn't supported, and what does nothing at a waypoint.
//!
//! A setting without which requests would be sent otherwise than they should (TLS, PROXY headers) is an error, so that
//! the host is closed; one that only tunes is a warning.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use super::{Check, names, policy};
use crate::{
    DestinationRule,
    codes::{self, Code},
    destination_rule::{
        ConnectionPool, ConsistentHash, LoadBalancer, LocalitySettings, OutlierDetection, SimpleBalancing, Tls,
        TlsMode, TrafficPolicy, duration, duration_or_never,
    },
    limits::{MAX_LOCALITIES, MAX_PORT_SETTINGS, MAX_SUBSETS, MAX_TRAFFIC_DURATION},
    text::quoted,
};

/// Checks a whole DestinationRule.
pub(super) fn check(check: &mut Check<'_>, rule: &DestinationRule) {
    let spec = &rule.spec;
    check_host(check, &spec.host);
    for (index, to) in spec.export_to.iter().enumerate() {
        if to != "." && to != "*" && names::dns_label(to).is_some() {
            let message = format!("`{}` is not a namespace", quoted(to));
            let help = "use `.` for its own, `*` for all, or a namespace's name";
            check.error(codes::BAD_HOST, &format!("spec.exportTo[{index}]"), message, help);
        }
    }
    if let Some(selector) = &spec.workload_selector {
        policy::check_selector(check, selector);
        let message = "the rule isn't applied: it is for clients with these labels, and waypoints apply rules for all";
        no_effect(check, "spec.workloadSelector", message, "remove `workloadSelector`");
    }
    if let Some(policy) = &spec.traffic_policy {
        check_policy(check, "spec.trafficPolicy", policy);
    }
    at_most(check, codes::BAD_SUBSET, "spec.subsets", spec.subsets.len(), MAX_SUBSETS);
    let mut seen = HashSet::new();
    for (index, subset) in spec.subsets.iter().enumerate().take(MAX_SUBSETS) {
        let field = format!("spec.subsets[{index}]");
        let at_name = format!("{field}.name");
        if let Some(fault) = names::dns_label(&subset.name) {
            let message = format!("`{}` is not a subset's name: {fault}", quoted(&subset.name));
            check.error(codes::BAD_SUBSET, &at_name, message, "use a name like `v1`");
        } else if !seen.insert(subset.name.as_str()) {
            let message = format!("a second subset named `{}`", quoted(&subset.name));
            check.error(codes::BAD_SUBSET, &at_name, message, "give each its own name");
        }
        names::check_labels(check, &format!("{field}.labels"), &subset.labels);
        if let Some(policy) = &subset.traffic_policy {
            check_policy(check, &format!("{field}.trafficPolicy"), policy);
        }
    }
}

fn check_host(check: &mut Check<'_>, host: &str) {
    let name = host.strip_prefix("*.").unwrap_or(host).to_ascii_lowercase();
    let fault = if host == "*" { None } else { names::dns_subdomain(&name) };
    if let Some(fault) = fault {
        let message = format!("`{}` is not a host: {fault}", quoted(host));
        check.error(codes::BAD_HOST, "spec.host", message, "write a Service's name, or its full name");
    }
}

fn check_policy(check: &mut Check<'_>, field: &str, policy: &TrafficPolicy) {
    let TrafficPolicy {
        load_balancer,
        connection_pool,
        outlier_detection,
        tls,
        port_level_settings,
        tunnel,
        proxy_protocol,
        retry_budget,
    } = policy;
    check_settings(check, field, (load_balancer, connection_pool, outlier_detection, tls));
    if tunnel.is_some() {
        unsupported(check, &format!("{field}.tunnel"), "`tunnel` isn't supported");
    }
    if proxy_protocol.is_some() {
        unsupported(check, &format!("{field}.proxyProtocol"), "PROXY headers for applications aren't supported");
    }
    if retry_budget.is_some() {
        let message = "`retryBudget` of a DestinationRule isn't supported; retries keep their usual budget";
        no_effect(check, &format!("{field}.retryBudget"), message, "use an XBackendTrafficPolicy");
    }
    let at = format!("{field}.portLevelSettings");
    at_most(check, codes::BAD_TRAFFIC_SETTING, &at, port_level_settings.len(), MAX_PORT_SETTINGS);
    let mut seen = HashSet::new();
    for (index, port) in port_level_settings.iter().enumerate().take(MAX_PORT_SETTINGS) {
        let field = format!("{at}[{index}]");
        let number = port.port.as_ref().map_or(0, |port| port.number);
        let at_port = format!("{field}.port");
        if !(1..=65535).contains(&number) {
            check.error(codes::BAD_PORT, &at_port, format!("{number} is not a port"), "write `port: {number: 80}`");
        } else if !seen.insert(number) {
            let message = format!("port {number} has settings already");
            check.error(codes::BAD_TRAFFIC_SETTING, &at_port, message, "put them together");
        }
        let settings = (&port.load_balancer, &port.connection_pool, &port.outlier_detection, &port.tls);
        check_settings(check, &field, settings);
    }
}

type Settings<'a> =
    (&'a Option<LoadBalancer>, &'a Option<ConnectionPool>, &'a Option<OutlierDetection>, &'a Option<Tls>);

fn check_settings(check: &mut Check<'_>, field: &str, (balancer, pool, outliers, tls): Settings<'_>) {
    if let Some(balancer) = balancer {
        check_balancer(check, &format!("{field}.loadBalancer"), balancer, outliers.is_some());
    }
    if let Some(pool) = pool {
        check_pool(check, &format!("{field}.connectionPool"), pool);
    }
    if let Some(outliers) = outliers {
        check_outliers(check, &format!("{field}.outlierDetection"), outliers);
    }
    if let Some(tls) = tls {
        check_tls(check, &format!("{field}.tls"), tls);
    }
}

fn check_tls(check: &mut Check<'_>, field: &str, tls: &Tls) {
    match tls.mode {
        Some(TlsMode::Simple | TlsMode::Mutual) => {
            let message = "TLS from a waypoint to applications isn't supported";
            unsupported(check, &format!("{field}.mode"), message);
        }
        Some(TlsMode::Disable) => {
            let message = "the mesh's own TLS can't be switched off; applications get plain bytes as always";
            no_effect(check, &format!("{field}.mode"), message, "remove `tls`");
        }
        Some(TlsMode::IstioMutual) | None => {}
    }
    let certificates = [&tls.client_certificate, &tls.private_key, &tls.ca_certificates, &tls.credential_name];
    let ours = matches!(tls.mode, Some(TlsMode::IstioMutual | TlsMode::Disable) | None);
    if ours && (certificates.iter().any(|value| !value.is_empty()) || !tls.subject_alt_names.is_empty()) {
        let message = "certificates and names are the mesh's own; these aren't looked at";
        no_effect(check, field, message, "remove them");
    }
}

fn check_balancer(check: &mut Check<'_>, field: &str, balancer: &LoadBalancer, detects: bool) {
    let LoadBalancer { simple, consistent_hash, locality_lb_setting, warmup_duration_secs, warmup } = balancer;
    if simple.is_some() && consistent_hash.is_some() {
        let message = "`simple` and `consistentHash` are both set";
        check.error(codes::BAD_TRAFFIC_SETTING, &format!("{field}.consistentHash"), message, "keep one of the two");
    }
    if *simple == Some(SimpleBalancing::Passthrough) {
        let message = "a waypoint has no address of an endpoint to pass on, so any endpoint is taken";
        no_effect(check, &format!("{field}.simple"), message, "use LEAST_REQUEST, ROUND_ROBIN or RANDOM");
    }
    if let Some(hash) = consistent_hash {
        check_hash(check, &format!("{field}.consistentHash"), hash);
    }
    if let Some(locality) = locality_lb_setting {
        let field = format!("{field}.localityLbSetting");
        check_locality(check, &field, locality);
        if !locality.failover.is_empty() && !detects {
            let message = "`failover` counts only together with `outlierDetection`, as in Istio";
            no_effect(check, &format!("{field}.failover"), message, "add `outlierDetection: {}` beside `loadBalancer`");
        }
    }
    for (name, _) in [("warmupDurationSecs", warmup_duration_secs.is_some()), ("warmup", warmup.is_some())]
        .into_iter()
        .filter(|(_, set)| *set)
    {
        let message = "a slow start isn't supported; new endpoints get their full share at once";
        no_effect(check, &format!("{field}.{name}"), message, "remove it");
    }
}

fn check_hash(check: &mut Check<'_>, field: &str, hash: &ConsistentHash) {
    let by_address = hash.use_source_ip == Some(true);
    let named = [
        !hash.http_header_name.is_empty(),
        hash.http_cookie.is_some(),
        by_address,
        !hash.http_query_parameter_name.is_empty(),
    ];
    if named.iter().filter(|set| **set).count() != 1 {
        let message = "requests are assigned by exactly one thing";
        let help = "set one of `httpHeaderName`, `httpCookie`, `useSourceIp: true` and `httpQueryParameterName`";
        check.error(codes::BAD_TRAFFIC_SETTING, field, message, help);
    }
    if !hash.http_header_name.is_empty() && !hash.http_header_name.bytes().all(policy::is_token) {
        let message = format!("`{}` is not a header's name", quoted(&hash.http_header_name));
        check.error(
            codes::BAD_TRAFFIC_SETTING,
            &format!("{field}.httpHeaderName"),
            message,
            "write a name like `x-user`",
        );
    }
    if let Some(cookie) = &hash.http_cookie {
        if cookie.name.is_empty() || !cookie.name.bytes().all(policy::is_token) {
            let message = format!("`{}` is not a cookie's name", quoted(&cookie.name));
            let field = format!("{field}.httpCookie.name");
            check.error(codes::BAD_TRAFFIC_SETTING, &field, message, "write the cookie's name");
        }
        if cookie.ttl.as_deref().is_some_and(|ttl| duration_or_never(ttl).is_err()) {
            bad_duration(check, &format!("{field}.httpCookie.ttl"), cookie.ttl.as_deref());
        } else if cookie.ttl.is_some() {
            let message = "no cookie is made here: a request without it goes to any endpoint";
            no_effect(check, &format!("{field}.httpCookie.ttl"), message, "let the application set the cookie");
        }
    }
    let sizes = [
        ("ringHash", hash.ring_hash.is_some()),
        ("maglev", hash.maglev.is_some()),
        ("minimumRingSize", hash.minimum_ring_size.is_some()),
    ];
    for (name, _) in sizes.into_iter().filter(|(_, set)| *set) {
        let message = "endpoints are assigned by the highest of their hashes, which has no such setting";
        no_effect(check, &format!("{field}.{name}"), message, "remove it");
    }
}

fn check_locality(check: &mut Check<'_>, field: &str, locality: &LocalitySettings) {
    let LocalitySettings { distribute, failover, failover_priority, enabled: _ } = locality;
    let set = [!distribute.is_empty(), !failover.is_empty(), !failover_priority.is_empty()];
    // As in Istio, labels and regions go together.
    if set[0] && (set[1] || set[2]) {
        let message = "`distribute` leaves no room for `failover` and `failoverPriority`";
        check.error(codes::BAD_TRAFFIC_SETTING, field, message, "keep one of them");
    }
    if set[2] {
        let message = "labels as a measure of nearness aren't supported; region, zone and subzone count";
        no_effect(check, &format!("{field}.failoverPriority"), message, "use `failover` with regions");
    }
    at_most(check, codes::BAD_TRAFFIC_SETTING, &format!("{field}.distribute"), distribute.len(), MAX_LOCALITIES);
    at_most(check, codes::BAD_TRAFFIC_SETTING, &format!("{field}.failover"), failover.len(), MAX_LOCALITIES);
    let mut seen = BTreeSet::new();
    for (index, share) in distribute.iter().enumerate().take(MAX_LOCALITIES) {
        let field = format!("{field}.distribute[{index}]");
        check_locality_name(check, &format!("{field}.from"), &share.from);
        if !seen.insert(&share.from) {
            let message = format!("the shares from `{}` are given already", quoted(&share.from));
            check.error(codes::BAD_TRAFFIC_SETTING, &format!("{field}.from"), message, "put them together");
        }
        at_most(check, codes::BAD_TRAFFIC_SETTING, &format!("{field}.to"), share.to.len(), MAX_LOCALITIES);
        for (to, part) in share.to.iter().take(MAX_LOCALITIES) {
            check_locality_name(check, &format!("{field}.to[{to}]"), to);
            if !(1..=100).contains(part) {
                let message = format!("{part} is not a share");
                check.error(codes::BAD_TRAFFIC_SETTING, &format!("{field}.to[{to}]"), message, "use 1 to 100");
            }
        }
        let total: u64 = share.to.values().map(|part| u64::from(*part)).sum();
        if total != 100 {
            let message = format!("the shares make {total}, not 100");
            check.error(codes::BAD_TRAFFIC_SETTING, &format!("{field}.to"), message, "give parts of 100");
        }
    }
    for (index, change) in failover.iter().enumerate().take(MAX_LOCALITIES) {
        let field = format!("{field}.failover[{index}]");
        for (name, region) in [("from", &change.from), ("to", &change.to)] {
            if region.is_empty() || region.contains(['/', '*']) {
                let message = format!("`{}` is not a region", quoted(region));
                check.error(codes::BAD_TRAFFIC_SETTING, &format!("{field}.{name}"), message, "name a region");
            }
        }
        if change.from == change.to {
            let message = "a region can't stand in for itself";
            check.error(codes::BAD_TRAFFIC_SETTING, &format!("{field}.to"), message, "name another region");
        }
    }
}

fn check_locality_name(check: &mut Check<'_>, field: &str, name: &str) {
    let parts: Vec<_> = name.split('/').collect();
    let star = parts.iter().position(|part| part.contains('*'));
    let wild = star.is_none_or(|at| at + 1 == parts.len() && parts[at] == "*");
    if parts.len() > 3 || !wild || parts.iter().any(|part| part.is_empty()) {
        let message = format!("`{}` is not a locality", quoted(name));
        let help = "write `region/zone/subzone`; later parts may be left out, and the last may be `*`";
        check.error(codes::BAD_TRAFFIC_SETTING, field, message, help);
    }
}

fn check_pool(check: &mut Check<'_>, field: &str, pool: &ConnectionPool) {
    if let Some(tcp) = &pool.tcp {
        let at = |name: &str| format!("{field}.tcp.{name}");
        at_least_one(check, &at("maxConnections"), tcp.max_connections);
        check_duration(check, &at("connectTimeout"), tcp.connect_timeout.as_deref());
        check_duration(check, &at("maxConnectionDuration"), tcp.max_connection_duration.as_deref());
        check_timeout(check, &at("idleTimeout"), tcp.idle_timeout.as_deref());
        if tcp.tcp_keepalive.is_some() {
            let message = "`tcpKeepalive` isn't supported: the mesh's tunnels have probes of their own";
            no_effect(check, &at("tcpKeepalive"), message, "remove it");
        }
    }
    if let Some(http) = &pool.http {
        let at = |name: &str| format!("{field}.http.{name}");
        for (name, value) in [
            ("http1MaxPendingRequests", http.http1_max_pending_requests),
            ("http2MaxRequests", http.http2_max_requests),
        ] {
            at_least_one(check, &at(name), value);
        }
        check_timeout(check, &at("idleTimeout"), http.idle_timeout.as_deref());
        if http.use_client_protocol == Some(true) && http.h2_upgrade_policy.is_some() {
            let message = "`useClientProtocol` and `h2UpgradePolicy` are both set";
            check.error(codes::BAD_TRAFFIC_SETTING, &at("useClientProtocol"), message, "keep one of the two");
        }
        if http.max_concurrent_streams.is_some() {
            let message = "`maxConcurrentStreams` isn't supported: an endpoint says itself how many it takes";
            no_effect(check, &at("maxConcurrentStreams"), message, "use `http2MaxRequests`");
        }
    }
}

fn check_outliers(check: &mut Check<'_>, field: &str, outliers: &OutlierDetection) {
    let at = |name: &str| format!("{field}.{name}");
    if outliers.consecutive_errors.is_some() {
        let message = "`consecutiveErrors` has no meaning any more";
        no_effect(check, &at("consecutiveErrors"), message, "use `consecutive5xxErrors` or `consecutiveGatewayErrors`");
    }
    check_duration(check, &at("interval"), outliers.interval.as_deref());
    check_duration(check, &at("baseEjectionTime"), outliers.base_ejection_time.as_deref());
    for (name, value) in
        [("maxEjectionPercent", outliers.max_ejection_percent), ("minHealthPercent", outliers.min_health_percent)]
    {
        if let Some(value) = value.filter(|value| !(0..=100).contains(value)) {
            check.error(codes::BAD_TRAFFIC_SETTING, &at(name), format!("{value} is not a percentage"), "use 0 to 100");
        }
    }
}

fn at_least_one(check: &mut Check<'_>, field: &str, value: Option<u32>) {
    if value == Some(0) {
        let message = "0 would let nothing through";
        check.error(codes::BAD_TRAFFIC_SETTING, field, message, "use 1 or more, or leave it out");
    }
}

fn check_duration(check: &mut Check<'_>, field: &str, text: Option<&str>) {
    let fits = |length: Duration| (Duration::from_millis(1)..=MAX_TRAFFIC_DURATION).contains(&length);
    if text.is_some_and(|text| !duration(text).is_some_and(fits)) {
        bad_duration(check, field, text);
    }
}

/// Where `0s` means never.
fn check_timeout(check: &mut Check<'_>, field: &str, text: Option<&str>) {
    if text.is_some_and(|text| !matches!(duration_or_never(text), Ok(None))) {
        check_duration(check, field, text);
    }
}

fn bad_duration(check: &mut Check<'_>, field: &str, text: Option<&str>) {
    let message = format!("`{}` is not a duration that can be used", quoted(text.unwrap_or_default()));
    check.error(codes::BAD_TRAFFIC_SETTING, field, message, "write one from `1ms` to `24h`, like `30s`");
}

fn at_most(check: &mut Check<'_>, code: Code, field: &str, found: usize, most: usize) {
    if found > most {
        check.error(code, field, format!("{found} entries are more than the {most} allowed"), "write fewer");
    }
}

fn unsupported(check: &mut Check<'_>, field: &str, message: &str) {
    let message = format!("{message}, so nothing reaches the host");
    check.error(codes::UNSUPPORTED_TRAFFIC_SETTING, field, message, "remove it");
}

fn no_effect(check: &mut Check<'_>, field: &str, message: &str, help: &str) {
    check.warning(codes::TRAFFIC_SETTING_WITHOUT_EFFECT, field, message, help);
}
