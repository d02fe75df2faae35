//! Memory that isn't needed any more goes back to the system.

use std::time::Duration;

use ambit_node::memory;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::sleep;

use super::readiness::Readiness;

/// How often it is looked whether the start is over.
const START_CHECK: Duration = Duration::from_millis(200);
/// Time between two looks at how busy the proxy is.
const PERIOD: Duration = Duration::from_secs(3);
/// Processor time of a period up to which the proxy is idle: 1 %.
const IDLE: Duration = PERIOD.checked_div(100).expect("a hundredth");

/// Lets go of the code that only the start needed. Before the proxy is ready: later there is work that would have to wait
/// until its own code is mapped again.
pub fn forget_start() {
    if let Err(error) = memory::give_back_code() {
        tracing::debug!(%error, "the code that only the start needed stays mapped");
    }
}

/// Gives back what only the start needed once the proxy is ready, and from then on what was freed, each time that work has
/// come to an end: to look for it takes locks that busy threads need.
pub async fn keep_small(readiness: Readiness) {
    while !readiness.answer().0.is_success() {
        sleep(START_CHECK).await;
    }
    let mut was_busy = true;
    let mut is_busy = false;
    loop {
        if was_busy && !is_busy {
            memory::give_back_freed();
        }
        let before = processor_time();
        sleep(PERIOD).await;
        was_busy = is_busy;
        is_busy = processor_time().saturating_sub(before) > IDLE;
    }
}

/// What this process has used so far.
fn processor_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}
