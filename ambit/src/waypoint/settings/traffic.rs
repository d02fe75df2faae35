//! How traffic is served, and what is said about it.

use std::{net::IpAddr, time::Duration};

use crate::{
    local::files,
    proxy::settings::{WorkerCount, duration},
};

/// Of the drain's time, the share in which clients that haven't heard of it yet are still let in, by default.
const LATE_SHARE: u32 = 5;
/// The same at most.
const MOST_LATE: Duration = Duration::from_secs(2);

/// How traffic is served.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Traffic")]
pub struct Traffic {
    /// Where port 15008 is listened on [default: all addresses of the pod]
    #[arg(long, env = "AMBIT_LISTEN_ADDRESS", value_name = "IP")]
    pub listen_address: Option<IpAddr>,
    /// Serve IPv6
    #[arg(long, env, action = clap::ArgAction::Set, default_value_t = true)]
    pub ipv6_enabled: bool,
    /// Share port 15008 with the waypoint that takes over (SO_REUSEPORT)
    #[arg(long, env = "AMBIT_PORT_REUSE", action = clap::ArgAction::Set, default_value_t = true)]
    pub port_reuse: bool,
    /// Threads that carry traffic: a number (0 for one per core) or a share of the cores like `50%` [default: one per core
    /// that the container may use]
    #[arg(long, env = "AMBIT_WORKER_THREADS")]
    pub worker_threads: Option<WorkerCount>,
    /// Connections of clients at a time [default: 4096, less where few files may be open or memory is limited]
    #[arg(long, env = "AMBIT_MAX_CONNECTIONS", value_parser = count, value_name = "COUNT")]
    pub max_connections: Option<usize>,
    /// Tunnels in them at a time [default: 16384, less where memory is limited]
    #[arg(long, env = "AMBIT_MAX_TUNNELS", value_parser = count, value_name = "COUNT")]
    pub max_tunnels: Option<usize>,
    /// How long after SIGTERM clients that haven't heard of it yet are still served as usual; part of the time that open
    /// connections get [default: a fifth of that, at most 2s]
    #[arg(long, env = "AMBIT_DRAIN_DELAY", value_parser = duration, value_name = "DURATION")]
    pub drain_delay: Option<Duration>,
    /// What has a line in the access log: `off`, `denials` and `decisions` (records as JSON), or `text` (what came of each
    /// request, as Istio's waypoint writes it)
    #[arg(long, env = "AMBIT_ACCESS_LOG", value_enum, default_value = "denials")]
    pub access_log: AccessLog,
}

/// What has a line in the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum AccessLog {
    /// Nothing.
    Off,
    /// Records of what was denied.
    Denials,
    /// Records of every decision.
    Decisions,
    /// What came of each request or connection.
    Text,
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=1_000_000) => Ok(count),
        _ => Err("it isn't a number from 1 to 1000000".to_owned()),
    }
}

// === impl Traffic ===

impl Traffic {
    /// Threads on a machine with so many cores.
    pub fn workers(&self, cores: usize) -> usize {
        match self.worker_threads {
            None | Some(WorkerCount::Count(0)) => cores,
            Some(WorkerCount::Count(count)) => count,
            Some(WorkerCount::Percent(percent)) => (cores * percent as usize).div_ceil(100),
        }
        .max(1)
    }

    /// The waypoint's bounds: what was asked for, else what this machine and container give.
    pub fn limits(&self, room: files::Room) -> ambit_waypoint::Limits {
        let usual = ambit_waypoint::Limits::default();
        ambit_waypoint::Limits {
            connections: self.max_connections.unwrap_or(usual.connections.min(room.connections)),
            tunnels: self.max_tunnels.unwrap_or(usual.tunnels.min(room.tunnels)),
            ..usual
        }
    }

    /// How long clients that haven't heard of the drain are let in, of its whole time.
    pub fn late(&self, deadline: Duration) -> Duration {
        self.drain_delay.unwrap_or(MOST_LATE.min(deadline / LATE_SHARE)).min(deadline)
    }
}
