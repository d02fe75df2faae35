//! What a proxy takes of memory: idle, with many connections, and when they have gone.

use std::time::Duration;

use serde::Serialize;

use crate::{
    contender::{Contender, RULES, Stage},
    load::hold,
    machine,
    scenario::Shape,
};

/// Resident MiB.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Memory {
    pub(crate) idle: f64,
    /// With [`CONNECTIONS`], each of which had one request.
    pub(crate) connected: f64,
    /// After some calm, when they have gone.
    pub(crate) after: f64,
}

/// Connections from clients that are held at once.
pub(crate) const CONNECTIONS: usize = 1_000;

/// Until what was just opened has settled.
const SETTLE: Duration = Duration::from_millis(500);
/// Calm after the last connection has gone: a proxy may give back what it has freed once it has nothing else to do.
const CALM: Duration = Duration::from_secs(12);

/// Measures one.
pub(crate) async fn measure(contender: &Contender, stage: &Stage, shape: Shape) -> Result<Memory, String> {
    let proxy = contender.start(stage, shape, RULES)?;
    let resident = || machine::resident_kib(proxy.pid()).map(|kib| kib / 1024.0).map_err(|error| error.to_string());
    tokio::time::sleep(SETTLE).await;
    let idle = resident()?;
    let connected = hold(&proxy.way, CONNECTIONS, async || {
        tokio::time::sleep(SETTLE).await;
        resident()
    });
    let connected = connected.await??;
    tokio::time::sleep(CALM).await;
    Ok(Memory { idle, connected, after: resident()? })
}
