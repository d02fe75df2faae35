//! Metrics of the process and its runtimes, read at each scrape.

use std::{
    fmt, fs,
    sync::{PoisonError, RwLock},
};

use prometheus_client::{encoding::DescriptorEncoder, metrics::MetricType};
use tokio::runtime::Handle;

use super::encode::{NoLabels, counter, single_gauge};
use crate::limits::MAX_RUNTIMES;

/// The data plane's runtimes.
#[derive(Debug, Default)]
pub struct Runtimes(RwLock<Vec<Handle>>);

// === impl Runtimes ===

impl Runtimes {
    /// Shows this runtime's workers and queue from now on. Several runtimes are shown as one, with the workers numbered on.
    pub fn watch(&self, runtime: Handle) {
        let mut runtimes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if runtimes.len() < MAX_RUNTIMES {
            runtimes.push(runtime);
        }
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let all: Vec<_> = self.0.read().unwrap_or_else(PoisonError::into_inner).iter().map(Handle::metrics).collect();
        if all.is_empty() {
            return Ok(());
        }
        let sum = |read: fn(&tokio::runtime::RuntimeMetrics) -> usize| -> u64 {
            all.iter().map(|runtime| u64::try_from(read(runtime)).unwrap_or(u64::MAX)).sum()
        };
        single_gauge(encoder, "tokio_num_workers", "The number of worker threads", sum(|r| r.num_workers()))?;
        let help = "The number of tasks in the global queue";
        single_gauge(encoder, "tokio_global_queue_depth", help, sum(|r| r.global_queue_depth()))?;
        single_gauge(encoder, "tokio_num_alive_tasks", "The number of tasks", sum(|r| r.num_alive_tasks()))?;
        let workers: Vec<_> = all.iter().flat_map(|r| (0..r.num_workers()).map(move |worker| (r, worker))).collect();
        let help = "How long a worker thread was busy, in seconds";
        let name = "tokio_worker_total_busy_duration_seconds";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (number, (runtime, worker)) in workers.iter().enumerate() {
            let busy = runtime.worker_total_busy_duration(*worker).as_secs_f64();
            family.encode_family(&[("worker", number)])?.encode_counter::<NoLabels, _, u64>(&busy, None)?;
        }
        let parks = workers.iter().enumerate().map(|(n, (r, worker))| ([("worker", n)], r.worker_park_count(*worker)));
        counter(encoder, "tokio_worker_park_count", "How often a worker thread went to sleep", parks)?;
        let turns =
            workers.iter().enumerate().map(|(n, (r, worker))| ([("worker", n)], r.worker_park_unpark_count(*worker)));
        let help = "How often a worker thread went to sleep or woke up";
        counter(encoder, "tokio_worker_park_unpark_count", help, turns)
    }
}

/// Writes what `/proc` says about this process's file descriptors; nothing where there is no `/proc`.
pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory itself, open for reading.
        let open = u64::try_from(open.count()).unwrap_or(u64::MAX).saturating_sub(1);
        single_gauge(encoder, "process_open_fds", "Number of open file descriptors", open)?;
    }
    match fs::read_to_string("/proc/self/limits").ok().as_deref().and_then(max_open_files) {
        Some(limit) => single_gauge(encoder, "process_max_fds", "Maximum number of open file descriptors", limit),
        None => Ok(()),
    }
}

fn max_open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_soft_limit_is_read() {
        let limits = "Max processes             127 127 processes\nMax open files            1024    4096   files\n";
        assert_eq!(super::max_open_files(limits), Some(1024));
        assert_eq!(super::max_open_files("Max open files unlimited unlimited files"), None);
        assert_eq!(super::max_open_files(""), None);
    }
}
