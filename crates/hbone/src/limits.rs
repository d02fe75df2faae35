//! Every bound of the transport, with the defaults of `spec/ztunnel.md` 2.4, 3 and 11.3.

use std::time::Duration;

/// Bounds of HBONE connections, both ends. The default is what production uses; tests shorten the times.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest wait for a TCP connection.
    pub connect_timeout: Duration,
    /// Longest wait for the TLS and HTTP/2 handshakes together.
    pub handshake_timeout: Duration,
    /// Longest wait for the response to a CONNECT.
    pub response_timeout: Duration,
    /// Pause between the last PONG and the next PING.
    pub keepalive_interval: Duration,
    /// Longest wait for a PONG; after it the connection is dead.
    pub keepalive_timeout: Duration,
    /// How long a pooled connection without a stream is kept.
    pub idle_timeout: Duration,
    /// Concurrent streams per pooled connection (the peer's own limit holds too).
    pub max_streams_per_connection: usize,
    /// Pooled connections per {network, source, expected identities, peer, mark}.
    pub max_connections_per_peer: usize,
    /// Concurrent streams a server lets one peer open on a connection.
    pub max_accepted_streams: u32,
    /// Receive window per stream, in bytes.
    pub stream_window_bytes: u32,
    /// Receive window per connection, in bytes; four times the stream's, so one stalled stream can't stop the others.
    pub connection_window_bytes: u32,
    /// Largest HTTP/2 frame accepted, in bytes.
    pub max_frame_bytes: u32,
    /// Largest header list a client accepts, in bytes.
    pub client_header_bytes: u32,
    /// Largest header list a server accepts, in bytes.
    pub server_header_bytes: u32,
    /// Bytes a client stream buffers before its writer has to wait.
    pub client_send_buffer_bytes: usize,
    /// Bytes a server stream buffers before its writer has to wait.
    pub server_send_buffer_bytes: usize,
}

/// Largest single write into a tunnel, in bytes.
pub const MAX_WRITE_BYTES: usize = 256 * 1024;

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(20),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(300),
            max_streams_per_connection: 100,
            max_connections_per_peer: 64,
            max_accepted_streams: 200,
            stream_window_bytes: 4 << 20,
            connection_window_bytes: 16 << 20,
            max_frame_bytes: 1 << 20,
            client_header_bytes: 16 << 10,
            server_header_bytes: 64 << 10,
            client_send_buffer_bytes: 4 << 20,
            server_send_buffer_bytes: 400 << 10,
        }
    }
}
