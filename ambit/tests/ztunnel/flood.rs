//! One workload floods, another on the same node proxy must hardly notice: its exchanges' p99 may at most double, and the
//! flood ends at the flooder's own bounds, which the metrics tell.

mod attack;
mod victim;

use std::future::Future;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_identity::{Ca, CertificateStore, SystemClock};
use ambit_node::zds::WorkloadInfo;
use ambit_node::{Capture, PodNamespaces};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::victim::Figures;
use crate::process::{Ztunnel, write};
use crate::suite::ensure;
use crate::world::{Outcome, PATIENCE, World, text};

/// The pod that floods and is flooded, the one outside the mesh that it calls, and the one that its callers are in. Their numbers
/// are far from those that proxies get, one after the other.
const FLOODER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 240);
const SINK: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 241);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 242);
/// Connections that the flooder opens.
const CONNECTIONS: usize = 10_000;
/// What it may have: of connections, and of memory in MiB.
const SHARE: usize = 2_000;
const MEMORY: usize = 96;
/// What else the proxy's memory may grow by in a flood, in MiB: what the kernel's and the allocator's own bookkeeping, tasks
/// and TLS take, and what the allocator doesn't give back at once.
const SLACK: usize = 64;
/// What may come on top of an exchange's p99, and of a new connection's, however little those are: the flood's ends, the
/// measurement's and the proxy share the processors of one machine here, and whoever is interrupted waits for a turn of the
/// scheduler's, a new connection with more steps more often. A proxy that isn't optimized needs ten times as long for each
/// step of the flood's, and tests of it run beside others: there it only shows that nobody waits for the flood to pass.
const ON_TOP: [Duration; 2] = match cfg!(debug_assertions) {
    true => [Duration::from_millis(25), Duration::from_millis(50)],
    false => [Duration::from_millis(1), Duration::from_millis(4)],
};

/// The mesh, with the flooder in it.
const MESH: &str = r#"{
  "workloads": [
    {"uid": "somewhere/else/server", "name": "server", "namespace": "test", "trustDomain": "cluster.local",
     "serviceAccount": "server", "workloadIps": ["10.244.0.3"], "protocol": "HBONE", "node": "server", "services": {}},
    {"uid": "somewhere/else/flooder", "name": "flooder", "namespace": "test", "trustDomain": "cluster.local",
     "serviceAccount": "flooder", "workloadIps": ["10.244.0.240"], "protocol": "HBONE", "node": "server", "services": {}}
  ],
  "services": [],
  "policies": []
}"#;

/// Everything that takes part.
struct Stage {
    proxy: Ztunnel,
    victim: Arc<PodNamespaces>,
    flooder: PodNamespaces,
    sink: PodNamespaces,
    peer: PodNamespaces,
    certificates: Arc<CertificateStore>,
}

pub(crate) async fn ten_thousand_connections_leave_anothers_latency(world: &World) -> Outcome {
    let stage = Stage::set(world).await?;
    stage.endure(("connections", CONNECTIONS - SHARE), attack::connections(&stage)).await?;
    stage.strike(world).await
}

pub(crate) async fn a_storm_of_handshakes_leaves_anothers_latency(world: &World) -> Outcome {
    let stage = Stage::set(world).await?;
    stage.endure(("handshakes", 100), attack::handshakes(&stage)).await?;
    stage.strike(world).await
}

pub(crate) async fn slow_readers_leave_anothers_latency(world: &World) -> Outcome {
    let stage = Stage::set(world).await?;
    stage.endure(("memory", 10), attack::slow_readers(&stage)).await?;
    stage.strike(world).await
}

impl Stage {
    async fn set(world: &World) -> Outcome<Self> {
        allow_many_files()?;
        let mesh = world.path("flood.yaml");
        write(&mesh, MESH).map_err(text)?;
        let (memory, share) = (MEMORY.to_string(), SHARE.to_string());
        let settings = [
            ("LOCAL_XDS_PATH", mesh.to_str().ok_or("a strange path")?),
            ("AMBIT_MAX_MEMORY_PER_POD", memory.as_str()),
            ("AMBIT_MAX_CONNECTIONS_PER_POD", share.as_str()),
            ("AMBIT_HANDSHAKE_TIMEOUT", "2s"),
        ];
        let ca = Arc::new(Ca::open(&world.path("ca"), "cluster.local").map_err(text)?);
        let mut proxy = world.start(&world.server, &settings)?;
        let flooder = world.pod("flooder", FLOODER, Capture::Mesh)?;
        let sink = world.pod("sink", SINK, Capture::None)?;
        let peer = world.pod("peer", PEER, Capture::None)?;
        world.server.serve_pod().await?;
        let info = WorkloadInfo {
            name: "flooder".to_owned(),
            namespace: "test".to_owned(),
            service_account: "flooder".to_owned(),
        };
        let network = flooder.network().as_fd().try_clone_to_owned().map_err(text)?;
        world.server.agent.add("flooder", info, network).await.map_err(text)?;
        proxy.ready(PATIENCE).await?;
        let certificates = CertificateStore::new(ca, Arc::new(SystemClock));
        Ok(Self { proxy, victim: Arc::clone(&world.server.pod), flooder, sink, peer, certificates })
    }

    /// Measures the victim before, during and after a flood, which goes on until so much was refused.
    async fn endure(&self, (budget, least): (&str, usize), flood: impl Future<Output = Outcome<()>>) -> Outcome {
        let least = least as f64;
        let before = self.measure().await?;
        let idle = self.memory()?;
        let refused_before = self.refused(budget).await?;
        let mut flood = Box::pin(flood);
        let started = Instant::now();
        let during = async {
            // Until the flood is at its bound.
            while self.refused(budget).await? <= refused_before {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let figures = tokio::select! {
                figures = self.measure() => figures?,
                failed = self.watch_memory() => return Err(failed.err().unwrap_or_default()),
            };
            while self.refused(budget).await? - refused_before < least {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(figures)
        };
        let during = tokio::select! {
            figures = during => figures?,
            ended = &mut flood => return Err(format!("the flood ended early, with {ended:?}")),
        };
        let (took, refused) = (started.elapsed(), self.refused(budget).await? - refused_before);
        let memory = self.memory()?;
        // Dropped, it closes what it has open.
        drop(flood);
        self.calm().await?;
        let alone = before.and(&self.measure().await?);
        let after = self.memory_back_to(idle + SLACK).await?;
        println!("  alone: {alone}; {idle} MiB");
        println!("  during {took:.1?} of flood: {during}; {refused} refused; {memory} MiB, and {after} MiB after");
        let [exchange, connection] = ON_TOP;
        for (what, now, then, on_top) in [
            ("an exchange", during.exchange, alone.exchange, exchange),
            ("a new connection", during.connection, alone.connection, connection),
        ] {
            ensure!(now <= (2 * then).max(then + on_top), "the p99 of {what} is {now:?} instead of {then:?}");
        }
        Ok(())
    }

    async fn strike(self, world: &World) -> Outcome {
        for pod in ["server", "flooder"] {
            world.server.agent.remove(pod).await;
        }
        Ok(())
    }

    async fn measure(&self) -> Outcome<Figures> {
        let (victim, network) = (Arc::clone(&self.victim), self.peer.network());
        let certificates = Arc::clone(&self.certificates);
        let measured = tokio::task::spawn_blocking(move || victim::measure(&victim, network, certificates)).await;
        measured.map_err(text)?
    }

    /// Fails when the flooder, or the proxy, takes more memory than it may.
    async fn watch_memory(&self) -> Outcome {
        let before = self.memory()?;
        loop {
            let held = self.metric("ambit_budget_used{budget=\"memory\"}").await?;
            // What two threads take in at the same moment, and what the victim has.
            let most = ((MEMORY + 8) << 20) as f64;
            let over = held > most;
            ensure!(!over, "connections hold {held} bytes instead of {most}");
            let now = self.memory()?;
            ensure!(now <= before.max(MEMORY) + MEMORY + SLACK, "the proxy has grown from {before} to {now} MiB");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until all that the flooder had is given back.
    async fn calm(&self) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let connections = self.metric("ambit_budget_used{budget=\"connections\"}").await?;
            let memory = self.metric("ambit_budget_used{budget=\"memory\"}").await?;
            let handshakes = self.metric("ambit_budget_used{budget=\"handshakes\"}").await?;
            if connections <= 4.0 && memory <= f64::from(1 << 20) && handshakes == 0.0 {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the flood is over, and yet {connections} connections, {handshakes} handshakes and {memory} bytes are held"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the proxy has no more than that; it gives memory back from time to time.
    async fn memory_back_to(&self, most: usize) -> Outcome<usize> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.memory()?;
            if now <= most {
                return Ok(now);
            }
            ensure!(Instant::now() < deadline, "the flood is over, and the proxy still has {now} MiB, over {most} MiB");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn refused(&self, budget: &str) -> Outcome<f64> {
        self.metric(&format!("ambit_budget_refused_total{{budget=\"{budget}\",scope=\"workload\"}}")).await
    }

    /// A metric's value; 0 as long as it isn't shown.
    async fn metric(&self, name: &str) -> Outcome<f64> {
        let text = self.proxy.ask(15_020, "GET /metrics").await.map_err(text)?;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(Ok(0.0), |value| value.trim().parse().map_err(|_| format!("{name} is{value}")))
    }

    /// What the proxy has in memory, in MiB.
    fn memory(&self) -> Outcome<usize> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.proxy.pid())).map_err(text)?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        let kib: usize = line.trim().trim_end_matches(" kB").parse().map_err(|_| line.to_owned())?;
        Ok(kib >> 10)
    }
}

/// The flood's own ends are in this process.
fn allow_many_files() -> Outcome {
    let now = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum }).map_err(text)?;
    let most = now.maximum.unwrap_or(u64::MAX);
    ensure!(most > 8_192, "this user may open {most} files only; the flood needs more");
    Ok(())
}
