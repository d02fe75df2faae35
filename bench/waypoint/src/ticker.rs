//! Waking at a time: the runtime's own timers know milliseconds only.

use std::{
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// A timer of the kernel.
#[derive(Debug)]
pub(crate) struct Ticker {
    timer: AsyncFd<OwnedFd>,
    set: Option<Instant>,
}

/// Zero would switch the timer off.
const SHORTEST: Duration = Duration::from_nanos(1);

// === impl Ticker ===

impl Ticker {
    pub(crate) fn new() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        #[expect(
            deprecated,
            reason = "what takes its place is unsafe, for descriptors that may be closed elsewhere; not this one"
        )]
        let timer = AsyncFd::new(timer)?;
        Ok(Self { timer, set: None })
    }

    /// Waits until then. May be cancelled, and called again.
    pub(crate) async fn until(&mut self, due: Instant) -> io::Result<()> {
        loop {
            let wait = due.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return Ok(());
            }
            if self.set != Some(due) {
                timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &once(wait.max(SHORTEST)))?;
                self.set = Some(due);
            }
            self.timer.readable().await?.clear_ready();
        }
    }
}

fn once(wait: Duration) -> Itimerspec {
    let it_value =
        Timespec { tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(wait.subsec_nanos()) };
    Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn it_wakes_not_before_its_time_again_and_again() {
        let mut ticker = Ticker::new().expect("a timer");
        for _ in 0..5 {
            let due = Instant::now() + Duration::from_micros(300);
            ticker.until(due).await.expect("a timer");
            assert!(Instant::now() >= due);
        }
        // One that was set and given up doesn't disturb the next.
        let far = Instant::now() + Duration::from_secs(3600);
        let _ = tokio::time::timeout(Duration::from_millis(2), ticker.until(far)).await;
        ticker.until(Instant::now() + Duration::from_micros(300)).await.expect("a timer");
    }
}
