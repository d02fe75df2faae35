//! One YAML (or JSON) document that isn't a manifest, with positions: for configuration in other programs' formats.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::{
    Diagnostic, Severity, Source,
    codes::{self, Code},
    diagnostic::Findings,
    kinds::unknown_field_text,
    limits::MAX_DOCUMENT_NODES,
    yaml::{self, Dialect, Node, Typed, Value},
};

/// A document and where its fields are written.
///
/// Tags of the document's own are read as mappings with one entry: `!Exact x` is `Exact: x`.
#[derive(Debug)]
pub struct Document<T> {
    /// What it says.
    pub object: T,
    source: Arc<Source>,
    root: Node,
}

// === impl Document ===

impl<T: DeserializeOwned> Document<T> {
    /// Reads the one document of a text, with `name` as the file's name. The caller bounds the text.
    ///
    /// # Errors
    /// What is wrong with the YAML, fields that the type doesn't have, and values of the wrong type, each with its place.
    pub fn read(name: &str, text: &str) -> Result<Self, Vec<Diagnostic>> {
        let source = Arc::new(Source::new(name, text.strip_prefix('\u{feff}').unwrap_or(text)));
        let mut found = Findings::default();
        let dialect = Dialect { tags: true, max_nodes: MAX_DOCUMENT_NODES };
        let (documents, problems) = yaml::parse_dialect(source.text(), dialect);
        for problem in problems {
            let diagnostic = Diagnostic::new(Severity::Error, problem.code, problem.message, problem.help);
            found.push(diagnostic.at(source.place(problem.span)));
        }
        let mut documents = documents.into_iter().filter(|node| node.value != Value::Null);
        let (first, second) = (documents.next(), documents.next());
        let Some(root) = first else {
            if found.is_empty() {
                found
                    .push(error(codes::WRONG_TYPE, "there is nothing in it", "write a mapping").at(source.place(0..0)));
            }
            return Err(found.into_list());
        };
        if let Some(second) = second {
            let diagnostic = error(codes::WRONG_TYPE, "a second document", "keep one; the file is read as a whole");
            found.push(diagnostic.at(source.place(second.span)));
        }
        let Typed { object, unknown } = yaml::deserialize_strictly::<T>(&root);
        for unknown in &unknown {
            let (message, help) = unknown_field_text(unknown);
            let mut diagnostic = error(codes::UNKNOWN_FIELD, message, help).at(source.place(unknown.key_span.clone()));
            diagnostic.field = Some(unknown.field.clone());
            found.push(diagnostic);
        }
        match object {
            Ok(object) if found.is_empty() => Ok(Self { object, source, root }),
            Ok(_) => Err(found.into_list()),
            Err(yaml::Failure { field, message, help }) => {
                let mut diagnostic = error(codes::WRONG_TYPE, message, help).at(source.place(root.locate(&field)));
                diagnostic.field = Some(field);
                found.push(diagnostic);
                Err(found.into_list())
            }
        }
    }
}

impl<T> Document<T> {
    /// An error about a field, for example `workloads[0].uid`, at its place.
    #[must_use]
    pub fn error(&self, field: &str, message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
        let diagnostic = error(codes::WRONG_TYPE, message, help).at(self.source.place(self.root.locate(field)));
        Diagnostic { field: Some(field.to_owned()), ..diagnostic }
    }
}

fn error(code: Code, message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
    Diagnostic::new(Severity::Error, code, message, help)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Shape {
        name: String,
        #[serde(default)]
        patterns: Vec<BTreeMap<String, Vec<String>>>,
        #[serde(default)]
        more: Vec<BTreeMap<String, String>>,
    }

    fn refused(text: &str) -> String {
        let diagnostics = Document::<Shape>::read("f.yaml", text).expect_err("it must be refused");
        diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn tags_are_read_as_mappings_of_one() {
        let text = "name: a\npatterns: [!Presence []]\nmore:\n- !Exact x\n- !Prefix \"y\"\n";
        let object = Document::<Shape>::read("f.yaml", text).expect("good").object;
        let one = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        assert_eq!(object.patterns, [BTreeMap::from([("Presence".to_owned(), Vec::new())])]);
        assert_eq!(object.more, [one("Exact", "x"), one("Prefix", "y")]);
    }

    #[test]
    fn json_is_read_too() {
        let text = "{\n\t\"name\": \"a\",\n\t\"more\": [{\"Exact\": \"x\"}]\n}\n";
        assert_eq!(Document::<Shape>::read("f.json", text).expect("good").object.name, "a");
    }

    #[test]
    fn nothing_is_left_out_at_the_root() {
        for field in ["status", "kind", "apiVersion", "nam"] {
            assert!(refused(&format!("name: a\n{field}: b\n")).starts_with("f.yaml:2:1: error[AMB0206]"), "{field}");
        }
    }

    #[test]
    fn wrong_values_have_a_place() {
        assert!(refused("name: a\nmore: [{b: [1]}]\n").starts_with("f.yaml:2:9: error[AMB0205] more[0].b"));
        assert!(refused("").starts_with("f.yaml:1:1: error[AMB0205]"));
        assert!(refused("name: a\n---\nname: b\n").starts_with("f.yaml:3:"));
        assert!(refused("name: !!binary a\n").contains("AMB0106"), "tags of YAML's own are no names");
        assert!(refused("name: a\nname: b\n").contains("AMB0105"));
    }
}
