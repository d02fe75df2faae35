//! Tells HTTP from TCP by the first bytes of a stream, without losing them (`spec/waypoint.md` 5.1, 5.4).

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::limits::{MAX_DETECTION_BYTES, MAX_METHOD_BYTES};

/// What is spoken on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    /// HTTP/1.x.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Anything else.
    Tcp,
}

/// Reads ahead of whoever will have the stream.
///
/// Every read can be cancelled: what was read until then stays, and is looked at again.
#[derive(Debug)]
pub(crate) struct ReadAhead<S> {
    stream: S,
    bytes: BytesMut,
}

/// A stream with the bytes that were read ahead put back in front.
#[derive(Debug)]
pub(crate) struct Prefixed<S> {
    prefix: Bytes,
    stream: S,
}

/// Tells HTTP/2 from HTTP/1.x on a port that is declared to speak HTTP. What is neither is left to the HTTP/1 parser,
/// which answers 400.
///
/// # Errors
/// When reading fails, or nothing arrives until `timeout`.
pub(crate) async fn http<S>(stream: S, timeout: Duration) -> io::Result<(Spoken, Prefixed<S>)>
where
    S: AsyncRead + Unpin,
{
    let mut reader = ReadAhead::new(stream);
    let known = tokio::time::timeout(
        timeout,
        reader.until_known(|bytes| match preface(bytes) {
            Match::Whole => Some(Spoken::Http2),
            Match::No => Some(Spoken::Http1),
            Match::SoFar => None,
        }),
    );
    let spoken = known.await.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok((spoken.unwrap_or(Spoken::Http1), reader.into_stream()))
}

enum Match {
    Whole,
    SoFar,
    No,
}

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How a response begins; a server may send one unasked (408).
const HTTP1_RESPONSE: &[u8] = b"HTTP/1.";
/// A frame's header without its length.
const SETTINGS_HEADER: &[u8] = &[4, 0, 0, 0, 0, 0];

/// What these first bytes are, or nothing if more are needed.
fn classify(bytes: &[u8]) -> Option<Spoken> {
    match preface(bytes) {
        Match::Whole => return Some(Spoken::Http2),
        Match::SoFar => return None,
        Match::No => {}
    }
    match request_line(bytes) {
        Match::Whole => Some(Spoken::Http1),
        Match::SoFar => None,
        Match::No => Some(Spoken::Tcp),
    }
}

/// What the first bytes of a server are that its client hasn't asked for, or nothing if more are needed.
///
/// A server of HTTP/2 doesn't wait for the client with its SETTINGS, so such bytes don't make it TCP.
pub(crate) fn classify_server(bytes: &[u8]) -> Option<Spoken> {
    match (beginning(bytes, HTTP1_RESPONSE), settings(bytes)) {
        (Match::Whole, _) => Some(Spoken::Http1),
        (_, Match::Whole) => Some(Spoken::Http2),
        (Match::SoFar, _) | (_, Match::SoFar) => None,
        (Match::No, Match::No) => Some(Spoken::Tcp),
    }
}

fn preface(bytes: &[u8]) -> Match {
    beginning(bytes, HTTP2_PREFACE)
}

/// A SETTINGS frame that acknowledges none, as every HTTP/2 server sends first (RFC 9113, 3.4 and 6.5).
fn settings(bytes: &[u8]) -> Match {
    // Three bytes of length; the first is 0 in any frame that the client hasn't agreed to be longer.
    match bytes {
        [0, _, _, header @ ..] => beginning(header, SETTINGS_HEADER),
        [] | [0] | [0, _] => Match::SoFar,
        _ => Match::No,
    }
}

fn beginning(bytes: &[u8], expected: &[u8]) -> Match {
    let seen = bytes.len().min(expected.len());
    if bytes[..seen] != expected[..seen] {
        Match::No
    } else if seen == expected.len() {
        Match::Whole
    } else {
        Match::SoFar
    }
}

/// `method SP target SP HTTP/1.` and a digit.
fn request_line(bytes: &[u8]) -> Match {
    let method = bytes.iter().take_while(|byte| is_token(**byte)).count();
    if method > MAX_METHOD_BYTES {
        return Match::No;
    }
    let Some((b' ', rest)) = bytes[method..].split_first() else {
        return if method == bytes.len() { Match::SoFar } else { Match::No };
    };
    if method == 0 {
        return Match::No;
    }
    let target = rest.iter().take_while(|byte| **byte > b' ' && **byte != 0x7f).count();
    let Some((b' ', version)) = rest[target..].split_first() else {
        return if target == rest.len() { Match::SoFar } else { Match::No };
    };
    let expected = b"HTTP/1.";
    let seen = version.len().min(expected.len());
    if target == 0 || version[..seen] != expected[..seen] {
        return Match::No;
    }
    match version.get(expected.len()) {
        Some(minor) if minor.is_ascii_digit() => Match::Whole,
        Some(_) => Match::No,
        None => Match::SoFar,
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

// === impl ReadAhead ===

impl<S> ReadAhead<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, bytes: BytesMut::new() }
    }

    /// Whether nothing has arrived yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The stream, to be read from its beginning.
    pub(crate) fn into_stream(self) -> Prefixed<S> {
        Prefixed { prefix: self.bytes.freeze(), stream: self.stream }
    }
}

impl<S: AsyncRead + Unpin> ReadAhead<S> {
    /// What was read so far.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Waits for more bytes and gives their number, 0 at the end.
    ///
    /// # Errors
    /// When reading fails.
    pub(crate) async fn more(&mut self) -> io::Result<usize> {
        self.stream.read_buf(&mut self.bytes).await
    }

    /// Ends when the stream breaks. Its orderly end is no break, and past the bound nothing is read, so nothing noticed.
    pub(crate) async fn broken(&mut self) {
        while self.bytes.len() < MAX_DETECTION_BYTES {
            match self.more().await {
                Ok(0) => break,
                Ok(_) => {}
                Err(_) => return,
            }
        }
        std::future::pending().await
    }

    /// Reads as far as needed to know what the client speaks.
    ///
    /// # Errors
    /// When reading fails.
    pub(crate) async fn spoken(&mut self) -> io::Result<Spoken> {
        Ok(self.until_known(classify).await?.unwrap_or(Spoken::Tcp))
    }

    /// Reads as far as needed; nothing when the stream or the bound ended before it was known.
    ///
    /// # Errors
    /// When reading fails.
    pub(crate) async fn until_known(&mut self, known: impl Fn(&[u8]) -> Option<Spoken>) -> io::Result<Option<Spoken>> {
        loop {
            if let Some(spoken) = known(&self.bytes) {
                return Ok(Some(spoken));
            }
            if self.bytes.len() >= MAX_DETECTION_BYTES || self.more().await? == 0 {
                return Ok(None);
            }
        }
    }
}

// === impl Prefixed ===

impl<S> Prefixed<S> {
    /// The stream behind the bytes.
    pub(crate) fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let count = self.prefix.len().min(buffer.remaining());
        buffer.put_slice(&self.prefix[..count]);
        self.prefix.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[test]
    fn first_bytes_tell_the_protocol_however_they_are_cut() {
        let cases: [(&[u8], Spoken); 12] = [
            (b"GET / HTTP/1.1\r\n", Spoken::Http1),
            (b"X-ODD! //a;b=%2F HTTP/1.0\r\n", Spoken::Http1),
            (b"OPTIONS * HTTP/1.1", Spoken::Http1),
            (b"PROPFIND http://h/x HTTP/1.1", Spoken::Http1),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00", Spoken::Http2),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Spoken::Tcp),
            (b"\x16\x03\x01\x02\x00", Spoken::Tcp),
            (b"get / http/1.1\r\n", Spoken::Tcp),
            (b"HELO mail\r\n", Spoken::Tcp),
            (b"\r\nGET / HTTP/1.1\r\n", Spoken::Tcp),
            (b"GET  / HTTP/1.1\r\n", Spoken::Tcp),
            (b"GET / HTTP/3.0\r\n", Spoken::Tcp),
        ];
        for (bytes, expected) in cases {
            let shown = String::from_utf8_lossy(bytes);
            assert_eq!(classify(bytes), Some(expected), "{shown:?}");
            let known = (1..=bytes.len()).find_map(|end| classify(&bytes[..end]));
            assert_eq!(known, Some(expected), "{shown:?} byte by byte");
        }
        assert_eq!(classify(b"GET /unfinished"), None);
        let long = vec![b'A'; MAX_METHOD_BYTES + 1];
        assert_eq!(classify(&long), Some(Spoken::Tcp));
    }

    #[tokio::test]
    async fn nothing_that_was_looked_at_is_lost() {
        let (mut client, server) = tokio::io::duplex(64);
        let writer = tokio::spawn(async move {
            for byte in b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n" {
                client.write_all(&[*byte]).await.expect("open");
            }
        });
        let mut reader = ReadAhead::new(server);
        assert_eq!(reader.spoken().await.expect("readable"), Spoken::Http1);
        let mut stream = reader.into_stream();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.expect("readable");
        assert_eq!(all, b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n");
        writer.await.expect("wrote");
    }

    #[tokio::test]
    async fn what_was_read_before_a_cancelled_read_still_counts() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut reader = ReadAhead::new(server);
        client.write_all(b"GE").await.expect("open");
        let unknown = tokio::time::timeout(Duration::from_millis(20), reader.spoken()).await;
        assert!(unknown.is_err() && !reader.is_empty(), "{unknown:?}");
        client.write_all(b"T / HTTP/1.1\r\n").await.expect("open");
        assert_eq!(reader.spoken().await.expect("readable"), Spoken::Http1);
    }

    #[tokio::test]
    async fn a_client_that_ends_or_has_a_long_line_is_tcp() {
        let mut ended = ReadAhead::new(b"GET /".as_slice());
        assert_eq!(ended.spoken().await.expect("readable"), Spoken::Tcp);

        let mut line = b"GET /".to_vec();
        line.resize(2 * MAX_DETECTION_BYTES, b'a');
        let mut reader = ReadAhead::new(line.as_slice());
        assert_eq!(reader.spoken().await.expect("readable"), Spoken::Tcp);
        let mut all = Vec::new();
        reader.into_stream().read_to_end(&mut all).await.expect("readable");
        assert_eq!(all.len(), line.len());
    }

    #[test]
    fn a_server_that_speaks_first_speaks_tcp_unless_it_is_one_of_http() {
        let cases: [(&[u8], Spoken); 8] = [
            (b"220 mail ESMTP\r\n", Spoken::Tcp),
            (b"\x4a\x00\x00\x00\x0a8.0.36\x00", Spoken::Tcp),
            (b"\x00\x00\x00\x00\x00", Spoken::Tcp),
            (b"\x00\x00\x00\x04\x01\x00\x00\x00\x00", Spoken::Tcp),
            (b"HTTP server\n", Spoken::Tcp),
            (b"HTTP/1.1 408 Request Timeout\r\n", Spoken::Http1),
            (b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", Spoken::Http2),
            (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03", Spoken::Http2),
        ];
        for (bytes, expected) in cases {
            let known = (0..=bytes.len()).find_map(|end| classify_server(&bytes[..end]));
            assert_eq!(known, Some(expected), "{bytes:?} byte by byte");
            assert_eq!(classify_server(bytes), Some(expected), "{bytes:?}");
        }
    }
}
