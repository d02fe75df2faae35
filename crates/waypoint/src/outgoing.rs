//! Counts what an HTTP/2 server tells its client about the client's errors: the library that finds them keeps most to
//! itself.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{refusals::Refusal, shared::Shared};

/// A client's stream of HTTP/2, whose outgoing frames are looked at for RST_STREAM and GOAWAY.
pub(crate) struct Outgoing<S> {
    stream: S,
    frames: Frames,
    shared: Arc<Shared>,
}

/// Follows frames over any division into writes.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; HEADER_BYTES],
    /// Bytes of the header so far.
    known: usize,
    /// Place in the payload.
    passed: usize,
    code: u32,
}

const HEADER_BYTES: usize = 9;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;

// === impl Outgoing ===

impl<S> Outgoing<S> {
    pub(crate) fn new(stream: S, shared: Arc<Shared>) -> Self {
        Self { stream, frames: Frames::default(), shared }
    }

    fn wrote(&mut self, bytes: &[u8]) {
        let shared = &self.shared;
        self.frames.pass(bytes, |code| {
            if let Some(refusal) = refusal(code) {
                shared.refusals.add(refusal);
            }
        });
    }
}

fn refusal(code: u32) -> Option<Refusal> {
    match code {
        1 => Some(Refusal::Http2Protocol),
        3 => Some(Refusal::Http2FlowControl),
        5 => Some(Refusal::Http2StreamClosed),
        6 => Some(Refusal::Http2FrameSize),
        7 => Some(Refusal::Http2Refused),
        9 => Some(Refusal::Http2Compression),
        11 => Some(Refusal::Http2Flood),
        _ => None,
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Outgoing<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Outgoing<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = written {
            self.wrote(&bytes[..written.min(bytes.len())]);
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        if let Poll::Ready(Ok(mut left)) = written {
            for slice in slices {
                let part = left.min(slice.len());
                self.wrote(&slice[..part]);
                left -= part;
            }
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

// === impl Frames ===

impl Frames {
    /// Calls `error` with every error code in these bytes.
    fn pass(&mut self, mut bytes: &[u8], mut error: impl FnMut(u32)) {
        while !bytes.is_empty() {
            if self.known < HEADER_BYTES {
                let part = (HEADER_BYTES - self.known).min(bytes.len());
                self.header[self.known..self.known + part].copy_from_slice(&bytes[..part]);
                self.known += part;
                bytes = &bytes[part..];
            }
            if self.known < HEADER_BYTES {
                return;
            }
            let [high, middle, low, kind, ..] = self.header;
            let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            let part = (length - self.passed).min(bytes.len());
            let code = match kind {
                RST_STREAM => 0..4,
                GOAWAY => 4..8,
                _ => 0..0,
            };
            for (place, byte) in (self.passed..code.end).zip(&bytes[..part]) {
                if code.contains(&place) {
                    self.code = self.code << 8 | u32::from(*byte);
                }
                if place + 1 == code.end {
                    error(self.code);
                }
            }
            self.passed += part;
            bytes = &bytes[part..];
            if self.passed == length {
                *self = Self::default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_found_in_any_division() {
        let frames: Vec<u8> = [
            &[0, 0, 0, 4, 1, 0, 0, 0, 0][..],
            &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 7],
            &[0, 0, 3, 0, 0, 0, 0, 0, 1, 3, 3, 3],
            &[0, 0, 10, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 11, b'n', b'o'],
            &[0, 0, 4, 3, 0, 0, 0, 0, 3, 0, 0, 1, 1],
        ]
        .concat();
        for step in 1..=frames.len() {
            let (mut passed, mut codes) = (Frames::default(), Vec::new());
            frames.chunks(step).for_each(|part| passed.pass(part, |code| codes.push(code)));
            assert_eq!(codes, [7, 11, 257], "by {step}");
        }
    }
}
