//! Decision records: the one value that log, metric, command line and page render.
//!
//! What it does: define the record and carry it from the proxies to whoever reads (access log, live lines) over a
//! bounded queue that never blocks traffic.
//! What it refuses to do: decide anything, or know who emits.
#![forbid(unsafe_code)]

mod line;
mod record;
mod recorder;

pub use line::Line;
pub use record::{DecisionRecord, Destination, Durations, Enforcer, Source};
pub use recorder::{MAX_QUEUED_RECORDS, Recorder, Records, recorder};
