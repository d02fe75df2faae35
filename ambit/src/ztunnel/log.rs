//! The log: events, and a line per connection.

use std::sync::{Arc, atomic::AtomicU64};

use ambit_telemetry::{
    AccessLog, Records,
    log::{LevelControl, Levels, LogWriter, log_layer},
};
use tracing_subscriber::{layer::SubscriberExt, util::SubscriberInitExt};

use super::settings::Operations;
use crate::command::Failure;

/// What the log is written with.
#[derive(Clone, Debug)]
pub struct Log {
    /// The lines' way out.
    pub writer: LogWriter,
    /// Which are wanted.
    pub levels: LevelControl,
    access: AccessLog,
}

// === impl Log ===

impl Log {
    /// Makes this process's log; lines that find no place are counted in `dropped`.
    ///
    /// # Errors
    /// When RUST_LOG can't be read, or the writer's thread can't be started.
    pub fn start(operations: &Operations, dropped: Arc<AtomicU64>) -> Result<Self, Failure> {
        let levels: Levels = operations
            .rust_log
            .parse()
            .map_err(|error| Failure::new(format!("RUST_LOG=`{}`: {error}", operations.rust_log)))?;
        let levels = LevelControl::new(levels);
        let writer = LogWriter::start(std::io::stdout(), dropped)
            .map_err(|error| Failure::new(format!("can't start the log: {error}")))?;
        let format = operations.log_format;
        // A log that is there already is that of a test.
        let _ = tracing_subscriber::registry().with(log_layer(format, levels.clone(), writer.clone())).try_init();
        let access = AccessLog::new(writer.clone(), levels.clone(), format);
        Ok(Self { writer, levels, access })
    }

    /// True if connections that open have a line too.
    pub fn wants_openings(&self) -> bool {
        self.access.wants_openings()
    }

    /// Writes records until their source ends.
    pub async fn write_records(self, mut records: Records) {
        while let Some(record) = records.next().await {
            self.access.write(&record);
        }
    }
}
