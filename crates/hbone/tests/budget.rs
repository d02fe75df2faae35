//! What the connections of one workload share: places, and memory that those who don't read can't make grow.

mod support;

use std::{sync::Arc, time::Duration};

use ambit_hbone::{
    ConnectError, Limits, Tunnel, accept,
    budget::{Bound, Budget, OverBudget, Resource, Scope},
    limits::TUNNEL_BYTES,
};
use ambit_testing::{TestMesh, identity};
use http::HeaderMap;
use support::{Client, eventually, quick, server, soon};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep},
};

/// What all may hold, and what the one under test may.
const WHOLE: usize = 8 << 20;
const SHARE: usize = 2 << 20;
/// What each of these connections may take in between one look at the bound and the next, and what it's charged in.
const STEP: usize = 256 << 10;
const CONNECTIONS: usize = 4;
const STREAMS: usize = 4;
/// What is sent on each stream; together much more than the share.
const BYTES: usize = 1 << 20;

fn with_memory(memory: &Arc<Bound>) -> Limits {
    Limits { budget: Budget { memory: Some(Arc::clone(memory)), ..Budget::default() }, ..quick() }
}

/// Fails if more is held than the bound allows within a moment.
async fn stays_bounded(memory: &Bound) {
    let until = Instant::now() + Duration::from_millis(300);
    while Instant::now() < until {
        assert!(memory.used() <= SHARE + CONNECTIONS * STEP, "{} bytes are held", memory.used());
        sleep(Duration::from_millis(2)).await;
    }
}

/// A server under that budget that hands its tunnels over unread.
async fn holding(mesh: &TestMesh, limits: Limits) -> (std::net::SocketAddr, mpsc::Receiver<Tunnel>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("its address");
    let certificate = mesh.certificates.get(&identity("a", "server")).await.expect("a certificate");
    let (sender, tunnels) = mpsc::channel(CONNECTIONS * STREAMS + 1);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (certificate, limits, sender) = (Arc::clone(&certificate), limits.clone(), sender.clone());
            tokio::spawn(async move {
                let mut connection = accept(stream, certificate, &limits).await.expect("a connection");
                while let Some(Ok(request)) = connection.next().await {
                    sender.send(request.accept(HeaderMap::new()).expect("a tunnel")).await.expect("room");
                }
            });
        }
    });
    (address, tunnels)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_reads_stays_within_the_bound_and_arrives_once_it_is_read() {
    let mesh = TestMesh::new();
    let all = Bound::new(WHOLE);
    let memory = all.share(SHARE);
    let (address, mut tunnels) = holding(&mesh, with_memory(&memory)).await;
    let clients: Vec<_> = (0..CONNECTIONS).map(|_| Client::new(&mesh, quick())).collect();
    let (mut unread, mut ends) = (Vec::new(), Vec::new());
    for client in &clients {
        for _ in 0..STREAMS {
            ends.push(client.open("x", address, "held:1").await);
            unread.push(tunnels.recv().await.expect("its other end"));
        }
    }
    let mut senders = JoinSet::new();
    for mut tunnel in ends {
        senders.spawn(async move {
            tunnel.write_all(&vec![7; BYTES]).await.expect("sent");
            tunnel.shutdown().await.expect("an end");
            // Until the other side is done.
            let _ = tunnel.read(&mut [0]).await;
        });
    }
    eventually("the share is used up", || memory.is_used_up()).await;
    stays_bounded(&memory).await;
    assert_eq!(all.used(), memory.used());
    assert!(all.used() < WHOLE && !all.is_used_up(), "the others have theirs");

    // One that is read goes on meanwhile, with all its bytes.
    let other = Client::new(&mesh, quick());
    let mut tunnel = other.open("x", address, "held:1").await;
    let mut far = tunnels.recv().await.expect("its other end");
    for round in 0..64_u8 {
        tunnel.write_all(&[round; 20_000]).await.expect("sent");
        let mut came = vec![0; 20_000];
        soon(far.read_exact(&mut came)).await.expect("received");
        assert!(came.iter().all(|byte| *byte == round));
    }
    assert!(memory.is_used_up());

    let mut readers = JoinSet::new();
    for mut tunnel in unread {
        readers.spawn(async move {
            let mut came = Vec::new();
            tunnel.read_to_end(&mut came).await.expect("received");
            assert!(came.len() == BYTES && came.iter().all(|byte| *byte == 7));
        });
    }
    soon(readers.join_all()).await;
    soon(senders.join_all()).await;
    eventually("all is given back", || all.used() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_peer_does_not_take_stays_within_the_bound() {
    let mesh = TestMesh::new();
    let all = Bound::new(WHOLE);
    let memory = all.share(SHARE);
    let small = Limits { stream_window_bytes: 65_535, connection_window_bytes: 65_535, ..quick() };
    let (address, mut tunnels) = holding(&mesh, small).await;
    let clients: Vec<_> = (0..CONNECTIONS).map(|_| Client::new(&mesh, with_memory(&memory))).collect();
    let (mut unread, mut ends) = (Vec::new(), Vec::new());
    for client in &clients {
        for _ in 0..STREAMS {
            ends.push(client.open("x", address, "held:1").await);
            unread.push(tunnels.recv().await.expect("its other end"));
        }
    }
    let mut writers = JoinSet::new();
    for mut tunnel in ends {
        writers.spawn(async move {
            for _ in 0..BYTES / 8192 {
                tunnel.write_all(&[7; 8192]).await.expect("sent");
            }
            tunnel.shutdown().await.expect("an end");
            let _ = tunnel.read(&mut [0]).await;
        });
    }
    eventually("the share is used up", || memory.is_used_up()).await;
    stays_bounded(&memory).await;
    let mut readers = JoinSet::new();
    for mut tunnel in unread {
        readers.spawn(async move {
            let mut came = Vec::new();
            tunnel.read_to_end(&mut came).await.expect("received");
            assert_eq!(came.len(), BYTES);
        });
    }
    soon(readers.join_all()).await;
    soon(writers.join_all()).await;
    drop(clients);
    eventually("only the connections' own share is left", || all.used() <= CONNECTIONS * TUNNEL_BYTES).await;
}

#[tokio::test]
async fn a_pools_connections_take_places_and_give_them_back() {
    let mesh = TestMesh::new();
    let servers = [server(&mesh, quick()).await, server(&mesh, quick()).await];
    let (connections, tunnels, memory) = (Bound::new(1), Bound::new(1), Bound::new(1 << 20));
    let budget = Budget {
        connections: Some(Arc::clone(&connections)),
        tunnels: Some(Arc::clone(&tunnels)),
        memory: Some(Arc::clone(&memory)),
        ..Budget::default()
    };
    let client = Client::new(&mesh, Limits { budget, ..quick() });
    let mut first = client.open("x", servers[0].addr, "echo:1").await;
    assert_eq!((connections.used(), tunnels.used()), (1, 0));
    assert!(memory.used() > 0);
    // Another stream takes no further place; another peer does.
    let _same = client.open("x", servers[0].addr, "echo:1").await;
    let refused = client.pool.connect(client.request("x", servers[1].addr, "echo:1")).await.expect_err("no place");
    let over = OverBudget { resource: Resource::Connections, scope: Scope::Whole };
    assert!(matches!(&refused, ConnectError::Budget(which) if *which == over), "{refused}");
    assert_eq!(tunnels.used(), 0);
    first.write_all(b"x").await.expect("the first goes on");
    soon(first.read_exact(&mut [0])).await.expect("an echo");
    client.pool.close();
    eventually("the place is free", || connections.used() == 0 && memory.used() == 0).await;

    let making = tunnels.take(1).expect("free");
    let client =
        Client::new(&mesh, Limits { budget: Budget { tunnels: Some(tunnels), ..Budget::default() }, ..quick() });
    let refused = client.pool.connect(client.request("x", servers[0].addr, "echo:1")).await.expect_err("no place");
    assert!(refused.to_string().contains("limit of tunnels being made"), "{refused}");
    drop(making);
    let _now = client.open("x", servers[0].addr, "echo:1").await;
}
