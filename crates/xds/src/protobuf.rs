//! `google.protobuf.Struct`: JSON as a message.

use std::collections::BTreeMap;

/// An object.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Struct {
    /// Its members.
    #[prost(btree_map = "string, message", tag = "1")]
    pub fields: BTreeMap<String, Value>,
}

/// A value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Value {
    /// What it is; absent is read as null.
    #[prost(oneof = "value::Kind", tags = "1, 2, 3, 4, 5, 6")]
    pub kind: Option<value::Kind>,
}

/// Parts of [`Value`].
pub mod value {
    /// What a value is.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Kind {
        /// Null, always 0.
        #[prost(int32, tag = "1")]
        Null(i32),
        /// A number.
        #[prost(double, tag = "2")]
        Number(f64),
        /// Text.
        #[prost(string, tag = "3")]
        Text(String),
        /// A boolean.
        #[prost(bool, tag = "4")]
        Bool(bool),
        /// An object.
        #[prost(message, tag = "5")]
        Struct(super::Struct),
        /// A list.
        #[prost(message, tag = "6")]
        List(super::ListValue),
    }
}

/// A list.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListValue {
    /// Its items.
    #[prost(message, repeated, tag = "1")]
    pub values: Vec<Value>,
}

// === impl Struct ===

impl Struct {
    /// The text under a name; nothing if there is none or it isn't text.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        match &self.fields.get(name)?.kind {
            Some(value::Kind::Text(text)) => Some(text),
            _ => None,
        }
    }
}

impl FromIterator<(String, serde_json::Value)> for Struct {
    fn from_iter<I: IntoIterator<Item = (String, serde_json::Value)>>(members: I) -> Self {
        Self { fields: members.into_iter().map(|(name, value)| (name, value.into())).collect() }
    }
}

// === impl Value ===

impl From<serde_json::Value> for Value {
    fn from(json: serde_json::Value) -> Self {
        use serde_json::Value as Json;
        let kind = match json {
            Json::Null => value::Kind::Null(0),
            Json::Bool(value) => value::Kind::Bool(value),
            // Every JSON number of serde_json without arbitrary precision has an `f64`.
            Json::Number(number) => value::Kind::Number(number.as_f64().unwrap_or_default()),
            Json::String(text) => value::Kind::Text(text),
            Json::Array(items) => value::Kind::List(ListValue { values: items.into_iter().map(Self::from).collect() }),
            Json::Object(members) => value::Kind::Struct(members.into_iter().collect()),
        };
        Self { kind: Some(kind) }
    }
}
