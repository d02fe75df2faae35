//! A request's body that can be sent again, as long as little of it has passed.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

use crate::{limits::MAX_REPLAY_BYTES, upstream::Body};

/// The body of all tries.
#[derive(Clone)]
pub(super) struct Replay(Arc<Mutex<Source>>);

struct Source {
    rest: Body,
    /// What was read of it so far; nothing once that is too much.
    kept: Option<Vec<Bytes>>,
    kept_bytes: usize,
    /// Which try may read.
    current: u32,
    failed: bool,
}

/// The body of one try.
struct Try {
    replay: Replay,
    number: u32,
    /// Pieces already given.
    position: usize,
}

#[derive(Debug, thiserror::Error)]
#[error("another try has begun")]
struct Superseded;

// === impl Replay ===

impl Replay {
    pub(super) fn new(body: Body) -> Self {
        let source = Source { rest: body, kept: Some(Vec::new()), kept_bytes: 0, current: 0, failed: false };
        Self(Arc::new(Mutex::new(source)))
    }

    /// The body for the next try; earlier ones end.
    pub(super) fn body(&self) -> Body {
        let mut source = self.lock();
        source.current += 1;
        Try { replay: self.clone(), number: source.current, position: 0 }.boxed_unsync()
    }

    /// True while another try could be given all of it.
    pub(super) fn is_whole(&self) -> bool {
        let source = self.lock();
        source.kept.is_some() && !source.failed
    }

    fn lock(&self) -> MutexGuard<'_, Source> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Source ===

impl Source {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        let Some(kept) = &mut self.kept else { return };
        match frame.data_ref() {
            Some(data) if self.kept_bytes + data.len() <= MAX_REPLAY_BYTES => {
                self.kept_bytes += data.len();
                kept.push(data.clone());
            }
            // Too much; or trailers, which come with no body that is worth it.
            _ => self.kept = None,
        }
    }
}

// === impl Try ===

impl http_body::Body for Try {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let replay = self.replay.clone();
        let mut source = replay.lock();
        if source.current != self.number {
            return Poll::Ready(Some(Err(Box::new(Superseded))));
        }
        if let Some(piece) = source.kept.as_ref().and_then(|kept| kept.get(self.position)).cloned() {
            self.position += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let frame = std::task::ready!(Pin::new(&mut source.rest).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                source.keep(frame);
                self.position += 1;
            }
            Some(Err(_)) => source.failed = true,
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let source = self.replay.lock();
        let given = source.kept.as_ref().is_none_or(|kept| kept.len() <= self.position);
        given && source.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let source = self.replay.lock();
        let left = source.kept.iter().flatten().skip(self.position).map(Bytes::len).sum::<usize>() as u64;
        let rest = source.rest.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + left);
        }
        hint.set_lower(rest.lower() + left);
        hint
    }
}
