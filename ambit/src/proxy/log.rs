//! The log: events, and a line per connection.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use ambit_telemetry::{
    AccessLog, DecisionRecord, Records,
    log::{LevelControl, Levels, LogWriter, log_layer},
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{layer::SubscriberExt, util::SubscriberInitExt};

use super::settings::Operations;
use crate::command::Failure;

/// How long records wait for others to be written with.
const RECORDS_GATHERED: Duration = Duration::from_millis(10);
/// Records written before the thread's other tasks have their turn.
const MAX_RECORDS_AT_ONCE: usize = 1024;

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

    /// True if this record has a line.
    pub fn wants(&self, record: &DecisionRecord) -> bool {
        self.access.wants(record)
    }

    /// Writes a connection's line, if its level is wanted.
    pub fn write(&self, record: &DecisionRecord) {
        self.access.write(record);
    }
}

/// Has records written until their source ends, or those that are there when it is to stop. They are taken in batches: else
/// each of them would wake this task's thread, for which the thread that carries traffic pays.
pub async fn write_records(mut records: Records, stop: CancellationToken, mut write: impl FnMut(&DecisionRecord)) {
    loop {
        let next = tokio::select! {
            biased;
            next = records.next() => next,
            () = stop.cancelled() => return,
        };
        let Some(record) = next else { return };
        write(&record);
        for _ in 1..MAX_RECORDS_AT_ONCE {
            let Some(record) = records.try_next() else { break };
            write(&record);
        }
        tokio::select! {
            () = sleep(RECORDS_GATHERED) => {}
            () = stop.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use ambit_policy::{Decision, Verdict};
    use ambit_telemetry::{Enforcer, log::LogFormat};

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Memory {
        fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn all_that_was_recorded_before_the_stop_is_written() {
        let memory = Memory::default();
        let writer = LogWriter::start(memory.clone(), Arc::default()).expect("a thread");
        let levels = LevelControl::new("info".parse().expect("levels"));
        let access = AccessLog::new(writer.clone(), levels.clone(), LogFormat::Plain);
        let (recorder, records) = ambit_telemetry::recorder();
        let stop = CancellationToken::new();
        let number = MAX_RECORDS_AT_ONCE + 1;
        for _ in 0..number {
            let decision = Decision { verdict: Verdict::Allow, ..Decision::deny("let in") };
            let enforcer = Enforcer::ZtunnelInbound;
            recorder.record(DecisionRecord::new(enforcer, <_>::default(), <_>::default(), "TCP", &decision));
        }
        stop.cancel();
        // Ends though there is still somebody who might record.
        let log = Log { writer: writer.clone(), levels, access };
        write_records(records, stop, |record| log.write(record)).await;
        assert!(writer.flush(Duration::from_secs(5)));
        let lines = memory.0.lock().expect("not poisoned").iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(lines, number);
        drop(recorder);
    }
}
