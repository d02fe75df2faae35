//! What a provider that allows a request wants changed.

use http::{HeaderMap, HeaderName, HeaderValue, uri::PathAndQuery};

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// To the request's headers.
    pub(super) to_upstream: Edits,
    /// The request's target, if its query changes.
    pub(super) target: Option<PathAndQuery>,
    /// To the response's headers.
    pub(super) to_client: Option<ToClient>,
}

/// What the headers of the response get.
#[derive(Debug, Default)]
pub(crate) struct ToClient(pub(super) Edits);

/// Changes to headers, in order.
#[derive(Debug, Default)]
pub(super) struct Edits(Vec<Edit>);

#[derive(Debug)]
enum Edit {
    /// Instead of all lines of this name.
    Set(HeaderName, HeaderValue),
    /// One more line.
    Add(HeaderName, HeaderValue),
    /// At the end of the line that is there, after a comma.
    Append(HeaderName, HeaderValue),
    /// If there is none.
    SetIfAbsent(HeaderName, HeaderValue),
    /// If there is one.
    SetIfPresent(HeaderName, HeaderValue),
    Remove(HeaderName),
}

/// The target with these parameters set and those gone, whatever way they are written in; nothing if it can't be.
pub(super) fn with_query(target: &PathAndQuery, set: &[(String, String)], remove: &[String]) -> Option<PathAndQuery> {
    let replaced = |name: &str| remove.iter().any(|known| known == name) || set.iter().any(|(known, _)| known == name);
    let kept = target.query().unwrap_or_default().split('&').filter(|part| {
        let name = form_urlencoded::parse(part.as_bytes()).next().map(|(name, _)| name);
        !part.is_empty() && !name.is_some_and(|name| replaced(&name))
    });
    let mut query = kept.collect::<Vec<_>>().join("&");
    for (name, value) in set {
        if !query.is_empty() {
            query.push('&');
        }
        query.extend(form_urlencoded::byte_serialize(name.as_bytes()));
        query.push('=');
        query.extend(form_urlencoded::byte_serialize(value.as_bytes()));
    }
    let path = target.path();
    PathAndQuery::try_from(if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }).ok()
}

// === impl ToClient ===

impl ToClient {
    /// Makes the changes.
    pub(crate) fn apply(self, headers: &mut HeaderMap) {
        self.0.apply(headers);
    }

    pub(super) fn extend(&mut self, later: Self) {
        self.0.0.extend(later.0.0);
    }
}

// === impl Edits ===

impl Edits {
    pub(super) fn set(&mut self, name: HeaderName, value: HeaderValue) {
        self.0.push(Edit::Set(name, value));
    }

    pub(super) fn add(&mut self, name: HeaderName, value: HeaderValue) {
        self.0.push(Edit::Add(name, value));
    }

    pub(super) fn append(&mut self, name: HeaderName, value: HeaderValue) {
        self.0.push(Edit::Append(name, value));
    }

    pub(super) fn set_if_absent(&mut self, name: HeaderName, value: HeaderValue) {
        self.0.push(Edit::SetIfAbsent(name, value));
    }

    pub(super) fn set_if_present(&mut self, name: HeaderName, value: HeaderValue) {
        self.0.push(Edit::SetIfPresent(name, value));
    }

    pub(super) fn remove(&mut self, name: HeaderName) {
        self.0.push(Edit::Remove(name));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Makes the changes, in order.
    pub(super) fn apply(self, headers: &mut HeaderMap) {
        for edit in self.0 {
            match edit {
                Edit::Set(name, value) => {
                    headers.insert(name, value);
                }
                Edit::Add(name, value) => {
                    headers.append(name, value);
                }
                Edit::Append(name, value) => append(headers, name, value),
                Edit::SetIfAbsent(name, value) => {
                    headers.entry(name).or_insert(value);
                }
                Edit::SetIfPresent(name, value) => {
                    if headers.contains_key(&name) {
                        headers.insert(name, value);
                    }
                }
                Edit::Remove(name) => {
                    headers.remove(name);
                }
            }
        }
    }
}

fn append(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    let lines: Vec<_> = headers.get_all(&name).iter().chain([&value]).map(HeaderValue::as_bytes).collect();
    // Valid values with a comma in between are a valid value.
    let joined = HeaderValue::from_bytes(&lines.join(&b","[..])).unwrap_or(value);
    headers.insert(name, joined);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_made_in_order() {
        let name = HeaderName::from_static;
        let value = HeaderValue::from_static;
        let mut headers = HeaderMap::new();
        for (known, line) in [("a", "1"), ("a", "2"), ("gone", "x"), ("kept", "k")] {
            headers.append(name(known), value(line));
        }
        let mut edits = Edits::default();
        edits.append(name("a"), value("3"));
        edits.append(name("new"), value("n"));
        edits.remove(name("gone"));
        edits.set_if_absent(name("gone"), value("back"));
        edits.set_if_absent(name("kept"), value("other"));
        edits.set_if_present(name("kept"), value("changed"));
        edits.set_if_present(name("never"), value("x"));
        edits.set(name("b"), value("1"));
        edits.add(name("b"), value("2"));
        edits.apply(&mut headers);
        let lines =
            |wanted: &str| headers.get_all(wanted).iter().map(|v| v.to_str().expect("text")).collect::<Vec<_>>();
        assert_eq!(lines("a"), ["1,2,3"]);
        assert_eq!((lines("new"), lines("gone"), lines("kept")), (vec!["n"], vec!["back"], vec!["changed"]));
        assert_eq!((lines("never"), lines("b")), (vec![], vec!["1", "2"]));
    }

    #[test]
    fn query_parameters_are_set_and_removed_however_they_are_written() {
        let changed = |target: &str, set: &[(&str, &str)], remove: &[&str]| {
            let target = PathAndQuery::try_from(target).expect("a target");
            let set: Vec<_> = set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let remove: Vec<_> = remove.iter().map(|name| (*name).to_owned()).collect();
            with_query(&target, &set, &remove).expect("a target").to_string()
        };
        assert_eq!(changed("/a?x=1&y=2", &[], &["x"]), "/a?y=2");
        assert_eq!(changed("/a?t%6Fken=1&token=2&token&z", &[], &["token"]), "/a?z");
        assert_eq!(changed("/a?x=1", &[], &["x"]), "/a");
        assert_eq!(changed("/a", &[("u", "a b&c=d/é")], &[]), "/a?u=a+b%26c%3Dd%2F%C3%A9");
        assert_eq!(changed("/a?u=1&v=2&u=3", &[("u", "4")], &[]), "/a?v=2&u=4");
    }
}
