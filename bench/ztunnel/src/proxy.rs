//! A node proxy under test: a program that understands ztunnel's environment (`spec/ztunnel.md` 17).

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use ambit_node::{Capture, Node};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    agent::{Agent, Attached, Workload},
    machine,
    pods::Pod,
};

/// How long a proxy may take until it's ready.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long it may take to end; the drain's default deadline is 5 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);
/// How long one question about its readiness may take.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
const PROBE_INTERVAL: Duration = Duration::from_millis(10);
const READINESS_PORT: u16 = 15021;

/// A program to measure.
#[derive(Clone, Debug)]
pub(crate) struct Contender {
    /// `ambit` or `ztunnel`, as tables name it.
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
    pub(crate) arguments: &'static [&'static str],
}

/// What one proxy is started with.
pub(crate) struct Start<'a> {
    pub(crate) contender: &'a Contender,
    /// The node's name, as the configuration has it.
    pub(crate) node: &'a str,
    pub(crate) ip: Ipv4Addr,
    /// The pods it serves.
    pub(crate) workloads: &'a [Workload<'a>],
    /// Variables beside those that every proxy gets.
    pub(crate) environment: &'a [(String, String)],
    /// Folder of its ZDS socket.
    pub(crate) run: &'a Path,
    /// Folder of its log.
    pub(crate) logs: &'a Path,
}

/// A running node proxy.
pub(crate) struct Proxy {
    child: Child,
    pod: Pod,
    _agent: Attached,
}

// === impl Proxy ===

impl Proxy {
    /// Starts it in a network of its own, gives it its pod and waits until it's ready.
    pub(crate) fn start(node: &Node, start: &Start<'_>) -> Result<Self, String> {
        let name = start.contender.name;
        let what = |error: io::Error| format!("{name} on node `{}`: {error}", start.node);
        let pod = Pod::new(node, start.node, start.ip, Capture::None)?;
        let socket = start.run.join(format!("{}.sock", start.node));
        let _gone_already = std::fs::remove_file(&socket);
        let agent = Agent::new(&socket).map_err(what)?;
        let log = start.logs.join(format!("{name}-{}.log", start.node));
        let mut child = pod.run(|| spawn(start, &socket, &log)).map_err(what)?;
        match agent.attach(start.workloads, START_TIMEOUT).and_then(|agent| {
            pod.run(await_ready)?;
            Ok(agent)
        }) {
            Ok(agent) => Ok(Self { child, pod, _agent: agent }),
            Err(error) => {
                let _ended_already = child.kill();
                let _status = child.wait();
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                Err(format!(
                    "{name} on node `{}` doesn't start: {error}; its last words, newest first: {last:#?}",
                    start.node
                ))
            }
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn processor_seconds(&self) -> io::Result<f64> {
        machine::processor_seconds(self.child.id())
    }

    pub(crate) fn resident_kib(&self) -> io::Result<f64> {
        machine::resident_kib(self.child.id())
    }

    /// Its own network.
    pub(crate) fn pod(&self) -> &Pod {
        &self.pod
    }

    /// Asks it to end, insists after [`STOP_TIMEOUT`], and gives its network back.
    pub(crate) fn stop(self) -> Pod {
        self.end().0
    }

    /// The same, and says whether it ended by itself and well.
    pub(crate) fn end(mut self) -> (Pod, bool) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ended_already = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(PROBE_INTERVAL);
        }
        let ended = matches!(self.child.try_wait(), Ok(Some(status)) if status.success());
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
        (self.pod, ended)
    }
}

/// The child is born in the network of the thread that makes it.
fn spawn(start: &Start<'_>, socket: &Path, log: &Path) -> io::Result<Child> {
    let log = File::create(log)?;
    Command::new(&start.contender.program)
        .args(start.contender.arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/")
        .env("RUST_LOG", std::env::var_os("RUST_LOG").unwrap_or_else(|| "error".into()))
        .env("PROXY_MODE", "shared")
        .env("NODE_NAME", start.node)
        .env("INPOD_UDS", socket)
        .envs(start.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}

fn await_ready() -> io::Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        match is_ready() {
            Ok(true) => return Ok(()),
            Ok(false) | Err(_) if Instant::now() < deadline => std::thread::sleep(PROBE_INTERVAL),
            Ok(false) => return Err(io::Error::new(io::ErrorKind::TimedOut, "it says that it's not ready")),
            Err(error) => return Err(error),
        }
    }
}

fn is_ready() -> io::Result<bool> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, READINESS_PORT));
    let mut stream = TcpStream::connect_timeout(&address, PROBE_TIMEOUT)?;
    stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
    stream.write_all(b"GET /healthz/ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(status.ends_with(b" 200"))
}
