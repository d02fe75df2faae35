//! The part of a request's body that a provider is sent, and the body as the application gets it all the same.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use ambit_mesh::view::CheckedBody;
use bytes::{Bytes, BytesMut};
use http::{Request, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;

use super::client::{Client, Failure};
use crate::{
    limits::CHECKED_BODY_TIMEOUT,
    upstream::{Body, boxed},
};

/// What was read of a body before it went on.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    frames: VecDeque<Frame<Bytes>>,
    bytes: usize,
    /// That was all.
    ended: bool,
    /// Room that it takes up, given back when it has gone on.
    rooms: Vec<OwnedSemaphorePermit>,
}

/// What a provider is sent of a body.
#[derive(Debug)]
pub(super) struct Excerpt {
    pub(super) bytes: Bytes,
    /// There is more.
    pub(super) is_partial: bool,
    /// Over gRPC as bytes, not as text.
    pub(super) as_bytes: bool,
}

/// Reads as much of the body as the provider is to see; nothing if it is to see none.
///
/// # Errors
/// When the body is too large or doesn't come: the client's own doing.
pub(super) async fn of(
    client: &Arc<Client>,
    request: &mut Request<Incoming>,
    read_ahead: &mut Option<ReadAhead>,
) -> Result<Option<Excerpt>, Failure> {
    let Some(CheckedBody { max_bytes, allow_partial, as_bytes }) = client.authorizer().body else { return Ok(None) };
    // An upgrade or a request without a body has nothing to show.
    let has_body = !request.body().is_end_stream() || read_ahead.as_ref().is_some_and(|read| !read.is_empty());
    if !has_body {
        return Ok(Some(Excerpt { bytes: Bytes::new(), is_partial: false, as_bytes }));
    }
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if !allow_partial && declared.is_some_and(|length: u64| length > max_bytes as u64) {
        return Err(Failure::BodyTooLarge { max_bytes });
    }
    let read_ahead = read_ahead.get_or_insert_default();
    read_ahead.rooms.push(client.room(max_bytes)?);
    // One byte more tells that there is more; where that doesn't matter, nobody waits for it.
    let enough = if allow_partial { max_bytes } else { max_bytes + 1 };
    let reading = tokio::time::timeout(CHECKED_BODY_TIMEOUT, read_ahead.read(request.body_mut(), enough));
    reading.await.map_err(|_elapsed| Failure::BodyTooSlow)??;
    let is_partial = read_ahead.bytes > max_bytes || !(read_ahead.ended || request.body().is_end_stream());
    if is_partial && !allow_partial {
        return Err(Failure::BodyTooLarge { max_bytes });
    }
    Ok(Some(Excerpt { bytes: read_ahead.first(max_bytes), is_partial, as_bytes }))
}

/// A body with what was read of it put back in front.
struct Whole {
    read_ahead: ReadAhead,
    rest: Incoming,
}

// === impl ReadAhead ===

impl ReadAhead {
    /// True if nothing was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The whole body.
    pub(crate) fn into_body(self, rest: Incoming) -> Body {
        boxed(Whole { read_ahead: self, rest })
    }

    /// Reads until there are so many bytes, or to the end.
    async fn read(&mut self, body: &mut Incoming, enough_bytes: usize) -> Result<(), Failure> {
        while self.bytes < enough_bytes && !self.ended {
            let Some(frame) = body.frame().await else {
                self.ended = true;
                break;
            };
            let frame = frame.map_err(|error| Failure::Body(error.to_string()))?;
            self.bytes += frame.data_ref().map_or(0, Bytes::len);
            // Many frames without bytes are many frames all the same.
            if frame.data_ref().is_none_or(|data| !data.is_empty()) {
                self.frames.push_back(frame);
            }
        }
        Ok(())
    }

    fn first(&self, max_bytes: usize) -> Bytes {
        let mut data = self.frames.iter().filter_map(Frame::data_ref);
        if let (Some(only), None) = (data.next(), data.next()) {
            return only.slice(..only.len().min(max_bytes));
        }
        let mut bytes = BytesMut::with_capacity(self.bytes.min(max_bytes));
        for data in self.frames.iter().filter_map(Frame::data_ref) {
            bytes.extend_from_slice(&data[..data.len().min(max_bytes - bytes.len())]);
        }
        bytes.freeze()
    }
}

// === impl Whole ===

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if let Some(frame) = self.read_ahead.frames.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        self.read_ahead.rooms.clear();
        Pin::new(&mut self.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.read_ahead.frames.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let ahead: u64 = self.read_ahead.frames.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + ahead);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + ahead);
        }
        hint
    }
}
