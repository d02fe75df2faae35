//! Where a text of many documents can be cut.

use std::ops::Range;

/// Cuts a text into parts of whole documents, each of about this many bytes or of a single document. One part if there
/// is a directive, which belongs to the document after its `---`.
///
/// A line that starts with `---` and a blank or nothing begins a document wherever it stands, in quotes and block scalars
/// too.
pub(crate) fn parts(text: &str, bytes: usize) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut start = 0;
    if !has_directive(text) {
        while let Some(cut) = next_document(text, start + bytes.max(1)) {
            parts.push(start..cut);
            start = cut;
        }
    }
    parts.push(start..text.len());
    parts
}

/// Where the first document begins that begins here or later, by its `---`.
fn next_document(text: &str, from: usize) -> Option<usize> {
    // The line break before may be the last byte before.
    let mut at = from.checked_sub(1)?;
    loop {
        let rest = text.as_bytes().get(at..)?;
        let line = at + rest.iter().position(|byte| *byte == b'\n')? + 1;
        if begins_document(text.as_bytes().get(line..)?) {
            return Some(line);
        }
        at = line;
    }
}

fn begins_document(line: &[u8]) -> bool {
    line.strip_prefix(b"---").is_some_and(|rest| matches!(rest.first(), None | Some(b' ' | b'\t' | b'\r' | b'\n')))
}

/// Whether a line starts as a directive does. A line may end in a carriage return alone.
fn has_directive(text: &str) -> bool {
    text.match_indices('%').any(|(at, _)| matches!(text.as_bytes()[..at].last(), None | Some(b'\n' | b'\r')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_only_where_a_document_begins() {
        for (text, expected) in [
            ("", &[""][..]),
            ("a: 1", &["a: 1"]),
            ("a: 1\n---\nb: 2\n", &["a: 1\n", "---\nb: 2\n"]),
            ("---\na: 1\n--- # two\nb: 2\n---", &["---\na: 1\n", "--- # two\nb: 2\n", "---"]),
            ("a: 1\r\n---\r\nb: 2\r\n", &["a: 1\r\n", "---\r\nb: 2\r\n"]),
            ("a: 1\n ---\n---b\n----\n", &["a: 1\n ---\n---b\n----\n"]),
            ("a: 1\n...\r%YAML 1.2\n---\nb: 2\n", &["a: 1\n...\r%YAML 1.2\n---\nb: 2\n"]),
            ("%YAML 1.2\n---\na: 1\n---\nb: 2\n", &["%YAML 1.2\n---\na: 1\n---\nb: 2\n"]),
        ] {
            let found: Vec<_> = parts(text, 1).into_iter().map(|part| &text[part]).collect();
            assert_eq!(found, expected, "{text:?}");
        }
    }

    #[test]
    fn parts_are_as_large_as_asked() {
        let text = "---\na: 1\n".repeat(100);
        let found = parts(&text, 90);
        assert_eq!(found.len(), 10);
        assert!(found.iter().all(|part| part.len() == 90), "{found:?}");
    }
}
