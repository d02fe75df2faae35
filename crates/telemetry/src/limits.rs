//! Every bound of telemetry. Past one of them something is counted instead of kept; traffic never waits.

use std::time::Duration;

/// Connections' label sets kept; past it new ones are counted together, under unknown workloads.
pub const MAX_TRAFFIC_SERIES: usize = 8192;
/// Label sets of a waypoint's requests kept, and as many of its TCP connections; past it new ones are counted as `other`.
pub const MAX_REQUEST_SERIES: usize = 4096;
/// Outcomes of policies and rules kept; past it new ones are counted as `other`.
pub const MAX_DECISION_SERIES: usize = 16_384;
/// Services' ports with a DestinationRule, and their subsets, whose counters are kept; past it new ones are counted as `other`.
pub const MAX_CLUSTER_SERIES: usize = 4096;
/// DNS label sets kept.
pub const MAX_DNS_SERIES: usize = 2048;
/// Hostnames of workloads that are resolved on demand, kept as labels.
pub const MAX_ON_DEMAND_SERIES: usize = 1024;
/// Type URLs of xDS messages kept as labels.
pub const MAX_XDS_SERIES: usize = 16;
/// A label set that nobody used for this long is forgotten. Longer than any scrape interval, so nothing is lost.
pub const SERIES_IDLE: Duration = Duration::from_secs(3600);
/// The same while there are too many.
pub const SERIES_IDLE_WHEN_FULL: Duration = Duration::from_secs(120);
/// Pause between two searches for label sets to forget, so a flood of new ones doesn't search on each.
pub const SERIES_SWEEP_PAUSE: Duration = Duration::from_secs(1);
/// Budgets shown in metrics.
pub const MAX_BUDGETS: usize = 32;
/// Runtimes shown in metrics.
pub const MAX_RUNTIMES: usize = 256;
/// Lines that may wait for the log's writer; past it the newest are counted and dropped.
pub const MAX_QUEUED_LINES: usize = 10_000;
/// Bytes of the lines that may wait for the log's writer.
pub const MAX_QUEUED_LINE_BYTES: usize = 16 << 20;
/// Longest value of a field in a log line, in bytes; the rest of a longer one is cut.
pub const MAX_VALUE_BYTES: usize = 8 << 10;
/// Bytes handed to the log's file in one write, at most.
pub const MAX_WRITE_BYTES: usize = 64 << 10;
/// How long the end of the program waits for the log's last lines.
pub const FLUSH_TIMEOUT: Duration = Duration::from_millis(1100);
/// Longest text of log levels read (`RUST_LOG`, `/logging?level=`), in bytes.
pub const MAX_LEVEL_TEXT_BYTES: usize = 4096;
/// Longest text of a client's in Envoy's text log and in spans, in bytes; the rest is cut.
pub const MAX_EXCHANGE_TEXT_BYTES: usize = 2048;
/// Directives in one text of log levels.
pub const MAX_LEVEL_DIRECTIVES: usize = 64;
