//! Every bound of the waypoint, in one place.

use std::time::Duration;

/// What one waypoint accepts before it refuses the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// HBONE connections open at once. One per client pod and node proxy is usual.
    pub connections: usize,
    /// Tunnels (CONNECT streams) open at once over all connections.
    pub tunnels: usize,
    /// How long the first bytes of a tunnel are awaited on a port whose protocol isn't declared, unless the server
    /// speaks first. After that it is TCP.
    pub detection_timeout: Duration,
    /// How long an HTTP connection may wait for a (whole) next request head.
    pub idle_timeout: Duration,
    /// How long reaching one endpoint may take: TCP, TLS and CONNECT.
    pub connect_timeout: Duration,
}

/// Outcomes of requests, and of policies, whose counters one tunnel keeps at hand; past it they are looked up again.
pub(crate) const MAX_TUNNEL_COUNTERS: usize = 16;
/// Readers of the live stream of decisions at once.
pub(crate) const MAX_STREAMS: usize = 8;
/// Records that may wait for such a reader; one that is slower misses the oldest and is told how many.
pub(crate) const MAX_STREAMED_RECORDS: usize = 1_024;
/// How long an operator's connection, and so a live stream, may last.
pub(crate) const MAX_STREAM_TIME: Duration = Duration::from_secs(3600);
/// Dumps of the configuration, or scrapes of the metrics, in memory at a time.
pub(crate) const MAX_ADMIN_DUMPS: usize = 2;
/// Spans that may wait to be sent to a collector; past it the newest are counted and dropped.
pub(crate) const MAX_QUEUED_SPANS: usize = 8_192;
/// Spans in one request to a collector.
pub(crate) const MAX_SPANS_PER_EXPORT: usize = 512;
/// How long spans are gathered for one request to a collector.
pub(crate) const EXPORT_GATHERING: Duration = Duration::from_secs(1);
/// How often the same spans are sent, if a collector can't take them at the moment.
pub(crate) const MAX_EXPORT_TRIES: u32 = 3;
/// Time before the second try; each further pause is twice as long.
pub(crate) const EXPORT_BACKOFF: Duration = Duration::from_secs(1);
/// How long the end of a waypoint waits for its last spans to be sent.
pub(crate) const SPAN_FLUSH_TIMEOUT: Duration = Duration::from_millis(500);
/// Largest answer of a collector that is read.
pub(crate) const MAX_COLLECTOR_ANSWER_BYTES: usize = 64 * 1024;
/// Longest `tracestate` put into a span (what the recommendation asks for); a longer one only goes on with its request.
pub(crate) const MAX_TRACE_STATE_BYTES: usize = 512;
/// How long a TCP connection may be silent that may be so for ever.
pub(crate) const MAX_SILENCE: Duration = Duration::from_secs(365 * 24 * 3600);
/// How often the bytes of an open TCP connection are counted.
pub(crate) const TCP_COUNT_PERIOD: Duration = Duration::from_secs(5);

/// [`Limits::connections`] unless told otherwise.
pub const MAX_CONNECTIONS: usize = 4_096;
/// [`Limits::tunnels`] unless told otherwise.
pub const MAX_TUNNELS: usize = 16_384;
/// [`Limits::detection_timeout`] unless told otherwise.
pub const DETECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// [`Limits::idle_timeout`] unless told otherwise.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// [`Limits::connect_timeout`] unless told otherwise.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Silence of a client after which the server is given the chance to speak first, on a port whose protocol isn't
/// declared. Clients of HTTP seldom wait so long, so few connections are opened for nothing.
pub(crate) const SERVER_FIRST_SILENCE: Duration = Duration::from_millis(100);
/// Bytes looked at to tell HTTP from TCP. A request line that is longer is taken for TCP, where only policies without
/// HTTP fields allow anything.
pub(crate) const MAX_DETECTION_BYTES: usize = 16 * 1024;
/// Longest method that detection takes for one.
pub(crate) const MAX_METHOD_BYTES: usize = 32;

/// Longest token that is looked at.
pub(crate) const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Deepest nesting of a token's claims.
pub(crate) const MAX_TOKEN_NESTING: usize = 32;
/// How far the clocks of issuers and waypoints may be apart, as in Envoy.
pub(crate) const CLOCK_SKEW_SECONDS: u64 = 60;
/// Keys that one token's signature is checked by, when the token doesn't say which it is.
pub(crate) const MAX_KEYS_TRIED: usize = 16;
/// Verified tokens that are remembered.
pub(crate) const CACHED_TOKENS: usize = 8_192;
/// The same, by the size of the tokens together; what they say takes a few times as much.
pub(crate) const CACHED_TOKEN_BYTES: usize = 8 * 1024 * 1024;
/// Parts of the memory of tokens, each with a lock of its own.
pub(crate) const TOKEN_CACHE_PARTS: usize = 16;
/// Longest path shown in `WWW-Authenticate`.
pub(crate) const MAX_REALM_PATH_BYTES: usize = 256;

/// A request's header lines, names and values together.
pub(crate) const MAX_HEADER_BYTES: usize = 60 * 1024;
/// A request's header lines, counted. Hyper's HTTP/1 parser has the same bound.
pub(crate) const MAX_HEADERS: usize = 100;
/// Longest request target.
pub(crate) const MAX_TARGET_BYTES: usize = 16 * 1024;
/// Read buffer of one HTTP/1.1 connection.
pub(crate) const MAX_HTTP1_BUFFER_BYTES: usize = 128 * 1024;

/// Size and extensions of one chunk of a body.
pub(crate) const MAX_CHUNK_LINE_BYTES: usize = 4 * 1024;

/// Requests in flight on one HTTP/2 connection from a client.
pub(crate) const MAX_HTTP2_STREAMS: u32 = 100;
/// Streams reset by the client before they were accepted; past it the connection ends (rapid reset).
pub(crate) const MAX_HTTP2_PENDING_RESETS: usize = 32;
/// Streams reset because of the client's own errors; past it the connection ends.
pub(crate) const MAX_HTTP2_ERROR_RESETS: usize = 128;
/// Receive window of one stream.
pub(crate) const HTTP2_STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Receive window of one connection: the most that a slow reader makes the waypoint hold.
pub(crate) const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Largest frame accepted.
pub(crate) const HTTP2_FRAME_BYTES: u32 = 64 * 1024;
/// Unsent bytes held per stream.
pub(crate) const HTTP2_SEND_BUFFER_BYTES: usize = 256 * 1024;

/// Upstream HTTP/1.1 connections kept for one client connection.
pub(crate) const MAX_IDLE_UPSTREAMS: usize = 16;
/// Services' ports with rules for their endpoints that are remembered while nobody uses them.
pub(crate) const MAX_IDLE_CLUSTERS: usize = 1_024;
/// Requests that wait for a connection to endpoints with a rule that doesn't say how many may.
pub(crate) const MAX_PENDING_REQUESTS: u32 = 16_384;
/// How long a request waits for room for a connection.
pub(crate) const PENDING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an endpoint that fails is left out at most, unless a rule's shortest time is longer; as in Envoy.
pub(crate) const MAX_EJECTION_TIME: Duration = Duration::from_secs(300);
/// Endpoints tried for one request or TCP connection.
pub(crate) const MAX_ENDPOINT_TRIES: usize = 3;
/// How long an upstream connection whose last response has just ended may take to be usable again, before a new one
/// is opened.
pub(crate) const REUSE_WAIT: Duration = Duration::from_millis(5);
/// Counters of requests in flight per endpoint; endpoints that share one are balanced as if they were one.
pub(crate) const LOAD_COUNTERS: usize = 1_024;

/// Body of a denied HTTP/1.1 request that is read and thrown away so that the connection can go on.
pub(crate) const MAX_DISCARDED_BODY_BYTES: usize = 64 * 1024;
/// How long that may take.
pub(crate) const DISCARD_TIMEOUT: Duration = Duration::from_millis(10);

/// Providers of CUSTOM policies asked about one request or connection.
pub(crate) const MAX_PROVIDERS_ASKED: usize = 16;
/// Providers that connections are kept to; past it, those of providers that nobody asks are closed.
pub(crate) const MAX_KNOWN_PROVIDERS: usize = 256;
/// Questions that one provider is asked at once; more are refused.
pub(crate) const MAX_CHECKS: usize = 1_024;
/// Largest answer of a provider: a denial's body goes to the client.
pub(crate) const MAX_CHECK_ANSWER_BYTES: usize = 256 * 1024;
/// Changes of headers that one answer of a provider may want.
pub(crate) const MAX_CHECK_EDITS: usize = 100;
/// Request bodies held for one provider at once, all together.
pub(crate) const CHECKED_BODY_ROOM_BYTES: usize = 64 * 1024 * 1024;
/// How long a request's body may take to arrive, as far as a provider is sent it.
pub(crate) const CHECKED_BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// HTTP/1.1 connections kept to one provider.
pub(crate) const MAX_IDLE_CHECK_CONNECTIONS: usize = 64;
/// Pause between pings on an HTTP/2 connection to a provider while it is asked.
pub(crate) const CHECK_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// How long the answer to a ping may take.
pub(crate) const CHECK_KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a denial's body that become the message of a refused gRPC call.
pub(crate) const MAX_GRPC_MESSAGE_BYTES: usize = 1_024;

/// How long a listener that hands its port over still takes the connections that were on their way to it.
pub(crate) const HANDOVER: Duration = Duration::from_millis(250);
/// Connections that it takes at once at the end of that: as many as the kernel keeps for it.
pub(crate) const MAX_LAST_CONNECTIONS: usize = 128;
/// Silence towards an HTTP/1.1 client that has ended its side and waits for an answer, after which it is taken to be gone.
pub(crate) const HALF_CLOSED_SILENCE: Duration = Duration::from_secs(300);

/// How long the last tasks may take to notice that they were cut off.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Bodies with a known length up to this are not cut off when a policy changes: they are gone before it matters.
pub(crate) const SHORT_BODY_BYTES: u64 = 64 * 1024;

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: MAX_CONNECTIONS,
            tunnels: MAX_TUNNELS,
            detection_timeout: DETECTION_TIMEOUT,
            idle_timeout: IDLE_TIMEOUT,
            connect_timeout: CONNECT_TIMEOUT,
        }
    }
}

/// Bytes of a request's body that are kept for another try; a request that is larger isn't tried again.
pub(crate) const MAX_REPLAY_BYTES: usize = 64 * 1024;
/// Copies of requests on their way at once; past it requests aren't mirrored.
pub(crate) const MAX_MIRRORS: usize = 1_024;
/// Pieces of a body that wait for a copy; a copy that is slower breaks off.
pub(crate) const MAX_MIRRORED_FRAMES: usize = 32;
/// How long a copy may take.
pub(crate) const MIRROR_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time between two tries, in shortest ones.
pub(crate) const MAX_BACKOFF_FACTOR: u32 = 10;
/// Time of failing to reach endpoints after which a request isn't tried again for that.
pub(crate) const MAX_CONNECT_RETRY_TIME: Duration = Duration::from_secs(1);
/// Requests that wait for a fault's delay at once; past it requests aren't delayed.
pub(crate) const MAX_DELAYED: usize = 1_024;
/// Counters of retries; services that share one share a budget.
pub(crate) const RETRY_BUDGETS: usize = 256;
/// Retries of a service per hundred requests (GEP-3388).
pub(crate) const RETRY_BUDGET_PERCENT: u64 = 20;
/// Retries of a service in a window, however few requests there are.
pub(crate) const RETRY_BUDGET_MINIMUM: u64 = 100;
/// The window.
pub(crate) const RETRY_BUDGET_WINDOW: Duration = Duration::from_secs(10);
