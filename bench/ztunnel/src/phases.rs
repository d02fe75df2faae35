//! What is measured on a stage. A phase is a stage of its own; its proxies are fresh.

use std::{
    io,
    net::SocketAddrV4,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use ambit_mesh::Store;
use ambit_xds::local;

use crate::{
    arguments::OURS,
    configuration,
    figures::{Figure, Figures},
    load::{self, Outcome, Server, Until},
    machine::{self, Processors},
    pods::{Ports, SERVER},
    proxy::Contender,
    stage::{Director, Scene, Stage},
};

/// Bytes of an exchange.
const EXCHANGE_BYTES: usize = 64;
/// Streams run this long before bulk is counted.
const BULK_WARM_UP: Duration = Duration::from_millis(700);
/// How long connections a second are measured. Short enough that a wide range of ports isn't used up.
const CONNECT_TIME: Duration = Duration::from_secs(2);
/// The first connections of new proxies fetch certificates and make the tunnel; they aren't counted.
const FIRST: u64 = 32;
const SUSTAINED_TIME: Duration = Duration::from_secs(60);
/// How long nothing happens before memory is looked at: allocators give it back a while after it was freed.
const CALM: Duration = Duration::from_secs(12);
/// Endpoints of the service with many.
const ENDPOINTS: usize = 10_000;
/// Endpoints among which Ambit's choice alone is timed.
const CHOICES: [(usize, Figure); 4] = [
    (10, Figure::ChoiceTen),
    (100, Figure::ChoiceHundred),
    (1_000, Figure::ChoiceThousand),
    (10_000, Figure::ChoiceTenThousand),
];
/// Choices timed at once, and how often: the least time counts.
const CHOICE_ROUNDS: u64 = 100_000;
const CHOICE_TIMES: usize = 5;
const HELD: usize = 1_000;
const CAME_AND_WENT: u64 = 10_000;
const GIB: f64 = 1_073_741_824.0;

/// A part of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Bulk and exchanges.
    Steady,
    /// New connections through a pooled tunnel.
    Connect,
    /// New connections, each with its own tunnel.
    Tunnels,
    /// A minute of new connections.
    Sustained,
    /// Memory.
    Memory,
    /// New connections to a service with many endpoints.
    Choice,
}

/// What a phase found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) figures: Figures,
    /// Connections of each second, where the phase lasts long.
    pub(crate) by_second: Vec<u64>,
    /// What spoils the figures all the same.
    pub(crate) fault: Option<String>,
}

// === impl Phase ===

impl Phase {
    pub(crate) const ALL: [(&'static str, Self); 6] = [
        ("steady", Self::Steady),
        ("connect", Self::Connect),
        ("tunnels", Self::Tunnels),
        ("sustained", Self::Sustained),
        ("memory", Self::Memory),
        ("choice", Self::Choice),
    ];

    /// Whether it takes so long that not every round has it.
    pub(crate) fn is_long(self) -> bool {
        matches!(self, Self::Sustained | Self::Memory | Self::Choice)
    }

    /// Whether there is something to measure without proxies.
    pub(crate) fn has_direct(self) -> bool {
        matches!(self, Self::Steady | Self::Connect)
    }

    /// Measures it; without a contender, the direct connection.
    pub(crate) fn run(
        self,
        director: &Director<'_>,
        contender: Option<&Contender>,
        time: Duration,
        patience: Duration,
    ) -> Result<Found, String> {
        director.control.serve(&configuration::measured())?;
        let proxies = contender.map(|contender| [contender; 2]);
        let scene = Scene { proxies, ports: Ports::Wide, server_captured: true, environment: &[] };
        match self {
            Self::Steady => director.play(scene, |stage, server| steady(stage, server, time, patience)),
            Self::Connect => director.play(scene, |stage, _| connect(stage, patience)),
            Self::Tunnels => {
                let environment = &[("POOL_MAX_STREAMS_PER_CONNECTION", "1")];
                director.play(Scene { environment, ..scene }, |stage, _| tunnels(stage, patience))
            }
            // The client's ports are many and soon used again; what is measured is the server's side.
            Self::Sustained => {
                director.play(Scene { ports: Ports::WideForClient, ..scene }, |stage, _| sustained(stage, patience))
            }
            Self::Memory => director.play(scene, |stage, _| memory(stage)),
            Self::Choice => {
                let cost = |endpoints| {
                    director.control.serve(&configuration::many_endpoints(endpoints))?;
                    director.play(Scene { server_captured: false, ..scene }, |stage, _| choice(stage, patience))
                };
                let (one, many) = (cost(1)?, cost(ENDPOINTS)?);
                let mut figures = Figures::from([(Figure::ChoiceCpu, many - one)]);
                if contender.is_some_and(|contender| contender.name == OURS) {
                    figures.extend(choices(patience)?);
                }
                Ok(Found::from(figures))
            }
        }
    }
}

fn steady(stage: &Stage, server: &Server, time: Duration, patience: Duration) -> io::Result<Found> {
    let mut figures = Figures::new();
    let streams = [
        (1, [Figure::BulkOneGbit, Figure::BulkOneCpu, Figure::BulkOneMachine]),
        (8, [Figure::BulkEightGbit, Figure::BulkEightCpu, Figure::BulkEightMachine]),
    ];
    for (streams, names) in streams {
        quiet(patience)?;
        figures.extend(names.into_iter().zip(bulk(stage, server, streams, time)?));
    }
    quiet(patience)?;
    let (mut many, cpu) = exchange(stage, 64, time)?;
    figures.insert(Figure::ExchangeManyRate, many.per_second());
    figures.insert(Figure::ExchangeManyCpu, cpu);
    figures.insert(Figure::ExchangeManyTail, many.quantile_us(0.99));
    quiet(patience)?;
    let (mut one, cpu) = exchange(stage, 1, time)?;
    figures.insert(Figure::ExchangeOneRate, one.per_second());
    figures.insert(Figure::ExchangeOneMedian, one.quantile_us(0.5));
    figures.insert(Figure::ExchangeOneTail, one.quantile_us(0.99));
    figures.insert(Figure::ExchangeOneCpu, cpu);
    Ok(Found::from(figures))
}

/// Gbit/s, CPU s/GiB of the proxies, CPU s/GiB of the machine.
fn bulk(stage: &Stage, server: &Server, streams: usize, time: Duration) -> io::Result<[f64; 3]> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sending = stage.client.spawn(scope, || load::bulk(Stage::sink(), streams, &stop));
        std::thread::sleep(BULK_WARM_UP);
        let measured = (|| {
            let (bytes, cpu, machine, start) =
                (server.received(), stage.processor_seconds()?, Processors::now()?, Instant::now());
            std::thread::sleep(time);
            let seconds = start.elapsed().as_secs_f64();
            let bytes = number(server.received() - bytes);
            let gib = bytes / GIB;
            let cpu = stage.processor_seconds()? - cpu;
            let machine = Processors::now()?.busy_seconds_since(machine);
            Ok([bytes * 8.0 / 1e9 / seconds, cpu / gib, machine / gib])
        })();
        stop.store(true, Ordering::Relaxed);
        sending.join().unwrap_or_else(|_| Err(io::Error::other("the client panicked")))?;
        measured
    })
}

/// The outcome and CPU us of the proxies per exchange. The warm-up's exchanges cost as well, so a part of it.
fn exchange(stage: &Stage, connections: usize, time: Duration) -> io::Result<(Outcome, f64)> {
    let (outcome, cpu) = stage.as_client(|| load::exchange(Stage::echo(), EXCHANGE_BYTES, connections, time))?;
    let cpu = cpu * outcome.seconds / time.as_secs_f64();
    let each = cpu * 1e6 / number(outcome.operations());
    none_failed(&outcome)?;
    Ok((outcome, each))
}

fn connect(stage: &Stage, patience: Duration) -> io::Result<Found> {
    let (mut outcome, cpu) = connections(stage, patience)?;
    Ok(Found::from(Figures::from([
        (Figure::ConnectRate, outcome.per_second()),
        (Figure::ConnectCpu, cpu * 1e6 / number(outcome.operations())),
        (Figure::ConnectTail, outcome.quantile_us(0.99)),
    ])))
}

fn tunnels(stage: &Stage, patience: Duration) -> io::Result<Found> {
    let (outcome, cpu) = connections(stage, patience)?;
    Ok(Found::from(Figures::from([
        (Figure::TunnelRate, outcome.per_second()),
        (Figure::TunnelCpu, cpu * 1e6 / number(outcome.operations())),
    ])))
}

/// New connections of 16 clients for [`CONNECT_TIME`], and CPU seconds of the proxies.
fn connections(stage: &Stage, patience: Duration) -> io::Result<(Outcome, f64)> {
    first(stage)?;
    quiet(patience)?;
    let (outcome, cpu) = stage.as_client(|| load::connect(Stage::echo(), 16, Until::Time(CONNECT_TIME)))?;
    none_failed(&outcome)?;
    Ok((outcome, cpu))
}

fn sustained(stage: &Stage, patience: Duration) -> io::Result<Found> {
    first(stage)?;
    quiet(patience)?;
    let (outcome, _) = stage.as_client(|| load::connect(Stage::echo(), 16, Until::Time(SUSTAINED_TIME)))?;
    let half = usize::try_from(SUSTAINED_TIME.as_secs() / 2).unwrap_or_default();
    let last: Vec<u64> = outcome.by_second.iter().copied().skip(half).take(half).collect();
    let figures = Figures::from([
        (Figure::SustainedRate, outcome.per_second()),
        (Figure::SustainedLastRate, number(last.iter().sum()) / number(half as u64)),
        (Figure::SustainedFailures, number(outcome.failures)),
    ]);
    let fault = none_failed(&outcome).err().map(|error| error.to_string());
    Ok(Found { figures, by_second: outcome.by_second, fault })
}

/// A few connections, so that certificates and tunnels are there. These must not fail either.
fn first(stage: &Stage) -> io::Result<()> {
    none_failed(&stage.client.run(|| load::connect(Stage::echo(), 1, Until::Count(FIRST)))?)
}

/// CPU us of the client's proxy per connection to the service with many endpoints.
fn choice(stage: &Stage, patience: Duration) -> io::Result<f64> {
    quiet(patience)?;
    let [proxy] = stage.proxies.as_slice() else { return Err(io::Error::other("one proxy is needed")) };
    stage.client.ip(&["route", "add", configuration::MANY_NETWORK, "via", &SERVER.to_string()])?;
    stage.server.ip(&["route", "add", "local", configuration::MANY_NETWORK, "dev", "lo"])?;
    let target = SocketAddrV4::new(configuration::MANY_SERVICE, load::ECHO_PORT);
    let before = proxy.processor_seconds()?;
    let outcome = stage.client.run(|| load::connect(target, 16, Until::Time(CONNECT_TIME)))?;
    none_failed(&outcome)?;
    Ok((proxy.processor_seconds()? - before) * 1e6 / number(outcome.operations()))
}

/// Nanoseconds of one choice by Ambit, by the number of endpoints: this program has its code, as a release build.
fn choices(patience: Duration) -> Result<Figures, String> {
    let mut figures = Figures::new();
    for (endpoints, figure) in CHOICES {
        let deltas = local::load_text("mesh.yaml", &configuration::many_endpoints(endpoints));
        let store = Store::new(ambit_policy::Options::default());
        store.apply(&deltas.map_err(|error| error.to_string())?).map_err(|nack| nack.to_string())?;
        quiet(patience).map_err(|error| error.to_string())?;
        let choice = ambit_ztunnel::measuring::Choosing {
            client: configuration::CLIENT_UID,
            namespace: configuration::SERVER_NAMESPACE,
            hostname: configuration::MANY_HOSTNAME,
            port: load::ECHO_PORT,
        };
        let times = (0..CHOICE_TIMES).map(|_| choice.time(&store, CHOICE_ROUNDS));
        let least = times.min().flatten().ok_or("the service with many endpoints has none")?;
        figures.insert(figure, least.as_secs_f64() * 1e9 / number(CHOICE_ROUNDS));
    }
    if let (Some(few), Some(many)) = (figures.get(&Figure::ChoiceTen), figures.get(&Figure::ChoiceTenThousand)) {
        figures.insert(Figure::ChoiceGrowth, many / few);
    }
    Ok(figures)
}

fn memory(stage: &Stage) -> io::Result<Found> {
    first(stage)?;
    std::thread::sleep(CALM);
    let idle = stage.resident_kib()?;
    let held = stage.client.run(|| load::hold(Stage::echo(), HELD))?;
    std::thread::sleep(CALM);
    let holding = stage.resident_kib()?;
    drop(held);
    none_failed(&stage.client.run(|| load::connect(Stage::echo(), 16, Until::Count(CAME_AND_WENT)))?)?;
    std::thread::sleep(CALM);
    let after = stage.resident_kib()?;
    Ok(Found::from(Figures::from([
        (Figure::IdleMemory, idle),
        (Figure::HeldMemory, (holding - idle) * 1_000.0 / number(HELD as u64)),
        (Figure::AfterMemory, after),
        (Figure::AfterMemoryShare, after / idle),
    ])))
}

/// A figure in which connections failed is no figure.
fn none_failed(outcome: &Outcome) -> io::Result<()> {
    match (outcome.failures, outcome.stalled, outcome.operations()) {
        (0, 0, 1..) => Ok(()),
        (failures, stalled, good) => {
            let message = format!("{failures} connections failed and {stalled} got no answer, beside {good} good ones");
            Err(io::Error::other(message))
        }
    }
}

fn quiet(patience: Duration) -> io::Result<()> {
    if !machine::wait_until_idle(patience)? {
        eprintln!("the machine is busy with something else: this figure is worth less");
    }
    Ok(())
}

// === impl Found ===

impl From<Figures> for Found {
    fn from(figures: Figures) -> Self {
        Self { figures, ..Self::default() }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
fn number(count: u64) -> f64 {
    count as f64
}
