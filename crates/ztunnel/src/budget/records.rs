//! How many refusals are recorded: a flood of them must not cost more to tell of than to turn away.

use std::{
    fmt::Display,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use crate::limits::MAX_REFUSAL_RECORDS_PER_SECOND;

/// Lets a number of records pass in each second, and counts the others.
#[derive(Debug)]
pub(super) struct Records {
    started: Instant,
    /// The present second in the upper half, its records in the lower.
    window: AtomicU64,
    left_out: AtomicU64,
}

// === impl Records ===

impl Records {
    /// The reason to record, if one is: with it, how many were left out before.
    pub(super) fn reason(&self, reason: impl Display) -> Option<String> {
        self.reason_at(self.started.elapsed().as_secs(), reason)
    }

    pub(super) fn reason_at(&self, second: u64, reason: impl Display) -> Option<String> {
        let second = second & u64::from(u32::MAX);
        let counted = self.window.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |window| match window >> 32 {
            present if present >= second => {
                (window & u64::from(u32::MAX) < MAX_REFUSAL_RECORDS_PER_SECOND).then(|| window + 1)
            }
            _ => Some(second << 32 | 1),
        });
        if counted.is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        match self.left_out.swap(0, Ordering::Relaxed) {
            0 => Some(reason.to_string()),
            left_out => Some(format!("{reason} ({left_out} more were refused since the last record)")),
        }
    }
}

impl Default for Records {
    fn default() -> Self {
        Self { started: Instant::now(), window: AtomicU64::new(0), left_out: AtomicU64::new(0) }
    }
}
