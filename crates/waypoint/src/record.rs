//! Decision records in the making.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_policy::{Decision, Verdict};
use ambit_telemetry::{DecisionRecord, Exchange, Notes, ProviderCheck, Recorder};

use ambit_telemetry::metrics::{CarriedConnection, CarriedProtocol};
use bytes::Bytes;
use http::{HeaderMap, Method, Response, header};
use http_body::Body as _;

use crate::{
    balance::Endpoint,
    operators::{Counted, Ended, Kind, Meters, Operators, Tally, Traced, Uploaded, full_name},
    respond,
    upstream::{Body, boxed},
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
    /// Counts a body whose length isn't declared, and gRPC messages.
    uploaded: Option<Arc<Uploaded>>,
    /// Tries were used up.
    exhausted: bool,
    /// What is said at the end, if somebody wants to know.
    exchange: Option<Box<Exchange>>,
    traced: Option<Box<Traced>>,
    has_context: bool,
}

const COMMON_METHODS: [&str; 7] = ["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS"];

/// A denial for a reason that is no policy's.
pub(crate) fn refusal(reason: &str) -> Decision {
    Decision::deny(reason)
}

/// The same word with Envoy's for tries that were used up.
fn exhausted(flags: &'static str) -> &'static str {
    match flags {
        "-" => "URX",
        "UF" => "UF,URX",
        "UC" => "UC,URX",
        "UR" => "UR,URX",
        "UPE" => "URX,UPE",
        "UT" => "UT,URX",
        "UH" => "UH,URX",
        other => other,
    }
}

/// Without an allocation where that can be.
fn method_text(method: &Method) -> Cow<'static, str> {
    COMMON_METHODS
        .into_iter()
        .find(|common| *common == method.as_str())
        .map_or_else(|| Cow::Owned(method.as_str().to_owned()), Cow::Borrowed)
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
        Self {
            record: None,
            recorder,
            started,
            meters: None,
            kind,
            request_bytes: 0,
            operators: None,
            uploaded: None,
            exhausted: false,
            exchange: None,
            traced: None,
            has_context: false,
        }
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
        if is_grpc || request_bytes.is_none() {
            self.uploaded = Some(Arc::default());
        }
    }

    /// Envoy's word for what went wrong.
    pub(crate) fn flag(&mut self, flags: &'static str) {
        self.kind.flags = if self.exhausted { exhausted(flags) } else { flags };
    }

    /// It would have been tried again, but had been as often as may be.
    pub(crate) fn exhausted(&mut self) {
        self.exhausted = true;
        self.kind.flags = exhausted(self.kind.flags);
    }

    /// The request's body on its way to an endpoint, counted where that has to be.
    pub(crate) fn counting<B>(&self, body: B) -> Body
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match &self.uploaded {
            None => boxed(body),
            Some(uploaded) => {
                let is_grpc = self.kind.protocol == CarriedProtocol::Grpc;
                boxed(Counted::new(body, Arc::clone(uploaded), is_grpc))
            }
        }
    }

    /// From now on what comes of it is said at the end, if it is recorded for somebody who wants to know.
    pub(crate) fn watch(&mut self, exchange: impl FnOnce() -> Exchange) {
        if self.recorder.wants_exchanges() && self.exchange.is_none() {
            self.exchange = Some(Box::new(exchange()));
        }
    }

    /// Its span is wanted.
    pub(crate) fn trace(&mut self, traced: Traced, exchange: impl FnOnce() -> Exchange) {
        self.exchange.get_or_insert_with(|| Box::new(exchange()));
        self.traced = Some(Box::new(traced));
    }

    /// Nothing is said at the end: another entry does that.
    pub(crate) fn unwatched(mut self) -> Self {
        (self.exchange, self.traced) = (None, None);
        self
    }

    /// The request has been given a place in a trace.
    pub(crate) fn placed(&mut self) {
        self.has_context = true;
    }

    /// True if it has.
    pub(crate) fn has_context(&self) -> bool {
        self.has_context
    }

    /// True if something is said at the end.
    pub(crate) fn is_watched(&self) -> bool {
        self.exchange.is_some()
    }

    /// The request's head, for what is said at the end.
    pub(crate) fn head(&mut self, authority: &str, headers: &HeaderMap) {
        let Some(exchange) = &mut self.exchange else { return };
        let text = |name: &str| headers.get(name).map(|value| Exchange::text(value.as_bytes()));
        exchange.authority = Some(Exchange::text(authority.as_bytes()));
        exchange.user_agent = text(header::USER_AGENT.as_str());
        exchange.forwarded_for = text("x-forwarded-for");
        exchange.request_id = text("x-request-id");
    }

    /// The route that it follows.
    pub(crate) fn route(&mut self, name: &str) {
        if let Some(exchange) = &mut self.exchange {
            exchange.route = Some(name.into());
        }
    }

    /// What is said at the end, which is when it is dropped. At most one per entry.
    pub(crate) fn ended(&mut self, status: Option<u16>) -> Option<Box<Ended>> {
        let (mut exchange, traced) = (self.exchange.take()?, self.traced.take());
        let mut record = self.record.clone()?;
        (record.status, exchange.flags) = (status, self.kind.flags);
        Some(Box::new(Ended::new(record, exchange, self.recorder.clone(), self.started, traced)))
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
        let tally = Tally::new(Arc::clone(self.meters.as_ref()?), kind, self.started, self.request_bytes);
        Some(tally.uploading(self.uploaded.take()).ending(self.ended(status)))
    }

    /// Method and path without query.
    pub(crate) fn request(&mut self, method: &Method, path: &str) {
        self.edit(|record| {
            record.method = Some(method_text(method));
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
        if let Some(exchange) = &mut self.exchange {
            exchange.endpoint = Some(endpoint.address);
        }
        let name = match &self.meters {
            Some(meters) => meters.name_of(workload),
            None => full_name(workload),
        };
        self.edit(|record| record.destination.workload = Some(name));
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
        if let Some(exchange) = &mut self.exchange {
            exchange.is_answered = true;
        }
        self.edit(|record| record.durations.upstream_us = Some(upstream_us));
    }

    /// When it began.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Something else that was done to it, besides what was decided.
    pub(crate) fn also(&mut self, what: &str) {
        self.edit(|record| record.reason = format!("{}; {what}", record.reason).into());
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
        drop(self.ended(status));
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
            self.edit(|record| {
                if record.verdict == Verdict::Allow {
                    record.reason = "the client went away before the answer".into();
                }
            });
            drop(self.tally(None));
            drop(self.ended(None));
        }
        self.hand_over();
    }
}
