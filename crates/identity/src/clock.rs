//! The wall clock, injected so that expiry can be tested.

use std::{fmt, time::SystemTime};

/// Tells the wall-clock time. Every use of a certificate asks it, so a machine that slept past the end of a certificate
/// never serves it.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Now.
    fn now(&self) -> SystemTime;
}

/// The system's own clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

// === impl SystemClock ===

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}
