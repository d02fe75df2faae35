//! What passes in the bodies of requests: bytes where no length was declared, and the messages of gRPC calls.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

/// What a client has sent of its request's body so far.
#[derive(Debug, Default)]
pub(crate) struct Uploaded {
    bytes: AtomicU64,
    messages: AtomicU64,
}

/// A request's body that is counted while it is sent on.
#[derive(Debug)]
pub(crate) struct Counted<B> {
    body: B,
    uploaded: Arc<Uploaded>,
    messages: Option<Messages>,
}

/// Follows the messages of a gRPC call over any division into frames: each has a byte of flags and four of length before it.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    /// Bytes of the next message's prefix that have come.
    known: u8,
    /// Bytes of the present message that are still to come, or the length so far.
    left: u32,
}

const PREFIX_BYTES: u8 = 5;

// === impl Uploaded ===

impl Uploaded {
    /// Bytes, and messages.
    pub(crate) fn get(&self) -> (u64, u64) {
        (self.bytes.load(Ordering::Relaxed), self.messages.load(Ordering::Relaxed))
    }
}

// === impl Counted ===

impl<B> Counted<B> {
    pub(crate) fn new(body: B, uploaded: Arc<Uploaded>, is_grpc: bool) -> Self {
        Self { body, uploaded, messages: is_grpc.then(Messages::default) }
    }
}

impl<B> http_body::Body for Counted<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.uploaded.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
            if let Some(messages) = &mut self.messages {
                let begun = messages.pass(data);
                self.uploaded.messages.fetch_add(begun, Ordering::Relaxed);
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === impl Messages ===

impl Messages {
    /// How many messages begin in these bytes: a message counts when its whole prefix is there.
    pub(crate) fn pass(&mut self, mut bytes: &[u8]) -> u64 {
        let mut begun = 0;
        while let Some((&first, rest)) = bytes.split_first() {
            if self.known < PREFIX_BYTES {
                // The first byte of a prefix says whether the message is compressed.
                self.left = if self.known == 0 { 0 } else { self.left << 8 | u32::from(first) };
                self.known += 1;
                bytes = rest;
                begun += u64::from(self.known == PREFIX_BYTES);
            } else {
                let part = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= u32::try_from(part).unwrap_or(self.left);
                bytes = &bytes[part..];
            }
            if self.known == PREFIX_BYTES && self.left == 0 {
                self.known = 0;
            }
        }
        begun
    }
}

#[cfg(test)]
mod tests {
    use super::Messages;

    #[test]
    fn messages_are_counted_in_any_division() {
        let call: Vec<u8> = [
            &[0, 0, 0, 0, 3][..],
            b"abc",
            &[1, 0, 0, 0, 0],
            &[0, 0, 0, 1, 2],
            &[b'x'; 258],
            // Not yet whole.
            &[0, 0, 0],
        ]
        .concat();
        for step in 1..=call.len() {
            let mut messages = Messages::default();
            let begun: u64 = call.chunks(step).map(|part| messages.pass(part)).sum();
            assert_eq!(begun, 3, "by {step}");
            assert_eq!(messages.pass(&[0, 9]), 1, "by {step}");
        }
    }
}
