//! Every bound of the transport, with the defaults of `spec/ztunnel.md` 2.4, 3 and 11.3.

use std::time::Duration;

use crate::{budget::Budget, socket::Congestion};

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
    /// Concurrent streams per pooled connection (the peer's own limit holds too). With 1, every tunnel has a connection of
    /// its own that ends with it, and nothing is pooled.
    pub max_streams_per_connection: usize,
    /// Streams that every connection to a peer carries before another one shares the work, up to `spread_connections`.
    pub streams_before_spread: usize,
    /// Connections to one peer over which streams are spread. More are made only when these are full.
    pub spread_connections: usize,
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
    /// Congestion control of connections within the network, instead of the machine's.
    pub congestion: Option<Congestion>,
    /// What the connections share, and with whom.
    pub budget: Budget,
}

/// Longest wait for a connection that is to share the load of others.
pub const SPREAD_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the others must do after such a connection could not be had.
pub const SPREAD_PAUSE: Duration = Duration::from_secs(60);
/// Connections that a tunnel is tried on, when the first ones can't take it.
pub const MAX_OPEN_ATTEMPTS: usize = 3;
/// Longest value of a header of a CONNECT that is understood or sent, in bytes.
pub const MAX_CONNECT_HEADER_BYTES: usize = 4096;
/// Longest reason that a peer is told, or is believed to tell, in bytes.
pub const MAX_REFUSAL_BYTES: usize = 1024;
/// Members of a `baggage`.
pub const MAX_BAGGAGE_MEMBERS: usize = 64;
/// Elements of a `forwarded` after the first: proxies on the way.
pub const MAX_FORWARDED_ELEMENTS: usize = 16;
/// Largest single write into a tunnel, in bytes.
pub const MAX_WRITE_BYTES: usize = 256 * 1024;
/// Bytes of handshake messages taken in before the handshake is over.
pub const MAX_HANDSHAKE_BYTES: usize = 256 * 1024;
/// Longest TLS message after the handshake, in bytes.
pub const MAX_POST_HANDSHAKE_BYTES: usize = 16 * 1024;
/// Key updates of the peer without application data between them.
pub const MAX_UPDATES_WITHOUT_DATA: u32 = 32;
/// Records sealed with one key (RFC 8446 5.5), with room to spare below the bound of AES-GCM.
pub const MAX_RECORDS_PER_KEY: u64 = 1 << 23;
/// Largest header block taken in, compressed, in bytes.
pub const MAX_HEADER_BLOCK_BYTES: usize = 64 * 1024;
/// Largest frame taken in other than DATA and header blocks, in bytes.
pub const MAX_CONTROL_FRAME_BYTES: u32 = 4096;
/// Frames other than DATA that wait to be sent before the peer is no longer read, in bytes.
pub const MAX_PENDING_CONTROL_BYTES: usize = 64 * 1024;
/// Bytes read from a connection at once.
pub const READ_BYTES: usize = 128 * 1024;
/// Bytes of frames sealed and written at once.
pub const BATCH_BYTES: usize = 128 * 1024;
/// The same, sealed.
pub const OUT_BYTES: usize = BATCH_BYTES + DATA_FRAME_BYTES + 16 * 1024;
/// Streams with something to send that are enough for a batch.
pub const MAX_GATHERED_STREAMS: usize = 64;
/// Largest DATA frame sent, in bytes: after it another stream has its turn.
pub const DATA_FRAME_BYTES: usize = 64 * 1024;
/// Pieces of DATA up to this size are gathered into larger ones.
pub const SMALL_PIECE_BYTES: usize = 4096;
/// Data that a buffer must hold to be handed on without a copy, in bytes.
pub const SHARED_PIECE_BYTES: usize = 32 * 1024;
/// Bytes handed to a stream's reader at once.
pub const MAX_TAKE_BYTES: usize = 256 * 1024;
/// Steps a direction of a copy takes before other tasks get their turn.
pub const COPY_STEPS: usize = 32;
/// Pieces written to a socket at once.
pub const MAX_SLICES: usize = 32;
/// Rounds of sending and receiving before other tasks get their turn.
pub const MAX_TURNS: usize = 16;
/// Buffers of each kind that a worker thread keeps for its connections.
pub const KEPT_BUFFERS: usize = 4;
/// Bytes that a connection may hold besides what it is charged for, in bytes: they belong to what it took when it began.
pub const FREE_BYTES: usize = 64 * 1024;
/// What a connection takes of its workload's memory when it begins: besides that, its task, the state of TLS and the
/// messages of the handshake.
pub const TUNNEL_BYTES: usize = 128 * 1024;
/// Steps in which more than that is charged, in bytes.
pub const QUANTUM_BYTES: usize = 64 * 1024;
/// Bytes a stream buffers before its writer has to wait while memory is short.
pub const SHORT_SEND_BUFFER_BYTES: usize = 8 * 1024;
/// How long a closed connection waits for the peer to close as well.
pub const CLOSE_LINGER: Duration = Duration::from_secs(1);

// === impl Limits ===

impl Limits {
    /// Whether a connection may carry more than one tunnel, at a time or one after the other.
    pub(crate) fn are_connections_shared(&self) -> bool {
        self.max_streams_per_connection > 1
    }
}

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
            streams_before_spread: 16,
            spread_connections: 2,
            max_connections_per_peer: 64,
            max_accepted_streams: 200,
            stream_window_bytes: 4 << 20,
            connection_window_bytes: 16 << 20,
            max_frame_bytes: 1 << 20,
            client_header_bytes: 16 << 10,
            server_header_bytes: 64 << 10,
            // A writer that is far ahead of its connection only spoils the processor's caches.
            client_send_buffer_bytes: 256 << 10,
            server_send_buffer_bytes: 256 << 10,
            congestion: Congestion::unpaced(),
            budget: Budget::default(),
        }
    }
}
