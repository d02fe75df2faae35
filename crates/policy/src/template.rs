//! Path templates: `/v1/{*}/items`, `/files/{**}` (`spec/authorization.md` 2.4, 2.11 rows 27 to 29, 2.12 row 8).

use std::fmt;

const ONE_SEGMENT: &str = "{*}";
const REST: &str = "{**}";

/// A path with `{*}` for one segment and, at most once, `{**}` for any text, `/` included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PathTemplate {
    text: Box<str>,
    /// What stands around each `{*}`: the first at the start of the path, one `{*}` between each two.
    literals: Box<[Box<str>]>,
    /// What stands after `{**}`, if there is one. The last of `literals` is what stands before it.
    tail: Option<Box<str>>,
}

/// True if a value of `paths` is a template and not a string.
pub(crate) fn is_template(value: &str) -> bool {
    value.contains(ONE_SEGMENT) || value.contains(REST)
}

// === impl PathTemplate ===

impl PathTemplate {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix('/').ok_or_else(|| format!("template `{text}` must start with `/`"))?;
        let mut after_rest = false;
        let last = path.split('/').count() - 1;
        for (at, segment) in path.split('/').enumerate() {
            match segment {
                ONE_SEGMENT | REST if after_rest => {
                    return Err(format!("in `{text}`, `{{**}}` must be the last operator"));
                }
                ONE_SEGMENT => {}
                REST => after_rest = true,
                // A trailing slash is meant; an empty segment elsewhere can't be matched as it is written.
                "" if at == last => {}
                _ if segment.is_empty() || !segment.bytes().all(is_literal) => {
                    return Err(format!(
                        "segment `{segment}` of template `{text}` holds more than plain path characters"
                    ));
                }
                _ => {}
            }
        }
        let (front, tail) = match text.split_once(REST) {
            Some((front, tail)) => (front, Some(tail.into())),
            None => (text, None),
        };
        Ok(Self { text: text.into(), literals: front.split(ONE_SEGMENT).map(Into::into).collect(), tail })
    }

    /// What every path that matches starts with.
    pub(crate) fn prefix(&self) -> &str {
        self.literals.first().map_or("", |literal| literal)
    }

    pub(crate) fn matches(&self, path: &[u8]) -> bool {
        let Some((first, others)) = self.literals.split_first() else { return false };
        let Some(mut rest) = path.strip_prefix(first.as_bytes()) else { return false };
        for literal in others {
            let segment = rest.iter().take_while(|&&b| is_pchar(b)).count();
            let Some(after) = (segment > 0).then(|| rest[segment..].strip_prefix(literal.as_bytes())).flatten() else {
                return false;
            };
            rest = after;
        }
        match &self.tail {
            None => rest.is_empty(),
            Some(tail) => {
                rest.strip_suffix(tail.as_bytes()).is_some_and(|any| any.iter().all(|&b| b == b'/' || is_pchar(b)))
            }
        }
    }
}

/// What may stand in a segment of a template: a `*` there would look like an operator.
fn is_literal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&byte)
}

/// What `{*}` and `{**}` take, `/` apart: `pchar` of RFC 3986. `[` and `]` are not among them.
fn is_pchar(byte: u8) -> bool {
    is_literal(byte) || byte == b'*'
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_templates_match() {
        for (template, yes, no) in [
            ("/{*}", &["/a", "/a.b-c~d", "/%20", "/a;x", "/a*"][..], &["/", "/a/", "/a/b", "/a[b]"][..]),
            ("/v1/{*}/items", &["/v1/x/items"], &["/v1//items", "/v1/items", "/v1/x/y/items", "/v1/x/items/"]),
            ("/v1/{*}/items/", &["/v1/x/items/"], &["/v1/x/items"]),
            ("/tmpl/{**}", &["/tmpl/", "/tmpl/a", "/tmpl/a/b/"], &["/tmpl", "/tmplx", "/tmpl/[", "/x/tmpl/a"]),
            ("/{**}", &["/", "/a/b"], &[""]),
            ("/{**}/end", &["/a/end", "/a/b/end", "//end"], &["/end", "/a/endx"]),
            ("/foo/{**}/bar/baz", &["/foo/x/bar/baz", "/foo//bar/baz"], &["/foo/bar/baz"]),
            ("/a/{*}/b/{**}", &["/a/x/b/", "/a/x/b/y/z"], &["/a/x/b", "/a//b/y"]),
        ] {
            let parsed = PathTemplate::parse(template).expect("valid");
            yes.iter().for_each(|path| assert!(parsed.matches(path.as_bytes()), "{template} must match {path}"));
            no.iter().for_each(|path| assert!(!parsed.matches(path.as_bytes()), "{template} must not match {path}"));
        }
    }

    #[test]
    fn templates_that_cannot_work_are_refused() {
        for bad in ["{*}", "/{**}/{*}", "/{**}/{**}", "/a{*}", "/{*}b", "/{x}/{*}", "/a//{*}", "/a*/{*}", "/{*}/*"] {
            assert!(PathTemplate::parse(bad).is_err(), "{bad}");
        }
    }
}
