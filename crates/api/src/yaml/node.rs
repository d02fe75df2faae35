//! A YAML value that knows where it was written.

use std::ops::Range;

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    /// Bytes of the value; of a mapping or sequence only where it starts.
    pub(crate) span: Range<usize>,
    pub(crate) value: Value,
}

/// What is written there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Range<usize>,
    pub(crate) value: Node,
}

/// A step of a field path: a key, or an index where the node is a sequence.
enum Step<'a> {
    Key(&'a str),
    Bracket(&'a str),
}

// === impl Node ===

impl Node {
    /// The value under a key of a mapping.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The value at an index of a sequence.
    pub(crate) fn item(&self, index: usize) -> Option<&Node> {
        match &self.value {
            Value::Sequence(items) => items.get(index),
            _ => None,
        }
    }

    /// True if a value of the mapping is anything but a list with items.
    pub(crate) fn has_other_than_full_lists(&self) -> bool {
        let is_full = |value: &Value| matches!(value, Value::Sequence(items) if !items.is_empty());
        !matches!(&self.value, Value::Mapping(entries) if entries.iter().all(|entry| is_full(&entry.value.value)))
    }

    /// Takes the value under a key out of a mapping.
    pub(crate) fn into_value(self, key: &str) -> Option<Node> {
        match self.value {
            Value::Mapping(entries) => entries.into_iter().find(|entry| entry.key == key).map(|entry| entry.value),
            _ => None,
        }
    }

    /// The text under a key of a mapping.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match &self.get(key)?.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value of a field path, if it is written.
    pub(crate) fn find(&self, field: &str) -> Option<&Node> {
        let mut node = self;
        for step in steps(field) {
            node = node.step(&step)?.1;
        }
        Some(node)
    }

    /// The bytes to point at for a field path: a scalar's value, a mapping's or sequence's key, or the nearest ancestor
    /// that is written; the whole object is at its name.
    pub(crate) fn locate(&self, field: &str) -> Range<usize> {
        let mut node = self;
        let mut span = None;
        for step in steps(field) {
            let Some((key, next)) = node.step(&step) else { break };
            let own = next.own_span();
            span = Some(match (key, &next.value) {
                (Some(key), Value::Sequence(_) | Value::Mapping(_) | Value::Null) => key.clone(),
                _ => own,
            });
            node = next;
        }
        span.unwrap_or_else(|| self.object_span())
    }

    fn object_span(&self) -> Range<usize> {
        let name = self.get("metadata").and_then(|metadata| metadata.get("name"));
        name.or_else(|| self.get("kind")).map_or_else(|| self.own_span(), Node::own_span)
    }

    fn own_span(&self) -> Range<usize> {
        match &self.value {
            Value::Mapping(entries) => entries.first().map_or(self.span.clone(), |entry| entry.key_span.clone()),
            Value::Sequence(items) => items.first().map_or(self.span.clone(), Node::own_span),
            _ => self.span.clone(),
        }
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    fn step(&self, step: &Step<'_>) -> Option<(Option<&Range<usize>>, &Node)> {
        match (step, &self.value) {
            (Step::Bracket(index), Value::Sequence(items)) => Some((None, items.get(index.parse::<usize>().ok()?)?)),
            (Step::Key(key) | Step::Bracket(key), Value::Mapping(_)) => {
                self.entry(key).map(|entry| (Some(&entry.key_span), &entry.value))
            }
            _ => None,
        }
    }
}

/// Splits `spec.rules[0].from` and `metadata.labels[istio.io/use-waypoint]` (with or without quotes) into steps.
fn steps(field: &str) -> impl Iterator<Item = Step<'_>> {
    let mut rest = field;
    std::iter::from_fn(move || {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if let Some(inner) = rest.strip_prefix('[') {
            let (key, after) = inner.split_once(']').unwrap_or((inner, ""));
            rest = after;
            return Some(Step::Bracket(key.trim_matches('"')));
        }
        if rest.is_empty() {
            return None;
        }
        let (key, after) = rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len()));
        rest = after;
        Some(Step::Key(key))
    })
}
