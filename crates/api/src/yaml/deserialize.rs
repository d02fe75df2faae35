//! A tree of nodes to a typed object. Fields that the type doesn't have are collected rather than ignored (or rather
//! than ending at the first), with the names it does have; a wrong type is reported with its field path.

use std::{cell::RefCell, fmt, ops::Range};

use serde::{
    Deserializer,
    de::{
        self, DeserializeOwned, DeserializeSeed, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor,
    },
};

use super::{Entry, Node, Value};
use crate::text::quoted;

/// The outcome: the object if its types are right, and the fields it shouldn't have.
pub(crate) struct Typed<T> {
    pub(crate) object: Result<T, Failure>,
    pub(crate) unknown: Vec<Unknown>,
}

/// A value of the wrong type, or a missing field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) field: String,
    pub(crate) message: String,
    pub(crate) help: String,
}

/// A field that its mapping doesn't have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unknown {
    pub(crate) field: String,
    pub(crate) key: String,
    pub(crate) key_span: Range<usize>,
    pub(crate) known: &'static [&'static str],
}

/// Gives a document its type. `apiVersion`, `kind` and `status` at its root are accepted and left out when the type
/// has no such field (`status` always: it is what a cluster said, not what the user wants).
pub(crate) fn deserialize<T: DeserializeOwned>(root: &Node) -> Typed<T> {
    typed(root, true)
}

/// [`deserialize`] for what isn't a manifest: its root has no fields that are left out.
pub(crate) fn deserialize_strictly<T: DeserializeOwned>(root: &Node) -> Typed<T> {
    typed(root, false)
}

fn typed<T: DeserializeOwned>(root: &Node, manifest: bool) -> Typed<T> {
    let unknown = RefCell::new(Vec::new());
    let at = At { node: root, path: &Path::Root, manifest, unknown: &unknown };
    let object = T::deserialize(at).map_err(|error| error.into_failure(&Path::Root));
    Typed { object, unknown: unknown.into_inner() }
}

/// Where we are: one node, how we got there, and where to note unknown fields.
#[derive(Clone, Copy)]
struct At<'de, 'p> {
    node: &'de Node,
    path: &'p Path<'p>,
    manifest: bool,
    unknown: &'p RefCell<Vec<Unknown>>,
}

enum Path<'p> {
    Root,
    Key(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

/// An error on its way up; the innermost node it passes gives it its field.
#[derive(Debug)]
struct Error {
    message: String,
    help: String,
    missing: Option<&'static str>,
    field: Option<String>,
}

struct Fields<'de, 'p> {
    at: At<'de, 'p>,
    entries: std::slice::Iter<'de, Entry>,
    known: Option<&'static [&'static str]>,
    current: Option<&'de Entry>,
}

struct Items<'de, 'p> {
    at: At<'de, 'p>,
    items: std::iter::Enumerate<std::slice::Iter<'de, Node>>,
}

// === impl At ===

impl<'de> Deserializer<'de> for At<'de, '_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(value) => visitor.visit_borrowed_str(value),
            Value::Sequence(items) => visitor.visit_seq(Items { at: self, items: items.iter().enumerate() }),
            Value::Mapping(entries) => {
                visitor.visit_map(Fields { at: self, entries: entries.iter(), known: None, current: None })
            }
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Mapping(entries) => {
                visitor.visit_map(Fields { at: self, entries: entries.iter(), known: Some(fields), current: None })
            }
            // A list must not be taken for the fields in their order, which derived types would accept.
            Value::Sequence(_) => Err(de::Error::invalid_type(Unexpected::Seq, &visitor)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Text(variant) => visitor.visit_enum(variant.as_str().into_deserializer()),
            other => Err(de::Error::invalid_type(other.unexpected(), &"a string")),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map identifier
    }
}

impl Value {
    fn unexpected(&self) -> Unexpected<'_> {
        match self {
            Self::Null => Unexpected::Unit,
            Self::Bool(value) => Unexpected::Bool(*value),
            Self::Int(value) => Unexpected::Signed(*value),
            Self::Float(value) => Unexpected::Float(*value),
            Self::Text(value) => Unexpected::Str(value),
            Self::Sequence(_) => Unexpected::Seq,
            Self::Mapping(_) => Unexpected::Map,
        }
    }
}

// === impl Path ===

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
            Self::Key(parent, key) => {
                let plain = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
                match parent {
                    _ if !plain => write!(f, "{parent}[{}]", quoted(key)),
                    Self::Root => f.write_str(key),
                    _ => write!(f, "{parent}.{key}"),
                }
            }
        }
    }
}

// === impl Fields ===

impl<'de> MapAccess<'de> for Fields<'de, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let root = self.at.manifest && matches!(self.at.path, Path::Root);
        for entry in self.entries.by_ref() {
            let key = entry.key.as_str();
            if root && key == "status" {
                continue;
            }
            if let Some(known) = self.known.filter(|known| !known.contains(&key)) {
                if !(root && matches!(key, "apiVersion" | "kind")) {
                    self.at.unknown.borrow_mut().push(Unknown {
                        field: Path::Key(self.at.path, key).to_string(),
                        key: key.to_owned(),
                        key_span: entry.key_span.clone(),
                        known,
                    });
                }
                continue;
            }
            self.current = Some(entry);
            return seed.deserialize(key.into_deserializer()).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some(entry) = self.current.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        let path = Path::Key(self.at.path, &entry.key);
        seed.deserialize(At { node: &entry.value, path: &path, ..self.at }).map_err(|error| error.located(&path))
    }
}

// === impl Items ===

impl<'de> SeqAccess<'de> for Items<'de, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        let path = Path::Index(self.at.path, index);
        seed.deserialize(At { node, path: &path, ..self.at }).map(Some).map_err(|error| error.located(&path))
    }
}

// === impl Error ===

impl Error {
    fn new(message: String, help: impl Into<String>) -> Self {
        Self { message, help: help.into(), missing: None, field: None }
    }

    fn located(mut self, path: &Path<'_>) -> Self {
        if self.field.is_none() {
            self.field = Some(match self.missing {
                Some(name) => Path::Key(path, name).to_string(),
                None => path.to_string(),
            });
        }
        self
    }

    fn into_failure(self, root: &Path<'_>) -> Failure {
        let located = self.located(root);
        Failure { field: located.field.unwrap_or_default(), message: located.message, help: located.help }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(quoted(&message.to_string()), "")
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = described(&expected.to_string());
        let help = match (found, expected.as_str()) {
            (Unexpected::Bool(_) | Unexpected::Signed(_) | Unexpected::Float(_), "text") => {
                "put quotes around it: without them YAML reads a boolean or a number"
            }
            (Unexpected::Str(_), "a whole number" | "a number" | "a boolean") => "write it without quotes",
            (Unexpected::Unit, _) => "give it a value, or remove the line",
            (Unexpected::Map, "a list") => "start each entry with `- `",
            (Unexpected::Seq, "a mapping") => "remove the `- `",
            (Unexpected::Str(_), "a list") => {
                "write it as a list: `[\"...\"]`, or each entry on its own line after `- `"
            }
            _ => "",
        };
        Self::new(format!("expected {expected}, found {}", found_text(found)), help)
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!("expected {}, found {}", described(&expected.to_string()), found_text(found)), "")
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let help = match crate::text::nearest(variant, expected.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("use one of: {}", expected.join(", ")),
        };
        Self::new(format!("`{}` is not one of its values", quoted(variant)), help)
    }

    fn missing_field(field: &'static str) -> Self {
        let mut error = Self::new(format!("`{field}` is missing"), format!("add `{field}`"));
        error.missing = Some(field);
        error
    }
}

/// What serde calls an expectation, in the words of a manifest.
fn described(expected: &str) -> String {
    match expected {
        "a string" | "a borrowed string" | "Quantity" => "text".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "a mapping".to_owned(),
        "i32" | "i64" | "u16" | "u32" | "u64" => "a whole number".to_owned(),
        "f64" => "a number".to_owned(),
        "IntOrString" => "a whole number or text".to_owned(),
        "Time" | "MicroTime" => "a time".to_owned(),
        other if other.starts_with("struct ") || other.starts_with(|c: char| c.is_ascii_uppercase()) => {
            "a mapping".to_owned()
        }
        other => other.to_owned(),
    }
}

fn found_text(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => format!("the boolean `{value}`"),
        Unexpected::Signed(value) => format!("the number `{value}`"),
        Unexpected::Unsigned(value) => format!("the number `{value}`"),
        Unexpected::Float(value) => format!("the number `{value}`"),
        Unexpected::Str(value) => format!("the text `{}`", quoted(value)),
        Unexpected::Unit => "nothing".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a mapping".to_owned(),
        other => other.to_string(),
    }
}
