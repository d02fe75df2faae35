//! Living tunnels end when their peer is no longer trusted, and only those (`spec/ztunnel.md` 20): each end for itself.

mod support;

use std::{io::ErrorKind, sync::Arc, time::Duration};

use ambit_hbone::{Connect, ConnectError, Error, HostNetwork, Pool, Tunnel, accept, connect_within};
use ambit_identity::{CertificateStore, Crls, Distrust, SystemClock, WorkloadCertificate};
use ambit_testing::{TestMesh, identity};
use http::HeaderMap;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use support::{Client, eventually, quick, server, soon};

/// How soon a tunnel has to end, on a busy machine.
const PROMPT: Duration = Duration::from_secs(2);

/// A client with a store of its own: the other end's trust isn't its own.
fn client_of(mesh: &TestMesh) -> (Arc<CertificateStore>, Client) {
    let store = CertificateStore::new(Arc::clone(&mesh.ca) as _, Arc::new(SystemClock));
    let pool = Pool::new(Arc::clone(&store), quick());
    (store, Client { pool, network: Arc::new(HostNetwork) })
}

async fn certificate(store: &CertificateStore, account: &str) -> Arc<WorkloadCertificate> {
    store.get(&identity("a", account)).await.expect("a certificate")
}

/// Has this store know of a list that names these.
fn revoke(mesh: &TestMesh, store: &CertificateStore, revoked: &[&WorkloadCertificate]) {
    let revoked: Vec<_> = revoked.iter().map(|certificate| &certificate.chain()[0]).collect();
    let list = Crls::parse(&mesh.revocation_list(&revoked)).expect("a list");
    store.trust().set_crls(Arc::new(list));
}

async fn lives(tunnel: &mut Tunnel) {
    tunnel.write_all(b"still there").await.expect("sent");
    let mut bytes = [0; 11];
    soon(tunnel.read_exact(&mut bytes)).await.expect("echoed");
    assert_eq!(&bytes, b"still there");
}

async fn ends(tunnel: &mut Tunnel) {
    let end = tokio::time::timeout(PROMPT, tunnel.read_u8()).await.expect("ended in time");
    assert_eq!(end.expect_err("nothing more comes").kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_revoked_clients_tunnels_end_and_nobody_elses() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let (store, client) = client_of(&mesh);
    let mut good = client.open("good", server.addr, "echo:1").await;
    let mut bad = client.open("bad", server.addr, "echo:1").await;
    let mut bad_too = client.open("bad", server.addr, "echo:1").await;
    revoke(&mesh, &mesh.certificates, &[]);
    for tunnel in [&mut good, &mut bad, &mut bad_too] {
        lives(tunnel).await;
    }
    revoke(&mesh, &mesh.certificates, &[&*certificate(&store, "bad").await]);
    ends(&mut bad).await;
    ends(&mut bad_too).await;
    eventually("the server knows", || server.ended() == 1).await;
    lives(&mut good).await;
    let again = client.pool.connect(client.request("bad", server.addr, "echo:1")).await;
    assert!(again.is_err(), "and it doesn't come back");
    lives(&mut client.open("good", server.addr, "echo:1").await).await;
    assert_eq!(server.connections(), 2, "who is trusted keeps its connection");
}

#[tokio::test]
async fn a_revoked_servers_pooled_tunnels_end_and_no_others() {
    let mesh = TestMesh::new();
    let other = TestMesh::new();
    let (bad, good) = (server(&mesh, quick()).await, server(&other, quick()).await);
    let (store, client) = client_of(&mesh);
    let (_, elsewhere) = client_of(&other);
    let mut doomed = client.open("x", bad.addr, "echo:1").await;
    let mut spared = elsewhere.open("x", good.addr, "echo:1").await;
    revoke(&mesh, &store, &[&*certificate(&mesh.certificates, "server").await]);
    ends(&mut doomed).await;
    let again = client.pool.connect(client.request("x", bad.addr, "echo:1")).await;
    assert!(matches!(again, Err(ConnectError::Tls { .. })), "it isn't taken from the pool: {again:?}");
    lives(&mut spared).await;
}

#[tokio::test]
async fn without_its_root_a_peers_tunnels_end_and_with_another_one_beside_it_they_live() {
    let (mesh, other) = (TestMesh::new(), TestMesh::new());
    let new_root = certificate(&other.certificates, "x").await.roots().to_vec();
    for server_side in [true, false] {
        let server = server(&mesh, quick()).await;
        let (store, client) = client_of(&mesh);
        let mut tunnel = client.open("x", server.addr, "echo:1").await;
        let trust = if server_side { mesh.certificates.trust() } else { store.trust() };
        let old_root = trust.roots().to_vec();
        trust.replace_roots([old_root.clone(), new_root.clone()].concat()).expect("good roots");
        lives(&mut tunnel).await;
        trust.replace_roots(new_root.clone()).expect("a good root");
        ends(&mut tunnel).await;
        eventually("the server knows", || server.ended() == 1).await;
        trust.replace_roots(old_root).expect("a good root");
        lives(&mut client.open("x", server.addr, "echo:1").await).await;
    }
}

#[tokio::test]
async fn the_server_is_told_why() {
    let mesh = TestMesh::new();
    let (store, client) = client_of(&mesh);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let peer = listener.local_addr().expect("bound");
    let own = certificate(&mesh.certificates, "server").await;
    let serve = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a client");
        let mut connection = accept(stream, own, &quick()).await.expect("accepted");
        let first = connection.next().await.expect("a request").expect("a request");
        let tunnel = first.accept(HeaderMap::new()).expect("accepted");
        let outcome = connection.next().await;
        drop(tunnel);
        outcome
    });
    let mut tunnel = client.open("x", peer, "echo:1").await;
    revoke(&mesh, &mesh.certificates, &[&*certificate(&store, "x").await]);
    ends(&mut tunnel).await;
    match soon(serve).await.expect("no panic") {
        Some(Err(Error::Distrusted { distrust: Distrust::Revoked(_), .. })) => {}
        outcome => panic!("not told: {outcome:?}"),
    }
}

#[tokio::test]
async fn a_tunnel_within_a_tunnel_is_looked_after_too() {
    let mesh = TestMesh::new();
    let (store, _) = client_of(&mesh);
    let (near, far) = tokio::io::duplex(1000);
    let inner = certificate(&mesh.certificates, "server").await;
    let shown = Arc::clone(&inner);
    tokio::spawn(async move {
        let nowhere = "192.0.2.1:15008".parse().expect("an address");
        let accepted = ambit_hbone::accept_over(far, shown, &quick(), nowhere, nowhere).await;
        let mut connection = accepted.expect("accepted");
        while let Some(Ok(request)) = connection.next().await {
            let (mut read, mut write) = tokio::io::split(request.accept(HeaderMap::new()).expect("accepted"));
            tokio::spawn(async move { tokio::io::copy(&mut read, &mut write).await });
        }
    });
    let own = certificate(&store, "x").await;
    let request = Connect {
        network: Arc::new(HostNetwork),
        source: identity("a", "x"),
        peer: "192.0.2.1:15008".parse().expect("an address"),
        expected: vec![identity("a", "server")],
        authority: "echo:1".to_owned(),
        headers: HeaderMap::new(),
        mark: None,
        distant: false,
    };
    let mut tunnel = connect_within(near, &own, request, &quick()).await.expect("a tunnel");
    lives(&mut tunnel).await;
    revoke(&mesh, &store, &[&*inner]);
    ends(&mut tunnel).await;
}

/// A change between the handshake and the first look at the connection is seen too: the watch begins before the handshake.
#[tokio::test]
async fn a_change_in_the_moment_of_the_handshake_is_not_missed() {
    let mesh = TestMesh::new();
    let server = server(&mesh, quick()).await;
    let (store, client) = client_of(&mesh);
    let doomed = certificate(&store, "x").await;
    for _ in 0..20 {
        let opening = client.pool.connect(client.request("x", server.addr, "echo:1"));
        let revoking = async {
            tokio::task::yield_now().await;
            revoke(&mesh, &mesh.certificates, &[&doomed]);
        };
        let (opened, ()) = tokio::join!(opening, revoking);
        // Refused at once, or cut.
        if let Ok(mut tunnel) = opened {
            ends(&mut tunnel).await;
        }
        mesh.certificates.trust().set_crls(Arc::default());
    }
}
