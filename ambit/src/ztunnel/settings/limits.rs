//! The transport's numbers.

use std::time::Duration;

use ambit_hbone::{
    copy::Timeouts,
    socket::{Keepalive, StreamOptions},
};
use ambit_ztunnel::Limits;

use super::values::positive_duration;

/// The transport's numbers.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Tunnels and connections")]
pub struct Transport {
    /// Connections that share one tunnel at a time
    #[arg(long, env, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    pub pool_max_streams_per_connection: u16,
    /// How long an unused tunnel is kept
    #[arg(long, env, default_value = "5m", value_parser = positive_duration, value_name = "DURATION")]
    pub pool_unused_release_timeout: Duration,
    /// Receive window of one connection in a tunnel, in bytes
    #[arg(long, env = "HTTP2_STREAM_WINDOW_SIZE", default_value_t = 4 << 20, value_parser = clap::value_parser!(u32).range(65_535..=0x7fff_ffff), value_name = "BYTES")]
    pub http2_stream_window_size: u32,
    /// Receive window of a whole tunnel, in bytes
    #[arg(long, env = "HTTP2_CONNECTION_WINDOW_SIZE", default_value_t = 16 << 20, value_parser = clap::value_parser!(u32).range(65_535..=0x7fff_ffff), value_name = "BYTES")]
    pub http2_connection_window_size: u32,
    /// Largest frame taken from a tunnel, in bytes
    #[arg(long, env = "HTTP2_FRAME_SIZE", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(16_384..=0x00ff_ffff), value_name = "BYTES")]
    pub http2_frame_size: u32,
    /// Probe silent connections to applications (TCP keepalive)
    #[arg(long, env, action = clap::ArgAction::Set, default_value_t = true)]
    pub keepalive_enabled: bool,
    /// Silence before the first probe
    #[arg(long, env, default_value = "180s", value_parser = positive_duration, value_name = "DURATION")]
    pub keepalive_time: Duration,
    /// Time between probes
    #[arg(long, env, default_value = "180s", value_parser = positive_duration, value_name = "DURATION")]
    pub keepalive_interval: Duration,
    /// Probes without an answer after which a connection is dead
    #[arg(long, env, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=127))]
    pub keepalive_retries: u32,
    /// Give up connections whose bytes aren't acknowledged for as long as keepalive would take (TCP_USER_TIMEOUT)
    #[arg(long, env, action = clap::ArgAction::Set, default_value_t = false)]
    pub user_timeout_enabled: bool,
    /// Tell clients who answers (`baggage` in responses)
    #[arg(long, env, action = clap::ArgAction::Set, default_value_t = true)]
    pub enable_response_baggage: bool,
    /// Accept TLS 1.2 too. Ambit doesn't: anything but `false` is refused
    #[arg(long, env = "TLS12_ENABLED", action = clap::ArgAction::Set, default_value = "false", value_parser = refuse_tls12, hide = true)]
    pub tls12_enabled: bool,
    /// How long an inbound handshake may take
    #[arg(long, env = "AMBIT_HANDSHAKE_TIMEOUT", default_value = "10s", value_parser = positive_duration, value_name = "DURATION")]
    pub handshake_timeout: Duration,
    /// How long the answer to a CONNECT may take
    #[arg(long, env = "AMBIT_CONNECT_RESPONSE_TIMEOUT", default_value = "20s", value_parser = positive_duration, value_name = "DURATION")]
    pub connect_response_timeout: Duration,
    /// Unused; kept so that charts that set it work
    #[arg(long, env = "INPOD_ENABLED", hide = true)]
    pub inpod_enabled: Option<String>,
    /// Pause between pings of a tunnel
    #[arg(long, env = "AMBIT_PING_INTERVAL", default_value = "10s", value_parser = positive_duration, value_name = "DURATION")]
    pub ping_interval: Duration,
    /// How long a connection without a byte is kept whose one direction has ended
    #[arg(long, env = "AMBIT_HALF_CLOSE_TIMEOUT", default_value = "1h", value_parser = positive_duration, value_name = "DURATION")]
    pub half_close_timeout: Duration,
    /// How long a connection without a byte is kept
    #[arg(long, env = "AMBIT_IDLE_TIMEOUT", default_value = "1d", value_parser = positive_duration, value_name = "DURATION")]
    pub idle_timeout: Duration,
}

/// How much pods may take. Past it the newest are refused, with a reason and a metric.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Budgets")]
pub struct Budgets {
    /// Connections of one pod at a time [default: 4096, less where few files may be open]
    #[arg(long, env = "AMBIT_MAX_CONNECTIONS_PER_POD", value_parser = count, value_name = "COUNT")]
    pub max_connections_per_pod: Option<usize>,
    /// Connections of all pods at a time [default: 32768, less where few files may be open]
    #[arg(long, env = "AMBIT_MAX_CONNECTIONS", value_parser = count, value_name = "COUNT")]
    pub max_connections: Option<usize>,
    /// Inbound TLS handshakes at a time, of all pods [default: 256]
    #[arg(long, env = "AMBIT_MAX_HANDSHAKES", value_parser = count, value_name = "COUNT")]
    pub max_handshakes: Option<usize>,
    /// DNS queries of one pod at a time that others have to answer [default: 128]
    #[arg(long, env = "AMBIT_MAX_DNS_QUERIES_PER_POD", value_parser = count, value_name = "COUNT")]
    pub max_dns_queries_per_pod: Option<usize>,
    /// The same of all pods [default: 1024]
    #[arg(long, env = "AMBIT_MAX_DNS_QUERIES", value_parser = count, value_name = "COUNT")]
    pub max_dns_queries: Option<usize>,
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=1_000_000) => Ok(count),
        _ => Err("it isn't a number from 1 to 1000000".to_owned()),
    }
}

// === impl Budgets ===

impl Budgets {
    /// These limits, changed as the settings say.
    pub fn limits(&self, limits: Limits) -> Limits {
        Limits {
            connections_per_pod: self.max_connections_per_pod.unwrap_or(limits.connections_per_pod),
            connections: self.max_connections.unwrap_or(limits.connections),
            handshakes: self.max_handshakes.unwrap_or(limits.handshakes),
            dns_queries_per_pod: self.max_dns_queries_per_pod.unwrap_or(limits.dns_queries_per_pod),
            dns_queries: self.max_dns_queries.unwrap_or(limits.dns_queries),
        }
    }
}

fn refuse_tls12(text: &str) -> Result<bool, String> {
    if text == "true" { Err("TLS 1.2 isn't spoken; upgrade the peers that need it".to_owned()) } else { Ok(false) }
}

// === impl Transport ===

impl Transport {
    /// How long connections are kept though nothing moves.
    pub fn idle(&self) -> Timeouts {
        Timeouts { half_close: self.half_close_timeout, idle: self.idle_timeout }
    }

    /// How dead ends of applications' connections are found.
    pub fn stream(&self) -> StreamOptions {
        let probes =
            Keepalive { time: self.keepalive_time, interval: self.keepalive_interval, retries: self.keepalive_retries };
        StreamOptions { keepalive: self.keepalive_enabled.then_some(probes), user_timeout: self.user_timeout_enabled }
    }

    /// The same as the transport takes it.
    pub fn limits(&self) -> ambit_hbone::Limits {
        ambit_hbone::Limits {
            handshake_timeout: self.handshake_timeout,
            response_timeout: self.connect_response_timeout,
            keepalive_interval: self.ping_interval,
            idle_timeout: self.pool_unused_release_timeout,
            max_streams_per_connection: usize::from(self.pool_max_streams_per_connection),
            stream_window_bytes: self.http2_stream_window_size,
            connection_window_bytes: self.http2_connection_window_size,
            max_frame_bytes: self.http2_frame_size,
            ..ambit_hbone::Limits::default()
        }
    }
}
