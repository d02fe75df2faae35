//! The account of one connection: what metrics count of it, and what the access log says when it opens and ends
//! (`spec/ztunnel.md` 14 and 15). Exactly one line tells of its end, however it ends.

use std::{io, sync::Arc};

use ambit_hbone::copy::{CopyError, Moved};
use ambit_policy::{Decision, Verdict};
use ambit_telemetry::{
    ConnectionFacts, DecisionRecord, Destination, Enforcer, Recorder, Source,
    metrics::{Flag, OpenConnection, Traffic, TrafficLabels},
};

use crate::record::{Timing, millis};

/// What is said of a connection that was cut because its proxy or pod went away.
const DRAINED: &str = "connection closed due to connection drain";
/// What is said of one that was let in before a change.
const CUT: &str = "connection closed due to policy change";

/// What is known of a connection when it opens.
pub(crate) struct Opening<'d> {
    pub(crate) labels: TrafficLabels,
    pub(crate) enforcer: Enforcer,
    pub(crate) source: Source,
    pub(crate) destination: Destination,
    pub(crate) decision: &'d Decision,
    pub(crate) facts: ConnectionFacts,
}

/// A decision against a connection.
#[derive(Clone, Debug)]
pub(crate) struct Verdicted {
    /// Who decided.
    pub(crate) enforcer: Enforcer,
    pub(crate) decision: Decision,
    /// The connection was let in before, and a change has it cut.
    pub(crate) changed: bool,
}

/// How a connection ends.
#[derive(Debug)]
pub(crate) enum End {
    /// Both directions did.
    Finished,
    /// A side broke off, or nothing moved for too long.
    Broken(String),
    /// It was decided against.
    Refused(Verdicted),
    /// It never came about.
    Failed {
        reason: Arc<str>,
        flag: Flag,
        /// Another proxy refused it, and has recorded that.
        elsewhere: bool,
    },
    /// The proxy or pod goes away.
    Drained,
}

/// An open connection's account.
#[derive(Debug)]
pub(crate) struct Account {
    counted: OpenConnection,
    /// Bytes that metrics know of, from the client and from the server.
    flushed: (u64, u64),
    record: DecisionRecord,
    timing: Timing,
}

// === impl Account ===

impl Account {
    /// Counts the connection as opened.
    pub(crate) fn open(traffic: &Arc<Traffic>, opening: Opening<'_>, timing: Timing) -> Box<Self> {
        let Opening { labels, enforcer, source, destination, decision, facts } = opening;
        let mut record = DecisionRecord::new(enforcer, source, destination, "TCP", decision);
        record.time = timing.arrived;
        record.connection = Some(Box::new(facts));
        Box::new(Self { counted: traffic.open(&labels), flushed: (0, 0), record, timing })
    }

    /// What is known of the connection.
    pub(crate) fn facts(&self) -> Option<&ConnectionFacts> {
        self.record.connection.as_deref()
    }

    /// The other side is there.
    pub(crate) fn opened(&mut self, timing: Timing, recorder: &Recorder) {
        self.timing = timing;
        if recorder.wants_openings() {
            let mut record = self.record.clone();
            record.durations = timing.durations();
            if let Some(facts) = &mut record.connection {
                facts.opened = true;
            }
            recorder.record(record);
        }
    }

    /// Counts what has moved since the last time.
    pub(crate) fn flush(&mut self, moved: &Moved) {
        let (received, sent) = moved.get();
        self.counted.received(received.saturating_sub(self.flushed.0));
        self.counted.sent(sent.saturating_sub(self.flushed.1));
        self.flushed = (received, sent);
    }

    /// Counts the connection as closed, and records how it ended.
    pub(crate) fn close(mut self, moved: &Moved, end: End, recorder: &Recorder) {
        self.flush(moved);
        let Self { counted, flushed: (received, sent), mut record, timing } = self;
        record.durations = timing.durations();
        let mut facts = record.connection.take().unwrap_or_default();
        (facts.received_bytes, facts.sent_bytes) = (received, sent);
        facts.duration_ms = millis(timing.started.elapsed());
        match end {
            End::Finished => {}
            End::Broken(error) => facts.error = Some(error.into()),
            End::Drained => facts.error = Some(DRAINED.into()),
            End::Refused(Verdicted { enforcer, decision, changed }) => {
                counted.fail(Flag::Deny);
                facts.error = changed.then(|| CUT.into());
                facts.decided_elsewhere = false;
                record.enforcer = enforcer;
                (record.verdict, record.policy) = (decision.verdict, decision.policy);
                (record.rule, record.reason) = (decision.rule, decision.reason);
            }
            End::Failed { reason, flag, elsewhere } => {
                counted.fail(flag);
                facts.decided_elsewhere = elsewhere;
                (record.verdict, record.policy) = (Verdict::Deny, None);
                (record.rule, record.reason) = (None, reason);
            }
        }
        record.connection = Some(facts);
        recorder.record(record);
    }
}

// === impl End ===

impl From<Result<(u64, u64), CopyError>> for End {
    fn from(outcome: Result<(u64, u64), CopyError>) -> Self {
        match outcome {
            Ok(_) => Self::Finished,
            // A tunnel says how it broke; a socket only has the system's words.
            Err(CopyError { error, .. }) => Self::Broken(match (error.kind(), error.get_ref()) {
                (io::ErrorKind::ConnectionReset, None) => "connection reset".to_owned(),
                _ => error.to_string(),
            }),
        }
    }
}
