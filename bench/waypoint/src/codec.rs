//! The client's side of HTTP, without IO: requests as bytes, and when their responses are whole.
//!
//! All requests are alike, so they are made once; of responses only what shows their end and their status is read. So the
//! client costs little beside the proxy that it measures.

use crate::{
    http2::Http2,
    scenario::{AUTHORITY, Http},
};

/// One connection.
#[derive(Debug)]
pub(crate) enum Codec {
    Http1(Http1),
    Http2(Box<Http2>),
}

/// HTTP/1.1, one request after the other.
#[derive(Debug)]
pub(crate) struct Http1 {
    request: Vec<u8>,
    head: Vec<u8>,
    /// Bytes of the body still to come, once the head has.
    body: Option<usize>,
    requests: u32,
}

/// Longest head that is read.
const MAX_HEAD_BYTES: usize = 16 * 1024;
const HEAD_END: &[u8] = b"\r\n\r\n";

// === impl Codec ===

impl Codec {
    /// A connection on which this path is asked for.
    pub(crate) fn new(http: Http, path: &str) -> Self {
        match http {
            Http::H1 => Self::Http1(Http1::new(path)),
            Http::H2 => Self::Http2(Box::new(Http2::new(path))),
        }
    }

    /// What is sent before any request.
    pub(crate) fn opening(&self) -> Vec<u8> {
        match self {
            Self::Http1(_) => Vec::new(),
            Self::Http2(_) => Http2::opening(),
        }
    }

    /// Appends a request and gives its number.
    pub(crate) fn request(&mut self, out: &mut Vec<u8>) -> u32 {
        match self {
            Self::Http1(codec) => codec.request(out),
            Self::Http2(codec) => codec.request(out),
        }
    }

    /// Takes what has arrived. `done` is called with the number of each response that is whole; what has to be answered
    /// is appended to `out`.
    ///
    /// # Errors
    /// When a response isn't a 200, or can't be understood.
    pub(crate) fn receive(&mut self, bytes: &[u8], out: &mut Vec<u8>, done: impl FnMut(u32)) -> Result<(), String> {
        match self {
            Self::Http1(codec) => codec.receive(bytes, done),
            Self::Http2(codec) => codec.receive(bytes, out, done),
        }
    }
}

// === impl Http1 ===

impl Http1 {
    fn new(path: &str) -> Self {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: {AUTHORITY}\r\nuser-agent: ambit-bench\r\naccept: */*\r\n\r\n");
        Self { request: request.into_bytes(), head: Vec::new(), body: None, requests: 0 }
    }

    fn request(&mut self, out: &mut Vec<u8>) -> u32 {
        out.extend_from_slice(&self.request);
        self.requests += 1;
        self.requests
    }

    fn receive(&mut self, mut bytes: &[u8], mut done: impl FnMut(u32)) -> Result<(), String> {
        loop {
            let remaining = match self.body {
                Some(remaining) => remaining,
                None => {
                    let Some((length, rest)) = self.head(bytes)? else { return Ok(()) };
                    bytes = rest;
                    length
                }
            };
            let taken = remaining.min(bytes.len());
            bytes = &bytes[taken..];
            self.body = Some(remaining - taken);
            if remaining > taken {
                return Ok(());
            }
            self.body = None;
            done(self.requests);
            if bytes.is_empty() {
                return Ok(());
            }
        }
    }

    /// The body's length and the bytes after the head, once the head is whole.
    fn head<'b>(&mut self, bytes: &'b [u8]) -> Result<Option<(usize, &'b [u8])>, String> {
        if self.head.is_empty()
            && let Some(end) = end_of_head(bytes)
        {
            return Ok(Some((body_length(&bytes[..end])?, &bytes[end..])));
        }
        let known = self.head.len();
        self.head.extend_from_slice(bytes);
        match end_of_head(&self.head) {
            Some(end) => {
                let length = body_length(&self.head[..end])?;
                self.head.clear();
                Ok(Some((length, &bytes[end - known..])))
            }
            None if self.head.len() > MAX_HEAD_BYTES => Err("a response's head has no end".to_owned()),
            None => Ok(None),
        }
    }
}

/// Where the head ends that begins here.
pub(crate) fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(HEAD_END.len()).position(|window| window == HEAD_END).map(|start| start + HEAD_END.len())
}

fn body_length(head: &[u8]) -> Result<usize, String> {
    let wrong = |what: &str| format!("{what}: {}", String::from_utf8_lossy(&head[..head.len().min(400)]));
    if !head.starts_with(b"HTTP/1.1 200") {
        return Err(wrong("a response that is no 200"));
    }
    const NAME: &[u8] = b"content-length:";
    let lines = head.split(|byte| *byte == b'\n');
    let mut lengths = lines.filter(|line| line.get(..NAME.len()).is_some_and(|name| name.eq_ignore_ascii_case(NAME)));
    let value = lengths.next().and_then(|line| std::str::from_utf8(&line[NAME.len()..]).ok());
    value.and_then(|value| value.trim().parse().ok()).ok_or_else(|| wrong("a response without a length"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(codec: &mut Codec, bytes: &[u8]) -> Result<usize, String> {
        let mut responses = 0;
        codec.receive(bytes, &mut Vec::new(), |_| responses += 1)?;
        Ok(responses)
    }

    #[test]
    fn responses_are_counted_however_they_are_cut() {
        let response = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        for cut in 0..response.len() {
            let mut codec = Codec::new(Http::H1, "/bytes/5");
            codec.request(&mut Vec::new());
            let (before, after) = response.split_at(cut);
            assert_eq!(count(&mut codec, before), Ok(0), "{cut}");
            assert_eq!(count(&mut codec, after), Ok(1), "{cut}");
        }
        let mut codec = Codec::new(Http::H1, "/bytes/0");
        assert_eq!(count(&mut codec, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), Ok(1));
    }

    #[test]
    fn what_is_no_200_is_an_error() {
        for wrong in
            [&b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"[..], b"HTTP/1.1 200 OK\r\nserver: x\r\n\r\n"]
        {
            assert!(count(&mut Codec::new(Http::H1, "/"), wrong).is_err());
        }
    }
}
