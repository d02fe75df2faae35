//! Per connection: TCP's own, and the handshake of mutual TLS.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
};

use rustls::crypto::aws_lc_rs::kx_group;

use super::{Cost, Work, least, repeat, tls::Ends};

pub(super) fn measure() -> io::Result<Vec<Cost>> {
    let cpu = |work: Work| Ok(work.processor_seconds * 1e6 / work.amount);
    let cost = |what, value| Cost { what, value, unit: "CPU us" };
    let handshake = |ends: Ends| {
        least(|| {
            repeat(|| {
                ends.established()?;
                Ok(1.0)
            })
            .and_then(cpu)
        })
    };
    Ok(vec![
        cost("TCP connect, accept and close, loopback", least(|| tcp().and_then(cpu))?),
        cost("mutual TLS handshake, both ends, X25519", handshake(Ends::new(kx_group::X25519)?)?),
        cost("mutual TLS handshake, both ends, X25519MLKEM768", handshake(Ends::new(kx_group::X25519MLKEM768)?)?),
    ])
}

/// The server closes first, and at once, so that the client's ports aren't used up.
fn tcp() -> io::Result<Work> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let address = listener.local_addr()?;
    repeat(|| {
        let client = TcpStream::connect(address)?;
        let (server, _) = listener.accept()?;
        drop(server);
        drop(client);
        Ok(1.0)
    })
}
