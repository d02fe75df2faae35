//! DNS over real sockets.

mod names;
mod random;
mod upstream;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_proto::{
    op::{Message, OpCode, Query, ResponseCode},
    rr::{Name, RData, RecordType, rdata::A},
};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

use super::forward::{read_framed, write_framed};
use crate::{
    Config,
    limits::{MAX_DNS_QUERY_BYTES, MAX_DNS_TCP_QUERIES},
    tests::fixture::{PATIENCE, World, endpoint, ip, pod, push, service},
};

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).expect("a name");
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    message
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    let address = |data: &RData| match data {
        RData::A(A(ip)) => Some(IpAddr::V4(*ip)),
        _ => None,
    };
    message.answers.iter().filter_map(|record| address(&record.data)).collect()
}

async fn ask_udp(server: SocketAddr, packet: &[u8]) -> Option<Message> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    socket.connect(server).await.expect("connected");
    socket.send(packet).await.expect("sent");
    let mut buffer = vec![0; 65_535];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.ok()?.expect("an answer");
    Some(Message::from_vec(&buffer[..length]).expect("a readable answer"))
}

async fn ask_tcp(server: SocketAddr, packet: &[u8]) -> Message {
    let mut stream = TcpStream::connect(server).await.expect("connected");
    write_framed(&mut stream, packet).await.expect("sent");
    let answer = timeout(PATIENCE, read_framed(&mut stream)).await.expect("in time").expect("an answer");
    Message::from_vec(&answer.expect("not the end")).expect("a readable answer")
}

/// A served pod `ns/client` and the address of its DNS.
fn world(address: &str, upstream: Vec<SocketAddr>) -> (World, SocketAddr) {
    let world = World::with(Config { upstream_dns: upstream, ..Config::default() });
    let client = pod("client", address);
    push(&world.store, &[&client], &[&service("app", &["10.96.0.2"], 80, None)]);
    world.serve(&client);
    let server = world.ztunnel.pod(&client.uid).expect("the pod").dns;
    (world, server)
}

#[tokio::test]
async fn the_mesh_answers_for_its_names_over_udp_and_tcp() {
    let (_world, server) = world("127.77.31.5", Vec::new());
    for name in ["app", "app.ns", "APP.ns.svc.", "app.ns.svc.cluster.local."] {
        let asked = query(name, RecordType::A);
        let packet = asked.to_vec().expect("a packet");
        for answer in [ask_udp(server, &packet).await.expect("in time"), ask_tcp(server, &packet).await] {
            assert_eq!(answer.metadata.id, asked.metadata.id);
            assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "{name}");
            assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
            assert_eq!(addresses(&answer), [ip("10.96.0.2")], "{name}");
            assert_eq!(answer.queries, asked.queries);
        }
    }
    let six = ask_udp(server, &query("app", RecordType::AAAA).to_vec().expect("a packet")).await.expect("in time");
    assert_eq!((six.metadata.response_code, six.answers.len()), (ResponseCode::NoError, 0));
    let unknown = query("nobody.ns.svc.cluster.local.", RecordType::A).to_vec().expect("a packet");
    let unknown = ask_udp(server, &unknown).await.expect("in time");
    assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn what_is_not_a_query_gets_what_it_deserves() {
    let (_world, server) = world("127.77.32.5", Vec::new());
    let mut update = query("app", RecordType::A);
    update.metadata.op_code = OpCode::Update;
    let answer = ask_udp(server, &update.to_vec().expect("a packet")).await.expect("in time");
    assert_eq!(answer.metadata.response_code, ResponseCode::NotImp);
    let mut two = query("app", RecordType::A);
    two.add_query(Query::query(Name::from_ascii("b").expect("a name"), RecordType::A));
    let answer = ask_udp(server, &two.to_vec().expect("a packet")).await.expect("in time");
    assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
    let answer = ask_udp(server, &[0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 63]).await.expect("in time");
    assert_eq!((answer.metadata.id, answer.metadata.response_code), (0xabcd, ResponseCode::FormErr));

    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    for silent in [&query("app", RecordType::A).into_response().to_vec().expect("a packet")[..], b"short", b""] {
        socket.send_to(silent, server).await.expect("sent");
    }
    let mut buffer = [0; 512];
    assert!(timeout(Duration::from_millis(100), socket.recv(&mut buffer)).await.is_err(), "answers aren't answered");
}

/// A resolver that sends, before its answer, one with a wrong id and one to another question.
async fn resolver() -> SocketAddr {
    // TCP first: its ports are scarcer.
    let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = tcp.local_addr().expect("its address");
    let udp = UdpSocket::bind(address).await.expect("a socket");
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
            let asked = Message::from_vec(&buffer[..length]).expect("a query");
            let mut wrong_id = answer(&asked, [6, 6, 6, 6]);
            wrong_id.metadata.id = asked.metadata.id.wrapping_add(1);
            let mut wrong_question = answer(&asked, [6, 6, 6, 7]);
            wrong_question.queries = query("other.example.", RecordType::A).queries;
            for reply in [wrong_id, wrong_question, answer(&asked, [9, 9, 9, 9])] {
                udp.send_to(&reply.to_vec().expect("a packet"), client).await.expect("sent");
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let asked = read_framed(&mut stream).await.expect("a query").expect("not the end");
            let asked = Message::from_vec(&asked).expect("a query");
            let reply = answer(&asked, [8, 8, 8, 8]).to_vec().expect("a packet");
            write_framed(&mut stream, &reply).await.expect("sent");
        }
    });
    address
}

fn answer(asked: &Message, address: [u8; 4]) -> Message {
    let mut reply = asked.clone().into_response();
    let data = RData::A(A(address.into()));
    reply.add_answer(hickory_proto::rr::Record::from_rdata(asked.queries[0].name().clone(), 0, data));
    reply
}

#[tokio::test]
async fn other_names_go_to_the_hosts_resolver_and_forged_answers_are_ignored() {
    let resolver = resolver().await;
    // The first resolver of the list doesn't answer.
    let dead = UdpSocket::bind("127.0.0.1:0").await.expect("a socket").local_addr().expect("its address");
    let (_world, server) = world("127.77.33.5", vec![dead, resolver]);
    let asked = query("www.example.com.", RecordType::A);
    let packet = asked.to_vec().expect("a packet");
    let answer = ask_udp(server, &packet).await.expect("in time");
    assert_eq!(answer.metadata.id, asked.metadata.id);
    assert_eq!(addresses(&answer), [ip("9.9.9.9")]);
    assert_eq!(addresses(&ask_tcp(server, &packet).await), [ip("8.8.8.8")]);
}

#[tokio::test]
async fn without_a_resolver_other_names_fail() {
    let (_world, server) = world("127.77.34.5", Vec::new());
    let packet = query("www.example.com.", RecordType::A).to_vec().expect("a packet");
    let answer = ask_udp(server, &packet).await.expect("in time");
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(ask_tcp(server, &packet).await.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn past_the_limit_only_names_of_the_mesh_are_answered() {
    let limits = crate::Limits { dns_queries_per_pod: 0, ..crate::Limits::default() };
    let world = World::with(Config { upstream_dns: vec![resolver().await], limits, ..Config::default() });
    let client = pod("client", "127.77.36.5");
    push(&world.store, &[&client], &[&service("app", &["10.96.0.2"], 80, None)]);
    world.serve(&client);
    let server = world.ztunnel.pod(&client.uid).expect("the pod").dns;
    let foreign = query("www.example.com.", RecordType::A).to_vec().expect("a packet");
    let answer = ask_udp(server, &foreign).await.expect("in time");
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    let own = query("app", RecordType::A).to_vec().expect("a packet");
    assert_eq!(addresses(&ask_udp(server, &own).await.expect("in time")), [ip("10.96.0.2")]);
    let mut stream = TcpStream::connect(server).await.expect("connected");
    let _ = write_framed(&mut stream, &own).await;
    assert!(!matches!(timeout(PATIENCE, read_framed(&mut stream)).await.expect("in time"), Ok(Some(_))));
}

#[tokio::test]
async fn a_connection_serves_so_many_queries_and_not_one_that_is_too_long() {
    let (_world, server) = world("127.77.37.5", Vec::new());
    let packet = query("app", RecordType::A).to_vec().expect("a packet");
    let mut stream = TcpStream::connect(server).await.expect("connected");
    for _ in 0..MAX_DNS_TCP_QUERIES {
        write_framed(&mut stream, &packet).await.expect("sent");
        let answer = timeout(PATIENCE, read_framed(&mut stream)).await.expect("in time").expect("an answer");
        assert!(answer.is_some());
    }
    let _ = write_framed(&mut stream, &packet).await;
    assert!(!matches!(timeout(PATIENCE, read_framed(&mut stream)).await.expect("in time"), Ok(Some(_))));

    let mut long = packet.clone();
    long.resize(MAX_DNS_QUERY_BYTES + 1, 0);
    let answers = [ask_udp(server, &long).await.expect("in time"), ask_tcp(server, &long).await];
    assert!(answers.iter().all(|answer| answer.metadata.response_code == ResponseCode::FormErr));
}

#[tokio::test]
async fn an_answer_that_is_too_long_for_udp_comes_over_tcp() {
    let (world, server) = world("127.77.35.5", Vec::new());
    let pods: Vec<_> =
        (1..=60).map(|i| endpoint(pod(&format!("p{i}"), &format!("10.244.3.{i}")), "many", 80, 8080)).collect();
    push(&world.store, &pods.iter().collect::<Vec<_>>(), &[&service("many", &[], 80, None)]);
    let packet = query("many", RecordType::A).to_vec().expect("a packet");
    let cut = ask_udp(server, &packet).await.expect("in time");
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    assert_eq!(addresses(&ask_tcp(server, &packet).await).len(), 60);
}
