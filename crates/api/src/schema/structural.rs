//! From JSON Schema, as `schemars` makes it, to the part of it that Kubernetes takes.

use serde_json::{Map, Value, json};

/// Keywords that Kubernetes doesn't know, or that would change objects (`default`).
const DROPPED: [&str; 6] = ["$schema", "title", "default", "examples", "deprecated", "readOnly"];

/// Rewrites a schema: one type per value, no references, no `null`, no defaults; fields that don't exist are the API
/// server's to find.
pub(super) fn structural(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    for keyword in DROPPED {
        fields.remove(keyword);
    }
    merge_alternatives(fields);
    one_type(fields);
    bound_integers(fields);
    if let Some(Value::String(text)) = fields.get_mut("description") {
        *text = first_paragraph(text);
    }
    if fields.get("additionalProperties").is_some_and(Value::is_boolean) {
        fields.remove("additionalProperties");
    }
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        properties.values_mut().for_each(structural);
    }
    for keyword in ["items", "additionalProperties"] {
        if let Some(schema) = fields.get_mut(keyword) {
            structural(schema);
        }
    }
}

/// `anyOf` and `oneOf` of an optional value, and of an enumeration whose variants are described.
fn merge_alternatives(fields: &mut Map<String, Value>) {
    for keyword in ["anyOf", "oneOf"] {
        let Some(Value::Array(alternatives)) = fields.get(keyword) else { continue };
        let present: Vec<Value> = alternatives.iter().filter(|alternative| !is_null(alternative)).cloned().collect();
        let values: Option<Vec<Vec<Value>>> = present.iter().map(values_of).collect();
        if let Some(values) = values {
            fields.remove(keyword);
            fields.insert("type".to_owned(), json!("string"));
            fields.insert("enum".to_owned(), Value::Array(values.concat()));
        } else if let [Value::Object(only)] = present.as_slice() {
            let only = only.clone();
            fields.remove(keyword);
            for (name, value) in only {
                fields.entry(name).or_insert(value);
            }
            // What it was may be such a choice itself.
            merge_alternatives(fields);
        }
    }
}

fn is_null(schema: &Value) -> bool {
    schema.get("type") == Some(&json!("null"))
        || schema.get("enum") == Some(&json!([null]))
        || schema.get("const") == Some(&Value::Null)
}

/// The texts that an alternative stands for, if it stands for texts.
fn values_of(alternative: &Value) -> Option<Vec<Value>> {
    if let Some(value) = alternative.get("const").filter(|value| value.is_string()) {
        return Some(vec![value.clone()]);
    }
    let values = alternative.get("enum")?.as_array()?;
    values.iter().all(Value::is_string).then(|| values.clone())
}

fn one_type(fields: &mut Map<String, Value>) {
    fields.remove("nullable");
    if let Some(Value::Array(types)) = fields.get("type") {
        let first = types.iter().find(|kind| **kind != json!("null")).cloned();
        fields.insert("type".to_owned(), first.unwrap_or_else(|| json!("object")));
    }
    if let Some(Value::Array(values)) = fields.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
}

fn bound_integers(fields: &mut Map<String, Value>) {
    let Some(format) = fields.get("format").and_then(Value::as_str).map(str::to_owned) else { return };
    if !format.starts_with("uint") {
        return;
    }
    fields.remove("format");
    if format == "uint32" {
        fields.entry("maximum").or_insert(json!(u32::MAX));
    }
}

/// The first paragraph on one line, with names of Rust items as names.
fn first_paragraph(text: &str) -> String {
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<_> = paragraph.split_whitespace().collect();
    words.join(" ").replace("[`", "`").replace("`]", "`")
}
