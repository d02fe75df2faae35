//! Tells a refused client why, where its first bytes show HTTP/1: by a 403, since a reset says nothing to whoever reads an
//! error page. Any other client sees the reset. What is read here is read for this alone; it goes nowhere.

use std::{io, time::Duration};

use ambit_hbone::socket;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    limits::{
        EXPLANATION_LINGER, EXPLANATION_WAIT, MAX_DISCARDED_BYTES, MAX_EXPLANATION_BYTES, MAX_REQUEST_LINE_BYTES,
    },
    pod::PodProxy,
};

/// What a client's first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    /// The line of an HTTP/1 request; to HEAD nobody answers with a body.
    Request { head: bool },
    /// Something else.
    Other,
    /// It may become one or the other.
    Unfinished,
}

/// Answers an HTTP/1 client with 403 and the reason, and resets any other; also one that says nothing for a while, and
/// those past the bound of clients that are told at a time.
pub(crate) async fn explain(pod: &PodProxy, mut client: TcpStream, why: &str) {
    let shared = &pod.shared;
    let place = shared.config.explain_refusals.then(|| shared.explanations.try_acquire().ok()).flatten();
    if place.is_none() || tell(&mut client, why, EXPLANATION_WAIT).await.is_err() {
        socket::reset_on_close(&client);
    }
}

/// Waits this long for a request, answers it, and lets the client read the answer.
async fn tell<S: AsyncRead + AsyncWrite + Unpin>(client: &mut S, why: &str, wait: Duration) -> io::Result<()> {
    let head = timeout(wait, request(client)).await??;
    let answered = timeout(EXPLANATION_LINGER, async {
        client.write_all(&response(why, head)).await?;
        client.shutdown().await
    });
    answered.await??;
    // Closed with bytes unread, the connection would be reset, and the answer lost with it.
    let mut rest = client.take(MAX_DISCARDED_BYTES);
    let _ = timeout(EXPLANATION_LINGER, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
    Ok(())
}

/// Reads a request's line, and says whether it is a HEAD.
async fn request<S: AsyncRead + Unpin>(client: &mut S) -> io::Result<bool> {
    let mut line = Vec::new();
    let mut client = client.take(MAX_REQUEST_LINE_BYTES);
    loop {
        if client.read_buf(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match first(&line) {
            First::Request { head } => return Ok(head),
            First::Other => return Err(io::ErrorKind::InvalidData.into()),
            First::Unfinished => {}
        }
    }
}

/// What these bytes begin.
fn first(bytes: &[u8]) -> First {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let line = &bytes[..end.unwrap_or(bytes.len())];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut parts = line.split(|byte| *byte == b' ');
    let method = parts.next().unwrap_or_default();
    // The methods in use; a protocol of lines may have lower-case words.
    if !method.iter().all(|byte| byte.is_ascii_uppercase() || *byte == b'-') {
        return First::Other;
    }
    if !line.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ') {
        return First::Other;
    }
    if end.is_none() {
        return First::Unfinished;
    }
    match (parts.next(), parts.next(), parts.next()) {
        (Some(target), Some(b"HTTP/1.1" | b"HTTP/1.0"), None) if !target.is_empty() && !method.is_empty() => {
            First::Request { head: method == b"HEAD" }
        }
        _ => First::Other,
    }
}

fn response(why: &str, head: bool) -> Vec<u8> {
    let why = &why[..why.floor_char_boundary(MAX_EXPLANATION_BYTES)];
    let mut body: String = why.chars().map(|char| if char.is_control() { '?' } else { char }).collect();
    body.push('\n');
    let mut response = format!(
        "HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\
         x-content-type-options: nosniff\r\nconnection: close\r\n\r\n",
        body.len()
    );
    if !head {
        response.push_str(&body);
    }
    response.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than a test takes.
    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn the_line_of_a_request_is_known_and_nothing_else() {
        let request = First::Request { head: false };
        let cases: [(&[u8], First); 25] = [
            (b"GET / HTTP/1.1\r\n", request),
            (b"GET / HTTP/1.1\r\nhost: a\r\n\r\nbody \xff\0", request),
            (b"GET / HTTP/1.0\n", request),
            (b"POST http://a.b/c?d HTTP/1.1\r\n", request),
            (b"OPTIONS * HTTP/1.1\r\n", request),
            (b"CONNECT a:443 HTTP/1.1\r\n", request),
            (b"M-SEARCH * HTTP/1.1\r\n", request),
            (b"HEAD /x HTTP/1.1\r\n", First::Request { head: true }),
            (b"", First::Unfinished),
            (b"G", First::Unfinished),
            (b"GET / HTTP/1.1", First::Unfinished),
            (b"GET / HTTP/1.1\r", First::Unfinished),
            (b"GET /a/very/long", First::Unfinished),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", First::Other),
            (b"GET / HTTP/1.2\r\n", First::Other),
            (b"GET /\r\n", First::Other),
            (b"GET  HTTP/1.1\r\n", First::Other),
            (b" / HTTP/1.1\r\n", First::Other),
            (b"GET / x HTTP/1.1\r\n", First::Other),
            (b"get / HTTP/1.1\r\n", First::Other),
            (b"GET /\x01 HTTP/1.1\r\n", First::Other),
            (b"\x16\x03\x01", First::Other),
            (b"HELO example.org\r\n", First::Other),
            (b"PING\r\n", First::Other),
            (b"\r\n", First::Other),
        ];
        for (bytes, expected) in cases {
            assert_eq!(first(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn the_reason_stays_in_its_place() {
        let text = String::from_utf8(response("no\r\nset-cookie: a\u{1b}", false)).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert_eq!(body, "no??set-cookie: a?\n");
        assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\n") && head.contains("content-length: 19\r\n"), "{head}");
        assert!(head.ends_with("connection: close"), "{head}");
        assert!(response("no", true).ends_with(b"\r\n\r\n"), "an answer to HEAD has no body");
        let long = response(&"\u{e9}".repeat(MAX_EXPLANATION_BYTES), false);
        assert!(long.len() < MAX_EXPLANATION_BYTES + 256);
    }

    #[tokio::test]
    async fn a_request_in_pieces_is_answered_and_what_follows_is_discarded() {
        let (mut client, mut server) = tokio::io::duplex(64);
        let refused = tokio::spawn(async move { tell(&mut server, "no", LONG).await });
        for piece in [&b"GE"[..], b"T /a HT", b"TP/1.1\r", b"\nhost: a\r\n\r\n"] {
            client.write_all(piece).await.expect("sent");
        }
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.ends_with("\r\n\r\nno\n"), "{answer}");
        client.write_all(&[b'x'; 4096]).await.expect("still taken");
        drop(client);
        refused.await.expect("no panic").expect("told");
    }

    #[tokio::test]
    async fn silence_and_a_line_without_end_are_not_waited_for() {
        let (client, mut server) = tokio::io::duplex(64);
        assert!(tell(&mut server, "no", Duration::from_millis(10)).await.is_err());
        drop(client);
        let (mut client, mut server) = tokio::io::duplex(64);
        let refused = tokio::spawn(async move { tell(&mut server, "no", LONG).await });
        let line = vec![b'A'; MAX_REQUEST_LINE_BYTES as usize];
        client.write_all(&line).await.expect("taken up to the bound");
        assert!(refused.await.expect("no panic").is_err());
    }
}
