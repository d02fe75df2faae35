//! Where inbound streams go: `spec/ztunnel.md` 5.2 and 5.3, each row through real TLS.

use std::net::SocketAddr;

use ambit_hbone::{ConnectError, Tunnel};
use ambit_policy::Verdict;
use ambit_xds::workload::{
    ApplicationTunnel, Locality, NetworkAddress, Service, Visibility, Workload, application_tunnel::Protocol,
};
use http::{HeaderMap, StatusCode};
use proxy_header::{ParseConfig, ProxyHeader, Tlv};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
    time::timeout,
};

use super::{
    fixture::{PATIENCE, World, at, endpoint, ip, octets, pod, policy, push, service},
    inbound::connect,
};
use crate::{Config, application_tunnel::IDENTITY_TLV};

/// What came in on one connection, until its end.
struct Arrived {
    peer: SocketAddr,
    bytes: Vec<u8>,
}

/// An application that says nothing and hands over what it got.
async fn listening(on: &str) -> (SocketAddr, mpsc::Receiver<Arrived>) {
    let listener = TcpListener::bind(SocketAddr::new(ip(on), 0)).await.expect("the application's listener");
    let address = listener.local_addr().expect("its address");
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((mut stream, peer)) = listener.accept().await {
            let mut bytes = Vec::new();
            let read = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
            if matches!(read, Ok(Ok(_))) && sender.send(Arrived { peer, bytes }).await.is_err() {
                return;
            }
        }
    });
    (address, receiver)
}

/// Says something through the tunnel and returns what the application got.
async fn say(mut tunnel: Tunnel, arrived: &mut mpsc::Receiver<Arrived>) -> Arrived {
    tunnel.write_all(b"first bytes").await.expect("sent");
    tunnel.shutdown().await.expect("an end");
    timeout(PATIENCE, arrived.recv()).await.expect("in time").expect("an application")
}

fn with_tunnel(workload: Workload, protocol: Protocol, port: u16) -> Workload {
    let tunnel = ApplicationTunnel { protocol: protocol as i32, port: port.into() };
    Workload { application_tunnel: Some(tunnel), ..workload }
}

async fn call(world: &World, from: &str, app: &str, authority: &str) -> Result<Tunnel, ConnectError> {
    connect(world, "client", from, app, authority, HeaderMap::new()).await
}

#[tokio::test]
async fn an_application_behind_a_tunnel_is_reached_and_told_as_it_asked() {
    // Protocol, has a port of its own, LOCALHOST_APP_TUNNEL, authority, the destination it is told.
    let cases = [
        (Protocol::Proxy, true, true, "10.96.0.9:80", Some("10.96.0.9:80")),
        (Protocol::Proxy, true, false, "10.96.0.9:80", Some("10.96.0.9:80")),
        (Protocol::Proxy, true, true, "<own>:80", Some("<own>:80")),
        (Protocol::Proxy, true, true, "[fd00::9]:80", Some("[fd00::9]:80")),
        (Protocol::Proxy, true, true, "front.ns.svc.cluster.local:80", Some("10.96.0.8:80")),
        (Protocol::Proxy, false, true, "10.96.0.9:<port>", Some("10.96.0.9:<port>")),
        (Protocol::None, true, true, "10.96.0.9:80", None),
        (Protocol::None, false, true, "10.96.0.9:<port>", None),
    ];
    for (number, (protocol, own_port, to_loopback, authority, told)) in cases.into_iter().enumerate() {
        let case = format!("{protocol:?} {own_port} {to_loopback} {authority}");
        let own = format!("127.78.1.{}", 100 + number);
        let world = World::with(Config { tunnel_to_loopback: to_loopback, ..Config::default() });
        let at_loopback = protocol == Protocol::Proxy && to_loopback;
        let (app, mut arrived) = listening(if at_loopback { "127.0.0.1" } else { own.as_str() }).await;
        let filled = |text: &str| text.replace("<port>", &app.port().to_string()).replace("<own>", &own);
        let workload = with_tunnel(pod("app", &own), protocol, if own_port { app.port() } else { 0 });
        push(&world.store, &[&workload], &[&service("front", &["fd00::8", "10.96.0.8"], 80, None)]);
        world.serve(&workload);
        let tunnel = call(&world, "127.78.1.5", &own, &filled(authority)).await;
        let Arrived { peer, bytes } = say(tunnel.unwrap_or_else(|e| panic!("{case}: {e}")), &mut arrived).await;
        if at_loopback {
            assert_eq!(peer.ip(), ip("127.0.0.1"), "{case}");
        }
        let Some(told) = told else {
            assert_eq!(bytes, b"first bytes", "{case}");
            continue;
        };
        let (header, length) = ProxyHeader::parse(&bytes, ParseConfig::default()).expect("a PROXY header");
        assert_eq!(&bytes[length..], b"first bytes", "{case}");
        assert!(bytes.starts_with(b"\r\n\r\n\0\r\nQUIT\n\x21"), "version 2, PROXY: {case}");
        let shown = header.proxied_address().expect("addresses");
        assert_eq!(shown.destination, at(&filled(told)), "{case}");
        assert_eq!(shown.source.ip().to_canonical(), ip("127.78.1.5"), "{case}");
        assert_ne!(shown.source.port(), 0, "{case}");
        let fields: Vec<_> = header.tlvs().collect::<Result<_, _>>().expect("readable fields");
        let identity = b"spiffe://cluster.local/ns/ns/sa/client";
        assert!(matches!(&fields[..], [Tlv::Custom(IDENTITY_TLV, text)] if **text == *identity), "{case}: {fields:?}");
    }
}

#[tokio::test]
async fn what_a_peer_claims_is_not_told() {
    let world = World::new();
    let (app, mut arrived) = listening("127.0.0.1").await;
    let workload = with_tunnel(pod("app", "127.78.2.2"), Protocol::Proxy, app.port());
    push(&world.store, &[&workload], &[]);
    world.serve(&workload);
    let mut claims = HeaderMap::new();
    claims.insert("forwarded", "for=\"10.244.0.5:4321\"".parse().expect("a value"));
    claims.insert("ambit-source", "spiffe://cluster.local/ns/ns/sa/boss".parse().expect("a value"));
    let tunnel = connect(&world, "client", "127.78.2.5", "127.78.2.2", "10.96.0.9:80", claims).await;
    let Arrived { bytes, .. } = say(tunnel.expect("let in"), &mut arrived).await;
    let (header, _) = ProxyHeader::parse(&bytes, ParseConfig::default()).expect("a PROXY header");
    assert_eq!(header.proxied_address().expect("addresses").source.ip(), ip("127.78.2.5"));
    let field = header.tlvs().next().expect("a field").expect("readable");
    assert!(matches!(&field, Tlv::Custom(_, text) if text.ends_with(b"/sa/client")), "{field:?}");
}

#[tokio::test]
async fn policies_judge_the_port_behind_the_tunnel() {
    let mut world = World::new();
    let (app, mut arrived) = listening("127.0.0.1").await;
    let workload = with_tunnel(pod("app", "127.78.3.2"), Protocol::Proxy, app.port());
    push(&world.store, &[&workload], &[]);
    world.serve(&workload);
    let deny =
        |port: u16| format!(r#"{{"action":"DENY","rules":[{{"to":[{{"operation":{{"ports":["{port}"]}}}}]}}]}}"#);
    policy(&world.store, "ports", &deny(80));
    let tunnel = call(&world, "127.78.3.5", "127.78.3.2", "10.96.0.9:80").await;
    say(tunnel.expect("80 is not where it goes"), &mut arrived).await;
    let record = world.record().await;
    assert_eq!(record.destination.address, Some(SocketAddr::new(ip("127.78.3.2"), app.port())));
    policy(&world.store, "ports", &deny(app.port()));
    assert_eq!(refused(call(&world, "127.78.3.5", "127.78.3.2", "10.96.0.9:80").await), StatusCode::UNAUTHORIZED);
    assert_eq!(world.record().await.verdict, Verdict::Deny);
}

#[tokio::test]
async fn an_application_that_is_gone_before_it_was_told_is_unreachable() {
    let mut world = World::new();
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        listener.local_addr().expect("its address").port()
    };
    let workload = with_tunnel(pod("app", "127.78.4.2"), Protocol::Proxy, port);
    push(&world.store, &[&workload], &[]);
    world.serve(&workload);
    let outcome = call(&world, "127.78.4.5", "127.78.4.2", "10.96.0.9:80").await;
    assert_eq!(refused(outcome), StatusCode::SERVICE_UNAVAILABLE);
    assert!(world.record().await.reason.contains("can't be reached"));
}

#[tokio::test]
async fn the_proxys_own_ports_are_nobodys_destination() {
    let world = World::new();
    let workload = with_tunnel(pod("app", "127.78.5.2"), Protocol::Proxy, 4000);
    let front = endpoint(workload, "front", 80, 15001);
    push(&world.store, &[&front], &[&service("front", &["10.96.0.8"], 80, None)]);
    world.serve(&front);
    let own = [15001, 15006, 15008, 15053, 15080, 0];
    let by_address = own.map(|port| format!("127.78.5.2:{port}"));
    let by_tunnel = own.map(|port| format!("10.96.0.9:{port}"));
    let by_name = ["front.ns.svc.cluster.local:80".to_owned()];
    for authority in by_address.iter().chain(&by_tunnel).chain(&by_name) {
        let outcome = call(&world, "127.78.5.5", "127.78.5.2", authority).await;
        assert_eq!(refused(outcome), StatusCode::SERVICE_UNAVAILABLE, "{authority}");
    }
}

fn refused(outcome: Result<Tunnel, ConnectError>) -> StatusCode {
    match outcome {
        Err(ConnectError::Refused { status, .. }) => status,
        Err(other) => panic!("not refused by the peer: {other}"),
        Ok(_) => panic!("let in"),
    }
}

/// A service of this namespace under this name.
fn other(namespace: &str, hostname: &str, visibility: Visibility, service: Service) -> Service {
    Service { namespace: namespace.to_owned(), hostname: hostname.to_owned(), visibility: visibility as i32, ..service }
}

#[tokio::test]
async fn each_authority_leads_here_or_nowhere() {
    let world = World::new();
    let (app, mut arrived) = listening("127.78.6.2").await;
    let (app, port) = (app.port(), app.port());
    // The pod belongs to `front` by a port of its own, is the waypoint of some, and isn't of others.
    let named_by = |target: &str, waypoint: Option<&str>| service(target, &[], 80, waypoint);
    let vip = |service: Service, vip: &str| Service {
        addresses: vec![NetworkAddress { network: String::new(), address: octets(vip), length: None }],
        ..service
    };
    let target = |mut service: Service, target: u16| {
        service.ports[0].target_port = target.into();
        service
    };
    let own = endpoint(endpoint(pod("app", "127.78.6.2"), "front", 80, app), "me", 15008, 15008);
    let bound = service("bound", &[], 1, Some("me")).waypoint;
    let elsewhere = service("bound", &[], 1, Some("other")).waypoint;
    let behind = Workload { waypoint: bound, ..pod("behind", "127.78.6.3") };
    let others = Workload { waypoint: elsewhere, ..pod("others", "127.78.6.4") };
    let services = [
        service("me", &["10.96.0.1"], 15008, None),
        service("other", &["10.96.0.2"], 15008, None),
        service("front", &["10.96.0.3"], 80, None),
        vip(named_by("served", Some("me")), "10.96.0.4"),
        vip(named_by("others-served", Some("other")), "10.96.0.5"),
        // Not an endpoint of these: the service's own target port counts.
        target(service("numeric", &["10.96.0.6"], 80, None), app),
        other("x", "shared.test", Visibility::Public, target(service("s", &["10.96.0.7"], 80, None), 1)),
        other("ns", "shared.test", Visibility::Namespace, target(service("s", &["10.96.0.8"], 80, None), app)),
        other("x", "private.test", Visibility::Namespace, target(service("p", &["10.96.0.9"], 80, None), app)),
    ];
    push(&world.store, &[&own, &behind, &others, &pod("plain", "127.78.6.9")], &services.each_ref());
    world.serve(&own);
    let bad = Err(StatusCode::BAD_REQUEST);
    let unavailable = Err(StatusCode::SERVICE_UNAVAILABLE);
    let cases: &[(&str, String, Result<(), StatusCode>)] = &[
        ("its own address", format!("127.78.6.2:{port}"), Ok(())),
        ("a workload whose waypoint it is", format!("127.78.6.3:{port}"), Ok(())),
        ("a workload of another waypoint", format!("127.78.6.4:{port}"), bad),
        ("a workload without a waypoint", format!("127.78.6.9:{port}"), bad),
        ("a service whose waypoint it is", format!("10.96.0.4:{port}"), Ok(())),
        ("a service of another waypoint", format!("10.96.0.5:{port}"), bad),
        ("a service without a waypoint, though an endpoint", format!("10.96.0.3:{port}"), bad),
        ("an address nobody has", format!("10.9.9.9:{port}"), bad),
        ("a service by name, through its own port", "front.ns.svc.cluster.local:80".to_owned(), Ok(())),
        ("the same in other letters", "FRONT.ns.svc.cluster.local.:80".to_owned(), Ok(())),
        ("a service by name, through the service's port", "numeric.ns.svc.cluster.local:80".to_owned(), Ok(())),
        ("a name of two services: its own namespace's", "shared.test:80".to_owned(), Ok(())),
        ("a name that only another namespace knows", "private.test:80".to_owned(), unavailable),
        ("an unknown name", "nobody.test:80".to_owned(), unavailable),
        ("an unknown port of a name", "front.ns.svc.cluster.local:81".to_owned(), unavailable),
        ("a port without a target", "others-served.ns.svc.cluster.local:80".to_owned(), unavailable),
        ("no port", "127.78.6.2".to_owned(), bad),
        ("no port of a name", "front.ns.svc.cluster.local".to_owned(), bad),
        ("a port past the last", "front.ns.svc.cluster.local:65536".to_owned(), bad),
        ("digits that are no address", "127.78.6:80".to_owned(), bad),
    ];
    for (what, authority, expected) in cases {
        match (call(&world, "127.78.6.5", "127.78.6.2", authority).await, expected) {
            (Ok(tunnel), Ok(())) => {
                let Arrived { bytes, .. } = say(tunnel, &mut arrived).await;
                assert_eq!(bytes, b"first bytes", "{what}");
            }
            (Ok(_), Err(_)) => panic!("{what} is let in: {authority}"),
            (Err(error), Ok(())) => panic!("{what} is not let in: {authority}: {error}"),
            (outcome, Err(status)) => assert_eq!(refused(outcome), *status, "{what}"),
        }
    }
}

#[tokio::test]
async fn answers_say_who_answers_if_they_shall() {
    for (says, own) in [(true, "127.78.7.2"), (false, "127.78.7.3")] {
        let world = World::with(Config { response_baggage: says, ..Config::default() });
        let (app, _arrived) = listening(own).await;
        let workload = Workload {
            workload_name: "app".to_owned(),
            canonical_name: "front".to_owned(),
            canonical_revision: "v1".to_owned(),
            cluster_id: "c1".to_owned(),
            locality: Some(Locality { region: "r".to_owned(), zone: "z".to_owned(), subzone: String::new() }),
            ..pod("app-1", own)
        };
        push(&world.store, &[&workload], &[]);
        world.serve(&workload);
        let pool = ambit_hbone::Pool::new(std::sync::Arc::clone(&world.certificates), ambit_hbone::Limits::default());
        let request = ambit_hbone::Connect {
            network: std::sync::Arc::new(super::fixture::From(ip("127.78.7.5"))),
            source: super::fixture::id("client"),
            peer: at(&format!("{own}:15008")),
            expected: vec![super::fixture::id("app-1")],
            authority: app.to_string(),
            headers: HeaderMap::new(),
            mark: None,
            distant: false,
        };
        let tunnel = pool.connect(request).await.expect("let in");
        let baggage = tunnel.response_headers().get("baggage").map(|value| value.to_str().expect("text"));
        let expected = "k8s.cluster.name=c1,k8s.namespace.name=ns,k8s.deployment.name=app,service.name=front,\
                        service.version=v1,cloud.region=r,cloud.availability_zone=z";
        assert_eq!(baggage, says.then_some(expected));
    }
}
