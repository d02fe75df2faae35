//! The whole of a decision as data: each policy, rule, entry and field, what was seen and what was expected, what came
//! nearest, and what change would allow it.
//!
//! Unlike reasons, which are recorded, this shows the values of headers and claims: it is for the one who asked.

use ambit_api::authorization_policy::Action;
use serde::Serialize;

use crate::{
    decide::{Compiled, Residual},
    decision::{Decision, PolicyName},
    facts::{ConnectionFacts, RequestFacts},
    nearest::{deciding_rule, nearest},
    path,
    program::Policy,
    rule::{Clause, Group, Part, Request, Rule},
    seen::{Facts, Seen, list},
    test::Test,
};

/// A decision, taken apart.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The decision with its whole reason.
    #[serde(flatten)]
    pub decision: Decision,
    /// The path that policies were compared with; nothing at L4, or when the request has none that can be judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Every policy, in the order in which they count: CUSTOM, AUDIT, DENY, ALLOW.
    pub policies: Vec<ExplainedPolicy>,
    /// For a default deny, the ALLOW rule that failed on fewest fields, with those fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest: Option<NearestMiss>,
    /// For a denial, what would allow the same request. Each is a way of its own, but for those of one rule.
    pub changes: Vec<Change>,
}

/// A policy and how it fared.
#[derive(Clone, Debug, Serialize)]
pub struct ExplainedPolicy {
    /// Its name.
    pub policy: PolicyName,
    /// What a match means.
    pub action: Action,
    /// Whom a CUSTOM policy asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// False for AUDIT and dry-run policies, which change no verdict.
    pub is_enforced: bool,
    /// One of its rules matches.
    pub is_matched: bool,
    /// Its rules, in order.
    pub rules: Vec<ExplainedRule>,
}

/// A rule and how it fared.
#[derive(Clone, Debug, Serialize)]
pub struct ExplainedRule {
    /// Index among the policy's rules, from 0.
    pub index: u32,
    /// Whether it matches.
    pub outcome: RuleOutcome,
    /// The entries of `from`. One must be met, if there are any.
    pub from: Vec<ExplainedEntry>,
    /// The entries of `to`. One must be met, if there are any.
    pub to: Vec<ExplainedEntry>,
    /// The entries of `when`. All must be met.
    pub when: Vec<ExplainedEntry>,
}

/// How a rule fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleOutcome {
    /// It matches.
    Matches,
    /// It doesn't.
    Misses,
    /// An ALLOW rule with conditions that take a request, on a connection without one: it can't match.
    Void,
}

/// An entry of `from`, `to` or `when`.
#[derive(Clone, Debug, Serialize)]
pub struct ExplainedEntry {
    /// All of its fields are met.
    pub is_met: bool,
    /// Its fields.
    pub fields: Vec<ExplainedField>,
}

/// A field and what it saw.
#[derive(Clone, Debug, Serialize)]
pub struct ExplainedField {
    /// Its name (`methods`, `notPaths`), or the key of the condition (`source.ip`).
    pub field: String,
    /// It is a `not` form.
    pub is_negated: bool,
    /// How it fared.
    pub outcome: FieldOutcome,
    /// The value it looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen: Option<String>,
    /// Why there is no value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<&'static str>,
    /// Its values, of which any one is enough.
    pub expected: Vec<String>,
}

/// How a field fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FieldOutcome {
    /// It holds.
    Met,
    /// It doesn't.
    Unmet,
    /// It takes a request to know, and there is none; in a rule that denies that counts as met.
    CountsAsMet,
    /// The same in a rule that allows, which it makes void.
    Open,
}

/// The rule that came nearest.
#[derive(Clone, Debug, Serialize)]
pub struct NearestMiss {
    /// Its policy.
    pub policy: PolicyName,
    /// Its index.
    pub rule: u32,
    /// The fields on which it failed. None at L4, if another entry of the rule makes it void.
    pub fields: Vec<ExplainedField>,
}

/// A change of a policy.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// The policy; nothing if it is another part that has to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyName>,
    /// The rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<u32>,
    /// What to do, in plain words.
    pub text: String,
}

// === impl Compiled ===

impl Compiled {
    /// Decides and takes the decision apart; without a request, for the connection itself (L4).
    #[must_use]
    pub fn explain(&self, connection: &ConnectionFacts, request: Option<&RequestFacts<'_>>) -> Explanation {
        self.for_connection(connection).explain(request)
    }
}

// === impl Residual ===

impl Residual {
    /// Decides and takes the decision apart; without a request, for the connection itself (L4).
    #[must_use]
    pub fn explain(&self, request: Option<&RequestFacts<'_>>) -> Explanation {
        let Some(facts) = request else {
            let connection = Facts { connection: &self.connection, request: None };
            return self.explain_facts(self.with_reason(self.decide_connection(), None), connection);
        };
        let decision = self.with_reason(self.decide(facts), request);
        let Ok(target) = path::split(facts.path) else {
            return Explanation { decision, path: None, policies: Vec::new(), nearest: None, changes: Vec::new() };
        };
        let explained = self.deciding_reading(facts, &target, |request, _| {
            let facts = Facts { connection: &self.connection, request: Some(request) };
            self.explain_facts(decision.clone(), facts)
        });
        // INVARIANT: there is at least the plain reading.
        explained.unwrap_or(Explanation {
            decision,
            path: None,
            policies: Vec::new(),
            nearest: None,
            changes: Vec::new(),
        })
    }

    fn explain_facts(&self, decision: Decision, facts: Facts<'_>) -> Explanation {
        let mut policies: Vec<&Policy> = self.program.policies.iter().collect();
        policies.sort_by_key(|policy| match policy.action {
            Action::Custom => 0,
            Action::Audit => 1,
            Action::Deny => 2,
            Action::Allow => 3,
        });
        let policies: Vec<_> = policies.into_iter().map(|policy| self.explain_policy(policy, facts)).collect();
        let is_default = !decision.is_allowed() && decision.policy.is_none() && self.program.settled.is_none();
        let nearest = if is_default { nearest(self, facts, usize::MAX) } else { None };
        let changes = if decision.is_allowed() || self.program.settled.is_some() {
            Vec::new()
        } else if let Some((policy, rule)) = deciding_rule(self, &decision) {
            vec![change_of_matched(policy, rule, &decision)]
        } else if let Some((policy, rule, tests)) = &nearest {
            changes_of_missed(policy, rule, tests, facts)
        } else {
            let text = "no ALLOW policy has a rule; add one that matches";
            vec![Change { policy: None, rule: None, text: text.to_owned() }]
        };
        let nearest = nearest.map(|(policy, rule, tests)| NearestMiss {
            policy: policy.name.clone(),
            rule: rule.index,
            fields: tests.into_iter().map(|test| field(test, Action::Allow, facts)).collect(),
        });
        let path = facts.request.map(|request| String::from_utf8_lossy(request.path).into_owned());
        Explanation { decision, path, policies, nearest, changes }
    }

    fn explain_policy(&self, policy: &Policy, facts: Facts<'_>) -> ExplainedPolicy {
        let request = facts.request.map(|request| match policy.action {
            // A provider is asked before the token is looked at.
            Action::Custom => Request { claims: None, ..*request },
            _ => *request,
        });
        let facts = Facts { request: request.as_ref(), ..facts };
        let rules = self.program.rules.get(policy.rules.clone()).unwrap_or_default();
        let rules: Vec<_> = rules.iter().map(|rule| explain_rule(rule, policy.action, facts)).collect();
        ExplainedPolicy {
            policy: policy.name.clone(),
            action: policy.action,
            provider: policy.provider.as_deref().map(str::to_owned),
            is_enforced: policy.is_enforced(),
            is_matched: rules.iter().any(|rule| rule.outcome == RuleOutcome::Matches),
            rules,
        }
    }
}

fn explain_rule(rule: &Rule, action: Action, facts: Facts<'_>) -> ExplainedRule {
    let entry = |clause: &Clause| {
        let fields: Vec<_> = clause.tests().map(|test| field(test, action, facts)).collect();
        let is_met = |field: &ExplainedField| matches!(field.outcome, FieldOutcome::Met | FieldOutcome::CountsAsMet);
        ExplainedEntry { is_met: fields.iter().all(is_met), fields }
    };
    let entries = |group: &Group| group.clauses.iter().map(entry).collect::<Vec<_>>();
    let mut explained =
        ExplainedRule { index: rule.index, outcome: RuleOutcome::Matches, from: vec![], to: vec![], when: vec![] };
    for group in &rule.groups {
        let entries = entries(group);
        if !entries.iter().any(|entry| entry.is_met) {
            explained.outcome = RuleOutcome::Misses;
        }
        match group.part {
            Part::From => explained.from = entries,
            Part::To => explained.to = entries,
            Part::When(_) => explained.when.extend(entries),
        }
    }
    if facts.request.is_none() && action == Action::Allow && rule.is_void_at_l4(facts.connection) {
        explained.outcome = RuleOutcome::Void;
    }
    explained
}

fn field(test: &Test, action: Action, facts: Facts<'_>) -> ExplainedField {
    let outcome = match facts.holds(test) {
        Some(true) => FieldOutcome::Met,
        Some(false) => FieldOutcome::Unmet,
        None if action == Action::Allow => FieldOutcome::Open,
        None => FieldOutcome::CountsAsMet,
    };
    let (seen, missing) = match facts.seen(test) {
        Seen::Value(value) => (Some(value.into_owned()), None),
        Seen::Missing(what) => (None, Some(what)),
        Seen::Unknown => (None, Some("it takes a request to know, and policies are judged on the connection here")),
    };
    let field = test.name().into_owned();
    ExplainedField { field, is_negated: test.negated, outcome, seen, missing, expected: test.expected() }
}

fn change_of_matched(policy: &Policy, rule: &Rule, decision: &Decision) -> Change {
    let (name, index) = (&policy.name, rule.index);
    let fields: Vec<_> = rule.groups.iter().flat_map(|group| &group.clauses).flat_map(Clause::tests).collect();
    let fields: Vec<String> = fields.iter().map(|test| test.name().into_owned()).collect();
    let text = match (policy.action, &decision.ask) {
        (Action::Custom, Some(provider)) => format!("provider `{provider}` has to allow it"),
        (Action::Custom, None) => format!("let policy {name} name one provider that is configured, or remove it"),
        _ if fields.is_empty() => format!("rule {index} of {name} denies everything; remove it or narrow it"),
        _ => format!("change rule {index} of {name} so that one of these no longer matches: {}", list(&fields)),
    };
    Change { policy: Some(name.clone()), rule: Some(index), text }
}

fn changes_of_missed(policy: &Policy, rule: &Rule, tests: &[&Test], facts: Facts<'_>) -> Vec<Change> {
    let of_rule = |text: String| Change { policy: Some(policy.name.clone()), rule: Some(rule.index), text };
    let place = format!("rule {} of {}", rule.index, policy.name);
    if tests.is_empty() {
        return vec![of_rule(format!(
            "{place} has HTTP conditions: attach the policy to a waypoint, or take them out"
        ))];
    }
    let change = |test: &&Test| {
        let name = test.name();
        let list = match (test.field, test.negated) {
            (Some(field), _) => format!("`{field}`"),
            (None, false) => format!("the `values` of `{name}`"),
            (None, true) => format!("the `notValues` of `{name}`"),
        };
        of_rule(match facts.seen(test) {
            Seen::Unknown => format!("{place} needs a request for {list}: attach the policy to a waypoint"),
            Seen::Missing(what) => format!("in {place}, {list} can't be met: {what}; bring one, or take the field out"),
            Seen::Value(value)
                if matches!(test.field, Some("paths" | "notPaths")) && path::reads_in_several_ways(&value) =>
            {
                format!(
                    "ask for a path that reads in one way only: in `{value}`, write single slashes, and no `%2F`, `%5C` or `;`"
                )
            }
            Seen::Value(value) if test.negated => format!("in {place}, take what matches `{value}` out of {list}"),
            Seen::Value(value) => format!("in {place}, add `{value}` to {list}"),
        })
    };
    tests.iter().map(change).collect()
}
