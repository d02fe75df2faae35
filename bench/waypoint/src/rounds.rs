//! A campaign: every row of every round, the contenders in turn.

use std::{fs, path::Path, sync::Arc, time::Duration};

use crate::{
    arguments::Rounds,
    backend::{self, BODIES},
    child::Running,
    contender::{Contender, Name, RULES, Stage},
    cores::Cores,
    figures::Figures,
    load::{Load, Pace, drive},
    machine, memory,
    place::{self, Place},
    report::Report,
    rules,
    scenario::{Http, Shape},
};

/// What is measured of both in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    Traffic {
        shape: Shape,
        http: Http,
        body: usize,
        connections: usize,
    },
    Memory(Shape),
    /// Ambit alone.
    Rules,
}

const CONNECTIONS: [usize; 3] = [16, 64, 512];

/// Time for a proxy to let go of what its clients had, before its memory is looked at.
const SETTLE: Duration = Duration::from_millis(500);

/// Measures, prints the table after every round and writes `waypoint.json` to `out`.
pub(crate) fn run(rounds: &Rounds, out: &Path) -> Result<(), String> {
    fs::create_dir_all(out).map_err(|error| format!("`{}`: {error}", out.display()))?;
    let cores = Cores::divide()?;
    let place = Place::new()?;
    let certificates = place::certificates(&place.folder)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let (mut backend, address) = backend::start(&place.folder)?;
    let stage =
        Stage { folder: place.folder.clone(), cores, backend: address, certificates: Arc::clone(&certificates) };
    runtime.block_on(campaign(&stage, &mut backend, rounds, &out.join("waypoint.json")))
}

async fn campaign(stage: &Stage, backend: &mut Running, rounds: &Rounds, file: &Path) -> Result<(), String> {
    let contenders: Vec<_> = rounds.envoy.iter().cloned().map(Contender::Envoy).chain([Contender::Ambit]).collect();
    let mut report = Report::new(machine::describe(), rounds.time.as_secs_f64());
    for round in 1..=rounds.rounds {
        for row in &rounds.rows {
            if let Some(status) = backend.ended() {
                return Err(format!("the backend ended with {status}"));
            }
            match *row {
                Row::Rules => {
                    await_idle(rounds.patience);
                    eprintln!("round {round}, rules, ambit");
                    match rules::measure(stage, rounds.time).await {
                        Ok(rules) => report.add_rules(rules),
                        Err(reason) => report.fault(round, *row, Name::Ambit, reason),
                    }
                }
                row => {
                    for contender in &contenders {
                        await_idle(rounds.patience);
                        eprintln!("round {round}, {}, {:?}", row.name(), contender.name());
                        // One lost figure must not cost the others; it is shown as lost, though.
                        if let Err(reason) = measure(contender, stage, row, rounds.time, &mut report).await {
                            report.fault(round, row, contender.name(), reason);
                        }
                    }
                }
            }
            report.write(file).map_err(|error| format!("`{}`: {error}", file.display()))?;
        }
        println!("\nafter round {round}:\n\n{}\n", report.table());
    }
    println!("figures of every round: `{}`", file.display());
    match report.faults() {
        0 => Ok(()),
        faults => Err(format!("{faults} measurements are invalid; see below the table")),
    }
}

fn await_idle(patience: Duration) {
    if !patience.is_zero() && !machine::wait_until_idle(patience).unwrap_or(false) {
        eprintln!("the machine isn't idle; figures suffer");
    }
}

async fn measure(
    contender: &Contender,
    stage: &Stage,
    row: Row,
    time: Duration,
    report: &mut Report,
) -> Result<(), String> {
    let name = contender.name();
    match row {
        Row::Memory(shape) => report.add_memory(shape, name, memory::measure(contender, stage, shape).await?),
        Row::Traffic { shape, http, body, connections } => {
            let load = Load { http, body, concurrency: connections };
            let rate = report.rate(row);
            let (figures, rate) = traffic(contender, stage, shape, load, rate, time).await?;
            report.add(row, name, rate, figures);
        }
        Row::Rules => {}
    }
    Ok(())
}

/// Saturates it, then drives it at the given rate, or at half of what it did.
async fn traffic(
    contender: &Contender,
    stage: &Stage,
    shape: Shape,
    load: Load,
    rate: Option<f64>,
    time: Duration,
) -> Result<(Figures, f64), String> {
    let proxy = contender.start(stage, shape, RULES)?;
    let saturated = drive(&proxy.way, load, Pace::Saturating, time, proxy.pid()).await?;
    let rate = rate.unwrap_or(saturated.rate() / 2.0);
    let steady = drive(&proxy.way, load, Pace::Rate(rate), time, proxy.pid()).await?;
    tokio::time::sleep(SETTLE).await;
    let rss = machine::resident_kib(proxy.pid()).map_err(|error| error.to_string())? / 1024.0;
    let (rps, cpu, busy) = (saturated.rate(), saturated.cpu(), saturated.processor_seconds / saturated.seconds);
    let rate_cpu = steady.cpu();
    let [p50, p99, p999] = steady.samples.quantiles_ms([0.5, 0.99, 0.999]).ok_or("no request was answered")?;
    Ok((Figures { rps, cpu, busy, p50, p99, p999, rate_cpu, rss }, rate))
}

// === impl Row ===

impl Row {
    /// All there are.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let traffic = Shape::ALL.into_iter().flat_map(|shape| {
            Http::ALL.into_iter().flat_map(move |http| {
                BODIES.into_iter().flat_map(move |body| {
                    CONNECTIONS.map(|connections| Self::Traffic { shape, http, body, connections })
                })
            })
        });
        traffic.chain(Shape::ALL.map(Self::Memory)).chain([Self::Rules])
    }

    /// As the command line names it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Traffic { shape, http, body, connections } => {
                format!("{}/{}/{body}/{connections}", shape.name(), http.name())
            }
            Self::Memory(shape) => format!("memory/{}", shape.name()),
            Self::Rules => "rules".to_owned(),
        }
    }
}
