//! Readiness probes, made from inside the pod with the node proxy's mark, so that they aren't captured
//! (`spec/control-plane.md` 5.4).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ambit_hbone::Network;
use socket2::{Domain, Protocol, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::limits::PROBE_RESPONSE_BYTES;
use crate::pod::PodNamespaces;
use crate::process::{self, ProcessSpec};
use crate::reaper::Reaper;
use crate::rules::PROXY_MARK;

/// When a container counts as ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What is tried.
    pub action: ProbeAction,
    /// How long after its start the first try comes.
    pub initial_delay: Duration,
    /// How often it's tried once it was ready.
    pub period: Duration,
    /// How long one try may take.
    pub timeout: Duration,
    /// How many successes in a row make it ready.
    pub success_threshold: u32,
    /// How many failures in a row make it not ready.
    pub failure_threshold: u32,
}

/// What a probe tries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeAction {
    /// `GET` gives a status from 200 to 399.
    HttpGet {
        /// Port on the pod's address.
        port: u16,
        /// Path and query.
        path: String,
        /// `Host` header; the pod's address if none.
        host: Option<String>,
        /// Further headers.
        headers: Vec<(String, String)>,
    },
    /// A connection is accepted.
    TcpSocket {
        /// Port on the pod's address.
        port: u16,
    },
    /// A program in the pod ends with 0.
    Exec {
        /// Program and arguments.
        command: Vec<String>,
    },
}

/// Runs one try; the error says what was wrong.
pub(crate) async fn attempt(probe: &Probe, reaper: &Reaper, pod: &Arc<PodNamespaces>) -> Result<(), String> {
    let attempt = async {
        match &probe.action {
            ProbeAction::HttpGet { port, path, host, headers } => {
                let request = http_request(pod.ip(), *port, path, host.as_deref(), headers)?;
                let stream = connect(pod, *port).await.map_err(|error| error.to_string())?;
                http_get(stream, &request).await
            }
            ProbeAction::TcpSocket { port } => connect(pod, *port).await.map(drop).map_err(|error| error.to_string()),
            ProbeAction::Exec { command } => exec(reaper, pod, command).await,
        }
    };
    match tokio::time::timeout(probe.timeout, attempt).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {:?}", probe.timeout)),
    }
}

async fn connect(pod: &PodNamespaces, port: u16) -> io::Result<TcpStream> {
    let socket = pod.network().socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_mark(PROXY_MARK)?;
    TcpSocket::from_std_stream(socket.into()).connect(SocketAddr::new(IpAddr::V4(pod.ip()), port)).await
}

fn http_request(
    ip: Ipv4Addr,
    port: u16,
    path: &str,
    host: Option<&str>,
    headers: &[(String, String)],
) -> Result<String, String> {
    let host = host.map_or_else(|| format!("{ip}:{port}"), str::to_owned);
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let mut request =
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nUser-Agent: ambit-probe\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    let lines = 4 + headers.len();
    if path.contains(' ') || request.matches('\n').count() != lines || request.matches('\r').count() != lines {
        return Err("the probe's path, host or headers hold a space or line end".to_owned());
    }
    Ok(request + "\r\n")
}

async fn http_get(mut stream: TcpStream, request: &str) -> Result<(), String> {
    stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
    let mut response = Vec::with_capacity(PROBE_RESPONSE_BYTES);
    while response.len() < PROBE_RESPONSE_BYTES && !response.contains(&b'\n') {
        match stream.read_buf(&mut response).await {
            Ok(1..) => {}
            Ok(0) => break,
            Err(error) => return Err(error.to_string()),
        }
    }
    match status(&response) {
        Some(200..=399) => Ok(()),
        Some(status) => Err(format!("status {status}")),
        None => Err("the answer isn't HTTP".to_owned()),
    }
}

fn status(response: &[u8]) -> Option<u16> {
    let line = response.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?.strip_prefix("HTTP/1.")?;
    line.split(' ').nth(1)?.trim().parse().ok()
}

async fn exec(reaper: &Reaper, pod: &PodNamespaces, command: &[String]) -> Result<(), String> {
    /// Ends the program when the probe gives up on it.
    struct Ended(process::Process);
    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.signal(rustix::process::Signal::KILL);
        }
    }
    let spec = ProcessSpec { argv: command.to_vec(), ..ProcessSpec::default() };
    let mut running = Ended(process::spawn(reaper, pod, &spec, None).map_err(|error| error.to_string())?);
    match running.0.wait().await {
        exit if exit.success() => Ok(()),
        exit => Err(exit.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_status_of_an_answer() {
        assert_eq!(status(b"HTTP/1.1 204 No Content\r\nA: b"), Some(204));
        assert_eq!(status(b"HTTP/1.0 503\r\n"), Some(503));
        for wrong in [&b""[..], b"SSH-2.0-x\r\n", b"HTTP/1.1\r\n", b"HTTP/1.1 abc\r\n", b"\xff\n"] {
            assert_eq!(status(wrong), None);
        }
    }

    #[test]
    fn a_header_cant_smuggle_a_second_request() {
        let ip = Ipv4Addr::new(10, 244, 0, 2);
        let headers = [("A".to_owned(), "b".to_owned())];
        let request = http_request(ip, 80, "x", None, &headers).expect("a request");
        assert!(request.starts_with("GET /x HTTP/1.1\r\nHost: 10.244.0.2:80\r\n") && request.ends_with("A: b\r\n\r\n"));
        assert!(http_request(ip, 80, "/ HTTP/1.1\r\nX: y", None, &[]).is_err());
        assert!(http_request(ip, 80, "/", None, &[("A".to_owned(), "b\r\nC: d".to_owned())]).is_err());
    }
}
