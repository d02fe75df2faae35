//! RequestAuthentications: what they are attached to, and what of them does nothing.

use ambit_api::Severity;

use super::{Found, at, codes, policies};
use crate::inputs::Inputs;

const KIND: &str = "RequestAuthentication";

pub(super) fn check(inputs: &Inputs, found: &mut Found) {
    for (name, rules) in &inputs.request_authentications {
        let mut targeted = false;
        for (field, reference) in rules.references() {
            targeted = true;
            policies::target(inputs, KIND, name, &field, reference, found);
        }
        if !targeted {
            let field = if rules.get().spec.selector.is_some() { "spec.selector" } else { "metadata.name" };
            found.add(
                Severity::Warning,
                codes::TOKENS_UNUSED,
                at(KIND, name, field),
                "it isn't enforced: node proxies don't look at tokens, and waypoints only at those of their `targetRefs`".into(),
                "use `targetRefs` with a Service that has a waypoint, or with the waypoint's Gateway",
            );
        } else if rules.get().spec.jwt_rules.is_empty() {
            found.add(
                Severity::Warning,
                codes::TOKENS_UNUSED,
                at(KIND, name, "spec.jwtRules"),
                "without `jwtRules` it does nothing".into(),
                "add a rule for each issuer",
            );
        }
    }
}
