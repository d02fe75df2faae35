//! The answer in plain words.

use std::{
    collections::HashMap,
    fmt::{Arguments, Write},
};

use ambit_policy::{
    Change, ExplainedEntry, ExplainedField, ExplainedPolicy, ExplainedRule, Explanation, FieldOutcome, NearestMiss,
    RuleOutcome, Verdict,
};

use super::answer::{Answer, Asked, Step};

/// Values of a field that are listed. Further ones are counted.
const MAX_VALUES: usize = 5;

/// Draws the answer.
pub fn render(answer: &Answer) -> String {
    let Asked { method, path, host, principal, source_ip, service, port } = &answer.request;
    let mut out = String::new();
    // Writing to a string can't fail.
    let at = source_ip.map_or("an unknown address".to_owned(), |address| address.to_string());
    let _ = writeln!(out, "{method} {path} to {service}:{port} (host {host})\nfrom {principal} at {at}\n");
    let verdict = match &answer.ask {
        Some(provider) => format!("HANGS ON PROVIDER `{provider}`"),
        None => if answer.verdict == Verdict::Allow { "ALLOWED" } else { "DENIED" }.to_owned(),
    };
    let _ = writeln!(out, "{verdict}: {}", answer.reason);
    for assumption in &answer.assumptions {
        let _ = writeln!(out, "note: {assumption}");
    }
    for (number, step) in (1..).zip(&answer.steps) {
        let _ = writeln!(out, "\n{number}. {}: {}", step.title(), word(step));
        let _ = writeln!(out, "   {}", step.reason);
        attached(step, &mut out);
        if let Some(explanation) = &step.explanation {
            explained(explanation, step, &mut out);
        }
        if let Some(remedy) = &step.remedy {
            let _ = writeln!(out, "   to allow it: {remedy}");
        }
    }
    out
}

fn word(step: &Step) -> String {
    let ask = step.explanation.as_ref().and_then(|explanation| explanation.decision.ask.as_deref());
    match (ask, step.verdict) {
        (Some(provider), _) => format!("ask provider `{provider}`"),
        (None, verdict) => verdict.to_string(),
    }
}

/// The policies that have no rules to show: rejected ones, and those that don't count here.
fn attached(step: &Step, out: &mut String) {
    for attached in &step.attached {
        let what = match (&attached.rejected, attached.left_out) {
            (Some(reason), _) => format!("REJECTED, so everything that it applies to is denied: {reason}"),
            (None, Some(why)) => format!("takes no part: {why}"),
            (None, None) => continue,
        };
        let _ = writeln!(out, "   policy {} ({}) {what}", attached.policy, attached.via);
    }
}

fn explained(explanation: &Explanation, step: &Step, out: &mut String) {
    if let Some(path) = &explanation.path {
        let _ = writeln!(out, "   path as policies see it: {path}");
    }
    // Of two of one name the first counts.
    let attached = step.attached.iter().rev().map(|attached| (attached.policy.as_str(), attached.via.as_str()));
    let via: HashMap<_, _> = attached.collect();
    for policy in &explanation.policies {
        explained_policy(policy, via.get(policy.policy.to_string().as_str()).copied().unwrap_or_default(), out);
    }
    if let Some(NearestMiss { policy, rule, .. }) = &explanation.nearest {
        let _ = writeln!(out, "   nearest: rule {rule} of {policy}");
    }
    for Change { text, .. } in &explanation.changes {
        let _ = writeln!(out, "   to allow it: {text}");
    }
}

fn explained_policy(policy: &ExplainedPolicy, via: &str, out: &mut String) {
    let action = format!("{:?}", policy.action).to_uppercase();
    let provider = policy.provider.as_ref().map(|name| format!(" by provider `{name}`")).unwrap_or_default();
    let enforced = if policy.is_enforced { "" } else { ", changes no verdict" };
    let matched = if policy.is_matched { "matches" } else { "doesn't match" };
    let _ = writeln!(out, "   policy {} ({action}{provider}{enforced}; {via}) {matched}", policy.policy);
    if policy.rules.is_empty() {
        let _ = writeln!(out, "     it has no rules, so nothing matches it");
    }
    for rule in &policy.rules {
        explained_rule(rule, out);
    }
}

fn explained_rule(rule: &ExplainedRule, out: &mut String) {
    let ExplainedRule { index, outcome, from, to, when } = rule;
    let outcome = match outcome {
        RuleOutcome::Matches => "matches",
        RuleOutcome::Misses => "doesn't match",
        RuleOutcome::Void => "can't match: it has HTTP conditions, and only the connection is seen here",
    };
    if from.is_empty() && to.is_empty() && when.is_empty() {
        let _ = writeln!(out, "     rule {index} {outcome}: it has no conditions");
        return;
    }
    let _ = writeln!(out, "     rule {index} {outcome}");
    for (part, entries) in [("from", from), ("to", to), ("when", when)] {
        for (at, entry) in entries.iter().enumerate() {
            explained_entry(format_args!("{part}[{at}]"), entry, out);
        }
    }
}

fn explained_entry(place: Arguments<'_>, entry: &ExplainedEntry, out: &mut String) {
    for field in &entry.fields {
        let mark = match field.outcome {
            FieldOutcome::Met => "yes",
            FieldOutcome::Unmet => "NO ",
            FieldOutcome::CountsAsMet | FieldOutcome::Open => "?  ",
        };
        let _ = write!(out, "       {mark} {place} {}: ", field.field);
        sentence(field, out);
        out.push('\n');
    }
}

fn sentence(field: &ExplainedField, out: &mut String) {
    match (&field.seen, field.missing) {
        (Some(seen), _) => out.extend(["`", seen, "`"]),
        (None, Some(missing)) => out.push_str(missing),
        (None, None) => out.push_str("nothing"),
    }
    out.push_str(if field.is_negated { "; wanted none of " } else { "; wanted " });
    for (at, value) in field.expected.iter().take(MAX_VALUES).enumerate() {
        out.extend([if at > 0 { ", `" } else { "`" }, value, "`"]);
    }
    if field.expected.len() > MAX_VALUES {
        let _ = write!(out, ", {} more", field.expected.len() - MAX_VALUES);
    }
    if field.outcome == FieldOutcome::CountsAsMet {
        out.push_str(", which counts as met");
    }
}
