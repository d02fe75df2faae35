//! Reasons in plain words: which fields made a DENY rule match, and which ALLOW rule came nearest.
//!
//! Reasons show the identity, addresses, port, method, path (without its query) and host; never another header. A host
//! that isn't a plain one isn't shown either, since it may hold user information.

use std::{
    borrow::Cow,
    fmt::{Display, Write},
};

use crate::{
    decide::Program,
    limits::{MAX_RULES_COMPARED, MAX_SHOWN_BYTES, MAX_VALUES_SHOWN},
    rule::{Connection, Request, Rule, Test, Values},
};

/// Why this DENY rule matched.
pub(crate) fn why_denied(rule: &Rule, connection: &Connection, request: Option<&Request<'_>>) -> String {
    let facts = Facts { connection, request };
    let mut reason = format!("rule {} of {} denies it", rule.index, rule.policy);
    let clauses = rule.groups.iter().filter_map(|group| {
        // At L4 the tests of a request count as met.
        group.clauses.iter().find(|clause| {
            clause.connection.iter().all(|test| facts.holds(test))
                && (request.is_none() || clause.request.iter().all(|test| facts.holds(test)))
        })
    });
    let mut before = ": ";
    let mut left_out = false;
    for test in clauses.flat_map(|clause| clause.connection.iter().chain(&clause.request)) {
        if request.is_none() && test.needs_request() {
            left_out = true;
            continue;
        }
        let relation = if test.negated { "is none of" } else { "matches" };
        let expected = Expected(&test.values);
        // Writing to a string can't fail.
        let _ = match facts.subject(test) {
            Subject::Known(field, value) => write!(reason, "{before}{field} `{value}` {relation} {expected}"),
            Subject::Unknown(what) | Subject::NoRequest(what) => write!(reason, "{before}{what}"),
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

/// Why no ALLOW rule matched: the rule that fails on fewest fields, and those fields.
///
/// Among equals one whose connection fields all hold comes first, then the earlier one.
pub(crate) fn why_none_allows(program: &Program, connection: &Connection, request: Option<&Request<'_>>) -> String {
    let facts = Facts { connection, request };
    let compared = program.allow.rules.iter().take(MAX_RULES_COMPARED).map(|rule| (rule, facts.failures(rule)));
    let rank = |failures: &[&Test]| (failures.len(), failures.iter().any(|test| !test.needs_request()));
    let Some((rule, failures)) = compared.min_by_key(|(_, failures)| rank(failures)) else {
        let name = program.allow_policies.first().map(ToString::to_string).unwrap_or_default();
        return format!("no ALLOW rule matches; {name} has no rules, so it allows nothing");
    };
    let mut reason = format!("no ALLOW rule matches; nearest is {} rule {}", rule.policy, rule.index);
    let mut before = ": ";
    for test in &failures {
        let _ = write!(reason, "{before}{}", facts.failure(test));
        before = "; ";
    }
    if failures.is_empty() {
        // At L4 one alternative of `to` that needs a request takes the whole rule away.
        reason.push_str(": it has HTTP conditions, which can't be judged on a connection");
    }
    reason
}

/// The text as a reason shows it: bounded, without control characters.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    let cut = &text[..text.floor_char_boundary(MAX_SHOWN_BYTES)];
    if cut.len() == text.len() && !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut shown: String = cut.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
    if cut.len() < text.len() {
        shown.push('…');
    }
    Cow::Owned(shown)
}

/// What is known when a reason is given.
struct Facts<'a> {
    connection: &'a Connection,
    request: Option<&'a Request<'a>>,
}

impl<'a> Facts<'a> {
    fn holds(&self, test: &Test) -> bool {
        if test.needs_request() {
            self.request.is_some_and(|request| test.holds_for_request(request))
        } else {
            test.holds_for_connection(self.connection)
        }
    }

    /// The tests that fail: of each group those of the clause that fails fewest.
    fn failures<'r>(&self, rule: &'r Rule) -> Vec<&'r Test> {
        let group = |clauses: &'r [crate::rule::Clause]| {
            let clauses = clauses.iter().map(|clause| {
                let tests = clause.connection.iter().chain(&clause.request);
                tests.filter(|test| !self.holds(test)).collect::<Vec<_>>()
            });
            clauses.min_by_key(Vec::len).unwrap_or_default()
        };
        rule.groups.iter().flat_map(|clauses| group(&clauses.clauses)).collect()
    }

    fn failure(&self, test: &Test) -> String {
        let expected = Expected(&test.values);
        let but = if test.negated { "anything but " } else { "" };
        match self.subject(test) {
            Subject::Known(field, value) => format!("{field} is `{value}`, expected {but}{expected}"),
            Subject::Unknown(what) => format!("{what}, expected {but}{expected}"),
            Subject::NoRequest(field) => format!("{field} can't be judged on a connection, expected {but}{expected}"),
        }
    }

    /// What a test looks at, with its value here.
    fn subject(&self, test: &Test) -> Subject<'a> {
        let facts = &self.connection.facts;
        let peer = |field: &'static str, value: Option<Cow<'a, str>>| match value {
            Some(value) => Subject::Known(field, value),
            None => Subject::Unknown("the client has no identity"),
        };
        let of_request = |field: &'static str, value: fn(&Request<'a>) -> Cow<'a, str>| match self.request {
            Some(request) => Subject::Known(field, value(request)),
            None => Subject::NoRequest(field),
        };
        let id = facts.peer.as_ref();
        match test.values {
            Values::Principal(_) => peer("principal", self.connection.principal.as_deref().map(shown)),
            Values::Namespace(_) => peer("namespace", id.map(|id| shown(id.namespace()))),
            Values::ServiceAccount(_) => {
                let account = id.map(|id| format!("{}/{}", id.namespace(), id.service_account()));
                peer("service account", account.map(|account| shown(&account).into_owned().into()))
            }
            Values::TrustDomain(_) => peer("trust domain", id.map(|id| shown(id.trust_domain()))),
            Values::SourceIp(_) => Subject::Known("client address", facts.source_ip.to_string().into()),
            Values::DestinationIp(_) => Subject::Known("destination address", facts.destination_ip.to_string().into()),
            Values::DestinationPort(_) => Subject::Known("port", facts.destination_port.to_string().into()),
            Values::Method(_) => of_request("method", |request| shown(request.method)),
            Values::Path(_) => of_request("path", |request| shown(request.path)),
            Values::Host(_) => of_request("host", |request| shown_host(request.host)),
        }
    }
}

fn shown_host(host: &str) -> Cow<'_, str> {
    let is_plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b));
    if is_plain { shown(host) } else { Cow::Borrowed("(not a plain host)") }
}

/// What a test looks at.
enum Subject<'a> {
    /// Field and value.
    Known(&'static str, Cow<'a, str>),
    /// A sentence that says what isn't there.
    Unknown(&'static str),
    /// A field of requests, on a connection that is judged without.
    NoRequest(&'static str),
}

/// The values of a test: `a`, `b` or `c`.
struct Expected<'a>(&'a Values);

impl Display for Expected<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Values::Principal(any_of) | Values::TrustDomain(any_of) | Values::Host(any_of) | Values::Method(any_of) => {
                list(f, any_of)
            }
            Values::Namespace(any_of) => list(f, any_of),
            Values::ServiceAccount(any_of) => list(f, any_of),
            Values::SourceIp(any_of) | Values::DestinationIp(any_of) => list(f, any_of),
            Values::DestinationPort(any_of) => list(f, any_of),
            Values::Path(any_of) => list(f, any_of),
        }
    }
}

fn list<T: Display>(f: &mut std::fmt::Formatter<'_>, values: &[T]) -> std::fmt::Result {
    let listed = if values.len() > MAX_VALUES_SHOWN + 1 { MAX_VALUES_SHOWN } else { values.len() };
    for (index, value) in values.iter().take(listed).enumerate() {
        let before = match index {
            0 => "",
            _ if index + 1 == values.len() => " or ",
            _ => ", ",
        };
        write!(f, "{before}`{}`", shown(&value.to_string()))?;
    }
    if listed < values.len() { write!(f, " or {} more", values.len() - listed) } else { Ok(()) }
}
