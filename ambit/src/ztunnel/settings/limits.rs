//! The transport's numbers.

use std::time::Duration;

use ambit_hbone::{
    copy::Timeouts,
    socket::{Congestion, Keepalive, StreamOptions},
};
use ambit_ztunnel::Limits;

use crate::proxy::settings::positive_duration;

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
    /// `system` is the machine's congestion control for all tunnels; `auto` puts CUBIC in place of BBR on tunnels within the
    /// network, where sending by timer costs a quarter of the processor time of bulk and gains nothing
    #[arg(long, env = "AMBIT_TUNNEL_CONGESTION_CONTROL", default_value = "auto", value_name = "auto|system")]
    pub tunnel_congestion_control: CongestionControl,
    /// Tell clients who answers (`baggage` in responses)
    #[arg(long, env, action = clap::ArgAction::Set, default_value_t = true)]
    pub enable_response_baggage: bool,
    /// Tell who is refused why: proxies in the answer to their CONNECT, applications that speak HTTP/1 by a 403. Otherwise
    /// applications see a reset, as they do where they don't speak HTTP/1
    #[arg(long, env = "AMBIT_EXPLAIN_REFUSALS", action = clap::ArgAction::Set, default_value_t = true)]
    pub explain_refusals: bool,
    /// `true` is refused: TLS 1.2 would show identities to whoever listens on the way, and has no post-quantum key exchange
    #[arg(long, env = "TLS12_ENABLED", action = clap::ArgAction::Set, default_value = "false", value_parser = refuse_tls12, value_name = "false")]
    pub tls12_enabled: bool,
    /// How long an inbound handshake may take
    #[arg(long, env = "AMBIT_HANDSHAKE_TIMEOUT", default_value = "10s", value_parser = positive_duration, value_name = "DURATION")]
    pub handshake_timeout: Duration,
    /// How long the answer to a CONNECT may take
    #[arg(long, env = "AMBIT_CONNECT_RESPONSE_TIMEOUT", default_value = "20s", value_parser = positive_duration, value_name = "DURATION")]
    pub connect_response_timeout: Duration,
    /// Accepted and without effect: charts set it, and what it switched on is how pods are always served
    #[arg(long, env = "INPOD_ENABLED")]
    pub inpod_enabled: Option<String>,
    /// Pause between pings of a tunnel
    #[arg(long, env = "AMBIT_PING_INTERVAL", default_value = "10s", value_parser = positive_duration, value_name = "DURATION")]
    pub ping_interval: Duration,
    /// How long the answer to one may take; then the tunnel is dead
    #[arg(long, env = "AMBIT_PING_TIMEOUT", default_value = "20s", value_parser = positive_duration, value_name = "DURATION")]
    pub ping_timeout: Duration,
    /// How long a connection without a byte is kept whose one direction has ended
    #[arg(long, env = "AMBIT_HALF_CLOSE_TIMEOUT", default_value = "1h", value_parser = positive_duration, value_name = "DURATION")]
    pub half_close_timeout: Duration,
    /// How long a connection without a byte is kept
    #[arg(long, env = "AMBIT_IDLE_TIMEOUT", default_value = "1d", value_parser = positive_duration, value_name = "DURATION")]
    pub idle_timeout: Duration,
}

/// Whose congestion control tunnels have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CongestionControl {
    /// One that doesn't send by timer, on short ways.
    Auto,
    /// The machine's.
    System,
}

/// How much pods may take. Past it the newest are refused, with a reason and a metric.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Budgets")]
pub struct Budgets {
    /// Connections of one pod at a time, tunnels of both directions and their streams among them; like each pod's other
    /// budgets never more than half of that of all [default: 4096]
    #[arg(long, env = "AMBIT_MAX_CONNECTIONS_PER_POD", value_parser = count, value_name = "COUNT")]
    pub max_connections_per_pod: Option<usize>,
    /// Connections of all pods at a time [default: 32768, less where few files may be open]
    #[arg(long, env = "AMBIT_MAX_CONNECTIONS", value_parser = count, value_name = "COUNT")]
    pub max_connections: Option<usize>,
    /// Inbound TLS handshakes of one pod under way or waiting for their turn at a time [default: 512]
    #[arg(long, env = "AMBIT_MAX_HANDSHAKES_PER_POD", value_parser = count, value_name = "COUNT")]
    pub max_handshakes_per_pod: Option<usize>,
    /// The same of all pods [default: 2048]
    #[arg(long, env = "AMBIT_MAX_HANDSHAKES", value_parser = count, value_name = "COUNT")]
    pub max_handshakes: Option<usize>,
    /// Tunnels of one pod being made at a time [default: 256]
    #[arg(long, env = "AMBIT_MAX_OPENING_TUNNELS_PER_POD", value_parser = count, value_name = "COUNT")]
    pub max_opening_tunnels_per_pod: Option<usize>,
    /// The same of all pods [default: 1024]
    #[arg(long, env = "AMBIT_MAX_OPENING_TUNNELS", value_parser = count, value_name = "COUNT")]
    pub max_opening_tunnels: Option<usize>,
    /// Memory that one pod's connections may hold for those who don't read, with 32 KiB for each connection and 128 KiB
    /// for each tunnel, in MiB [default: 256]
    #[arg(long, env = "AMBIT_MAX_MEMORY_PER_POD", value_parser = count, value_name = "MIB")]
    pub max_memory_per_pod: Option<usize>,
    /// The same of all pods [default: 1024, or half of the container's memory if that is less]
    #[arg(long, env = "AMBIT_MAX_MEMORY", value_parser = count, value_name = "MIB")]
    pub max_memory: Option<usize>,
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
            handshakes_per_pod: self.max_handshakes_per_pod.unwrap_or(limits.handshakes_per_pod),
            handshakes: self.max_handshakes.unwrap_or(limits.handshakes),
            tunnels_per_pod: self.max_opening_tunnels_per_pod.unwrap_or(limits.tunnels_per_pod),
            tunnels: self.max_opening_tunnels.unwrap_or(limits.tunnels),
            memory_bytes_per_pod: self.max_memory_per_pod.map_or(limits.memory_bytes_per_pod, |mib| mib << 20),
            memory_bytes: self.max_memory.map_or(limits.memory_bytes, |mib| mib << 20),
            dns_queries_per_pod: self.max_dns_queries_per_pod.unwrap_or(limits.dns_queries_per_pod),
            dns_queries: self.max_dns_queries.unwrap_or(limits.dns_queries),
        }
    }
}

fn refuse_tls12(text: &str) -> Result<bool, String> {
    match text {
        "true" => Err("TLS 1.2 isn't spoken; upgrade the peers that need it, and leave it out".to_owned()),
        _ => Ok(false),
    }
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
            keepalive_timeout: self.ping_timeout,
            idle_timeout: self.pool_unused_release_timeout,
            max_streams_per_connection: usize::from(self.pool_max_streams_per_connection),
            stream_window_bytes: self.http2_stream_window_size,
            connection_window_bytes: self.http2_connection_window_size,
            max_frame_bytes: self.http2_frame_size,
            congestion: match self.tunnel_congestion_control {
                CongestionControl::Auto => Congestion::unpaced(),
                CongestionControl::System => None,
            },
            ..ambit_hbone::Limits::default()
        }
    }
}
