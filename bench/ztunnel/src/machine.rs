//! The machine: what it is, how busy it is, and what a process has used of it.

use std::{
    fs, io,
    time::{Duration, Instant},
};

/// Share of the processors that must have been idle for a second before a figure is taken.
const IDLE_SHARE: f64 = 0.92;

/// Processor time of the whole machine since it started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Processors {
    busy_ticks: u64,
    idle_ticks: u64,
}

/// Waits until the machine has been idle for a second, at most `patience`; says whether it was.
pub(crate) fn wait_until_idle(patience: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        let before = Processors::now()?;
        std::thread::sleep(Duration::from_secs(1));
        let after = Processors::now()?;
        let (busy, idle) = (after.busy_ticks - before.busy_ticks, after.idle_ticks - before.idle_ticks);
        if ratio(idle, busy + idle) >= IDLE_SHARE {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
    }
}

/// Processor seconds that a process has used, its ended threads included. Exact to 10 ms.
pub(crate) fn processor_seconds(pid: u32) -> io::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // After the name, which may hold anything, come state and 10 more fields, then user and system time.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    match (ticks(11), ticks(12)) {
        (Some(user), Some(system)) => Ok(ratio(user + system, rustix::param::clock_ticks_per_second())),
        _ => Err(io::Error::other(format!("`/proc/{pid}/stat` is not as expected"))),
    }
}

/// Resident memory of a process in KiB.
pub(crate) fn resident_kib(pid: u32) -> io::Result<f64> {
    status(pid, "VmRSS:")
}

/// Threads of a process.
pub(crate) fn threads(pid: u32) -> io::Result<f64> {
    status(pid, "Threads:")
}

/// Open descriptors of a process.
pub(crate) fn descriptors(pid: u32) -> io::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

fn status(pid: u32, name: &str) -> io::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .ok_or_else(|| io::Error::other(format!("`/proc/{pid}/status` has no {name} Is the process still there?")))
}

/// Kernel, number and name of the processors.
pub(crate) fn describe() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models = || info.lines().filter_map(|line| line.strip_prefix("model name"));
    let name = models().next().map_or("processor", |name| name.trim_start_matches(['\t', ' ', ':']));
    format!("Linux {}, {} x {name}", kernel.trim(), models().count().max(1))
}

// === impl Processors ===

impl Processors {
    pub(crate) fn now() -> io::Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let ticks: Vec<u64> = stat
            .lines()
            .next()
            .unwrap_or_default()
            .split_ascii_whitespace()
            .skip(1)
            .filter_map(|field| field.parse().ok())
            .collect();
        let [user, nice, system, idle, wait, interrupts, soft_interrupts, ..] = ticks[..] else {
            return Err(io::Error::other("`/proc/stat` is not as expected"));
        };
        Ok(Self { busy_ticks: user + nice + system + interrupts + soft_interrupts, idle_ticks: idle + wait })
    }

    /// Seconds of processor time used since `earlier`, by everything.
    pub(crate) fn busy_seconds_since(self, earlier: Self) -> f64 {
        ratio(self.busy_ticks - earlier.busy_ticks, rustix::param::clock_ticks_per_second())
    }
}

#[expect(clippy::cast_precision_loss, reason = "ticks and counts here are far below 2^52")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_uses_processor_time_and_memory() {
        let own = std::process::id();
        let before = processor_seconds(own).expect("this process");
        let machine = Processors::now().expect("the machine");
        let end = Instant::now() + Duration::from_millis(200);
        while Instant::now() < end {}
        assert!(processor_seconds(own).expect("this process") >= before + 0.05);
        assert!(Processors::now().expect("the machine").busy_seconds_since(machine) >= 0.05);
        assert!(resident_kib(own).expect("this process") > 500.0);
        assert!(threads(own).expect("this process") >= 1.0);
        // The folder that is read is one.
        assert!(descriptors(own).expect("this process") >= 1);
    }
}
