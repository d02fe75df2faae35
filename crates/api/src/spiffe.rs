//! Workload identity names: `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>` (`spec/ztunnel.md` 2.3).

use std::{fmt, str::FromStr, sync::Arc};

/// A workload identity that can't be malformed. Cheap to compare, hash and clone: every connection holds several, and a
/// clone shares what it is a clone of.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId(Arc<Parts>);

#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Parts {
    trust_domain: Box<str>,
    namespace: Box<str>,
    service_account: Box<str>,
}

/// Longest identity accepted, in bytes (the SPIFFE standard's own limit).
pub const MAX_SPIFFE_ID_BYTES: usize = 2048;

/// Why a text is not a workload identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a workload identity; expected `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`")]
pub struct ParseSpiffeIdError {
    text: String,
}

impl SpiffeId {
    /// Builds an identity from its parts.
    ///
    /// # Errors
    /// When a part is empty or holds a character that can't stand in an identity (`/`, `*`, whitespace, controls).
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, ParseSpiffeIdError> {
        let whole = trust_domain.len() + namespace.len() + service_account.len() + "spiffe:///ns//sa/".len();
        if whole <= MAX_SPIFFE_ID_BYTES && [trust_domain, namespace, service_account].into_iter().all(is_segment) {
            Ok(Self(Arc::new(Parts {
                trust_domain: trust_domain.into(),
                namespace: namespace.into(),
                service_account: service_account.into(),
            })))
        } else {
            let mut text = format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}");
            text.truncate(text.floor_char_boundary(256));
            Err(ParseSpiffeIdError { text })
        }
    }

    /// The trust domain, for example `cluster.local`.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.0.trust_domain
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// The service account.
    #[must_use]
    pub fn service_account(&self) -> &str {
        &self.0.service_account
    }

    /// The name as policies write it: without `spiffe://`.
    #[must_use]
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain(), self.namespace(), self.service_account())
    }
}

fn is_segment(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

// === impl SpiffeId ===

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain(), self.namespace(), self.service_account())
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SpiffeId {
    type Err = ParseSpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseSpiffeIdError { text: text[..text.floor_char_boundary(256)].to_owned() };
        let mut parts = text.strip_prefix("spiffe://").ok_or_else(error)?.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(trust_domain), Some("ns"), Some(namespace), Some("sa"), Some(service_account), None) => {
                Self::new(trust_domain, namespace, service_account)
            }
            _ => Err(error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_survives_parsing_and_printing() {
        let text = "spiffe://cluster.local/ns/kagenti-system/sa/otel-collector";
        let id: SpiffeId = text.parse().expect("valid");
        assert_eq!(
            (id.trust_domain(), id.namespace(), id.service_account()),
            ("cluster.local", "kagenti-system", "otel-collector")
        );
        assert_eq!(id.to_string(), text);
        assert_eq!(id.principal(), "cluster.local/ns/kagenti-system/sa/otel-collector");
    }

    #[test]
    fn other_shapes_are_refused() {
        for text in [
            "",
            "spiffe://",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/ns//sa/b",
            "spiffe://td/sa/b/ns/a",
            "td/ns/a/sa/b",
            "spiffe://td/ns/a b/sa/c",
            "spiffe://td/ns/*/sa/c",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }
}
