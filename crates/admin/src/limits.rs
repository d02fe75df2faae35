//! Every bound of operators' ports.

use std::time::Duration;

/// Operators' connections to one port at a time.
pub const MAX_CONNECTIONS: usize = 64;
/// Bytes of an operator's request line and headers.
pub(crate) const MAX_BUFFER_BYTES: usize = 8 << 10;
/// How long an operator's request may take to arrive.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long operators' requests may go on when the proxy ends.
pub(crate) const DRAIN: Duration = Duration::from_secs(1);
/// Pause after a failed accept.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
