//! The log of a node proxy, in Istio's plain and JSON forms (`spec/ztunnel.md` 15).

mod format;
mod levels;
mod writer;

use std::{fmt, str::FromStr, time::SystemTime};

use tracing::Subscriber;
use tracing_subscriber::{Layer, fmt::layer, registry::LookupSpan};

pub(crate) use self::format::escaped;
use self::format::{Events, Fields};
pub use self::{
    levels::{LevelControl, Levels, ParseLevelsError},
    writer::{Draft, LogWriter},
};

/// How lines are written: `LOG_FORMAT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Tabs between the parts, `key=value` for the rest.
    #[default]
    Plain,
    /// One JSON object per line.
    Json,
}

/// A point in time as the log shows it: RFC 3339, UTC, microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timestamp(pub(crate) SystemTime);

/// A layer for a [`tracing_subscriber`] registry that writes events to the log.
#[must_use]
pub fn log_layer<S>(format: LogFormat, levels: LevelControl, writer: LogWriter) -> impl Layer<S> + Send + Sync
where
    S: Subscriber + for<'s> LookupSpan<'s> + Send + Sync,
{
    layer().fmt_fields(Fields(format)).event_format(Events(format)).with_writer(writer).with_filter(levels)
}

// === impl LogFormat ===

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "plain" => Ok(Self::Plain),
            "json" => Ok(Self::Json),
            other => Err(format!("`{}` is not a log format; use `plain` or `json`", other.escape_debug())),
        }
    }
}

// === impl Timestamp ===

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let format =
            time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
        let text = time::OffsetDateTime::from(self.0).format(format).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}
