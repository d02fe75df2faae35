//! Bad weather between two nodes, and between a node and its control plane: packets that get lost or late, networks that
//! fall apart and heal. Nothing hangs for longer than it was told to, nothing arrives changed, and nothing needs a restart.

use std::io;
use std::time::{Duration, Instant};

use ambit_node::PodNamespaces;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::control_plane::{self, ControlPlane};
use crate::process::{Ztunnel, run_in};
use crate::suite::{DENY_CLIENT, ensure, failure, sockets_on};
use crate::world::{
    APPLICATION, Application, CLIENT, MESH, Outcome, PATIENCE, SERVICE, UNSET, World, echo, exchange, text,
};

/// The port of tunnels, and that of the control plane at a proxy's loopback.
const TUNNELS: u16 = 15_008;
const CONTROL: u16 = 15_010;
/// How soon a tunnel that is dead has to be found, as it is set: a ping, and the wait for its answer.
const PINGS: [(&str, &str); 2] = [("AMBIT_PING_INTERVAL", "1s"), ("AMBIT_PING_TIMEOUT", "1s")];
const FOUND_DEAD: Duration = Duration::from_secs(2);
/// How long a new connection to nowhere may take.
const CONNECT: Duration = Duration::from_secs(10);
/// What a loaded machine adds to any time.
const SLACK: Duration = Duration::from_secs(3);
/// Bytes each way through loss.
const BULK: usize = 6 << 20;
/// Life of certificates while the CA is away. They are due for renewal at half of it.
const LIFE: (&str, Duration) = ("12s", Duration::from_secs(12));

/// What is wrong with a pod's network. Ends when dropped.
struct Weather<'a>(&'a PodNamespaces);

// === impl Weather ===

impl<'a> Weather<'a> {
    /// Loses that part of the packets that come to this pod from or for a port, in percent.
    fn loss(pod: &'a PodNamespaces, port: u16, percent: u8) -> Outcome<Self> {
        Self::losing(pod, port, &format!("numgen random mod 100 < {percent} drop"))
    }

    /// Loses all of them.
    fn partition(pod: &'a PodNamespaces, port: u16) -> Outcome<Self> {
        Self::losing(pod, port, "drop")
    }

    fn losing(pod: &'a PodNamespaces, port: u16, lost: &str) -> Outcome<Self> {
        let weather = Self(pod);
        let rules = [format!("tcp dport {port} {lost}"), format!("tcp sport {port} {lost}")];
        for rule in std::iter::once("add table ip weather".to_owned())
            .chain(["add chain ip weather in { type filter hook input priority -300; }".to_owned()])
            .chain(rules.map(|rule| format!("add rule ip weather in {rule}")))
        {
            run_in(pod, "nft", &[&rule])?;
        }
        Ok(weather)
    }

    /// Delays, reorders and loses what this pod sends where the kernel can (`netem`). Where it can't, it says so and holds
    /// packets back by a shaper's queue; packets are then not reordered but by being lost and sent again.
    fn delay(&self) -> Outcome {
        let netem =
            ["qdisc", "add", "dev", "eth0", "root", "netem", "delay", "10ms", "5ms", "reorder", "20%", "loss", "2%"];
        let Err(refusal) = run_in(self.0, "tc", &netem) else { return Ok(()) };
        println!("  NO netem ({refusal}): delay by a shaper's queue, loss by nftables, no other reordering");
        let shaper =
            ["qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "200mbit", "burst", "128kb", "latency", "20ms"];
        if let Err(refusal) = run_in(self.0, "tc", &shaper) {
            println!("  NO tbf either ({refusal}): nothing is delayed");
        }
        Ok(())
    }
}

impl Drop for Weather<'_> {
    fn drop(&mut self) {
        // Either may not be there.
        let _ = run_in(self.0, "nft", &["delete table ip weather"]);
        let _ = run_in(self.0, "tc", &["qdisc", "del", "dev", "eth0", "root"]);
    }
}

pub(crate) async fn what_is_sent_arrives_through_loss(world: &World) -> Outcome {
    let _application = tally(world.server.listen(APPLICATION).map_err(text)?).map_err(text)?;
    let (client, server) = world.start_both(&[]).await?;
    {
        let near = Weather::loss(&world.client.pod, TUNNELS, 5)?;
        let far = Weather::loss(&world.server.pod, TUNNELS, 5)?;
        near.delay()?;
        far.delay()?;
        let started = Instant::now();
        let transfers = (0..3).map(|seed| there_and_back(world, seed));
        for outcome in futures_util::future::join_all(transfers).await {
            outcome.map_err(|error| failure(&error, &[&client, &server]))?;
        }
        println!("  3 x {} MiB each way through 5 % loss in {:?}", BULK >> 20, started.elapsed());
    }
    world.server.agent.remove("server").await;
    world.client.agent.remove("client").await;
    Ok(())
}

/// Everything between the nodes is lost: what is open ends in time, on both sides; what is new is refused in time; and when
/// packets go through again, so do connections.
pub(crate) async fn a_partition_ends_connections_and_heals(world: &World) -> Outcome {
    let _application = echo(world.server.listen(APPLICATION).map_err(text)?).map_err(text)?;
    let settings = [PINGS[0], PINGS[1], ("AMBIT_CONNECT_RESPONSE_TIMEOUT", "2s")];
    let (client, server) = world.start_both(&settings).await?;
    let proxies = [&client, &server];
    let mut idle = open(world).await.map_err(|error| failure(&error, &proxies))?;
    let mut ended = open(world).await.map_err(|error| failure(&error, &proxies))?;
    let mut busy = open(world).await.map_err(|error| failure(&error, &proxies))?;
    // This one has said all it will say; and hears an answer still, in good weather.
    ended.write_all(b"last\n").await.map_err(text)?;
    let partition = [Weather::partition(&world.client.pod, TUNNELS)?, Weather::partition(&world.server.pod, TUNNELS)?];
    ended.shutdown().await.map_err(text)?;
    let began = Instant::now();
    let writes = async {
        // Into the void, until it is told.
        while busy.write_all(&[b'x'; 64]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let all = async { tokio::join!(end_of(&mut idle), end_of(&mut ended), writes) };
    tokio::time::timeout(FOUND_DEAD + SLACK, all).await.map_err(|_| "a connection through the partition hangs")?;
    println!("  connections ended {:?} after the partition began", began.elapsed());
    // Nobody answers there now: a new connection is refused, and not only when its client gives up.
    let began = Instant::now();
    let refused = async { exchange(&mut world.client.connect(SERVICE).await?).await };
    ensure!(refused.await.is_err(), "a new connection went through a partition");
    println!("  a new connection was refused after {:?}", began.elapsed());
    ensure!(began.elapsed() < CONNECT + SLACK, "a new connection was refused only after {:?}", began.elapsed());
    // The far side has found it as well, and lets go of what it held: but for its listener nothing is on the port.
    await_sockets(world, 1, FOUND_DEAD + SLACK).await?;
    drop(partition);
    let healed = Instant::now();
    let mut again = heals(world, PATIENCE).await.map_err(|error| failure(&error, &proxies))?;
    println!("  a new connection went through {:?} after the partition healed", healed.elapsed());
    exchange(&mut again).await.map_err(text)?;
    world.server.agent.remove("server").await;
    world.client.agent.remove("client").await;
    Ok(())
}

/// A node vanishes without a word, so the other end is half open: its proxy finds out, and so does the application.
pub(crate) async fn a_dead_peer_is_noticed(world: &World) -> Outcome {
    let listener = world.server.listen(APPLICATION).map_err(text)?;
    let (client, mut server) = world.start_both(&PINGS).await?;
    let mut near = world.client.connect(SERVICE).await.map_err(text)?;
    near.write_all(b"hello\n").await.map_err(text)?;
    let accepted = tokio::time::timeout(PATIENCE, listener.accept()).await;
    let (mut far, _) =
        accepted.map_err(|_| failure(&io::ErrorKind::TimedOut.into(), &[&client, &server]))?.map_err(text)?;
    far.read_exact(&mut [0; 6]).await.map_err(text)?;
    let vanished = Weather::partition(&world.client.pod, TUNNELS)?;
    let deaf = Weather::partition(&world.server.pod, TUNNELS)?;
    client.kill();
    let began = Instant::now();
    let told = tokio::time::timeout(FOUND_DEAD + SLACK, end_of(&mut far)).await;
    ensure!(told.is_ok(), "the application's connection hangs, {:?} after its peer vanished", began.elapsed());
    println!("  the application heard of it after {:?}", began.elapsed());
    await_sockets(world, 1, FOUND_DEAD + SLACK).await?;
    drop((vanished, deaf));
    world.server.agent.remove("server").await;
    server.ready(PATIENCE).await?;
    Ok(())
}

/// Without its control plane a proxy goes on by what it knows, and catches up when it is back.
pub(crate) async fn policy_stays_while_the_control_plane_is_away(world: &World) -> Outcome {
    let _application = echo(world.server.listen(APPLICATION).map_err(text)?).map_err(text)?;
    let control_plane = ControlPlane::new(MESH)?;
    let (client_pod, server_pod) = (world.proxy_pod()?, world.proxy_pod()?);
    let _served = (control_plane.serve_in(&client_pod)?, control_plane.serve_in(&server_pod)?);
    let settings = controlled(&[]);
    let mut client = world.start_in(&client_pod, &world.client, &settings)?;
    let mut server = world.start_in(&server_pod, &world.server, &settings)?;
    both_ready(world, &mut client, &mut server).await?;
    let mut open_before = open(world).await.map_err(|error| failure(&error, &[&client, &server]))?;
    let away = [Weather::partition(&client_pod, CONTROL)?, Weather::partition(&server_pod, CONTROL)?];
    control_plane.apply(DENY_CLIENT)?;
    // It can't have heard of the policy; what it knew, holds.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        exchange(&mut open_before).await.map_err(|error| failure(&error, &[&client, &server]))?;
        open(world).await.map_err(|error| failure(&error, &[&client, &server]))?;
    }
    client.ready(PATIENCE).await?;
    drop(away);
    let healed = Instant::now();
    let cut = tokio::time::timeout(PATIENCE, end_of(&mut open_before)).await;
    ensure!(cut.is_ok(), "the policy never arrived after the partition healed");
    println!("  the policy arrived {:?} after the partition healed", healed.elapsed());
    ensure!(open(world).await.is_err(), "a new connection is let in against the policy");
    // And a policy that is known is kept without a control plane as well.
    let away = [Weather::partition(&client_pod, CONTROL)?, Weather::partition(&server_pod, CONTROL)?];
    for _ in 0..10 {
        ensure!(open(world).await.is_err(), "without a control plane the policy is forgotten");
    }
    drop(away);
    world.server.agent.remove("server").await;
    world.client.agent.remove("client").await;
    Ok(())
}

/// Without a CA certificates are used to their end, not beyond; with it again, traffic flows again.
pub(crate) async fn certificates_last_while_the_ca_is_away(world: &World) -> Outcome {
    let _application = echo(world.server.listen(APPLICATION).map_err(text)?).map_err(text)?;
    let control_plane = ControlPlane::new(MESH)?;
    let (client_pod, server_pod) = (world.proxy_pod()?, world.proxy_pod()?);
    let _served = (control_plane.serve_in(&client_pod)?, control_plane.serve_in(&server_pod)?);
    // Every connection has a tunnel of its own, so every one needs the certificates.
    let settings = controlled(&[("SECRET_TTL", LIFE.0), ("POOL_MAX_STREAMS_PER_CONNECTION", "1")]);
    let asked = Instant::now();
    let mut client = world.start_in(&client_pod, &world.client, &settings)?;
    let mut server = world.start_in(&server_pod, &world.server, &settings)?;
    both_ready(world, &mut client, &mut server).await?;
    let mut held = vec![open(world).await.map_err(|error| failure(&error, &[&client, &server]))?];
    let away = [Weather::partition(&client_pod, CONTROL)?, Weather::partition(&server_pod, CONTROL)?];
    let began = Instant::now();
    // No later than this the last certificate ends that can have been signed before.
    let end = began + LIFE.1;
    let mut last = began;
    let refused = loop {
        let started = Instant::now();
        match open(world).await {
            Ok(stream) => {
                held.push(stream);
                last = started;
            }
            Err(_) => break started,
        }
        ensure!(started < end + SLACK, "new connections go on {:?} after the last certificate's end", started - end);
        tokio::time::sleep(Duration::from_millis(250)).await;
    };
    println!("  {} new connections, the last {:?} after the CA went away", held.len() - 1, last - began);
    let first_end = asked + LIFE.1 - Duration::from_secs(1);
    ensure!(refused >= first_end, "refused {:?} before a certificate's end", first_end - refused);
    ensure!(last - began > LIFE.1 / 4, "the last one went through only {:?} after the CA went away", last - began);
    // What is open isn't touched by that.
    for stream in &mut held {
        exchange(stream).await.map_err(|error| format!("an open connection was cut: {error}"))?;
    }
    drop(away);
    let healed = Instant::now();
    heals(world, PATIENCE).await.map_err(|error| failure(&error, &[&client, &server]))?;
    println!("  new connections again {:?} after the CA came back", healed.elapsed());
    world.server.agent.remove("server").await;
    world.client.agent.remove("client").await;
    Ok(())
}

/// Settings of a proxy with a control plane of its own, and these.
fn controlled<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut settings = vec![
        ("XDS_ADDRESS", control_plane::ADDRESS),
        ("CA_ADDRESS", control_plane::ADDRESS),
        ("LOCAL_XDS_PATH", UNSET),
        ("AMBIT_INSECURE_CA_DIR", UNSET),
    ];
    settings.extend(more);
    settings
}

async fn both_ready(world: &World, client: &mut Ztunnel, server: &mut Ztunnel) -> Outcome {
    world.client.serve_pod().await?;
    world.server.serve_pod().await?;
    client.ready(PATIENCE).await?;
    server.ready(PATIENCE).await
}

/// A connection to the service that has been answered on.
async fn open(world: &World) -> io::Result<TcpStream> {
    let mut stream = world.client.connect(SERVICE).await?;
    let answer = exchange(&mut stream).await?;
    if answer == format!("{CLIENT} hello\n") { Ok(stream) } else { Err(io::Error::other(format!("got `{answer}`"))) }
}

/// The first connection that goes through.
async fn heals(world: &World, patience: Duration) -> io::Result<TcpStream> {
    let deadline = Instant::now() + patience;
    loop {
        match open(world).await {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Waits until this is read to its end or breaks.
async fn end_of(stream: &mut TcpStream) {
    let mut rest = [0; 256];
    while let Ok(1..) = stream.read(&mut rest).await {}
}

/// Waits until no more than so many sockets of the server's pod are on the tunnels' port.
async fn await_sockets(world: &World, most: usize, patience: Duration) -> Outcome {
    let deadline = Instant::now() + patience;
    loop {
        let now = sockets_on(&world.server, TUNNELS)?;
        if now <= most {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{now} sockets are left on the server's side of dead tunnels");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Sends [`BULK`] bytes, ends its direction, and takes the server's sum of them and as many bytes back.
async fn there_and_back(world: &World, seed: u64) -> io::Result<()> {
    let mut stream = world.client.connect(SERVICE).await?;
    let sent = bytes(seed);
    stream.write_all(&sent).await?;
    stream.shutdown().await?;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(3 * PATIENCE, stream.read_to_end(&mut answer));
    read.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    let (sum, back) = answer.split_at_checked(8).ok_or(io::ErrorKind::UnexpectedEof)?;
    if sum != sum_of(&sent).to_be_bytes() {
        return Err(io::Error::other("other bytes arrived than were sent"));
    }
    if back != bytes(sum_of(&sent)) {
        return Err(io::Error::other(format!("{} other bytes came back than were sent", back.len())));
    }
    Ok(())
}

/// Serves an application that reads to the end, and answers with the sum of it and as many bytes that follow from it.
fn tally(listener: TcpListener) -> io::Result<Application> {
    Application::start(listener, |mut stream, _| async move {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await?;
        let sum = sum_of(&all);
        stream.write_all(&sum.to_be_bytes()).await?;
        stream.write_all(&bytes(sum)).await?;
        stream.shutdown().await
    })
}

/// [`BULK`] bytes that follow from the seed: no two places look alike.
fn bytes(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut all = Vec::with_capacity(BULK);
    while all.len() < BULK {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        all.extend_from_slice(&state.to_le_bytes());
    }
    all
}

/// FNV-1a over words: order, length and every bit count.
fn sum_of(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(8).map(|chunk| chunk.iter().fold(0_u64, |word, byte| word << 8 | u64::from(*byte)));
    let sum = words.fold(0xcbf2_9ce4_8422_2325_u64, |sum, word| (sum ^ word).wrapping_mul(0x0100_0000_01b3));
    sum ^ bytes.len() as u64
}
