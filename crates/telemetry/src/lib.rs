//! Decision records, the one value that log, metric, command line and page render; metrics; and the log's writer.
//!
//! What it does: define the record and carry it from the proxies to whoever reads (access log, live lines) over a
//! bounded queue that never blocks traffic; count what Istio's node proxy counts ([`metrics`]).
//! What it refuses to do: decide anything, know who emits, or let traffic wait for whoever reads.
#![forbid(unsafe_code)]

mod access;
mod envoy_line;
mod exchange;
mod limits;
mod line;
pub mod log;
pub mod metrics;
mod notes;
mod record;
mod recorder;
pub mod trace;

pub use access::{ACCESS_TARGET, AccessLine, AccessLog};
pub use envoy_line::EnvoyLine;
pub use exchange::Exchange;
pub use limits::FLUSH_TIMEOUT;
pub use line::Line;
pub use notes::{CheckOutcome, DryRun, MAX_AUDITS, MatchedRule, Notes, ProviderCheck};
pub use record::{ConnectionFacts, DecisionRecord, Destination, Durations, Enforcer, Source};
pub use recorder::{MAX_QUEUED_RECORDS, Recorder, Records, recorder, recorder_counting};
