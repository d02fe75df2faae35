//! How many threads carry traffic.

use crate::proxy::settings::{WorkerCount, cores};

/// How many threads carry traffic.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Threads")]
pub struct Threads {
    /// Threads that carry traffic: a number (0 for one per core) or a share of the cores like `50%` [default: the CPU limit,
    /// else the larger of 2, the CPU request and a quarter of the cores]
    #[arg(long, env)]
    pub ztunnel_worker_threads: Option<WorkerCount>,
    /// The container's CPU limit
    #[arg(long, env, value_parser = cores, value_name = "CORES")]
    pub ztunnel_resource_cpu_limit: Option<usize>,
    /// The container's CPU request
    #[arg(long, env, value_parser = cores, value_name = "CORES")]
    pub ztunnel_resource_cpu_request: Option<usize>,
    /// Older name of ZTUNNEL_RESOURCE_CPU_LIMIT, which comes first
    #[arg(long, env, value_parser = cores, value_name = "CORES")]
    pub ztunnel_cpu_limit: Option<usize>,
}

// === impl Threads ===

impl Threads {
    /// How many threads carry traffic on a machine with so many cores.
    pub fn workers(&self, cores: usize) -> usize {
        let limit = self.ztunnel_resource_cpu_limit.or(self.ztunnel_cpu_limit).filter(|limit| *limit > 0);
        let request = self.ztunnel_resource_cpu_request.unwrap_or(0);
        match self.ztunnel_worker_threads {
            Some(WorkerCount::Count(0)) => cores,
            Some(WorkerCount::Count(count)) => count,
            Some(WorkerCount::Percent(percent)) => (cores * percent as usize).div_ceil(100),
            None => limit.map_or_else(|| cores.div_ceil(4).max(request).max(2), |limit| limit.max(request)),
        }
        .max(1)
    }
}
