//! Outbound connections, entered as a pod, through real TLS where there is a tunnel.

use std::{io, net::SocketAddr, sync::Arc};

use ambit_hbone::{HostNetwork, Network, socket::ListenOptions};
use ambit_policy::Verdict;
use ambit_telemetry::Enforcer;
use http::HeaderMap;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use super::fixture::{
    World, allow, application, at, converse, endpoint, id, ip, pod, policy, push, service, was_reset, waypoint,
};
use crate::{Config, Ports, Ztunnel, outbound::is_rerouted};

#[tokio::test]
async fn a_service_is_reached_by_mutual_tls() {
    let mut world = World::new();
    let target = application(ip("127.77.21.2")).await;
    let app = endpoint(pod("app", "127.77.21.2"), "app", 80, target.port());
    let client = pod("client", "127.77.21.5");
    push(&world.store, &[&app, &client], &[&service("app", &["10.96.0.2"], 80, None)]);
    policy(&world.store, "only-client", &allow(&["client"]));
    world.serve(&app);
    world.serve(&client);
    converse(&mut world.enter(&client, at("10.96.0.2:80")).await).await;
    let record = world.record().await;
    assert_eq!((record.verdict, record.source.identity), (Verdict::Allow, Some(id("client"))));
    // The pod's own address works the same.
    converse(&mut world.enter(&client, target).await).await;
    assert_eq!(world.record().await.source.identity, Some(id("client")));
}

#[tokio::test]
async fn a_refusal_by_the_other_side_is_recorded_there_only() {
    let mut world = World::new();
    let target = application(ip("127.77.22.2")).await;
    let app = pod("app", "127.77.22.2");
    let client = pod("client", "127.77.22.5");
    push(&world.store, &[&app, &client], &[]);
    policy(&world.store, "only-other", &allow(&["other"]));
    world.serve(&app);
    world.serve(&client);
    assert!(was_reset(&mut world.enter(&client, target).await).await);
    assert_eq!(world.record().await.enforcer, Enforcer::ZtunnelInbound);
    world.no_record().await;
}

#[tokio::test]
async fn a_waypoint_gets_the_service_address_as_authority() {
    let world = World::new();
    let client = pod("client", "127.77.23.5");
    let app = endpoint(pod("app", "127.77.23.2"), "app", 80, 8080);
    let front = service("wp", &["10.96.0.3"], 15008, None);
    push(
        &world.store,
        &[&app, &client, &waypoint("wp", "127.77.23.3")],
        &[&service("app", &["10.96.0.2"], 80, Some("wp")), &front],
    );
    world.serve(&client);
    let listener = ambit_hbone::socket::listen(&HostNetwork, at("127.77.23.3:15008"), &ListenOptions::default());
    let listener = listener.expect("the waypoint's listener");
    let certificates = Arc::clone(&world.certificates);
    let waypoint = tokio::spawn(async move {
        let certificate = certificates.get(&id("wp")).await.expect("its certificate");
        let (stream, _) = listener.accept().await.expect("a connection");
        let limits = ambit_hbone::Limits::default();
        let mut connection = ambit_hbone::accept(stream, certificate, &limits).await.expect("a tunnel");
        let peer = connection.peer().clone();
        let request = connection.next().await.expect("a request").expect("a readable request");
        let authority = request.authority().expect("an authority").to_string();
        let headers = request.headers().clone();
        let mut tunnel = request.accept(HeaderMap::new()).expect("accepted");
        tokio::spawn(async move { while connection.next().await.is_some() {} });
        tokio::io::AsyncWriteExt::write_all(&mut tunnel, b"hi").await.expect("a greeting");
        let (mut reader, mut writer) = tokio::io::split(tunnel);
        tokio::io::copy(&mut reader, &mut writer).await.expect("an echo");
        tokio::io::AsyncWriteExt::shutdown(&mut writer).await.expect("an end");
        (peer, authority, headers)
    });
    let mut stream = world.enter(&client, at("10.96.0.2:80")).await;
    let port = stream.local_addr().expect("an address").port();
    converse(&mut stream).await;
    let (peer, authority, headers) = waypoint.await.expect("the waypoint's side");
    assert_eq!(peer, id("client"));
    assert_eq!(authority, "10.96.0.2:80");
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    assert_eq!(header("forwarded"), format!("for=\"127.77.23.5:{port}\";host=app.ns.svc.cluster.local"));
    assert_eq!(header("baggage"), "k8s.cluster.name=Kubernetes,k8s.namespace.name=ns,k8s.pod.name=client");
    let trace = header("traceparent");
    let parts: Vec<usize> = trace.split('-').map(str::len).collect();
    assert_eq!(parts, [2, 32, 16, 2], "{trace}");
}

#[tokio::test]
async fn a_service_whose_waypoint_is_missing_is_refused_and_says_so() {
    let mut world = World::new();
    let target = application(ip("127.77.24.2")).await;
    let app = endpoint(pod("app", "127.77.24.2"), "app", 80, target.port());
    let client = pod("client", "127.77.24.5");
    push(&world.store, &[&app, &client], &[&service("app", &["10.96.0.2"], 80, Some("wp"))]);
    world.serve(&app);
    world.serve(&client);
    assert!(was_reset(&mut world.enter(&client, at("10.96.0.2:80")).await).await);
    let record = world.record().await;
    assert_eq!((record.verdict, &record.enforcer), (Verdict::Deny, &Enforcer::ZtunnelOutbound));
    assert_eq!(&*record.reason, "waypoint `ns/wp` of service `ns/app` has no ready endpoint");
    assert_eq!(record.destination.service.as_deref(), Some("ns/app"));
    assert_eq!(record.source.workload.as_deref(), Some("ns/client"));
    // A waypoint that is there but takes no connections is no better.
    push(&world.store, &[&waypoint("wp", "127.77.24.3")], &[&service("wp", &["10.96.0.3"], 15008, None)]);
    assert!(was_reset(&mut world.enter(&client, at("10.96.0.2:80")).await).await);
    let record = world.record().await;
    assert!(record.reason.starts_with("waypoint `ns/wp` (`127.77.24.3:15008`) can't be reached"), "{}", record.reason);
    world.no_record().await;
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_tried_elsewhere() {
    let mut world = World::new();
    let target = application(ip("127.77.25.2")).await;
    let good = endpoint(pod("good", "127.77.25.2"), "app", 80, target.port());
    // Its HBONE port is closed.
    let bad = endpoint(pod("bad", "127.77.25.3"), "app", 80, 9);
    let client = pod("client", "127.77.25.5");
    push(&world.store, &[&good, &bad, &client], &[&service("app", &["10.96.0.2"], 80, None)]);
    world.serve(&good);
    world.serve(&client);
    for _ in 0..8 {
        converse(&mut world.enter(&client, at("10.96.0.2:80")).await).await;
        assert_eq!(world.record().await.verdict, Verdict::Allow);
    }
    world.no_record().await;
}

#[tokio::test]
async fn an_impostor_is_not_talked_to() {
    let mut world = World::new();
    // The address belongs to `app`, but who listens there shows another identity.
    let impostor = pod("impostor", "127.77.26.2");
    let client = pod("client", "127.77.26.5");
    push(&world.store, &[&impostor, &client], &[]);
    world.serve(&impostor);
    world.serve(&client);
    super::fixture::remove(&world.store, &[&impostor.uid]);
    push(&world.store, &[&pod("app", "127.77.26.2")], &[]);
    let certificate = world.certificates.get(&id("impostor")).await.expect("its certificate");
    world.ztunnel.remove(&impostor.uid);
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let listener = TcpListener::bind("127.77.26.2:15008").await.expect("the impostor's listener");
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        let _ = ambit_hbone::accept(stream, certificate, &ambit_hbone::Limits::default()).await;
    });
    assert!(was_reset(&mut world.enter(&client, at("127.77.26.2:80")).await).await);
    let record = world.record().await;
    assert_eq!((record.verdict, record.enforcer), (Verdict::Deny, Enforcer::ZtunnelOutbound));
}

#[tokio::test]
async fn a_pod_outside_the_mesh_goes_plain_and_has_no_identity() {
    let mut world = World::new();
    let target = application(ip("127.77.27.2")).await;
    let app = endpoint(pod("app", "127.77.27.2"), "app", 80, target.port());
    let outside = pod("outside", "127.77.27.5");
    push(&world.store, &[&app], &[&service("app", &["10.96.0.2"], 80, Some("wp"))]);
    world.add(&outside, false);
    converse(&mut world.enter(&outside, at("10.96.0.2:80")).await).await;
    world.no_record().await;
}

/// A network in which every socket is refused, to see who asks for one.
#[derive(Debug)]
struct Nowhere;

impl Network for Nowhere {
    fn socket(&self, _: Domain, _: Type, _: Option<Protocol>) -> io::Result<Socket> {
        Err(io::Error::other("asked the host"))
    }
}

#[tokio::test]
async fn what_is_not_the_meshs_goes_through_the_hosts_network() {
    let mut world = World::new();
    let (recorder, records) = ambit_telemetry::recorder();
    let ports = Ports { outbound: 0, plaintext: 0, hbone: 15008, dns: 0 };
    let config = Config { mark: None, preserve_source: false, ports, ..Config::default() };
    let (store, certificates) = (Arc::clone(&world.store), Arc::clone(&world.certificates));
    world.ztunnel = Ztunnel::new(config, store, certificates, Arc::new(Nowhere), recorder);
    world.records = records;
    let client = pod("client", "127.77.28.5");
    push(&world.store, &[&client], &[]);
    world.serve(&client);
    let outside: [(SocketAddr, &str); 3] = [
        (at("93.184.216.34:443"), "asked the host"),
        (at("10.244.9.9:80"), "no workload or service"),
        (at("127.0.0.1:80"), "not an address"),
    ];
    for (destination, reason) in outside {
        assert!(was_reset(&mut world.enter(&client, destination).await).await);
        let record = world.record().await;
        assert!(record.reason.contains(reason), "{destination}: {}", record.reason);
    }
}

#[tokio::test]
async fn an_unknown_pod_is_reset() {
    let world = World::new();
    assert!(was_reset(&mut world.enter(&pod("nobody", "127.77.29.5"), at("1.1.1.1:80")).await).await);
}

#[tokio::test]
async fn a_connection_to_the_outbound_port_itself_does_not_go_round() {
    let mut world = World::new();
    let client = pod("client", "127.77.30.5");
    push(&world.store, &[&client], &[]);
    world.serve(&client);
    let outbound = world.ztunnel.pod(&client.uid).expect("the pod").outbound;
    let mut stream = tokio::net::TcpStream::connect(outbound).await.expect("a connection");
    assert!(was_reset(&mut stream).await);
    let record = world.record().await;
    assert_eq!((record.verdict, record.enforcer), (Verdict::Deny, Enforcer::ZtunnelOutbound));
    assert_eq!(record.destination.address, Some(outbound));
    world.no_record().await;
}

#[tokio::test]
async fn a_pod_is_added_once_and_a_taken_port_is_named() {
    let world = World::new();
    let client = pod("client", "127.77.30.6");
    world.serve(&client);
    let again = |uid: &str| crate::Pod {
        uid: uid.into(),
        ip: ip("127.77.30.6"),
        namespace: "ns".to_owned(),
        network: Arc::new(HostNetwork),
        captured: true,
        in_pod: None,
    };
    let error = world.ztunnel.add(again(&client.uid)).expect_err("it is there already");
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    let error = world.ztunnel.add(again("another")).expect_err("the HBONE port is taken");
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains("`127.77.30.6:15008`"), "{error}");
}

#[test]
fn only_what_was_redirected_in_an_agents_pod_may_come_from_another_address() {
    let local = at("10.244.0.5:15001");
    let cases = [
        ("a virtual machine behind the pod", true, "192.0.2.1:443", true),
        ("somebody who calls the outbound port", true, "10.244.0.5:15001", false),
        ("anything in a local mesh, whose rules reroute nothing", false, "192.0.2.1:443", false),
    ];
    for (what, in_pod, destination, rerouted) in cases {
        assert_eq!(is_rerouted(in_pod, at(destination), local), rerouted, "{what}");
    }
}
