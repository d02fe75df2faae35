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

/// A request's header lines, names and values together.
pub(crate) const MAX_HEADER_BYTES: usize = 60 * 1024;
/// A request's header lines, counted. Hyper's HTTP/1 parser has the same bound.
pub(crate) const MAX_HEADERS: usize = 100;
/// Longest request target.
pub(crate) const MAX_TARGET_BYTES: usize = 16 * 1024;
/// Read buffer of one HTTP/1.1 connection.
pub(crate) const MAX_HTTP1_BUFFER_BYTES: usize = 128 * 1024;

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
