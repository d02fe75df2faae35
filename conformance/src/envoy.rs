//! An Envoy that runs for as long as it is needed.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    case::{Connection, PolicySet, Request},
    config,
    wire::{self, Answer},
};

/// How long it may take to start.
const START: Duration = Duration::from_secs(120);
/// How long its admin interface may take to answer.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at whether it has.
const POLL: Duration = Duration::from_millis(20);

/// A running Envoy with a listener for each set of policies. It ends when this is dropped.
pub struct Envoy {
    child: Child,
    /// Where each set listens: IPv4, then IPv6.
    listeners: Vec<[SocketAddr; 2]>,
}

/// How to start one.
#[derive(Clone, Debug)]
pub struct Installation {
    pub binary: PathBuf,
    /// Where it writes.
    pub folder: PathBuf,
    pub authorizer: SocketAddr,
}

/// The program and the folder that it is told by.
impl Installation {
    /// Starts an Envoy for these sets and waits until all of its listeners are there.
    pub fn start(&self, sets: &[PolicySet]) -> Result<Envoy, String> {
        let said = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
        let config = config::bootstrap(sets, self.authorizer).map_err(|error| said("the export failed", &error))?;
        let (config_file, admin_file, log_file) =
            (self.folder.join("envoy.json"), self.folder.join("admin.txt"), self.folder.join("envoy.log"));
        let write = |file: &Path, text: &str| fs::write(file, text).map_err(|error| said("can't write", &error));
        write(&config_file, &config.to_string())?;
        write(&admin_file, "")?;
        let log = fs::File::create(&log_file).map_err(|error| said("can't write", &error))?;
        let child = Command::new(&self.binary)
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
        let mut envoy = Envoy { child, listeners: Vec::new() };
        let deadline = Instant::now() + START;
        loop {
            if let Ok(Some(status)) = envoy.child.try_wait() {
                let log = fs::read_to_string(&log_file).unwrap_or_default();
                return Err(format!("Envoy ended with {status}:\n{}", last_lines(&log)));
            }
            if let Some(listeners) = listeners(&admin_file, sets.len()) {
                envoy.listeners = listeners;
                return Ok(envoy);
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

/// The addresses of the listeners; nothing while they aren't all there.
fn listeners(admin_file: &Path, count: usize) -> Option<Vec<[SocketAddr; 2]>> {
    let admin: SocketAddr = fs::read_to_string(admin_file).ok()?.trim().parse().ok()?;
    if !get(admin, "/ready").ok()?.contains("LIVE") {
        return None;
    }
    let answer = get(admin, "/listeners?format=json").ok()?;
    let answer: Value = serde_json::from_str(&answer).ok()?;
    let socket = |value: &Value| {
        let address = &value["socket_address"];
        let port = u16::try_from(address["port_value"].as_u64()?).ok().filter(|port| *port != 0)?;
        Some(SocketAddr::new(address["address"].as_str()?.parse().ok()?, port))
    };
    let mut found = HashMap::new();
    for status in answer["listener_statuses"].as_array()? {
        let index: usize = status["name"].as_str()?.parse().ok()?;
        let second = &status["additional_local_addresses"][0];
        found.insert(index, [socket(&status["local_address"])?, socket(second)?]);
    }
    (0..count).map(|index| found.get(&index).copied()).collect()
}

/// The body of an answer of the admin interface.
fn get(admin: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(ADMIN_TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(if head.to_ascii_lowercase().contains("transfer-encoding: chunked") { joined(body) } else { body.to_owned() })
}

/// The chunks of a body, without their sizes.
fn joined(mut body: &str) -> String {
    let mut joined = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let chunk = usize::from_str_radix(size, 16).ok().and_then(|size| rest.split_at_checked(size));
        let Some((chunk, rest)) = chunk.filter(|(chunk, _)| !chunk.is_empty()) else { break };
        joined.push_str(chunk);
        body = rest.trim_start();
    }
    joined
}

// === impl Envoy ===

impl Envoy {
    /// What it does with each of these requests to one set. They go over one connection for as long as they can.
    pub fn answers(&self, set: usize, is_http: bool, requests: &[Request]) -> Result<Vec<Answer>, String> {
        let mut open: Option<(Connection, BufReader<TcpStream>)> = None;
        let mut answers = Vec::with_capacity(requests.len());
        for request in requests {
            let answer = self.answer(set, is_http, request, &mut open);
            answers.push(answer.map_err(|error| format!("Envoy doesn't answer {request:?}: {error}"))?);
        }
        Ok(answers)
    }

    fn answer(
        &self,
        set: usize,
        is_http: bool,
        request: &Request,
        open: &mut Option<(Connection, BufReader<TcpStream>)>,
    ) -> io::Result<Answer> {
        let connection = &request.connection;
        let to = self.listeners[set][usize::from(connection.source_ip.is_ipv6())];
        if !is_http {
            return wire::knock(wire::connect(to, connection)?, connection);
        }
        let mut stream = match open.take() {
            Some((known, stream)) if known == *connection => stream,
            _ => BufReader::new(wire::connect(to, connection)?),
        };
        let (answer, keeps_open) = wire::exchange(&mut stream, request)?;
        if keeps_open {
            *open = Some((connection.clone(), stream));
        }
        Ok(answer)
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // It holds nothing that must be saved. If it has ended already there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
