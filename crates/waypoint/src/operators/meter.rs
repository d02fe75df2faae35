//! The counters of one tunnel: found once per outcome, then added to.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use ambit_mesh::{
    View,
    view::{Denial, Settings, Workload},
};
use ambit_policy::{PolicyName, Verdict};
use ambit_telemetry::{
    DecisionRecord,
    metrics::{
        CarriedConnection, CarriedProtocol, CountedDecisions, CountedMessages, CountedRequests, Party, RequestLabels,
        ServiceLabels,
    },
};
use http::HeaderMap;

use super::{
    Operators,
    body::{Messages, Uploaded},
    ended::Ended,
};
use crate::{
    limits::MAX_TUNNEL_COUNTERS,
    session::{Addressee, Client, Target},
};

/// The counters of one tunnel.
#[derive(Debug)]
pub(crate) struct Meters {
    pub(crate) operators: Arc<Operators>,
    source: Party,
    service: ServiceLabels,
    known: Mutex<Known>,
}

/// How requests that are counted together ended.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    pub(crate) endpoint: Option<Arc<Workload>>,
    pub(crate) protocol: CarriedProtocol,
    pub(crate) code: u16,
    pub(crate) grpc_status: Option<u16>,
    /// Envoy's word for what went wrong.
    pub(crate) flags: &'static str,
}

/// A request that is counted when this is dropped, which is when its response has ended.
#[derive(Debug)]
pub(crate) struct Tally {
    meters: Arc<Meters>,
    kind: Kind,
    started: Instant,
    request_bytes: u64,
    response_bytes: u64,
    /// What came of a body whose length wasn't declared.
    uploaded: Option<Arc<Uploaded>>,
    calls: Option<Box<Calls>>,
    ended: Option<Box<Ended>>,
}

/// The messages of a gRPC call, counted while it lasts.
#[derive(Debug)]
struct Calls {
    counted: CountedMessages,
    /// Of the response.
    messages: Messages,
    /// Messages of the request that have been counted.
    requests: u64,
}

/// What this tunnel has met so far, at most [`MAX_TUNNEL_COUNTERS`] of each.
#[derive(Debug, Default)]
struct Known {
    requests: Vec<(Kind, CountedRequests)>,
    decisions: Vec<(Option<PolicyName>, Option<u32>, Verdict, CountedDecisions)>,
    denial: Option<Arc<Denial>>,
    /// The endpoint of the last request and its name.
    endpoint: Option<(Arc<Workload>, Arc<str>)>,
}

/// `namespace/name`, as records have it.
pub(crate) fn full_name(workload: &Workload) -> Arc<str> {
    format!("{}/{}", workload.namespace, workload.name).into()
}

/// A workload as metrics name it.
fn party(workload: &Workload) -> Party {
    let known = |text: &Arc<str>| Some(Arc::clone(text)).filter(|text| !text.is_empty());
    Party {
        workload: known(&workload.canonical.workload),
        namespace: known(&workload.namespace),
        canonical_service: known(&workload.canonical.name),
        canonical_revision: known(&workload.canonical.revision),
        cluster: known(&workload.cluster),
        principal: Some(workload.identity.clone()),
        ..Party::default()
    }
}

// === impl Meters ===

impl Meters {
    pub(crate) fn new(operators: &Arc<Operators>, view: &View, client: &Client, target: &Target) -> Arc<Self> {
        let workload = view.workload_by_ip(client.address.ip());
        let source = workload.map_or_else(Party::default, |workload| party(workload));
        let source = Party { principal: Some(client.identity.clone()), ..source };
        let service = match &target.addressee {
            Addressee::Service(key) => ServiceLabels {
                hostname: Some(Arc::clone(&key.hostname)),
                namespace: Some(Arc::clone(&key.namespace)),
                name: target.name.split_once('/').map(|(_, name)| name.into()),
            },
            Addressee::Workload(_) => ServiceLabels::default(),
        };
        Arc::new(Self { operators: Arc::clone(operators), source, service, known: Mutex::default() })
    }

    /// What the Gateway asks for at this moment.
    pub(crate) fn set(&self, settings: &Settings) {
        self.lock().denial.clone_from(&settings.denial);
    }

    /// The Gateway's own answer to what is denied, if it has one.
    pub(crate) fn denial(&self) -> Option<Arc<Denial>> {
        self.lock().denial.clone()
    }

    /// [`full_name`], made anew only for another endpoint than the last request's.
    pub(crate) fn name_of(&self, workload: &Arc<Workload>) -> Arc<str> {
        let known = &mut self.lock().endpoint;
        match known {
            Some((last, name)) if Arc::ptr_eq(last, workload) => Arc::clone(name),
            _ => Arc::clone(&known.insert((Arc::clone(workload), full_name(workload))).1),
        }
    }

    /// Counts a decision.
    pub(crate) fn decided(&self, record: &DecisionRecord) {
        let (policy, rule, verdict) = (&record.policy, record.rule, record.verdict);
        {
            let known = &mut self.lock().decisions;
            let found = known.iter().find(|known| known.1 == rule && known.2 == verdict && known.0 == *policy);
            match found {
                Some((.., counted)) => counted.count(record.time),
                None => {
                    if known.len() >= MAX_TUNNEL_COUNTERS {
                        known.clear();
                    }
                    let word = if verdict == Verdict::Allow { "allow" } else { "deny" };
                    let counted = self.operators.outcome(policy.as_ref(), rule, word);
                    counted.count(record.time);
                    known.push((policy.clone(), rule, verdict, counted));
                }
            }
        }
        self.operators.observed(record);
    }

    /// Counts a TCP connection until the returned value is dropped.
    pub(crate) fn connection(&self, kind: &Kind) -> CarriedConnection {
        self.operators.metrics.connection(self.labels(kind))
    }

    fn request(&self, kind: &Kind, tally: &Tally) {
        let took = tally.started.elapsed();
        let request_bytes = tally.request_bytes();
        let known = &mut self.lock().requests;
        if let Some((_, counted)) = known.iter().find(|(known, _)| known.is(kind)) {
            return counted.count(took, request_bytes, tally.response_bytes);
        }
        if known.len() >= MAX_TUNNEL_COUNTERS {
            known.clear();
        }
        let counted = self.operators.metrics.requests(self.labels(kind));
        counted.count(took, request_bytes, tally.response_bytes);
        known.push((kind.clone(), counted));
    }

    fn labels(&self, kind: &Kind) -> RequestLabels {
        RequestLabels {
            source: self.source.clone(),
            destination: kind.endpoint.as_ref().map_or_else(Party::default, |workload| party(workload)),
            service: self.service.clone(),
            protocol: kind.protocol,
            code: kind.code,
            grpc_status: kind.grpc_status,
            flags: kind.flags,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Kind ===

impl Kind {
    pub(crate) fn new(protocol: CarriedProtocol) -> Self {
        Self { endpoint: None, protocol, code: 0, grpc_status: None, flags: "-" }
    }

    /// The status that these headers or trailers give, if this is gRPC.
    pub(crate) fn note_grpc_status(&mut self, headers: &HeaderMap) {
        if self.protocol == CarriedProtocol::Grpc
            && let Some(status) = headers.get("grpc-status")
        {
            self.grpc_status = status.to_str().ok().and_then(|status| status.parse().ok());
        }
    }

    fn is(&self, other: &Self) -> bool {
        let same_endpoint = match (&self.endpoint, &other.endpoint) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        };
        same_endpoint
            && self.code == other.code
            && self.grpc_status == other.grpc_status
            && self.protocol == other.protocol
            && self.flags == other.flags
    }
}

// === impl Tally ===

impl Tally {
    pub(crate) fn new(meters: Arc<Meters>, kind: Kind, started: Instant, request_bytes: u64) -> Self {
        let calls = (kind.protocol == CarriedProtocol::Grpc).then(|| {
            let counted = meters.operators.metrics.messages(meters.labels(&kind));
            Box::new(Calls { counted, messages: Messages::default(), requests: 0 })
        });
        Self { meters, kind, started, request_bytes, response_bytes: 0, uploaded: None, calls, ended: None }
    }

    /// With what comes of a body whose length wasn't declared.
    pub(crate) fn uploading(mut self, uploaded: Option<Arc<Uploaded>>) -> Self {
        self.uploaded = uploaded;
        self
    }

    /// With what is said when it has ended.
    pub(crate) fn ending(mut self, ended: Option<Box<Ended>>) -> Self {
        self.ended = ended;
        self
    }

    /// Envoy's word for what went wrong on the way of the response.
    pub(crate) fn flag(&mut self, flags: &'static str) {
        self.kind.flags = flags;
    }

    /// More from the client, after a switch of protocols.
    pub(crate) fn received(&mut self, bytes: u64) {
        self.request_bytes = self.request_bytes.saturating_add(bytes);
    }

    fn request_bytes(&self) -> u64 {
        self.uploaded.as_ref().map_or(self.request_bytes, |uploaded| uploaded.get().0)
    }

    /// Counts the messages that have come since this was last done, and these of the response.
    fn count_messages(&mut self, responses: u64) {
        let Some(calls) = &mut self.calls else { return };
        let requests = self.uploaded.as_ref().map_or(0, |uploaded| uploaded.get().1);
        calls.counted.count(requests.saturating_sub(calls.requests), responses);
        calls.requests = requests;
    }

    /// More of the response's body.
    pub(crate) fn sent(&mut self, bytes: u64) {
        self.response_bytes = self.response_bytes.saturating_add(bytes);
    }

    /// More of the response: its trailers say how a gRPC call ended.
    pub(crate) fn frame(&mut self, frame: &http_body::Frame<bytes::Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.sent(data.len() as u64);
            if let Some(calls) = &mut self.calls {
                let begun = calls.messages.pass(data);
                self.count_messages(begun);
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.kind.note_grpc_status(trailers);
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.count_messages(0);
        let request_bytes = self.request_bytes();
        if let Some(ended) = &mut self.ended {
            ended.set(self.kind.flags, request_bytes, self.response_bytes);
        }
        self.meters.request(&self.kind, self);
    }
}
