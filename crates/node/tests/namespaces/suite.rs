//! The tests that run in the node process.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_hbone::Network;
use ambit_node::host::Shutdown;
use ambit_node::process::{self, Exit, Process, ProcessSpec};
use ambit_node::supervise::ContainerLine;
use ambit_node::{
    Capture, ContainerSpec, Node, NodeProcess, PodDns, PodError, PodNamespaces, PodNetworkSpec, Probe, ProbeAction,
    Reaper, RestartPolicy, Supervisor,
};
use socket2::{Domain, Protocol, SockRef, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::mpsc;

use crate::ports::{a_port_that_the_proxy_used_in_vain_is_captured, the_proxy_may_have_the_port_of_a_captured_client};
use crate::zds::{
    a_badly_behaved_agent_is_refused, a_pod_that_cannot_be_served_is_tried_again, pods_are_served_as_the_agent_says,
    two_proxies_are_told_side_by_side,
};

const PATIENCE: Duration = Duration::from_secs(10);
pub(crate) const MARK: u32 = ambit_node::rules::PROXY_MARK;

pub(crate) type Outcome = Result<(), String>;

/// What every test has.
pub(crate) struct World {
    pub(crate) process: NodeProcess,
    pub(crate) node: Node,
    pub(crate) reaper: Reaper,
}

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

/// Runs all tests, one after the other.
pub(crate) async fn run(process: NodeProcess) -> ExitCode {
    let world = match World::new(process) {
        Ok(world) => world,
        Err(error) => {
            println!("FAILED: can't make a node: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut failed = 0;
    macro_rules! test {
        ($($name:ident),+ $(,)?) => {$(
            let result = tokio::time::timeout(PATIENCE, $name(&world)).await.unwrap_or(Err("took too long".to_owned()));
            println!("test {} ... {}", stringify!($name), result.as_ref().map_or_else(|why| format!("FAILED: {why}"), |()| "ok".to_owned()));
            failed += u32::from(result.is_err());
        )+};
    }
    test!(
        node_is_the_first_process,
        pods_are_made_quickly,
        pods_reach_each_other_by_tcp,
        pods_come_and_go_unnoticed_by_others,
        outbound_is_redirected_with_its_original_destination,
        inbound_is_redirected_except_hbone,
        a_transparent_connection_keeps_the_clients_address,
        a_port_that_the_proxy_used_in_vain_is_captured,
        the_proxy_may_have_the_port_of_a_captured_client,
        names_are_asked_at_the_dns_port,
        outside_pods_are_captured_only_towards_the_outside,
        programs_have_the_users_id_and_no_capability,
        files_of_a_pod_are_its_own,
        sockets_of_the_host_reach_the_host,
        containers_are_restarted_and_probed,
        destroying_leaves_nothing,
        a_wrong_or_taken_address_is_refused,
        ipv6_is_no_way_around,
        pods_are_served_as_the_agent_says,
        a_pod_that_cannot_be_served_is_tried_again,
        two_proxies_are_told_side_by_side,
        a_badly_behaved_agent_is_refused,
    );
    let started = Instant::now();
    world.node.end_all_processes(Duration::from_millis(200)).await;
    println!("end of all processes: {:?}", started.elapsed());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl World {
    pub(crate) fn new(process: NodeProcess) -> Result<Self, String> {
        let node = Node::new(process.owner).map_err(|error| error.to_string())?;
        Ok(Self { node, reaper: Reaper::start().map_err(|error| error.to_string())?, process })
    }

    pub(crate) fn pod(&self, last: u8, capture: Capture) -> Result<Arc<PodNamespaces>, String> {
        self.node.create_pod(&spec(last, capture)).map(Arc::new).map_err(|error| error.to_string())
    }

    fn start(
        &self,
        pod: &PodNamespaces,
        argv: &[&str],
    ) -> Result<(Process, mpsc::Receiver<process::OutputLine>), String> {
        let spec = ProcessSpec { argv: argv.iter().map(|word| (*word).to_owned()).collect(), ..Default::default() };
        let (send, receive) = mpsc::channel(64);
        let process = process::spawn(&self.reaper, pod, &spec, Some(send)).map_err(|error| error.to_string())?;
        Ok((process, receive))
    }

    /// Runs a program to its end; what it wrote.
    async fn output(&self, pod: &PodNamespaces, argv: &[&str]) -> Result<String, String> {
        let (mut process, mut lines) = self.start(pod, argv)?;
        let mut text = Vec::new();
        while let Some(line) = lines.recv().await {
            text.push(line.text);
        }
        let exit = process.wait().await;
        let text = text.join("\n");
        if exit.success() { Ok(text) } else { Err(format!("{argv:?} ended with {exit}: {text}")) }
    }

    /// Starts a server and waits until it listens.
    pub(crate) async fn serve(&self, pod: &PodNamespaces, argv: &[&str]) -> Result<Process, String> {
        let (process, mut lines) = self.start(pod, argv)?;
        let first = lines.recv().await.map(|line| line.text);
        // The rest of its output is nobody's.
        ensure!(first.as_deref() == Some("listening"), "{argv:?} says {first:?}");
        Ok(process)
    }
}

fn spec(last: u8, capture: Capture) -> PodNetworkSpec {
    PodNetworkSpec {
        name: format!("pod-{last}"),
        ip: ip(last),
        capture,
        dns: PodDns {
            nameserver: Ipv4Addr::new(10, 96, 0, 10),
            search: vec!["test.svc.cluster.local".to_owned()],
            ndots: 5,
        },
        hosts: Vec::new(),
        hide: Vec::new(),
    }
}

pub(crate) fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 0, last)
}

pub(crate) fn listen(pod: &PodNamespaces, address: &str, transparent: bool) -> Result<TcpListener, String> {
    let make = || {
        let socket = pod.network().socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_mark(MARK)?;
        socket.set_ip_transparent_v4(transparent)?;
        socket.set_reuse_address(true)?;
        let address: SocketAddr = address.parse().map_err(std::io::Error::other)?;
        socket.bind(&address.into())?;
        socket.listen(16)?;
        TcpListener::from_std(socket.into())
    };
    make().map_err(|error: std::io::Error| format!("listen on {address}: {error}"))
}

/// Accepts one connection, answers it with `answer`; the peer and where it wanted to go.
pub(crate) async fn accept(listener: &TcpListener, answer: &str) -> Result<(SocketAddr, SocketAddr), String> {
    let work = async {
        let (mut stream, peer) = listener.accept().await?;
        let wanted = SockRef::from(&stream)
            .original_dst_v4()
            .ok()
            .and_then(|address| address.as_socket())
            .map_or_else(|| stream.local_addr(), Ok)?;
        let mut message = String::new();
        stream.read_to_string(&mut message).await?;
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        Ok((peer, wanted))
    };
    tokio::time::timeout(PATIENCE / 2, work)
        .await
        .map_err(|_| "nothing was accepted".to_owned())?
        .map_err(|error: std::io::Error| error.to_string())
}

async fn node_is_the_first_process(world: &World) -> Outcome {
    ensure!(std::process::id() == 1, "the node process has id {}", std::process::id());
    ensure!(world.process.owner.uid == rustix::process::getuid().as_raw(), "the user id changed");
    Ok(())
}

async fn pods_are_made_quickly(world: &World) -> Outcome {
    const PODS: u32 = 20;
    let (mut pods, mut slowest, started) = (Vec::new(), Duration::ZERO, Instant::now());
    for number in 0..PODS {
        let one = Instant::now();
        pods.push(world.pod(100 + u8::try_from(number).map_err(|error| error.to_string())?, Capture::Mesh)?);
        slowest = slowest.max(one.elapsed());
    }
    let mean = started.elapsed() / PODS;
    println!("  a pod takes {mean:?} (slowest {slowest:?})");
    // The first packets must pass at once: a link that isn't forwarding yet would cost a second.
    let started = Instant::now();
    let listener = listen(&pods[1], "0.0.0.0:15008", false)?;
    let socket = pods[0].network().socket(Domain::IPV4, Type::STREAM, None).map_err(|error| error.to_string())?;
    socket.set_mark(MARK).map_err(|error| error.to_string())?;
    let connect = TcpSocket::from_std_stream(socket.into()).connect(SocketAddr::new(IpAddr::V4(ip(101)), 15_008));
    let (client, server) = tokio::join!(connect, listener.accept());
    ensure!(client.is_ok() && server.is_ok(), "{client:?} {server:?}");
    println!("  first connection after {:?}", started.elapsed());
    ensure!(started.elapsed() < Duration::from_millis(500), "the first packets were lost");
    let started = Instant::now();
    drop(pods);
    println!("  removing one takes {:?}", started.elapsed() / PODS);
    // Generous, for a machine that others use too.
    ensure!(mean < Duration::from_millis(100), "{mean:?} per pod");
    Ok(())
}

async fn pods_reach_each_other_by_tcp(world: &World) -> Outcome {
    let (client, server) = (world.pod(2, Capture::Outside)?, world.pod(3, Capture::Outside)?);
    let _serving = world.serve(&server, &["ambit", "serve", "10.244.0.3:8080"]).await?;
    let reply = world.output(&client, &["ambit", "connect", "10.244.0.3:8080", "hello"]).await?;
    ensure!(reply == "10.244.0.2 said hello", "{reply}");
    Ok(())
}

/// Nobody sends to a hardware address that is no more: not to the gateway's, nor to that of the last pod with an address.
async fn pods_come_and_go_unnoticed_by_others(world: &World) -> Outcome {
    // A first packet may be lost while a link comes up, and is sent again after a second. One that goes to the wrong
    // hardware address is lost for more than five.
    const QUICK: Duration = Duration::from_millis(2_500);
    let client = world.pod(2, Capture::Outside)?;
    let gateway = TcpListener::bind((ambit_node::GATEWAY, 0)).await.map_err(|error| error.to_string())?;
    let gateway_address = gateway.local_addr().map_err(|error| error.to_string())?;
    let reach = async |address: SocketAddr, listener: &TcpListener| {
        let socket = client.network().socket(Domain::IPV4, Type::STREAM, None).map_err(|error| error.to_string())?;
        socket.set_mark(MARK).map_err(|error| error.to_string())?;
        let connecting = TcpSocket::from_std_stream(socket.into()).connect(address);
        let both = async { tokio::try_join!(connecting, listener.accept()) };
        let reached =
            tokio::time::timeout(QUICK, both).await.map_err(|_| format!("{address} isn't reached at once"))?;
        reached.map(|_| ()).map_err(|error| error.to_string())
    };
    reach(gateway_address, &gateway).await?;
    for others in [3, 4, 5, 3, 4, 5] {
        let pods = [world.pod(9, Capture::Outside)?, world.pod(others, Capture::Outside)?];
        reach(gateway_address, &gateway).await?;
        reach(SocketAddr::new(IpAddr::V4(ip(9)), 9_000), &listen(&pods[0], "0.0.0.0:9000", false)?).await?;
        drop(pods);
        reach(gateway_address, &gateway).await?;
    }
    Ok(())
}

async fn outbound_is_redirected_with_its_original_destination(world: &World) -> Outcome {
    let pod = world.pod(2, Capture::Mesh)?;
    let proxy = listen(&pod, "0.0.0.0:15001", true)?;
    for wanted in ["10.96.7.7:80", "10.244.0.9:5000", "192.0.2.1:443"] {
        let argv = ["ambit", "connect", wanted, "x"];
        let (reply, accepted) = tokio::join!(world.output(&pod, &argv), accept(&proxy, "from the proxy"));
        let (peer, destination) = accepted?;
        ensure!(destination.to_string() == wanted, "original destination {destination}, wanted {wanted}");
        ensure!(peer.ip() == IpAddr::V4(ip(2)), "peer {peer}");
        ensure!(reply? == "from the proxy", "another answer");
    }
    // The pod's own loopback isn't captured.
    let _serving = world.serve(&pod, &["ambit", "serve", "127.0.0.1:8080"]).await?;
    let reply = world.output(&pod, &["ambit", "connect", "127.0.0.1:8080", "me"]).await?;
    ensure!(reply == "127.0.0.1 said me", "{reply}");
    Ok(())
}

async fn inbound_is_redirected_except_hbone(world: &World) -> Outcome {
    let (server, client) = (world.pod(2, Capture::Mesh)?, world.pod(3, Capture::Outside)?);
    let plaintext = listen(&server, "0.0.0.0:15006", true)?;
    let hbone = listen(&server, "0.0.0.0:15008", true)?;
    for (wanted, listener) in [("10.244.0.2:9000", &plaintext), ("10.244.0.2:15008", &hbone)] {
        let argv = ["ambit", "connect", wanted, "x"];
        let (reply, accepted) = tokio::join!(world.output(&client, &argv), accept(listener, "seen"));
        let (peer, destination) = accepted?;
        ensure!(destination.to_string() == wanted, "original destination {destination}, wanted {wanted}");
        ensure!(peer.ip() == IpAddr::V4(ip(3)), "peer {peer}");
        ensure!(reply? == "seen", "another answer");
    }
    Ok(())
}

async fn a_transparent_connection_keeps_the_clients_address(world: &World) -> Outcome {
    // The client's pod exists: its address is on another link than the reply must take.
    let (server, _client) = (world.pod(2, Capture::Mesh)?, world.pod(3, Capture::Mesh)?);
    let _serving = world.serve(&server, &["ambit", "serve", "0.0.0.0:9000"]).await?;
    let make = || {
        let socket = server.network().socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_mark(MARK)?;
        socket.set_ip_transparent_v4(true)?;
        socket.set_freebind_v4(true)?;
        socket.bind(&SocketAddr::new(IpAddr::V4(ip(3)), 0).into())?;
        Ok(TcpSocket::from_std_stream(socket.into()))
    };
    let socket = make().map_err(|error: std::io::Error| error.to_string())?;
    let exchange = async {
        let mut stream: TcpStream = socket.connect(SocketAddr::new(IpAddr::V4(ip(2)), 9_000)).await?;
        stream.write_all(b"hello").await?;
        stream.shutdown().await?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await?;
        Ok(reply)
    };
    let reply = exchange.await.map_err(|error: std::io::Error| error.to_string())?;
    ensure!(reply == "10.244.0.3 said hello", "{reply}");
    Ok(())
}

async fn names_are_asked_at_the_dns_port(world: &World) -> Outcome {
    for (last, capture) in [(2, Capture::Mesh), (3, Capture::Outside)] {
        let pod = world.pod(last, capture)?;
        let make = || {
            let socket = pod.network().socket(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
            socket.set_mark(MARK)?;
            socket.bind(&SocketAddr::from(([127, 0, 0, 1], 15_053)).into())?;
            UdpSocket::from_std(socket.into())
        };
        let server = make().map_err(|error: std::io::Error| error.to_string())?;
        let answer = async {
            let mut question = [0; 64];
            let (length, peer) = server.recv_from(&mut question).await?;
            server.send_to(b"answer", peer).await?;
            Ok::<_, std::io::Error>(question[..length].to_vec())
        };
        let (reply, question) = tokio::join!(world.output(&pod, &["ambit", "dns", "10.96.0.10:53"]), answer);
        ensure!(reply? == "answer", "{capture:?}: another answer");
        ensure!(question.is_ok_and(|question| question == b"question"), "{capture:?}: another question");

        let tcp = listen(&pod, "127.0.0.1:15053", false)?;
        let (reply, accepted) =
            tokio::join!(world.output(&pod, &["ambit", "connect", "10.96.0.10:53", "x"]), accept(&tcp, "by tcp"));
        accepted?;
        ensure!(reply? == "by tcp", "{capture:?}: another answer by TCP");
    }
    Ok(())
}

async fn outside_pods_are_captured_only_towards_the_outside(world: &World) -> Outcome {
    let pod = world.pod(2, Capture::Outside)?;
    let proxy = listen(&pod, "127.0.0.1:15001", false)?;
    let (reply, accepted) =
        tokio::join!(world.output(&pod, &["ambit", "connect", "192.0.2.1:443", "x"]), accept(&proxy, "out"));
    ensure!(accepted?.1.to_string() == "192.0.2.1:443", "another destination");
    ensure!(reply? == "out", "another answer");
    // A waypoint's pod has nothing captured: there's no way out at all.
    let bare = world.pod(3, Capture::None)?;
    let _listening = listen(&bare, "0.0.0.0:15001", false)?;
    let refused = world.output(&bare, &["ambit", "connect", "192.0.2.1:443", "x"]).await;
    ensure!(refused.is_err(), "a bare pod reached {refused:?}");
    Ok(())
}

async fn programs_have_the_users_id_and_no_capability(world: &World) -> Outcome {
    let pod = world.pod(2, Capture::Mesh)?;
    let text = world.output(&pod, &["ambit", "status"]).await?;
    let uid = world.process.owner.uid;
    ensure!(text.contains(&format!("Uid: {uid} {uid} {uid} {uid}")), "{text}");
    ensure!(text.contains("hostname pod-2\n") && text.contains("cwd /\n"), "{text}");
    if uid == 0 {
        ensure!(text.contains("CapEff: 00000000200004fb"), "{text}");
        ensure!(text.contains("CapBnd: 00000000200004fb"), "{text}");
    } else {
        ensure!(text.contains("CapEff: 0000000000000000"), "{text}");
        ensure!(text.contains("CapBnd: 0000000000000000"), "{text}");
        ensure!(text.contains("NoNewPrivs: 1"), "{text}");
    }
    for what in ["mark", "transparent", "raw", "unmount", "node's root"] {
        ensure!(text.contains(&format!("{what} refused")), "{what}: {text}");
    }
    Ok(())
}

async fn files_of_a_pod_are_its_own(world: &World) -> Outcome {
    let hidden = PathBuf::from("/var");
    let pod = PodNetworkSpec { hide: vec![hidden], ..spec(2, Capture::Mesh) };
    let pod = world.node.create_pod(&pod).map_err(|error| error.to_string())?;
    let text = world.output(&pod, &["ambit", "cat", "/etc/resolv.conf"]).await?;
    ensure!(text == "nameserver 10.96.0.10\nsearch test.svc.cluster.local\noptions ndots:5", "{text}");
    let text = world.output(&pod, &["ambit", "cat", "/etc/hosts"]).await?;
    ensure!(text.contains("10.244.0.2\tpod-2"), "{text}");
    ensure!(std::fs::read_dir("/var").is_ok_and(|mut entries| entries.next().is_some()), "`/var` is empty anyway");
    let seen = world.output(&pod, &["ambit", "ls", "/var"]).await?;
    ensure!(seen.is_empty(), "{seen:?}");
    let own = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    ensure!(!own.contains("10.96.0.10"), "the node process sees the pod's files: {own}");
    Ok(())
}

async fn sockets_of_the_host_reach_the_host(world: &World) -> Outcome {
    let port: u16 = std::env::var("AMBIT_TEST_HOST_PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(0);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let from_node = TcpStream::connect(address).await;
    ensure!(from_node.is_err(), "the node's own network reaches the host's loopback");
    let started = Instant::now();
    for _ in 0..100 {
        let socket = world.process.host.socket(Domain::IPV4, Type::STREAM, None).map_err(|error| error.to_string())?;
        ensure!(socket.nonblocking().is_ok_and(|set| set), "a blocking socket");
    }
    println!("  a socket of the host takes {:?}", started.elapsed() / 100);
    let socket = world.process.host.socket(Domain::IPV4, Type::STREAM, None).map_err(|error| error.to_string())?;
    TcpSocket::from_std_stream(socket.into()).connect(address).await.map_err(|error| error.to_string())?;
    Ok(())
}

async fn containers_are_restarted_and_probed(world: &World) -> Outcome {
    let pod = world.pod(2, Capture::Mesh)?;
    let probe = |action| Probe {
        action,
        initial_delay: Duration::ZERO,
        period: Duration::from_millis(100),
        timeout: Duration::from_secs(1),
        success_threshold: 1,
        failure_threshold: 3,
    };
    let container = |name: &str, command: &[&str], readiness| ContainerSpec {
        name: name.to_owned(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        env: Vec::new(),
        working_dir: None,
        readiness,
    };
    let http = |port| ProbeAction::HttpGet { port, path: "/ready".to_owned(), host: None, headers: Vec::new() };
    let exec = ProbeAction::Exec { command: vec!["ambit".to_owned(), "exit".to_owned(), "0".to_owned()] };
    let containers = vec![
        container("good", &["ambit", "http-after", "0.0.0.0:8080", "200"], Some(probe(http(8080)))),
        container("bad", &["ambit", "http-after", "0.0.0.0:8081", "503"], Some(probe(http(8081)))),
        container("tcp", &["ambit", "serve", "0.0.0.0:8082"], Some(probe(ProbeAction::TcpSocket { port: 8082 }))),
        container("exec", &["ambit", "sleep"], Some(probe(exec))),
        container("ends", &["ambit", "exit", "3"], None),
        container("missing", &["/no/such/program"], None),
    ];
    let (send, mut lines) = mpsc::channel::<ContainerLine>(64);
    let supervisor = Supervisor::start(&world.reaper, &pod, containers, RestartPolicy::Always, &send);
    let mut status = supervisor.status();
    let settled = status.wait_for(|pod| {
        let ready: Vec<bool> = pod.containers.iter().map(|container| container.ready).collect();
        ready[..4] == [true, false, true, true]
            && pod.containers[1].probe_failure.as_deref() == Some("status 503")
            && pod.containers[4].restarts >= 2
            && pod.containers[5].last_exit == Some(Exit::Code(127))
            && !pod.ready()
    });
    let last = match tokio::time::timeout(PATIENCE / 2, settled).await {
        Ok(Ok(_)) => None,
        _ => Some(supervisor.status().borrow().clone()),
    };
    ensure!(last.is_none(), "{last:?}");
    let mut seen = Vec::new();
    while let Ok(line) = lines.try_recv() {
        seen.push(line.to_string());
    }
    for wanted in ["pod-2/good | listening", "pod-2/ends | ended with exit code 3; starts again in 100ms"] {
        ensure!(seen.iter().any(|line| line == wanted), "no line `{wanted}` in {seen:?}");
    }
    let started = Instant::now();
    supervisor.stop().await;
    ensure!(started.elapsed() < Duration::from_millis(900), "stopping took {:?}", started.elapsed());
    Ok(())
}

async fn destroying_leaves_nothing(world: &World) -> Outcome {
    let pod = world.pod(2, Capture::Mesh)?;
    let link = pod.link().to_owned();
    let mut sleepers = Vec::new();
    for _ in 0..3 {
        let (process, mut lines) = world.start(&pod, &["ambit", "sleep"])?;
        ensure!(lines.recv().await.is_some(), "it doesn't run");
        sleepers.push(process);
    }
    ensure!(world.node.has_link(&link).is_ok_and(|exists| exists), "no link to begin with");
    let started = Instant::now();
    pod.destroy(Duration::from_millis(500)).await.map_err(|error| error.to_string())?;
    println!("  destroying takes {:?}", started.elapsed());
    for mut process in sleepers {
        let exit = tokio::time::timeout(Duration::from_secs(1), process.wait()).await;
        ensure!(exit == Ok(Exit::Signal(libc::SIGTERM)), "{exit:?}");
    }
    ensure!(world.node.has_link(&link).is_ok_and(|exists| !exists), "the link is still there");
    drop(pod);
    world.pod(2, Capture::Mesh).map(drop)
}

async fn a_wrong_or_taken_address_is_refused(world: &World) -> Outcome {
    let _first = world.pod(2, Capture::None)?;
    let second = world.node.create_pod(&spec(2, Capture::None));
    ensure!(matches!(second, Err(PodError::Link(_))), "{second:?}");
    ensure!(world.node.has_link("pod0002").is_ok_and(|exists| exists), "the first pod lost its link to the second");
    let elsewhere = PodNetworkSpec { ip: Ipv4Addr::new(10, 96, 0, 2), ..spec(2, Capture::None) };
    let elsewhere = world.node.create_pod(&elsewhere);
    ensure!(matches!(elsewhere, Err(PodError::Address(_))), "{elsewhere:?}");
    Ok(())
}

async fn ipv6_is_no_way_around(world: &World) -> Outcome {
    let (client, server) = (world.pod(2, Capture::Mesh)?, world.pod(3, Capture::Mesh)?);
    let _serving = world.serve(&server, &["ambit", "serve", "[::]:9000"]).await?;
    // Its own loopback works.
    let own = world.output(&server, &["ambit", "connect", "[::1]:9000", "x"]).await?;
    ensure!(own == "::1 said x", "{own}");
    let ((address, _), (_, scope)) = (link_local(world, &server).await?, link_local(world, &client).await?);
    let target = format!("[{address}%{scope}]:9000");
    let reached = world.output(&client, &["ambit", "connect", &target, "x"]).await;
    ensure!(reached.as_ref().is_err_and(|error| error.contains("timed out")), "reached by IPv6: {reached:?}");
    Ok(())
}

/// A pod's link-local address, once it's usable, and its link's number.
async fn link_local(world: &World, pod: &PodNamespaces) -> Result<(std::net::Ipv6Addr, u32), String> {
    loop {
        let table = world.output(pod, &["ambit", "cat", "/proc/net/if_inet6"]).await?;
        for line in table.lines() {
            // Address, index, prefix, scope (20 is the link), flags (80 is usable), name.
            let [address, index, _, "20", "80", "eth0"] = line.split_ascii_whitespace().collect::<Vec<_>>()[..] else {
                continue;
            };
            let bits = u128::from_str_radix(address, 16).map_err(|error| error.to_string())?;
            let index = u32::from_str_radix(index, 16).map_err(|error| error.to_string())?;
            return Ok((bits.into(), index));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits for the first reason to stop.
pub(crate) async fn until_stopped(process: &mut NodeProcess) -> Shutdown {
    process.shutdown.next().await
}
