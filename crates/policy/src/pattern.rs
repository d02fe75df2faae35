//! Values as policies write them, parsed into matchers that can't be wrong.

use std::fmt;

use crate::template::{PathTemplate, is_template};

/// `foo`, `foo*`, `*foo` or `*` (`spec/authorization.md` 2.4). A `*` elsewhere stands for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StringPattern {
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
    Present,
}

/// The values of a field, any of which is enough.
#[derive(Debug)]
pub(crate) struct StringSet {
    /// As written.
    patterns: Box<[StringPattern]>,
    /// Where the exact ones are, in order of their text, if there are many.
    exact: Box<[u32]>,
}

/// A text in parts. It calls back with each part, in order, and does so the same way each time.
pub(crate) type Parts<'a> = dyn Fn(&mut dyn FnMut(&[u8])) + 'a;

/// A value of `paths`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PathPattern {
    Text(StringPattern),
    Template(PathTemplate),
}

// === impl StringPattern ===

impl StringPattern {
    pub(crate) fn parse(value: &str) -> Result<Self, String> {
        match value {
            "" => Err("is empty; remove it or write a value".to_owned()),
            "*" => Ok(Self::Present),
            _ => Ok(if let Some(suffix) = value.strip_prefix('*') {
                Self::Suffix(suffix.into())
            } else if let Some(prefix) = value.strip_suffix('*') {
                Self::Prefix(prefix.into())
            } else {
                Self::Exact(value.into())
            }),
        }
    }

    /// A value of `trustDomains`: one `*` at most, at an end.
    pub(crate) fn parse_trust_domain(value: &str) -> Result<Self, String> {
        if value.contains('/') {
            return Err(format!("`{value}` holds a `/`; write the trust domain alone"));
        }
        let pattern = Self::parse(value)?;
        let (Self::Exact(rest) | Self::Prefix(rest) | Self::Suffix(rest)) = &pattern else { return Ok(pattern) };
        if rest.contains('*') {
            return Err(format!("`{value}` may hold one `*`, at its start or end"));
        }
        Ok(pattern)
    }

    pub(crate) fn matches(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact(value) => *value.as_bytes() == *text,
            Self::Prefix(value) => text.starts_with(value.as_bytes()),
            Self::Suffix(value) => text.ends_with(value.as_bytes()),
            Self::Present => true,
        }
    }

    pub(crate) fn matches_ignoring_case(&self, text: &[u8]) -> bool {
        self.part(text).is_some_and(|part| part.eq_ignore_ascii_case(self.literal()))
    }

    /// The text is put into lower case first, the value isn't.
    pub(crate) fn matches_lower_cased(&self, text: &[u8]) -> bool {
        let same = |part: &[u8]| part.iter().map(u8::to_ascii_lowercase).eq(self.literal().iter().copied());
        self.part(text).is_some_and(same)
    }

    /// Whether it matches the parts as one text.
    pub(crate) fn matches_parts(&self, parts: &Parts<'_>) -> bool {
        let literal = self.literal();
        let length = || {
            let mut length = 0;
            parts(&mut |part| length += part.len());
            length
        };
        // Where the literal starts in the text.
        let start = match self {
            Self::Present => return true,
            Self::Prefix(_) => 0,
            Self::Exact(_) if length() == literal.len() => 0,
            Self::Exact(_) => return false,
            Self::Suffix(_) => match length().checked_sub(literal.len()) {
                Some(start) => start,
                None => return false,
            },
        };
        let (mut skip, mut rest, mut same) = (start, literal, true);
        parts(&mut |part| {
            let skipped = skip.min(part.len());
            skip -= skipped;
            let part = &part[skipped..];
            let (compared, later) = rest.split_at(part.len().min(rest.len()));
            same &= part[..compared.len()] == *compared;
            rest = later;
        });
        same && rest.is_empty()
    }

    pub(crate) fn exact(&self) -> Option<&str> {
        if let Self::Exact(value) = self { Some(value) } else { None }
    }

    fn literal(&self) -> &[u8] {
        match self {
            Self::Exact(value) | Self::Prefix(value) | Self::Suffix(value) => value.as_bytes(),
            Self::Present => b"",
        }
    }

    /// The part of a text that must be the literal; nothing if the text is too short.
    fn part<'a>(&self, text: &'a [u8]) -> Option<&'a [u8]> {
        match self {
            Self::Exact(_) => Some(text),
            Self::Prefix(value) => text.get(..value.len()),
            Self::Suffix(value) => text.len().checked_sub(value.len()).map(|at| &text[at..]),
            Self::Present => Some(b""),
        }
    }
}

// === impl StringSet ===

/// From this many exact values on they are searched and not walked through.
const MANY: usize = 8;

impl StringSet {
    pub(crate) fn new(patterns: Vec<StringPattern>) -> Self {
        let text = |at: u32| patterns.get(at as usize).and_then(StringPattern::exact);
        let mut exact: Vec<u32> =
            (0u32..).zip(&patterns).filter(|(_, p)| p.exact().is_some()).map(|(at, _)| at).collect();
        if exact.len() < MANY {
            exact.clear();
        }
        exact.sort_by(|a, b| text(*a).cmp(&text(*b)));
        Self { exact: exact.into(), patterns: patterns.into() }
    }

    pub(crate) fn patterns(&self) -> &[StringPattern] {
        &self.patterns
    }

    pub(crate) fn matches(&self, text: &[u8]) -> bool {
        if self.exact.is_empty() {
            return self.patterns.iter().any(|pattern| pattern.matches(text));
        }
        let value = |at: &u32| self.patterns.get(*at as usize).map_or(&b""[..], StringPattern::literal);
        self.exact.binary_search_by(|at| value(at).cmp(text)).is_ok()
            || self.patterns.iter().any(|pattern| pattern.exact().is_none() && pattern.matches(text))
    }
}

// === impl PathPattern ===

impl PathPattern {
    pub(crate) fn parse(value: &str) -> Result<Self, String> {
        if is_template(value) {
            return PathTemplate::parse(value).map(Self::Template);
        }
        if value.contains(['{', '}']) {
            return Err(format!(
                "`{value}` holds a `{{` or `}}` that isn't part of a whole segment `{{*}}` or `{{**}}`"
            ));
        }
        StringPattern::parse(value).map(Self::Text)
    }

    pub(crate) fn matches(&self, path: &[u8]) -> bool {
        match self {
            Self::Text(pattern) => pattern.matches(path),
            Self::Template(template) => template.matches(path),
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(pattern) => pattern.fmt(f),
            Self::Template(template) => template.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matching<'a>(pattern: &str, texts: &[&'a str]) -> Vec<&'a str> {
        let pattern = StringPattern::parse(pattern).expect("valid");
        texts.iter().copied().filter(|text| pattern.matches(text.as_bytes())).collect()
    }

    #[test]
    fn the_four_string_forms() {
        let texts = ["GET", "GETx", "xGET", "get"];
        assert_eq!(matching("GET", &texts), ["GET"]);
        assert_eq!(matching("GET*", &texts), ["GET", "GETx"]);
        assert_eq!(matching("*GET", &texts), ["GET", "xGET"]);
        assert_eq!(matching("*", &texts), texts);
        assert_eq!(matching("G*T", &texts), [""; 0], "a star in the middle stands for itself");
        assert!(StringPattern::parse("").is_err());
    }

    #[test]
    fn hosts_ignore_case_in_every_form() {
        for pattern in ["Web.Example.com", "WEB.*", "*.EXAMPLE.com", "*"] {
            let pattern = StringPattern::parse(pattern).expect("valid");
            assert!(pattern.matches_ignoring_case(b"web.example.COM"), "{pattern}");
        }
        for pattern in ["web.example.co", "web.example.com:80", "*.example.org", "xweb*", "*aweb.example.com"] {
            let pattern = StringPattern::parse(pattern).expect("valid");
            assert!(!pattern.matches_ignoring_case(b"web.example.com"), "{pattern}");
        }
        assert!(!StringPattern::parse("é*").expect("valid").matches_ignoring_case(b"e"), "no panic inside a character");
    }
    #[test]
    fn trust_domains_take_one_star_at_an_end() {
        for bad in ["", "a/b", "a*b", "*a*"] {
            assert!(StringPattern::parse_trust_domain(bad).is_err(), "{bad}");
        }
        assert!(StringPattern::parse_trust_domain("*d").is_ok() && StringPattern::parse_trust_domain("*").is_ok());
    }

    #[test]
    fn a_text_in_parts_matches_as_one() {
        for (pattern, expected) in [
            ("a,b", true),
            ("a*", true),
            ("a,*", true),
            ("*,b", true),
            ("*a,b", true),
            ("*", true),
            ("a", false),
            ("*a", false),
            ("xa,b*", false),
            ("*xa,b", false),
        ] {
            let pattern = StringPattern::parse(pattern).expect("valid");
            let parts = |each: &mut dyn FnMut(&[u8])| [&b"a"[..], b",", b"", b"b"].into_iter().for_each(each);
            assert_eq!((pattern.matches_parts(&parts), pattern.matches(b"a,b")), (expected, expected), "{pattern}");
        }
    }

    #[test]
    fn many_values_match_as_few_do() {
        let patterns = |count: u32| {
            let mut patterns: Vec<_> = (0..count).map(|n| StringPattern::Exact(format!("v{n}").into())).collect();
            patterns.push(StringPattern::Prefix("p".into()));
            StringSet::new(patterns)
        };
        for count in [2, 100] {
            let set = patterns(count);
            assert!(set.matches(b"v0") && set.matches(b"v1") && set.matches(b"px"), "{count}");
            assert!(!set.matches(b"v") && !set.matches(b"v00") && !set.matches(b""), "{count}");
        }
    }
}
