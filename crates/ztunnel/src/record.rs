//! Decision records of the node proxy.

use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::{Duration, Instant, SystemTime},
};

use ambit_api::SpiffeId;
use ambit_mesh::{
    View,
    view::{Service, Workload},
};
use ambit_policy::{Decision, Verdict};
use ambit_telemetry::{DecisionRecord, Destination, Durations, Enforcer, Recorder, Source};

/// When a connection arrived, and what it spent its time on so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pub(crate) arrived: SystemTime,
    pub(crate) started: Instant,
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

/// A connection that nothing has to be said against: how it goes on is decided at its other end.
pub(crate) fn allow() -> Decision {
    static REASON: LazyLock<Arc<str>> = LazyLock::new(|| "let out".into());
    Decision { verdict: Verdict::Allow, ..Decision::deny(Arc::clone(&REASON)) }
}

/// A refusal as those are told who were refused: who refused, by which policy and rule, and why.
pub(crate) fn told(enforcer: &Enforcer, decision: &Decision) -> String {
    let mut text = match enforcer {
        Enforcer::ZtunnelOutbound => "refused by ztunnel-outbound".to_owned(),
        Enforcer::ZtunnelInbound => "refused by ztunnel-inbound".to_owned(),
        Enforcer::WaypointGuard => "refused by waypoint-guard".to_owned(),
        Enforcer::Waypoint { name } => format!("refused by waypoint {name}"),
    };
    if let Some(policy) = &decision.policy {
        text.push_str(&format!(", policy {policy}"));
    }
    if let Some(rule) = decision.rule {
        text.push_str(&format!(", rule {rule}"));
    }
    text.push_str(": ");
    text.push_str(&decision.reason);
    text
}

/// `namespace/name` of a workload.
pub(crate) fn workload_name(workload: &Workload) -> Arc<str> {
    workload.full_name()
}

/// `namespace/name` of a service.
pub(crate) fn service_name(service: &Service) -> Arc<str> {
    service.full_name()
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

    /// Where the time went until now.
    pub(crate) fn durations(&self) -> Durations {
        Durations {
            policy_us: self.policy.map(micros),
            connect_us: self.connect.map(micros),
            upstream_us: None,
            total_us: micros(self.started.elapsed()),
        }
    }
}

/// In whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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
