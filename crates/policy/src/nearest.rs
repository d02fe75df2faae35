//! Reasons in plain words: which fields made a DENY rule match, and which ALLOW rule came nearest.
//!
//! Reasons show the identity, addresses, port, method, path (without its query), host and the token's subject; never a
//! header or another claim, nor what is expected of them.

use std::fmt::Write;

use ambit_api::authorization_policy::Action;

use crate::{
    decide::Residual,
    decision::{Decision, NearMiss},
    limits::MAX_RULES_COMPARED,
    program::Policy,
    rule::{Request, Rule},
    seen::{Facts, Seen, list, reading, shown},
    test::Test,
};

/// Why this denial, of a request under the reading that it was denied for, or of a connection; and for a default deny
/// the rule that came nearest.
pub(crate) fn reason(
    residual: &Residual,
    decision: &Decision,
    request: Option<&Request<'_>>,
) -> (String, Option<NearMiss>) {
    let before = reading(decision.reading, request);
    let facts = Facts { connection: &residual.connection, request };
    let mut near_miss = None;
    let reason = match deciding_rule(residual, decision) {
        None => {
            let nearest = nearest(residual, facts, MAX_RULES_COMPARED);
            let reason = why_none_allows(residual, facts, nearest.as_ref());
            near_miss = nearest.map(|(policy, rule, failures)| NearMiss {
                policy: policy.name.clone(),
                rule: rule.index,
                fields: failures.iter().map(|test| test.name().into_owned()).collect(),
            });
            reason
        }
        Some((policy, rule)) if policy.action == Action::Custom => {
            let request = request.map(|request| Request { claims: None, ..*request });
            let facts = Facts { request: request.as_ref(), ..facts };
            let asks = format!("rule {} of {} matches", rule.index, policy.name);
            format!("{}; {}", why_matched(rule, facts, asks), decision.reason)
        }
        Some((policy, rule)) => why_matched(rule, facts, format!("rule {} of {} denies it", rule.index, policy.name)),
    };
    (before + &reason, near_miss)
}

/// A policy, one of its rules, and the tests of it that fail.
type Nearest<'a> = (&'a Policy, &'a Rule, Vec<&'a Test>);

/// The ALLOW rule that fails on fewest fields, and those fields. Among equals one whose connection fields all hold comes
/// first, then the earlier one. Only so many rules are compared.
pub(crate) fn nearest<'a>(residual: &'a Residual, facts: Facts<'_>, at_most: usize) -> Option<Nearest<'a>> {
    let allowing =
        residual.program.policies.iter().filter(|policy| policy.action == Action::Allow && !policy.is_dry_run);
    let rules = allowing.flat_map(|policy| {
        let rules = residual.program.rules.get(policy.rules.clone()).unwrap_or_default();
        rules.iter().map(move |rule| (policy, rule))
    });
    let compared = rules.take(at_most).map(|(policy, rule)| (policy, rule, failures(rule, facts)));
    compared.min_by_key(|(_, _, failures)| (failures.len(), failures.iter().any(|test| !test.is_late())))
}

/// The rule that a decision names.
pub(crate) fn deciding_rule<'a>(residual: &'a Residual, decision: &Decision) -> Option<(&'a Policy, &'a Rule)> {
    let (name, index) = (decision.policy.as_ref()?, decision.rule? as usize);
    let policy = residual.program.policies.iter().find(|policy| policy.name == *name)?;
    Some((policy, residual.program.rules.get(policy.rules.start + index)?))
}

fn why_matched(rule: &Rule, facts: Facts<'_>, mut reason: String) -> String {
    let clauses = rule.groups.iter().filter_map(|group| {
        // At L4 the tests of a request count as met.
        group.clauses.iter().find(|clause| clause.tests().all(|test| facts.holds(test).unwrap_or(true)))
    });
    let (mut before, mut left_out) = (": ", false);
    for test in clauses.flat_map(|clause| clause.tests()) {
        if facts.holds(test).is_none() {
            left_out = true;
            continue;
        }
        let (subject, expected) = (test.subject(), list(&test.expected()));
        let relation = if test.negated { "is none of" } else { "matches" };
        // Writing to a string can't fail.
        let _ = match facts.seen(test) {
            _ if test.is_secret() => {
                write!(reason, "{before}{subject} {}", if test.negated { "is none of those named" } else { "matches" })
            }
            Seen::Value(value) => write!(reason, "{before}{subject} `{}` {relation} {expected}", shown(&value)),
            Seen::Missing(what) => write!(reason, "{before}{what}"),
            Seen::Unknown => Ok(()),
        };
        before = "; ";
    }
    if left_out {
        reason.push_str("; its HTTP conditions can't be judged on a connection and count as met");
    } else if before == ": " {
        reason.push_str(": it matches everything");
    }
    reason
}

fn why_none_allows(residual: &Residual, facts: Facts<'_>, nearest: Option<&Nearest<'_>>) -> String {
    let Some((policy, rule, failures)) = nearest else {
        let mut policies = residual.program.policies.iter();
        let empty = policies.find(|policy| policy.action == Action::Allow && !policy.is_dry_run);
        let name = empty.map(|policy| policy.name.to_string()).unwrap_or_default();
        return format!("no ALLOW rule matches; {name} has no rules, so it allows nothing");
    };
    let mut reason = format!("no ALLOW rule matches; nearest is {} rule {}", policy.name, rule.index);
    let mut before = ": ";
    for test in failures {
        let _ = write!(reason, "{before}{}", failure(test, facts));
        before = "; ";
    }
    if failures.is_empty() {
        // At L4 one alternative of `to` that needs a request takes the whole rule away.
        reason.push_str(": it has HTTP conditions, which can't be judged on a connection");
    }
    reason
}

/// The tests that fail: of each group those of the clause that fails fewest.
fn failures<'r>(rule: &'r Rule, facts: Facts<'_>) -> Vec<&'r Test> {
    let of_clauses = rule.groups.iter().filter_map(|group| {
        let failing = |test: &&Test| facts.holds(test) != Some(true);
        group.clauses.iter().map(|clause| clause.tests().filter(failing).collect::<Vec<_>>()).min_by_key(Vec::len)
    });
    of_clauses.flatten().collect()
}

fn failure(test: &Test, facts: Facts<'_>) -> String {
    let (subject, expected) = (test.subject(), list(&test.expected()));
    let but = if test.negated { "anything but " } else { "" };
    match facts.seen(test) {
        Seen::Unknown => format!("{subject} can't be judged on a connection, expected {but}{expected}"),
        Seen::Missing(what) if test.is_secret() => format!("{subject} doesn't match: {what}"),
        Seen::Value(_) if test.is_secret() => format!("{subject} doesn't match"),
        Seen::Missing(what) => format!("{what}, expected {but}{expected}"),
        Seen::Value(value) => format!("{subject} is `{}`, expected {but}{expected}", shown(&value)),
    }
}
