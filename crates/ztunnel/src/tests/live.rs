//! Changes of configuration reach live connections.

use std::time::{Duration, Instant};

use ambit_policy::Verdict;
use ambit_telemetry::Enforcer;
use http::HeaderMap;
use tokio::io::AsyncReadExt;

use super::{
    fixture::{
        World, allow, application, at, echo, endpoint, greeting, guarded, ip, pod, policy, push, service, was_reset,
    },
    inbound::connect,
};

/// How fast a change has to bite.
const PROMPT: Duration = Duration::from_millis(100);

#[tokio::test]
async fn a_connection_that_is_no_longer_allowed_is_cut_and_others_are_not() {
    let mut world = World::new();
    let app = pod("app", "127.77.11.2");
    push(&world.store, &[&app], &[]);
    policy(&world.store, "who", &allow(&["one", "two"]));
    world.serve(&app);
    let target = application(ip("127.77.11.2")).await.to_string();
    let mut one =
        connect(&world, "one", "127.77.11.5", "127.77.11.2", &target, HeaderMap::new()).await.expect("let in");
    let mut two =
        connect(&world, "two", "127.77.11.6", "127.77.11.2", &target, HeaderMap::new()).await.expect("let in");
    for tunnel in [&mut one, &mut two] {
        greeting(tunnel).await;
        echo(tunnel).await;
        assert_eq!(world.record().await.verdict, Verdict::Allow);
    }

    let changed = Instant::now();
    policy(&world.store, "who", &allow(&["two"]));
    let mut byte = [0; 1];
    let ended = tokio::time::timeout(PROMPT, one.read(&mut byte)).await.expect("cut in time");
    assert!(matches!(ended, Ok(0) | Err(_)), "nothing more arrives");
    assert!(changed.elapsed() < PROMPT);
    let record = world.record().await;
    assert_eq!(record.verdict, Verdict::Deny);
    assert!(record.reason.starts_with("policy changed: "), "{}", record.reason);
    echo(&mut two).await;
    world.no_record().await;
}

#[tokio::test]
async fn a_guard_that_appears_cuts_direct_connections() {
    let mut world = World::new();
    let app = pod("app", "127.77.12.2");
    push(&world.store, &[&app], &[]);
    world.serve(&app);
    let target = application(ip("127.77.12.2")).await;
    let authority = target.to_string();
    let mut direct =
        connect(&world, "one", "127.77.12.5", "127.77.12.2", &authority, HeaderMap::new()).await.expect("let in");
    greeting(&mut direct).await;
    assert_eq!(world.record().await.verdict, Verdict::Allow);
    push(&world.store, &[&guarded(pod("app", "127.77.12.2"), "app", target.port(), "wp")], &[]);
    let mut byte = [0; 1];
    let ended = tokio::time::timeout(PROMPT, direct.read(&mut byte)).await.expect("cut in time");
    assert!(matches!(ended, Ok(0) | Err(_)));
    let record = world.record().await;
    assert_eq!(record.enforcer, Enforcer::WaypointGuard);
    assert!(record.reason.starts_with("policy changed: "), "{}", record.reason);
}

#[tokio::test]
async fn a_service_that_is_bound_to_a_waypoint_loses_its_direct_connections() {
    let mut world = World::new();
    let target = application(ip("127.77.13.2")).await;
    let mut app = endpoint(pod("app", "127.77.13.2"), "app", 80, target.port());
    app.tunnel_protocol = 0;
    let client = pod("client", "127.77.13.5");
    push(&world.store, &[&app, &client], &[&service("app", &["10.96.0.2"], 80, None)]);
    world.serve(&client);
    let mut stream = world.enter(&client, at("10.96.0.2:80")).await;
    greeting(&mut stream).await;
    echo(&mut stream).await;
    push(&world.store, &[], &[&service("app", &["10.96.0.2"], 80, Some("wp"))]);
    assert!(was_reset(&mut stream).await);
    let record = world.record().await;
    assert_eq!(record.enforcer, Enforcer::ZtunnelOutbound);
    assert!(record.reason.contains("waypoint `ns/wp`"), "{}", record.reason);
    assert_eq!(record.destination.service.as_deref(), Some("ns/app"));
}

#[tokio::test]
async fn a_removed_pod_is_closed_and_may_come_back() {
    let mut world = World::new();
    let app = pod("app", "127.77.14.2");
    push(&world.store, &[&app], &[]);
    world.serve(&app);
    let target = application(ip("127.77.14.2")).await.to_string();
    let mut tunnel =
        connect(&world, "one", "127.77.14.5", "127.77.14.2", &target, HeaderMap::new()).await.expect("let in");
    greeting(&mut tunnel).await;
    assert_eq!(world.record().await.verdict, Verdict::Allow);
    world.ztunnel.remove(&app.uid);
    let mut byte = [0; 1];
    let ended = tokio::time::timeout(PROMPT, tunnel.read(&mut byte)).await.expect("closed in time");
    assert!(matches!(ended, Ok(0) | Err(_)));
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.serve(&app);
    let again = connect(&world, "one", "127.77.14.5", "127.77.14.2", &target, HeaderMap::new()).await;
    greeting(&mut again.expect("let in again")).await;
}

#[tokio::test]
async fn draining_waits_for_connections_until_the_deadline() {
    let world = World::new();
    let app = pod("app", "127.77.15.2");
    push(&world.store, &[&app], &[]);
    world.serve(&app);
    let target = application(ip("127.77.15.2")).await.to_string();
    let mut tunnel =
        connect(&world, "one", "127.77.15.5", "127.77.15.2", &target, HeaderMap::new()).await.expect("let in");
    greeting(&mut tunnel).await;
    let ztunnel = std::sync::Arc::clone(&world.ztunnel);
    let started = Instant::now();
    let drain = tokio::spawn(async move { ztunnel.drain(Duration::from_millis(400)).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    echo(&mut tunnel).await;
    let outcome = tokio::net::TcpStream::connect("127.77.15.2:15008").await;
    assert!(outcome.is_err(), "nothing new is accepted");
    drain.await.expect("drained");
    assert!((Duration::from_millis(350)..Duration::from_secs(2)).contains(&started.elapsed()));
    let mut byte = [0; 1];
    assert!(matches!(tunnel.read(&mut byte).await, Ok(0) | Err(_)), "ended at the deadline");
}

#[tokio::test]
async fn draining_without_open_connections_does_not_wait() {
    let world = World::new();
    let app = pod("app", "127.77.16.2");
    push(&world.store, &[&app], &[]);
    world.serve(&app);
    let target = application(ip("127.77.16.2")).await.to_string();
    let mut tunnel =
        connect(&world, "one", "127.77.16.5", "127.77.16.2", &target, HeaderMap::new()).await.expect("let in");
    super::fixture::converse(&mut tunnel).await;
    let started = Instant::now();
    world.ztunnel.drain(Duration::from_secs(4)).await;
    assert!(started.elapsed() < Duration::from_secs(1), "an idle tunnel is told to go: {:?}", started.elapsed());
}

#[tokio::test]
async fn many_connections_are_reviewed_in_time() {
    let mut world = World::new();
    let app = pod("app", "127.77.17.2");
    push(&world.store, &[&app], &[]);
    policy(&world.store, "who", &allow(&["one"]));
    world.serve(&app);
    let target = application(ip("127.77.17.2")).await.to_string();
    let mut tunnels = Vec::new();
    for _ in 0..40 {
        let opened = connect(&world, "one", "127.77.17.5", "127.77.17.2", &target, HeaderMap::new()).await;
        let mut tunnel = opened.expect("let in");
        greeting(&mut tunnel).await;
        assert_eq!(world.record().await.verdict, Verdict::Allow);
        tunnels.push(tunnel);
    }
    let deadline = Instant::now() + PROMPT;
    policy(&world.store, "who", &allow(&["two"]));
    for tunnel in &mut tunnels {
        let mut byte = [0; 1];
        let left = deadline.saturating_duration_since(Instant::now());
        let ended = tokio::time::timeout(left, tunnel.read(&mut byte)).await.expect("cut in time");
        assert!(matches!(ended, Ok(0) | Err(_)));
    }
    for _ in 0..40 {
        assert_eq!(world.record().await.verdict, Verdict::Deny);
    }
    world.no_record().await;
}
