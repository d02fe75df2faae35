//! Compiled rules: an AND of groups, a group an OR of clauses, a clause an AND of tests.
//!
//! `from` is a group with a clause per source, `to` a group with a clause per operation, and each `when` entry a group
//! of one clause. A field is one test, its `not` form another.

use std::net::IpAddr;

use crate::{
    decision::{Decision, PolicyName},
    facts::ConnectionFacts,
    pattern::{Cidr, NamespacePattern, PathPattern, Port, ServiceAccount, StringPattern},
};

/// What a match of a rule means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Allow,
    Deny,
}

#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) policy: PolicyName,
    /// Place among the policy's rules, from 0.
    pub(crate) index: u32,
    pub(crate) groups: Box<[Group]>,
    /// The decision when an ALLOW rule matches, built once.
    pub(crate) allowed: Decision,
}

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) clauses: Box<[Clause]>,
}

#[derive(Debug)]
pub(crate) struct Clause {
    /// Decided once per connection.
    pub(crate) connection: Box<[Test]>,
    /// Decided for each request. At L4 there is no request.
    pub(crate) request: Box<[Test]>,
}

/// A field with its values.
#[derive(Debug)]
pub(crate) struct Test {
    pub(crate) values: Values,
    /// It is the `not` form.
    pub(crate) negated: bool,
    /// What a fact counts as that can be read in two ways: as matching where a match helps to deny.
    pub(crate) leans_in: bool,
}

/// Which field, and what it takes. Any value is enough.
#[derive(Debug)]
pub(crate) enum Values {
    Principal(Box<[StringPattern]>),
    Namespace(Box<[NamespacePattern]>),
    ServiceAccount(Box<[ServiceAccount]>),
    TrustDomain(Box<[StringPattern]>),
    SourceIp(Box<[Cidr]>),
    DestinationIp(Box<[Cidr]>),
    DestinationPort(Box<[Port]>),
    Host(Box<[StringPattern]>),
    Method(Box<[StringPattern]>),
    Path(Box<[PathPattern]>),
}

/// A connection as tests see it.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) facts: ConnectionFacts,
    /// The peer's identity without `spiffe://`.
    pub(crate) principal: Option<Box<str>>,
}

/// A request as tests see it, its path under one reading.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
}

// === impl Rule ===

impl Rule {
    pub(crate) fn needs_request(&self) -> bool {
        self.groups.iter().flat_map(|group| &group.clauses).any(|clause| !clause.request.is_empty())
    }

    /// Paths such that the rule can match no request with another one; nothing if there is no such set.
    pub(crate) fn exact_paths(&self) -> Option<Vec<&str>> {
        self.groups.iter().find_map(|group| {
            let mut paths = Vec::new();
            for clause in &group.clauses {
                paths.extend(clause.request.iter().find_map(Test::exact_paths)?);
            }
            Some(paths)
        })
    }
}

// === impl Clause ===

impl Clause {
    pub(crate) fn new(tests: Vec<Test>) -> Self {
        let (request, connection): (Vec<_>, Vec<_>) = tests.into_iter().partition(Test::needs_request);
        Self { connection: connection.into(), request: request.into() }
    }

    pub(crate) fn allows_connection(&self, connection: &Connection) -> bool {
        self.connection.iter().all(|test| test.holds_for_connection(connection))
    }

    pub(crate) fn allows_request(&self, request: &Request<'_>) -> bool {
        self.request.iter().all(|test| test.holds_for_request(request))
    }
}

// === impl Test ===

impl Test {
    pub(crate) fn needs_request(&self) -> bool {
        match self.values {
            Values::Host(_) | Values::Method(_) | Values::Path(_) => true,
            Values::Principal(_)
            | Values::Namespace(_)
            | Values::ServiceAccount(_)
            | Values::TrustDomain(_)
            | Values::SourceIp(_)
            | Values::DestinationIp(_)
            | Values::DestinationPort(_) => false,
        }
    }

    /// Whether it holds. A test of a request never holds here.
    pub(crate) fn holds_for_connection(&self, connection: &Connection) -> bool {
        let facts = &connection.facts;
        let peer = facts.peer.as_ref();
        let address = |any_of: &[Cidr], ip: IpAddr| any_of.iter().any(|cidr| cidr.matches(ip, self.leans_in));
        let matched = match &self.values {
            Values::Principal(any_of) => match &connection.principal {
                Some(principal) => any_of.iter().any(|pattern| pattern.matches(principal)),
                // No identity matches no value, and so satisfies the `not` form. But to an Istio waypoint such a client
                // does match `*`: there it counts as whatever denies.
                None => self.leans_in && any_of.contains(&StringPattern::Present),
            },
            Values::Namespace(any_of) => {
                peer.is_some_and(|id| any_of.iter().any(|pattern| pattern.matches(id.namespace())))
            }
            Values::ServiceAccount(any_of) => peer.is_some_and(|id| any_of.iter().any(|account| account.matches(id))),
            Values::TrustDomain(any_of) => {
                peer.is_some_and(|id| any_of.iter().any(|pattern| pattern.matches(id.trust_domain())))
            }
            Values::SourceIp(any_of) => address(any_of, facts.source_ip),
            Values::DestinationIp(any_of) => address(any_of, facts.destination_ip),
            Values::DestinationPort(any_of) => any_of.iter().any(|port| port.matches(facts.destination_port)),
            Values::Host(_) | Values::Method(_) | Values::Path(_) => return false,
        };
        matched != self.negated
    }

    /// Whether it holds. A test of a connection never holds here.
    pub(crate) fn holds_for_request(&self, request: &Request<'_>) -> bool {
        let matched = match &self.values {
            Values::Host(any_of) => any_of.iter().any(|pattern| pattern.matches_ignoring_case(request.host)),
            Values::Method(any_of) => any_of.iter().any(|pattern| pattern.matches(request.method)),
            Values::Path(any_of) => any_of.iter().any(|pattern| pattern.matches(request.path)),
            Values::Principal(_)
            | Values::Namespace(_)
            | Values::ServiceAccount(_)
            | Values::TrustDomain(_)
            | Values::SourceIp(_)
            | Values::DestinationIp(_)
            | Values::DestinationPort(_) => return false,
        };
        matched != self.negated
    }

    fn exact_paths(&self) -> Option<Vec<&str>> {
        match &self.values {
            Values::Path(any_of) if !self.negated => any_of.iter().map(PathPattern::exact).collect(),
            _ => None,
        }
    }
}

// === impl Connection ===

impl Connection {
    pub(crate) fn new(facts: &ConnectionFacts) -> Self {
        Self { facts: facts.clone(), principal: facts.peer.as_ref().map(|peer| peer.principal().into()) }
    }
}
