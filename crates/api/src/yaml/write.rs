//! JSON values as YAML that people can read.

use serde_json::Value;

/// The value as one YAML document, with a line end.
pub fn render(value: &Value) -> String {
    let mut out = String::new();
    write(value, 0, &mut out);
    out
}

/// Writes a value where a line has `indent` spaces before it already.
fn write(value: &Value, indent: usize, out: &mut String) {
    let spaces = " ".repeat(indent);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (index, (name, field)) in fields.iter().enumerate() {
                if index > 0 {
                    out.push_str(&spaces);
                }
                out.push_str(&text(name));
                out.push(':');
                write_nested(field, indent + INDENT, out);
            }
        }
        Value::Array(elements) if !elements.is_empty() => {
            for (index, element) in elements.iter().enumerate() {
                if index > 0 {
                    out.push_str(&spaces);
                }
                out.push_str("- ");
                write(element, indent + INDENT, out);
            }
        }
        Value::String(string) => {
            out.push_str(&text(string));
            out.push('\n');
        }
        // What is empty, and numbers and the like, YAML writes as JSON does.
        other => {
            out.push_str(&other.to_string());
            out.push('\n');
        }
    }
}

/// Spaces of one level.
const INDENT: usize = 2;

/// Writes the value of a field: a collection on lines of its own.
fn write_nested(value: &Value, indent: usize, out: &mut String) {
    let is_block = match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(elements) => !elements.is_empty(),
        _ => false,
    };
    if is_block {
        out.push('\n');
        out.push_str(&" ".repeat(indent));
    } else {
        out.push(' ');
    }
    write(value, indent, out);
}

/// Bare where every reader of YAML takes it as this text, and quoted as JSON otherwise, which is YAML too.
fn text(text: &str) -> String {
    let starts_bare = text.starts_with(|c: char| c.is_ascii_alphabetic());
    let is_bare = starts_bare && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
    let words = ["true", "false", "yes", "no", "on", "off", "y", "n", "null"];
    if is_bare && !words.contains(&text.to_ascii_lowercase().as_str()) {
        return text.to_owned();
    }
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nested_values_and_texts_that_need_quotes() {
        let value = json!({
            "@type": "a.b/C",
            "empty": {},
            "list": [{"a": 1, "b": ["x", {"c": "no"}]}, [], [["deep"]]],
            "text": "ns[a]: \"b\"",
        });
        let expected = "\
\"@type\": a.b/C
empty: {}
list:
  - a: 1
    b:
      - x
      - c: \"no\"
  - []
  - - - deep
text: \"ns[a]: \\\"b\\\"\"
";
        assert_eq!(render(&value), expected);
    }
}
