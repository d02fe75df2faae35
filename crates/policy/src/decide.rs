//! Judging connections and requests.

use std::{collections::HashMap, sync::Arc};

use crate::{
    compile::ProgramParts,
    decision::{Decision, PolicyName, Verdict},
    facts::{ConnectionFacts, RequestFacts},
    nearest,
    path::{self, PathNormalization, Readings},
    rule::{Connection, Request, Rule},
};

/// Policies ready to decide for one target. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Compiled {
    program: Arc<Program>,
    paths: PathNormalization,
}

/// Policies with one connection's facts folded in. It owns what it needs, so a proxy keeps it as long as the connection.
#[derive(Debug)]
pub struct Residual {
    program: Arc<Program>,
    paths: PathNormalization,
    connection: Connection,
    deny: Live,
    allow: Live,
}

/// What a set of policies comes to.
#[derive(Debug)]
pub(crate) struct Program {
    /// The decision for everything, when there is nothing to look at.
    settled: Option<Decision>,
    pub(crate) deny: RuleSet,
    pub(crate) allow: RuleSet,
    pub(crate) allow_policies: Box<[PolicyName]>,
    no_deny_matches: Decision,
}

/// The rules of one effect, in the order of their policies.
#[derive(Debug)]
pub(crate) struct RuleSet {
    pub(crate) rules: Box<[Rule]>,
    /// Rules that match only some paths, by path, ascending.
    by_path: HashMap<Box<str>, Vec<u32>>,
    /// All other rules, ascending.
    unkeyed: Box<[u32]>,
    /// Per rule, the number of its first clause when all clauses of the set are counted through.
    first_clauses: Box<[usize]>,
}

/// Rules of a set that the connection's facts leave open.
#[derive(Debug)]
struct Live {
    /// Per rule: each of its groups has a clause that the connection satisfies.
    rules: Bits,
    /// Per clause, over all rules: the connection satisfies it.
    clauses: Bits,
    /// The unkeyed rules among the live ones, ascending.
    unkeyed: Box<[u32]>,
}

/// A set of small numbers.
#[derive(Debug, Default)]
struct Bits(Vec<u64>);

// === impl Compiled ===

impl Compiled {
    pub(crate) fn new(program: Program) -> Self {
        Self { program: Arc::new(program), paths: PathNormalization::default() }
    }

    /// Denies everything, with this reason: what an enforcement point installs when it can't know the policies.
    #[must_use]
    pub fn deny_all(reason: &str) -> Self {
        let decision = Decision { verdict: Verdict::Deny, policy: None, rule: None, reason: reason.into() };
        Self::new(Program { settled: Some(decision), ..Program::new(ProgramParts::default()) })
    }

    /// The same policies with paths read in another way.
    #[must_use]
    pub fn with_path_normalization(self, paths: PathNormalization) -> Self {
        Self { paths, ..self }
    }

    /// Folds in what can't change during a connection.
    #[must_use]
    pub fn for_connection(&self, facts: &ConnectionFacts) -> Residual {
        let connection = Connection::new(facts);
        let deny = self.program.deny.for_connection(&connection);
        let allow = self.program.allow.for_connection(&connection);
        Residual { program: self.program.clone(), paths: self.paths, connection, deny, allow }
    }
}

// === impl Residual ===

impl Residual {
    /// Judges one HTTP request of the connection.
    ///
    /// Allocates nothing when it allows a path that has only one reading and needs no normalisation.
    #[must_use]
    pub fn decide(&self, facts: &RequestFacts<'_>) -> Decision {
        if let Some(decision) = &self.program.settled {
            return decision.clone();
        }
        let readings = match path::read(facts.path, self.paths) {
            Ok(readings) => readings,
            Err(unreadable) => return deny(unreadable.to_string()),
        };
        let Readings { authority, first, others } = &readings;
        let facts = &RequestFacts { authority: authority.unwrap_or(facts.authority), ..*facts };
        let decision = self.decide_reading(facts, first);
        if decision.is_allowed() {
            for (reading, path) in others {
                let other = self.decide_reading(facts, path);
                if !other.is_allowed() {
                    let reason = format!(
                        "the path has more than one reading; with {reading} it is `{}`, and then: {}",
                        nearest::shown(path),
                        other.reason
                    );
                    return Decision { reason: reason.into(), ..other };
                }
            }
        }
        decision
    }

    fn decide_reading(&self, facts: &RequestFacts<'_>, path: &str) -> Decision {
        let request = Request { method: facts.method, host: facts.authority, path };
        let (program, request) = (&*self.program, &request);
        if let Some(rule) = self.deny.first_match(&program.deny, request) {
            return denied_by(rule, nearest::why_denied(rule, &self.connection, Some(request)));
        }
        if program.allow_policies.is_empty() {
            return program.no_deny_matches.clone();
        }
        match self.allow.first_match(&program.allow, request) {
            Some(rule) => rule.allowed.clone(),
            None => deny(nearest::why_none_allows(program, &self.connection, Some(request))),
        }
    }

    /// Judges the connection itself, without HTTP facts (L4): an ALLOW rule that needs one doesn't match, a DENY rule
    /// denies on what remains of it.
    #[must_use]
    pub fn decide_connection(&self) -> Decision {
        let program = &*self.program;
        if let Some(decision) = &program.settled {
            return decision.clone();
        }
        if let Some(rule) = self.deny.rules.iter().find_map(|rule| program.deny.rules.get(rule)) {
            return denied_by(rule, nearest::why_denied(rule, &self.connection, None));
        }
        if program.allow_policies.is_empty() {
            return program.no_deny_matches.clone();
        }
        let mut live = self.allow.rules.iter().filter_map(|rule| program.allow.rules.get(rule));
        match live.find(|rule| !rule.needs_request()) {
            Some(rule) => rule.allowed.clone(),
            None => deny(nearest::why_none_allows(program, &self.connection, None)),
        }
    }
}

fn deny(reason: String) -> Decision {
    Decision { verdict: Verdict::Deny, policy: None, rule: None, reason: reason.into() }
}

fn denied_by(rule: &Rule, reason: String) -> Decision {
    Decision {
        verdict: Verdict::Deny,
        policy: Some(rule.policy.clone()),
        rule: Some(rule.index),
        reason: reason.into(),
    }
}

// === impl Program ===

impl Program {
    pub(crate) fn new(parts: ProgramParts) -> Self {
        let allow =
            |reason: &str| Decision { verdict: Verdict::Allow, policy: None, rule: None, reason: reason.into() };
        let settled = match (parts.allow_policies.is_empty() && parts.deny_policies.is_empty(), parts.unenforced) {
            (true, 0) => Some(allow("no policy applies")),
            (true, _) => Some(allow("only policies that are not enforced apply (AUDIT or dry-run)")),
            (false, _) => None,
        };
        Self {
            settled,
            deny: RuleSet::new(parts.deny),
            allow: RuleSet::new(parts.allow),
            allow_policies: parts.allow_policies.into(),
            no_deny_matches: allow("no DENY rule matches and there is no ALLOW policy"),
        }
    }
}

// === impl RuleSet ===

impl RuleSet {
    fn new(rules: Vec<Rule>) -> Self {
        let (mut by_path, mut unkeyed) = (HashMap::<Box<str>, Vec<u32>>::new(), Vec::new());
        for (id, rule) in (0u32..).zip(&rules) {
            match rule.exact_paths() {
                None => unkeyed.push(id),
                Some(paths) => {
                    for path in paths {
                        let ids = by_path.entry(path.into()).or_default();
                        if ids.last() != Some(&id) {
                            ids.push(id);
                        }
                    }
                }
            }
        }
        let mut clauses = 0;
        let counted = rules.iter().map(|rule| {
            let first = clauses;
            clauses += rule.groups.iter().map(|group| group.clauses.len()).sum::<usize>();
            first
        });
        Self { first_clauses: counted.collect(), rules: rules.into(), by_path, unkeyed: unkeyed.into() }
    }

    fn for_connection(&self, connection: &Connection) -> Live {
        let (mut rules, mut clauses) = (Bits::default(), Bits::default());
        for (id, (rule, &first_clause)) in self.rules.iter().zip(&self.first_clauses).enumerate() {
            let mut clause_id = first_clause;
            let mut is_live = true;
            for group in &rule.groups {
                let mut any = false;
                for clause in &group.clauses {
                    if is_live && clause.allows_connection(connection) {
                        clauses.insert(clause_id);
                        any = true;
                    }
                    clause_id += 1;
                }
                is_live &= any;
            }
            if is_live {
                rules.insert(id);
            }
        }
        let unkeyed = self.unkeyed.iter().copied().filter(|&id| rules.contains(id as usize)).collect();
        Live { rules, clauses, unkeyed }
    }
}

// === impl Live ===

impl Live {
    /// The first rule that matches a request, in order.
    fn first_match<'a>(&self, set: &'a RuleSet, request: &Request<'_>) -> Option<&'a Rule> {
        let keyed = set.by_path.get(request.path).map_or(&[][..], Vec::as_slice);
        let keyed = keyed.iter().find(|&&id| self.rules.contains(id as usize) && self.matches(set, id, request));
        let bound = keyed.copied().unwrap_or(u32::MAX);
        let unkeyed = self.unkeyed.iter().take_while(|&&id| id < bound).find(|&&id| self.matches(set, id, request));
        set.rules.get(*unkeyed.or(keyed)? as usize)
    }

    fn matches(&self, set: &RuleSet, id: u32, request: &Request<'_>) -> bool {
        let id = id as usize;
        let (Some(rule), Some(&first_clause)) = (set.rules.get(id), set.first_clauses.get(id)) else { return false };
        let mut clause_id = first_clause;
        rule.groups.iter().all(|group| {
            let first = clause_id;
            clause_id += group.clauses.len();
            (first..)
                .zip(&group.clauses)
                .any(|(id, clause)| self.clauses.contains(id) && clause.allows_request(request))
        })
    }
}

// === impl Bits ===

impl Bits {
    const WORD_BITS: usize = u64::BITS as usize;

    fn insert(&mut self, number: usize) {
        let word = number / Self::WORD_BITS;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (number % Self::WORD_BITS);
    }

    fn contains(&self, number: usize) -> bool {
        self.0.get(number / Self::WORD_BITS).is_some_and(|word| word & (1 << (number % Self::WORD_BITS)) != 0)
    }

    /// The numbers in it, ascending.
    fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().flat_map(|(at, &word)| {
            (0..Self::WORD_BITS).filter(move |bit| word & (1 << bit) != 0).map(move |bit| at * Self::WORD_BITS + bit)
        })
    }
}
