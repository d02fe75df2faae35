//! Decision records in the making.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_policy::{Decision, Verdict};
use ambit_telemetry::{DecisionRecord, Notes, ProviderCheck, Recorder};

use ambit_telemetry::metrics::{CarriedConnection, CarriedProtocol};
use http::Response;
use http_body::Body as _;

use crate::{
    balance::Endpoint,
    operators::{Kind, Meters, Operators, Tally},
    respond,
    upstream::Body,
};

/// A record that is filled in while its request is on its way, and handed over when dropped at the latest, so that no
/// request goes unrecorded.
#[derive(Debug)]
pub(crate) struct Entry {
    record: Option<DecisionRecord>,
    recorder: Recorder,
    started: Instant,
    /// Counts what comes of it; nothing for what never was a tunnel.
    meters: Option<Arc<Meters>>,
    kind: Kind,
    request_bytes: u64,
    /// For what never was a tunnel.
    operators: Option<Arc<Operators>>,
}

/// A denial for a reason that is no policy's.
pub(crate) fn refusal(reason: &str) -> Decision {
    Decision::deny(reason)
}

/// Whole microseconds since then.
pub(crate) fn micros_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

// === impl Entry ===

impl Entry {
    /// Starts the clock.
    pub(crate) fn new(record: DecisionRecord, recorder: Recorder) -> Self {
        let mut entry = Self::unrecorded(recorder);
        entry.record = Some(record);
        entry
    }

    /// One that is never handed over, for what nobody has asked for yet.
    pub(crate) fn unrecorded(recorder: Recorder) -> Self {
        let kind = Kind::new(CarriedProtocol::Tcp);
        let started = Instant::now();
        Self { record: None, recorder, started, meters: None, kind, request_bytes: 0, operators: None }
    }

    /// Shown to operators, though it isn't about a tunnel.
    pub(crate) fn watched(mut self, operators: &Arc<Operators>) -> Self {
        self.operators = Some(Arc::clone(operators));
        self
    }

    /// Counted as this tunnel's.
    pub(crate) fn metered(mut self, meters: &Arc<Meters>, is_http: bool) -> Self {
        self.meters = Some(Arc::clone(meters));
        if is_http {
            self.kind.protocol = CarriedProtocol::Http;
        }
        self
    }

    /// Whether the request is a gRPC call, and how long its body is, as far as its head says.
    pub(crate) fn carries(&mut self, is_grpc: bool, request_bytes: Option<u64>) {
        if is_grpc {
            self.kind.protocol = CarriedProtocol::Grpc;
        }
        self.request_bytes = request_bytes.unwrap_or_default();
    }

    /// Envoy's word for what went wrong.
    pub(crate) fn flag(&mut self, flags: &'static str) {
        self.kind.flags = flags;
    }

    /// Counts a TCP connection until the returned value is dropped.
    pub(crate) fn connection(&self) -> Option<CarriedConnection> {
        Some(self.meters.as_ref()?.connection(&self.kind))
    }

    /// The answer in the words of the Gateway, if it is a denial and the Gateway has some.
    pub(crate) fn answer(&self, response: Response<Body>) -> Response<Body> {
        respond::in_words_of(response, || self.meters.as_ref()?.denial())
    }

    /// Hands it over with the head of an endpoint's response. What is returned counts the request when its body has ended.
    pub(crate) fn finish_streaming<B>(mut self, response: &Response<B>) -> Option<Tally> {
        self.kind.note_grpc_status(response.headers());
        let tally = self.tally(Some(response.status().as_u16()));
        self.finish(Some(response.status().as_u16()));
        tally
    }

    /// Hands it over with the waypoint's own answer.
    pub(crate) fn finish_with(mut self, response: &Response<Body>) {
        self.kind.note_grpc_status(response.headers());
        let status = Some(response.status().as_u16());
        if let Some(mut tally) = self.tally(status) {
            tally.sent(response.body().size_hint().exact().unwrap_or_default());
        }
        self.finish(status);
    }

    /// At most one per entry.
    fn tally(&mut self, status: Option<u16>) -> Option<Tally> {
        if self.kind.protocol == CarriedProtocol::Tcp {
            return None;
        }
        let kind = Kind { code: status.unwrap_or_default(), ..self.kind.clone() };
        self.kind.protocol = CarriedProtocol::Tcp;
        Some(Tally::new(Arc::clone(self.meters.as_ref()?), kind, self.started, self.request_bytes))
    }

    /// Method and path without query.
    pub(crate) fn request(&mut self, method: &http::Method, path: &str) {
        self.edit(|record| {
            record.method = Some(method.to_string());
            record.path = Some(path.to_owned());
        });
    }

    /// What was decided, in so many microseconds.
    pub(crate) fn decided(&mut self, decision: &Decision, policy_us: Option<u64>) {
        self.edit(|record| {
            record.verdict = decision.verdict;
            record.policy.clone_from(&decision.policy);
            record.rule = decision.rule;
            record.reason = Arc::clone(&decision.reason);
            record.durations.policy_us = policy_us;
        });
    }

    /// A provider of CUSTOM policies was asked.
    pub(crate) fn checked(&mut self, check: ProviderCheck) {
        self.note(|notes| notes.providers.push(check));
    }

    /// What policies had to say that change no verdict.
    pub(crate) fn note(&mut self, note: impl FnOnce(&mut Notes)) {
        self.edit(|record| note(record.notes.get_or_insert_default()));
    }

    /// Where it went.
    pub(crate) fn endpoint(&mut self, endpoint: &Endpoint) {
        let workload = &endpoint.workload;
        self.kind.endpoint = Some(Arc::clone(workload));
        self.edit(|record| {
            record.destination.workload = Some(format!("{}/{}", workload.namespace, workload.name).into());
        });
    }

    /// Time spent reaching endpoints, over all tries.
    pub(crate) fn connected(&mut self, connect_us: u64) {
        self.edit(|record| *record.durations.connect_us.get_or_insert(0) += connect_us);
    }

    /// Like [`Entry::connected`], for an endpoint that was reached before this entry was begun.
    pub(crate) fn connected_before(&mut self, took: Duration) {
        self.started = self.started.checked_sub(took).unwrap_or(self.started);
        self.connected(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// Time from forwarding to the response's headers.
    pub(crate) fn answered(&mut self, upstream_us: u64) {
        self.edit(|record| record.durations.upstream_us = Some(upstream_us));
    }

    /// Allowed, yet it went wrong. The verdict stays.
    pub(crate) fn failed(&mut self, reason: &str) {
        self.edit(|record| record.reason = reason.into());
    }

    /// Hands it over with the status the client gets.
    pub(crate) fn finish(mut self, status: Option<u16>) {
        if status.is_some() {
            drop(self.tally(status));
        }
        self.edit(|record| record.status = status);
        self.hand_over();
    }

    fn edit(&mut self, edit: impl FnOnce(&mut DecisionRecord)) {
        if let Some(record) = &mut self.record {
            edit(record);
        }
    }

    fn hand_over(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.durations.total_us = micros_since(self.started);
            match (&self.meters, &self.operators) {
                (Some(meters), _) => meters.decided(&record),
                (None, Some(operators)) => {
                    operators.outcome(record.policy.as_ref(), record.rule, "deny").count(record.time);
                    operators.observed(&record);
                }
                (None, None) => {}
            }
            self.recorder.record(record);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.record.is_some() {
            // No answer: the client went away.
            self.kind.flags = "DC";
            drop(self.tally(None));
        }
        self.edit(|record| {
            if record.verdict == Verdict::Allow {
                record.reason = "the client went away before the answer".into();
            }
        });
        self.hand_over();
    }
}
