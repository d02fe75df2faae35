//! Draining, and what operators look at.

use std::time::Duration;

use ambit_telemetry::log::LogFormat;

use super::values::duration;

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
