//! A running `ambit forward`: the test itself is the client.

use std::{
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::http1::{self, Answer};

/// No test waits longer for one answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A loopback address whose connections enter the mesh. Ended when dropped.
#[derive(Debug)]
pub struct Forward {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

// === impl Forward ===

impl Forward {
    pub(crate) fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("`ambit forward` starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it prints");
        let address = line.strip_prefix("http://").and_then(|rest| rest.split(' ').next()?.parse().ok());
        let address = address.unwrap_or_else(|| {
            let mut said = String::new();
            let _ = child.stderr.take().expect("piped").read_to_string(&mut said);
            panic!("`ambit forward` says {line:?} and {said}")
        });
        Self { child, address }
    }

    /// A new connection.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the forward listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    /// Sends bytes on a connection of their own and returns everything that comes back.
    pub fn exchange(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect();
        http1::send(&mut stream, bytes);
        http1::rest(&mut stream)
    }

    /// One HTTP/1.1 request on a connection of its own. `head` is the method, the target and, one a line, headers.
    pub fn ask(&self, head: &str) -> Answer {
        self.ask_with(head, "")
    }

    /// The same with a body.
    pub fn ask_with(&self, head: &str, body: &str) -> Answer {
        let mut stream = self.connect();
        let (line, headers) = head.split_once('\n').unwrap_or((head, ""));
        let mut request = format!("{line} HTTP/1.1\r\nconnection: close\r\n");
        let given: Vec<_> = headers.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if !given.iter().any(|line| line.starts_with("host:")) {
            request.push_str("host: web\r\n");
        }
        given.iter().for_each(|line| request.push_str(&format!("{line}\r\n")));
        if !body.is_empty() {
            request.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        http1::send(&mut stream, format!("{request}\r\n{body}"));
        http1::answer_to(&mut stream, line.split(' ').next().unwrap_or_default())
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // It may have ended with the mesh.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
