//! The server: one thread that sends back what comes to [`ECHO_PORT`] and drops what comes to [`SINK_PORT`].

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::event::{
    PollFd, PollFlags, Timespec,
    epoll::{self, CreateFlags, EventData, EventFlags},
    poll,
};

use super::{ECHO_PORT, SINK_PORT};
use crate::pods::Beside;

/// Bytes per read.
const BUFFER_BYTES: usize = 256 * 1024;
/// Events per wait.
const EVENTS: usize = 256;
/// How often the server looks whether it should end.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// What the server has to say while it runs.
#[derive(Debug, Default)]
pub(crate) struct Server {
    received: AtomicU64,
}

/// One open connection.
struct Connection {
    stream: TcpStream,
    echo: bool,
}

// === impl Server ===

impl Server {
    /// Bytes that came to [`SINK_PORT`].
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Serves until it's over.
    pub(crate) fn run(&self, beside: &Beside) -> io::Result<()> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let mut listeners = Vec::new();
        for port in [ECHO_PORT, SINK_PORT] {
            let listener = listen(port)?;
            watch(&epoll, &listener)?;
            listeners.push(listener);
        }
        beside.set_ready();
        let mut connections: HashMap<u64, Connection> = HashMap::new();
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut events = Vec::with_capacity(EVENTS);
        while !beside.is_over() {
            events.clear();
            match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&LOOK)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let key = event.data.u64();
                if let Some(at) = listeners.iter().position(|listener| key_of(listener) == key) {
                    accept(&epoll, &listeners[at], at == 0, &mut connections)?;
                } else if let Some(connection) = connections.get_mut(&key)
                    && !self.serve(connection, &mut buffer)
                {
                    connections.remove(&key);
                }
            }
        }
        Ok(())
    }

    /// Handles what there is to read; false once the connection is over.
    fn serve(&self, connection: &mut Connection, buffer: &mut [u8]) -> bool {
        match connection.stream.read(buffer) {
            Ok(0) => false,
            Ok(count) if connection.echo => write_all(&mut connection.stream, &buffer[..count]).is_ok(),
            Ok(count) => {
                self.received.fetch_add(count as u64, Ordering::Relaxed);
                true
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)?;
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
    rustix::net::listen(&socket, 4096)?;
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn accept(
    epoll: &OwnedFd,
    listener: &TcpListener,
    echo: bool,
    connections: &mut HashMap<u64, Connection>,
) -> io::Result<()> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                watch(epoll, &stream)?;
                connections.insert(key_of(&stream), Connection { stream, echo });
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // The client may have gone away already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error),
        }
    }
}

/// What comes back is small, or the client reads it at once: waiting here keeps the loop simple.
fn write_all(stream: &mut TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(stream, PollFlags::OUT)], Some(&Timespec { tv_sec: 5, tv_nsec: 0 }))?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn watch(epoll: &OwnedFd, socket: &(impl AsFd + AsRawFd)) -> io::Result<()> {
    Ok(epoll::add(epoll, socket, EventData::new_u64(key_of(socket)), EventFlags::IN)?)
}

/// A descriptor is never negative.
fn key_of(socket: &impl AsRawFd) -> u64 {
    u64::from(socket.as_raw_fd().unsigned_abs())
}
