//! Where decision records go: a line for people, and the access log.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use ambit_telemetry::{AccessLine, DecisionRecord, Enforcer, EnvoyLine, Line, Records, log::LogFormat};

use crate::command::Failure;

/// How often the number of dropped records is looked at.
const DROP_REPORT_PERIOD: Duration = Duration::from_secs(5);
/// Records written before others get their turn.
const MAX_BATCH: usize = 256;

/// The access log's place.
#[derive(Clone, Debug)]
pub enum AccessLog {
    /// Standard output, in place of the lines for people.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

/// What a line of the access log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum AccessLogFormat {
    /// A decision record.
    #[default]
    Json,
    /// What came of a request or connection, as Istio's proxies write it.
    Text,
}

/// Writes records until told to stop.
#[derive(Debug)]
pub struct Writer {
    log: Option<BufWriter<File>>,
    on_stdout: bool,
    format: AccessLogFormat,
    failing: bool,
}

// === impl AccessLog ===

impl std::str::FromStr for AccessLog {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "-" { Self::Stdout } else { Self::File(PathBuf::from(text)) })
    }
}

// === impl Writer ===

impl Writer {
    /// Opens the access log, if any. A new file is for its owner only: records tell who calls what.
    pub fn open(access_log: Option<&AccessLog>, format: AccessLogFormat) -> Result<Self, Failure> {
        let (log, on_stdout) = match access_log {
            None => (None, false),
            Some(AccessLog::Stdout) => (None, true),
            Some(AccessLog::File(path)) => (Some(BufWriter::new(open(path)?)), false),
        };
        Ok(Self { log, on_stdout, format, failing: false })
    }

    /// True if lines are about what came of requests.
    pub fn wants_exchanges(&self) -> bool {
        self.format == AccessLogFormat::Text
    }

    /// Takes records until their source ends.
    pub async fn run(mut self, mut records: Records) {
        let mut dropped = 0;
        let mut report = tokio::time::interval(DROP_REPORT_PERIOD);
        loop {
            tokio::select! {
                record = records.next() => match record {
                    Some(record) => {
                        // Those who are at work now will have more: one write for all of them.
                        tokio::task::yield_now().await;
                        self.write(&record);
                        for _ in 1..MAX_BATCH {
                            match records.try_next() {
                                Some(record) => self.write(&record),
                                None => break,
                            }
                        }
                        self.flush();
                    }
                    None => return,
                },
                _ = report.tick() => {
                    let now = records.dropped();
                    if now > dropped {
                        eprintln!("warning: {} decision records were dropped: they come faster than they can be written", now - dropped);
                        dropped = now;
                    }
                }
            }
        }
    }

    fn write(&mut self, record: &DecisionRecord) {
        // How allowed connections end, and what a client's proxy adds, is a cluster's access log.
        let is_decision = record.announces_decision();
        if is_decision && !self.on_stdout {
            super::print_line(&Line(record).to_string());
        }
        if !self.on_stdout && self.log.is_none() {
            return;
        }
        let line = match self.format {
            AccessLogFormat::Json if is_decision => serde_json::to_string(record).ok(),
            AccessLogFormat::Json => None,
            AccessLogFormat::Text => text(record),
        };
        let Some(mut line) = line else { return };
        if self.on_stdout {
            super::print_line(&line);
        }
        let Some(log) = &mut self.log else { return };
        line.push('\n');
        let result = log.write_all(line.as_bytes());
        self.tell(result);
    }

    fn flush(&mut self) {
        let result = self.log.as_mut().map_or(Ok(()), BufWriter::flush);
        self.tell(result);
    }

    /// A full disk must not stop traffic, and must not go unseen: it is said once per spell.
    fn tell(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => self.failing = false,
            Err(error) if !self.failing => {
                self.failing = true;
                eprintln!("warning: the access log can't be written ({error}); its records are lost until it can");
            }
            Err(_) => {}
        }
    }
}

/// A waypoint's line as Envoy writes it, when all is over; a node proxy's as ztunnel writes it.
fn text(record: &DecisionRecord) -> Option<String> {
    if let Some(line) = EnvoyLine::of(record) {
        return Some(line.to_string());
    }
    let is_waypoint = matches!(record.enforcer, Enforcer::Waypoint { .. });
    let is_opening = record.connection.as_ref().is_some_and(|connection| connection.opened);
    (!is_waypoint && !is_opening).then(|| AccessLine::new(record, LogFormat::Plain).to_string())
}

fn open(path: &Path) -> Result<File, Failure> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| Failure::new(format!("can't open the access log `{}`: {error}", path.display())))
}
