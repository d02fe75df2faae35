//! Trying, and trying again.

use std::{sync::Arc, time::Instant};

use ::http::{Response, StatusCode};
use ambit_mesh::view::routes::{Filters, HttpRule};
use ambit_policy::Decision;
use hyper::body::Incoming;

use super::{budget::Budget, edit::Template, replay::Replay, unrouted::backoff, way::Way};
use crate::{
    destination::{self, InFlight},
    http::Allowed,
    record::Entry,
    request, respond,
    session::Question,
    upstream::{self, Body, Trail},
};

/// A routed request on its way.
pub(super) struct Attempts<'a> {
    pub(super) allowed: &'a Allowed,
    pub(super) template: &'a Template,
    pub(super) way: &'a Way,
    pub(super) rule: &'a Arc<HttpRule>,
    pub(super) deadline: Option<Instant>,
    /// A change of policy may come while it is sent.
    pub(super) long: bool,
}

/// What came of it.
pub(super) enum Outcome {
    Answered(Response<Incoming>, InFlight),
    Failed(upstream::Error),
    TimedOut,
    Denied(Decision),
}

// === impl Attempts ===

impl Attempts<'_> {
    pub(super) async fn run(&self, body: Body, filters: [&Filters; 2], entry: &mut Entry) -> Outcome {
        let question = Question::Request(Box::new(self.allowed.checked.clone()));
        let mut trail = Trail::default();
        let tried = async {
            match self.deadline {
                None => self.try_all(body, filters, &mut trail, entry).await,
                Some(deadline) => {
                    let all = self.try_all(body, filters, &mut trail, entry);
                    match tokio::time::timeout_at(deadline.into(), all).await {
                        Ok(outcome) => outcome,
                        Err(_elapsed) => {
                            trail.timed_out();
                            Outcome::TimedOut
                        }
                    }
                }
            }
        };
        tokio::select! {
            outcome = tried => outcome,
            decision = self.allowed.session.denied(&question), if self.long => Outcome::Denied(decision),
        }
    }

    async fn try_all(&self, body: Body, filters: [&Filters; 2], trail: &mut Trail, entry: &mut Entry) -> Outcome {
        let session = &self.allowed.session;
        let Some(budget) = Budget::of_way(session, &self.allowed.view, self.way) else {
            return self.once(body, filters, trail, entry).await;
        };
        budget.request(entry.started());
        let most = if self.template.asked.is_some() { 0 } else { self.rule.retry.attempts };
        if most == 0 {
            return self.once(body, filters, trail, entry).await;
        }
        let replay = self.template.has_body.then(|| Replay::new(body));
        let mut tries = 0;
        let mut counted = None;
        loop {
            let body = replay.as_ref().map_or_else(respond::empty, Replay::body);
            let outcome = self.once(body, filters, trail, entry).await;
            let is_worth_it = self.is_worth_another_try(&outcome);
            if is_worth_it && tries >= most {
                entry.exhausted();
            }
            let again = tries < most && is_worth_it && replay.as_ref().is_none_or(Replay::is_whole) && budget.take();
            if !again {
                return outcome;
            }
            drop(counted.take());
            counted = destination::retry(session, &self.allowed.view, self.way);
            if counted.is_none() {
                return outcome;
            }
            // Counted no longer while it waits.
            drop(outcome);
            tokio::time::sleep(backoff(self.rule.retry.backoff, tries, &session.shared.random)).await;
            tries += 1;
        }
    }

    async fn once(&self, body: Body, filters: [&Filters; 2], trail: &mut Trail, entry: &mut Entry) -> Outcome {
        let Allowed { session, view, checked, protocol, .. } = self.allowed;
        let request = self.template.request(checked, filters, *protocol, &session.shared.random, body);
        let sent = upstream::send(session, view, self.way, *protocol, request, trail, entry);
        let sent = match self.rule.backend_timeout {
            None => sent.await,
            Some(timeout) => match tokio::time::timeout(timeout, sent).await {
                Ok(sent) => sent,
                Err(_elapsed) => {
                    trail.timed_out();
                    return Outcome::TimedOut;
                }
            },
        };
        match sent {
            Ok((response, in_flight)) => Outcome::Answered(response, in_flight),
            Err(error) => Outcome::Failed(error),
        }
    }

    /// As Istio does by default: where nothing was done (refused streams), and what gRPC calls unavailable or cancelled;
    /// reaching another endpoint is part of one try. A rule that speaks of retries adds its statuses and broken connections.
    fn is_worth_another_try(&self, outcome: &Outcome) -> bool {
        let retry = &self.rule.retry;
        match outcome {
            Outcome::Answered(response, _) => {
                let grpc = || request::is_grpc(&self.allowed.checked.headers) && is_grpc_retriable(response);
                retry.codes.contains(&response.status()) || grpc()
            }
            Outcome::Failed(upstream::Error::Exchange { refused, .. }) => *refused || retry.explicit,
            Outcome::Failed(upstream::Error::Connect { .. }) => retry.explicit,
            Outcome::Failed(_) | Outcome::Denied(_) => false,
            Outcome::TimedOut => retry.codes.contains(&StatusCode::GATEWAY_TIMEOUT),
        }
    }
}

/// A response without a message that says `CANCELLED` or `UNAVAILABLE`.
pub(super) fn is_grpc_retriable(response: &Response<Incoming>) -> bool {
    response.headers().get("grpc-status").is_some_and(|status| status == "1" || status == "14")
}
