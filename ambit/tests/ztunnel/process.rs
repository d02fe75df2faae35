//! One `ambit ztunnel` process, in a pod of its own like the real one.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_hbone::Network;
use ambit_node::PodNamespaces;
use rustix::process::{Pid, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType};
use socket2::{Domain, Protocol, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What the real one has in a cluster.
const CAPABILITIES: [CapabilitySet; 3] = [CapabilitySet::NET_ADMIN, CapabilitySet::NET_RAW, CapabilitySet::SYS_ADMIN];

/// A process that runs. Killed when dropped.
pub(crate) struct Ztunnel {
    child: Child,
    pod: Arc<PodNamespaces>,
    log: PathBuf,
}

impl Ztunnel {
    /// Starts one in this pod's network, with these settings beyond the usual ones.
    pub(crate) fn start(
        program: &Path,
        arguments: &[&str],
        pod: &Arc<PodNamespaces>,
        log: PathBuf,
        settings: &[(&str, String)],
    ) -> io::Result<Self> {
        let output = OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(settings.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).current_dir("/");
        let spawned = born_in(pod, || command.spawn());
        Ok(Self { child: spawned?, pod: Arc::clone(pod), log })
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks whether it is ready; the body of the answer.
    pub(crate) async fn readiness(&self) -> io::Result<String> {
        self.ask(15_021, "GET /healthz/ready").await
    }

    /// Asks at its loopback; the body of the answer.
    pub(crate) async fn ask(&self, port: u16, request: &str) -> io::Result<String> {
        let socket = self.pod.network().socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
        let mut stream = socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await?;
        let request = format!("{request} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    /// Waits until it says that it is ready.
    pub(crate) async fn ready(&mut self, patience: Duration) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        let mut last = String::new();
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("it ended with {status}: {}", self.log()));
            }
            match self.readiness().await {
                Ok(body) if body == "ready\n" => return Ok(()),
                Ok(body) => last = body,
                Err(error) => last = error.to_string(),
            }
            // Nothing tells of a change but the answer itself.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(format!("it isn't ready: {last}\n{}", self.log()))
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends SIGKILL: it ends without a word.
    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id())
            && let Some(pid) = Pid::from_raw(pid)
        {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self, patience: Duration) -> Result<ExitStatus, String> {
        let deadline = Instant::now() + patience;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if Instant::now() > deadline => return Err(format!("it goes on: {}", self.log())),
                Ok(None) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

impl Drop for Ztunnel {
    fn drop(&mut self) {
        // One that has ended already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program in this pod's network, with the rights to change it; what it says when it fails.
pub(crate) fn run_in(pod: &PodNamespaces, program: &str, arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
    let shown = || format!("`{program} {}`", arguments.join(" "));
    let output = born_in(pod, || command.output()).map_err(|error| format!("{}: {error}", shown()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}", shown(), String::from_utf8_lossy(&output.stderr).trim()))
}

/// Spawns on a thread of its own, which stays in the pod's network and then ends: a program is born where that was.
fn born_in<T: Send>(pod: &PodNamespaces, spawn: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let network = pod.network();
    std::thread::scope(|scope| {
        let spawned = scope.spawn(|| {
            rustix::thread::move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            pass_on_capabilities()?;
            spawn()
        });
        spawned.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

/// An ordinary user's program would lose at `exec` what it may do in its own user namespace. Root's doesn't.
fn pass_on_capabilities() -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let sets = rustix::thread::capabilities(None)?;
    let wanted = CAPABILITIES.into_iter().fold(CapabilitySet::empty(), |all, one| all | one);
    rustix::thread::set_capabilities(None, CapabilitySets { inheritable: sets.inheritable | wanted, ..sets })?;
    for capability in CAPABILITIES {
        rustix::thread::configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

/// An empty file that anybody may read.
pub(crate) fn write(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    File::create(path)?.write_all(text.as_bytes())
}
