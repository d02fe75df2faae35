//! The log of a local mesh, on standard error: what its proxies and its control plane have to say besides decisions.

use std::sync::Arc;

use ambit_telemetry::log::{LevelControl, Levels, LogFormat, LogWriter, log_layer};
use tracing_subscriber::{layer::SubscriberExt, util::SubscriberInitExt};

use crate::command::Failure;

/// What is logged unless `RUST_LOG` or an operator says otherwise.
const DEFAULT_LEVELS: &str = "warn";

/// Makes this process's log; the levels can be changed at run time.
///
/// # Errors
/// When `RUST_LOG` can't be read, or the writer's thread can't be started.
pub fn start() -> Result<LevelControl, Failure> {
    let text = std::env::var("RUST_LOG").unwrap_or_else(|_| DEFAULT_LEVELS.to_owned());
    let levels: Levels = text.parse().map_err(|error| Failure::new(format!("RUST_LOG=`{text}`: {error}")))?;
    let levels = LevelControl::new(levels);
    let writer = LogWriter::start(std::io::stderr(), Arc::default())
        .map_err(|error| Failure::new(format!("can't start the log: {error}")))?;
    // A log that is there already is that of a test.
    let _ = tracing_subscriber::registry().with(log_layer(LogFormat::Plain, levels.clone(), writer)).try_init();
    Ok(levels)
}
