//! Per exchange of 64 bytes on one connection: TCP, TLS, and two of the plainest relays with TLS between them.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    ops::DerefMut,
};

use rustls::{ConnectionCommon, SideData, Stream, crypto::aws_lc_rs::kx_group};

use super::{Cost, Work, least, repeat, tls::Ends};

const BYTES: usize = 64;

pub(super) fn measure() -> io::Result<Vec<Cost>> {
    let ends = Ends::new(kx_group::X25519)?;
    let time = |work: Work| Ok(work.seconds * 1e6 / work.amount);
    let cpu = |work: Work| Ok(work.processor_seconds * 1e6 / work.amount);
    let cost = |what, value, unit| Cost { what, value, unit };
    Ok(vec![
        cost("exchange over TCP, loopback", least(|| direct().and_then(time))?, "us"),
        cost("exchange over TCP, both ends", least(|| direct().and_then(cpu))?, "CPU us"),
        cost("exchange sealed and opened both ways, in memory", least(|| in_memory(&ends).and_then(cpu))?, "CPU us"),
        cost("exchange through two bare relays with rustls between", least(|| relayed(&ends).and_then(time))?, "us"),
        cost("the same, all four ends", least(|| relayed(&ends).and_then(cpu))?, "CPU us"),
    ])
}

fn direct() -> io::Result<Work> {
    let (mut client, server) = pair()?;
    client.set_nodelay(true)?;
    std::thread::scope(|scope| {
        scope.spawn(|| echo(server));
        let work = ping(&mut client);
        client.shutdown(Shutdown::Both)?;
        work
    })
}

fn in_memory(ends: &Ends) -> io::Result<Work> {
    let (mut client, mut server) = ends.established()?;
    let mut wire = Vec::with_capacity(256);
    repeat(|| {
        pass(&mut client, &mut server, &mut wire)?;
        pass(&mut server, &mut client, &mut wire)?;
        Ok(1.0)
    })
}

fn pass<A: SideData, B: SideData>(
    from: &mut ConnectionCommon<A>,
    to: &mut ConnectionCommon<B>,
    wire: &mut Vec<u8>,
) -> io::Result<()> {
    let mut message = [7; BYTES];
    from.writer().write_all(&message)?;
    wire.clear();
    from.write_tls(wire)?;
    to.read_tls(&mut wire.as_slice())?;
    to.process_new_packets().map_err(io::Error::other)?;
    to.reader().read_exact(&mut message)
}

/// Application, relay, TLS, relay, application: one thread each, which reads, then writes.
fn relayed(ends: &Ends) -> io::Result<Work> {
    let (mut client, near) = pair()?;
    let (near_out, far_in) = pair()?;
    let (far, server) = pair()?;
    let (mut tls_client, mut tls_server) = (ends.client()?, ends.server()?);
    std::thread::scope(|scope| {
        scope.spawn(|| echo(server));
        scope.spawn(move || relay(true, near, near_out, &mut tls_client));
        scope.spawn(move || relay(false, far, far_in, &mut tls_server));
        let work = ping(&mut client);
        client.shutdown(Shutdown::Both)?;
        work
    })
}

/// Exchanges take turns, so one thread serves both directions. At the near relay the application speaks first.
fn relay<Data: SideData>(
    near: bool,
    mut plain: TcpStream,
    mut sealed: TcpStream,
    connection: &mut impl DerefMut<Target = ConnectionCommon<Data>>,
) -> io::Result<()> {
    let mut buffer = [0; BYTES];
    let mut step = || -> io::Result<()> {
        if near {
            plain.read_exact(&mut buffer)?;
            Stream::new(connection, &mut sealed).write_all(&buffer)?;
            Stream::new(connection, &mut sealed).read_exact(&mut buffer)?;
            plain.write_all(&buffer)
        } else {
            Stream::new(connection, &mut sealed).read_exact(&mut buffer)?;
            plain.write_all(&buffer)?;
            plain.read_exact(&mut buffer)?;
            Stream::new(connection, &mut sealed).write_all(&buffer)
        }
    };
    loop {
        step()?;
    }
}

fn ping(client: &mut TcpStream) -> io::Result<Work> {
    let mut message = [7; BYTES];
    repeat(|| {
        client.write_all(&message)?;
        client.read_exact(&mut message)?;
        Ok(1.0)
    })
}

fn echo(mut server: TcpStream) -> io::Result<()> {
    let mut message = [0; BYTES];
    loop {
        server.read_exact(&mut message)?;
        server.write_all(&message)?;
    }
}

fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    Ok((client, server))
}
