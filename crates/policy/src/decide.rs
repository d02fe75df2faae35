//! Judging connections and requests.

use std::sync::Arc;

use ambit_api::authorization_policy::Action;

use crate::{
    ProviderKind,
    decision::{Decision, MatchedEntries, Verdict},
    facts::{ConnectionFacts, RequestFacts, Stage},
    nearest,
    path::{self, PathNormalization, Reading, Target},
    program::{Program, ProviderRules, RuleSet, Sets},
    rule::{Request, Rule},
};

/// Policies ready to decide for one target. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Compiled {
    pub(crate) program: Arc<Program>,
    pub(crate) paths: PathNormalization,
}

/// Policies with one connection's facts folded in. It owns what it needs, so a proxy keeps it as long as the connection.
#[derive(Debug)]
pub struct Residual {
    pub(crate) program: Arc<Program>,
    pub(crate) paths: PathNormalization,
    pub(crate) connection: ConnectionFacts,
    live: LiveSets,
}

/// What the connection leaves open.
#[derive(Debug, Default)]
struct LiveSets {
    custom: Vec<Live>,
    deny: Live,
    allow: Live,
}

/// Rules of a set that were found by the connection and that it satisfies, ascending, with the entries that it
/// satisfies.
#[derive(Debug, Default)]
struct Live(Vec<(u32, MatchedEntries)>);

/// A rule that matched.
type Match<'a> = Option<(&'a Rule, MatchedEntries)>;

// === impl Compiled ===

impl Compiled {
    pub(crate) fn new(program: Program) -> Self {
        Self { program: Arc::new(program), paths: PathNormalization::default() }
    }

    /// Denies everything, with this reason: what an enforcement point installs when it can't know the policies.
    #[must_use]
    pub fn deny_all(reason: &str) -> Self {
        Self::new(Program::settled(Decision::deny(reason)))
    }

    /// The same policies with paths read in another way.
    #[must_use]
    pub fn with_path_normalization(self, paths: PathNormalization) -> Self {
        Self { paths, ..self }
    }

    /// Folds in what can't change during a connection.
    #[must_use]
    pub fn for_connection(&self, facts: &ConnectionFacts) -> Residual {
        let live = LiveSets::new(&self.program, &self.program.enforced, facts);
        Residual { program: Arc::clone(&self.program), paths: self.paths, connection: facts.clone(), live }
    }
}

// === impl Residual ===

impl Residual {
    /// Judges one HTTP request of the connection.
    ///
    /// Its time hardly depends on the number of rules, and it allocates nothing unless the path is longer than
    /// [`crate::limits::INLINE_PATH_BYTES`] and needs normalisation.
    #[must_use]
    pub fn decide(&self, facts: &RequestFacts<'_>) -> Decision {
        match &self.program.settled {
            Some(decision) => decision.clone(),
            None => self.judge(&self.program.enforced, &self.live, facts),
        }
    }

    /// The same decision with its reason in full: which fields decided, or for a default deny what came nearest.
    ///
    /// The slow part of a decision, for those that are recorded. Pass the request that the decision is about, or nothing
    /// for one about the connection.
    #[must_use]
    pub fn with_reason(&self, decision: Decision, request: Option<&RequestFacts<'_>>) -> Decision {
        if decision.is_allowed() || self.program.settled.is_some() {
            return decision;
        }
        let (reason, near_miss) = match request.map(|facts| (facts, path::split(facts.path))) {
            None => nearest::reason(self, &decision, None),
            // What can't be read has its whole reason already.
            Some((_, Err(_))) => return decision,
            Some((facts, Ok(target))) => {
                let reason = self.deciding_reading(facts, &target, |request, decision| {
                    nearest::reason(self, decision, Some(request))
                });
                reason.unwrap_or_default()
            }
        };
        Decision { reason: reason.into(), near_miss: near_miss.map(Arc::new), ..decision }
    }

    /// Judges the connection itself, without HTTP facts (L4): an ALLOW rule that needs one doesn't match, a DENY rule
    /// denies on what remains of it.
    #[must_use]
    pub fn decide_connection(&self) -> Decision {
        self.decide_connection_approved(&[])
    }

    /// The same after these providers have allowed the connection.
    #[must_use]
    pub fn decide_connection_approved(&self, approved_by: &[&str]) -> Decision {
        match &self.program.settled {
            Some(decision) => decision.clone(),
            None => self.judge_connection(&self.program.enforced, &self.live, approved_by),
        }
    }

    /// What [`Residual::decide`] would say if dry-run policies were enforced, or [`Residual::decide_connection`] without
    /// a request. Nothing if there is no dry-run policy.
    #[must_use]
    pub fn dry_run(&self, request: Option<&RequestFacts<'_>>) -> Option<Decision> {
        let sets = self.program.trial.as_ref()?;
        let live = LiveSets::new(&self.program, sets, &self.connection);
        Some(match request {
            Some(facts) => self.judge(sets, &live, facts),
            None => self.judge_connection(sets, &live, &[]),
        })
    }

    /// The AUDIT rules that match, as their decisions. They change no verdict.
    #[must_use]
    pub fn audits(&self, request: Option<&RequestFacts<'_>>) -> Vec<Decision> {
        let rules = || self.program.audit.iter().filter_map(|&id| self.program.rules.get(id as usize));
        let Some(facts) = request else {
            let matches = |rule: &Rule| Some(rule.decision(rule.at_l4(&self.connection, Action::Audit)?));
            return rules().filter_map(matches).collect();
        };
        let Ok(target) = path::split(facts.path) else { return Vec::new() };
        path::each_reading(&target, self.paths, |_, path| {
            let request = Request::new(facts, &target, path);
            let matches = |rule: &Rule| Some(rule.decision(rule.matches(&self.connection, &request)?));
            Some(rules().filter_map(matches).collect())
        })
        .unwrap_or_default()
    }

    /// True if there are CUSTOM policies, so that [`Residual::decide`] may want a provider asked.
    #[must_use]
    pub fn has_custom(&self) -> bool {
        self.program.settled.is_none() && !self.program.enforced.custom.is_empty()
    }

    /// True if a policy speaks about the TLS server name, so that it is worth finding out for connections.
    #[must_use]
    pub fn names_server(&self) -> bool {
        self.program.names_server
    }

    /// True if there are AUDIT or dry-run policies, so that [`Residual::audits`] or [`Residual::dry_run`] may say something.
    #[must_use]
    pub fn observes(&self) -> bool {
        self.program.trial.is_some() || !self.program.audit.is_empty()
    }

    fn judge(&self, sets: &Sets, live: &LiveSets, facts: &RequestFacts<'_>) -> Decision {
        let target = match path::split(facts.path) {
            Ok(target) => target,
            Err(unreadable) => return self.program.unreadable(unreadable),
        };
        if target.has_one_reading(self.paths) {
            return self.judge_reading(sets, live, facts, &target, target.path.as_bytes());
        }
        let mut plain = None;
        let denied = path::each_reading(&target, self.paths, |reading, path| {
            let decision = self.judge_reading(sets, live, facts, &target, path);
            if decision.verdict == Verdict::Deny {
                return Some(Decision { reading, ..decision });
            }
            plain.get_or_insert(decision);
            None
        });
        // INVARIANT: there is at least the plain reading.
        denied.or(plain).unwrap_or_else(|| self.program.unreadable(path::Unreadable::NoLeadingSlash))
    }

    fn judge_reading(
        &self,
        sets: &Sets,
        live: &LiveSets,
        facts: &RequestFacts<'_>,
        target: &Target<'_>,
        path: &[u8],
    ) -> Decision {
        let request = Request::new(facts, target, path);
        if !sets.custom.is_empty() && facts.stage != Stage::AfterCustom {
            // A provider is asked before the token is looked at.
            let request = Request { claims: None, ..request };
            for (set, live) in sets.custom.iter().zip(&live.custom) {
                if let Some(refusal) = unapproved(set, facts.approved_by, || self.first(&set.rules, live, &request)) {
                    return refusal;
                }
            }
        }
        if facts.stage == Stage::Custom {
            return sets.no_custom_matches.clone();
        }
        if !sets.deny.is_empty
            && let Some((rule, entries)) = self.first(&sets.deny, &live.deny, &request)
        {
            return rule.decision(entries);
        }
        let Some(allow) = &sets.allow else { return sets.no_deny_matches.clone() };
        match self.first(allow, &live.allow, &request) {
            Some((rule, entries)) => rule.decision(entries),
            None => sets.no_allow_matches.clone(),
        }
    }

    /// The first rule of a set, in order, that matches a request.
    fn first(&self, set: &RuleSet, live: &Live, request: &Request<'_>) -> Match<'_> {
        let (rules, connection) = (&self.program.rules, &self.connection);
        let mut first = live.0.iter().find_map(|&(id, entries)| {
            rules.get(id as usize)?.on_request(entries, connection, request).map(|entries| (id, entries))
        });
        set.by_request.visit(request, &mut |ids| {
            let bound = first.map_or(u32::MAX, |(id, _)| id);
            let matches = |id: u32| rules.get(id as usize)?.matches(connection, request).map(|entries| (id, entries));
            first = ids.iter().take_while(|&&id| id < bound).find_map(|&id| matches(id)).or(first);
        });
        first.and_then(|(id, entries)| Some((rules.get(id as usize)?, entries)))
    }

    fn judge_connection(&self, sets: &Sets, live: &LiveSets, approved_by: &[&str]) -> Decision {
        for (set, live) in sets.custom.iter().zip(&live.custom) {
            // One that speaks HTTP can't have been asked.
            let approved_by = if set.kind == Some(ProviderKind::Http) { &[] } else { approved_by };
            if let Some(refusal) = unapproved(set, approved_by, || self.first_at_l4(&set.rules, live)) {
                return match set.kind {
                    Some(ProviderKind::Http) => {
                        Decision { ask: None, reason: Arc::clone(&set.only_requests), ..refusal }
                    }
                    _ => refusal,
                };
            }
        }
        if let Some((rule, entries)) = self.first_at_l4(&sets.deny, &live.deny) {
            return rule.decision(entries);
        }
        let Some(allow) = &sets.allow else { return sets.no_deny_matches.clone() };
        match self.first_at_l4(allow, &live.allow) {
            Some((rule, entries)) => rule.decision(entries),
            None => sets.no_allow_matches.clone(),
        }
    }

    /// The first rule of a set, in order, that matches the connection without a request.
    fn first_at_l4(&self, set: &RuleSet, live: &Live) -> Match<'_> {
        let (rules, connection) = (&self.program.rules, &self.connection);
        let matches = |id: u32| rules.get(id as usize)?.at_l4(connection, set.action).map(|entries| (id, entries));
        let mut first = live.0.iter().find_map(|&(id, _)| matches(id));
        set.without_request.visit(connection, &mut |ids| {
            let bound = first.map_or(u32::MAX, |(id, _)| id);
            first = ids.iter().take_while(|&&id| id < bound).find_map(|&id| matches(id)).or(first);
        });
        first.and_then(|(id, entries)| Some((rules.get(id as usize)?, entries)))
    }

    /// The first reading of a request's path that is decided as the request is, and its decision.
    pub(crate) fn deciding_reading<R>(
        &self,
        facts: &RequestFacts<'_>,
        target: &Target<'_>,
        mut with: impl FnMut(&Request<'_>, &Decision) -> R,
    ) -> Option<R> {
        let (sets, live) = (&self.program.enforced, &self.live);
        let mut visit = |path: &[u8], reading: Option<Reading>, is_any: bool| {
            let decision = Decision { reading, ..self.judge_reading(sets, live, facts, target, path) };
            let counts = is_any || decision.verdict == Verdict::Deny;
            counts.then(|| with(&Request::new(facts, target, path), &decision))
        };
        path::each_reading(target, self.paths, |reading, path| visit(path, reading, false))
            .or_else(|| path::each_reading(target, self.paths, |reading, path| visit(path, reading, true)))
    }
}

/// The decision where a rule wants a provider asked that hasn't allowed it.
fn unapproved<'a>(set: &ProviderRules, approved_by: &[&str], first: impl FnOnce() -> Match<'a>) -> Option<Decision> {
    if set.kind.is_some() && approved_by.contains(&&*set.provider) {
        return None;
    }
    let (rule, entries) = first()?;
    Some(Decision { clause: Some(entries), ..set.unapproved_by(rule) })
}

// === impl LiveSets ===

impl LiveSets {
    fn new(program: &Program, sets: &Sets, connection: &ConnectionFacts) -> Self {
        let live = |set: &RuleSet| Live::new(program, set, connection);
        Self {
            custom: sets.custom.iter().map(|set| live(&set.rules)).collect(),
            deny: live(&sets.deny),
            allow: sets.allow.as_ref().map(live).unwrap_or_default(),
        }
    }
}

// === impl Live ===

impl Live {
    fn new(program: &Program, set: &RuleSet, connection: &ConnectionFacts) -> Self {
        let (mut rules, mut is_sorted) = (Vec::new(), true);
        set.by_connection.visit(connection, &mut |ids| {
            let before = rules.len();
            let satisfied = |&id: &u32| {
                let entries = program.rules.get(id as usize)?.on_connection(connection)?;
                Some((id, entries))
            };
            rules.extend(ids.iter().filter_map(satisfied));
            is_sorted &= before == 0 || before == rules.len();
        });
        if !is_sorted {
            rules.sort_unstable_by_key(|(id, _)| *id);
            rules.dedup_by_key(|(id, _)| *id);
        }
        Self(rules)
    }
}
