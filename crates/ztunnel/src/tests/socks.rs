//! SOCKS5: the conversation by tables, and through to the mesh by real sockets.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::TcpStream,
    time::timeout,
};

use super::fixture::{
    PATIENCE, World, allow, application, at, converse, echo, endpoint, greeting, id, ip, pod, policy, push, service,
};
use crate::{
    Config,
    socks::{Refused, Request, request},
};

/// Says all this at once and gives what was understood, and what was answered.
async fn say(bytes: &[u8]) -> (Result<Request, Refused>, Vec<u8>) {
    let (mut client, mut server) = duplex(1024);
    client.write_all(bytes).await.expect("room for it");
    client.shutdown().await.expect("an end");
    let understood = request(&mut server).await;
    drop(server);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.expect("an answer");
    (understood, answer)
}

fn asking(method: &[u8], request: &[u8]) -> Vec<u8> {
    [&[5, method.len() as u8], method, request].concat()
}

#[tokio::test]
async fn requests_in_all_their_forms() {
    let address = |text: &str| Ok(Request::Address(at(text)));
    let named = |name: &str| Ok(Request::Name(name.to_owned(), 80));
    let v6 = [&[5, 1, 0, 4][..], &[0; 15], &[1, 0, 80]].concat();
    let mapped = [&[5, 1, 0, 4][..], &[0; 10], &[0xff, 0xff, 10, 0, 0, 1, 0, 80]].concat();
    let name = |name: &[u8]| [&[5, 1, 0, 3, name.len() as u8][..], name, &[0, 80]].concat();
    let v4 = [5, 1, 0, 1, 10, 0, 0, 1, 0, 80];
    let cases: Vec<(&str, Vec<u8>, Result<Request, Refused>)> = vec![
        ("IPv4", asking(&[0], &v4), address("10.0.0.1:80")),
        ("no authentication among others", asking(&[2, 1, 0], &v4), address("10.0.0.1:80")),
        ("IPv6", asking(&[0], &v6), address("[::1]:80")),
        ("IPv4 in IPv6", asking(&[0], &mapped), address("10.0.0.1:80")),
        ("a name", asking(&[0], &name(b"app.ns")), named("app.ns")),
        ("an address as a name", asking(&[0], &name(b"10.0.0.1")), address("10.0.0.1:80")),
        ("the longest name", asking(&[0], &name(&[b'a'; 255])), named(&"a".repeat(255))),
        ("an empty name", asking(&[0], &name(b"")), Err(Refused::Protocol)),
        ("a name with a space", asking(&[0], &name(b"a b")), Err(Refused::Protocol)),
        ("a name that is no text", asking(&[0], &name(&[0xff])), Err(Refused::Protocol)),
        ("version 4", vec![4, 1, 0, 80, 10, 0, 0, 1, 0], Err(Refused::Protocol)),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec(), Err(Refused::Protocol)),
        ("authentication", asking(&[2], &v4), Err(Refused::Protocol)),
        ("no method", asking(&[], &v4), Err(Refused::Protocol)),
        ("version 4 later", asking(&[0], &[4, 1, 0, 1]), Err(Refused::Protocol)),
        ("BIND", asking(&[0], &[5, 2, 0, 1]), Err(Refused::Protocol)),
        ("UDP ASSOCIATE", asking(&[0], &[5, 3, 0, 1]), Err(Refused::Protocol)),
        ("another kind of address", asking(&[0], &[5, 1, 0, 2]), Err(Refused::Protocol)),
        ("nothing", Vec::new(), Err(Refused::Io)),
        ("half a greeting", vec![5], Err(Refused::Io)),
        ("fewer methods than said", vec![5, 9, 0], Err(Refused::Io)),
        ("half a request", asking(&[0], &v4[..7]), Err(Refused::Io)),
        ("half a name", asking(&[0], &[5, 1, 0, 3, 9, b'a']), Err(Refused::Io)),
    ];
    for (what, bytes, expected) in cases {
        let agreed = !matches!(
            what,
            "version 4"
                | "HTTP"
                | "authentication"
                | "no method"
                | "nothing"
                | "half a greeting"
                | "fewer methods than said"
        );
        let (understood, answer) = say(&bytes).await;
        assert_eq!(understood, expected, "{what}");
        assert_eq!(answer, if agreed { &[5, 0][..] } else { &[] }, "{what}");
    }
}

fn world() -> World {
    World::with(Config { socks5: Some(0), ..Config::default() })
}

async fn connect(world: &World, pod: &ambit_xds::workload::Workload) -> TcpStream {
    let address = world.ztunnel.pod(&pod.uid).expect("the pod").socks.expect("SOCKS5");
    assert_eq!(address.ip(), ip("127.0.0.1"), "on the loopback only");
    TcpStream::connect(address).await.expect("a connection")
}

/// Asks for a destination and gives the answer's code; nothing if there is no answer.
async fn ask(stream: &mut TcpStream, request: &[u8]) -> Option<u8> {
    stream.write_all(&asking(&[0], request)).await.expect("sent");
    let mut answer = [0; 12];
    timeout(PATIENCE, stream.read_exact(&mut answer)).await.expect("in time").ok()?;
    assert_eq!((&answer[..2], answer[2]), (&[5, 0][..], 5));
    assert_eq!(answer[4..], [0, 1, 0, 0, 0, 0, 0, 0], "no address is told");
    Some(answer[3])
}

fn by_address(destination: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(v4) = destination else { panic!("IPv4 only here") };
    [&[5, 1, 0, 1][..], &v4.ip().octets(), &v4.port().to_be_bytes()].concat()
}

fn by_name(name: &str, port: u16) -> Vec<u8> {
    [&[5, 1, 0, 3, name.len() as u8][..], name.as_bytes(), &port.to_be_bytes()].concat()
}

#[tokio::test]
async fn what_it_asks_for_goes_the_way_of_captured_connections() {
    let mut world = world();
    let target = application(ip("127.77.61.2")).await;
    let app = endpoint(pod("app", "127.77.61.2"), "app", 80, target.port());
    let client = pod("client", "127.77.61.5");
    push(&world.store, &[&app, &client], &[&service("app", &["10.96.0.2"], 80, None)]);
    policy(&world.store, "only-client", &allow(&["client"]));
    world.serve(&app);
    world.serve(&client);
    for request in [by_address(at("10.96.0.2:80")), by_name("app", 80), by_name("app.ns.svc.cluster.local", 80)] {
        let mut stream = connect(&world, &client).await;
        assert_eq!(ask(&mut stream, &request).await, Some(0));
        converse(&mut stream).await;
        assert_eq!(world.record().await.source.identity, Some(id("client")));
    }
    // What is sent with the request isn't lost.
    let mut stream = connect(&world, &client).await;
    let mut all = asking(&[0], &by_address(at("10.96.0.2:80")));
    all.extend(b"early");
    stream.write_all(&all).await.expect("sent");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.expect("an answer");
    greeting(&mut stream).await;
    let mut early = [0; 5];
    stream.read_exact(&mut early).await.expect("an echo");
    assert_eq!(&early, b"early");
    echo(&mut stream).await;
}

#[tokio::test]
async fn what_goes_wrong_is_told_while_it_can_be() {
    let mut world = world();
    let client = pod("client", "127.77.62.5");
    push(&world.store, &[&client], &[]);
    world.serve(&client);
    let cases = [
        ("a name nobody has", by_name("nobody.ns.svc.cluster.local", 80), Some(4)),
        ("another command", vec![5, 2, 0, 1, 0, 0, 0, 0, 0, 0], Some(7)),
        ("another kind of address", vec![5, 1, 0, 9, 0, 0, 0, 0, 0, 0], Some(7)),
    ];
    for (what, request, code) in cases {
        let mut stream = connect(&world, &client).await;
        assert_eq!(ask(&mut stream, &request).await, code, "{what}");
    }
    // Later the connection only ends.
    let mut stream = connect(&world, &client).await;
    assert_eq!(ask(&mut stream, &by_address(at("10.244.9.9:80"))).await, Some(0));
    let ended = timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("in time");
    assert!(matches!(ended, Ok(0) | Err(_)));
    let record = world.record().await;
    assert!(record.reason.contains("no workload or service"), "{}", record.reason);
    // And the proxy itself is no destination.
    let own = world.ztunnel.pod(&client.uid).expect("the pod").socks.expect("SOCKS5");
    for port in [15001, 15080] {
        let mut stream = connect(&world, &client).await;
        assert_eq!(ask(&mut stream, &by_address(SocketAddr::new(own.ip(), port))).await, Some(0));
        assert!(world.record().await.reason.contains("own node proxy"));
    }
}

#[tokio::test]
async fn without_being_switched_on_there_is_none() {
    let world = World::new();
    let client = pod("client", "127.77.63.5");
    push(&world.store, &[&client], &[]);
    world.serve(&client);
    assert!(world.ztunnel.pod(&client.uid).expect("the pod").socks.is_none());
}

#[tokio::test]
async fn past_the_limit_of_connections_nobody_is_talked_to() {
    let limits = crate::Limits { connections_per_pod: 1, ..crate::Limits::default() };
    let world = World::with(Config { socks5: Some(0), limits, ..Config::default() });
    let client = pod("client", "127.77.64.5");
    push(&world.store, &[&client], &[]);
    world.serve(&client);
    let mut first = connect(&world, &client).await;
    first.write_all(&[5, 1, 0]).await.expect("sent");
    let mut agreed = [0; 2];
    timeout(PATIENCE, first.read_exact(&mut agreed)).await.expect("in time").expect("an answer");
    let address = world.ztunnel.pod(&client.uid).expect("the pod").socks.expect("SOCKS5");
    // It may be reset as early as while it connects.
    if let Ok(mut second) = TcpStream::connect(address).await {
        let ended = timeout(PATIENCE, second.read(&mut [0; 1])).await.expect("in time");
        assert!(matches!(ended, Ok(0) | Err(_)), "refused at once");
    }
    let waiting = timeout(Duration::from_millis(50), first.read(&mut [0; 1])).await;
    assert!(waiting.is_err(), "the first one still has its place");
}
