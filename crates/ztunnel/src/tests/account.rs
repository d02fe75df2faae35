//! What metrics and the access log say of connections, from both ends (`spec/ztunnel.md` 14 and 15).

use ambit_policy::Verdict;
use ambit_telemetry::{AccessLine, DecisionRecord, Enforcer, log::LogFormat};
use http::HeaderMap;
use tokio::net::TcpListener;

use super::{
    fixture::{
        World, application, at, converse, echo, endpoint, greeting, id, ip, pod, policy, push, service, was_reset,
        waypoint,
    },
    inbound::{captured, connect},
};

const DENY_CLIENT: &str =
    r#"{"action":"DENY","rules":[{"from":[{"source":{"principals":["cluster.local/ns/ns/sa/client"]}}]}]}"#;

fn ended(enforcer: Enforcer) -> impl Fn(&DecisionRecord) -> bool {
    move |record| record.enforcer == enforcer && record.connection.as_ref().is_some_and(|facts| !facts.opened)
}

fn line(record: &DecisionRecord) -> String {
    let line = AccessLine::new(record, LogFormat::Plain).to_string();
    line.split_once('\t').expect("a time").1.to_owned()
}

/// The sum of a metric's series that have all these labels.
fn metric(world: &World, name: &str, labels: &[&str]) -> u64 {
    let text = world.ztunnel.shared.config.metrics.encode().expect("text");
    let series = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.split_once("} "));
    let wanted = series.filter(|(found, _)| labels.iter().all(|label| found.contains(label)));
    wanted.map(|(_, value)| value.parse::<u64>().expect("a count")).sum()
}

/// A client and a server with one service in front, both served, and the server's address.
async fn pair(net: &str) -> (World, ambit_xds::workload::Workload, std::net::SocketAddr) {
    let world = World::new();
    let target = application(ip(&format!("{net}.2"))).await;
    let named = |mut workload: ambit_xds::workload::Workload, name: &str| {
        workload.workload_name = format!("{name}-owner");
        workload.canonical_name = name.to_owned();
        workload.cluster_id = format!("{name}-cluster");
        workload
    };
    let app = named(endpoint(pod("app", &format!("{net}.2")), "app", 80, target.port()), "app");
    let client = named(pod("client", &format!("{net}.5")), "client");
    push(&world.store, &[&app, &client], &[&service("app", &["10.96.0.2"], 80, None)]);
    world.serve(&app);
    world.serve(&client);
    (world, client, target)
}

#[tokio::test]
async fn both_ends_count_a_connection_and_write_a_line() {
    let (mut world, client, target) = pair("127.77.81").await;
    let mut stream = world.enter(&client, at("10.96.0.2:80")).await;
    let origin = format!("127.77.81.5:{}", stream.local_addr().expect("an address").port());
    converse(&mut stream).await;
    let (mut out, mut into) = (None, None);
    while out.is_none() || into.is_none() {
        let record = world.record_that(|record| record.connection.as_ref().is_some_and(|facts| !facts.opened)).await;
        let place = if record.enforcer == Enforcer::ZtunnelOutbound { &mut out } else { &mut into };
        assert!(place.replace(record).is_none(), "one line for each end");
    }
    let (out, into) = (line(&out.expect("a record")), line(&into.expect("a record")));
    let whole = |line: &str| line.rsplit_once(" duration=").expect("a duration").0.to_owned();
    let who = "src.workload=\"client\" src.namespace=\"ns\" src.identity=\"spiffe://cluster.local/ns/ns/sa/client\" \
               src.cluster=\"client-cluster\" dst.addr=127.77.81.2:15008";
    let whom = "dst.service=\"app.ns.svc.cluster.local\" dst.workload=\"app\" dst.namespace=\"ns\" \
                dst.identity=\"spiffe://cluster.local/ns/ns/sa/app\" dst.cluster=\"app-cluster\"";
    assert_eq!(
        whole(&out),
        format!(
            "info\taccess\tconnection complete\tsrc.addr={origin} {who} dst.hbone_addr={target} {whom} \
             direction=\"outbound\" bytes_sent=4 bytes_recv=6"
        )
    );
    // The tunnel comes from this machine's own address, which is no workload's; who calls shows by its identity.
    let whole_into = whole(&into);
    let (head, rest) = whole_into.split_once(" src.identity").expect("an identity");
    assert!(head.starts_with("info\taccess\tconnection complete\tsrc.addr=127.0.0.1:"), "{head}");
    let (_, who) = who.split_once(" src.identity").expect("an identity");
    let expected = format!("{who} dst.hbone_addr={target} {whom} direction=\"inbound\" bytes_sent=6 bytes_recv=4");
    assert_eq!(rest, expected);
    world.no_record_that(|record| record.connection.as_ref().is_some_and(|facts| !facts.opened)).await;

    for reporter in ["source", "destination"] {
        let labels = [
            &*format!("reporter=\"{reporter}\""),
            "destination_workload=\"app-owner\"",
            "destination_canonical_service=\"app\"",
            "destination_principal=\"spiffe://cluster.local/ns/ns/sa/app\"",
            "destination_service=\"app.ns.svc.cluster.local\"",
            "destination_service_name=\"app\"",
            "destination_cluster=\"app-cluster\"",
            "source_principal=\"spiffe://cluster.local/ns/ns/sa/client\"",
            "request_protocol=\"tcp\"",
            "response_flags=\"-\"",
            "connection_security_policy=\"mutual_tls\"",
        ];
        let count = |name: &str| metric(&world, name, &labels);
        assert_eq!(count("istio_tcp_connections_opened_total"), 1, "{reporter}");
        assert_eq!(count("istio_tcp_connections_closed_total"), 1, "{reporter}");
        assert_eq!(count("istio_tcp_received_bytes_total"), 4, "{reporter}");
        assert_eq!(count("istio_tcp_sent_bytes_total"), 6, "{reporter}");
        assert_eq!(metric(&world, "istio_tcp_connections_failed_total", &[]), 0);
    }
    // The server's end takes them from what the client's end says of it.
    let source =
        ["source_workload=\"client-owner\"", "source_canonical_service=\"client\"", "source_cluster=\"client-"];
    assert_eq!(metric(&world, "istio_tcp_connections_opened_total", &source), 2);
}

#[tokio::test]
async fn live_connections_are_counted_before_they_end_and_only_once() {
    let (mut world, client, target) = pair("127.77.82").await;
    let mut stream = world.enter(&client, at("10.96.0.2:80")).await;
    greeting(&mut stream).await;
    echo(&mut stream).await;
    let sent = |world: &World| metric(world, "istio_tcp_sent_bytes_total", &["reporter=\"destination\""]);
    assert_eq!((sent(&world), sent(&world)), (6, 6));
    assert_eq!(metric(&world, "istio_tcp_connections_closed_total", &[]), 0);
    assert_eq!(metric(&world, "istio_tcp_sockets_open", &["reporter=\"source\""]), 1);
    let states = world.ztunnel.workload_states();
    let out = &states["Kubernetes//Pod/ns/client"].connections.as_ref().expect("a list").outbound[0];
    assert_eq!((out.original_dst.as_str(), out.actual_dst.as_str()), ("10.96.0.2:80", "127.77.82.2:15008"));
    assert_eq!((out.protocol, out.received_bytes, out.sent_bytes), ("HBONE", 4, 6));
    let into = &states["Kubernetes//Pod/ns/app"].connections.as_ref().expect("a list").inbound[0];
    assert_eq!((into.actual_dst.clone(), into.protocol), (target.to_string(), "HBONE"));
    assert_eq!((into.received_bytes, into.sent_bytes), (4, 6));
    echo(&mut stream).await;
    drop(stream);
    world.record_that(ended(Enforcer::ZtunnelInbound)).await;
    assert_eq!(sent(&world), 10);
}

#[tokio::test]
async fn a_denied_connection_has_a_line_at_each_end_with_its_error_and_policy() {
    let (mut world, client, _) = pair("127.77.83").await;
    policy(&world.store, "no-client", DENY_CLIENT);
    assert!(was_reset(&mut world.enter(&client, at("10.96.0.2:80")).await).await);
    let into = world.record_that(ended(Enforcer::ZtunnelInbound)).await;
    assert_eq!((into.verdict, into.rule), (Verdict::Deny, Some(0)));
    let text = line(&into);
    assert!(text.starts_with("error\taccess\tconnection complete\t"), "{text}");
    let expected = "error=\"connection refused by policy\" policy=\"ns/no-client\" rule=0 reason=";
    assert!(text.contains(expected), "{text}");
    let out = world.record_that(ended(Enforcer::ZtunnelOutbound)).await;
    assert!(!out.announces_decision(), "the other end has told it");
    let text = line(&out);
    assert!(text.starts_with("error\taccess\tconnection complete\t") && text.contains("policy ns/no-client"), "{text}");
    for reporter in ["reporter=\"source\"", "reporter=\"destination\""] {
        let labels = [reporter, "response_flags=\"DENY\""];
        assert_eq!(metric(&world, "istio_tcp_connections_failed_total", &labels), 1, "{reporter}");
        assert_eq!(metric(&world, "istio_tcp_connections_closed_total", &labels), 1, "{reporter}");
    }
    let policy = ["reporter=\"destination\"", "reason=\"policy\""];
    assert_eq!(metric(&world, "ambit_refused_total", &policy), 1);
    assert_eq!(metric(&world, "ambit_refused_total", &[]), 1, "counted where it was decided");
}

#[tokio::test]
async fn plaintext_has_lines_without_identities() {
    let (mut world, _, target) = pair("127.77.84").await;
    converse(&mut captured(&world, target).await).await;
    let text = line(&world.record_that(ended(Enforcer::ZtunnelInbound)).await);
    assert!(text.starts_with("info\taccess\tconnection complete\t"), "{text}");
    assert!(text.contains(&format!("dst.addr={target} dst.service=\"app.ns.svc.cluster.local\"")), "{text}");
    assert!(!text.contains("identity") && !text.contains("hbone"), "{text}");
    let labels = ["reporter=\"destination\"", "source_principal=\"unknown\"", "security_policy=\"unknown\""];
    assert_eq!(metric(&world, "istio_tcp_connections_closed_total", &labels), 1);
    policy(&world.store, "strict", r#"{"action":"DENY","rules":[{"from":[{"source":{"notPrincipals":["*"]}}]}]}"#);
    assert!(was_reset(&mut captured(&world, target).await).await);
    let text = line(&world.record_that(ended(Enforcer::ZtunnelInbound)).await);
    assert!(text.contains("error=\"connection refused by policy\" policy=\"ns/strict\" rule=0"), "{text}");
}

#[tokio::test]
async fn failures_have_their_flags() {
    let (mut world, client, _) = pair("127.77.85").await;
    let closed = TcpListener::bind("127.77.85.2:0").await.expect("a listener").local_addr().expect("its address");
    // Nobody listens at the application; nobody serves the pod; somebody else has its place.
    let away = pod("away", "127.77.85.9");
    let plain = ambit_xds::workload::Workload { tunnel_protocol: 0, ..pod("plain", "127.77.85.8") };
    push(&world.store, &[&away, &plain], &[]);
    let impostor = ambit_xds::workload::Workload { service_account: "other".to_owned(), ..pod("app", "127.77.85.2") };
    let mut cases = vec![
        (closed, "CONNECT", "status 503: the application at"),
        (at("127.77.85.9:80"), "CONNECT", "can't be reached"),
        (at("127.77.85.8:9"), "CONNECT", "can't be reached"),
    ];
    for round in 0..2 {
        for (destination, flag, reason) in std::mem::take(&mut cases) {
            let labels = ["reporter=\"source\"", &*format!("response_flags=\"{flag}\"")];
            let before = metric(&world, "istio_tcp_connections_failed_total", &labels);
            assert!(was_reset(&mut world.enter(&client, destination).await).await, "{destination}");
            let record = world.record_that(ended(Enforcer::ZtunnelOutbound)).await;
            assert!(record.reason.contains(reason), "{destination}: {}", record.reason);
            let after = metric(&world, "istio_tcp_connections_failed_total", &labels);
            assert_eq!(after, before + 1, "{destination}");
        }
        if round == 0 {
            // The view says that somebody else is at the server's address than who is served there.
            let certificate = world.certificates.get(&id("app")).await.expect("its certificate");
            world.ztunnel.remove("Kubernetes//Pod/ns/app");
            let listener = loop {
                match TcpListener::bind("127.77.85.2:15008").await {
                    Ok(listener) => break listener,
                    Err(_) => tokio::task::yield_now().await,
                }
            };
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let certificate = std::sync::Arc::clone(&certificate);
                    let _ = ambit_hbone::accept(stream, certificate, &ambit_hbone::Limits::default()).await;
                }
            });
            push(&world.store, &[&impostor], &[]);
            cases = vec![(closed, "IDENTITY_ERROR", "expected SAN")];
        }
    }
}

#[tokio::test]
async fn connections_that_open_have_a_record_where_it_is_wanted() {
    let (mut world, client, _) = pair("127.77.86").await;
    converse(&mut world.enter(&client, at("10.96.0.2:80")).await).await;
    let opened = |record: &DecisionRecord| record.connection.as_ref().is_some_and(|facts| facts.opened);
    let first = world.record_that(|_| true).await;
    assert!(opened(&first) && first.enforcer == Enforcer::ZtunnelInbound, "the server's end is there first");
    assert!(line(&first).starts_with("debug\taccess\tconnection opened\t"), "{}", line(&first));
    let second = world.record_that(opened).await;
    assert_eq!(second.enforcer, Enforcer::ZtunnelOutbound);
    assert!(!second.announces_decision(), "letting a connection out decides nothing");
}

#[tokio::test]
async fn what_a_pod_leaves_behind_is_told_too() {
    let (mut world, client, _) = pair("127.77.87").await;
    let mut stream = world.enter(&client, at("10.96.0.2:80")).await;
    greeting(&mut stream).await;
    world.ztunnel.remove("Kubernetes//Pod/ns/client");
    let record = world.record_that(ended(Enforcer::ZtunnelOutbound)).await;
    let text = line(&record);
    assert!(text.contains("bytes_recv=2 ") && text.contains("connection closed due to connection drain"), "{text}");
    assert_eq!(metric(&world, "istio_tcp_connections_closed_total", &["reporter=\"source\""]), 1);
    assert_eq!(metric(&world, "istio_tcp_sockets_open", &["reporter=\"source\""]), 0);
}

#[tokio::test]
async fn what_was_refused_before_it_was_a_connection_is_told_in_a_line_of_its_own() {
    let (mut world, client, _) = pair("127.77.88").await;
    let outcome = connect(&world, "client", "127.77.88.5", "127.77.88.2", "127.77.88.9:80", HeaderMap::new()).await;
    assert!(outcome.is_err());
    let record = world.record_that(|_| true).await;
    assert!(line(&record).starts_with("warn\taccess\tconnection failed\t"), "{}", line(&record));
    assert!(was_reset(&mut world.enter(&client, at("10.96.0.2:81")).await).await);
    let record = world.record_that(|_| true).await;
    assert!(line(&record).starts_with("warn\taccess\tconnection failed\t"), "{}", line(&record));
    assert_eq!(record.destination.service.as_deref(), Some("ns/app"));
    for (reporter, reason) in [("destination", "bad_request"), ("source", "no_route")] {
        let labels = [format!("reporter=\"{reporter}\""), format!("reason=\"{reason}\"")];
        assert_eq!(metric(&world, "ambit_refused_total", &[&labels[0], &labels[1]]), 1, "{reason}");
    }
    assert_eq!(metric(&world, "istio_tcp_connections_opened_total", &[]), 0);
}

#[tokio::test]
async fn a_waypoint_in_between_is_the_peer_that_metrics_see() {
    let (mut world, _, target) = pair("127.77.89").await;
    let front = service("wp", &["10.96.0.3"], 15008, None);
    push(&world.store, &[&waypoint("wp", "127.77.89.3")], &[&service("app", &["10.96.0.2"], 80, Some("wp")), &front]);
    let mut headers = HeaderMap::new();
    headers.insert("ambit-source", id("client").to_string().parse().expect("a value"));
    let authority = target.to_string();
    let mut tunnel = connect(&world, "wp", "127.77.89.3", "127.77.89.2", &authority, headers).await.expect("let in");
    converse(&mut tunnel).await;
    let record = world.record_that(ended(Enforcer::ZtunnelInbound)).await;
    assert!(!record.announces_decision(), "the waypoint has told it");
    assert_eq!(record.source.identity, Some(id("client")), "whom policies judged");
    let labels = ["reporter=\"destination\"", "source_principal=\"spiffe://cluster.local/ns/ns/sa/wp\""];
    assert_eq!(metric(&world, "istio_tcp_connections_closed_total", &labels), 1);
}
