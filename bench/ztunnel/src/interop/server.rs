//! The server that interoperation is tried with: one thread per connection, so that each can wait as it likes.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use crate::pods::Beside;

/// Sends back what it gets.
pub(crate) const ECHO: u16 = 7000;
/// Reads to the end, and only then says how much it was and its sum.
pub(crate) const TALLY: u16 = 7002;
/// Speaks first: the address of its client; then closes.
pub(crate) const GREETING: u16 = 7003;
/// In the service's ports, and nobody listens.
pub(crate) const CLOSED: u16 = 7004;

const LOOK: Duration = Duration::from_millis(10);

/// Serves until it's over.
pub(crate) fn run(beside: &Beside) -> io::Result<()> {
    let mut listeners = Vec::new();
    for (port, serve) in [(ECHO, echo as fn(TcpStream) -> io::Result<()>), (TALLY, tally), (GREETING, greet)] {
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
        listener.set_nonblocking(true)?;
        listeners.push((listener, serve));
    }
    beside.set_ready();
    while !beside.is_over() {
        let mut idle = true;
        for (listener, serve) in &listeners {
            let Ok((stream, _)) = listener.accept() else { continue };
            stream.set_nonblocking(false)?;
            idle = false;
            let serve = *serve;
            // What goes wrong on one connection its client sees.
            std::thread::spawn(move || serve(stream).is_ok());
        }
        if idle {
            std::thread::sleep(LOOK);
        }
    }
    Ok(())
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 64 * 1024];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count])?;
    }
}

fn tally(mut stream: TcpStream) -> io::Result<()> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    stream.write_all(summary(&bytes).as_bytes())?;
    stream.shutdown(Shutdown::Write)
}

fn greet(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(stream.peer_addr()?.ip().to_string().as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Length and sum: enough to see bytes lost, doubled, changed or out of order.
pub(crate) fn summary(bytes: &[u8]) -> String {
    let sum = bytes.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    format!("{} {sum:016x}", bytes.len())
}
