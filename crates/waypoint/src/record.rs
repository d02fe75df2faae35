//! Decision records in the making.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_policy::{Decision, Verdict};
use ambit_telemetry::{DecisionRecord, Recorder};

use crate::balance::Endpoint;

/// A record that is filled in while its request is on its way, and handed over when dropped at the latest, so that no
/// request goes unrecorded.
#[derive(Debug)]
pub(crate) struct Entry {
    record: Option<DecisionRecord>,
    recorder: Recorder,
    started: Instant,
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
        Self { record: Some(record), recorder, started: Instant::now() }
    }

    /// One that is never handed over, for what nobody has asked for yet.
    pub(crate) fn unrecorded(recorder: Recorder) -> Self {
        Self { record: None, recorder, started: Instant::now() }
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

    /// Where it went.
    pub(crate) fn endpoint(&mut self, endpoint: &Endpoint) {
        let workload = &endpoint.workload;
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
            self.recorder.record(record);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.edit(|record| {
            if record.verdict == Verdict::Allow {
                record.reason = "the client went away before the answer".into();
            }
        });
        self.hand_over();
    }
}
