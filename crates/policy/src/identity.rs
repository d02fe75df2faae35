//! Values that name workloads and token holders, parsed into matchers that can't be wrong.

use std::fmt;

use ambit_api::SpiffeId;

use crate::{limits::MAX_SERVICE_ACCOUNT_BYTES, pattern::StringPattern};

/// A value of `namespaces`: each `*` stands for any text, also in the middle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamespacePattern {
    text: Box<str>,
}

/// A value of `serviceAccounts`, its namespace filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceAccount {
    namespace: Box<str>,
    name: Box<str>,
}

/// A value of `requestPrincipals`: what `iss` and `sub` of a token must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestPrincipal {
    written: Box<str>,
    issuer: StringPattern,
    subject: StringPattern,
}

// === impl NamespacePattern ===

impl NamespacePattern {
    pub(crate) fn parse(value: &str) -> Result<Self, String> {
        match value {
            "" => Err("is empty; remove it or write a namespace".to_owned()),
            _ if value.contains('/') => Err(format!("`{value}` holds a `/`; write the namespace alone")),
            _ => Ok(Self { text: value.into() }),
        }
    }

    /// As an Istio waypoint matches: after any `/ns/` and up to any `/`, which a `*` takes too. Only for what denies.
    pub(crate) fn matches_loosely(&self, principal: &str) -> bool {
        let after_ns = |(at, _): (usize, &str)| principal[at..].strip_prefix("/ns/");
        principal.match_indices('/').filter_map(after_ns).any(|rest| {
            let ends = rest.match_indices('/').map(|(end, _)| &rest[..end]);
            ends.into_iter().any(|namespace| self.matches(namespace))
        })
    }

    pub(crate) fn exact(&self) -> Option<&str> {
        (!self.text.contains('*')).then_some(&self.text)
    }

    /// What stands before the first `*`.
    pub(crate) fn prefix(&self) -> &str {
        self.text.split('*').next().unwrap_or_default()
    }

    /// The pieces between `*` in order: the first at the start, the last at the end, the others wherever they come
    /// first. Taking the first place is enough, since only the last piece is bound to a place.
    pub(crate) fn matches(&self, namespace: &str) -> bool {
        let Some((head, rest)) = self.text.split_once('*') else { return *self.text == *namespace };
        let Some(mut namespace) = namespace.strip_prefix(head) else { return false };
        let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
        for piece in middle.split('*') {
            let Some(at) = namespace.find(piece) else { return false };
            namespace = &namespace[at + piece.len()..];
        }
        namespace.ends_with(tail)
    }
}

impl fmt::Display for NamespacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

// === impl ServiceAccount ===

impl ServiceAccount {
    /// `account` is one in the policy's own namespace, `namespace/account` one in another.
    pub(crate) fn parse(value: &str, policy_namespace: &str) -> Result<Self, String> {
        let (namespace, name) = value.split_once('/').unwrap_or((policy_namespace, value));
        if value.len() > MAX_SERVICE_ACCOUNT_BYTES {
            Err(format!("is longer than {MAX_SERVICE_ACCOUNT_BYTES} bytes"))
        } else if value.contains('*') {
            Err(format!("`{value}` holds a `*`; service accounts are named in full"))
        } else if namespace.is_empty() || name.is_empty() || name.contains('/') {
            Err(format!("`{value}` isn't `account` or `namespace/account`"))
        } else {
            Ok(Self { namespace: namespace.into(), name: name.into() })
        }
    }

    pub(crate) fn matches(&self, peer: &SpiffeId) -> bool {
        *self.namespace == *peer.namespace() && *self.name == *peer.service_account()
    }
}

impl ServiceAccount {
    /// As an Istio waypoint matches: with other elements before, between namespace and account, and after the account.
    /// Only for what denies.
    pub(crate) fn matches_loosely(&self, principal: &str) -> bool {
        let named = |text: &str, kind: &str, name: &str| {
            let marker = [kind, name].concat();
            text.match_indices(&*marker).map(|(at, _)| (at, at + marker.len())).collect::<Vec<_>>()
        };
        named(principal, "/ns/", &self.namespace).into_iter().filter(|(at, _)| *at > 0).any(|(_, end)| {
            let rest = &principal[end..];
            named(rest, "/sa/", &self.name).into_iter().any(|(at, end)| {
                let (between, after) = (&rest[..at], &rest[end..]);
                (between.is_empty() || (between.len() > 1 && between.starts_with('/')))
                    && (after.is_empty() || (after.len() > 1 && after.starts_with('/')))
            })
        })
    }

    /// As it stands in a principal.
    pub(crate) fn in_principal(&self) -> String {
        format!("{}/sa/{}", self.namespace, self.name)
    }
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

// === impl RequestPrincipal ===

impl RequestPrincipal {
    /// Issuers are URLs, so the last `/` is what parts issuer and subject. A star at one end of the whole value leaves
    /// the other half to be matched as it stands.
    pub(crate) fn parse(value: &str) -> Result<Self, String> {
        let exact = |text: &str| StringPattern::Exact(text.into());
        let (issuer, subject) = match value.rsplit_once('/') {
            _ if value.is_empty() => return Err("is empty; remove it or write a value".to_owned()),
            None if value == "*" => (StringPattern::Present, StringPattern::Present),
            None if value.starts_with('*') => (StringPattern::Present, StringPattern::Suffix(value[1..].into())),
            None if value.ends_with('*') => {
                (StringPattern::Prefix(value[..value.len() - 1].into()), StringPattern::Present)
            }
            None => (exact(value), exact("")),
            Some(("*", subject)) => (StringPattern::Present, exact(subject)),
            Some((issuer, subject)) => match (issuer.strip_prefix('*'), subject.strip_suffix('*')) {
                (Some(suffix), _) => (StringPattern::Suffix(suffix.into()), exact(subject)),
                (None, Some("")) => (exact(issuer), StringPattern::Present),
                (None, Some(prefix)) => (exact(issuer), StringPattern::Prefix(prefix.into())),
                (None, None) => (exact(issuer), exact(subject)),
            },
        };
        Ok(Self { written: value.into(), issuer, subject })
    }

    pub(crate) fn matches(&self, issuer: &str, subject: &str) -> bool {
        let half = |pattern: &StringPattern, text: &str| {
            pattern.matches(text.as_bytes()) && !(*pattern == StringPattern::Present && text.is_empty())
        };
        half(&self.issuer, issuer) && half(&self.subject, subject)
    }

    /// The subject, if there is only one.
    pub(crate) fn exact_subject(&self) -> Option<&str> {
        self.subject.exact()
    }
}

impl fmt::Display for RequestPrincipal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

impl fmt::Display for StringPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(value) => f.write_str(value),
            Self::Prefix(value) => write!(f, "{value}*"),
            Self::Suffix(value) => write!(f, "*{value}"),
            Self::Present => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_take_stars_anywhere() {
        for (pattern, yes, no) in [
            ("team-a", "team-a", "team-ax"),
            ("team-*", "team-", "xteam-a"),
            ("*-a", "-a", "team-ab"),
            ("te*-a", "te-a", "te-b"),
            ("a*b*c", "abc", "acb"),
            ("a*b*b", "a-b-b", "ab"),
            ("*x*", "axb", "ab"),
            ("a*a", "aa", "a"),
        ] {
            let pattern = NamespacePattern::parse(pattern).expect("valid");
            assert!(pattern.matches(yes), "{pattern} {yes}");
            assert!(!pattern.matches(no), "{pattern} {no}");
        }
    }

    #[test]
    fn accounts_that_cannot_be_used_are_refused() {
        for bad in ["", "*", "a/b/c", "/a", "a/", "team-*/a"] {
            assert!(ServiceAccount::parse(bad, "default").is_err(), "{bad}");
        }
        assert_eq!(ServiceAccount::parse("api", "default"), ServiceAccount::parse("default/api", "other"));
    }

    #[test]
    fn loose_matches_find_what_a_search_finds() {
        let namespace = |value: &str, id: &str| NamespacePattern::parse(value).expect("valid").matches_loosely(id);
        for (value, id, expected) in [
            ("a", "td/ns/a/sa/x", true),
            ("a", "td/x/ns/a/y", true),
            ("a", "td/ns/a", false),
            ("a", "td/ns/b/ns/a/", true),
            ("sa", "td/ns/ns/sa/x", true),
            ("*sa", "td/ns/b/sa/x", true),
            ("a", "td/ns/ab/sa/x", false),
        ] {
            assert_eq!(namespace(value, id), expected, "{value} {id}");
        }
        let account = |id: &str| ServiceAccount::parse("a/x", "n").expect("valid").matches_loosely(id);
        for id in ["td/ns/a/sa/x", "td/ns/a/pod/p/sa/x", "td/ns/a/sa/x/more", "td/z/ns/a/sa/x", "td/ns/a/sa/y/sa/x"] {
            assert!(account(id), "{id}");
        }
        for id in ["/ns/a/sa/x", "td/ns/a/sa/x/", "td/ns/a//sa/x", "td/ns/b/sa/x", "td/ns/a/sa/xy", "td/ns/ab/sa/x"] {
            assert!(!account(id), "{id}");
        }
    }
}
