//! What a client does, and what it must see, whichever proxies carry it.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use super::server::{CLOSED, ECHO, GREETING, TALLY, summary};
use crate::{
    configuration::SERVICE,
    pods::{CLIENT, SERVER},
};

const TIMEOUT: Duration = Duration::from_secs(20);
/// Several windows and frames of every kind.
const MUCH: usize = 24 * 1024 * 1024;
const MANY: usize = 300;

type Check = fn() -> io::Result<()>;

/// Name of the check, and the check, which runs in the client's network.
pub(crate) const EXCHANGES: [(&str, Check); 8] = [
    ("bytes come back, by the pod's address", by_pod),
    ("bytes come back, by the service's address", by_service),
    ("the server sees the client's address", address),
    ("the server may speak first", address_by_service),
    ("what a client sends before it shuts down arrives, and the answer comes after", half_close),
    ("24 MiB arrive unchanged", much),
    ("300 connections at once", many),
    ("a port where nobody listens ends the connection", closed),
];

/// Whether a connection to the server at this port gets an answer.
pub(crate) fn answers(port: u16) -> bool {
    match port {
        TALLY => half_close().is_ok(),
        port => echo(SERVER, port).is_ok(),
    }
}

fn by_pod() -> io::Result<()> {
    echo(SERVER, ECHO)
}

fn by_service() -> io::Result<()> {
    echo(SERVICE, ECHO)
}

fn echo(ip: Ipv4Addr, port: u16) -> io::Result<()> {
    let mut stream = connect(ip, port)?;
    stream.write_all(b"hello")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    same(&answer, b"hello")
}

fn address() -> io::Result<()> {
    greeting(SERVER)
}

fn address_by_service() -> io::Result<()> {
    greeting(SERVICE)
}

fn greeting(ip: Ipv4Addr) -> io::Result<()> {
    let mut answer = Vec::new();
    connect(ip, GREETING)?.read_to_end(&mut answer)?;
    same(&answer, CLIENT.to_string().as_bytes())
}

fn half_close() -> io::Result<()> {
    tally(b"a few bytes")
}

fn much() -> io::Result<()> {
    let bytes: Vec<u8> = (0..MUCH).map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
    tally(&bytes)
}

fn tally(bytes: &[u8]) -> io::Result<()> {
    let mut stream = connect(SERVER, TALLY)?;
    stream.write_all(bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    same(&answer, summary(bytes).as_bytes())
}

fn many() -> io::Result<()> {
    let mut open = (0..MANY).map(|_| connect(SERVER, ECHO)).collect::<io::Result<Vec<_>>>()?;
    for stream in &mut open {
        stream.write_all(b"all")?;
    }
    for stream in &mut open {
        let mut answer = [0; 3];
        stream.read_exact(&mut answer)?;
        same(&answer, b"all")?;
    }
    Ok(())
}

/// The proxy accepts before it knows, so the connection is made; it must end without a byte.
fn closed() -> io::Result<()> {
    let mut stream = connect(SERVER, CLOSED)?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => same(&answer, b""),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error),
    }
}

fn connect(ip: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((ip, port)), TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

fn same(got: &[u8], wanted: &[u8]) -> io::Result<()> {
    if got == wanted {
        return Ok(());
    }
    let show = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(64)]).into_owned();
    Err(io::Error::other(format!("got {:?}, not {:?}", show(got), show(wanted))))
}
