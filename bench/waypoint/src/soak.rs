//! A soak: policies, routes and endpoints change five times a second under load. No request may fail, and the waypoint may
//! hold no more at the end than at the beginning.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use ambit_hbone::Pool;
use serde::Serialize;

use crate::{
    ambit, backend,
    child::Running,
    churn,
    cores::Cores,
    load::{Load, Pace, Way, drive},
    machine,
    place::{self, Place},
    scenario::{Http, Shape},
    watch::{Record, Sample},
};

/// How long connections live: then all end, and others are opened.
const TURN: Duration = Duration::from_secs(5);
/// Time between two looks at the waypoint.
const SAMPLING: Duration = Duration::from_secs(1);
/// Requests at a time, in each version of HTTP.
const CONCURRENCY: usize = 32;
const BODY: usize = 1024;
/// How long the waypoint may take after the last request until it holds no more than before the first.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(20);
/// Descriptors beyond those before the first request: connections to the two endpoints, which wait for further requests.
const DESCRIPTOR_SLACK: f64 = 8.0;
/// What memory may vary by.
const RESIDENT_SPREAD: f64 = 0.05;
/// Shorter runs say nothing about memory.
const SHORTEST_JUDGED: Duration = Duration::from_secs(300);
/// Seconds left out at the start, and seconds of a window, in a run long enough to judge memory by.
const WARM_UP: usize = 120;
const WINDOW: usize = 60;
/// Changes in a second, at least: a machine may be busy.
const FEWEST_CHANGES: f64 = 3.0;

/// What came of it.
#[derive(Debug, Serialize)]
struct Report {
    machine: String,
    seconds: f64,
    changes: u64,
    responses: u64,
    proxy: Record,
    /// What isn't as it should be.
    faults: Vec<String>,
}

/// Runs it for this long, writes `waypoint.json` to `out` and prints a line.
pub(crate) fn run(time: Duration, out: &Path) -> Result<(), String> {
    let named = |path: &Path, error: std::io::Error| format!("`{}`: {error}", path.display());
    fs::create_dir_all(out).map_err(|error| named(out, error))?;
    let cores = Cores::divide()?;
    let place = Place::new()?;
    let certificates = place::certificates(&place.folder)?;
    let (_backend, address) = backend::start(&place.folder)?;
    let start = || ambit::start_churning(&place.folder, Shape::Hbone, address);
    let (mut proxy, listening) = cores.on_the_proxys(start)??;
    let pool = Pool::new(certificates, ambit_hbone::Limits::default());
    let way = Way::new(Shape::Hbone, listening, std::sync::Arc::clone(&pool));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let mut report = runtime.map_err(|error| error.to_string())?.block_on(async {
        let mut report = load(&way, &mut proxy, time).await?;
        pool.close();
        await_close(&proxy, &mut report.proxy).await?;
        Ok::<_, String>(report)
    })?;
    report.changes = churn::changes(&place.folder);
    report.judge(time);
    let file = out.join("waypoint.json");
    let json = serde_json::to_vec_pretty(&report).map_err(|error| error.to_string())?;
    fs::write(&file, json).map_err(|error| named(&file, error))?;
    println!("{}", report.line());
    if report.faults.is_empty() { Ok(()) } else { Err(format!("the soak failed:\n{}", report.faults.join("\n"))) }
}

async fn load(way: &Way, proxy: &mut Running, time: Duration) -> Result<Report, String> {
    let pid = proxy.pid();
    let look = || Sample::of(pid).map_err(|error| format!("the waypoint can't be watched: {error}"));
    let mut record = Record::new("waypoint");
    record.before = Some(look()?);
    let (started, mut responses, mut faults) = (Instant::now(), 0, Vec::new());
    while started.elapsed() < time && faults.is_empty() {
        let turn = TURN.min(time.saturating_sub(started.elapsed())).max(SAMPLING);
        let drive = |http| {
            let load = Load { http, body: BODY, concurrency: CONCURRENCY };
            drive(way, load, Pace::Saturating, turn, pid)
        };
        let watched = async {
            let mut samples = Vec::new();
            loop {
                tokio::time::sleep(SAMPLING).await;
                samples.extend(look());
                if samples.len() as u64 >= turn.as_secs() {
                    return samples;
                }
            }
        };
        let (one, two, samples) = tokio::join!(drive(Http::H1), drive(Http::H2), watched);
        for outcome in [one, two] {
            match outcome {
                Ok(outcome) => responses += outcome.responses,
                Err(fault) => faults.push(fault),
            }
        }
        samples.into_iter().for_each(|sample| record.add(sample));
        if let Some(status) = proxy.ended() {
            return Err(format!("the waypoint ended with {status}"));
        }
        let passed = started.elapsed().as_secs();
        if passed % 60 < TURN.as_secs() {
            let Sample { resident_kib, descriptors, .. } = look()?;
            println!("  {passed} s: {responses} responses; {resident_kib} KiB, {descriptors} descriptors");
        }
    }
    let (warm_up, window) = if time >= SHORTEST_JUDGED { (WARM_UP, WINDOW) } else { (2, 4) };
    record.close(warm_up, window);
    let seconds = started.elapsed().as_secs_f64();
    Ok(Report { machine: machine::describe(), seconds, changes: 0, responses, proxy: record, faults })
}

/// Waits until the waypoint holds about what it did before any request, or for [`CLOSE_TIMEOUT`].
async fn await_close(proxy: &Running, record: &mut Record) -> Result<(), String> {
    let deadline = Instant::now() + CLOSE_TIMEOUT;
    loop {
        let now = Sample::of(proxy.pid()).map_err(|error| error.to_string())?;
        record.after = Some(now);
        let is_back = record.before.is_none_or(|before| now.descriptors <= before.descriptors + DESCRIPTOR_SLACK);
        if is_back || Instant::now() > deadline {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

// === impl Report ===

impl Report {
    /// Says what isn't as it should be after a run that was to last so long.
    fn judge(&mut self, time: Duration) {
        let Record { before, after, resident_spread, .. } = self.proxy;
        let mut faults = Vec::new();
        if (self.changes as f64) < FEWEST_CHANGES * self.seconds {
            faults.push(format!("only {} changes in {:.0} seconds", self.changes, self.seconds));
        }
        if self.responses < time.as_secs() {
            faults.push(format!("only {} responses", self.responses));
        }
        if time >= SHORTEST_JUDGED && resident_spread > RESIDENT_SPREAD {
            faults.push(format!("memory isn't flat: {:.1} %", resident_spread * 100.0));
        }
        if time >= SHORTEST_JUDGED && self.proxy.growth().0 > DESCRIPTOR_SLACK {
            faults.push(format!("{} descriptors more than in the first window", self.proxy.growth().0));
        }
        if let (Some(before), Some(after)) = (before, after)
            && after.descriptors > before.descriptors + DESCRIPTOR_SLACK
        {
            let (after, before) = (after.descriptors, before.descriptors);
            faults.push(format!("{after} descriptors after all was closed, {before} before"));
        }
        self.faults.extend(faults);
    }

    /// All of it in one line.
    fn line(&self) -> String {
        let descriptors = |sample: Option<Sample>| sample.map_or(0.0, |sample| sample.descriptors);
        format!(
            "soak: {:.1} min, {} changes; {} responses, each the right one; RSS {} KiB within {:.1} %, descriptors {} before and \
             {} after; {}",
            self.seconds / 60.0,
            self.changes,
            self.responses,
            self.proxy.windows.last().map_or(0.0, |window| window.resident_kib),
            self.proxy.resident_spread * 100.0,
            descriptors(self.proxy.before),
            descriptors(self.proxy.after),
            if self.faults.is_empty() { "all well" } else { "FAILED" }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let sample = |descriptors| Some(Sample { resident_kib: 1.0, descriptors, threads: 1.0 });
        let mut proxy = Record::new("waypoint");
        (proxy.before, proxy.after) = (sample(10.0), sample(12.0));
        let (machine, faults) = (String::new(), Vec::new());
        Report { machine, seconds: 600.0, changes: 3_000, responses: 100_000, proxy, faults }
    }

    #[test]
    fn what_grows_or_stands_still_is_a_fault() {
        let judged = |change: fn(&mut Report)| {
            let mut report = report();
            change(&mut report);
            report.judge(Duration::from_secs(600));
            report.faults.len()
        };
        assert_eq!(judged(|_| {}), 0);
        assert_eq!(judged(|report| report.changes = 100), 1);
        assert_eq!(judged(|report| report.responses = 1), 1);
        assert_eq!(judged(|report| report.proxy.resident_spread = 0.06), 1);
        assert_eq!(judged(|report| report.proxy.before = None), 0);
        assert_eq!(judged(|report| report.proxy.after.iter_mut().for_each(|after| after.descriptors = 60.0)), 1);
    }
}
