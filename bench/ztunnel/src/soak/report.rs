//! What came of a soak, and whether it is as it should be.

use std::time::Duration;

use serde::Serialize;

use super::{
    traffic::Seen,
    watch::{Record, Sample},
};

/// Descriptors beyond those before any traffic: a connection to the CA that was or wasn't there.
const DESCRIPTOR_SLACK: f64 = 2.0;
/// Threads beyond those of the first window: those for blocking work come and go.
const THREAD_SLACK: f64 = 2.0;
/// What memory may vary by.
const RESIDENT_SPREAD: f64 = 0.05;
/// Shorter runs say nothing about memory.
pub(super) const SHORTEST_JUDGED: Duration = Duration::from_secs(300);

/// What came of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) machine: String,
    pub(super) seconds: f64,
    pub(super) generations: u64,
    pub(super) rotations: usize,
    pub(super) grace_ms: u128,
    pub(super) seen: Seen,
    pub(super) proxies: Vec<Record>,
    /// What isn't as it should be.
    pub(super) faults: Vec<String>,
}

// === impl Report ===

impl Report {
    /// Says what isn't as it should be after a run that was to last so long.
    pub(super) fn judge(&mut self, time: Duration) {
        let mut faults = Vec::new();
        if self.seen.wrong > 0 {
            faults.push(format!("{} outcomes are wrong, the first: {:#?}", self.seen.wrong, self.seen.told));
        }
        let enough = time.as_secs();
        if self.seen.answered < enough || self.seen.refused < enough || self.seen.steady_exchanges < enough {
            faults.push(format!("too little happened to say anything: {:?}", self.seen));
        }
        for record in &self.proxies {
            let name = record.name;
            let (descriptors, threads) = record.growth();
            if time >= SHORTEST_JUDGED && record.resident_spread > RESIDENT_SPREAD {
                faults.push(format!("{name}: memory isn't flat: {:.1} %", record.resident_spread * 100.0));
            }
            if time >= SHORTEST_JUDGED && descriptors > DESCRIPTOR_SLACK.max(descriptors_at_first(record) * 0.1) {
                faults.push(format!("{name}: {descriptors} descriptors more than in the first window"));
            }
            if time >= SHORTEST_JUDGED && threads > THREAD_SLACK {
                faults.push(format!("{name}: {threads} threads more than in the first window"));
            }
            if let (Some(before), Some(after)) = (record.before, record.after)
                && after.descriptors > before.descriptors + DESCRIPTOR_SLACK
            {
                faults.push(format!(
                    "{name}: {} descriptors after all was closed, {} before",
                    after.descriptors, before.descriptors
                ));
            }
        }
        self.faults.extend(faults);
    }

    /// All of it in one line.
    pub(super) fn line(&self) -> String {
        let Seen { exchanges, answered, refused, cut, slowest_cut_ms, steady_exchanges, wrong, .. } = &self.seen;
        let each = self.proxies.iter().map(|record| {
            let last = record.windows.last().map_or(0.0, |window| window.resident_kib);
            let descriptors = |sample: Option<Sample>| sample.map_or(0.0, |sample| sample.descriptors);
            format!(
                "{}: RSS {last} KiB within {:.1} %, descriptors {} before and {} after",
                record.name,
                record.resident_spread * 100.0,
                descriptors(record.before),
                descriptors(record.after)
            )
        });
        format!(
            "soak: {:.1} min, {} changes, {} CA rotations; {exchanges} exchanges ({answered} answered, {refused} refused) \
             and {steady_exchanges} on connections that stay, {wrong} wrong; {cut} connections cut, the slowest after \
             {slowest_cut_ms} ms; {}; {}",
            self.seconds / 60.0,
            self.generations,
            self.rotations,
            each.collect::<Vec<_>>().join("; "),
            if self.faults.is_empty() { "all well" } else { "FAILED" }
        )
    }
}

fn descriptors_at_first(record: &Record) -> f64 {
    record.windows.first().map_or(0.0, |window| window.descriptors)
}
