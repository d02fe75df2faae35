//! Draining, threads, and what operators look at.

use std::time::Duration;

use ambit_telemetry::log::LogFormat;

use super::values::{WorkerCount, cores, duration};

/// Longest drain where neither of the variables says.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);

/// How the end goes.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Draining")]
pub struct Draining {
    /// How long open connections may run on after SIGTERM [default: TERMINATION_GRACE_PERIOD_SECONDS less 5 s (less 1 s if
    /// that is 10 s or shorter), else 5 s]
    #[arg(long, env, value_parser = duration, value_name = "DURATION")]
    pub connection_termination_deadline: Option<Duration>,
    /// The pod's own grace period
    #[arg(long, env, value_parser = duration, value_name = "SECONDS")]
    pub termination_grace_period_seconds: Option<Duration>,
}

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

/// What operators look at.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Operations")]
pub struct Operations {
    /// What is logged: `info`, or `info,access=off,ambit_ztunnel=debug` and so on
    #[arg(long, env, default_value = "info")]
    pub rust_log: String,
    /// `plain` or `json`
    #[arg(long, env, default_value = "plain", value_name = "plain|json")]
    pub log_format: LogFormat,
    /// Accepted and without effect: decisions and their reasons are in the access log, whatever the level
    #[arg(long, env, action = clap::ArgAction::Set, default_value_t = false)]
    pub authz_policy_info_logging: bool,
    /// Port of `/config_dump`, `/logging` and others, on loopback; 0 lets the kernel choose [default: `proxyAdminPort` of
    /// PROXY_CONFIG, else 15000]
    #[arg(long, env = "AMBIT_ADMIN_PORT", value_name = "PORT")]
    pub admin_port: Option<u16>,
    /// Port of `/metrics`; 0 lets the kernel choose [default: `statsPort` of PROXY_CONFIG, else 15020]
    #[arg(long, env = "AMBIT_STATS_PORT", value_name = "PORT")]
    pub stats_port: Option<u16>,
    /// Port of `/healthz/ready`; 0 lets the kernel choose
    #[arg(long, env = "AMBIT_READINESS_PORT", default_value_t = 15021, value_name = "PORT")]
    pub readiness_port: u16,
}

// === impl Operations ===

impl Operations {
    /// Port of the administration.
    pub fn admin_port(&self) -> u16 {
        self.admin_port.unwrap_or(15_000)
    }

    /// Port of the metrics.
    pub fn stats_port(&self) -> u16 {
        self.stats_port.unwrap_or(15_020)
    }
}

// === impl Draining ===

impl Draining {
    /// How long open connections may run on.
    pub fn deadline(&self) -> Duration {
        let second = Duration::from_secs(1);
        match (self.connection_termination_deadline, self.termination_grace_period_seconds) {
            (Some(deadline), _) => deadline,
            (None, Some(grace)) if grace > 10 * second => grace - 5 * second,
            (None, Some(grace)) => grace.saturating_sub(second).max(second),
            (None, None) => DEFAULT_DEADLINE,
        }
    }
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
