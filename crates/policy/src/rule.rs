//! Compiled rules: an AND of groups, a group an OR of clauses, a clause an AND of tests.
//!
//! `from` is a group with a clause per source, `to` a group with a clause per operation, and each `when` entry a group
//! of one clause. A field is one test, its `not` form another.

use ambit_api::authorization_policy::Action;

use crate::{
    decision::{Decision, MatchedEntries},
    facts::{Claims, ConnectionFacts, HeaderLines, HttpVersion, RequestFacts},
    test::{Test, Values},
};

#[derive(Debug)]
pub(crate) struct Rule {
    /// Place among the policy's rules, from 0.
    pub(crate) index: u32,
    pub(crate) groups: Box<[Group]>,
    /// The decision when it matches, built once.
    pub(crate) decision: Decision,
}

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) part: Part,
    pub(crate) clauses: Box<[Clause]>,
    /// A request is needed to judge it.
    pub(crate) is_late: bool,
}

/// Which part of a rule a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    From,
    To,
    When(u32),
}

#[derive(Debug)]
pub(crate) struct Clause {
    /// Decided once per connection.
    pub(crate) connection: Box<[Test]>,
    /// Decided for each request, or at L4 as far as that goes.
    pub(crate) request: Box<[Test]>,
}

/// A request as tests see it, its path under one reading.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) host: &'a str,
    pub(crate) path: &'a [u8],
    /// With its `?`, or empty.
    pub(crate) query: &'a str,
    pub(crate) version: HttpVersion,
    pub(crate) headers: &'a dyn HeaderLines,
    pub(crate) claims: Option<&'a Claims>,
}

// === impl Rule ===

impl Rule {
    /// The entries that the connection satisfies, if each group has one. Those of late groups come with the request.
    pub(crate) fn on_connection(&self, connection: &ConnectionFacts) -> Option<MatchedEntries> {
        self.entries(MatchedEntries::default(), |clause| clause.allows_connection(connection), |_| true)
    }

    /// The entries that match a request, after [`Rule::on_connection`].
    pub(crate) fn on_request(
        &self,
        entries: MatchedEntries,
        connection: &ConnectionFacts,
        request: &Request<'_>,
    ) -> Option<MatchedEntries> {
        self.entries(entries, |clause| clause.matches(connection, request), |group| group.is_late)
    }

    /// The entries that match.
    pub(crate) fn matches(&self, connection: &ConnectionFacts, request: &Request<'_>) -> Option<MatchedEntries> {
        self.entries(MatchedEntries::default(), |clause| clause.matches(connection, request), |_| true)
    }

    /// The entries that match a connection without a request: an ALLOW rule with anything that can't be judged doesn't
    /// match; in other rules that counts as met.
    pub(crate) fn at_l4(&self, connection: &ConnectionFacts, action: Action) -> Option<MatchedEntries> {
        if action == Action::Allow && self.is_void_at_l4(connection) {
            return None;
        }
        let allows = |clause: &Clause| {
            clause.allows_connection(connection)
                && clause.request.iter().all(|test| test.holds_at_l4(connection).unwrap_or(true))
        };
        self.entries(MatchedEntries::default(), allows, |_| true)
    }

    /// True if the rule speaks about the TLS server name.
    pub(crate) fn names_server(&self) -> bool {
        let tests = self.groups.iter().flat_map(|group| &group.clauses).flat_map(|clause| &clause.request);
        tests.into_iter().any(|test| matches!(test.values, Values::Sni(_)))
    }

    /// True if the rule has anything that can't be judged without a request.
    pub(crate) fn is_void_at_l4(&self, connection: &ConnectionFacts) -> bool {
        let mut late = self.groups.iter().filter(|group| group.is_late).flat_map(|group| &group.clauses);
        late.any(|clause| clause.request.iter().any(|test| test.holds_at_l4(connection).is_none()))
    }

    fn entries(
        &self,
        mut entries: MatchedEntries,
        allows: impl Fn(&Clause) -> bool,
        counts: impl Fn(&Group) -> bool,
    ) -> Option<MatchedEntries> {
        for group in self.groups.iter().filter(|group| counts(group)) {
            let first = (0u32..).zip(&group.clauses).find(|(_, clause)| allows(clause))?.0;
            match group.part {
                Part::From => entries.from = Some(first),
                Part::To => entries.to = Some(first),
                Part::When(_) => {}
            }
        }
        Some(entries)
    }

    /// The decision when these entries match.
    pub(crate) fn decision(&self, entries: MatchedEntries) -> Decision {
        Decision { clause: Some(entries), ..self.decision.clone() }
    }
}

// === impl Group ===

impl Group {
    pub(crate) fn new(part: Part, clauses: Vec<Clause>) -> Self {
        Self { part, is_late: clauses.iter().any(|clause| !clause.request.is_empty()), clauses: clauses.into() }
    }
}

// === impl Clause ===

impl Clause {
    pub(crate) fn new(tests: Vec<Test>) -> Self {
        let (request, connection): (Vec<_>, Vec<_>) = tests.into_iter().partition(Test::is_late);
        Self { connection: connection.into(), request: request.into() }
    }

    pub(crate) fn tests(&self) -> impl Iterator<Item = &Test> {
        self.connection.iter().chain(&self.request)
    }

    pub(crate) fn allows_connection(&self, connection: &ConnectionFacts) -> bool {
        self.connection.iter().all(|test| test.holds_for_connection(connection))
    }

    pub(crate) fn matches(&self, connection: &ConnectionFacts, request: &Request<'_>) -> bool {
        self.allows_connection(connection) && self.request.iter().all(|test| test.holds_for_request(request))
    }
}

// === impl Request ===

impl<'a> Request<'a> {
    /// Calls back with the value of each header line of this name. Whitespace around it means something only in HTTP/2.
    pub(crate) fn lines(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        match self.version {
            HttpVersion::Http1 => self.headers.lines(name, &mut |line| each(line.trim_ascii())),
            HttpVersion::Http2 => self.headers.lines(name, each),
        }
    }

    /// A request whose path is read as this. `authority` is that of a target in absolute form.
    pub(crate) fn new(facts: &RequestFacts<'a>, target: &crate::path::Target<'a>, path: &'a [u8]) -> Self {
        Self {
            method: facts.method,
            host: target.authority.unwrap_or(facts.authority),
            path,
            query: target.query,
            version: facts.version,
            headers: facts.headers,
            claims: facts.claims,
        }
    }
}
