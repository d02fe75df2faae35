//! Where tokens stand in a request, and taking them out of it.

use std::borrow::Cow;

use ambit_mesh::view::{Authentication, Location};
use http::{HeaderMap, HeaderValue, header, uri::PathAndQuery};

use super::{
    cache::{CacheKey, Verified},
    token::{Failure, Token},
};
use crate::request::Checked;

/// A token in a request, with what was found out about it so far.
pub(super) struct Found {
    /// Index of its place.
    pub(super) location: usize,
    /// It; or that it can't be one.
    pub(super) text: Result<Box<str>, Failure>,
    pub(super) key: Option<CacheKey>,
    pub(super) known: Option<Option<std::sync::Arc<Verified>>>,
    pub(super) parsed: Option<Result<Box<Token>, Failure>>,
}

/// The tokens of a request.
pub(super) fn tokens(authentication: &Authentication, checked: &Checked) -> Vec<Found> {
    let mut found = Vec::new();
    for (index, location) in authentication.locations.iter().enumerate() {
        let text = match location {
            Location::Header { name, prefix } => in_header(&checked.headers, name, prefix),
            Location::Parameter(name) => in_query(checked.target.query().unwrap_or_default(), name),
            Location::Cookie(name) => in_cookies(&checked.headers, name),
        };
        if let Some(text) = text {
            found.push(Found { location: index, text, key: None, known: None, parsed: None });
        }
    }
    found
}

/// Takes out of a request what stands at this place.
pub(super) fn remove(location: &Location, headers: &mut HeaderMap, checked: &mut Checked) {
    match location {
        Location::Header { name, .. } => {
            headers.remove(&**name);
            checked.headers.remove(&**name);
        }
        Location::Parameter(name) => checked.target = without_parameter(&checked.target, name),
        Location::Cookie(name) => {
            remove_cookie(headers, name);
            remove_cookie(&mut checked.headers, name);
        }
    }
}

type Text = Option<Result<Box<str>, Failure>>;

/// Several lines are one value with commas, which no token has.
fn in_header(headers: &HeaderMap, name: &str, prefix: &str) -> Text {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next()?.as_bytes();
    let mut value = Cow::Borrowed(first);
    for line in lines {
        value.to_mut().push(b',');
        value.to_mut().extend_from_slice(line.as_bytes());
    }
    let at = find(&value, prefix.as_bytes())?;
    let token = value[at + prefix.len()..].trim_ascii();
    Some(std::str::from_utf8(token).map(Into::into).map_err(|_| Failure::BadFormat))
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    if wanted.is_empty() { Some(0) } else { text.windows(wanted.len()).position(|window| window == wanted) }
}

/// A token that stands there twice is none: nobody knows which one the application would take.
fn only(mut values: impl Iterator<Item = Box<str>>) -> Text {
    let value = values.next()?;
    Some(if values.next().is_some() { Err(Failure::BadFormat) } else { Ok(value) })
}

fn in_query(query: &str, name: &str) -> Text {
    if query.is_empty() {
        return None;
    }
    let named = form_urlencoded::parse(query.as_bytes()).filter(|(known, _)| known == name);
    only(named.map(|(_, value)| value.into()))
}

fn without_parameter(target: &PathAndQuery, name: &str) -> PathAndQuery {
    let Some(query) = target.query() else { return target.clone() };
    let is_named = |part: &&str| form_urlencoded::parse(part.as_bytes()).any(|(known, _)| known == name);
    let kept: Vec<_> = query.split('&').filter(|part| !is_named(part)).collect();
    let text = if kept.is_empty() { target.path().to_owned() } else { format!("{}?{}", target.path(), kept.join("&")) };
    // Parts of a valid target make one; were it not so, the path alone does.
    PathAndQuery::try_from(text).or_else(|_| PathAndQuery::try_from(target.path())).unwrap_or_else(|_| target.clone())
}

fn in_cookies(headers: &HeaderMap, name: &str) -> Text {
    let lines = headers.get_all(header::COOKIE).iter().map(|line| line.as_bytes());
    let cookies = lines.flat_map(|line| line.split(|byte| *byte == b';'));
    let values = cookies.filter_map(|cookie| value_of(cookie, name));
    only(values.map(|value| String::from_utf8_lossy(value).into()))
}

/// The value of a cookie of this name.
fn value_of<'a>(cookie: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let rest = cookie.trim_ascii().strip_prefix(name.as_bytes())?.trim_ascii_start().strip_prefix(b"=")?.trim_ascii();
    Some(rest.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(rest))
}

fn remove_cookie(headers: &mut HeaderMap, name: &str) {
    let header::Entry::Occupied(lines) = headers.entry(header::COOKIE) else { return };
    let (key, lines) = lines.remove_entry_mult();
    let kept: Vec<HeaderValue> = lines
        .filter_map(|line| {
            let cookies = line.as_bytes().split(|byte| *byte == b';').filter(|cookie| value_of(cookie, name).is_none());
            let kept = cookies.map(<[u8]>::trim_ascii).collect::<Vec<_>>().join(&b"; "[..]);
            HeaderValue::from_bytes(&kept).ok().filter(|line| !line.is_empty())
        })
        .collect();
    for line in kept {
        headers.append(key.clone(), line);
    }
}

// === impl Found ===

impl Found {
    /// The payload as it stands in the token.
    pub(super) fn payload(&self) -> &str {
        self.text.as_deref().ok().and_then(|text| text.split('.').nth(1)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn text(found: Text) -> Option<Result<String, Failure>> {
        found.map(|text| text.map(Into::into))
    }

    #[test]
    fn a_header_holds_a_token_behind_its_prefix() {
        let bearer = |value| text(in_header(&headers(&[("authorization", value)]), "authorization", "Bearer "));
        assert_eq!(bearer("Bearer a.b.c"), Some(Ok("a.b.c".into())));
        assert_eq!(bearer("Bearer   a.b.c  "), Some(Ok("a.b.c".into())));
        assert_eq!(bearer("Basic Bearer a.b.c"), Some(Ok("a.b.c".into())), "as Envoy finds it");
        assert_eq!(bearer("Basic abc"), None);
        assert_eq!(bearer("bearer a.b.c"), None);
        let plain = |lines: &[_]| text(in_header(&headers(lines), "x-jwt", ""));
        assert_eq!(plain(&[("x-jwt", "a.b.c")]), Some(Ok("a.b.c".into())));
        assert_eq!(plain(&[("x-jwt", "")]), Some(Ok(String::new())), "there, and no token");
        assert_eq!(plain(&[("x-jwt", "a.b.c"), ("x-jwt", "d.e.f")]), Some(Ok("a.b.c,d.e.f".into())));
        assert_eq!(plain(&[]), None);
    }

    #[test]
    fn a_token_that_stands_there_twice_is_none() {
        assert_eq!(text(in_query("x=1&t=a.b.c", "t")), Some(Ok("a.b.c".into())));
        assert_eq!(text(in_query("%74=a%2Eb.c", "t")), Some(Ok("a.b.c".into())));
        assert_eq!(text(in_query("t=a&t=b", "t")), Some(Err(Failure::BadFormat)));
        assert_eq!(text(in_query("tt=a", "t")), None);
        let cookies = |lines: &[_]| text(in_cookies(&headers(lines), "t"));
        assert_eq!(cookies(&[("cookie", "s=1; t=a.b.c"), ("cookie", "u=2")]), Some(Ok("a.b.c".into())));
        assert_eq!(cookies(&[("cookie", "t=\"a.b.c\"")]), Some(Ok("a.b.c".into())));
        assert_eq!(cookies(&[("cookie", "t=a"), ("cookie", "t=b")]), Some(Err(Failure::BadFormat)));
        assert_eq!(cookies(&[("cookie", "tt=a")]), None);
    }

    #[test]
    fn tokens_are_taken_out_of_the_query_and_the_cookies() {
        let without = |target: &'static str| without_parameter(&PathAndQuery::from_static(target), "t").to_string();
        assert_eq!(without("/a?t=x"), "/a");
        assert_eq!(without("/a?b=%20c&%74=x&d"), "/a?b=%20c&d");
        assert_eq!(without("/a"), "/a");
        let mut jar = headers(&[("cookie", "s=1; t=x;u=2"), ("cookie", "t=y")]);
        remove_cookie(&mut jar, "t");
        let lines: Vec<_> = jar.get_all("cookie").iter().map(|line| line.to_str().expect("text").to_owned()).collect();
        assert_eq!(lines, ["s=1; u=2"]);
    }
}
