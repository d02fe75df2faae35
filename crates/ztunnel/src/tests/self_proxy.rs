//! The proxy's own pod (`spec/ztunnel.md` 1).

use std::{net::SocketAddr, sync::Arc};

use ambit_hbone::HostNetwork;
use ambit_policy::Verdict;
use http::HeaderMap;
use tokio::net::{TcpListener, TcpStream};

use super::{
    fixture::{World, allow, application, converse, ip, pod, policy, push},
    inbound::connect,
};
use crate::{Config, Pod};

fn own(address: &str) -> Pod {
    Pod {
        uid: "the-proxy".into(),
        ip: ip(address),
        namespace: "ns".to_owned(),
        network: Arc::new(HostNetwork),
        captured: true,
        in_pod: None,
    }
}

#[tokio::test]
async fn its_metrics_are_fetched_by_tunnel_and_under_policy() {
    let mut world = World::new();
    let app = pod("app", "127.80.1.2");
    push(&world.store, &[&app], &[]);
    policy(&world.store, "only-prometheus", &allow(&["prometheus"]));
    let pod = Pod { uid: app.uid.as_str().into(), ..own("127.80.1.2") };
    world.ztunnel.add_own(pod).expect("a listener");
    let metrics = application(ip("127.80.1.2")).await.to_string();
    let (from, to) = ("127.80.1.5", "127.80.1.2");
    let tunnel = connect(&world, "prometheus", from, to, &metrics, HeaderMap::new()).await;
    converse(&mut tunnel.expect("let in")).await;
    assert_eq!(world.record().await.verdict, Verdict::Allow);
    assert!(connect(&world, "stranger", from, to, &metrics, HeaderMap::new()).await.is_err());
    assert_eq!(world.record().await.verdict, Verdict::Deny);
    // Not even a tunnel leads to the proxy's own ports.
    assert!(connect(&world, "prometheus", from, to, "127.80.1.2:15008", HeaderMap::new()).await.is_err());
    assert!(world.ztunnel.add_own(own("127.80.1.2")).is_err(), "the port is taken");
}

#[tokio::test]
async fn nothing_but_hbone_is_listened_on() {
    let world = World::with(Config { socks5: Some(0), ..Config::default() });
    world.ztunnel.add_own(own("127.80.2.2")).expect("a listener");
    TcpStream::connect("127.80.2.2:15008").await.expect("HBONE");
    let served = world.ztunnel.pod("the-proxy").expect("served");
    assert_eq!((served.outbound.port(), served.dns.port(), served.socks), (0, 0, None));
    world.ztunnel.remove("the-proxy");
    let free = async {
        // The listener's task ends at its next step.
        while TcpListener::bind(SocketAddr::new(ip("127.80.2.2"), 15_008)).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(super::fixture::PATIENCE, free).await.expect("the port is given back");
}
