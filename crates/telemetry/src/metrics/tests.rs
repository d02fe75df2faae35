//! The exposition as a scraper sees it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::*;

fn party(name: &str) -> Party {
    Party {
        workload: Some(name.into()),
        namespace: Some("ns".into()),
        canonical_service: Some(format!("{name}-svc").into()),
        canonical_revision: Some("v1".into()),
        cluster: Some("Kubernetes".into()),
        principal: format!("spiffe://cluster.local/ns/ns/sa/{name}").parse().ok(),
        ..Party::default()
    }
}

fn labels() -> TrafficLabels {
    TrafficLabels {
        reporter: Reporter::Source,
        source: party("client"),
        destination: party("server"),
        service: ServiceLabels {
            hostname: Some("server.ns.svc.cluster.local".into()),
            namespace: Some("ns".into()),
            name: Some("server".into()),
        },
        mutual_tls: true,
    }
}

/// Samples by name and labels. Fails on text that isn't OpenMetrics as far as names, types and order go.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let (mut samples, mut families) = (BTreeMap::new(), Vec::new());
    let body = text.strip_suffix("# EOF\n").expect("the end of the exposition");
    for line in body.lines() {
        if let Some(described) = line.strip_prefix("# TYPE ") {
            let (name, kind) = described.split_once(' ').expect("a name and a type");
            assert!(!families.iter().any(|(known, _)| known == name), "{name} is described twice");
            families.push((name.to_owned(), kind.to_owned()));
        } else if !line.starts_with('#') {
            let (key, value) = line.rsplit_once(' ').expect("a sample and its value");
            let name = key.split('{').next().expect("a name");
            let (family, kind) = families.last().expect("a family before its samples");
            let suffixes: &[&str] = match kind.as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "histogram" => &["_bucket", "_count", "_sum"],
                other => panic!("{family} is a {other}"),
            };
            assert!(suffixes.iter().any(|suffix| name == format!("{family}{suffix}")), "{name} in family {family}");
            let value = value.parse().expect("a number");
            assert!(samples.insert(key.to_owned(), value).is_none(), "{key} is there twice");
        }
    }
    samples
}

fn metrics() -> Arc<Metrics> {
    Metrics::new("ztunnel", "1.2.3")
}

/// The only sample of this name, with its labels in their order.
fn only<'t>(samples: &'t BTreeMap<String, f64>, name: &str) -> (Vec<(&'t str, &'t str)>, f64) {
    let found: Vec<_> = samples.iter().filter(|(key, _)| key.split('{').next() == Some(name)).collect();
    let [(key, value)] = found.as_slice() else { panic!("{name}: {found:?}") };
    let labels = key.split_once('{').map_or("", |(_, labels)| labels.strip_suffix('}').expect("the end of the labels"));
    let pair = |pair: &'t str| pair.split_once("=\"").map(|(name, value)| (name, value.trim_end_matches('"')));
    (labels.split(',').filter_map(pair).collect(), **value)
}

#[test]
fn a_connection_has_istios_labels_in_their_order() {
    let metrics = metrics();
    let connection = metrics.traffic.open(&labels());
    connection.received(7);
    connection.sent(11);
    drop(connection);
    let text = metrics.encode().expect("text");
    let samples = samples(&text);
    let expected = [
        ("reporter", "source"),
        ("source_workload", "client"),
        ("source_canonical_service", "client-svc"),
        ("source_canonical_revision", "v1"),
        ("source_workload_namespace", "ns"),
        ("source_principal", "spiffe://cluster.local/ns/ns/sa/client"),
        ("source_app", "client-svc"),
        ("source_version", "v1"),
        ("source_cluster", "Kubernetes"),
        ("destination_service", "server.ns.svc.cluster.local"),
        ("destination_service_namespace", "ns"),
        ("destination_service_name", "server"),
        ("destination_workload", "server"),
        ("destination_canonical_service", "server-svc"),
        ("destination_canonical_revision", "v1"),
        ("destination_workload_namespace", "ns"),
        ("destination_principal", "spiffe://cluster.local/ns/ns/sa/server"),
        ("destination_app", "server-svc"),
        ("destination_version", "v1"),
        ("destination_cluster", "Kubernetes"),
        ("request_protocol", "tcp"),
        ("response_flags", "-"),
        ("connection_security_policy", "mutual_tls"),
    ];
    let values = [
        ("istio_tcp_connections_opened_total", 1.0),
        ("istio_tcp_connections_closed_total", 1.0),
        ("istio_tcp_received_bytes_total", 7.0),
        ("istio_tcp_sent_bytes_total", 11.0),
    ];
    for (name, value) in values {
        assert_eq!(only(&samples, name), (expected.to_vec(), value), "{name}");
    }
    assert!(!text.contains("istio_tcp_connections_failed"), "a family appears with its first sample");
}

#[test]
fn what_is_not_known_is_unknown_and_localities_appear_together() {
    let metrics = metrics();
    let bare = TrafficLabels {
        reporter: Reporter::Destination,
        source: Party { workload: Some("".into()), ..Party::default() },
        destination: Party::default(),
        service: ServiceLabels::default(),
        mutual_tls: false,
    };
    drop(metrics.traffic.open(&bare));
    let text = metrics.encode().expect("text");
    let samples_of = samples(&text);
    let (found, _) = only(&samples_of, "istio_tcp_connections_opened_total");
    let said = [("reporter", "destination"), ("request_protocol", "tcp"), ("response_flags", "-")];
    assert!(found.iter().all(|pair| said.contains(pair) || pair.1 == "unknown"), "{found:?}");
    assert_eq!(found.len(), 23);

    let metrics = self::metrics();
    let placed = TrafficLabels { destination: Party { zone: Some("z".into()), ..Party::default() }, ..bare };
    drop(metrics.traffic.open(&placed));
    let text = metrics.encode().expect("text");
    let samples = samples(&text);
    let (found, _) = only(&samples, "istio_tcp_connections_opened_total");
    let localities = [
        ("source_region", "unknown"),
        ("source_zone", "unknown"),
        ("destination_region", "unknown"),
        ("destination_zone", "z"),
    ];
    assert_eq!(found[23..], localities);
}

#[test]
fn each_flag_has_its_own_closed_and_failed_series() {
    let cases = [
        (Flag::None, "-"),
        (Flag::Deny, "DENY"),
        (Flag::Connect, "CONNECT"),
        (Flag::TlsFailure, "TLS_FAILURE"),
        (Flag::H2HandshakeFailure, "H2_HANDSHAKE_FAILURE"),
        (Flag::NetworkPolicy, "NETWORK_POLICY"),
        (Flag::IdentityError, "IDENTITY_ERROR"),
        (Flag::CertRevoked, "CERT_REVOKED"),
    ];
    for (flag, name) in cases {
        let metrics = metrics();
        metrics.traffic.open(&labels()).fail(flag);
        let text = metrics.encode().expect("text");
        let samples = samples(&text);
        for family in ["istio_tcp_connections_closed_total", "istio_tcp_connections_failed_total"] {
            let (labels, value) = only(&samples, family);
            assert!(labels.contains(&("response_flags", name)) && value == 1.0, "{family} {name}: {labels:?}");
        }
        let (labels, _) = only(&samples, "istio_tcp_connections_opened_total");
        assert!(labels.contains(&("response_flags", "-")), "opened says nothing of the end");
        assert_eq!(flag.as_str(), name);
    }
}

#[test]
fn open_sockets_are_counted_until_they_close() {
    let metrics = metrics();
    let sockets = [Reporter::Source, Reporter::Source, Reporter::Destination].map(|end| metrics.traffic.socket(end));
    let open = |metrics: &Metrics| {
        let samples = samples(&metrics.encode().expect("text"));
        ["source", "destination"].map(|end| samples[&format!("istio_tcp_sockets_open{{reporter=\"{end}\"}}")])
    };
    assert_eq!(open(&metrics), [2.0, 1.0]);
    drop(sockets);
    assert_eq!(open(&metrics), [0.0, 0.0]);
}

#[test]
fn label_values_cannot_break_out() {
    let metrics = metrics();
    let mut labels = labels();
    labels.source.workload = Some("a\",evil=\"b\\\nc".into());
    drop(metrics.traffic.open(&labels));
    let text = metrics.encode().expect("text");
    samples(&text);
    assert!(text.contains(r#"source_workload="a\",evil=\"b\\\nc","#), "{text}");
}

#[test]
fn past_the_bound_connections_are_counted_together() {
    let traffic = Traffic::with_limit(2);
    for i in 0..5 {
        let mut labels = labels();
        labels.source.workload = Some(format!("w{i}").into());
        drop(traffic.open(&labels));
    }
    assert_eq!(traffic.overflowed(), 3);
}

#[test]
fn what_may_grow_without_end_does_not() {
    let metrics = metrics();
    for number in 0..2 * crate::limits::MAX_BUDGETS {
        metrics.refusals.watch_budget(Box::leak(format!("b{number}").into_boxed_str()), Usage::default);
    }
    for number in 0..2 * crate::limits::MAX_XDS_SERIES {
        metrics.xds.message(&format!("type.googleapis.com/t{number}"), 10);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for _ in 0..2 * crate::limits::MAX_RUNTIMES {
        metrics.runtimes.watch(runtime.handle().clone());
    }
    let samples = samples(&metrics.encode().expect("text"));
    let count = |family: &str| samples.keys().filter(|key| key.starts_with(&format!("{family}{{"))).count();
    assert_eq!(count("ambit_budget_used"), crate::limits::MAX_BUDGETS);
    assert_eq!(count("istio_xds_message_total"), crate::limits::MAX_XDS_SERIES + 1);
    assert_eq!(samples[r#"istio_xds_message_total{url="other"}"#], crate::limits::MAX_XDS_SERIES as f64);
    assert_eq!(count("tokio_worker_park_count_total"), crate::limits::MAX_RUNTIMES);
}

#[test]
fn the_other_families_have_their_names_and_labels() {
    let metrics = metrics();
    let query = DnsLabels {
        query_type: QueryType::Aaaa,
        protocol: DnsProtocol::Udp,
        source_canonical_service: Some("client-svc".into()),
        source_canonical_revision: None,
    };
    metrics.dns.request(&query).upstream(Duration::from_millis(50), false);
    metrics.dns.cached(true);
    metrics.xds.message("type.googleapis.com/istio.workload.Address", 100);
    metrics.xds.terminated(XdsEnd::ConnectionError);
    metrics.xds.rejected(3);
    metrics.pods.set(2, 1);
    metrics.pods.started();
    metrics.pods.stopped();
    metrics.revocation.rejected(Reporter::Destination);
    metrics.traffic.on_demand_dns(&party("client"), &"db.example.com".into());
    metrics.refusals.refused(Reporter::Destination, Refusal::PodConnections);
    metrics.refusals.watch_budget("connections", || Usage { used: 9, limit: 10, ..Usage::default() });
    metrics.refusals.watch_budget("connections", || Usage {
        used: 3,
        limit: 10,
        refused_by_workload: 7,
        ..Usage::default()
    });
    metrics.dropped_log_lines.fetch_add(4, Ordering::Relaxed);
    let samples = samples(&metrics.encode().expect("text"));

    let dns = r#"{request_query_type="AAAA",request_protocol="udp",source_canonical_service="client-svc",source_canonical_revision="unknown"}"#;
    let duration = "istio_dns_upstream_request_duration_seconds";
    let url = r#"{url="type.googleapis.com/istio.workload.Address"}"#;
    let expected = [
        (r#"istio_build{component="ztunnel",tag="1.2.3"}"#.to_owned(), 1.0),
        (format!("istio_dns_requests_total{dns}"), 1.0),
        (format!("istio_dns_upstream_requests_total{dns}"), 1.0),
        (format!("istio_dns_upstream_failures_total{dns}"), 1.0),
        (format!("{duration}_sum{dns}"), 0.05),
        (format!("{duration}_count{dns}"), 1.0),
        (format!("istio_xds_message_total{url}"), 1.0),
        (format!("istio_xds_message_bytes_total{url}"), 100.0),
        (r#"istio_xds_connection_terminations_total{reason="ConnectionError"}"#.to_owned(), 1.0),
        ("ambit_xds_rejected_resources_total".to_owned(), 3.0),
        ("workload_manager_active_proxy_count".to_owned(), 2.0),
        ("workload_manager_pending_proxy_count".to_owned(), 1.0),
        ("workload_manager_proxies_started_total".to_owned(), 1.0),
        ("workload_manager_proxies_stopped_total".to_owned(), 1.0),
        (r#"istio_crl_policy_rejections_total{reporter="destination"}"#.to_owned(), 1.0),
        (r#"ambit_refused_total{reporter="destination",reason="pod_connections"}"#.to_owned(), 1.0),
        (r#"ambit_budget_used{budget="connections"}"#.to_owned(), 3.0),
        (r#"ambit_budget_limit{budget="connections"}"#.to_owned(), 10.0),
        ("ambit_log_lines_dropped_total".to_owned(), 4.0),
        ("ambit_dns_cache_hits_total".to_owned(), 1.0),
        ("ambit_dns_cache_misses_total".to_owned(), 0.0),
        ("ambit_metric_overflows_total".to_owned(), 0.0),
    ];
    for (sample, value) in expected {
        assert_eq!(samples.get(&sample), Some(&value), "{sample}");
    }
    let bounds = ["0.0005", "0.001", "0.01", "0.1", "1.0", "5.0", "+Inf"];
    for (bound, count) in bounds.into_iter().zip([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]) {
        let inner = dns.trim_start_matches('{').trim_end_matches('}');
        let sample = format!(r#"{duration}_bucket{{le="{bound}",{inner}}}"#);
        assert_eq!(samples.get(&sample), Some(&count), "{sample}");
    }
    assert!(samples["process_open_fds"] >= 3.0 && samples["process_max_fds"] >= samples["process_open_fds"]);
    let on_demand = samples.keys().find(|key| key.starts_with("istio_on_demand_dns_total")).expect("the family");
    assert!(on_demand.ends_with(r#",hostname="db.example.com"}"#), "{on_demand}");
}

#[test]
fn workers_of_all_runtimes_are_numbered_on() {
    let metrics = metrics();
    let runtimes = [2, 1].map(|workers| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).build();
        runtime.expect("a runtime")
    });
    runtimes.iter().for_each(|runtime| metrics.runtimes.watch(runtime.handle().clone()));
    let samples = samples(&metrics.encode().expect("text"));
    assert_eq!(samples["tokio_num_workers"], 3.0);
    for name in ["tokio_global_queue_depth", "tokio_num_alive_tasks"] {
        assert!(samples.contains_key(name), "{name}");
    }
    let families = ["total_busy_duration_seconds", "park_count", "park_unpark_count"];
    for (family, worker) in families.into_iter().flat_map(|family| (0..3).map(move |worker| (family, worker))) {
        let sample = format!("tokio_worker_{family}_total{{worker=\"{worker}\"}}");
        assert!(samples.contains_key(&sample), "{sample}");
    }
}

#[test]
fn opening_a_connection_costs_little() {
    let metrics = metrics();
    let labels = labels();
    drop(metrics.traffic.open(&labels));
    let started = std::time::Instant::now();
    (0..10_000).for_each(|_| drop(metrics.traffic.open(&labels)));
    // A hundred times what it takes on a laptop, so that only a change of kind fails here.
    let each = started.elapsed() / 10_000;
    assert!(each < Duration::from_micros(500), "{each:?}");
    println!("opening and closing: {each:?}");
}

#[test]
fn records_without_a_place_in_the_queue_are_counted() {
    let metrics = Metrics::new("ztunnel", "1.2.3");
    let (recorder, _records) = crate::recorder_counting(Arc::clone(&metrics.dropped_records));
    let decision = ambit_policy::Decision::deny("no ALLOW rule matches");
    let (source, destination) = (crate::Source::default(), crate::Destination::default());
    let record = crate::DecisionRecord::new(crate::Enforcer::ZtunnelInbound, source, destination, "TCP", &decision);
    for _ in 0..crate::MAX_QUEUED_RECORDS + 3 {
        recorder.record(record.clone());
    }
    let samples = samples(&metrics.encode().expect("text"));
    assert_eq!(samples.get("ambit_decision_records_dropped_total"), Some(&3.0));
}
