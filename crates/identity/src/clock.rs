//! The clocks, injected so that expiry, sleep and clock steps can be tested.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use rustix::time::{ClockId, clock_gettime};

/// Tells the time. Every use of a certificate asks it, so a machine that slept past the end of a certificate never
/// serves it.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The wall clock. It may be set, forwards and backwards.
    fn now(&self) -> SystemTime;

    /// Time since boot with the time asleep counted in; it can't be set. `None` where that is not known: then only the
    /// wall clock judges.
    fn since_boot(&self) -> Option<Duration> {
        None
    }
}

/// The system's own clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

// === impl SystemClock ===

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn since_boot(&self) -> Option<Duration> {
        let time = clock_gettime(ClockId::Boottime);
        Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
    }
}
