//! HTTP/1 as bytes, for tests that care about them.

use std::io::{Read, Write};

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Status line and headers as they came.
    pub head: String,
    /// The body without its framing.
    pub body: String,
    /// Trailers as they came.
    pub trailers: String,
}

/// Sends all of it. The other side may have ended the connection already; what it said is still there to be read.
pub fn send(stream: &mut impl Write, bytes: impl AsRef<[u8]>) {
    let _ = stream.write_all(bytes.as_ref());
    let _ = stream.flush();
}

/// Everything up to the connection's end, a reset included.
pub fn rest(stream: &mut impl Read) -> String {
    let mut all = Vec::new();
    let mut block = [0; 16 * 1024];
    loop {
        match stream.read(&mut block) {
            Ok(0) => break,
            Ok(length) => all.extend_from_slice(&block[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("no end after {all:?}"),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// The next line with its end, or what is there of it.
pub fn line(stream: &mut impl Read) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\n") && matches!(stream.read(&mut byte), Ok(1)) {
        line.push(byte[0]);
    }
    String::from_utf8_lossy(&line).into_owned()
}

/// Reads a head up to its empty line.
pub fn head(stream: &mut impl Read) -> String {
    let mut head = String::new();
    loop {
        let line = line(stream);
        assert!(line.ends_with('\n'), "the connection ended in the head: {head}{line}");
        if line == "\r\n" {
            return head;
        }
        head.push_str(&line);
    }
}

/// Reads the answer to a request with this method.
pub fn answer_to(stream: &mut impl Read, method: &str) -> Answer {
    let head = head(stream);
    let status =
        head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no status: {head}"));
    let mut answer = Answer { status, head, body: String::new(), trailers: String::new() };
    if method == "HEAD" || status < 200 || matches!(status, 204 | 304) {
        return answer;
    }
    if answer.header("transfer-encoding") == Some("chunked") {
        loop {
            let size = line(stream);
            let size = usize::from_str_radix(size.trim(), 16).unwrap_or_else(|_| panic!("a chunk's size: {size:?}"));
            if size == 0 {
                break;
            }
            answer.body.push_str(&exactly(stream, size));
            assert_eq!(line(stream), "\r\n");
        }
        answer.trailers = self::head(stream);
    } else if let Some(length) = answer.header("content-length") {
        answer.body = exactly(stream, length.parse().expect("a length"));
    } else {
        answer.body = rest(stream);
    }
    answer
}

fn exactly(stream: &mut impl Read, length: usize) -> String {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).expect("the whole of it");
    String::from_utf8_lossy(&bytes).into_owned()
}

// === impl Answer ===

impl Answer {
    /// The first header of this name, which is in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers(name).into_iter().next()
    }

    /// All headers of this name.
    pub fn headers(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }

    /// Which application answered; otherwise the status.
    pub fn who(&self) -> String {
        self.header("x-app").map_or_else(|| self.status.to_string(), str::to_owned)
    }

    /// What an application says that it saw.
    pub fn seen(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}
