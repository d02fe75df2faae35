//! Drives a proxy: connections that ask again as soon as they are answered, or at a given rate.
//!
//! At a given rate a request's time counts from when it was due, so that a proxy that stalls isn't spared what it held up.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_hbone::{Connect, HostNetwork, Network, Pool};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::{LocalSet, spawn_local},
};

use crate::{
    codec::Codec,
    machine,
    samples::Samples,
    scenario::{self, Http, Shape, VIRTUAL},
    ticker::Ticker,
};

/// How to reach the proxy.
#[derive(Clone)]
pub(crate) struct Way {
    pub(crate) shape: Shape,
    pub(crate) proxy: SocketAddr,
    /// Of the client's node proxy.
    pub(crate) pool: Arc<Pool>,
    pub(crate) network: Arc<dyn Network>,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) http: Http,
    pub(crate) body: usize,
    /// Requests at a time. With HTTP/2 [`STREAMS`] of them share a connection.
    pub(crate) concurrency: usize,
}

/// How often.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// As soon as the last one is answered.
    Saturating,
    /// So many requests a second over all connections.
    Rate(f64),
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) responses: u64,
    pub(crate) seconds: f64,
    /// What the proxy used meanwhile.
    pub(crate) processor_seconds: f64,
    pub(crate) samples: Samples,
}

/// Requests that share one HTTP/2 connection.
pub(crate) const STREAMS: usize = 8;

/// Connections are open and warm before exchanges count.
const WARM_UP: Duration = Duration::from_millis(400);
/// How long the last responses may take.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// How long opening the connections may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
const SMALL_READ_BYTES: usize = 8 * 1024;
const LARGE_READ_BYTES: usize = 128 * 1024;

/// What all connections share.
#[derive(Debug, Default)]
struct Tally {
    responses: Cell<u64>,
    counts: Cell<bool>,
    stops: Cell<bool>,
    samples: RefCell<Samples>,
    fault: RefCell<Option<String>>,
}

/// When one connection's requests are due.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    next: Instant,
    interval: Duration,
}

/// A connection with its requests that aren't answered.
struct Client {
    stream: Box<dyn Duplex>,
    codec: Codec,
    /// Numbers and when they were due.
    open: Vec<(u32, Instant)>,
    most_open: usize,
    schedule: Option<Schedule>,
    ticker: Ticker,
    buffer: Vec<u8>,
    out: Vec<u8>,
    tally: Rc<Tally>,
}

trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

/// Drives the proxy with this process id for this long, on the calling thread.
pub(crate) async fn drive(way: &Way, load: Load, pace: Pace, time: Duration, pid: u32) -> Result<Outcome, String> {
    let local = LocalSet::new();
    local.run_until(drive_locally(way, load, pace, time, pid)).await
}

/// Opens this many connections, has one exchange on each, and keeps them while `then` runs.
pub(crate) async fn hold<T>(way: &Way, connections: usize, then: impl AsyncFnOnce() -> T) -> Result<T, String> {
    let load = Load { http: Http::H1, body: 0, concurrency: connections };
    let tally = Rc::new(Tally::default());
    let mut clients = open(way, load, Pace::Saturating, &tally).await?;
    for client in &mut clients {
        let exchange = tokio::time::timeout(END_TIMEOUT, client.exchange());
        exchange.await.map_err(|_| "no answer in time".to_owned())??;
    }
    let outcome = then().await;
    drop(clients);
    Ok(outcome)
}

async fn drive_locally(way: &Way, load: Load, pace: Pace, time: Duration, pid: u32) -> Result<Outcome, String> {
    let failed = |error: io::Error| format!("the proxy can't be watched: {error}");
    let tally = Rc::new(Tally::default());
    let clients = open(way, load, pace, &tally).await?;
    let running: Vec<_> = clients.into_iter().map(|client| spawn_local(client.run())).collect();
    tokio::time::sleep(WARM_UP).await;
    let look =
        || Ok::<_, String>((Instant::now(), machine::processor_seconds(pid).map_err(failed)?, tally.responses.get()));
    let (start, processor_before, before) = look()?;
    tally.counts.set(true);
    tokio::time::sleep(time).await;
    tally.counts.set(false);
    let (end, processor_after, after) = look()?;
    tally.stops.set(true);
    let all_end = async {
        for client in running {
            // What went wrong in it is in the tally.
            let _ = client.await;
        }
    };
    if tokio::time::timeout(END_TIMEOUT, all_end).await.is_err() {
        return Err("requests were never answered".to_owned());
    }
    if let Some(fault) = tally.fault.take() {
        return Err(fault);
    }
    Ok(Outcome {
        responses: after - before,
        seconds: (end - start).as_secs_f64(),
        processor_seconds: processor_after - processor_before,
        samples: tally.samples.take(),
    })
}

async fn open(way: &Way, load: Load, pace: Pace, tally: &Rc<Tally>) -> Result<Vec<Client>, String> {
    let streams = if load.http == Http::H2 { STREAMS } else { 1 };
    let count = load.concurrency.div_ceil(streams);
    let failed = |error: io::Error| format!("no connection to the proxy: {error}");
    let mut clients = Vec::with_capacity(count);
    let opening = async {
        for _ in 0..count {
            let stream = way.open().await?;
            let codec = Codec::new(load.http, &scenario::path(load.body));
            let read = if load.body > SMALL_READ_BYTES { LARGE_READ_BYTES } else { SMALL_READ_BYTES };
            clients.push(Client {
                stream,
                out: codec.opening(),
                codec,
                open: Vec::with_capacity(streams),
                most_open: streams,
                schedule: None,
                ticker: Ticker::new().map_err(failed)?,
                buffer: vec![0; read],
                tally: Rc::clone(tally),
            });
        }
        Ok::<_, String>(())
    };
    tokio::time::timeout(OPEN_TIMEOUT, opening).await.map_err(|_| "the proxy takes no connections".to_owned())??;
    if let Pace::Rate(rate) = pace {
        let start = Instant::now();
        let interval = Duration::from_secs_f64(clients.len() as f64 / rate.max(1.0));
        let between = interval / u32::try_from(clients.len()).unwrap_or(u32::MAX);
        let starts = (0_u32..).map(|place| start + between * place);
        clients.iter_mut().zip(starts).for_each(|(client, next)| client.schedule = Some(Schedule { next, interval }));
    }
    Ok(clients)
}

// === impl Way ===

impl Way {
    pub(crate) fn new(shape: Shape, proxy: SocketAddr, pool: Arc<Pool>) -> Self {
        Self { shape, proxy, pool, network: Arc::new(HostNetwork) }
    }

    async fn open(&self) -> Result<Box<dyn Duplex>, String> {
        match self.shape {
            Shape::L7 => {
                let stream = TcpStream::connect(self.proxy).await;
                let stream = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
                Ok(Box::new(stream.map_err(|error| format!("no connection to the proxy: {error}"))?))
            }
            Shape::Hbone => {
                let connect = Connect {
                    network: Arc::clone(&self.network),
                    source: scenario::client(),
                    peer: self.proxy,
                    expected: vec![scenario::waypoint()],
                    authority: VIRTUAL.to_string(),
                    headers: http::HeaderMap::new(),
                    mark: None,
                    distant: false,
                };
                let tunnel = self.pool.connect(connect).await;
                Ok(Box::new(tunnel.map_err(|error| format!("no tunnel to the proxy: {error}"))?))
            }
        }
    }
}

// === impl Client ===

impl Client {
    async fn run(mut self) {
        if let Err(fault) = self.exchanges().await {
            self.tally.fault.borrow_mut().get_or_insert(fault);
        }
    }

    /// Until it is to stop.
    async fn exchanges(&mut self) -> Result<(), String> {
        loop {
            let stops = self.tally.stops.get();
            if stops && self.open.is_empty() {
                return Ok(());
            }
            if !stops {
                self.ask();
            }
            self.send().await?;
            match self.schedule.filter(|_| !stops && self.open.len() < self.most_open) {
                None => self.receive().await?,
                Some(schedule) if self.open.is_empty() => self.ticker.until(schedule.next).await.map_err(broken)?,
                Some(schedule) => {
                    let Self { stream, buffer, ticker, .. } = self;
                    let read = tokio::select! {
                        biased;
                        read = stream.read(buffer) => Some(read.map_err(broken)?),
                        due = ticker.until(schedule.next) => due.map(|()| None).map_err(broken)?,
                    };
                    if let Some(count) = read {
                        self.take(count)?;
                    }
                }
            }
        }
    }

    /// One request and its response.
    async fn exchange(&mut self) -> Result<(), String> {
        self.ask();
        self.send().await?;
        while !self.open.is_empty() {
            self.receive().await?;
        }
        Ok(())
    }

    /// Makes the requests that are due.
    fn ask(&mut self) {
        let now = Instant::now();
        while self.open.len() < self.most_open {
            let due = match &mut self.schedule {
                None => now,
                Some(schedule) if schedule.next <= now => {
                    let due = schedule.next;
                    schedule.next += schedule.interval;
                    due
                }
                Some(_) => return,
            };
            let number = self.codec.request(&mut self.out);
            self.open.push((number, due));
        }
    }

    async fn send(&mut self) -> Result<(), String> {
        if self.out.is_empty() {
            return Ok(());
        }
        self.stream.write_all(&self.out).await.map_err(broken)?;
        self.stream.flush().await.map_err(broken)?;
        self.out.clear();
        Ok(())
    }

    async fn receive(&mut self) -> Result<(), String> {
        let count = self.stream.read(&mut self.buffer).await.map_err(broken)?;
        self.take(count)
    }

    fn take(&mut self, count: usize) -> Result<(), String> {
        if count == 0 {
            return Err("the proxy closed a connection".to_owned());
        }
        let Self { codec, buffer, out, open, tally, .. } = self;
        let now = Instant::now();
        codec.receive(&buffer[..count], out, |number| {
            if let Some(place) = open.iter().position(|(known, _)| *known == number) {
                let (_, due) = open.swap_remove(place);
                tally.responses.set(tally.responses.get() + 1);
                if tally.counts.get() {
                    tally.samples.borrow_mut().add(now - due);
                }
            }
        })
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form that `map_err` takes")]
fn broken(error: io::Error) -> String {
    format!("a connection broke: {error}")
}

// === impl Outcome ===

impl Outcome {
    /// Responses a second.
    #[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
    pub(crate) fn rate(&self) -> f64 {
        self.responses as f64 / self.seconds
    }

    /// Processor seconds of the proxy for 10,000 responses.
    #[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
    pub(crate) fn cpu(&self) -> f64 {
        self.processor_seconds * 10_000.0 / self.responses.max(1) as f64
    }
}
