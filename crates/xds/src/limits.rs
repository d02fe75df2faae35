//! Every bound of this crate.

use std::time::Duration;

// --- connections, both ends

/// Longest wait for a TCP connection, and then for TLS and HTTP/2 on it.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after which a quiet connection is asked for a sign of life (HTTP/2 PING).
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// Longest wait for that sign; then the connection is given up.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Quiet time after which TCP itself probes.
pub const TCP_KEEPALIVE_TIME: Duration = Duration::from_secs(300);
/// Pause between TCP's probes.
pub const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(75);
/// TCP's probes without an answer before the connection is given up.
pub const TCP_KEEPALIVE_RETRIES: u32 = 9;
/// Received bytes of one stream that may wait to be read.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Received bytes of one connection that may wait to be read.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Largest list of headers or trailers read, in bytes.
pub const MAX_HEADER_BYTES: u32 = 16 << 10;
/// Largest file with roots or a token read, in bytes.
pub const MAX_CREDENTIAL_BYTES: u64 = 1 << 20;
/// Extra headers (`XDS_HEADER_*`, `CA_HEADER_*`) sent.
pub const MAX_EXTRA_HEADERS: usize = 64;

// --- the discovery client

/// Largest response read, unless configured otherwise: what Istio's node proxy reads.
pub const MAX_RESPONSE_BYTES: usize = 200 << 20;
/// Upper end of the first pause before a new attempt; it doubles up to [`MAX_BACKOFF`]. The pause itself is drawn evenly
/// from zero to there.
pub const MIN_BACKOFF: Duration = Duration::from_millis(10);
/// Upper end of the longest pause before a new attempt.
pub const MAX_BACKOFF: Duration = Duration::from_secs(15);
/// A stream that served this long ended by no fault of the server's: the next pause is a first one.
pub const STABLE_STREAM: Duration = Duration::from_secs(10);
/// Resources of one type held. What goes past it is refused by name, and not remembered.
pub const MAX_RESOURCES: usize = 400_000;
/// Names one response may list as removed.
pub const MAX_REMOVED: usize = 2 * MAX_RESOURCES;
/// Longest name or version of a resource, in bytes.
pub const MAX_NAME_BYTES: usize = 4096;
/// Requests that may wait to be sent on a stream.
pub const MAX_QUEUED_REQUESTS: usize = 16;
/// Largest explanation sent with a refusal, in bytes. What is cut off is counted.
pub const MAX_NACK_BYTES: usize = 16 << 10;
/// Names asked for on demand and subscribed to. Those that lead to nothing are given up and don't count.
pub const MAX_DEMANDED: usize = 65_536;
/// Questions on demand that may wait for the client.
pub const MAX_QUEUED_DEMANDS: usize = 1024;
/// Names whose answer callers may wait for at a time.
pub const MAX_AWAITED: usize = 4096;
/// Callers that may wait for the same answer.
pub const MAX_WAITERS_PER_NAME: usize = 1024;
/// Longest wait for a name asked for on demand.
pub const DEMAND_TIMEOUT: Duration = Duration::from_secs(5);

// --- the last good state

/// Largest file with the last good state, in bytes.
pub const MAX_STATE_BYTES: usize = 512 << 20;
/// A change is written to disk when nothing else changed for this long,
pub const STATE_QUIET: Duration = Duration::from_secs(2);
/// or at the latest this long after it.
pub const STATE_MAX_DELAY: Duration = Duration::from_secs(30);
/// Responses that may come while the file is written; then the stream waits for the disk.
pub const MAX_MISSED_CHANGES: usize = 1024;

// --- the CA client

/// Longest wait for a signed certificate.
pub const SIGNING_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer of the CA read, in bytes.
pub const MAX_SIGNED_BYTES: usize = 1 << 20;
/// Life asked for, unless configured otherwise.
pub const DEFAULT_CERTIFICATE_TTL: Duration = Duration::from_secs(24 * 3600);

// --- the servers

/// Connections one server serves.
pub const MAX_CONNECTIONS: usize = 10_000;
/// Streams of one connection.
pub const MAX_STREAMS_PER_CONNECTION: u32 = 16;
/// Largest discovery request read, in bytes: a client that comes back names all that it holds.
pub const MAX_REQUEST_BYTES: usize = 64 << 20;
/// Largest certificate request read, in bytes.
pub const MAX_SIGNING_REQUEST_BYTES: usize = 64 << 10;
/// Responses that may wait for a client to read them; then its changes wait, folded into one.
pub const MAX_QUEUED_RESPONSES: usize = 2;
/// Types one stream may watch.
pub const MAX_TYPES_PER_STREAM: usize = 16;
/// Changes remembered. A client that is further behind is asked to connect again and say what it holds.
pub const MAX_REMEMBERED_CHANGES: usize = 262_144;
/// Longest life of a stream (a random tenth less, so that streams opened together don't end together); then the client
/// must come again, and is authorised again.
pub const MAX_STREAM_AGE: Duration = Duration::from_secs(30 * 60);
/// Time a stream gets to send its first request.
pub const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Time streams get to end after a shutdown was asked for.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after the listener refused to accept (descriptors may be exhausted).
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

// --- local files

/// Largest local file read, in bytes.
pub const MAX_LOCAL_BYTES: usize = 64 << 20;
/// Workloads, services and policies in one local file.
pub const MAX_LOCAL_RESOURCES: usize = 100_000;

// --- policies

/// Rules that the groups of one policy may make.
pub const MAX_RULES_OF_GROUPS: usize = 4096;
