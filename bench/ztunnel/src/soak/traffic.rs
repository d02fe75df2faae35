//! What runs meanwhile: exchanges of every kind, connections that stay, and the servers.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use super::churn::{Client, Journal, PORTS, Server, Target};

/// An exchange that takes longer hangs, whatever the verdict should be.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause of a client after each exchange.
const PAUSE: Duration = Duration::from_millis(15);
/// Pause between two exchanges on a connection that stays.
const STEADY_PAUSE: Duration = Duration::from_millis(200);
/// How often an open connection is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// Bytes of most exchanges, and of every [`LARGE_EVERY`]th.
const SMALL: usize = 64;
const LARGE: usize = 192 * 1024;
const LARGE_EVERY: u64 = 32;
/// Largest message a server takes.
const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Wrong outcomes that are told in full.
const MAX_TOLD: usize = 20;

/// What all clients saw.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Seen {
    pub(crate) exchanges: u64,
    pub(crate) answered: u64,
    pub(crate) refused: u64,
    /// Open connections that were cut because a policy came to deny them.
    pub(crate) cut: u64,
    /// From the change of the policy until the last of them noticed, in milliseconds.
    pub(crate) slowest_cut_ms: u64,
    /// Exchanges on connections that stayed for the whole run.
    pub(crate) steady_exchanges: u64,
    pub(crate) wrong: u64,
    /// The first of them.
    pub(crate) told: Vec<String>,
}

/// What clients and servers share.
pub(crate) struct Traffic<'a> {
    pub(crate) journal: &'a Journal,
    seen: Mutex<Seen>,
    stop_clients: AtomicBool,
    stop_servers: AtomicBool,
}

/// What came of an exchange.
enum Outcome {
    Answered(Server),
    Refused,
}

// === impl Traffic ===

impl<'a> Traffic<'a> {
    pub(crate) fn new(journal: &'a Journal) -> Self {
        let (stop_clients, stop_servers) = Default::default();
        Self { journal, seen: Mutex::default(), stop_clients, stop_servers }
    }

    pub(crate) fn seen(&self) -> Seen {
        self.lock().clone()
    }

    pub(crate) fn end_clients(&self) {
        self.stop_clients.store(true, Ordering::Relaxed);
    }

    pub(crate) fn end_servers(&self) {
        self.stop_servers.store(true, Ordering::Relaxed);
    }

    /// Calls everything that this client may call, over and over, on a new connection each time. In its network.
    pub(crate) fn call(&self, client: Client) -> io::Result<()> {
        let targets = client.targets().iter().flat_map(|target| PORTS.map(|port| (client, *target, port)));
        let calls: Vec<_> = targets.collect();
        for (number, call) in (0_u64..).zip(calls.iter().cycle()) {
            if self.stop_clients.load(Ordering::Relaxed) {
                return Ok(());
            }
            let bytes = if number % LARGE_EVERY == LARGE_EVERY - 1 { LARGE } else { SMALL };
            let from = Instant::now();
            let outcome = once(call.1.ip(), call.2, bytes);
            self.judge(*call, outcome, from);
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Talks on one connection that no policy ever denies: it may never end.
    pub(crate) fn stay(&self, client: Client, server: Server, port: u16) -> io::Result<()> {
        let mut stream = connect(server.ip(), port)?;
        while !self.stop_clients.load(Ordering::Relaxed) {
            match exchange(&mut stream, SMALL) {
                Ok(Outcome::Answered(answering)) if answering == server => self.lock().steady_exchanges += 1,
                Ok(Outcome::Answered(other)) => self.tell(format!("a connection to {server:?} came to {other:?}")),
                Ok(Outcome::Refused) | Err(_) => {
                    self.tell(format!("a connection of {client:?} to {server:?}:{port}, never denied, was cut"));
                    stream = connect(server.ip(), port)?;
                }
            }
            std::thread::sleep(STEADY_PAUSE);
        }
        Ok(())
    }

    /// Keeps a connection open whenever it is allowed: it must end when it comes to be denied, and not before.
    pub(crate) fn hold(&self, client: Client, server: Server, port: u16) -> io::Result<()> {
        while !self.stop_clients.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK);
            let from = Instant::now();
            if !self.journal.may_live(client, server, port, from) {
                continue;
            }
            let Ok(mut stream) = connect(server.ip(), port) else { continue };
            let outcome = exchange(&mut stream, SMALL);
            let answered = matches!(outcome, Ok(Outcome::Answered(_)));
            self.judge((client, Target::Pod(server), port), outcome, from);
            if answered {
                self.watch(client, server, port, &mut stream)?;
            }
        }
        Ok(())
    }

    fn watch(&self, client: Client, server: Server, port: u16, stream: &mut TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(LOOK))?;
        while !self.stop_clients.load(Ordering::Relaxed) {
            let looked = Instant::now();
            match stream.read(&mut [0]) {
                Err(error) if is_late(&error) => {
                    if !self.journal.may_live(client, server, port, looked) {
                        self.tell(format!(
                            "a connection of {client:?} to {server:?}:{port} that is denied now lives on"
                        ));
                        return Ok(());
                    }
                }
                _ => {
                    let cut = Instant::now();
                    let Some(since) = self.journal.denied_since(client, server, port, cut) else {
                        self.tell(format!("a connection of {client:?} to {server:?}:{port} that is allowed was cut"));
                        return Ok(());
                    };
                    let after = u64::try_from(cut.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX);
                    let mut seen = self.lock();
                    seen.cut += 1;
                    seen.slowest_cut_ms = seen.slowest_cut_ms.max(after);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn judge(&self, call: (Client, Target, u16), outcome: io::Result<Outcome>, from: Instant) {
        let to = Instant::now();
        let answer = match outcome {
            Ok(Outcome::Answered(server)) => Some(server),
            Ok(Outcome::Refused) => None,
            Err(error) => {
                return self.tell(format!("{call:?}: {error} after {:?}", to.saturating_duration_since(from)));
            }
        };
        let mut seen = self.lock();
        seen.exchanges += 1;
        *(if answer.is_some() { &mut seen.answered } else { &mut seen.refused }) += 1;
        drop(seen);
        if !self.journal.explains(call, answer, (from, to)) {
            self.tell(format!("{call:?}: {answer:?} after {:?}", to.saturating_duration_since(from)));
        }
    }

    fn tell(&self, what: String) {
        let mut seen = self.lock();
        seen.wrong += 1;
        if seen.told.len() < MAX_TOLD {
            println!("  WRONG: {what}");
            seen.told.push(what);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers everybody. In the server's network.
    pub(crate) fn serve(&self, server: Server, ready: &AtomicBool) -> io::Result<()> {
        let mut listeners = Vec::new();
        for port in PORTS {
            let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
            listener.set_nonblocking(true)?;
            listeners.push(listener);
        }
        ready.store(true, Ordering::Release);
        while !self.stop_servers.load(Ordering::Relaxed) {
            let mut waiting: Vec<_> = listeners.iter().map(|listener| PollFd::new(listener, PollFlags::IN)).collect();
            match poll(&mut waiting, Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 })) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for listener in &listeners {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(false)?;
                    // What goes wrong on one connection its client sees.
                    std::thread::spawn(move || answer(stream, server).is_ok());
                }
            }
        }
        Ok(())
    }
}

fn connect(ip: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((ip, port)), EXCHANGE_TIMEOUT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(EXCHANGE_TIMEOUT))?;
    stream.set_write_timeout(Some(EXCHANGE_TIMEOUT))?;
    Ok(stream)
}

/// An exchange on a connection of its own. Where the refusal is quick, there is no connection to begin with.
fn once(ip: Ipv4Addr, port: u16, bytes: usize) -> io::Result<Outcome> {
    match connect(ip, port) {
        Ok(mut stream) => exchange(&mut stream, bytes),
        Err(error) if is_late(&error) => Err(error),
        Err(_) => Ok(Outcome::Refused),
    }
}

/// A length and as many bytes, there and back; the answer begins with the server's letter. What never ends is an error.
fn exchange(stream: &mut TcpStream, bytes: usize) -> io::Result<Outcome> {
    let message: Vec<u8> = (0..bytes).map(|at| at.to_le_bytes()[0]).collect();
    let mut answer = vec![0; bytes + 1];
    let length = u32::try_from(bytes).unwrap_or_default().to_be_bytes();
    let talk = stream.write_all(&[&length[..], &message].concat()).and_then(|()| stream.read_exact(&mut answer));
    match talk {
        Ok(()) => {
            let server = Server::ALL.into_iter().find(|server| server.letter() == answer[0]);
            let server = server.filter(|_| answer[1..] == message[..]);
            server.map(Outcome::Answered).ok_or_else(|| io::Error::other("other bytes came back"))
        }
        Err(error) if is_late(&error) => Err(io::Error::new(io::ErrorKind::TimedOut, "it hangs")),
        Err(_) => Ok(Outcome::Refused),
    }
}

fn answer(mut stream: TcpStream, server: Server) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE_BYTES {
            return Err(io::Error::other("a message that is too long"));
        }
        let mut message = vec![server.letter(); length + 1];
        stream.read_exact(&mut message[1..])?;
        stream.write_all(&message)?;
    }
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
