//! Copies of requests, whose answers nobody sees and whose failures nobody feels.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use ambit_mesh::view::routes::{Filters, Mirror};
use bytes::Bytes;
use futures_util::{Stream, stream};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::mpsc;

use super::{
    edit::Template,
    way::{self, Leads},
};
use crate::{
    http::Allowed,
    limits::{MAX_MIRRORED_FRAMES, MIRROR_TIMEOUT},
    record::Entry,
    respond,
    upstream::{self, Body, Protocol, Trail},
};

/// Sends the copies that are due. The request's own body is what is returned.
pub(super) fn tee(allowed: &Allowed, template: &Template, filters: [&Filters; 2], mut body: Body) -> Body {
    if filters.iter().all(|filters| filters.mirrors.is_empty()) || template.asked.is_some() {
        return body;
    }
    let random = &allowed.session.shared.random;
    let due = |mirror: &&Mirror| random.below(mirror.whole as usize) < mirror.part as usize;
    let all = filters.into_iter().flat_map(|filters| &filters.mirrors);
    for mirror in all.filter(due) {
        let Ok(slot) = Arc::clone(&allowed.session.shared.mirrors).try_acquire_owned() else { break };
        let to = mirror.to.as_ref().map_err(ToString::to_string);
        let leads = to.and_then(|to| way::resolve(&allowed.session, &allowed.view, to));
        let Leads { way, protocol, judge } = match leads {
            Ok(leads) => leads,
            Err(reason) => {
                tracing::debug!(%reason, "request not mirrored");
                continue;
            }
        };
        let checked = template.checked.as_ref().unwrap_or(&allowed.checked);
        if judge.is_some_and(|judge| !judge.request(&allowed.session, checked).is_allowed()) {
            tracing::debug!("request not mirrored: the policies of the service deny it");
            continue;
        }
        let protocol = match protocol {
            ambit_xds::workload::AppProtocol::Http2 | ambit_xds::workload::AppProtocol::Grpc => Protocol::Http2,
            ambit_xds::workload::AppProtocol::Unknown => allowed.protocol,
            _ => Protocol::Http1,
        };
        let copy = if template.has_body {
            let (sender, receiver) = mpsc::channel(MAX_MIRRORED_FRAMES);
            body = Teed { body, copy: Some(sender) }.boxed_unsync();
            StreamBody::new(frames(receiver)).boxed_unsync()
        } else {
            respond::empty()
        };
        let request = template.request(&allowed.checked, filters, protocol, random, copy);
        let (session, view) = (Arc::clone(&allowed.session), Arc::clone(&allowed.view));
        allowed.session.shared.tasks.spawn(async move {
            let _slot = slot;
            let mut entry = Entry::unrecorded(session.shared.recorder.clone());
            let sent = tokio::time::timeout(MIRROR_TIMEOUT, async {
                let (mut response, _in_flight) =
                    upstream::send(&session, &view, &way, protocol, request, &mut Trail::default(), &mut entry).await?;
                while let Some(Ok(_)) = response.body_mut().frame().await {}
                Ok::<_, upstream::Error>(())
            });
            if let Ok(Err(error)) = sent.await {
                tracing::debug!(%error, "mirrored request failed");
            }
        });
    }
    body
}

/// A body that is copied while it passes. A copy that falls behind breaks off, so that it holds nothing up.
struct Teed {
    body: Body,
    copy: Option<mpsc::Sender<Result<Frame<Bytes>, Broken>>>,
}

#[derive(Debug, thiserror::Error)]
#[error("the request that is copied broke off")]
struct Broken;

fn frames(
    receiver: mpsc::Receiver<Result<Frame<Bytes>, Broken>>,
) -> impl Stream<Item = Result<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>>> + Send {
    stream::unfold(receiver, |mut receiver| async move {
        let frame = receiver.recv().await?;
        Some((frame.map_err(Into::into), receiver))
    })
}

// === impl Teed ===

impl http_body::Body for Teed {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        let copied = match &frame {
            Some(Ok(frame)) => match (frame.data_ref(), frame.trailers_ref()) {
                (Some(data), _) => Some(Ok(Frame::data(data.clone()))),
                (None, Some(trailers)) => Some(Ok(Frame::trailers(trailers.clone()))),
                (None, None) => None,
            },
            Some(Err(_)) => Some(Err(Broken)),
            // Dropping the sender ends the copy.
            None => {
                self.copy = None;
                None
            }
        };
        if let (Some(copied), Some(copy)) = (copied, &self.copy) {
            let sent = if copy.capacity() > 1 { copy.try_send(copied).is_ok() } else { false };
            if !sent {
                let _ = copy.try_send(Err(Broken));
                self.copy = None;
            }
        }
        if self.body.is_end_stream() {
            self.copy = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Teed {
    /// A request that is given up half way isn't whole in its copy either.
    fn drop(&mut self) {
        if let Some(copy) = &self.copy {
            let _ = copy.try_send(Err(Broken));
        }
    }
}
