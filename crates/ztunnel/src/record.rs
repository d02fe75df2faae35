//! Decision records of the node proxy.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use ambit_api::SpiffeId;
use ambit_mesh::{
    View,
    view::{Service, Workload},
};
use ambit_policy::Decision;
use ambit_telemetry::{DecisionRecord, Destination, Durations, Enforcer, Recorder, Source};

/// When a connection arrived, and what it spent its time on so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    arrived: SystemTime,
    started: Instant,
    pub(crate) policy: Option<Duration>,
    pub(crate) connect: Option<Duration>,
}

/// One record in the making.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) enforcer: Enforcer,
    pub(crate) source: Source,
    pub(crate) destination: Destination,
    pub(crate) decision: Decision,
    pub(crate) timing: Timing,
}

/// A refusal for a reason that isn't a policy's.
pub(crate) fn deny(reason: impl Into<Arc<str>>) -> Decision {
    Decision::deny(reason)
}

/// `namespace/name` of a workload.
pub(crate) fn workload_name(workload: &Workload) -> Arc<str> {
    format!("{}/{}", workload.namespace, workload.name).into()
}

/// `namespace/name` of a service.
pub(crate) fn service_name(service: &Service) -> Arc<str> {
    format!("{}/{}", service.key.namespace, service.name).into()
}

/// A source as the mesh knows it by its address.
pub(crate) fn source(view: &View, identity: Option<SpiffeId>, address: SocketAddr) -> Source {
    let workload = view.workload_by_ip(address.ip().to_canonical()).map(|workload| workload_name(workload));
    Source { workload, identity, address: Some(address) }
}

// === impl Timing ===

impl Timing {
    /// Starts now.
    pub(crate) fn start() -> Self {
        Self { arrived: SystemTime::now(), started: Instant::now(), policy: None, connect: None }
    }

    fn durations(&self) -> Durations {
        Durations {
            policy_us: self.policy.map(micros),
            connect_us: self.connect.map(micros),
            upstream_us: None,
            total_us: micros(self.started.elapsed()),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

// === impl Report ===

impl Report {
    /// Hands the record over.
    pub(crate) fn send(self, recorder: &Recorder) {
        let Self { enforcer, source, destination, decision, timing } = self;
        let mut record = DecisionRecord::new(enforcer, source, destination, "TCP", &decision);
        record.time = timing.arrived;
        record.durations = timing.durations();
        recorder.record(record);
    }
}
