//! Every bound of the node proxy. Past one of them the newest connection or query is refused, never an older one.

use std::time::Duration;

/// Endpoints tried for one connection before the client is refused.
pub(crate) const MAX_ATTEMPTS: usize = 3;
/// How long one of them may take while there are others to turn to.
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long all of them together may take.
pub(crate) const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// Counters of connections in flight. With more endpoints in use, some share one.
pub(crate) const LOAD_COUNTERS: usize = 16_384;
/// Names outside the mesh whose addresses are kept.
pub(crate) const MAX_NAMES: usize = 4096;
/// How long the addresses of a name are kept at least and at most, whatever the resolver says.
pub(crate) const MIN_NAME_AGE: Duration = Duration::from_secs(1);
pub(crate) const MAX_NAME_AGE: Duration = Duration::from_secs(60);
/// How long looking up a name may take.
pub(crate) const NAME_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a SOCKS5 client may take to say where it wants to go, its name's look-up included.
pub(crate) const SOCKS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one TCP connect to an application, endpoint or host address may take.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection waits for the control plane to say who its pod is.
pub(crate) const WORKLOAD_WAIT: Duration = Duration::from_secs(5);
/// Pause after a failed `accept` (no descriptors left), so the loop doesn't spin.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Connections the kernel queues for one listener.
pub(crate) const LISTEN_BACKLOG: i32 = 1024;
/// How long a closing listener still takes the connections that were on their way to it when it stopped being chosen.
pub(crate) const HANDOVER: Duration = Duration::from_millis(250);
/// How long tasks may take to end after they were told to end now.
pub(crate) const STOP_WAIT: Duration = Duration::from_millis(250);
/// Longest DNS query accepted, in bytes.
pub(crate) const MAX_DNS_QUERY_BYTES: usize = 4096;
/// Largest DNS answer sent over UDP, whatever the client says it can take (avoids fragments).
pub(crate) const MAX_DNS_UDP_ANSWER_BYTES: u16 = 1232;
/// Addresses put into one DNS answer.
pub(crate) const MAX_DNS_ADDRESSES: usize = 64;
/// Seconds a client may keep the virtual addresses of a name.
pub(crate) const DNS_TTL_SECONDS: u32 = 30;
/// Seconds a client may keep the addresses of pods: shorter, because pods go and their addresses are given to others.
pub(crate) const DNS_ENDPOINT_TTL_SECONDS: u32 = 5;
/// Search domains of a pod that are looked at.
pub(crate) const MAX_DNS_SEARCH_DOMAINS: usize = 8;
/// Answers of resolvers kept for one pod.
pub(crate) const MAX_DNS_CACHE_ENTRIES: usize = 512;
/// The same in bytes of the answers as they came.
pub(crate) const MAX_DNS_CACHE_BYTES: usize = 256 << 10;
/// How long an answer is kept at most, whatever the resolver says.
pub(crate) const MAX_DNS_TTL: Duration = Duration::from_secs(3600);
/// The same for the answer that there is no such name.
pub(crate) const MAX_DNS_NEGATIVE_TTL: Duration = Duration::from_secs(300);
/// Upstream resolvers asked for one query.
pub(crate) const MAX_DNS_UPSTREAMS: usize = 3;
/// How long one upstream resolver may take.
pub(crate) const DNS_UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
/// Datagrams looked at while waiting for the one that answers; the others are forged or stale.
pub(crate) const MAX_DNS_STRAY_ANSWERS: usize = 16;
/// How long a DNS connection over TCP may stay silent.
pub(crate) const DNS_TCP_IDLE: Duration = Duration::from_secs(5);
/// Queries served on one DNS connection over TCP.
pub(crate) const MAX_DNS_TCP_QUERIES: usize = 100;

/// Operators' connections to one port at a time.
pub(crate) const MAX_ADMIN_CONNECTIONS: usize = 64;
/// Dumps of the configuration, or scrapes of the metrics, in memory at a time.
pub(crate) const MAX_ADMIN_DUMPS: usize = 2;
/// Bytes of an operator's request line and headers.
pub(crate) const MAX_ADMIN_BUFFER_BYTES: usize = 8 << 10;
/// How long an operator's request may take to arrive.
pub(crate) const ADMIN_HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an operator's connection may last in all.
pub(crate) const ADMIN_CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);
/// How long operators' requests may go on when the proxy ends.
pub(crate) const ADMIN_DRAIN: Duration = Duration::from_secs(1);

/// The bounds that an operator may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of one pod at a time: captured ones, inbound tunnels, and inbound streams.
    pub connections_per_pod: usize,
    /// The same for all pods together.
    pub connections: usize,
    /// Inbound TLS handshakes in flight, all pods together.
    pub handshakes: usize,
    /// DNS queries in flight towards the host's resolvers, and DNS connections over TCP, of one pod.
    pub dns_queries_per_pod: usize,
    /// The same for all pods together.
    pub dns_queries: usize,
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_per_pod: 4096,
            connections: 32_768,
            handshakes: 256,
            dns_queries_per_pod: 128,
            dns_queries: 1024,
        }
    }
}
