//! Endpoints that can't be had, names, and other networks: with real sockets and real TLS.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use ambit_hbone::{HostNetwork, Limits, Network, headers::ConnectHeaders, socket::ListenOptions};
use ambit_policy::Verdict;
use ambit_telemetry::Enforcer;
use ambit_xds::workload::{
    self as wire, GatewayAddress, LoadBalancing, NetworkAddress, Service, Workload, gateway_address::Destination,
};
use hickory_proto::{
    op::{Message, MessageType},
    rr::{RData, Record, RecordType, rdata},
};
use http::{HeaderMap, StatusCode};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncWriteExt, copy, split},
    net::{TcpListener, UdpSocket},
};

use super::fixture::{
    World, allow, application, at, converse, endpoint, id, ip, octets, pod, policy, push, service, was_reset,
};
use crate::{
    Config, Ports, Ztunnel,
    limits::{ATTEMPT_TIMEOUT, MAX_ATTEMPTS},
};

/// Listens where a pod's node proxy would, and counts who comes. What becomes of them is up to `answer`.
async fn answering(address: &str, answer: Answer, world: &World, account: &str) -> Arc<AtomicUsize> {
    let at = SocketAddr::new(ip(address), 15008);
    let listener = ambit_hbone::socket::listen(&HostNetwork, at, &ListenOptions::default()).expect("a listener");
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let certificate = world.certificates.get(&id(account)).await.expect("a certificate");
    tokio::spawn(async move {
        let mut silent = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let Answer::Status(status) = answer else {
                if matches!(answer, Answer::Silence) {
                    silent.push(stream);
                }
                continue;
            };
            let certificate = Arc::clone(&certificate);
            tokio::spawn(async move {
                let Ok(mut connection) = ambit_hbone::accept(stream, certificate, &Limits::default()).await else {
                    return;
                };
                while let Some(Ok(request)) = connection.next().await {
                    request.refuse(status);
                }
            });
        }
    });
    count
}

#[derive(Clone, Copy)]
enum Answer {
    Silence,
    Hangup,
    Status(StatusCode),
}

/// The first endpoint that is tried is `bad`, in another tier than `good`.
fn prefer(bad: Workload, good: Workload, client: Workload) -> ([Workload; 3], Service) {
    let near = |workload| Workload { node: "near".to_owned(), ..workload };
    let scope = wire::load_balancing::Scope::Node.into();
    let load_balancing = Some(LoadBalancing { routing_preference: vec![scope], mode: 2, health_policy: 0 });
    let service = Service { load_balancing, ..service("app", &["10.96.0.2"], 80, None) };
    ([near(bad), good, near(client)], service)
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_had_is_replaced_before_the_client_sees_it() {
    let cases = [
        ("127.77.41", Answer::Hangup, true),
        ("127.77.42", Answer::Status(StatusCode::SERVICE_UNAVAILABLE), true),
        ("127.77.43", Answer::Status(StatusCode::BAD_REQUEST), true),
        ("127.77.44", Answer::Status(StatusCode::UNAUTHORIZED), false),
        ("127.77.45", Answer::Status(StatusCode::FORBIDDEN), false),
    ];
    for (net, answer, again) in cases {
        let world = World::new();
        let target = application(ip(&format!("{net}.2"))).await;
        let good = endpoint(pod("good", &format!("{net}.2")), "app", 80, target.port());
        let bad = endpoint(pod("bad", &format!("{net}.3")), "app", 80, target.port());
        let (workloads, service) = prefer(bad, good, pod("client", &format!("{net}.5")));
        let [bad, good, client] = &workloads;
        push(&world.store, &[bad, good, client], &[&service]);
        world.serve(good);
        world.serve(client);
        let count = answering(&format!("{net}.3"), answer, &world, "bad").await;
        let mut stream = world.enter(client, at("10.96.0.2:80")).await;
        match again {
            true => converse(&mut stream).await,
            false => assert!(was_reset(&mut stream).await, "{net}: a policy says the same everywhere"),
        }
        assert!(count.load(Ordering::SeqCst) > 0, "{net}: it was tried first");
    }
}

#[tokio::test]
async fn an_endpoint_that_is_silent_holds_nobody_up_for_long() {
    let mut world = World::new();
    let target = application(ip("127.77.46.2")).await;
    let good = endpoint(pod("good", "127.77.46.2"), "app", 80, target.port());
    let bad = endpoint(pod("bad", "127.77.46.3"), "app", 80, target.port());
    let (workloads, service) = prefer(bad, good, pod("client", "127.77.46.5"));
    let [bad, good, client] = &workloads;
    push(&world.store, &[bad, good, client], &[&service]);
    world.serve(good);
    world.serve(client);
    let count = answering("127.77.46.3", Answer::Silence, &world, "bad").await;
    let started = Instant::now();
    let _stream = world.enter(client, at("10.96.0.2:80")).await;
    let record = tokio::time::timeout(2 * ATTEMPT_TIMEOUT, world.records.next()).await.expect("in time").expect("one");
    assert_eq!((record.verdict, record.destination.workload.as_deref()), (Verdict::Allow, Some("ns/good")));
    assert!(started.elapsed() >= ATTEMPT_TIMEOUT, "the silent one was waited for");
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn tries_are_bounded_and_the_last_failure_is_told() {
    let mut world = World::new();
    let client = pod("client", "127.77.47.5");
    let mut counts = Vec::new();
    let mut endpoints = Vec::new();
    for number in 10..16 {
        let address = format!("127.77.47.{number}");
        let name = format!("e{number}");
        counts.push(answering(&address, Answer::Hangup, &world, &name).await);
        endpoints.push(endpoint(pod(&name, &address), "app", 80, 80));
    }
    let all: Vec<&Workload> = endpoints.iter().chain([&client]).collect();
    push(&world.store, &all, &[&service("app", &["10.96.0.2"], 80, None)]);
    world.serve(&client);
    assert!(was_reset(&mut world.enter(&client, at("10.96.0.2:80")).await).await);
    let record = world.record().await;
    assert_eq!((record.verdict, record.enforcer), (Verdict::Deny, Enforcer::ZtunnelOutbound));
    assert!(record.reason.contains("can't be reached"), "{}", record.reason);
    let tried = counts.iter().filter(|count| count.load(Ordering::SeqCst) > 0).count();
    assert_eq!(tried, MAX_ATTEMPTS, "each one once");
    world.no_record().await;
}

#[tokio::test]
async fn a_denial_is_final_though_there_are_others() {
    let mut world = World::new();
    let target = application(ip("127.77.48.2")).await;
    let one = endpoint(pod("one", "127.77.48.2"), "app", 80, target.port());
    let two = endpoint(pod("two", "127.77.48.3"), "app", 80, target.port());
    let client = pod("client", "127.77.48.5");
    push(&world.store, &[&one, &two, &client], &[&service("app", &["10.96.0.2"], 80, None)]);
    policy(&world.store, "only-other", &allow(&["other"]));
    world.serve(&one);
    world.serve(&two);
    world.serve(&client);
    assert!(was_reset(&mut world.enter(&client, at("10.96.0.2:80")).await).await);
    assert_eq!(world.record().await.enforcer, Enforcer::ZtunnelInbound);
    world.no_record().await;
}

/// The host's network, in which TCP goes nowhere.
#[derive(Debug)]
struct OnlyDatagrams;

impl Network for OnlyDatagrams {
    fn socket(&self, domain: Domain, ty: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        match ty {
            Type::DGRAM => HostNetwork.socket(domain, ty, protocol),
            _ => Err(io::Error::other("asked the host")),
        }
    }
}

/// A resolver that knows these names, and counts questions.
async fn resolver(names: &'static [(&'static str, &'static str)]) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let address = socket.local_addr().expect("its address");
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            counted.fetch_add(1, Ordering::SeqCst);
            let mut message = Message::from_vec(&buffer[..length]).expect("a query");
            message.metadata.message_type = MessageType::Response;
            let query = message.queries[0].clone();
            let asked = query.name().to_ascii();
            for (name, address) in names {
                let data = match (ip(address), query.query_type()) {
                    (std::net::IpAddr::V4(ip), RecordType::A) => RData::A(rdata::A(ip)),
                    (std::net::IpAddr::V6(ip), RecordType::AAAA) => RData::AAAA(rdata::AAAA(ip)),
                    _ => continue,
                };
                // Whoever asks mixes upper and lower case, to know its own question again.
                if asked.eq_ignore_ascii_case(&format!("{name}.")) {
                    message.add_answer(Record::from_rdata(query.name().clone(), 30, data));
                }
            }
            socket.send_to(&message.to_vec().expect("an answer"), client).await.expect("sent");
        }
    });
    (address, count)
}

#[tokio::test]
async fn a_name_is_looked_up_when_somebody_connects_and_leads_only_outside() {
    const NAMES: &[(&str, &str)] = &[
        ("db.example.com", "192.0.2.7"),
        ("db.example.com", "2001:db8::7"),
        ("inside.example.com", "10.244.0.7"),
        ("local.example.com", "127.0.0.1"),
        ("six.example.com", "2001:db8::8"),
    ];
    let (dns, asked) = resolver(NAMES).await;
    let mut world = World::new();
    let (recorder, records) = ambit_telemetry::recorder();
    let ports = Ports { outbound: 0, plaintext: 0, hbone: 15008, dns: 0 };
    let config = Config { mark: None, preserve_source: false, ports, upstream_dns: vec![dns], ..Config::default() };
    let (store, certificates) = (Arc::clone(&world.store), Arc::clone(&world.certificates));
    world.ztunnel = Ztunnel::new(config, store, certificates, Arc::new(OnlyDatagrams), recorder);
    world.records = records;
    let client = pod("client", "127.77.49.5");
    world.serve(&client);
    let cases = [
        ("db.example.com", "`db.example.com:80`) can't be reached: asked the host"),
        ("six.example.com", "can't be reached: asked the host"),
        ("inside.example.com", "has address `10.244.0.7`, which names outside the mesh must not"),
        ("local.example.com", "has address `127.0.0.1`, which names outside the mesh must not"),
        ("nobody.example.com", "`nobody.example.com` has no address"),
    ];
    for (name, reason) in cases {
        let bare =
            Workload { addresses: Vec::new(), hostname: name.to_owned(), tunnel_protocol: 0, ..pod("db", "1.1.1.1") };
        push(&world.store, &[&client, &endpoint(bare, "db", 80, 80)], &[&service("db", &["240.240.0.1"], 80, None)]);
        for _ in 0..2 {
            assert!(was_reset(&mut world.enter(&client, at("240.240.0.1:80")).await).await, "{name}");
            let record = world.record().await;
            assert!(record.reason.contains(reason), "{name}: {}", record.reason);
        }
    }
    // Both families, once for each name that has an address: the answers are kept.
    assert_eq!(asked.load(Ordering::SeqCst), 4 * 2 + 2 * 2);
}

#[tokio::test]
async fn another_network_is_reached_by_a_tunnel_in_a_tunnel() {
    let world = World::new();
    let client = pod("client", "127.77.50.5");
    let gateway = Workload { native_tunnel: true, ..pod("gw", "127.77.50.3") };
    let at_gateway = NetworkAddress { network: String::new(), address: octets("127.77.50.3"), length: None };
    let far = Workload {
        network: "far".to_owned(),
        addresses: Vec::new(),
        network_gateway: Some(GatewayAddress {
            destination: Some(Destination::Address(at_gateway)),
            hbone_mtls_port: 15008,
        }),
        ..endpoint(pod("far", "127.77.50.9"), "app", 80, 8080)
    };
    let app = Service { subject_alt_names: vec![id("app").to_string()], ..service("app", &["10.96.0.2"], 80, None) };
    push(&world.store, &[&client, &gateway, &far], &[&app]);
    world.serve(&client);
    let listener = ambit_hbone::socket::listen(&HostNetwork, at("127.77.50.3:15008"), &ListenOptions::default());
    let listener = listener.expect("the gateway's listener");
    let certificates = Arc::clone(&world.certificates);
    let far_end = tokio::spawn(async move {
        let limits = Limits::default();
        let certificate = certificates.get(&id("gw")).await.expect("the gateway's certificate");
        let (stream, peer_addr) = listener.accept().await.expect("a connection");
        let local_addr = stream.local_addr().expect("an address");
        let mut outer = ambit_hbone::accept(stream, certificate, &limits).await.expect("the outer tunnel");
        let request = outer.next().await.expect("a request").expect("a readable one");
        let outer_authority = request.authority().expect("an authority").to_string();
        let outer_headers = request.connect_headers().expect("headers");
        let tunnel = request.accept(HeaderMap::new()).expect("accepted");
        tokio::spawn(async move { while outer.next().await.is_some() {} });
        let certificate = certificates.get(&id("app")).await.expect("the application's certificate");
        let inner = ambit_hbone::accept_over(tunnel, certificate, &limits, peer_addr, local_addr).await;
        let mut inner = inner.expect("the inner tunnel");
        let peer = inner.peer().clone();
        let request = inner.next().await.expect("a request").expect("a readable one");
        let authority = request.authority().expect("an authority").to_string();
        let headers = request.connect_headers().expect("headers");
        let mut stream = request.accept(HeaderMap::new()).expect("accepted");
        tokio::spawn(async move { while inner.next().await.is_some() {} });
        stream.write_all(b"hi").await.expect("a greeting");
        let (mut reader, mut writer) = split(stream);
        copy(&mut reader, &mut writer).await.expect("an echo");
        writer.shutdown().await.expect("an end");
        ((outer_authority, outer_headers), (authority, headers), peer)
    });
    converse(&mut world.enter(&client, at("10.96.0.2:80")).await).await;
    let ((outer, outer_headers), (inner, headers), peer) = far_end.await.expect("the far end");
    assert_eq!((outer.as_str(), inner.as_str()), ("app.ns.svc.cluster.local:80", "app.ns.svc.cluster.local:80"));
    assert_eq!(peer, id("client"), "nobody in between");
    assert_eq!(outer_headers.network, None);
    // The mesh's only network has no name to tell.
    assert_eq!(headers.network, None);
    let ConnectHeaders { baggage, forwarded, .. } = headers;
    assert_eq!(baggage.expect("a baggage").namespace, "ns");
    assert_eq!(forwarded.and_then(|forwarded| forwarded.host).as_deref(), Some("app.ns.svc.cluster.local"));
}

#[tokio::test]
async fn connections_in_flight_are_spread() {
    let world = World::new();
    let client = pod("client", "127.77.51.5");
    let mut endpoints = Vec::new();
    let mut counts = Vec::new();
    for number in 2..4 {
        let address = format!("127.77.51.{number}");
        let listener = TcpListener::bind((ip(&address), 8000)).await.expect("a listener");
        let count = Arc::new(AtomicUsize::new(0));
        counts.push(Arc::clone(&count));
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                stream.write_all(b"hi").await.expect("a greeting");
                open.push(stream);
            }
        });
        let plain = Workload { tunnel_protocol: 0, ..pod(&format!("e{number}"), &address) };
        endpoints.push(endpoint(plain, "app", 80, 8000));
    }
    let all: Vec<&Workload> = endpoints.iter().chain([&client]).collect();
    push(&world.store, &all, &[&service("app", &["10.96.0.2"], 80, None)]);
    world.serve(&client);
    let mut open = Vec::new();
    for _ in 0..40 {
        let mut stream = world.enter(&client, at("10.96.0.2:80")).await;
        super::fixture::greeting(&mut stream).await;
        open.push(stream);
    }
    let counts: Vec<usize> = counts.iter().map(|count| count.load(Ordering::SeqCst)).collect();
    assert_eq!(counts.iter().sum::<usize>(), 40);
    assert!(counts.iter().all(|count| (15..=25).contains(count)), "{counts:?}: least request keeps them level");
}
