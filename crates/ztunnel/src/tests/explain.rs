//! What refused clients are told.

use std::{io, net::SocketAddr, sync::Arc};

use ambit_hbone::{ConnectError, HostNetwork, socket::ListenOptions};
use http::{HeaderMap, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    fixture::{PATIENCE, World, application, at, endpoint, greeting, id, ip, pod, policy, push, service, was_reset},
    inbound::{captured, connect},
};
use crate::Config;

const DENY_CLIENT: &str =
    r#"{"action":"DENY","rules":[{"from":[{"source":{"principals":["cluster.local/ns/ns/sa/client"]}}]}]}"#;
const DENY_PLAINTEXT: &str = r#"{"action":"DENY","rules":[{"from":[{"source":{"notPrincipals":["*"]}}]}]}"#;
const REQUEST: &[u8] = b"GET /a HTTP/1.1\r\nhost: app\r\n\r\n";

/// Sends a request and reads the answer to its end; a reset on the way is an error.
async fn ask(stream: &mut TcpStream, request: &[u8]) -> io::Result<String> {
    stream.write_all(request).await?;
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer in time")?;
    Ok(answer)
}

fn assert_explained(answer: &str, parts: &[&str]) {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{head}");
    for header in ["content-type: text/plain", "connection: close", &*format!("content-length: {}\r\n", body.len())] {
        assert!(head.contains(header), "{header}: {head}");
    }
    for part in parts {
        assert!(body.contains(part), "{part}: {body}");
    }
}

/// A client and a server whose policy is against the client.
async fn denied(net: &str, config: Config) -> (World, ambit_xds::workload::Workload, SocketAddr) {
    let world = World::with(config);
    let app = pod("app", &format!("{net}.2"));
    let client = pod("client", &format!("{net}.5"));
    push(&world.store, &[&app, &client], &[&service("app", &["10.96.0.2"], 80, None)]);
    policy(&world.store, "no-client", DENY_CLIENT);
    world.serve(&app);
    world.serve(&client);
    let target = application(ip(&format!("{net}.2"))).await;
    (world, client, target)
}

#[tokio::test]
async fn a_client_denied_at_the_other_end_reads_who_and_why() {
    let (world, client, target) = denied("127.77.101", Config::default()).await;
    let parts = ["refused by ztunnel-inbound", "policy ns/no-client", "rule 0", "cluster.local/ns/ns/sa/client"];
    let mut stream = world.enter(&client, target).await;
    assert_explained(&ask(&mut stream, REQUEST).await.expect("no reset"), &parts);
    // A body that nobody takes doesn't cost the client its answer.
    let mut request = b"POST / HTTP/1.1\r\ncontent-length: 200000\r\n\r\n".to_vec();
    request.resize(request.len() + 200_000, b'x');
    let mut stream = world.enter(&client, target).await;
    assert_explained(&ask(&mut stream, &request).await.expect("no reset"), &parts);
    let mut stream = world.enter(&client, target).await;
    let answer = ask(&mut stream, b"HEAD / HTTP/1.1\r\n\r\n").await.expect("no reset");
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_client_for_which_there_is_no_way_reads_why() {
    let (world, client, _) = denied("127.77.102", Config::default()).await;
    let cases = [
        ("10.96.0.2:81", "refused by ztunnel-outbound: service `ns/app` has no port 81"),
        ("10.96.0.2:80", "has no ready endpoint"),
        ("10.244.9.9:80", "no workload or service of the mesh has address `10.244.9.9`"),
    ];
    for (destination, reason) in cases {
        let mut stream = world.enter(&client, at(destination)).await;
        assert_explained(&ask(&mut stream, REQUEST).await.expect("no reset"), &[reason]);
    }
}

#[tokio::test]
async fn a_plaintext_client_reads_why() {
    let (world, _, target) = denied("127.77.103", Config::default()).await;
    policy(&world.store, "strict", DENY_PLAINTEXT);
    let answer = ask(&mut captured(&world, target).await, REQUEST).await.expect("no reset");
    assert_explained(&answer, &["refused by ztunnel-inbound", "policy ns/strict", "rule 0"]);
}

#[tokio::test]
async fn others_see_a_reset() {
    let (world, client, target) = denied("127.77.104", Config::default()).await;
    for bytes in [&b"\x16\x03\x01\0"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"EHLO a\r\n", b"GET", b""] {
        let mut stream = world.enter(&client, target).await;
        let outcome = ask(&mut stream, bytes).await;
        let kind = outcome.map_err(|error| error.kind());
        assert_eq!(kind, Err(io::ErrorKind::ConnectionReset), "{}", bytes.escape_ascii());
    }
    // What is out of reach isn't a refusal.
    push(&world.store, &[&pod("away", "127.77.104.9")], &[]);
    let mut stream = world.enter(&client, at("127.77.104.9:80")).await;
    assert!(ask(&mut stream, REQUEST).await.is_err());
}

#[tokio::test]
async fn switched_off_nobody_is_told() {
    let (world, client, target) = denied("127.77.105", Config { explain_refusals: false, ..Config::default() }).await;
    let mut stream = world.enter(&client, target).await;
    assert!(ask(&mut stream, REQUEST).await.is_err());
    let outcome =
        connect(&world, "client", "127.77.105.5", "127.77.105.2", &target.to_string(), HeaderMap::new()).await;
    let Err(ConnectError::Refused { status, reason, .. }) = outcome else { panic!("let in, or not refused") };
    assert_eq!((status, reason), (StatusCode::UNAUTHORIZED, None));
}

#[tokio::test]
async fn a_peer_is_told_in_one_plain_line() {
    let (world, _, target) = denied("127.77.106", Config::default()).await;
    let target = target.to_string();
    let ask = |authority: String| {
        let world = &world;
        async move {
            match connect(world, "client", "127.77.106.5", "127.77.106.2", &authority, HeaderMap::new()).await {
                Err(ConnectError::Refused { status, reason, .. }) => (status, reason.expect("a reason")),
                other => panic!("not refused: {:?}", other.map(|_| ())),
            }
        }
    };
    let (status, reason) = ask(target).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(reason.starts_with("refused by ztunnel-inbound, policy ns/no-client, rule 0: "), "{reason}");
    let (status, reason) = ask("127.77.106.2:15001".to_owned()).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(reason.contains("belongs to the node proxy"), "{reason}");
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_named() {
    let world = World::new();
    let app = endpoint(pod("app", "127.77.107.2"), "app", 80, 8080);
    let client = pod("client", "127.77.107.5");
    push(&world.store, &[&app, &client], &[&service("app", &["10.96.0.2"], 80, None)]);
    world.serve(&client);
    let listener = ambit_hbone::socket::listen(&HostNetwork, at("127.77.107.2:15008"), &ListenOptions::default());
    let listener = listener.expect("the peer's listener");
    let certificate = world.certificates.get(&id("app")).await.expect("its certificate");
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        let limits = ambit_hbone::Limits::default();
        let mut connection = ambit_hbone::accept(stream, Arc::clone(&certificate), &limits).await.expect("a tunnel");
        while let Some(Ok(request)) = connection.next().await {
            request.refuse(StatusCode::FORBIDDEN);
        }
    });
    let mut stream = world.enter(&client, at("10.96.0.2:80")).await;
    let answer = ask(&mut stream, REQUEST).await.expect("no reset");
    assert_explained(&answer, &["refused by ztunnel-outbound", "`ns/app`", "status 403"]);
}

#[tokio::test]
async fn a_connection_that_a_change_cuts_is_reset_though_it_speaks_http() {
    let (world, client, target) = denied("127.77.108", Config::default()).await;
    policy(&world.store, "no-client", DENY_PLAINTEXT);
    let mut stream = world.enter(&client, target).await;
    greeting(&mut stream).await;
    stream.write_all(REQUEST).await.expect("sent");
    let mut echoed = vec![0; REQUEST.len()];
    timeout(PATIENCE, stream.read_exact(&mut echoed)).await.expect("in time").expect("echoed");
    policy(&world.store, "no-client", DENY_CLIENT);
    assert!(was_reset(&mut stream).await);
}
