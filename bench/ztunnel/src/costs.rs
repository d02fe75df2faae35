//! What bytes, exchanges and connections cost on this processor at least: the floor that a proxy stands on.

mod bytes;
mod connections;
mod exchanges;
mod tls;

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::machine;

/// How long one measurement lasts, and how many there are.
const TIME: Duration = Duration::from_millis(1_000);
const TIMES: usize = 5;

/// One line of the stack.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cost {
    pub(crate) what: &'static str,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
}

/// Work done, with the time and the processor time it took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub(crate) amount: f64,
    pub(crate) seconds: f64,
    /// Of this process.
    pub(crate) processor_seconds: f64,
}

/// Prints the costs and writes them to `costs.json` in `out`.
pub(crate) fn run(out: &Path) -> Result<(), String> {
    let mut costs = Vec::new();
    for measure in [bytes::measure, exchanges::measure, connections::measure] {
        costs.extend(measure().map_err(|error| error.to_string())?);
    }
    println!("{}\n\n| cost | value | unit |\n| --- | ---: | --- |", machine::describe());
    for Cost { what, value, unit } in &costs {
        println!("| {what} | {value:.3} | {unit} |");
    }
    let file = out.join("costs.json");
    let json = serde_json::to_vec_pretty(&costs).map_err(|error| error.to_string())?;
    fs::create_dir_all(out)
        .and_then(|()| fs::write(&file, json))
        .map_err(|error| format!("`{}`: {error}", file.display()))
}

/// The least of [`TIMES`] measurements: what else ran meanwhile can only add to a cost.
fn least(mut measure: impl FnMut() -> io::Result<f64>) -> io::Result<f64> {
    (0..TIMES).try_fold(f64::INFINITY, |least, _| Ok(least.min(measure()?)))
}

/// The most of [`TIMES`] measurements.
fn most(mut measure: impl FnMut() -> io::Result<f64>) -> io::Result<f64> {
    (0..TIMES).try_fold(0.0, |most: f64, _| Ok(most.max(measure()?)))
}

/// Repeats `operation`, which says how much it did, for [`TIME`].
fn repeat(mut operation: impl FnMut() -> io::Result<f64>) -> io::Result<Work> {
    operation()?;
    let (start, cpu) = (Instant::now(), machine::processor_seconds(std::process::id())?);
    let mut amount = 0.0;
    while start.elapsed() < TIME {
        amount += operation()?;
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(Work { amount, seconds, processor_seconds: machine::processor_seconds(std::process::id())? - cpu })
}
