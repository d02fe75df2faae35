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
/// Names asked of the control plane for one connection.
pub(crate) const MAX_DEMANDS_PER_CONNECTION: usize = 8;
/// Names asked of the control plane for one pod at a time.
pub(crate) const MAX_DEMANDS_PER_POD: usize = 256;
/// Names remembered as leading to nothing.
pub(crate) const MAX_ABSENT: usize = 65_536;
/// How long that is believed.
pub(crate) const ABSENT_FOR: Duration = Duration::from_secs(2);
/// Refused clients that are told why at a time, all pods together; the others are reset at once.
pub(crate) const MAX_EXPLANATIONS: usize = 256;
/// How long a refused client is waited for to show that it speaks HTTP/1. It has mostly shown it already.
pub(crate) const EXPLANATION_WAIT: Duration = Duration::from_millis(300);
/// Bytes of the line of its request.
pub(crate) const MAX_REQUEST_LINE_BYTES: u64 = 8 << 10;
/// Bytes of the reason that it is told.
pub(crate) const MAX_EXPLANATION_BYTES: usize = 4096;
/// How long it may take to read the answer, and as long again to stop sending.
pub(crate) const EXPLANATION_LINGER: Duration = Duration::from_secs(1);
/// Bytes of it that are thrown away meanwhile.
pub(crate) const MAX_DISCARDED_BYTES: u64 = 1 << 20;
/// How long a connection waits for the control plane to say who its pod is.
pub(crate) const WORKLOAD_WAIT: Duration = Duration::from_secs(5);
/// Pause after a failed `accept` (no descriptors left), so the loop doesn't spin; doubled each time it fails again.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Longest such pause.
pub(crate) const MAX_ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Pause after every few connections that could only be refused: those that storm in wait in the kernel's backlog, and past
/// that at their own end, where they cost the others nothing.
pub(crate) const REFUSAL_PAUSE: Duration = Duration::from_millis(1);
/// How many that is.
pub(crate) const REFUSALS_AT_ONCE: u32 = 4;
/// Records of refusals that the pod's load alone is the reason of, per pod. The others are only counted.
pub(crate) const MAX_REFUSAL_RECORDS_PER_SECOND: u64 = 20;
/// Handshakes of one pod, in one direction, that are computed at a time on the threads for handshakes.
pub(crate) const TURNS_PER_POD: usize = 2;
/// What a connection, or a stream of a tunnel, takes of its pod's memory when it begins, in bytes: its tasks, and what it
/// holds at least in both directions.
pub(crate) const STREAM_BYTES: usize = 32 << 10;
/// Bytes read from a connection at once while memory is short.
pub(crate) const SHORT_READ_BYTES: usize = 8 << 10;
/// Live connections that a change has judged again before other tasks get their turn.
pub(crate) const REVIEWED_AT_ONCE: usize = 64;
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

/// Dumps of the configuration, or scrapes of the metrics, in memory at a time.
pub(crate) const MAX_ADMIN_DUMPS: usize = 2;
/// How long an operator's connection may last in all.
pub(crate) const ADMIN_CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);

/// The bounds that an operator may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of one pod at a time: captured ones, tunnels of both directions, and inbound streams. This and the
    /// other shares are never more than half of what all pods may have.
    pub connections_per_pod: usize,
    /// The same for all pods together.
    pub connections: usize,
    /// Inbound TLS handshakes of one pod that are under way or wait for their turn.
    pub handshakes_per_pod: usize,
    /// The same for all pods together.
    pub handshakes: usize,
    /// Tunnels of one pod that are being made.
    pub tunnels_per_pod: usize,
    /// The same for all pods together.
    pub tunnels: usize,
    /// What one pod's connections may hold for those who don't read, with a fixed amount for each, in bytes.
    pub memory_bytes_per_pod: usize,
    /// The same for all pods together.
    pub memory_bytes: usize,
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
            handshakes_per_pod: 512,
            handshakes: 2048,
            tunnels_per_pod: 256,
            tunnels: 1024,
            memory_bytes_per_pod: 256 << 20,
            memory_bytes: 1 << 30,
            dns_queries_per_pod: 128,
            dns_queries: 1024,
        }
    }
}
