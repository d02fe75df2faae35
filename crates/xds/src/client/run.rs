//! The client at work: streams one after another, and between them pauses.

use std::{collections::BTreeSet, pin::pin, sync::Arc, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};
use http::uri::PathAndQuery;
use prost::Message;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, client::Grpc};
use tonic_prost::ProstCodec;

use super::{
    DemandError, DemandMessage, Handle, Options, OptionsError, State, Stats, Termination,
    backoff::Backoff,
    keeper::{Keeper, Turn, turn},
    last_good::{LastGood, Restored},
    session::{Demand, Session},
    waiters::Waiters,
};
use crate::{
    channel,
    discovery::{DELTA_PATH, DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    grpc::{Channel, ConnectError},
    limits::{KEEPALIVE_INTERVAL, MAX_QUEUED_DEMANDS, MAX_QUEUED_REQUESTS, STABLE_STREAM},
};

/// A discovery client that [runs](Client::run) until it is told to stop.
#[derive(Debug)]
pub struct Client {
    options: Options,
    sink: channel::Sender,
    session: Session,
    waiters: Waiters,
    keeper: Option<Keeper>,
    demands: mpsc::Receiver<DemandMessage>,
    state: watch::Sender<State>,
    stats: Arc<Stats>,
}

/// Why a stream, or the attempt to open one, ended.
#[derive(Debug)]
enum Ended {
    Connection(ConnectError),
    Status(tonic::Status),
    Complete,
    /// The server stopped reading.
    Stuck,
    /// Nobody applies what comes: the client is to end.
    SinkClosed,
}

// === impl Client ===

impl Client {
    /// A client that hands what it receives to `sink`.
    ///
    /// # Errors
    /// When the options make no sense.
    pub fn new(options: Options, sink: channel::Sender) -> Result<(Self, Handle), OptionsError> {
        options.check()?;
        let urls = || options.watches.iter().map(|watch| watch.type_url.clone());
        let watches = options.watches.iter().map(|watch| (watch.type_url.clone(), watch.on_demand));
        let named = options.watches.iter().map(|watch| (&*watch.type_url, watch.names.iter().cloned().collect()));
        let session = Session::new(options.node.message(), watches).naming(named);
        let stats = Arc::new(Stats::new(urls()));
        let keeper = options.state_file.clone();
        let keeper = keeper.map(|path| Keeper::new(LastGood::new(path, options.scope(), urls())));
        let (demanded, demands) = mpsc::channel(MAX_QUEUED_DEMANDS);
        let state = watch::Sender::new(State::default());
        let handle = Handle { state: state.subscribe(), demands: demanded, stats: Arc::clone(&stats) };
        Ok((Self { options, sink, session, waiters: Waiters::default(), keeper, demands, state, stats }, handle))
    }

    /// Keeps a stream open until `stop`, or until nobody takes what comes. What is in force then stays so.
    pub async fn run(mut self, stop: CancellationToken) {
        self.restore().await;
        // Dropping the attempt ends its connection.
        stop.run_until_cancelled(self.attempts()).await;
        if let Some(keeper) = &mut self.keeper {
            keeper.finish().await;
        }
    }

    async fn attempts(&mut self) {
        let mut backoff = Backoff::new(self.options.min_backoff, self.options.max_backoff);
        loop {
            let mut first_response = None;
            let ended = self.stream(&mut first_response).await;
            let (how, reason) = match &ended {
                Ended::SinkClosed => return,
                Ended::Connection(error) => (Termination::ConnectionError, error.to_string()),
                Ended::Status(status) => (classify(status), said(status)),
                Ended::Stuck => (Termination::Error, "the control plane stopped reading".to_owned()),
                Ended::Complete => (Termination::Complete, "the control plane ended the stream".to_owned()),
            };
            self.stats.terminated(how);
            if first_response.is_some_and(|at: Instant| at.elapsed() >= STABLE_STREAM) {
                backoff.reset();
            }
            let pause = backoff.next();
            match how {
                Termination::Reconnect | Termination::Complete => {
                    tracing::debug!(%reason, ?pause, "discovery: coming again")
                }
                _ => tracing::warn!(%reason, ?pause, "discovery: no stream; what is known stays in force"),
            }
            self.state.send_modify(|state| {
                state.connected = false;
                state.failure = Some(reason);
            });
            self.rest(pause).await;
        }
    }

    /// One stream, from connecting to its end.
    async fn stream(&mut self, first_response: &mut Option<Instant>) -> Ended {
        let (channel, metadata) = match Channel::connect(&self.options.endpoint).await {
            Ok(connected) => connected,
            Err(error) => return Ended::Connection(error),
        };
        let (requests, mut queue) = mpsc::channel(MAX_QUEUED_REQUESTS);
        let outgoing = stream::iter(self.session.open()).chain(stream::poll_fn(move |cx| queue.poll_recv(cx)));
        let mut request = tonic::Request::new(outgoing);
        *request.metadata_mut() = metadata;
        let origin = self.options.endpoint.address.origin().unwrap_or_default();
        // What we hold must fit the first request however much it is.
        let mut grpc = Grpc::with_origin(channel, origin)
            .max_decoding_message_size(self.options.max_response_bytes)
            .max_encoding_message_size(usize::MAX);
        let opened = async move {
            let not_ready = |error: hyper::Error| tonic::Status::unavailable(error.to_string());
            grpc.ready().await.map_err(not_ready)?;
            let codec = ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>::default();
            let path = PathAndQuery::from_static(DELTA_PATH);
            grpc.streaming(request, path, codec).await.map(tonic::Response::into_inner)
        };
        // Servers may send their headers only with the first response; names can be asked for before.
        let mut incoming = pin!(stream::once(opened).try_flatten());
        loop {
            let answers = tokio::select! {
                next = incoming.next() => match next {
                    None => return Ended::Complete,
                    Some(Err(status)) => return Ended::Status(status),
                    Some(Ok(response)) => {
                        first_response.get_or_insert_with(Instant::now);
                        match self.apply(response).await {
                            Some(answers) => answers,
                            None => return Ended::SinkClosed,
                        }
                    }
                },
                Some(message) = self.demands.recv() => self.demand(message),
                turn = turn(self.keeper.as_mut()) => {
                    self.take_turn(turn);
                    Vec::new()
                }
            };
            for request in answers {
                match timeout(KEEPALIVE_INTERVAL, requests.send(request)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Ended::Complete,
                    Err(_) => return Ended::Stuck,
                }
            }
        }
    }

    /// Hands a response on, and returns what to answer; nothing if nobody takes it.
    async fn apply(&mut self, response: DeltaDiscoveryResponse) -> Option<Vec<DeltaDiscoveryRequest>> {
        let (type_url, bytes) = (response.type_url.clone(), response.encoded_len());
        let mut received = self.session.read(response);
        if let Some(keeper) = &mut self.keeper {
            keeper.note(&received).await;
        }
        let result = if self.session.watches(&type_url) {
            self.sink.push(vec![std::mem::take(&mut received.delta)]).await.ok()?
        } else {
            Ok(())
        };
        let outcome = self.session.applied(received, result);
        self.stats.received(&type_url, bytes, outcome.refused.len());
        for (name, result) in &outcome.answered {
            self.waiters.answer(&type_url, name, *result);
        }
        if let Some(status) = &outcome.answer.error_detail {
            tracing::warn!(%type_url, reason = %status.message, "discovery: refused");
        }
        let synced = self.session.is_synced();
        self.state.send_if_modified(|state| {
            let synced = state.synced || synced;
            let restored = if synced { None } else { state.restored };
            let now = State { connected: true, synced, restored, failure: None };
            let changed = *state != now;
            *state = now;
            changed
        });
        Some(std::iter::once(outcome.answer).chain(outcome.unsubscribe).collect())
    }

    /// Notes a name that is asked for; returns the requests to send for it.
    fn demand(&mut self, message: DemandMessage) -> Vec<DeltaDiscoveryRequest> {
        let DemandMessage { type_url, name, again, answer } = message;
        let Some(answer) = self.waiters.join(&type_url, &name, answer) else { return Vec::new() };
        let mut requests = Vec::new();
        let demand = match self.waiters.has_room() {
            true => match self.session.demand(&type_url, &name, again) {
                Demand::Full => {
                    let is_awaited = |name: &str| self.waiters.is_awaited(&type_url, name);
                    requests.extend(self.session.forget_unanswered(&type_url, is_awaited));
                    self.session.demand(&type_url, &name, again)
                }
                demand => demand,
            },
            false => Demand::Full,
        };
        let result = match demand {
            Demand::Ask(asked) => {
                self.waiters.add(type_url, name, answer);
                requests.extend(asked);
                return requests;
            }
            Demand::Known => Ok(()),
            Demand::Full => Err(DemandError::Full),
            Demand::WatchedWhole => Err(DemandError::NotOnDemand),
        };
        // The caller may have given up meanwhile; then nobody needs the answer.
        let _ = answer.send(result);
        requests
    }

    /// A pause, in which names may be asked for and files written.
    async fn rest(&mut self, pause: Duration) {
        let mut pause = pin!(sleep(pause));
        loop {
            tokio::select! {
                () = &mut pause => return,
                // The next stream asks for it.
                Some(message) = self.demands.recv() => drop(self.demand(message)),
                turn = turn(self.keeper.as_mut()) => self.take_turn(turn),
            }
        }
    }

    /// Puts in force what an earlier run kept.
    async fn restore(&mut self) {
        let Some(keeper) = &mut self.keeper else { return };
        let Some(Restored { written_at, deltas }) = keeper.load().await else { return };
        let Ok(result) = self.sink.push(deltas.clone()).await else { return };
        let rejected = result.err().map(|nack| nack.rejected).unwrap_or_default();
        let refused: BTreeSet<_> = rejected.iter().map(|(name, _)| name.as_str()).collect();
        for delta in &deltas {
            self.session.restore(delta, &refused);
        }
        let resources: usize = deltas.iter().map(|delta| delta.resources.len()).sum();
        let age = written_at.elapsed().unwrap_or_default();
        tracing::info!(
            resources,
            refused = refused.len(),
            ?age,
            "serving by the kept state until the control plane answers"
        );
        self.state.send_modify(|state| state.restored = Some(written_at));
    }

    fn take_turn(&mut self, turn: Turn) {
        if let Some(keeper) = &mut self.keeper {
            keeper.take(turn);
        }
    }
}

/// Servers and load balancers end streams now and then; that isn't an error (`spec/ztunnel.md` 9).
fn classify(status: &tonic::Status) -> Termination {
    let planned = match status.code() {
        Code::Ok => return Termination::Complete,
        Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => true,
        Code::Unavailable => {
            ["transport is closing", "received prior goaway"].iter().any(|text| status.message().contains(text))
        }
        _ => false,
    };
    if planned { Termination::Reconnect } else { Termination::Error }
}

/// A status without what may be long or secret in it.
fn said(status: &tonic::Status) -> String {
    let message: String = status.message().chars().take(512).collect();
    format!("{:?}: {message}", status.code())
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    #[test]
    fn endings_are_told_apart() {
        for (status, how) in [
            (Status::unknown("x"), Termination::Reconnect),
            (Status::cancelled("x"), Termination::Reconnect),
            (Status::deadline_exceeded("x"), Termination::Reconnect),
            (Status::unavailable("transport is closing"), Termination::Reconnect),
            (Status::unavailable("closing: received prior goaway"), Termination::Reconnect),
            (Status::unavailable("x"), Termination::Error),
            (Status::unauthenticated("x"), Termination::Error),
            (Status::out_of_range("message too large"), Termination::Error),
            (Status::ok(""), Termination::Complete),
        ] {
            assert_eq!(classify(&status), how, "{status}");
        }
    }
}
