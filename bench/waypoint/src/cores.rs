//! One core for the proxy, the others for everything else.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The division of the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    proxy: CpuSet,
    others: CpuSet,
}

// === impl Cores ===

impl Cores {
    /// Divides the cores that this process may use, and moves the calling thread to those that aren't the proxy's.
    pub(crate) fn divide() -> Result<Self, String> {
        let failed = |error: rustix::io::Errno| format!("can't keep to some cores: {error}");
        let all = sched_getaffinity(None).map_err(failed)?;
        let first = (0..CpuSet::MAX_CPU).find(|core| all.is_set(*core)).unwrap_or_default();
        let (mut proxy, mut others) = (CpuSet::new(), all);
        proxy.set(first);
        others.unset(first);
        if others.count() == 0 {
            return Err("this needs two cores: one for the proxy, one for its clients and backend".to_owned());
        }
        sched_setaffinity(None, &others).map_err(failed)?;
        Ok(Self { proxy, others })
    }

    /// Runs this on the proxy's core. A process that it starts stays there.
    pub(crate) fn on_the_proxys<T>(&self, start: impl FnOnce() -> T) -> Result<T, String> {
        let failed = |error: rustix::io::Errno| format!("can't keep to one core: {error}");
        sched_setaffinity(None, &self.proxy).map_err(failed)?;
        let started = start();
        sched_setaffinity(None, &self.others).map_err(failed)?;
        Ok(started)
    }
}
