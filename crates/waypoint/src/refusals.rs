//! Requests that aren't even judged because of their form, and what there is no room for, counted by reason.

use std::sync::atomic::{AtomicU64, Ordering};

/// Defines [`Refusal`] with each reason's label and text.
macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident $label:literal $reason:literal,)*) => {
        /// Why a request or a whole connection was refused without being judged.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Refusal {
            $(#[doc = $reason] $(#[$doc])* $name,)*
        }

        impl Refusal {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The value of a metric's label.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }

            /// What a record says.
            #[must_use]
            pub fn reason(self) -> &'static str {
                match self {
                    $(Self::$name => $reason,)*
                }
            }
        }
    };
}

refusals! {
    BareLineFeed "bare_lf" "a line ends in a line feed without a carriage return",
    BareCarriageReturn "bare_cr" "a carriage return stands alone",
    FoldedLine "folded_line" "a header line goes on in the next one",
    SpaceInName "space_in_name" "a header's name holds white space or has no colon",
    RepeatedLength "repeated_length" "the request has more than one `content-length`",
    InvalidLength "invalid_length" "the `content-length` is no number",
    RepeatedEncoding "repeated_encoding" "the request has more than one `transfer-encoding`",
    UnknownEncoding "unknown_encoding" "the `transfer-encoding` isn't `chunked` alone",
    LengthAndEncoding "length_and_encoding" "the request has both `content-length` and `transfer-encoding`",
    EncodingInHttp10 "encoding_in_http10" "an HTTP/1.0 request has a `transfer-encoding`",
    InvalidChunk "invalid_chunk" "a chunk's size or end can't be read",
    InvalidTrailer "invalid_trailer" "a trailer line can't be read",
    MalformedHead "malformed_head" "the request's head can't be read",
    LargeHead "large_head" "the request has too many or too large header lines",
    LongTarget "long_target" "the request target is too long",
    MalformedTarget "malformed_target" "the request target is malformed",
    ForeignScheme "foreign_scheme" "the request target has a scheme other than http",
    NoHost "no_host" "the request has no `host` header",
    RepeatedHost "repeated_host" "the request has more than one `host` header",
    MalformedHost "malformed_host" "the `host` header is malformed",
    ConflictingHost "conflicting_host" "the `host` header and the request target name different hosts",
    UserInformation "user_information" "the request's host holds user information",
    RepeatedAuthorization "repeated_authorization" "the request has more than one `authorization` header",
    Connect "connect" "CONNECT inside a tunnel leads nowhere",
    Http2Protocol "h2_protocol" "HTTP/2: a stream or connection broke the protocol",
    Http2FlowControl "h2_flow_control" "HTTP/2: a flow-control window was overrun or overflowed",
    Http2StreamClosed "h2_stream_closed" "HTTP/2: a frame came for a stream that had ended",
    Http2FrameSize "h2_frame_size" "HTTP/2: a frame has the wrong size",
    Http2Refused "h2_refused" "HTTP/2: a stream was refused before it was looked at",
    Http2Compression "h2_compression" "HTTP/2: a header block can't be decoded",
    Http2Flood "h2_flood" "HTTP/2: the client asks for more work than it is worth (resets, control frames, headers)",
    Connections "connections" "too many HBONE connections are open",
    Tunnels "tunnels" "too many tunnels are open",
}

/// How often each [`Refusal`] has happened.
///
/// HTTP/2 is counted by the codes of RST_STREAM and GOAWAY that the client is sent, so one that an application chose and
/// the waypoint passes on counts, too; a header list over the bound in a request without body is answered 431 uncounted.
#[derive(Debug)]
pub struct Refusals([AtomicU64; Refusal::ALL.len()]);

// === impl Refusals ===

impl Refusals {
    /// How often it has happened.
    #[must_use]
    pub fn count(&self, refusal: Refusal) -> u64 {
        self.0[refusal as usize].load(Ordering::Relaxed)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (Refusal, u64)> + '_ {
        Refusal::ALL.iter().map(|refusal| (*refusal, self.count(*refusal)))
    }

    pub(crate) fn add(&self, refusal: Refusal) {
        self.0[refusal as usize].fetch_add(1, Ordering::Relaxed);
    }
}

impl Default for Refusals {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; Refusal::ALL.len()])
    }
}
