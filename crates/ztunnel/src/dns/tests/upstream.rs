//! What happens to questions that resolvers outside answer, with resolvers of all kinds.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use ambit_hbone::HostNetwork;
use ambit_telemetry::metrics::Metrics;
use hickory_proto::{
    op::{Edns, Message, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{
            A, SOA, TXT,
            opt::{EdnsCode, EdnsOption},
        },
    },
};
use tokio::net::{TcpListener, UdpSocket};

use super::{addresses, ask_tcp, ask_udp, query, read_framed, world, write_framed};
use crate::{
    Config, DnsOptions, InPod, Pod,
    dns::serve::Server,
    limits::MAX_DNS_UDP_ANSWER_BYTES,
    tests::fixture::{World, ip, pod, push, service},
};

/// A resolver that remembers what it was asked, and whether over TCP.
#[derive(Clone)]
struct Resolver {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<(Message, bool)>>>,
}

impl Resolver {
    /// Answers as this says; the flag is true over TCP.
    async fn start(answer: impl Fn(&Message, bool) -> Message + Send + Sync + 'static) -> Self {
        // TCP first: its ports are scarcer.
        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = tcp.local_addr().expect("its address");
        let udp = UdpSocket::bind(address).await.expect("a socket");
        let (asked, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
        let (theirs, say) = (Arc::clone(&asked), Arc::clone(&answer));
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
                let question = Message::from_vec(&buffer[..length]).expect("a query");
                let reply = say(&question, false).to_vec().expect("a packet");
                theirs.lock().expect("not poisoned").push((question, false));
                udp.send_to(&reply, client).await.expect("sent");
            }
        });
        let theirs = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let question = read_framed(&mut stream).await.expect("a query").expect("not the end");
                let question = Message::from_vec(&question).expect("a query");
                let reply = answer(&question, true).to_vec().expect("a packet");
                theirs.lock().expect("not poisoned").push((question, true));
                write_framed(&mut stream, &reply).await.expect("sent");
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<(Message, bool)> {
        self.asked.lock().expect("not poisoned").clone()
    }
}

fn with_code(asked: &Message, code: ResponseCode) -> Message {
    let mut reply = asked.clone().into_response();
    reply.metadata.response_code = code;
    reply
}

fn with_addresses(asked: &Message, ttl: u32, addresses: &[[u8; 4]]) -> Message {
    let mut reply = asked.clone().into_response();
    for address in addresses {
        let data = RData::A(A((*address).into()));
        reply.add_answer(Record::from_rdata(asked.queries[0].name().clone(), ttl, data));
    }
    reply
}

fn no_such_name(asked: &Message, minimum: u32) -> Message {
    let mut reply = with_code(asked, ResponseCode::NXDomain);
    let name = |text: &str| Name::from_ascii(text).expect("a name");
    let soa = SOA::new(name("ns.example."), name("root.example."), 1, 2, 3, 4, minimum);
    reply.add_authority(Record::from_rdata(name("example."), 600, RData::SOA(soa)));
    reply
}

fn packet(name: &str) -> Vec<u8> {
    query(name, RecordType::A).to_vec().expect("a packet")
}

/// A client's query that says it takes so many bytes.
fn with_payload(name: &str, bytes: u16) -> Message {
    let mut asked = query(name, RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(bytes);
    asked.set_edns(edns);
    asked
}

#[tokio::test]
async fn an_answer_is_asked_for_once_while_it_lives() {
    let resolver = Resolver::start(|asked, _| with_addresses(asked, 60, &[[192, 0, 2, 1]])).await;
    let (world, server) = world("127.77.43.5", vec![resolver.address]);
    for name in ["www.example.com.", "WWW.example.COM."] {
        for answer in [ask_udp(server, &packet(name)).await.expect("in time"), ask_tcp(server, &packet(name)).await] {
            assert_eq!(addresses(&answer), [ip("192.0.2.1")]);
            let spelt = Name::from_ascii(name).expect("a name");
            assert!(answer.queries[0].name().eq_case(&spelt), "{}", answer.queries[0]);
            assert!(answer.answers[0].name.eq_case(&spelt), "{}", answer.answers[0]);
            assert!(answer.answers[0].ttl <= 60 && !answer.metadata.authoritative);
            assert!(answer.metadata.recursion_available);
        }
    }
    assert_eq!(resolver.asked().len(), 1);
    let text = world.ztunnel.shared.config.metrics.encode().expect("text");
    for sample in ["ambit_dns_cache_hits_total 3\n", "ambit_dns_cache_misses_total 1\n"] {
        assert!(text.contains(sample), "{sample}: {text}");
    }
    let labels = r#"{request_query_type="A",request_protocol="udp","#;
    assert!(text.contains(&format!("istio_dns_requests_total{labels}")), "{text}");
    assert!(text.contains(&format!("istio_dns_upstream_requests_total{labels}")), "{text}");
}

#[tokio::test]
async fn that_there_is_no_such_name_is_kept_as_long_as_its_zone_says() {
    for (address, minimum, times) in [("127.77.44.5", 60, 1), ("127.77.44.6", 0, 2)] {
        let resolver = Resolver::start(move |asked, _| no_such_name(asked, minimum)).await;
        let (_world, server) = world(address, vec![resolver.address]);
        for _ in 0..2 {
            let answer = ask_udp(server, &packet("nobody.example.")).await.expect("in time");
            assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
            assert_eq!(answer.authorities.len(), 1);
        }
        assert_eq!(resolver.asked().len(), times, "minimum {minimum}");
    }
}

#[tokio::test]
async fn questions_travel_under_their_own_id_and_spelling_and_without_the_clients_options() {
    let resolver = Resolver::start(|asked, _| with_addresses(asked, 0, &[[192, 0, 2, 1]])).await;
    let (_world, server) = world("127.77.45.5", vec![resolver.address]);
    let name = "a-long-name-with-many-letters.example.com.";
    let mut asked = with_payload(name, 4096);
    let edns = asked.edns.as_mut().expect("it was set");
    edns.set_dnssec_ok(true);
    edns.options_mut().insert(EdnsOption::Unknown(65001, b"who I am".to_vec()));
    for _ in 0..8 {
        let answer = ask_udp(server, &asked.to_vec().expect("a packet")).await.expect("in time");
        assert_eq!((answer.metadata.id, addresses(&answer)), (asked.metadata.id, vec![ip("192.0.2.1")]));
        assert!(answer.edns.is_some());
    }
    ask_udp(server, &packet(name)).await.expect("in time");
    let seen = resolver.asked();
    let (plain, with_edns) = seen.split_last().expect("queries");
    assert!(plain.0.edns.is_none(), "who didn't speak EDNS isn't made to");
    let ids: std::collections::BTreeSet<u16> = seen.iter().map(|(query, _)| query.metadata.id).collect();
    assert!(ids.len() >= 8, "{ids:?}");
    let spellings: std::collections::BTreeSet<String> =
        seen.iter().map(|(query, _)| query.queries[0].name().to_ascii()).collect();
    assert!(spellings.len() >= 8, "{spellings:?}");
    for (query, _) in with_edns {
        let edns = query.edns.as_ref().expect("EDNS");
        assert_eq!((edns.max_payload(), edns.flags().dnssec_ok), (MAX_DNS_UDP_ANSWER_BYTES, true));
        assert!(edns.option(EdnsCode::Unknown(65001)).is_none(), "the client's options stay here");
        assert!(query.metadata.recursion_desired);
    }
}

#[tokio::test]
async fn an_answer_in_another_spelling_is_believed_over_tcp_only() {
    // Over UDP somebody who doesn't know the spelling answers.
    let resolver = Resolver::start(|asked, tcp| {
        let mut reply = with_addresses(asked, 60, &[if tcp { [192, 0, 2, 1] } else { [6, 6, 6, 6] }]);
        let lower = asked.queries[0].name().to_lowercase();
        reply.queries[0].set_name(lower);
        reply
    })
    .await;
    let (_world, server) = world("127.77.46.5", vec![resolver.address]);
    let name = "a-long-name-with-many-letters.example.com.";
    let answer = ask_udp(server, &packet(name)).await.expect("in time");
    assert_eq!(addresses(&answer), [ip("192.0.2.1")]);
    assert_eq!(resolver.asked().iter().map(|(_, tcp)| *tcp).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test]
async fn a_resolver_that_fails_is_passed_over() {
    let good = Resolver::start(|asked, _| with_addresses(asked, 60, &[[192, 0, 2, 1]])).await;
    let codes = [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NotImp, ResponseCode::FormErr];
    for (number, code) in codes.into_iter().enumerate() {
        let bad = Resolver::start(move |asked, _| with_code(asked, code)).await;
        let (_both, server) = world(&format!("127.77.47.{}", 10 + number), vec![bad.address, good.address]);
        let answer = ask_udp(server, &packet("www.example.com.")).await.expect("in time");
        assert_eq!(addresses(&answer), [ip("192.0.2.1")], "{code}");
        let (_alone, server) = world(&format!("127.77.47.{}", 20 + number), vec![bad.address]);
        for _ in 0..2 {
            let answer = ask_udp(server, &packet("www.example.com.")).await.expect("in time");
            assert_eq!(answer.metadata.response_code, ResponseCode::ServFail, "{code}");
        }
        assert_eq!(bad.asked().len(), 3, "failures aren't kept");
    }
}

#[tokio::test]
async fn answers_fit_what_the_client_takes() {
    let many: Vec<[u8; 4]> = (0..100).map(|i| [192, 0, 2, i]).collect();
    let resolver = Resolver::start(move |asked, tcp| {
        let few = if tcp { &many[..] } else { &many[..60] };
        with_addresses(asked, 0, few)
    })
    .await;
    let (_world, server) = world("127.77.48.5", vec![resolver.address]);
    // Sixty addresses are about a thousand bytes.
    let cases = [(None, true), (Some(512), true), (Some(100), true), (Some(1232), false), (Some(4096), false)];
    for (payload, is_cut) in cases {
        let asked = payload.map_or_else(|| query("many.example.", RecordType::A), |p| with_payload("many.example.", p));
        let answer = ask_udp(server, &asked.to_vec().expect("a packet")).await.expect("in time");
        assert_eq!(
            (answer.metadata.truncation, answer.answers.len()),
            (is_cut, if is_cut { 0 } else { 60 }),
            "{payload:?}"
        );
        let bytes = answer.to_vec().expect("a packet").len();
        assert!(bytes <= usize::from(payload.unwrap_or(512).max(512)), "{payload:?}: {bytes} bytes");
    }
    assert_eq!(addresses(&ask_tcp(server, &packet("many.example.")).await).len(), 100);
}

#[tokio::test]
async fn other_types_and_later_versions() {
    let resolver = Resolver::start(|asked, _| {
        let mut reply = asked.clone().into_response();
        let text = RData::TXT(TXT::new(vec!["a text".to_owned()]));
        reply.add_answer(Record::from_rdata(asked.queries[0].name().clone(), 60, text));
        reply
    })
    .await;
    let (_world, server) = world("127.77.49.5", vec![resolver.address]);
    let asked = query("www.example.com.", RecordType::TXT).to_vec().expect("a packet");
    let answer = ask_udp(server, &asked).await.expect("in time");
    assert_eq!(answer.answers[0].record_type(), RecordType::TXT);
    let mut later = with_payload("app.", 1232);
    later.edns.as_mut().expect("it was set").set_version(1);
    let answer = ask_udp(server, &later.to_vec().expect("a packet")).await.expect("in time");
    // Also the number of a code that means something else elsewhere.
    assert_eq!(u16::from(answer.metadata.response_code), u16::from(ResponseCode::BADVERS));
}

#[tokio::test]
async fn in_a_cluster_names_that_only_its_own_dns_knows_are_passed_on() {
    let resolver = Resolver::start(|asked, _| with_addresses(asked, 0, &[[10, 9, 9, 9]])).await;
    let world = World::with(Config { upstream_dns: vec![resolver.address], ..Config::default() });
    push(&world.store, &[], &[&service("app", &["10.96.0.2"], 80, None)]);
    let in_pod = InPod {
        name: "client".to_owned(),
        service_account: "client".to_owned(),
        cluster: "Kubernetes".to_owned(),
        node: None,
        addresses: vec![ip("127.77.50.5")],
        ipv6: false,
    };
    let pod = Pod {
        uid: "some-uid".into(),
        ip: ip("127.77.50.5"),
        namespace: "ns".to_owned(),
        network: Arc::new(HostNetwork),
        captured: false,
        in_pod: Some(in_pod),
    };
    // Without a mark, which needs a privilege.
    world.ztunnel.add(pod).expect("the pod's listeners");
    let server = world.ztunnel.pod("some-uid").expect("the pod").dns;
    let ask = |name: &'static str, kind: RecordType| async move {
        ask_udp(server, &query(name, kind).to_vec().expect("a packet")).await.expect("in time")
    };
    assert_eq!(addresses(&ask("app.ns.svc.cluster.local.", RecordType::A).await), [ip("10.96.0.2")]);
    for name in ["external-name.ns.svc.cluster.local.", "10-244-0-2.ns.pod.cluster.local."] {
        assert_eq!(addresses(&ask(name, RecordType::A).await), [ip("10.9.9.9")], "{name}");
    }
    // Only addresses are the mesh's to tell.
    ask("app.ns.svc.cluster.local.", RecordType::SRV).await;
    assert_eq!(resolver.asked().len(), 3);
}

#[tokio::test]
async fn before_the_pod_is_known_nothing_is_asked_outside() {
    let resolver = Resolver::start(|asked, _| with_addresses(asked, 60, &[[6, 6, 6, 6]])).await;
    let world = World::with(Config { upstream_dns: vec![resolver.address], ..Config::default() });
    let client = pod("client", "127.77.51.5");
    world.serve(&client);
    let server = world.ztunnel.pod(&client.uid).expect("the pod").dns;
    let asked = tokio::spawn(async move { ask_udp(server, &packet("www.example.com.")).await });
    // The query has arrived when it is counted.
    let counted = || world.ztunnel.shared.config.metrics.encode().expect("text").contains("istio_dns_requests_total{");
    for _ in 0..500 {
        if counted() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(counted() && resolver.asked().is_empty());
    let mut entry = service("entry", &["240.240.0.1"], 443, None);
    "www.example.com".clone_into(&mut entry.hostname);
    push(&world.store, &[&client], &[&entry]);
    let answer = asked.await.expect("no panic").expect("in time");
    assert_eq!((addresses(&answer), resolver.asked().len()), (vec![ip("240.240.0.1")], 0));
}

#[tokio::test]
async fn nobody_but_the_pod_is_served() {
    let (world, _) = world("127.77.52.5", Vec::new());
    let server = Server::new(world.ztunnel.pod("Kubernetes//Pod/ns/client").expect("the pod"));
    let cases = [
        ("127.0.0.1:5", true),
        ("[::1]:5", true),
        ("127.77.52.5:5", true),
        ("[::ffff:127.77.52.5]:5", true),
        ("10.244.0.9:5", false),
        ("[::ffff:10.244.0.9]:5", false),
        ("[fd00::9]:5", false),
    ];
    for (client, is_served) in cases {
        assert_eq!(server.is_client(client.parse().expect("an address")), is_served, "{client}");
    }
    let metrics: &Arc<Metrics> = &world.ztunnel.shared.config.metrics;
    let text = metrics.encode().expect("text");
    assert!(text.contains(r#"ambit_refused_total{reporter="source",reason="dns_client"} 3"#), "{text}");
}

#[tokio::test]
async fn the_listener_speaks_ipv6_where_the_pod_does() {
    let options = DnsOptions::default();
    assert!(options.ipv6 && options.search.is_none() && options.preferred_namespace.is_none());
    let listeners = crate::dns::Listeners::bind(&HostNetwork, 0, None, true).expect("listeners");
    let addresses: Vec<SocketAddr> =
        listeners.sockets.iter().map(|(udp, _)| udp.local_addr().expect("an address")).collect();
    assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() == addresses[0].port()));
    let has_ipv6 = std::net::UdpSocket::bind("[::1]:0").is_ok();
    assert_eq!(addresses.iter().any(SocketAddr::is_ipv6), has_ipv6);
}
