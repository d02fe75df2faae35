//! XBackendTrafficPolicy: what the Gateway API's schema would refuse, and what of it isn't done.

use super::Check;
use crate::{
    BackendTrafficPolicy,
    backend_traffic_policy::{MAX_INTERVAL, interval},
    codes,
    text::quoted,
};

/// Most targets of one policy, as in the Gateway API's schema.
const MAX_TARGETS: usize = 16;
/// Most retries that are always allowed, as in the Gateway API's schema.
const MAX_COUNT: u32 = 1_000_000;

/// Checks a whole XBackendTrafficPolicy.
pub(super) fn check(check: &mut Check<'_>, object: &BackendTrafficPolicy) {
    let spec = &object.spec;
    let targets = spec.target_refs.len();
    if !(1..=MAX_TARGETS).contains(&targets) {
        let message = format!("{targets} targets; there can be 1 to {MAX_TARGETS}");
        check.error(codes::TOO_MANY, "spec.targetRefs", message, "name the Services that the policy is for");
    }
    for (index, target) in spec.target_refs.iter().enumerate().take(MAX_TARGETS) {
        let field = format!("spec.targetRefs[{index}]");
        if target.name.is_empty() {
            check.error(codes::TARGET_WITHOUT_NAME, &format!("{field}.name"), "a target needs a name", "add `name`");
        }
        if !target.is_service() {
            let message = format!("a policy of retries can't be attached to a `{}`", quoted(&target.kind));
            let help = "use `{group: \"\", kind: Service, name: <Service>}`";
            check.error(codes::TARGET_KIND, &format!("{field}.kind"), message, help);
        }
    }
    if spec.session_persistence.is_some() {
        let message = "sticky sessions aren't supported: requests go to any endpoint";
        check.warning(codes::UNSUPPORTED_ROUTE, "spec.sessionPersistence", message, "remove it");
    }
    let Some(constraint) = &spec.retry_constraint else { return };
    let field = "spec.retryConstraint";
    if let Some(budget) = &constraint.budget {
        if budget.percent.is_some_and(|percent| percent > 100) {
            let message = "a part is at most 100 %";
            check.error(codes::BAD_RETRY_BUDGET, &format!("{field}.budget.percent"), message, "use 0 to 100");
        }
        check_interval(check, &format!("{field}.budget.interval"), budget.interval.as_deref());
    }
    if let Some(rate) = &constraint.min_retry_rate {
        if rate.count.is_some_and(|count| !(1..=MAX_COUNT).contains(&count)) {
            let (message, help) = ("this isn't a number of retries", format!("use 1 to {MAX_COUNT}"));
            check.error(codes::BAD_RETRY_BUDGET, &format!("{field}.minRetryRate.count"), message, help);
        }
        check_interval(check, &format!("{field}.minRetryRate.interval"), rate.interval.as_deref());
    }
}

fn check_interval(check: &mut Check<'_>, field: &str, written: Option<&str>) {
    if let Some(written) = written.filter(|written| interval(written).is_none()) {
        let message = format!("`{}` is not an interval", quoted(written));
        let help = format!("write a duration such as `10s`, up to {MAX_INTERVAL:?}");
        check.error(codes::BAD_RETRY_BUDGET, field, message, help);
    }
}
