//! Inbound connections through real TLS.

use std::{net::SocketAddr, sync::Arc};

use ambit_hbone::{Connect, ConnectError, Pool, Tunnel};
use ambit_policy::Verdict;
use ambit_telemetry::Enforcer;
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};

use super::fixture::{
    From, World, allow, application, at, converse, endpoint, guarded, id, ip, pod, policy, push, service, was_reset,
    waypoint,
};
use crate::{Config, Limits, plaintext};

/// Opens a tunnel as this account from this address.
pub(super) async fn connect(
    world: &World,
    account: &str,
    from: &str,
    app: &str,
    authority: &str,
    headers: HeaderMap,
) -> Result<Tunnel, ConnectError> {
    let pool = Pool::new(Arc::clone(&world.certificates), ambit_hbone::Limits::default());
    let connect = Connect {
        network: Arc::new(From(ip(from))),
        source: id(account),
        peer: SocketAddr::new(ip(app), 15008),
        expected: vec![id("app")],
        authority: authority.to_owned(),
        headers,
        mark: None,
        distant: false,
    };
    pool.connect(connect).await
}

fn status(outcome: Result<Tunnel, ConnectError>) -> StatusCode {
    match outcome {
        Err(ConnectError::Refused { status, .. }) => status,
        Err(other) => panic!("not refused by the peer: {other}"),
        Ok(_) => panic!("let in"),
    }
}

#[tokio::test]
async fn an_allowed_identity_gets_through_and_another_does_not() {
    let mut world = World::new();
    let app = pod("app", "127.77.1.2");
    push(&world.store, &[&app, &pod("client", "127.77.1.5")], &[]);
    policy(&world.store, "only-client", &allow(&["client"]));
    world.serve(&app);
    let target = application(ip("127.77.1.2")).await;
    let authority = target.to_string();

    let mut tunnel =
        connect(&world, "client", "127.77.1.5", "127.77.1.2", &authority, HeaderMap::new()).await.expect("a tunnel");
    converse(&mut tunnel).await;
    let record = world.record().await;
    assert_eq!((record.verdict, record.enforcer), (Verdict::Allow, Enforcer::ZtunnelInbound));
    assert_eq!(record.source.identity, Some(id("client")));
    assert_eq!(record.source.workload.as_deref(), Some("ns/client"));
    assert_eq!(record.destination.workload.as_deref(), Some("ns/app"));
    assert_eq!(record.destination.address, Some(target));

    let outcome = connect(&world, "intruder", "127.77.1.6", "127.77.1.2", &authority, HeaderMap::new()).await;
    assert_eq!(status(outcome), StatusCode::UNAUTHORIZED);
    let record = world.record().await;
    assert_eq!((record.verdict, record.enforcer), (Verdict::Deny, Enforcer::ZtunnelInbound));
    assert_eq!(record.source.identity, Some(id("intruder")));
    world.no_record().await;
}

#[tokio::test]
async fn a_guarded_port_takes_the_waypoint_only() {
    let mut world = World::new();
    let app_ip = "127.77.2.2";
    let target = application(ip(app_ip)).await;
    let app = guarded(endpoint(pod("app", app_ip), "app", 80, target.port()), "app", target.port(), "wp");
    let services = [&service("app", &["10.96.0.2"], 80, Some("wp")), &service("wp", &["10.96.0.3"], 15008, None)];
    push(&world.store, &[&app, &waypoint("wp", "127.77.2.3")], &services);
    policy(&world.store, "only-client", &allow(&["client"]));
    world.serve(&app);
    let authority = target.to_string();

    for (account, from) in [("client", "127.77.2.5"), ("wp", "127.77.2.5")] {
        let outcome = connect(&world, account, from, app_ip, &authority, HeaderMap::new()).await;
        assert_eq!(status(outcome), StatusCode::UNAUTHORIZED, "{account} from {from}");
        assert_eq!(world.record().await.enforcer, Enforcer::WaypointGuard);
    }
    let speak_for = |account: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("ambit-source", HeaderValue::from_str(&id(account).to_string()).expect("a value"));
        headers.insert("forwarded", HeaderValue::from_static("for=\"10.244.0.5:4321\""));
        headers
    };
    let mut tunnel =
        connect(&world, "wp", "127.77.2.3", app_ip, &authority, speak_for("client")).await.expect("let in");
    converse(&mut tunnel).await;
    world.no_record().await;

    let outcome = connect(&world, "wp", "127.77.2.3", app_ip, &authority, speak_for("intruder")).await;
    assert_eq!(status(outcome), StatusCode::UNAUTHORIZED, "L4 policy judges the client behind the waypoint");
    let record = world.record().await;
    assert_eq!(record.enforcer, Enforcer::ZtunnelInbound);
    assert_eq!(record.source.identity, Some(id("intruder")));
    assert_eq!(record.source.address, Some(at("10.244.0.5:4321")));
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_with_their_status() {
    let mut world = World::new();
    let app = pod("app", "127.77.3.2");
    push(&world.store, &[&app], &[]);
    world.serve(&app);
    let closed = {
        let listener = TcpListener::bind("127.77.3.2:0").await.expect("a listener");
        listener.local_addr().expect("its address")
    };
    let cases = [
        ("127.77.3.9:80".to_owned(), StatusCode::BAD_REQUEST, "not the address of this pod"),
        ("127.77.3.2:15008".to_owned(), StatusCode::SERVICE_UNAVAILABLE, "belongs to the node proxy"),
        ("127.77.3.2:15001".to_owned(), StatusCode::SERVICE_UNAVAILABLE, "belongs to the node proxy"),
        ("app.ns.svc:80".to_owned(), StatusCode::SERVICE_UNAVAILABLE, "no service that is known"),
        ("app.ns.svc".to_owned(), StatusCode::BAD_REQUEST, "neither `ip:port`"),
        (closed.to_string(), StatusCode::SERVICE_UNAVAILABLE, "can't be reached"),
    ];
    for (authority, expected, reason) in cases {
        let outcome = connect(&world, "client", "127.77.3.5", "127.77.3.2", &authority, HeaderMap::new()).await;
        assert_eq!(status(outcome), expected, "{authority}");
        let record = world.record().await;
        assert_eq!(record.verdict, Verdict::Deny);
        assert!(record.reason.contains(reason), "{authority}: {}", record.reason);
    }
}

#[tokio::test]
async fn without_a_certificate_nobody_gets_in() {
    let mut world = World::new();
    let app = pod("app", "127.77.4.2");
    push(&world.store, &[&app], &[]);
    world.serve(&app);
    let mut stream = TcpStream::connect("127.77.4.2:15008").await.expect("a TCP connection");
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("sent");
    let record = world.record().await;
    assert_eq!((record.verdict, record.enforcer), (Verdict::Deny, Enforcer::ZtunnelInbound));
    assert!(record.reason.contains("handshake"), "{}", record.reason);
    assert_eq!(record.source.identity, None);
}

/// A connection to the plaintext listener, redirected from `destination`.
pub(super) async fn captured(world: &World, destination: SocketAddr) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let client = TcpStream::connect(listener.local_addr().expect("its address")).await.expect("a connection");
    let (stream, peer) = listener.accept().await.expect("its other end");
    let pod = world.ztunnel.pod("Kubernetes//Pod/ns/app").expect("the pod");
    tokio::spawn(async move { plaintext::serve(&pod, stream, peer, destination).await });
    client
}

#[tokio::test]
async fn plaintext_passes_under_policy_and_never_the_guard() {
    let mut world = World::new();
    let app_ip = "127.77.5.2";
    let app = pod("app", app_ip);
    push(&world.store, &[&app], &[]);
    world.serve(&app);
    let target = application(ip(app_ip)).await;
    converse(&mut captured(&world, target).await).await;
    let record = world.record().await;
    assert_eq!((record.verdict, record.source.identity), (Verdict::Allow, None));

    for own in [15001, 15006, 15008, 15053] {
        assert!(was_reset(&mut captured(&world, SocketAddr::new(ip(app_ip), own)).await).await);
        assert_eq!(world.record().await.verdict, Verdict::Deny);
    }
    assert!(was_reset(&mut captured(&world, at("127.77.5.9:80")).await).await, "another pod's address");
    assert_eq!(world.record().await.verdict, Verdict::Deny);

    push(&world.store, &[&guarded(pod("app", app_ip), "app", target.port(), "wp")], &[]);
    assert!(was_reset(&mut captured(&world, target).await).await);
    assert_eq!(world.record().await.enforcer, Enforcer::WaypointGuard);

    push(&world.store, &[&app], &[]);
    policy(&world.store, "only-client", &allow(&["client"]));
    assert!(was_reset(&mut captured(&world, target).await).await);
    let record = world.record().await;
    assert_eq!((record.verdict, record.enforcer), (Verdict::Deny, Enforcer::ZtunnelInbound));
}

#[tokio::test]
async fn past_the_limit_the_newest_is_refused() {
    let limits = Limits { connections_per_pod: 2, ..Limits::default() };
    let mut world = World::with(Config { limits, ..Config::default() });
    let app = pod("app", "127.77.6.2");
    push(&world.store, &[&app], &[]);
    world.serve(&app);
    let target = application(ip("127.77.6.2")).await.to_string();
    let first = connect(&world, "client", "127.77.6.5", "127.77.6.2", &target, HeaderMap::new()).await;
    let mut first = first.expect("a tunnel takes one place, its stream another");
    assert_eq!(world.record().await.verdict, Verdict::Allow);
    let second = connect(&world, "client", "127.77.6.5", "127.77.6.2", &target, HeaderMap::new()).await;
    assert!(second.is_err(), "there is no third place");
    assert!(world.record().await.reason.contains("limit of connections"));
    converse(&mut first).await;
}

#[tokio::test]
async fn handshakes_and_all_pods_together_have_limits() {
    let no_handshakes = Limits { handshakes: 0, ..Limits::default() };
    let no_connections = Limits { connections: 0, ..Limits::default() };
    let cases = [
        (no_handshakes, "127.77.7.2", "limit of TLS handshakes"),
        (no_connections, "127.77.8.2", "limit of connections"),
    ];
    for (limits, app_ip, reason) in cases {
        let mut world = World::with(Config { limits, ..Config::default() });
        let app = pod("app", app_ip);
        push(&world.store, &[&app], &[]);
        world.serve(&app);
        let outcome = connect(&world, "client", "127.77.7.5", app_ip, &format!("{app_ip}:80"), HeaderMap::new()).await;
        assert!(outcome.is_err());
        let record = world.record().await;
        assert_eq!(record.verdict, Verdict::Deny);
        assert!(record.reason.contains(reason), "{}", record.reason);
    }
}

#[tokio::test]
async fn a_pod_that_is_not_known_yet_is_waited_for() {
    let mut world = World::new();
    let app = pod("app", "127.77.9.2");
    world.serve(&app);
    let target = application(ip("127.77.9.2")).await.to_string();
    let opening = connect(&world, "client", "127.77.9.5", "127.77.9.2", &target, HeaderMap::new());
    let known = async {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        push(&world.store, &[&app], &[]);
    };
    let (opened, ()) = tokio::join!(opening, known);
    converse(&mut opened.expect("let in")).await;
    assert_eq!(world.record().await.verdict, Verdict::Allow);
}
