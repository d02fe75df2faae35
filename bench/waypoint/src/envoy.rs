//! An Envoy as the same waypoint, for as long as it is needed.

mod config;

use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    backend,
    child::Running,
    place,
    scenario::{self, Policy, Shape},
};

/// How long it may take to start.
const START: Duration = Duration::from_secs(60);
/// How long its admin interface may take to answer.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at whether it has.
const POLL: Duration = Duration::from_millis(20);

/// Where it is and where it writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Installation<'a> {
    pub(crate) binary: &'a Path,
    pub(crate) folder: &'a Path,
}

// === impl Installation ===

impl Installation<'_> {
    /// Starts one and waits until it listens.
    pub(crate) fn start(
        &self,
        shape: Shape,
        policies: &[Policy],
        backend: backend::Address,
    ) -> Result<(Running, SocketAddr), String> {
        let said = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
        let pem = place::pem_files(self.folder, &scenario::waypoint())?;
        let config = config::bootstrap(shape, policies, backend, &pem);
        let [config_file, admin_file, log_file] =
            ["envoy.json", "envoy-admin.txt", "envoy.log"].map(|name| self.folder.join(name));
        let write = |file: &Path, text: &str| fs::write(file, text).map_err(|error| said("can't write", &error));
        write(&config_file, &config.to_string())?;
        write(&admin_file, "")?;
        let log = fs::File::create(&log_file).map_err(|error| said("can't write", &error))?;
        let child = Command::new(self.binary)
            .arg("--config-path")
            .arg(&config_file)
            .arg("--admin-address-path")
            .arg(&admin_file)
            .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| said(&format!("`{}` can't be started", self.binary.display()), &error))?;
        let mut running = Running::new(child);
        let deadline = Instant::now() + START;
        loop {
            if let Some(status) = running.ended() {
                let log = fs::read_to_string(&log_file).unwrap_or_default();
                return Err(format!("Envoy ended with {status}:\n{}", last_lines(&log)));
            }
            if let Some(address) = listener(&admin_file) {
                return Ok((running, address));
            }
            if Instant::now() > deadline {
                return Err(format!("Envoy isn't ready after {} s", START.as_secs()));
            }
            thread::sleep(POLL);
        }
    }
}

fn last_lines(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// The address of the listener; nothing while it isn't there.
fn listener(admin_file: &Path) -> Option<SocketAddr> {
    let admin: SocketAddr = fs::read_to_string(admin_file).ok()?.trim().parse().ok()?;
    if !get(admin, "/ready").ok()?.contains("LIVE") {
        return None;
    }
    let answer = get(admin, "/listeners?format=json").ok()?;
    let answer: Value = serde_json::from_str(&joined(&answer)).ok()?;
    let statuses = answer["listener_statuses"].as_array()?;
    let entry = statuses.iter().find(|status| status["name"] == config::ENTRY)?;
    let address = &entry["local_address"]["socket_address"];
    let port = u16::try_from(address["port_value"].as_u64()?).ok().filter(|port| *port != 0)?;
    Some(SocketAddr::new(address["address"].as_str()?.parse().ok()?, port))
}

/// The body of an answer of the admin interface.
fn get(admin: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(ADMIN_TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(body.to_owned())
}

/// A body without the lines of its chunks, if it has any: they hold nothing but a size.
fn joined(body: &str) -> String {
    let is_size = |line: &&str| !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_hexdigit());
    body.split("\r\n").filter(|line| !is_size(line)).collect()
}
