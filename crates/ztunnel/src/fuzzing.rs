//! Entries for fuzzing; nothing here is for use.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::socks::{self, Request};

pub use crate::{admin::fuzzing::logging, application_tunnel::header as proxy_header, dns::fuzzing as dns};

/// A client that sends these bytes in pieces, then no more.
struct Client<'b> {
    bytes: &'b [u8],
    piece: usize,
    answers: Vec<u8>,
}

/// Takes any bytes for what a SOCKS5 client says: the pieces they come in make no difference, nothing behind the request
/// is read, and what was understood is what stands there.
///
/// # Panics
/// When that doesn't hold.
pub fn socks5(bytes: &[u8]) {
    let (understood, rest, answers) = asked(bytes, bytes.len());
    assert_eq!(asked(bytes, 1), (understood.clone(), rest, answers.clone()), "byte by byte");
    let Some(request) = understood else { return };
    assert_eq!(answers, [5, 0], "no authentication was agreed on");
    assert_eq!((Some(request), bytes.len() - rest), meant(bytes));
}

/// What stands there, and how long it is: a greeting with methods, then version, command, a spare byte, the kind of
/// destination, the destination and its port.
fn meant(bytes: &[u8]) -> (Option<Request>, usize) {
    let at = 2 + usize::from(bytes[1]) + 4;
    let (host, end) = match bytes[at - 1] {
        1 => (Ok(IpAddr::from([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])), at + 4),
        4 => {
            (<[u8; 16]>::try_from(&bytes[at..at + 16]).map(|ip| IpAddr::from(ip).to_canonical()).map_err(drop), at + 16)
        }
        _ => (Err(()), at + 1 + usize::from(bytes[at])),
    };
    let port = u16::from_be_bytes([bytes[end], bytes[end + 1]]);
    let named = || std::str::from_utf8(&bytes[at + 1..end]).ok();
    let request = match host.or_else(|()| named().unwrap_or_default().parse().map_err(drop)) {
        Ok(ip) => Some(Request::Address(SocketAddr::new(ip, port))),
        Err(()) => named().map(|name| Request::Name(name.to_owned(), port)),
    };
    (request, end + 2)
}

/// What is understood, how many bytes are left unread, and what was answered.
fn asked(bytes: &[u8], piece: usize) -> (Option<Request>, usize, Vec<u8>) {
    let mut client = Client { bytes, piece, answers: Vec::new() };
    let request = match pin!(socks::request(&mut client)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(request) => request.ok(),
        Poll::Pending => panic!("it waits for what never comes"),
    };
    (request, client.bytes.len(), client.answers)
}

// === impl Client ===

impl AsyncRead for Client<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (part, rest) = self.bytes.split_at(self.piece.min(self.bytes.len()).min(buffer.remaining()));
        buffer.put_slice(part);
        self.bytes = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Client<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.answers.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
