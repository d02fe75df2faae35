//! Noticing that the machine slept, or that its clock was set.
//!
//! Timers run by the monotonic clock: it stands still while the machine sleeps and knows nothing of the wall clock. So
//! one task looks at all clocks every second and tells when they no longer agree.

use std::{
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    Clock,
    limits::{CLOCK_CHECK_INTERVAL, CLOCK_TOLERANCE},
};

/// One look at the clocks.
#[derive(Clone, Copy)]
struct Reading {
    monotonic: Instant,
    wall: SystemTime,
    boot: Option<Duration>,
}

/// Counts up in `wakes` whenever the clocks have come apart since the last look, until `wakes` is dropped.
pub(crate) async fn watch_clocks(clock: Arc<dyn Clock>, wakes: Weak<watch::Sender<u64>>) {
    let mut last = Reading::take(&*clock);
    loop {
        sleep(CLOCK_CHECK_INTERVAL).await;
        let Some(wakes) = wakes.upgrade() else { return };
        let now = Reading::take(&*clock);
        if let Some(apart) = now.apart_from(&last) {
            tracing::info!(by = ?apart, "the machine slept or its clock was set; certificates are looked at again");
            wakes.send_modify(|count| *count += 1);
        }
        last = now;
    }
}

// === impl Reading ===

impl Reading {
    fn take(clock: &dyn Clock) -> Self {
        Self { monotonic: Instant::now(), wall: clock.now(), boot: clock.since_boot() }
    }

    /// By how much another clock went differently from the monotonic one since `last`, if by more than is tolerated.
    fn apart_from(&self, last: &Self) -> Option<Duration> {
        let monotonic = self.monotonic.duration_since(last.monotonic);
        let wall = match self.wall.duration_since(last.wall) {
            Ok(forward) => forward.abs_diff(monotonic),
            Err(back) => back.duration() + monotonic,
        };
        let boot = self.boot.zip(last.boot).map(|(now, last)| now.saturating_sub(last).abs_diff(monotonic));
        let apart = boot.map_or(wall, |boot| boot.max(wall));
        (apart > CLOCK_TOLERANCE).then_some(apart)
    }
}
