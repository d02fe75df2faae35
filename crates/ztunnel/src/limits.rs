//! Every bound of the node proxy. Past one of them the newest connection or query is refused, never an older one.

use std::time::Duration;

/// Hops tried for one connection before the client is refused.
pub(crate) const MAX_ATTEMPTS: usize = 3;
/// How long one TCP connect to an application, endpoint or host address may take.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection waits for the control plane to say who its pod is.
pub(crate) const WORKLOAD_WAIT: Duration = Duration::from_secs(5);
/// Pause after a failed `accept` (no descriptors left), so the loop doesn't spin.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Connections the kernel queues for one listener.
pub(crate) const LISTEN_BACKLOG: i32 = 1024;
/// How long tasks may take to end after they were told to end now.
pub(crate) const STOP_WAIT: Duration = Duration::from_millis(250);
/// Longest DNS query accepted, in bytes.
pub(crate) const MAX_DNS_QUERY_BYTES: usize = 4096;
/// Largest DNS answer sent over UDP, whatever the client says it can take (avoids fragments).
pub(crate) const MAX_DNS_UDP_ANSWER_BYTES: u16 = 1232;
/// Addresses put into one DNS answer.
pub(crate) const MAX_DNS_ADDRESSES: usize = 64;
/// Seconds a client may keep a name of the mesh.
pub(crate) const DNS_TTL_SECONDS: u32 = 5;
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
