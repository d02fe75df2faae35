//! Finding the rule of a request: the most specific match wins, as the Gateway API orders them.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use ::http::{HeaderMap, HeaderName, Method, header};
use regex::bytes::Regex;

use super::model::HttpRule;

/// What of a request is looked at.
#[derive(Clone, Copy, Debug)]
pub struct RequestLine<'a> {
    /// The method.
    pub method: &'a Method,
    /// Path and query.
    pub target: &'a str,
    /// Host and port as sent.
    pub authority: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
}

/// The rule that counts.
#[derive(Clone, Copy, Debug)]
pub struct Matched<'a> {
    /// The rule.
    pub rule: &'a Arc<HttpRule>,
    /// Length of the path's prefix that matched, without a slash at its end.
    pub prefix: usize,
}

/// All matches of one port, indexed by path.
#[derive(Debug, Default)]
pub struct HttpTable {
    /// Why no request is served: a route can't be read, so nobody knows which of them it is for.
    pub closed: Option<Arc<str>>,
    rules: Vec<Arc<HttpRule>>,
    /// In order of precedence.
    matches: Vec<Match>,
    exact: HashMap<Box<str>, Vec<usize>>,
    prefixes: HashMap<Box<str>, Vec<usize>>,
    /// Lengths of the prefixes, longest first.
    lengths: Vec<usize>,
    patterns: Vec<(Regex, usize)>,
}

/// Matches outside of any table, of which one is enough.
#[derive(Debug, Default)]
pub struct Matches(Box<[Match]>);

/// One match, before it has a place in the table.
#[derive(Debug)]
pub(super) struct Match {
    pub(super) path: PathMatch,
    pub(super) method: Option<Method>,
    pub(super) headers: Vec<(HeaderName, Value)>,
    pub(super) queries: Vec<(Box<str>, Value)>,
    /// Index of its rule.
    pub(super) rule: usize,
}

/// How a path is compared.
#[derive(Debug)]
pub(super) enum PathMatch {
    Exact(Box<str>),
    /// Without a slash at its end: empty matches all.
    Prefix(Box<str>),
    Pattern {
        pattern: Regex,
        length: usize,
    },
}

/// How a value is compared.
#[derive(Debug)]
pub(super) enum Value {
    Exact(Box<str>),
    Pattern(Regex),
}

// === impl HttpTable ===

impl HttpTable {
    /// A table of these rules and matches; matches that are equally specific keep their order.
    pub(super) fn new(rules: Vec<Arc<HttpRule>>, mut matches: Vec<Match>, closed: Option<Arc<str>>) -> Self {
        matches.sort_by_key(Match::rank);
        let mut table = Self { closed, rules, ..Self::default() };
        for (index, entry) in matches.iter().enumerate() {
            match &entry.path {
                PathMatch::Exact(path) => table.exact.entry(path.clone()).or_default().push(index),
                PathMatch::Prefix(path) => {
                    table.lengths.push(path.len());
                    table.prefixes.entry(path.clone()).or_default().push(index);
                }
                PathMatch::Pattern { pattern, .. } => table.patterns.push((pattern.clone(), index)),
            }
        }
        table.lengths.sort_unstable_by_key(|length| Reverse(*length));
        table.lengths.dedup();
        table.matches = matches;
        table
    }

    /// The rule of a request. The cost grows with the request, the distinct lengths of prefixes, the matches of one path,
    /// and the expressions; not with the number of paths.
    #[must_use]
    pub fn find(&self, request: &RequestLine<'_>) -> Option<Matched<'_>> {
        let (path, query) = request.target.split_once('?').unwrap_or((request.target, ""));
        let first = |list: Option<&Vec<usize>>| {
            list.into_iter().flatten().copied().find(|index| self.matches[*index].holds(request, query))
        };
        if let Some(index) = first(self.exact.get(path)) {
            return Some(self.matched(index, path.len()));
        }
        for length in self.lengths.iter().copied().filter(|length| *length <= path.len()) {
            let whole_elements = path.len() == length || path.as_bytes().get(length) == Some(&b'/');
            // An asterisk (`OPTIONS *`) has no elements at all; the empty prefix matches it.
            if (whole_elements || length == 0)
                && let Some(index) = path.get(..length).and_then(|prefix| first(self.prefixes.get(prefix)))
            {
                return Some(self.matched(index, length));
            }
        }
        let fits = |(pattern, index): &&(Regex, usize)| {
            pattern.is_match(path.as_bytes()) && self.matches[*index].holds(request, query)
        };
        self.patterns.iter().find(fits).map(|(_, index)| self.matched(*index, path.len()))
    }

    fn matched(&self, index: usize, prefix: usize) -> Matched<'_> {
        Matched { rule: &self.rules[self.matches[index].rule], prefix }
    }
}

// === impl Matches ===

impl Matches {
    pub(super) fn new(matches: Vec<Match>) -> Self {
        Self(matches.into())
    }

    /// Whether one of them holds; none at all hold for everything.
    #[must_use]
    pub fn hold(&self, request: &RequestLine<'_>) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let (path, query) = request.target.split_once('?').unwrap_or((request.target, ""));
        self.0.iter().any(|wanted| wanted.path.is(path) && wanted.holds(request, query))
    }
}

// === impl PathMatch ===

impl PathMatch {
    fn is(&self, path: &str) -> bool {
        match self {
            Self::Exact(wanted) => **wanted == *path,
            Self::Prefix(wanted) => path
                .strip_prefix(&**wanted)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || wanted.is_empty()),
            Self::Pattern { pattern, .. } => pattern.is_match(path.as_bytes()),
        }
    }
}

// === impl Match ===

impl Match {
    /// Smallest first: exact paths, then prefixes, then expressions, the longest of each first; then a method; then most
    /// headers; then most query parameters.
    fn rank(&self) -> impl Ord + use<> {
        let (class, length) = match &self.path {
            PathMatch::Exact(path) => (0, path.len()),
            PathMatch::Prefix(path) => (1, path.len()),
            PathMatch::Pattern { length, .. } => (2, *length),
        };
        (class, Reverse((length, self.method.is_some(), self.headers.len(), self.queries.len())))
    }

    /// Whether all but the path holds.
    fn holds(&self, request: &RequestLine<'_>, query: &str) -> bool {
        self.method.as_ref().is_none_or(|method| method == request.method)
            && self.headers.iter().all(|(name, value)| has_header(request, name, value))
            && self.queries.iter().all(|(name, value)| {
                // Of several parameters of one name the first counts.
                let mut parameters = form_urlencoded::parse(query.as_bytes());
                parameters.find(|(key, _)| **key == **name).is_some_and(|(_, found)| value.is(found.as_bytes()))
            })
    }
}

/// Several lines of one name are one value, joined by commas.
fn has_header(request: &RequestLine<'_>, name: &HeaderName, value: &Value) -> bool {
    if name == header::HOST {
        return value.is(request.authority.as_bytes());
    }
    let mut lines = request.headers.get_all(name).iter();
    match (lines.next(), lines.next()) {
        (None, _) => false,
        (Some(line), None) => value.is(line.as_bytes()),
        (Some(_), Some(_)) => {
            let lines: Vec<_> = request.headers.get_all(name).iter().map(|line| line.as_bytes()).collect();
            value.is(&lines.join(&b","[..]))
        }
    }
}

// === impl Value ===

impl Value {
    fn is(&self, found: &[u8]) -> bool {
        match self {
            Self::Exact(wanted) => wanted.as_bytes() == found,
            Self::Pattern(pattern) => pattern.is_match(found),
        }
    }
}
