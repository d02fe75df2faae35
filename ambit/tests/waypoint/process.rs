//! One `ambit waypoint` process.

use std::{
    fs::OpenOptions,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{mesh::WAYPOINT, world::PATIENCE};

/// Pause between looks where nothing tells of a change but the answer itself.
const POLL: Duration = Duration::from_millis(10);

/// A process that runs. Killed when dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
    readiness: u16,
    admin: u16,
    stats: u16,
}

impl Process {
    /// Starts one for this address, with these settings beyond the usual ones.
    pub fn start(ip: Ipv4Addr, log: PathBuf, settings: &[(&str, String)]) -> Self {
        let [readiness, admin, stats] = free_ports();
        let output = OpenOptions::new().create(true).append(true).open(&log).expect("a log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_ambit"));
        let usual = [
            ("GATEWAY_NAME", WAYPOINT.to_owned()),
            ("SERVICE_ACCOUNT", WAYPOINT.to_owned()),
            ("POD_NAME", format!("{WAYPOINT}-1")),
            ("NODE_NAME", "node".to_owned()),
            ("INSTANCE_IP", ip.to_string()),
            ("AMBIT_LISTEN_ADDRESS", ip.to_string()),
            ("IPV6_ENABLED", "false".to_owned()),
            ("AMBIT_READINESS_PORT", readiness.to_string()),
            ("AMBIT_ADMIN_PORT", admin.to_string()),
            ("AMBIT_STATS_PORT", stats.to_string()),
            ("AMBIT_WORKER_THREADS", "2".to_owned()),
            ("RUST_BACKTRACE", "1".to_owned()),
        ];
        let all = usual.iter().chain(settings).map(|(name, value)| (name, value));
        command.arg("waypoint").env_clear().envs(all).current_dir("/");
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("a log")).stderr(output);
        let child = command.spawn().expect("the program starts");
        Self { child, log, readiness, admin, stats }
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&mut self) {
        self.until("ready\n").await;
    }

    /// Waits until what probes hear has this in it, and returns it.
    pub async fn until(&mut self, wanted: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut last = String::new();
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("it ended with {status}: {}", self.log());
            }
            match self.readiness().await {
                Ok(body) if body.contains(wanted) && (wanted != "ready\n" || body == wanted) => return body,
                Ok(body) => last = body,
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(POLL).await;
        }
        panic!("probes don't hear `{wanted}` but `{last}`\n{}", self.log());
    }

    /// What probes hear.
    pub async fn readiness(&self) -> io::Result<String> {
        get(self.readiness, "/healthz/ready").await
    }

    /// What the administration port shows.
    pub async fn admin(&self, path: &str) -> String {
        get(self.admin, path).await.expect("an answer")
    }

    /// What the port for metrics shows.
    pub async fn stats(&self, path: &str) -> io::Result<String> {
        get(self.stats, path).await
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process");
        rustix::process::kill_process(pid, signal).expect("it is ours");
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait().expect("it is ours") {
                Some(status) => return status,
                None if Instant::now() > deadline => panic!("it goes on: {}", self.log()),
                None => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// Waits until its log has this.
    pub async fn logged(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = self.log();
            if let Some(line) = log.lines().find(|line| line.contains(text)) {
                return line.to_owned();
            }
            assert!(Instant::now() < deadline, "no line has `{text}`: {log}");
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ports that nobody has at this moment.
fn free_ports() -> [u16; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("it is bound").port())
}

/// The body of the answer.
async fn get(port: u16, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}
