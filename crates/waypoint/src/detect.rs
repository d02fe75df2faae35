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

/// A stream with the bytes that were read ahead put back in front.
#[derive(Debug)]
pub(crate) struct Prefixed<S> {
    prefix: Bytes,
    stream: S,
}

/// Reads as far as needed to know what is spoken. A client that says nothing until `timeout` waits for the server,
/// so it is TCP.
///
/// # Errors
/// When reading fails.
pub(crate) async fn any<S>(stream: S, timeout: Duration) -> io::Result<(Spoken, Prefixed<S>)>
where
    S: AsyncRead + Unpin,
{
    let mut reader = Prefix { stream, bytes: BytesMut::new() };
    let spoken = match tokio::time::timeout(timeout, reader.read_until_known(classify)).await {
        Ok(spoken) => spoken?.unwrap_or(Spoken::Tcp),
        Err(_elapsed) => Spoken::Tcp,
    };
    Ok((spoken, reader.into_stream()))
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
    let mut reader = Prefix { stream, bytes: BytesMut::new() };
    let known = tokio::time::timeout(
        timeout,
        reader.read_until_known(|bytes| match preface(bytes) {
            Match::Whole => Some(Spoken::Http2),
            Match::No => Some(Spoken::Http1),
            Match::SoFar => None,
        }),
    );
    let spoken = known.await.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok((spoken.unwrap_or(Spoken::Http1), reader.into_stream()))
}

struct Prefix<S> {
    stream: S,
    bytes: BytesMut,
}

enum Match {
    Whole,
    SoFar,
    No,
}

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

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

fn preface(bytes: &[u8]) -> Match {
    let seen = bytes.len().min(HTTP2_PREFACE.len());
    if bytes[..seen] != HTTP2_PREFACE[..seen] {
        Match::No
    } else if seen == HTTP2_PREFACE.len() {
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

// === impl Prefix ===

impl<S: AsyncRead + Unpin> Prefix<S> {
    /// Nothing when the stream or the bound ended before it was known.
    async fn read_until_known(&mut self, known: impl Fn(&[u8]) -> Option<Spoken>) -> io::Result<Option<Spoken>> {
        while self.bytes.len() < MAX_DETECTION_BYTES {
            if self.stream.read_buf(&mut self.bytes).await? == 0 {
                return Ok(None);
            }
            if let Some(spoken) = known(&self.bytes) {
                return Ok(Some(spoken));
            }
        }
        Ok(None)
    }

    fn into_stream(self) -> Prefixed<S> {
        Prefixed { prefix: self.bytes.freeze(), stream: self.stream }
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
        let (spoken, mut stream) = any(server, Duration::from_secs(5)).await.expect("readable");
        assert_eq!(spoken, Spoken::Http1);
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.expect("readable");
        assert_eq!(all, b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n");
        writer.await.expect("wrote");
    }

    #[tokio::test]
    async fn a_silent_client_is_tcp_and_a_long_line_too() {
        let (_client, server) = tokio::io::duplex(64);
        let (spoken, _) = any(server, Duration::from_millis(20)).await.expect("readable");
        assert_eq!(spoken, Spoken::Tcp);

        let mut line = b"GET /".to_vec();
        line.resize(2 * MAX_DETECTION_BYTES, b'a');
        let (spoken, mut stream) = any(line.as_slice(), Duration::from_secs(5)).await.expect("readable");
        assert_eq!(spoken, Spoken::Tcp);
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.expect("readable");
        assert_eq!(all.len(), line.len());
    }
}
