//! How much of a Service's traffic retries may be: XBackendTrafficPolicies, of which the oldest counts
//! (`spec/control-plane.md` 3.3).

use std::{sync::Arc, time::Duration};

use ambit_api::{
    BackendTrafficPolicy,
    backend_traffic_policy::{
        DEFAULT_COUNT, DEFAULT_INTERVAL, DEFAULT_PERCENT, DEFAULT_RATE_INTERVAL, RetryConstraint, interval,
    },
};
use ambit_xds::waypoint::RetryBudget;

use crate::inputs::{Inputs, NamespacedName};

/// An XBackendTrafficPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    object: Arc<BackendTrafficPolicy>,
    /// It can't be followed: nothing it is for is tried again.
    rejected: bool,
}

/// What a Service's waypoint is told; nothing where no policy says.
pub(crate) fn of_service(inputs: &Inputs, service: &NamespacedName) -> Option<RetryBudget> {
    Some(in_force(inputs, service)?.budget())
}

/// The policy that counts for a Service: the oldest, then the first by name.
pub(crate) fn in_force<'a>(inputs: &'a Inputs, service: &'a NamespacedName) -> Option<&'a RetryPolicy> {
    if inputs.retry_policies.is_empty() {
        return None;
    }
    let here = Inputs::in_namespace(&inputs.retry_policies, &service.namespace).map(|(_, policy)| policy);
    let constrains = |policy: &&RetryPolicy| {
        let constrained = policy.rejected || policy.object.spec.retry_constraint.is_some();
        constrained && policy.services().any(|name| name == *service)
    };
    here.filter(constrains).min_by_key(|policy| {
        let created = policy.object.created.as_deref();
        (created.is_none(), created, &policy.object.name)
    })
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

// === impl RetryPolicy ===

impl RetryPolicy {
    /// Takes an object in.
    #[must_use]
    pub fn new(object: BackendTrafficPolicy) -> Self {
        Self { object: Arc::new(object), rejected: false }
    }

    /// Takes in one that can't be followed: nothing it is for is tried again.
    #[must_use]
    pub fn rejected(object: BackendTrafficPolicy) -> Self {
        Self { rejected: true, ..Self::new(object) }
    }

    /// The object.
    #[must_use]
    pub fn get(&self) -> &BackendTrafficPolicy {
        &self.object
    }

    /// The Services that it is for.
    pub(crate) fn services(&self) -> impl Iterator<Item = NamespacedName> {
        let targets = self.object.spec.target_refs.iter().filter(|target| target.is_service());
        targets.map(|target| NamespacedName::new(&self.object.namespace, &target.name))
    }

    fn budget(&self) -> RetryBudget {
        let policy = format!("{}/{}", self.object.namespace, self.object.name);
        let none =
            RetryBudget { policy: policy.clone(), interval_ms: 1, count_interval_ms: 1, ..RetryBudget::default() };
        if self.rejected {
            return none;
        }
        let RetryConstraint { budget, min_retry_rate } = self.object.spec.retry_constraint.clone().unwrap_or_default();
        let (budget, rate) = (budget.unwrap_or_default(), min_retry_rate.unwrap_or_default());
        let time = |written: Option<&str>, usual: Duration| written.map_or(Some(usual), interval);
        let times = time(budget.interval.as_deref(), DEFAULT_INTERVAL)
            .zip(time(rate.interval.as_deref(), DEFAULT_RATE_INTERVAL));
        let Some((window, rate_window)) = times else { return none };
        RetryBudget {
            policy,
            percent: budget.percent.unwrap_or(DEFAULT_PERCENT),
            interval_ms: milliseconds(window),
            count: rate.count.unwrap_or(DEFAULT_COUNT),
            count_interval_ms: milliseconds(rate_window),
        }
    }
}
