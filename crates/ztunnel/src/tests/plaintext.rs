//! Captured inbound plaintext: each row of `spec/ztunnel.md` 5.4, and PeerAuthentication from the users' YAML to sockets.

use std::{io, net::SocketAddr};

use ambit_api::{PeerAuthentication, Resource, load_text};
use ambit_mesh::{
    Index,
    inputs::{Change, NamespacedName, Settings},
};
use ambit_policy::Verdict;
use ambit_telemetry::Enforcer;
use ambit_xds::{
    AUTHORIZATION_TYPE, DeltaResponse, Resource as WireResource,
    security::{Action, Authorization, Group, Match, Rules, Scope, StringMatch, string_match::MatchType},
    workload::Workload,
};
use prost::Message;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpSocket, TcpStream},
};

use super::fixture::{PATIENCE, World, application, at, converse, guarded, ip, pod, push, was_reset, waypoint};
use crate::plaintext;

/// A connection from `from` to the plaintext listener, redirected from `destination`.
async fn redirected(world: &World, from: &str, destination: SocketAddr) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::new(ip(from), 0)).expect("the client's address");
    let client = socket.connect(listener.local_addr().expect("its address")).await.expect("a connection");
    let (stream, peer) = listener.accept().await.expect("its other end");
    let pod = world.ztunnel.pod("Kubernetes//Pod/ns/app").expect("the pod");
    tokio::spawn(async move { plaintext::serve(&pod, stream, peer, destination).await });
    client
}

/// Whether the application answers; otherwise the connection was reset.
async fn is_taken(world: &World, from: &str, destination: SocketAddr) -> bool {
    let mut client = redirected(world, from, destination).await;
    let mut byte = [0; 1];
    // Longer than a pod is waited for that nobody knows.
    match tokio::time::timeout(2 * PATIENCE, client.peek(&mut byte)).await.expect("an outcome in time") {
        Ok(0) => panic!("what is refused is reset, not ended"),
        Ok(_) => {
            converse(&mut client).await;
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            false
        }
    }
}

/// Tells the proxy of these PeerAuthentications as the control plane makes policies of them.
fn demand(world: &World, app: &Workload, yaml: &str) {
    let loaded = load_text("peers.yaml", yaml);
    assert_eq!(loaded.diagnostics, [], "{yaml}");
    let read = |object: ambit_api::Object| match object.resource {
        Resource::PeerAuthentication(object) => Some(*object),
        _ => None,
    };
    let change = |object: PeerAuthentication| {
        Change::PeerAuthentication(NamespacedName::new(&object.namespace, &object.name), Some(object))
    };
    let mut index = Index::new(Settings::default());
    let responses = index.apply(loaded.objects.into_iter().filter_map(read).map(change));
    world.store.apply(&responses).expect("readable policies");
    let names = responses.iter().flat_map(|response| &response.resources).map(|resource| resource.name.clone());
    // A pod names the policy made for it, else the one that holds everywhere.
    let mut names: Vec<_> = names.collect();
    names.sort_by_key(|name| name.contains("static_strict"));
    names.truncate(1);
    push(&world.store, &[&Workload { authorization_policies: names, ..app.clone() }], &[]);
}

#[tokio::test]
async fn every_mode_of_peer_authentication_and_every_exception() {
    let world = World::new();
    let app = pod("app", "127.79.1.2");
    push(&world.store, &[&app], &[]);
    world.serve(&app);
    let (one, two) = (application(ip("127.79.1.2")).await, application(ip("127.79.1.2")).await);
    let own = |mode: &str, ports: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{namespace: ns, name: own}}\n\
             spec: {{selector: {{matchLabels: {{app: app}}}}, mtls: {{mode: {mode}}}, portLevelMtls: {{{ports}}}}}\n"
        )
    };
    let exception = |mode: &str| format!("{}: {{mode: {mode}}}", one.port());
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                  metadata: {namespace: istio-system, name: mesh}\nspec: {mtls: {mode: STRICT}}\n";
    // What is demanded, whether plaintext is taken on the first port, and on the second.
    let cases = [
        (String::new(), true, true),
        (strict.to_owned(), false, false),
        (own("STRICT", &exception("STRICT")), false, false),
        (own("STRICT", &exception("PERMISSIVE")), true, false),
        (own("STRICT", &exception("DISABLE")), true, false),
        (own("PERMISSIVE", &exception("STRICT")), false, true),
        (own("DISABLE", &exception("STRICT")), false, true),
    ];
    for (yaml, first, second) in cases {
        demand(&world, &app, &yaml);
        assert_eq!(is_taken(&world, "127.79.1.5", one).await, first, "first port: {yaml}");
        assert_eq!(is_taken(&world, "127.79.1.5", two).await, second, "second port: {yaml}");
    }
}

#[tokio::test]
async fn strictness_as_istio_says_it_on_the_wire() {
    let mut world = World::new();
    let app = Workload {
        authorization_policies: vec!["istio-system/istio_converted_static_strict".to_owned()],
        ..pod("app", "127.79.2.2")
    };
    let anybody = StringMatch { match_type: Some(MatchType::Presence(ambit_xds::security::Empty {})) };
    let nobody = Match { not_principals: vec![anybody], ..Match::default() };
    let message = Authorization {
        name: "istio_converted_static_strict".to_owned(),
        namespace: "istio-system".to_owned(),
        scope: Scope::WorkloadSelector as i32,
        action: Action::Deny as i32,
        groups: vec![Group { rules: vec![Rules { matches: vec![nobody] }] }],
        ..Authorization::default()
    };
    let resource = WireResource {
        name: app.authorization_policies[0].clone(),
        version: "1".to_owned(),
        value: message.encode_to_vec(),
    };
    let response =
        DeltaResponse { type_url: AUTHORIZATION_TYPE.to_owned(), resources: vec![resource], removed: Vec::new() };
    world.store.apply(&[response]).expect("a readable policy");
    push(&world.store, &[&app], &[]);
    world.serve(&app);
    let target = application(ip("127.79.2.2")).await;
    assert!(!is_taken(&world, "127.79.2.5", target).await);
    let record = world.record().await;
    assert_eq!((record.verdict, record.source.identity), (Verdict::Deny, None));
    let policy = record.policy.expect("the policy that denied");
    assert_eq!(&*policy.name, "istio_converted_static_strict");
}

#[tokio::test]
async fn where_it_comes_from_and_where_it_goes() {
    let mut world = World::new();
    let app = pod("app", "127.79.3.2");
    push(&world.store, &[&app, &waypoint("wp", "127.79.3.3"), &pod("other", "127.79.3.4")], &[]);
    world.serve(&app);
    let target = application(ip("127.79.3.2")).await;
    let to = |ip_text: &str, port: u16| SocketAddr::new(ip(ip_text), port);
    let port = target.port();
    // From, to, taken, what is said of a refusal.
    let cases = [
        ("an unknown client", "127.79.3.9", target, true, ""),
        ("another pod, which would have used a tunnel", "127.79.3.4", target, true, ""),
        ("a waypoint, without a tunnel", "127.79.3.3", target, true, ""),
        ("the pod itself", "127.79.3.2", target, true, ""),
        ("another pod's address", "127.79.3.9", to("127.79.3.4", port), false, "not the address of this pod"),
        ("nobody's address", "127.79.3.9", to("127.79.3.8", port), false, "not the address of this pod"),
        ("the outbound port", "127.79.3.9", to("127.79.3.2", 15001), false, "belongs to the node proxy"),
        ("the plaintext port", "127.79.3.9", to("127.79.3.2", 15006), false, "belongs to the node proxy"),
        ("the HBONE port", "127.79.3.9", to("127.79.3.2", 15008), false, "belongs to the node proxy"),
        ("the DNS port", "127.79.3.9", to("127.79.3.2", 15053), false, "belongs to the node proxy"),
        ("the SOCKS port", "127.79.3.9", to("127.79.3.2", 15080), false, "belongs to the node proxy"),
        ("a port that nobody listens on", "127.79.3.9", to("127.79.3.2", 1), false, "can't be reached"),
    ];
    for (what, from, destination, taken, reason) in cases {
        assert_eq!(is_taken(&world, from, destination).await, taken, "{what}");
        let record = world.record().await;
        assert_eq!(record.source.address.map(|address| address.ip()), Some(ip(from)), "{what}");
        assert_eq!(record.source.identity, None, "{what}: plaintext proves nothing");
        assert!(record.reason.contains(reason), "{what}: {}", record.reason);
    }
    // A guarded port is its waypoint's by tunnel, and nobody's by plaintext.
    push(&world.store, &[&guarded(app.clone(), "app", port, "wp")], &[]);
    for from in ["127.79.3.3", "127.79.3.2", "127.79.3.9"] {
        assert!(!is_taken(&world, from, target).await, "{from}");
        assert_eq!(world.record().await.enforcer, Enforcer::WaypointGuard, "{from}");
    }
}

#[tokio::test]
async fn a_pod_that_nobody_knows_takes_nobody() {
    let mut world = World::new();
    let app = pod("app", "127.79.4.2");
    world.serve(&app);
    assert!(!is_taken(&world, "127.79.4.5", at("127.79.4.2:80")).await);
    assert!(world.record().await.reason.contains("does not know this pod"));
}

#[tokio::test]
async fn nothing_of_a_refused_client_reaches_the_application() {
    let world = World::new();
    let app = pod("app", "127.79.5.2");
    push(&world.store, &[&app], &[]);
    world.serve(&app);
    let listener = TcpListener::bind("127.79.5.2:0").await.expect("the application's listener");
    let target = listener.local_addr().expect("its address");
    super::fixture::policy(&world.store, "nobody", r#"{"action":"ALLOW"}"#);
    let mut client = redirected(&world, "127.79.5.5", target).await;
    client.write_all(b"\x00binary, sent before there is a verdict").await.expect("sent");
    assert!(was_reset(&mut client).await);
    let nobody = tokio::time::timeout(std::time::Duration::from_millis(100), listener.accept()).await;
    assert!(nobody.is_err(), "the application was never connected to");
}
