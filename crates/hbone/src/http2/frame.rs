//! Frames on the wire (RFC 9113 4 and 6): their numbers, and how they are written.

/// What a client sends first.
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const HEAD_BYTES: usize = 9;
/// Largest payload of a frame unless the peer says otherwise.
pub(crate) const DEFAULT_MAX_FRAME_BYTES: u32 = 16_384;
/// A stream's or connection's window unless the peer says otherwise.
pub(crate) const DEFAULT_WINDOW_BYTES: u32 = 65_535;
pub(crate) const MAX_WINDOW_BYTES: i64 = (1 << 31) - 1;

pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PUSH_PROMISE: u8 = 5;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// END_STREAM of DATA and HEADERS, ACK of SETTINGS and PING.
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;
pub(super) const PRIORITY: u8 = 0x20;

pub(crate) mod setting {
    pub(crate) const ENABLE_PUSH: u16 = 2;
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(crate) const MAX_FRAME_SIZE: u16 = 5;
    pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// Error codes (RFC 9113 7).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Code(pub(crate) u32);

/// What ends the connection: the code for GOAWAY and the reason for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} ({code:?})")]
pub(crate) struct Violation {
    pub(crate) code: Code,
    pub(crate) reason: &'static str,
}

pub(crate) fn violation<T>(code: Code, reason: &'static str) -> Result<T, Violation> {
    Err(Violation { code, reason })
}

/// The head of a frame to send.
pub(crate) fn head(length: usize, kind: u8, flags: u8, stream: u32) -> [u8; HEAD_BYTES] {
    // INVARIANT: callers keep `length` below the peer's largest frame, which fits into three bytes.
    let [_, a, b, c] = (length as u32).to_be_bytes();
    let [d, e, f, g] = stream.to_be_bytes();
    [a, b, c, kind, flags, d, e, f, g]
}

/// Appends a frame.
pub(crate) fn write(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&head(payload.len(), kind, flags, stream));
    out.extend_from_slice(payload);
}

/// Appends a header block, in as many frames as the peer's largest frame asks for.
pub(crate) fn write_headers(out: &mut Vec<u8>, stream: u32, block: &[u8], end: bool, max_frame_bytes: u32) {
    let mut fragments = block.chunks(max_frame_bytes.max(1) as usize).peekable();
    let mut kind = kind::HEADERS;
    let mut flags = if end { END_STREAM } else { 0 };
    loop {
        let fragment = fragments.next().unwrap_or_default();
        let last = fragments.peek().is_none();
        write(out, kind, flags | if last { END_HEADERS } else { 0 }, stream, fragment);
        if last {
            return;
        }
        (kind, flags) = (kind::CONTINUATION, 0);
    }
}

// === impl Code ===

impl Code {
    pub(crate) const NO_ERROR: Self = Self(0);
    pub(crate) const PROTOCOL_ERROR: Self = Self(1);
    pub(crate) const FLOW_CONTROL_ERROR: Self = Self(3);
    pub(crate) const FRAME_SIZE_ERROR: Self = Self(6);
    pub(crate) const REFUSED_STREAM: Self = Self(7);
    pub(crate) const CANCEL: Self = Self(8);
    pub(crate) const COMPRESSION_ERROR: Self = Self(9);
    pub(crate) const CONNECT_ERROR: Self = Self(10);
    pub(crate) const ENHANCE_YOUR_CALM: Self = Self(11);
}

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        match NAMES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "error {:#x}", self.0),
        }
    }
}
