//! What conditions on a verified token see (`spec/authorization.md` 2.4, 2.12 rows 14, 15).

use std::fmt;

use serde_json::Value;

use crate::facts::Claims;

/// A claim, perhaps inside of others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ClaimPath {
    /// The key of the condition.
    key: Box<str>,
    /// Names, outermost first.
    names: Box<[Box<str>]>,
}

/// The key of a condition on any claim, before the brackets.
pub(crate) const CLAIMS: &str = "request.auth.claims";

/// Claims whose text is a list, its entries parted by spaces.
const SPACE_DELIMITED: [&str; 2] = ["scope", "permission"];

// === impl ClaimPath ===

impl ClaimPath {
    /// The claim behind a key of its own.
    pub(crate) fn of(key: &str, name: &str) -> Self {
        Self { key: key.into(), names: [name.into()].into() }
    }

    /// Reads `[a][b]`.
    pub(crate) fn parse(brackets: &str) -> Result<Self, String> {
        let bad = || format!("`{brackets}` isn't a claim; write `request.auth.claims[a]`, or `[a][b]` for `b` in `a`");
        let inner = brackets.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).ok_or_else(bad)?;
        let names: Box<[Box<str>]> = inner.split("][").map(Into::into).collect();
        if names.iter().any(|name| name.is_empty() || name.contains(['[', ']'])) {
            return Err(bad());
        }
        Ok(Self { key: format!("{CLAIMS}{brackets}").into(), names })
    }

    /// The claim's value.
    pub(crate) fn get<'a>(&self, claims: &'a Claims) -> Option<&'a Value> {
        let (last, outer) = self.names.split_last()?;
        let mut object = claims;
        for name in outer {
            let Value::Object(inner) = object.get(&**name)? else { return None };
            object = inner;
        }
        object.get(&**last)
    }

    /// Whether any of the claim's texts satisfies this. Only strings count, and strings in a list; none is empty.
    pub(crate) fn any(&self, claims: &Claims, mut matches: impl FnMut(&str) -> bool) -> bool {
        let mut matches = |text: &str| !text.is_empty() && matches(text);
        let is_spaced = matches!(&*self.names, [name] if SPACE_DELIMITED.contains(&&**name));
        match self.get(claims) {
            Some(Value::String(text)) if is_spaced => text.split(' ').any(matches),
            Some(Value::String(text)) => matches(text),
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).any(matches),
            _ => false,
        }
    }
}

impl fmt::Display for ClaimPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)
    }
}

/// Issuer and subject of a token, if it has both.
pub(crate) fn issuer_and_subject(claims: &Claims) -> Option<(&str, &str)> {
    Some((claims.get("iss")?.as_str()?, claims.get("sub")?.as_str()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_of_a_claim() {
        let Ok(Value::Object(claims)) = serde_json::from_str(
            r#"{"groups":["a",1,"b",""],"scope":"r  w","one":"x y","n":{"scope":"r w","m":["z"]},"a.b":"dot","t":true}"#,
        ) else {
            panic!("an object")
        };
        for (path, expected) in [
            ("[groups]", &["a", "b"][..]),
            ("[scope]", &["r", "w"]),
            ("[one]", &["x y"]),
            ("[n][scope]", &["r w"]),
            ("[n][m]", &["z"]),
            ("[a.b]", &["dot"]),
            ("[a][b]", &[]),
            ("[t]", &[]),
            ("[n]", &[]),
            ("[none]", &[]),
        ] {
            let mut texts = Vec::new();
            let path = ClaimPath::parse(path).expect("a claim");
            assert!(!path.any(&claims, |text| {
                texts.push(text.to_owned());
                false
            }));
            assert_eq!(texts, expected, "{path}");
        }
        for bad in ["", "a", "[]", "[a", "[a][", "[a][]", "[[a]]", "[a]b", "[a]x[b]"] {
            assert!(ClaimPath::parse(bad).is_err(), "{bad}");
        }
    }
}
