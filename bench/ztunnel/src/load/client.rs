//! The client: exchanges on open connections, connections one after the other, idle ones, and bulk.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, SocketAddrV4, TcpStream},
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
    },
    net::{AddressFamily, SocketFlags, SocketType},
};

use super::samples::Samples;

/// Connections are open and warm before exchanges count.
const WARM_UP: Duration = Duration::from_millis(300);
/// More failed connections than this end a measurement: its figure would mean nothing.
const MOST_FAILURES: u64 = 1_000;
/// A connection that takes longer than this hangs. Shorter than the shortest measurement of connections.
const STALL: Duration = Duration::from_millis(1_500);
/// Bytes per write in bulk.
const BULK_BYTES: usize = 128 * 1024;
/// How long an idle connection may take to be made and answer.
const HOLD_TIMEOUT: Duration = Duration::from_secs(15);
const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// What a client saw.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Operations that succeeded, by second since the start.
    pub(crate) by_second: Vec<u64>,
    /// How long the counted part lasted.
    pub(crate) seconds: f64,
    /// Connections that failed.
    pub(crate) failures: u64,
    /// Connections that had waited for longer than [`STALL`] when it ended.
    pub(crate) stalled: u64,
    samples: Samples,
}

/// How long to go on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    Time(Duration),
    Count(u64),
}

/// One of the client's connections.
struct Slot {
    socket: TcpStream,
    since: Instant,
    sent: usize,
    got: usize,
    connected: bool,
}

struct Client {
    epoll: OwnedFd,
    target: SocketAddrV4,
    message: Vec<u8>,
    buffer: Vec<u8>,
    again: bool,
    outcome: Outcome,
}

/// Sends `size` bytes and waits for them on each of `connections` open connections, over and over.
pub(crate) fn exchange(
    target: SocketAddrV4,
    size: usize,
    connections: usize,
    duration: Duration,
) -> io::Result<Outcome> {
    Client::new(target, size, false)?.run(connections, Until::Time(duration))
}

/// Connects, sends a byte, waits for it, closes, over and over on `parallel` tracks. The client closes first.
pub(crate) fn connect(target: SocketAddrV4, parallel: usize, until: Until) -> io::Result<Outcome> {
    Client::new(target, 1, true)?.run(parallel, until)
}

/// Opens `count` connections, each of which has carried one exchange.
pub(crate) fn hold(target: SocketAddrV4, count: usize) -> io::Result<Vec<TcpStream>> {
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(target), HOLD_TIMEOUT)?;
        stream.set_read_timeout(Some(HOLD_TIMEOUT))?;
        let mut buffer = [7; 64];
        stream.write_all(&buffer)?;
        stream.read_exact(&mut buffer)?;
        held.push(stream);
    }
    Ok(held)
}

/// Sends on `streams` connections as fast as they take it until `stop`.
pub(crate) fn bulk(target: SocketAddrV4, streams: usize, stop: &AtomicBool) -> io::Result<()> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let mut open = Vec::with_capacity(streams);
    for index in 0..streams {
        let stream = TcpStream::connect_timeout(&SocketAddr::V4(target), HOLD_TIMEOUT)?;
        stream.set_nonblocking(true)?;
        epoll::add(&epoll, &stream, EventData::new_u64(index as u64), EventFlags::OUT)?;
        open.push(stream);
    }
    let bytes = vec![0x5a; BULK_BYTES];
    let mut events = Vec::with_capacity(streams);
    while !stop.load(Ordering::Relaxed) {
        events.clear();
        wait(&epoll, &mut events)?;
        for event in &events {
            match open[index_of(event)].write(&bytes) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

// === impl Outcome ===

impl Outcome {
    /// Operations counted.
    pub(crate) fn operations(&self) -> u64 {
        self.samples.len() as u64
    }

    pub(crate) fn per_second(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 operations")]
        let operations = self.operations() as f64;
        operations / self.seconds
    }

    pub(crate) fn quantile_us(&mut self, share: f64) -> f64 {
        self.samples.quantile_us(share)
    }
}

// === impl Until ===

impl Until {
    fn is_over(self, start: Instant, done: u64) -> bool {
        match self {
            Self::Time(duration) => start.elapsed() >= duration,
            Self::Count(count) => done >= count,
        }
    }
}

// === impl Client ===

impl Client {
    fn new(target: SocketAddrV4, size: usize, again: bool) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self {
            epoll,
            target,
            message: vec![0x5a; size],
            buffer: vec![0; 64 * 1024],
            again,
            outcome: Outcome::default(),
        })
    }

    fn run(mut self, connections: usize, until: Until) -> io::Result<Outcome> {
        let begin = Instant::now();
        let mut slots = Vec::with_capacity(connections);
        for index in 0..connections {
            slots.push(self.dial(index as u64)?);
        }
        // Exchanges count once every connection is warm; connections count from the first.
        let mut counted_from = self.again.then_some(begin);
        let mut events = Vec::with_capacity(256);
        while !until.is_over(begin, self.outcome.operations()) {
            events.clear();
            wait(&self.epoll, &mut events)?;
            if counted_from.is_none() && begin.elapsed() >= WARM_UP {
                self.outcome.samples.clear();
                counted_from = Some(Instant::now());
            }
            for event in &events {
                let index = index_of(event);
                self.advance(&mut slots[index], index as u64, event.flags, begin)?;
            }
        }
        self.outcome.seconds = counted_from.unwrap_or(begin).elapsed().as_secs_f64();
        self.outcome.stalled = slots.iter().filter(|slot| slot.since.elapsed() >= STALL).count() as u64;
        Ok(self.outcome)
    }

    fn advance(&mut self, slot: &mut Slot, index: u64, flags: EventFlags, begin: Instant) -> io::Result<()> {
        if !slot.connected {
            if slot.socket.take_error()?.is_some() {
                return self.fail(slot, index);
            }
            slot.connected = true;
            if !self.again {
                slot.since = Instant::now();
            }
            self.push(slot);
            return Ok(epoll::modify(&self.epoll, &slot.socket, EventData::new_u64(index), EventFlags::IN)?);
        }
        if !flags.intersects(EventFlags::IN | EventFlags::ERR | EventFlags::HUP) {
            return Ok(());
        }
        match slot.socket.read(&mut self.buffer) {
            Ok(count) if count > 0 => slot.got += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Ok(_) | Err(_) => return self.fail(slot, index),
        }
        self.push(slot);
        if slot.got < self.message.len() {
            return Ok(());
        }
        self.outcome.samples.add(slot.since.elapsed());
        let second = usize::try_from(begin.elapsed().as_secs()).unwrap_or_default();
        if self.outcome.by_second.len() <= second {
            self.outcome.by_second.resize(second + 1, 0);
        }
        self.outcome.by_second[second] += 1;
        if self.again {
            *slot = self.dial(index)?;
        } else {
            (slot.sent, slot.got, slot.since) = (0, 0, Instant::now());
            self.push(slot);
        }
        Ok(())
    }

    fn push(&self, slot: &mut Slot) {
        while slot.sent < self.message.len() {
            // A connection that broke shows when it's read.
            let Ok(count) = slot.socket.write(&self.message[slot.sent..]) else { return };
            slot.sent += count;
        }
    }

    fn fail(&mut self, slot: &mut Slot, index: u64) -> io::Result<()> {
        self.outcome.failures += 1;
        if self.outcome.failures > MOST_FAILURES {
            return Err(io::Error::other(format!("more than {MOST_FAILURES} connections to {} failed", self.target)));
        }
        *slot = self.dial(index)?;
        Ok(())
    }

    fn dial(&self, index: u64) -> io::Result<Slot> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
        let since = Instant::now();
        match rustix::net::connect(&socket, &self.target) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        epoll::add(&self.epoll, &socket, EventData::new_u64(index), EventFlags::IN | EventFlags::OUT)?;
        Ok(Slot { socket: TcpStream::from(socket), since, sent: 0, got: 0, connected: false })
    }
}

fn wait(epoll: &OwnedFd, events: &mut Vec<epoll::Event>) -> io::Result<()> {
    match epoll::wait(epoll, rustix::buffer::spare_capacity(events), Some(&WAIT)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The index was made from a `usize`.
fn index_of(event: &epoll::Event) -> usize {
    usize::try_from(event.data.u64()).unwrap_or_default()
}
