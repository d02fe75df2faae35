//! Paths: templates (rows 27 to 29), and values that no normalised path can equal (2.12, row 7).

use super::{List, quoted, values};
use crate::{codes, validate::Check};

/// Checks the values of `paths` or `notPaths`.
pub(super) fn check(check: &mut Check<'_>, list: &List<'_>) {
    values::check_not_empty(check, list);
    for (field, value) in list.each().filter(|(_, value)| !value.is_empty()) {
        let templated = value.contains("{*}") || value.contains("{**}");
        if let Some(fault) = template_fault(value, templated) {
            let message = format!("`{}` is not a path template: {fault}", quoted(value));
            let help = "`{*}` stands for one whole segment, `{**}` for the rest, and nothing else may be in braces";
            check.error(codes::BAD_PATH_TEMPLATE, &field, message, help);
        } else if let Some((fault, help)) = never_matches(value) {
            let message = format!("`{}` never matches: {fault}", quoted(value));
            check.error(codes::NEVER_MATCHES, &field, message, help);
        } else if !templated && values::has_inner_wildcard(value) {
            let message = format!("`{}`: a `*` inside is not a wildcard", quoted(value));
            check.warning(
                codes::SUSPICIOUS_VALUE,
                &field,
                message,
                "write `{*}` for one segment or `{**}` for several",
            );
        }
    }
}

/// Rows 27 to 29.
fn template_fault(value: &str, templated: bool) -> Option<&'static str> {
    let mut rest_taken = false;
    for segment in value.trim_matches('/').split('/') {
        match segment {
            "{*}" | "{**}" if rest_taken => return Some("`{**}` is not the last operator"),
            "{**}" => rest_taken = true,
            "{*}" => {}
            _ if segment.contains(['{', '}']) => return Some("a segment has `{` or `}` beside `{*}` or `{**}`"),
            _ if templated && !is_literal(segment) => {
                return Some("a segment is empty or has a character that a template can't hold");
            }
            _ => {}
        }
    }
    None
}

fn is_literal(segment: &str) -> bool {
    !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&b))
}

/// Why no path, normalised as the proxies do, can equal this value; and what to write instead.
fn never_matches(value: &str) -> Option<(&'static str, &'static str)> {
    let suffix = value.strip_prefix('*');
    let prefix = if suffix.is_none() { value.strip_suffix('*') } else { None };
    if suffix.is_none() && !value.starts_with('/') {
        return Some(("a path starts with `/`", "start it with `/`"));
    }
    let literal = suffix.or(prefix).unwrap_or(value);
    if literal.contains('?') {
        return Some(("the query is not part of the path", "end it before the `?`"));
    }
    if literal.contains('#') {
        return Some(("a fragment is never sent", "end it before the `#`"));
    }
    if literal.contains('\\') {
        return Some(("`\\` is read as `/`", "write `/`"));
    }
    // `{*}` and `{**}` are gone by now, or were refused.
    if literal.chars().any(|c| !c.is_ascii() || c.is_ascii_control() || b" \"<>^`|".contains(&(c as u8))) {
        return Some(("such a character is always escaped", "write it as `%` and two hexadecimal digits"));
    }
    if has_needless_escape(literal) {
        return Some((
            "an escaped letter, digit, `-`, `.`, `_` or `~` is unescaped first",
            "write the character itself",
        ));
    }
    // A segment that the wildcard may complete is not yet a dot segment.
    let mut segments: Vec<&str> = literal.split('/').collect();
    if suffix.is_some() {
        segments.remove(0);
    } else if prefix.is_some() {
        segments.pop();
    }
    if segments.iter().any(|segment| matches!(*segment, "." | "..")) {
        return Some(("`.` and `..` segments are resolved first", "write the path that they lead to"));
    }
    None
}

fn has_needless_escape(literal: &str) -> bool {
    literal.as_bytes().windows(3).any(|bytes| {
        let [b'%', high, low] = bytes else { return false };
        let digit = |b: &u8| char::from(*b).to_digit(16);
        match (digit(high), digit(low)) {
            (Some(high), Some(low)) => {
                let byte = u8::try_from(high * 16 + low).unwrap_or_default();
                byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
            }
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_paths_pass() {
        for path in [
            "/v1/traces",
            "/*",
            "*",
            "*.html",
            "*/x",
            "/a/",
            "/a//b",
            "/a%2Fb",
            "/a;b=1",
            "/x/..*",
            "*../x",
            "/{*}",
            "/a/{*}/b",
            "/a/{**}",
            "/{**}/b",
            "/{*}/{**}",
            "/{*}/",
            "/a%zz",
            "/[x]",
        ] {
            let templated = path.contains("{*");
            assert_eq!(template_fault(path, templated), None, "{path}");
            assert_eq!(never_matches(path), None, "{path}");
        }
    }

    #[test]
    fn paths_that_never_match_are_told_apart() {
        for path in [
            "api", "api*", "/q?x=1", "*?x", "/a#b", "/a b", "/é", "/x/../y", "/x/..", "/./x", "*/../x", "/x/../*",
            "/a\\b", "/%41", "/a%2eb", "/a|b", "{*}/x",
        ] {
            assert!(never_matches(path).is_some(), "{path}");
        }
    }

    #[test]
    fn templates_that_cannot_be_are_told_apart() {
        for path in ["/{**}/{*}", "/{**}/{**}", "/{a}", "/x{*}", "/{*}y", "/{", "/a}/b"] {
            assert!(template_fault(path, path.contains("{*")).is_some(), "{path}");
        }
        for path in ["/{*}/*", "/{*}//b", "/{*}/a b", "/{**}/[x]"] {
            assert!(template_fault(path, true).is_some(), "{path}");
        }
    }
}
