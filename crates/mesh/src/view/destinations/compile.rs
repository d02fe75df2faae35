//! From DestinationRules as they were written to treatments. What can't be read closes the service.

use std::{collections::HashMap, sync::Arc, time::Duration};

use ::http::HeaderName;
use ambit_api::{
    DestinationRule,
    destination_rule::{
        ConnectionPool, ConsistentHash, H2UpgradePolicy, LoadBalancer, OutlierDetection, PortPolicy, SimpleBalancing,
        Tls, TlsMode, TrafficPolicy, duration, duration_or_never,
    },
};
use ambit_xds::waypoint::{AttachedDestinationRule, BoundService, DestinationSettings};

use super::{
    Balancer, Destination, HashBy, Limits, LocalityPattern, Nearness, Outliers, Ports, Share, Subset, Treatment,
    UpstreamHttp,
};

/// Rules that may be for one host.
const MAX_RULES: usize = 64;
/// Defaults of outlier detection, as Istio's.
const CONSECUTIVE_ERRORS: u32 = 5;
const INTERVAL: Duration = Duration::from_secs(10);
const BASE_EJECTION_TIME: Duration = Duration::from_secs(30);
const MAX_EJECTION_PERCENT: u8 = 10;

/// How a service's endpoints are treated; nothing if no rule says. The error is why nothing may reach it.
pub(in crate::view) fn compile(service: &BoundService) -> (Option<Arc<Destination>>, Option<String>) {
    let Some(settings) = &service.destination else { return (None, None) };
    match read(settings) {
        Ok(destination) => (Some(Arc::new(destination)), None),
        Err(reason) => {
            let destination = Destination { closed: Some(reason.as_str().into()), ..Destination::default() };
            (Some(Arc::new(destination)), Some(reason))
        }
    }
}

fn read(settings: &DestinationSettings) -> Result<Destination, String> {
    if settings.rules.len() > MAX_RULES {
        return Err(format!("more than {MAX_RULES} DestinationRules are for the service"));
    }
    let rules: Vec<DestinationRule> = settings.rules.iter().map(rule).collect::<Result<_, _>>()?;
    let policy = rules.iter().find_map(|rule| Some((name(rule), rule.spec.traffic_policy.as_ref()?)));
    let usual = TrafficPolicy::default();
    let (named, policy) = policy.unwrap_or_else(|| (String::new(), &usual));
    let because = |name: &str, reason: String| format!("DestinationRule `{name}` can't be followed: {reason}");
    let whole = ports(policy, None).map_err(|reason| because(&named, reason))?;
    let mut subsets = HashMap::new();
    let members: HashMap<&str, _> = settings.subsets.iter().map(|subset| (subset.name.as_str(), subset)).collect();
    for rule in &rules {
        for subset in rule.spec.subsets.iter().filter(|subset| !subset.name.is_empty()) {
            if subsets.contains_key(subset.name.as_str()) {
                continue;
            }
            let ports = ports(policy, subset.traffic_policy.as_ref()).map_err(|reason| because(&name(rule), reason))?;
            let uids = members.get(subset.name.as_str()).map(|subset| subset.workloads.as_slice()).unwrap_or_default();
            let members = Arc::new(uids.iter().map(|uid| uid.as_str().into()).collect());
            subsets.insert(Arc::from(subset.name.as_str()), Subset { members, ports });
        }
    }
    Ok(Destination { closed: None, whole, subsets })
}

fn rule(wire: &AttachedDestinationRule) -> Result<DestinationRule, String> {
    let rejected = |reason: &str| format!("DestinationRule `{}/{}` was rejected: {reason}", wire.namespace, wire.name);
    if !wire.rejection.is_empty() {
        return Err(rejected(&wire.rejection));
    }
    let rule: DestinationRule =
        serde_json::from_slice(&wire.json).map_err(|error| rejected(&format!("it can't be read: {error}")))?;
    if (&rule.namespace, &rule.name) != (&wire.namespace, &wire.name) {
        return Err(rejected("it carries another rule"));
    }
    Ok(rule)
}

fn name(rule: &DestinationRule) -> String {
    format!("{}/{}", rule.namespace, rule.name)
}

/// What one place says of endpoints.
#[derive(Clone, Copy, Default)]
struct Parts<'a> {
    balancer: Option<&'a LoadBalancer>,
    pool: Option<&'a ConnectionPool>,
    outliers: Option<&'a OutlierDetection>,
    tls: Option<&'a Tls>,
}

/// A subset takes over what it doesn't say itself; a port takes over nothing (as in Istio).
fn ports(policy: &TrafficPolicy, subset: Option<&TrafficPolicy>) -> Result<Ports, String> {
    for policy in std::iter::once(policy).chain(subset) {
        if policy.tunnel.is_some() || policy.proxy_protocol.is_some() {
            return Err("`tunnel` and `proxyProtocol` aren't supported".to_owned());
        }
    }
    let whole = Parts::of(policy);
    let others = subset.map_or(whole, |subset| Parts::of(subset).or(whole));
    let mut by_port = HashMap::new();
    // A subset's own come last, so that they count.
    let written = policy.port_level_settings.iter().chain(subset.into_iter().flat_map(|s| &s.port_level_settings));
    for written in written {
        let number = written.port.as_ref().and_then(|port| u16::try_from(port.number).ok());
        let number = number.filter(|number| *number != 0).ok_or("settings of a port name no port")?;
        by_port.insert(number, Arc::new(Parts::of_port(written).treatment()?));
    }
    Ok(Ports { others: Arc::new(others.treatment()?), by_port })
}

fn balancer(written: Option<&LoadBalancer>) -> Result<Balancer, String> {
    let Some(written) = written else { return Ok(Balancer::default()) };
    if let Some(hash) = &written.consistent_hash {
        return Ok(Balancer::Hash(hash_by(hash)?));
    }
    Ok(match written.simple.unwrap_or_default() {
        SimpleBalancing::RoundRobin => Balancer::RoundRobin,
        SimpleBalancing::Random => Balancer::Random,
        SimpleBalancing::Unspecified
        | SimpleBalancing::LeastConn
        | SimpleBalancing::LeastRequest
        | SimpleBalancing::Passthrough => Balancer::LeastRequest,
    })
}

fn hash_by(written: &ConsistentHash) -> Result<HashBy, String> {
    if !written.http_header_name.is_empty() {
        let name = HeaderName::from_bytes(written.http_header_name.as_bytes());
        return name.map(HashBy::Header).map_err(|_| "`httpHeaderName` is not a header's name".to_owned());
    }
    if let Some(cookie) = &written.http_cookie {
        return Ok(HashBy::Cookie(cookie.name.as_str().into()));
    }
    if !written.http_query_parameter_name.is_empty() {
        return Ok(HashBy::Query(written.http_query_parameter_name.as_str().into()));
    }
    match written.use_source_ip {
        Some(true) => Ok(HashBy::Source),
        _ => Err("`consistentHash` doesn't say by what".to_owned()),
    }
}

/// As in Istio: shares if there are some, else regions, which count where outliers are detected.
fn nearness(written: Option<&LoadBalancer>, detects: bool) -> Result<Option<Nearness>, String> {
    let written = written.and_then(|balancer| balancer.locality_lb_setting.as_ref());
    if written.is_some_and(|written| written.enabled == Some(false)) {
        return Ok(Some(Nearness::Off));
    }
    if let Some(written) = written.filter(|written| !written.distribute.is_empty()) {
        let from = written.distribute.iter().map(|distribute| {
            let shares = distribute.to.iter().filter(|(_, weight)| **weight != 0);
            let shares = shares.map(|(to, weight)| Ok(Share { to: LocalityPattern::parse(to)?, weight: *weight }));
            Ok((LocalityPattern::parse(&distribute.from)?, shares.collect::<Result<_, String>>()?))
        });
        return Ok(Some(Nearness::Distribute { from: from.collect::<Result<_, String>>()? }));
    }
    let regions = written.into_iter().flat_map(|written| &written.failover);
    let regions = regions.map(|change| (change.from.as_str().into(), change.to.as_str().into())).collect();
    Ok(detects.then_some(Nearness::Failover { regions }))
}

fn limits(pool: Option<&ConnectionPool>) -> Result<Limits, String> {
    let mut limits = Limits::default();
    let time = |text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => duration(text).map(Some).ok_or_else(|| format!("`{text}` is not a duration")),
    };
    let timeout = |text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => duration_or_never(text).map(Some).map_err(|_| format!("`{text}` is not a duration")),
    };
    if let Some(tcp) = pool.and_then(|pool| pool.tcp.as_ref()) {
        limits.connections = tcp.max_connections;
        limits.connect_timeout = time(&tcp.connect_timeout)?;
        limits.connection_duration = time(&tcp.max_connection_duration)?;
        limits.tcp_idle_timeout = timeout(&tcp.idle_timeout)?;
    }
    if let Some(http) = pool.and_then(|pool| pool.http.as_ref()) {
        limits.pending_requests = http.http1_max_pending_requests;
        limits.requests = http.http2_max_requests;
        limits.requests_per_connection = http.max_requests_per_connection.filter(|most| *most != 0);
        limits.retries = http.max_retries;
        limits.http_idle_timeout = timeout(&http.idle_timeout)?;
    }
    Ok(limits)
}

fn outliers(written: &OutlierDetection) -> Result<Outliers, String> {
    let time = |text: &Option<String>, usual| match text {
        None => Ok(usual),
        Some(text) => duration(text).ok_or_else(|| format!("`{text}` is not a duration")),
    };
    let percent = |value: Option<i64>, usual| match value {
        None => Ok(usual),
        Some(value) if (0..=100).contains(&value) => Ok(value as u8),
        Some(value) => Err(format!("{value} is not a percentage")),
    };
    let some = |value: u32| (value != 0).then_some(value);
    let apart = written.split_external_local_origin_errors == Some(true);
    let unreachable = written.consecutive_local_origin_failures.unwrap_or(CONSECUTIVE_ERRORS);
    Ok(Outliers {
        errors: some(written.consecutive_5xx_errors.unwrap_or(CONSECUTIVE_ERRORS)),
        gateway_errors: some(written.consecutive_gateway_errors.unwrap_or(0)),
        // Counted apart and never too many: as many as there can be.
        unreachable: apart.then(|| some(unreachable).unwrap_or(u32::MAX)),
        interval: time(&written.interval, INTERVAL)?,
        base: time(&written.base_ejection_time, BASE_EJECTION_TIME)?,
        most_percent: percent(written.max_ejection_percent, MAX_EJECTION_PERCENT)?,
        least_percent: percent(written.min_health_percent, 0)?,
    })
}

fn http(pool: Option<&ConnectionPool>) -> UpstreamHttp {
    let Some(http) = pool.and_then(|pool| pool.http.as_ref()) else { return UpstreamHttp::Port };
    match (http.use_client_protocol, http.h2_upgrade_policy) {
        (Some(true), _) => UpstreamHttp::Client,
        (_, Some(H2UpgradePolicy::Upgrade)) => UpstreamHttp::Http2,
        _ => UpstreamHttp::Port,
    }
}

// === impl Parts ===

impl<'a> Parts<'a> {
    fn of(policy: &'a TrafficPolicy) -> Self {
        Self {
            balancer: policy.load_balancer.as_ref(),
            pool: policy.connection_pool.as_ref(),
            outliers: policy.outlier_detection.as_ref(),
            tls: policy.tls.as_ref(),
        }
    }

    fn of_port(policy: &'a PortPolicy) -> Self {
        Self {
            balancer: policy.load_balancer.as_ref(),
            pool: policy.connection_pool.as_ref(),
            outliers: policy.outlier_detection.as_ref(),
            tls: policy.tls.as_ref(),
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            balancer: self.balancer.or(other.balancer),
            pool: self.pool.or(other.pool),
            outliers: self.outliers.or(other.outliers),
            tls: self.tls.or(other.tls),
        }
    }

    fn treatment(self) -> Result<Treatment, String> {
        if matches!(self.tls.and_then(|tls| tls.mode), Some(TlsMode::Simple | TlsMode::Mutual)) {
            return Err("TLS from a waypoint to applications isn't supported".to_owned());
        }
        Ok(Treatment {
            balancer: balancer(self.balancer)?,
            nearness: nearness(self.balancer, self.outliers.is_some())?,
            limits: limits(self.pool)?,
            outliers: self.outliers.map(outliers).transpose()?,
            http: http(self.pool),
        })
    }
}
