//! Memory that isn't needed any more goes back to the system.

use std::time::Duration;

use ambit_node::memory;
use tokio::time::sleep;

use super::readiness::Readiness;

/// How often it is looked whether the start is over.
const START_CHECK: Duration = Duration::from_millis(200);

/// Lets go of the code that only the start needed. Before the proxy is ready: later there is work that would have to wait
/// until its own code is mapped again.
pub fn forget_start() {
    if let Err(error) = memory::give_back_code() {
        tracing::debug!(%error, "the code that only the start needed stays mapped");
    }
}

/// Gives back what only the start needed once the proxy is ready, and from then on what was freed, each time that work has
/// come to an end.
pub async fn keep_small(readiness: Readiness) {
    while !readiness.is_ready() {
        sleep(START_CHECK).await;
    }
    memory::keep_small().await;
}
