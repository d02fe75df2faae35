//! A soak: workloads, policies and certificates change every second while pods talk. No verdict may be wrong, nothing may
//! be cut that is allowed, and the proxies may hold no more at the end than at the beginning.

mod authority;
mod churn;
mod report;
mod traffic;
mod watch;

use std::{
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use ambit_node::{Capture, Node};

use crate::{
    agent::Workload,
    configuration::{CLIENT_NAMESPACE, CLIENT_NODE, SERVER_NAMESPACE, SERVER_NODE},
    control::ControlPlane,
    machine,
    place::Place,
    pods::Pod,
    proxy::{Contender, Proxy, Start},
};
use authority::Authority;
use churn::{Client, Journal, NAMED_PORT, OTHER_PORT, Server, World};
use report::{Report, SHORTEST_JUDGED};
use traffic::{Seen, Traffic};
use watch::{Record, Sample};

/// Time between two changes.
const GENERATION: Duration = Duration::from_secs(1);
/// Life of certificates: each is renewed after half of it.
const CERTIFICATE_LIFE: &str = "3s";
/// Generations between two steps of a CA's rotation.
const ROTATION: u64 = 8;
/// How long unused tunnels are kept, so that the end comes soon.
const RELEASE: &str = "3s";
/// How long the proxies may take after the last exchange until they hold what they held before the first.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(20);
/// Seconds left out at the start, and seconds of a window, in a run long enough to judge memory by.
const WARM_UP: usize = 120;
const WINDOW: usize = 60;
const STATS_PORT: u16 = 15020;
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Soak {
    pub(crate) ambit: Contender,
    pub(crate) time: Duration,
    /// How long after a change either verdict is right.
    pub(crate) grace: Duration,
}

/// The proxy of one node, with its pods.
struct Side {
    proxy: Proxy,
    pods: Vec<Pod>,
}

/// Runs it, writes `ztunnel.json` to `out` and prints a line.
pub(crate) fn run(node: &Node, soak: &Soak, out: &Path, host_pid: u32) -> Result<(), String> {
    let place = Place::new(out, host_pid)?;
    let control = ControlPlane::start(&place.runtime, &place.run)?;
    let mut authority = Authority::start(&control, &place.runtime, &place.run)?;
    let journal = Journal::new(World::at(0), soak.grace);
    control.serve(&World::at(0).text())?;
    let clients = Side::start(node, soak, (&place, &control), (CLIENT_NODE, Ipv4Addr::new(10, 244, 3, 1)), CLIENTS)?;
    let servers = Side::start(node, soak, (&place, &control), (SERVER_NODE, Ipv4Addr::new(10, 244, 3, 2)), SERVERS)?;
    let outside = Pod::new(node, Client::Outside.name(), Client::Outside.ip(), Capture::None)?;
    let started = Instant::now();
    let mut records = vec![Record::new("clients' proxy"), Record::new("servers' proxy")];
    let sides = [&clients, &servers];
    for (record, side) in records.iter_mut().zip(sides) {
        record.before = Some(Sample::of(side.proxy.pid()).map_err(|error| error.to_string())?);
    }
    let traffic = Traffic::new(&journal);
    let churned = with_traffic(&traffic, sides, &outside, || {
        let generations = churn(soak, (&control, &mut authority), &traffic, sides, &mut records)?;
        traffic.end_clients();
        await_close(sides, &mut records)?;
        Ok(generations)
    });
    let (generations, mut faults) = match churned {
        Ok(generations) => (generations, Vec::new()),
        Err(error) => (0, vec![error.to_string()]),
    };
    for side in sides {
        faults.extend(side.unclosed());
    }
    for side in [clients, servers] {
        faults.extend(side.end(&place)?);
    }
    place.runtime.block_on(outside.remove())?;
    let mut report = Report {
        machine: machine::describe(),
        seconds: started.elapsed().as_secs_f64(),
        generations,
        rotations: authority.rotations(),
        grace_ms: soak.grace.as_millis(),
        seen: traffic.seen(),
        proxies: records,
        faults,
    };
    report.judge(soak.time);
    let file = out.join("ztunnel.json");
    let json = serde_json::to_vec_pretty(&report).map_err(|error| error.to_string())?;
    fs::write(&file, json).map_err(|error| format!("`{}`: {error}", file.display()))?;
    println!("{}", report.line());
    if report.faults.is_empty() { Ok(()) } else { Err(format!("the soak failed:\n{}", report.faults.join("\n"))) }
}

type Member = (&'static str, &'static str, Ipv4Addr);
const fn of_client(name: &'static str, last: u8) -> Member {
    (name, CLIENT_NAMESPACE, Ipv4Addr::new(10, 244, 1, last))
}
const fn of_server(name: &'static str, last: u8) -> Member {
    (name, SERVER_NAMESPACE, Ipv4Addr::new(10, 244, 2, last))
}
const CLIENTS: [Member; 2] = [of_client("alice", 2), of_client("bob", 3)];
const SERVERS: [Member; 2] = [of_server("left", 2), of_server("right", 3)];

/// Runs servers and clients around `act`.
fn with_traffic<T>(
    traffic: &Traffic<'_>,
    [clients, servers]: [&Side; 2],
    outside: &Pod,
    act: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let pod_of = |client: Client| match client {
        Client::Alice => &clients.pods[0],
        Client::Bob => &clients.pods[1],
        Client::Outside => outside,
    };
    let ready = [AtomicBool::new(false), AtomicBool::new(false)];
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for ((server, pod), ready) in Server::ALL.into_iter().zip(&servers.pods).zip(&ready) {
            threads.push(pod.spawn(scope, move || traffic.serve(server, ready)));
        }
        while !ready.iter().all(|ready| ready.load(Ordering::Acquire)) && !threads.iter().any(|one| one.is_finished()) {
            std::thread::yield_now();
        }
        for client in Client::ALL {
            threads.push(pod_of(client).spawn(scope, move || traffic.call(client)));
        }
        let steady = [(Client::Alice, Server::Left), (Client::Bob, Server::Left), (Client::Bob, Server::Right)];
        for (client, server) in steady {
            threads.push(pod_of(client).spawn(scope, move || traffic.stay(client, server, OTHER_PORT)));
        }
        let held = [(Client::Alice, Server::Left), (Client::Bob, Server::Left), (Client::Alice, Server::Right)];
        for (client, server) in held.into_iter().chain([(Client::Outside, Server::Left)]) {
            threads.push(pod_of(client).spawn(scope, move || traffic.hold(client, server, NAMED_PORT)));
        }
        let result = act();
        traffic.end_clients();
        traffic.end_servers();
        for thread in threads {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread of the soak panicked")))?;
        }
        result
    })
}

/// Changes the world every second and looks at the proxies; gives the number of changes.
fn churn(
    soak: &Soak,
    (control, authority): (&ControlPlane, &mut Authority<'_>),
    traffic: &Traffic<'_>,
    sides: [&Side; 2],
    records: &mut [Record],
) -> io::Result<u64> {
    let started = Instant::now();
    let mut world = World::at(0);
    let mut next = started;
    while started.elapsed() < soak.time {
        next += GENERATION;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        world = World::at(world.generation() + 1);
        traffic.journal.change(world, || control.serve(&world.text())).map_err(io::Error::other)?;
        if world.generation().is_multiple_of(ROTATION) {
            authority.rotate().map_err(io::Error::other)?;
        }
        for (record, side) in records.iter_mut().zip(sides) {
            record.add(Sample::of(side.proxy.pid())?);
        }
        if world.generation().is_multiple_of(60) {
            println!("  {} s: {}", world.generation(), progress(&traffic.seen(), sides)?);
        }
    }
    let judged = soak.time >= SHORTEST_JUDGED;
    let (warm_up, window) = if judged { (WARM_UP, WINDOW) } else { (2, 4) };
    for record in records {
        record.close(warm_up, window);
    }
    Ok(world.generation())
}

fn progress(seen: &Seen, sides: [&Side; 2]) -> io::Result<String> {
    let mut line = format!("{} exchanges, {} wrong", seen.exchanges, seen.wrong);
    for side in sides {
        let Sample { resident_kib, descriptors, threads } = Sample::of(side.proxy.pid())?;
        line += &format!("; {resident_kib} KiB, {descriptors} descriptors, {threads} threads");
    }
    Ok(line)
}

/// Waits until the proxies hold no more than before any traffic, or for [`CLOSE_TIMEOUT`].
fn await_close(sides: [&Side; 2], records: &mut [Record]) -> io::Result<()> {
    let deadline = Instant::now() + CLOSE_TIMEOUT;
    for (record, side) in records.iter_mut().zip(sides) {
        loop {
            let now = Sample::of(side.proxy.pid())?;
            record.after = Some(now);
            if record.before.is_none_or(|before| now.descriptors <= before.descriptors) || Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(())
}

// === impl Side ===

impl Side {
    fn start(
        node: &Node,
        soak: &Soak,
        (place, control): (&Place, &ControlPlane),
        (name, ip): (&'static str, Ipv4Addr),
        members: [Member; 2],
    ) -> Result<Self, String> {
        let mut pods = Vec::new();
        for (name, _, ip) in members {
            let pod = Pod::new(node, name, ip, Capture::Mesh)?;
            pod.widen_ports().map_err(|error| format!("local ports: {error}"))?;
            pods.push(pod);
        }
        let mut environment = control.environment();
        let own = [
            ("CA_ADDRESS", Authority::address().as_str()),
            ("SECRET_TTL", CERTIFICATE_LIFE),
            ("POOL_UNUSED_RELEASE_TIMEOUT", RELEASE),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        environment.extend(own);
        let each = members.iter().zip(&pods);
        let workloads: Vec<_> =
            each.map(|((name, namespace, _), pod)| Workload { name, namespace, network: pod.network() }).collect();
        let director = place.director(node, control);
        let proxy = Proxy::start(
            node,
            &Start {
                contender: &soak.ambit,
                node: name,
                ip,
                workloads: &workloads,
                environment: &environment,
                run: director.run,
                logs: director.logs,
            },
        )?;
        Ok(Self { proxy, pods })
    }

    /// Connections that were opened and not closed, as the proxy counts them.
    fn unclosed(&self) -> Option<String> {
        let count = |text: &str, name: &str| -> f64 {
            let lines = text.lines().filter(|line| line.starts_with(name));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        match self.proxy.pod().run(metrics) {
            Err(error) => Some(format!("a proxy's metrics can't be read: {error}")),
            Ok(text) => {
                let opened = count(&text, "istio_tcp_connections_opened_total");
                let closed = count(&text, "istio_tcp_connections_closed_total");
                let wrong = opened < 1.0 || (opened - closed).abs() > 0.5;
                wrong.then(|| format!("a proxy counts {opened} connections opened and {closed} closed"))
            }
        }
    }

    /// Ends all of it; says if the proxy didn't end by itself.
    fn end(self, place: &Place) -> Result<Option<String>, String> {
        let (own, ended) = self.proxy.end();
        for pod in self.pods.into_iter().chain([own]) {
            place.runtime.block_on(pod.remove())?;
        }
        Ok((!ended).then(|| "a proxy didn't end when it was told to".to_owned()))
    }
}

fn metrics() -> io::Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, STATS_PORT));
    let mut stream = TcpStream::connect_timeout(&address, QUESTION_TIMEOUT)?;
    stream.set_read_timeout(Some(QUESTION_TIMEOUT))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
