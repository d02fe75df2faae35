//! The waypoint's access log: decision records, or what came of requests, as lines in the process's log.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ambit_policy::Verdict;
use ambit_telemetry::{ACCESS_TARGET, DecisionRecord, EnvoyLine, Recorder, log::LevelControl};
use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::Level;

use super::settings::AccessLog;
use crate::proxy::log::{Log, write_records};

/// How often the number of dropped lines is looked at.
const DROP_REPORT_PERIOD: Duration = Duration::from_secs(5);

/// Starts writing on the current runtime. `lines` counts the log's lines that found no place.
pub fn start(
    log: &Log,
    wanted: AccessLog,
    lines: Arc<AtomicU64>,
    stop: &CancellationToken,
) -> (Recorder, JoinHandle<()>) {
    let dropped = Arc::<AtomicU64>::default();
    let (recorder, records) = ambit_telemetry::recorder_counting(Arc::clone(&dropped));
    let levels = log.levels.clone();
    let mut recorder = recorder.with_records_when(move |record| is_wanted(wanted, record, &levels));
    if wanted == AccessLog::Text {
        recorder = recorder.with_exchanges();
    }
    let writer = log.writer.clone();
    let written = write_records(records, stop.clone(), move |record| {
        if let Some(mut line) = line(wanted, record) {
            line.push('\n');
            writer.line(line.into_bytes());
        }
    });
    tokio::spawn(report_dropped([dropped, lines], stop.clone()));
    (recorder, tokio::spawn(written))
}

/// `access=off` silences all lines, `access=warn` those of what was let pass.
fn is_wanted(wanted: AccessLog, record: &DecisionRecord, levels: &LevelControl) -> bool {
    let level = if record.verdict == Verdict::Deny { Level::WARN } else { Level::INFO };
    let is_kind = match wanted {
        AccessLog::Off => false,
        AccessLog::Denials => record.verdict == Verdict::Deny && record.announces_decision(),
        AccessLog::Decisions => record.announces_decision(),
        AccessLog::Text => true,
    };
    is_kind && levels.is_enabled(ACCESS_TARGET, level)
}

fn line(wanted: AccessLog, record: &DecisionRecord) -> Option<String> {
    match wanted {
        AccessLog::Off => None,
        AccessLog::Denials | AccessLog::Decisions => serde_json::to_string(record).ok(),
        AccessLog::Text => EnvoyLine::of(record).map(|line| line.to_string()),
    }
}

/// Says when records or lines came faster than they could be written.
async fn report_dropped(counts: [Arc<AtomicU64>; 2], stop: CancellationToken) {
    let mut before = 0;
    while stop.run_until_cancelled(sleep(DROP_REPORT_PERIOD)).await.is_some() {
        let now = counts.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        if now > before {
            tracing::warn!(
                dropped = now - before,
                "lines of the log were dropped: they come faster than they can be written"
            );
            before = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use ambit_policy::Decision;
    use ambit_telemetry::{Destination, Enforcer, Source};

    use super::*;

    fn record(verdict: Verdict) -> DecisionRecord {
        let decision = Decision { verdict, ..Decision::deny("the reason") };
        let enforcer = Enforcer::Waypoint { name: "a/w".into() };
        DecisionRecord::new(enforcer, Source::default(), Destination::default(), "HTTP", &decision)
    }

    #[test]
    fn each_setting_has_its_lines() {
        let levels = |text: &str| LevelControl::new(text.parse().expect("levels"));
        for (wanted, text, denied, allowed) in [
            (AccessLog::Off, "info", false, false),
            (AccessLog::Denials, "info", true, false),
            (AccessLog::Decisions, "info", true, true),
            (AccessLog::Decisions, "info,access=warn", true, false),
            (AccessLog::Text, "info", true, true),
            (AccessLog::Text, "info,access=off", false, false),
        ] {
            let levels = levels(text);
            let is_wanted = |verdict| is_wanted(wanted, &record(verdict), &levels);
            assert_eq!((is_wanted(Verdict::Deny), is_wanted(Verdict::Allow)), (denied, allowed), "{wanted:?} {text}");
        }
        let json = line(AccessLog::Denials, &record(Verdict::Deny)).expect("a line");
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(value["reason"], "the reason", "{json}");
        assert_eq!(line(AccessLog::Text, &record(Verdict::Deny)), None, "it says nothing of what came of it");
    }
}
