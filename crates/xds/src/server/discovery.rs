//! One stream of `AggregatedDiscoveryService/DeltaAggregatedResources`.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task,
};

use futures_util::{Stream as FuturesStream, StreamExt, stream};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{Authorize, Peer, Resources, subscription::Stream};
use crate::{
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    limits::{FIRST_REQUEST_TIMEOUT, MAX_QUEUED_RESPONSES, MAX_STREAM_AGE},
    random,
};

/// Said to a client that is to come again. Node proxies know these words and don't take it for a failure.
const COME_AGAIN: &str = "transport is closing";
/// What a client that may not watch is told, whatever the reason.
const NOT_AUTHENTICATED: &str = "authentication failure";

/// The method.
#[derive(Clone)]
pub(super) struct Discovery {
    pub(super) authorize: Arc<dyn Authorize>,
    pub(super) resources: Arc<Resources>,
    pub(super) stop: CancellationToken,
}

type Requests = Streaming<DeltaDiscoveryRequest>;
type Responses = Pin<Box<dyn FuturesStream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

// === impl Discovery ===

impl Discovery {
    /// Serves one stream to its end.
    async fn stream(
        self,
        peer: Peer,
        requests: Requests,
        responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) {
        let ended = tokio::select! {
            ended = self.exchange(&peer, requests, &responses) => ended,
            // The client is gone.
            () = responses.closed() => return,
        };
        if let Err(status) = ended {
            tracing::debug!(peer = %peer.address, %status, "discovery stream ended");
            // Waits behind what the client still reads, but no longer than it is there.
            let _ = responses.send(Err(status)).await;
        }
    }

    async fn exchange(
        &self,
        peer: &Peer,
        requests: Requests,
        responses: &mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) -> Result<(), Status> {
        let mut requests = pin!(requests);
        let first = timeout(FIRST_REQUEST_TIMEOUT, requests.next()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no request came"))?;
        let Some(first) = first.transpose()? else { return Ok(()) };
        let node = first.node.clone().ok_or_else(|| Status::invalid_argument("the first request names no node"))?;
        if let Err(denied) = self.authorize.discovery(peer, &node).await {
            tracing::warn!(peer = %peer.address, node = %node.id, reason = %denied, "discovery refused");
            return Err(Status::unauthenticated(NOT_AUTHENTICATED));
        }
        let mut stream = Stream::new(&node);
        stream.request(first)?;
        // Subscribed before the first look, so that no change falls between.
        let mut changes = self.resources.changes();
        let mut too_old = pin!(sleep_until(Instant::now() + MAX_STREAM_AGE.mul_f64(1.0 - random::fraction() / 10.0)));
        loop {
            changes.mark_unchanged();
            // The oldest response not sent yet is made when there is room for it, so that it holds the newest state.
            let room = stream.is_due(&self.resources);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Status::unavailable(format!("{COME_AGAIN}: the server stops"))),
                () = &mut too_old => return Err(Status::unavailable(format!("{COME_AGAIN}: the stream is old"))),
                permit = responses.reserve(), if room => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some(response) = stream.next_response(&self.resources)? {
                        permit.send(Ok(response));
                    }
                }
                request = requests.next() => match request.transpose()? {
                    None => return Ok(()),
                    Some(request) => stream.request(request)?,
                },
                changed = changes.changed(), if !room => {
                    if changed.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

impl tower_service::Service<tonic::Request<Requests>> for Discovery {
    type Response = tonic::Response<Responses>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> task::Poll<Result<(), Status>> {
        task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<Requests>) -> Self::Future {
        let method = self.clone();
        Box::pin(async move {
            let peer = Peer::of(&request)?;
            let (sender, mut receiver) = mpsc::channel(MAX_QUEUED_RESPONSES);
            // Ends when the receiver goes, which the connection owns.
            tokio::spawn(method.stream(peer, request.into_inner(), sender));
            let responses: Responses = Box::pin(stream::poll_fn(move |cx| receiver.poll_recv(cx)));
            Ok(tonic::Response::new(responses))
        })
    }
}
