//! Sockets and their options, on loopback.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use ambit_hbone::socket::{
    ConnectOptions, HostNetwork, KEEPALIVE_RETRIES, KEEPALIVE_TIME, Keepalive, ListenOptions, Network, StreamOptions,
    connect, fold_mapped, listen, original_dst, tune_with, udp,
};
use nix::sys::socket::{getsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

fn loopback() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)
}

/// Counts the sockets it makes.
#[derive(Debug, Default)]
struct Counting(AtomicUsize);

impl Network for Counting {
    fn socket(&self, domain: Domain, ty: Type, protocol: Option<Protocol>) -> std::io::Result<Socket> {
        self.0.fetch_add(1, Ordering::SeqCst);
        HostNetwork.socket(domain, ty, protocol)
    }
}

#[tokio::test]
async fn sockets_come_from_the_network_with_their_options() {
    let network = Counting::default();
    let options = ListenOptions { reuse_port: true, ..ListenOptions::default() };
    let listener = listen(&network, loopback(), &options).expect("listening");
    let addr = listener.local_addr().expect("bound");
    let second = listen(&network, addr, &options).expect("shares the port");
    drop(second);
    let stream = connect(&network, addr, &ConnectOptions::default()).await.expect("connected");
    udp(&network, loopback(), None).expect("bound");
    assert_eq!(network.0.load(Ordering::SeqCst), 4);
    let socket = SockRef::from(&stream);
    assert!(socket.tcp_nodelay().expect("read") && socket.keepalive().expect("read"));
    assert_eq!(socket.tcp_keepalive_time().expect("read"), KEEPALIVE_TIME);
    assert_eq!(socket.tcp_keepalive_interval().expect("read"), KEEPALIVE_TIME);
    assert_eq!(socket.tcp_keepalive_retries().expect("read"), KEEPALIVE_RETRIES);
    // Nothing redirected it, so it was going where it arrived.
    let (accepted, _) = listener.accept().await.expect("accepted");
    assert_eq!(original_dst(&accepted).expect("read"), addr);
}

#[tokio::test]
async fn keepalive_and_user_timeout_are_set_as_told() {
    let listener = listen(&HostNetwork, loopback(), &ListenOptions::default()).expect("listening");
    let addr = listener.local_addr().expect("bound");
    let stream = connect(&HostNetwork, addr, &ConnectOptions::default()).await.expect("connected");
    let socket = SockRef::from(&stream);
    assert_eq!(socket.tcp_user_timeout().expect("read"), None);
    let keepalive = Keepalive { time: Duration::from_secs(30), interval: Duration::from_secs(5), retries: 4 };
    tune_with(&stream, &StreamOptions { keepalive: Some(keepalive), user_timeout: true }).expect("set");
    assert_eq!(socket.tcp_keepalive_time().expect("read"), Duration::from_secs(30));
    assert_eq!(socket.tcp_keepalive_interval().expect("read"), Duration::from_secs(5));
    assert_eq!(socket.tcp_keepalive_retries().expect("read"), 4);
    assert_eq!(socket.tcp_user_timeout().expect("read"), Some(Duration::from_secs(50)));
    tune_with(&stream, &StreamOptions { keepalive: None, user_timeout: true }).expect("set");
    assert!(!socket.keepalive().expect("read"));
}

#[tokio::test]
async fn a_mapped_peer_is_connected_and_named_as_ipv4() {
    let listener = listen(&HostNetwork, loopback(), &ListenOptions::default()).expect("listening");
    let port = listener.local_addr().expect("bound").port();
    let mapped = SocketAddr::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), port);
    let stream = connect(&HostNetwork, mapped, &ConnectOptions::default()).await.expect("connected");
    assert_eq!(stream.peer_addr().expect("connected"), fold_mapped(mapped));
    assert!(fold_mapped(mapped).is_ipv4());
    let plain: SocketAddr = "[2001:db8::1]:80".parse().expect("an address");
    assert_eq!(fold_mapped(plain), plain);
}

#[tokio::test]
async fn a_closed_port_refuses() {
    let listener = listen(&HostNetwork, loopback(), &ListenOptions::default()).expect("listening");
    let addr = listener.local_addr().expect("bound");
    drop(listener);
    let error = connect(&HostNetwork, addr, &ConnectOptions::default()).await.expect_err("closed");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_peer_that_does_not_answer_is_given_up() {
    // A listener whose queue is full drops further SYNs.
    let options = ListenOptions { backlog: 0, ..ListenOptions::default() };
    let listener = listen(&HostNetwork, loopback(), &options).expect("listening");
    let addr = listener.local_addr().expect("bound");
    let quick = ConnectOptions { timeout: Duration::from_millis(300), ..ConnectOptions::default() };
    let mut held = Vec::new();
    let started = Instant::now();
    let error = loop {
        match connect(&HostNetwork, addr, &quick).await {
            Ok(stream) => held.push(stream),
            Err(error) => break error,
        }
        assert!(held.len() < 16, "the queue never fills");
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(started.elapsed() < Duration::from_secs(5));
}

/// Needs CAP_NET_ADMIN to succeed; without it, the failure must be loud and the connection not made.
#[tokio::test]
async fn another_source_address_is_had_or_the_connection_fails() {
    let listener = listen(&HostNetwork, loopback(), &ListenOptions::default()).expect("listening");
    let addr = listener.local_addr().expect("bound");
    let source = IpAddr::V4(Ipv4Addr::new(127, 9, 9, 9));
    let options = ConnectOptions { source: Some(source), mark: Some(0x539), ..ConnectOptions::default() };
    match connect(&HostNetwork, addr, &options).await {
        Ok(stream) => {
            assert_eq!(stream.local_addr().expect("bound").ip(), source);
            assert_eq!(SockRef::from(&stream).mark().expect("read"), 0x539);
            // The port was chosen for this destination alone, at the connect.
            assert!(getsockopt(&stream, IpBindAddressNoPort).expect("read"));
            assert_ne!(stream.local_addr().expect("bound").port(), 0);
            assert_eq!(listener.accept().await.expect("accepted").1.ip(), source);
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
            assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
            let none = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
            assert!(none.is_err(), "connected all the same");
        }
    }
    let mixed =
        ConnectOptions { source: Some("2001:db8::1".parse().expect("an address")), ..ConnectOptions::default() };
    let error = connect(&HostNetwork, addr, &mixed).await.expect_err("two families");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}
