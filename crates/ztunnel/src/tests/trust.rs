//! What becomes of living tunnels when peers are no longer trusted (`spec/ztunnel.md` 20).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ambit_hbone::{Connect, Pool, Tunnel};
use ambit_identity::{CertificateStore, Crls, SystemClock};
use ambit_policy::Verdict;
use ambit_telemetry::metrics::Metrics;
use ambit_testing::TestMesh;
use http::HeaderMap;
use tokio::io::AsyncReadExt;

use super::fixture::{From, World, application, echo, greeting, id, ip, pod, push};
use crate::Config;

/// How soon a tunnel has to end, on a busy machine.
const PROMPT: Duration = Duration::from_secs(2);

/// Opens a tunnel as this account, which shows a certificate of this store.
async fn open(clients: &Arc<CertificateStore>, account: &str, from: &str, target: SocketAddr) -> Tunnel {
    let pool = Pool::new(Arc::clone(clients), ambit_hbone::Limits::default());
    let connect = Connect {
        network: Arc::new(From(ip(from))),
        source: id(account),
        peer: SocketAddr::new(target.ip(), 15008),
        expected: vec![id("app")],
        authority: target.to_string(),
        headers: HeaderMap::new(),
        mark: None,
        distant: false,
    };
    pool.connect(connect).await.expect("a tunnel")
}

#[tokio::test]
async fn a_revoked_clients_connections_are_cut_and_said_so_and_nobody_elses() {
    let mesh = TestMesh::new();
    let metrics = Metrics::new("ztunnel", "unknown");
    let config = Config { metrics: Arc::clone(&metrics), ..Config::default() };
    let mut world = World::showing(config, Arc::clone(&mesh.certificates));
    let app = pod("app", "127.81.1.2");
    push(&world.store, &[&app], &[]);
    world.serve(&app);
    let target = application(ip("127.81.1.2")).await;
    let clients = CertificateStore::new(Arc::clone(&mesh.ca) as _, Arc::new(SystemClock));
    let mut good = open(&clients, "good", "127.81.1.5", target).await;
    let mut bad = open(&clients, "bad", "127.81.1.6", target).await;
    for tunnel in [&mut good, &mut bad] {
        greeting(tunnel).await;
        echo(tunnel).await;
    }
    let revoked = clients.get(&id("bad")).await.expect("its certificate");
    let list = Crls::parse(&mesh.revocation_list(&[&revoked.chain()[0]])).expect("a list");
    mesh.certificates.trust().set_crls(Arc::new(list));
    let end = tokio::time::timeout(PROMPT, bad.read_u8()).await.expect("cut in time");
    assert!(end.is_err(), "nothing more comes: {end:?}");
    let said = async {
        loop {
            let record = world.record().await;
            if record.verdict == Verdict::Deny {
                break record;
            }
        }
    };
    let record = tokio::time::timeout(PROMPT, said).await.expect("a record");
    assert_eq!(record.source.identity, Some(id("bad")));
    assert!(record.reason.contains("no longer trusted") && record.reason.contains("is revoked"), "{}", record.reason);
    let counted = "istio_crl_policy_rejections_total{reporter=\"destination\"} 1";
    assert!(metrics.encode().expect("metrics").contains(counted), "{}", metrics.encode().expect("metrics"));
    echo(&mut good).await;
}

#[tokio::test]
async fn a_pods_own_tunnels_end_when_the_server_is_no_longer_vouched_for() {
    let (mesh, other) = (TestMesh::new(), TestMesh::new());
    let servers = CertificateStore::new(Arc::clone(&mesh.ca) as _, Arc::new(SystemClock));
    let far = World::showing(Config::default(), servers);
    let near = World::showing(Config::default(), Arc::clone(&mesh.certificates));
    let (app, client) = (pod("app", "127.81.2.2"), pod("client", "127.81.2.5"));
    for world in [&far, &near] {
        push(&world.store, &[&app, &client], &[]);
    }
    far.serve(&app);
    near.serve(&client);
    let target = application(ip("127.81.2.2")).await;
    let mut stream = near.enter(&client, target).await;
    greeting(&mut stream).await;
    echo(&mut stream).await;
    let new_root = other.certificates.get(&id("x")).await.expect("a certificate").roots().to_vec();
    mesh.certificates.trust().replace_roots(new_root).expect("a good root");
    let end = tokio::time::timeout(PROMPT, stream.read_u8()).await.expect("cut in time");
    assert!(end.is_err(), "the application's connection ends with it: {end:?}");
}
