//! A field with its values, as one part of a permission or of a principal.

use serde_json::{Value, json};

use super::Place;
use crate::CompileError;

/// Which half of an Envoy policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// What may be done.
    Permission,
    /// By whom.
    Principal,
}

/// A field of a clause.
#[derive(Clone, Debug)]
pub(super) struct Test {
    pub(super) side: Side,
    pub(super) needs_http: bool,
    pub(super) rendered: Value,
}

/// The values of a field, rendered.
#[derive(Debug)]
pub(super) enum Values {
    /// Each by itself; they are OR-ed here.
    Each { values: Vec<Value>, needs_http: bool },
    /// All in one matcher.
    Together { matcher: Value, needs_http: bool },
}

/// A field with these values; nothing if there are none.
pub(super) fn any_of(
    side: Side,
    values: &[String],
    negated: bool,
    place: &Place<'_>,
    render: impl Fn(&[String], &Place<'_>) -> Result<Values, CompileError>,
) -> Result<Option<Test>, CompileError> {
    if values.is_empty() {
        return Ok(None);
    }
    if let Some(index) = values.iter().position(String::is_empty) {
        return Err(place.at(format_args!("[{index}]")).error("is empty; remove it or write a value"));
    }
    let (matched, needs_http) = match render(values, &Place { negated, ..place.clone() })? {
        Values::Each { values, needs_http } => (side.any(values), needs_http),
        Values::Together { matcher, needs_http } => (matcher, needs_http),
    };
    Ok(Some(Test { side, needs_http, rendered: if negated { side.not(matched) } else { matched } }))
}

// === impl Side ===

impl Side {
    pub(super) fn all(self, parts: Vec<Value>) -> Value {
        match self {
            Self::Permission => json!({"andRules": {"rules": parts}}),
            Self::Principal => json!({"andIds": {"ids": parts}}),
        }
    }

    pub(super) fn any(self, parts: Vec<Value>) -> Value {
        match self {
            Self::Permission => json!({"orRules": {"rules": parts}}),
            Self::Principal => json!({"orIds": {"ids": parts}}),
        }
    }

    fn not(self, part: Value) -> Value {
        match self {
            Self::Permission => json!({"notRule": part}),
            Self::Principal => json!({"notId": part}),
        }
    }
}
