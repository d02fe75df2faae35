//! When a Lease may be taken, without IO. Times of others' clocks are never compared with ours: what counts is how long a
//! record has stood still before our own eyes.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};

use crate::limits::{MAX_HOLDER_BYTES, MAX_LEASE};

/// What tells one record of a Lease from the next.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    holder: String,
    renewed: Option<MicroTime>,
    acquired: Option<MicroTime>,
    transitions: i32,
}

/// A record, and when it was first seen.
#[derive(Debug, Default)]
pub(super) struct Observation(Option<(Record, Duration)>);

// === impl Observation ===

impl Observation {
    /// Whether `identity` may take the Lease at `now` (time since boot): nobody holds it, or its record hasn't changed for as
    /// long as it says.
    pub(super) fn may_take(&mut self, spec: &LeaseSpec, identity: &str, now: Duration) -> bool {
        let record = Record {
            holder: spec.holder_identity.clone().unwrap_or_default(),
            renewed: spec.renew_time.clone(),
            acquired: spec.acquire_time.clone(),
            transitions: spec.lease_transitions.unwrap_or_default(),
        };
        if record.holder.is_empty() || record.holder == identity {
            return true;
        }
        let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or(1)).unwrap_or(1).max(1);
        let lasts = Duration::from_secs(seconds).min(MAX_LEASE);
        match &self.0 {
            Some((seen, since)) if *seen == record => now.saturating_sub(*since) > lasts,
            _ => {
                self.0 = Some((record, now));
                false
            }
        }
    }
}

/// The record of a holder that has just taken or renewed the Lease. The times in it are for people.
pub(super) fn held(before: Option<&LeaseSpec>, identity: &str, duration: Duration) -> LeaseSpec {
    let now = MicroTime(Timestamp::now());
    let already = before.is_some_and(|spec| spec.holder_identity.as_deref() == Some(identity));
    let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or_default();
    LeaseSpec {
        holder_identity: Some(identity.chars().take(MAX_HOLDER_BYTES).collect()),
        lease_duration_seconds: Some(whole_seconds(duration)),
        acquire_time: before.filter(|_| already).and_then(|spec| spec.acquire_time.clone()).or(Some(now.clone())),
        renew_time: Some(now),
        lease_transitions: Some(if already { transitions } else { transitions.saturating_add(1) }),
        ..before.cloned().unwrap_or_default()
    }
}

/// The record of nobody, so that others needn't wait.
pub(super) fn released(lease: &mut Lease) {
    let spec = lease.spec.get_or_insert_default();
    spec.holder_identity = Some(String::new());
    spec.lease_duration_seconds = Some(1);
    spec.renew_time = Some(MicroTime(Timestamp::now()));
}

/// Rounded up: others wait rather longer than shorter.
fn whole_seconds(duration: Duration) -> i32 {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    i32::try_from(seconds.max(1)).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn spec(holder: &str, renewed_s: i64, duration_s: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed_s).expect("a time"))),
            lease_duration_seconds: Some(duration_s),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_free_lease_and_ones_own_may_be_taken() {
        assert!(Observation::default().may_take(&LeaseSpec::default(), "a", SECOND));
        assert!(Observation::default().may_take(&spec("", 0, 15), "a", SECOND));
        assert!(Observation::default().may_take(&spec("a", 0, 15), "a", SECOND));
    }

    #[test]
    fn anothers_lease_may_be_taken_once_it_has_stood_still_for_its_time() {
        let mut seen = Observation::default();
        // Its renewal lies long ago by our wall clock, which says nothing.
        let old = spec("b", 0, 15);
        assert!(!seen.may_take(&old, "a", 100 * SECOND));
        assert!(!seen.may_take(&old, "a", 115 * SECOND));
        assert!(seen.may_take(&old, "a", 116 * SECOND));
        // A renewal starts the time anew, whatever it says of when it was.
        assert!(!seen.may_take(&spec("b", -5, 15), "a", 117 * SECOND));
        assert!(!seen.may_take(&spec("b", -5, 15), "a", 131 * SECOND));
        assert!(seen.may_take(&spec("b", -5, 15), "a", 133 * SECOND));
    }

    #[test]
    fn a_lease_without_end_ends() {
        let mut seen = Observation::default();
        let forever = spec("b", 0, i32::MAX);
        assert!(!seen.may_take(&forever, "a", SECOND));
        assert!(seen.may_take(&forever, "a", 2 * SECOND + MAX_LEASE));
        assert!(!Observation::default().may_take(&spec("b", 0, -7), "a", SECOND), "a senseless time isn't none");
    }

    #[test]
    fn a_transition_is_counted_when_the_holder_changes() {
        let first = held(None, "a", SECOND);
        assert_eq!((first.lease_transitions, first.lease_duration_seconds), (Some(1), Some(1)));
        let renewed = held(Some(&first), "a", 1500 * SECOND / 1000);
        assert_eq!((renewed.lease_transitions, renewed.lease_duration_seconds), (Some(1), Some(2)));
        assert_eq!(renewed.acquire_time, first.acquire_time);
        assert_eq!(held(Some(&renewed), "b", SECOND).lease_transitions, Some(2));
    }
}
