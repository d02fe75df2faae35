//! A request with its answer, or a TCP connection, from its first to its last byte: what Envoy's text log and spans show
//! beside the decision.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use crate::limits::MAX_EXCHANGE_TEXT_BYTES;

/// What is known of a request or TCP connection once it has ended. Texts come from clients: they are cut, and whoever writes
/// them escapes them.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    /// `:authority` or `Host`.
    pub authority: Option<String>,
    /// `user-agent`
    pub user_agent: Option<String>,
    /// `x-forwarded-for`, as the client sent it.
    pub forwarded_for: Option<String>,
    /// `x-request-id`, the client's or the waypoint's.
    pub request_id: Option<String>,
    /// Fully qualified name of the service; nothing where a workload was asked for by its own address.
    pub hostname: Option<Arc<str>>,
    /// Address of the endpoint that was chosen.
    pub endpoint: Option<SocketAddr>,
    /// Server name that a TLS client asks for.
    pub server_name: Option<Arc<str>>,
    /// The route that was followed.
    pub route: Option<Arc<str>>,
    /// Envoy's word for what went wrong, or `-`.
    pub flags: &'static str,
    /// An endpoint answered.
    pub is_answered: bool,
    /// Bytes of bodies, or of the connection, that came from the client.
    pub received_bytes: u64,
    /// The same, sent to the client.
    pub sent_bytes: u64,
    /// From the first to the last byte.
    pub duration: Duration,
}

impl Exchange {
    /// A text of a client's, no longer than is kept.
    #[must_use]
    pub fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_EXCHANGE_TEXT_BYTES)]).into_owned()
    }
}
