//! What `request.headers[name]` sees (`spec/authorization.md` 2.12 rows 4, 5, 24).
//!
//! A name may come on several lines, and readers differ on what that says: Envoy looks at each line by itself, except
//! for names it keeps on one line, joined. A condition that allows reads the lines as Envoy does; one that denies takes
//! any reading.

use std::fmt;

use crate::{
    facts::HttpVersion,
    pattern::{Parts, StringPattern, StringSet},
    rule::Request,
};

/// The name in a `request.headers` key.
#[derive(Clone, Debug)]
pub(crate) struct HeaderName {
    written: Box<str>,
    pub(crate) source: HeaderSource,
}

/// Where the values come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HeaderSource {
    Authority,
    Method,
    /// With the query.
    Path,
    Scheme,
    /// Taken away before policies look.
    Hidden,
    /// Header lines of this name, in lower case.
    Lines {
        name: Box<str>,
        joined: Joined,
        unless_sent: Option<Unsent>,
    },
}

/// How Envoy keeps repeated lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// Line by line.
    Never,
    /// As one, with commas.
    Always,
    /// That depends on how it was built.
    Perhaps,
    /// Cookies: line by line in HTTP/1, as one with `; ` in HTTP/2.
    ByVersion,
}

/// What a proxy adds to a request without the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsent {
    /// A value that nobody knows before.
    Something,
    /// `http`.
    Http,
}

/// The scheme of every request that a proxy sees in the clear.
pub(crate) const SCHEME: &str = "http";

// === impl HeaderName ===

impl HeaderName {
    pub(crate) fn parse(written: &str) -> Result<Self, String> {
        let is_token = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
        };
        let name = written.to_ascii_lowercase();
        if !is_token(name.strip_prefix(':').unwrap_or(&name)) {
            return Err(format!("`{written}` isn't the name of a header; write `request.headers[x-team]`"));
        }
        let source = match name.as_str() {
            "host" | ":authority" => HeaderSource::Authority,
            ":method" => HeaderSource::Method,
            ":path" => HeaderSource::Path,
            ":scheme" => HeaderSource::Scheme,
            "x-forwarded-client-cert" | "x-envoy-internal" => HeaderSource::Hidden,
            _ => HeaderSource::Lines { joined: joined(&name), unless_sent: unsent(&name), name: name.into() },
        };
        Ok(Self { written: written.into(), source })
    }

    /// Whether a value of the header matches.
    pub(crate) fn matches(&self, any_of: &StringSet, request: &Request<'_>, leans_in: bool) -> bool {
        match &self.source {
            HeaderSource::Authority => any_of.matches(request.host.as_bytes()),
            HeaderSource::Method => any_of.matches(request.method.as_bytes()),
            HeaderSource::Scheme => any_of.matches(SCHEME.as_bytes()),
            HeaderSource::Path => {
                let parts = |each: &mut dyn FnMut(&[u8])| {
                    each(request.path);
                    each(request.query.as_bytes());
                };
                matches_parts(any_of, &parts)
            }
            HeaderSource::Hidden => false,
            HeaderSource::Lines { name, joined, unless_sent } => {
                let (mut lines, mut by_line) = (0, false);
                request.lines(name, &mut |line| {
                    lines += 1;
                    by_line = by_line || any_of.matches(line);
                });
                match (lines, unless_sent) {
                    (0, None) => false,
                    (0, Some(Unsent::Http)) => any_of.matches(SCHEME.as_bytes()),
                    (0, Some(Unsent::Something)) => any_of.patterns().contains(&StringPattern::Present),
                    (1, _) => by_line,
                    _ => joined.decides(by_line, leans_in, request.version, || {
                        matches_parts(any_of, &|each: &mut dyn FnMut(&[u8])| {
                            let separator = joined.separator();
                            let mut first = true;
                            request.lines(name, &mut |line| {
                                // Envoy leaves empty lines out.
                                if line.is_empty() {
                                    return;
                                }
                                if !first {
                                    each(separator);
                                }
                                first = false;
                                each(line);
                            });
                        })
                    }),
                }
            }
        }
    }
}

impl fmt::Display for HeaderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

fn matches_parts(any_of: &StringSet, parts: &Parts<'_>) -> bool {
    any_of.patterns().iter().any(|pattern| pattern.matches_parts(parts))
}

// === impl Joined ===

impl Joined {
    fn separator(self) -> &'static [u8] {
        if self == Self::ByVersion { b"; " } else { b"," }
    }

    /// Whether several lines match, given that one of them does or not.
    fn decides(self, by_line: bool, leans_in: bool, version: HttpVersion, as_one: impl FnOnce() -> bool) -> bool {
        match (self, version) {
            _ if leans_in => by_line || as_one(),
            (Self::Never, _) | (Self::ByVersion, HttpVersion::Http1) => by_line,
            (Self::Always, _) | (Self::ByVersion, HttpVersion::Http2) => as_one(),
            (Self::Perhaps, _) => by_line && as_one(),
        }
    }
}

fn unsent(name: &str) -> Option<Unsent> {
    match name {
        "x-request-id" => Some(Unsent::Something),
        "x-forwarded-proto" => Some(Unsent::Http),
        _ => None,
    }
}

/// How Envoy keeps repeated lines of this name.
pub(crate) fn joined(name: &str) -> Joined {
    match name {
        "cookie" => Joined::ByVersion,
        _ if ONE_LINE.contains(&name) => Joined::Always,
        _ if PERHAPS_ONE_LINE.contains(&name) => Joined::Perhaps,
        _ => Joined::Never,
    }
}

/// Names that Envoy keeps on one line in any build.
const ONE_LINE: [&str; 45] = [
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "expect",
    "grpc-timeout",
    "keep-alive",
    "proxy-connection",
    "proxy-status",
    "te",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
    "x-client-trace-id",
    "x-envoy-attempt-count",
    "x-envoy-decorator-operation",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-external-address",
    "x-envoy-force-trace",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-ip-tags",
    "x-envoy-is-timeout-retry",
    "x-envoy-max-retries",
    "x-envoy-original-host",
    "x-envoy-original-path",
    "x-envoy-original-url",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-stream-duration-ms",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-ot-span-context",
    "x-request-id",
];

/// Names that some extension of Envoy keeps on one line.
const PERHAPS_ONE_LINE: [&str; 14] = [
    "accept",
    "accept-encoding",
    "access-control-request-headers",
    "access-control-request-method",
    "cache-control",
    "content-encoding",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "origin",
    "pragma",
    "referer",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{HeaderLines, RequestFacts};

    fn holds(key: &str, value: &str, lines: &[(&str, &str)], leans_in: bool, version: HttpVersion) -> bool {
        let facts =
            RequestFacts::new("GET", "/a", "Web").with_version(version).with_headers(&lines as &dyn HeaderLines);
        let request = Request::new(&facts, &crate::path::split("/a?b").expect("a target"), b"/a");
        let set = StringSet::new(vec![StringPattern::parse(value).expect("a value")]);
        HeaderName::parse(key).expect("a name").matches(&set, &request, leans_in)
    }

    #[test]
    fn repeated_lines_are_read_as_envoy_does_or_in_any_way_that_denies() {
        let two = |name: &'static str| [(name, "a"), (name, "b")];
        for (name, value, http1, http2, leaning) in [
            ("x-team", "a", true, true, true),
            ("x-team", "b", true, true, true),
            ("x-team", "a,b", false, false, true),
            ("x-forwarded-for", "a", false, false, true),
            ("x-forwarded-for", "a,b", true, true, true),
            ("x-forwarded-for", "*,b", true, true, true),
            ("cookie", "a", true, false, true),
            ("cookie", "a; b", false, true, true),
            ("accept", "a", false, false, true),
            ("accept", "a*", true, true, true),
            ("accept", "c", false, false, false),
        ] {
            let lines = two(name);
            let is = [(HttpVersion::Http1, http1), (HttpVersion::Http2, http2)];
            for (version, expected) in is {
                assert_eq!(holds(name, value, &lines, false, version), expected, "{name} {value} {version:?}");
                assert_eq!(holds(name, value, &lines, true, version), leaning, "{name} {value} leaning");
            }
        }
        for (value, lines) in [("b", ["", "b"]), ("b", ["b", ""]), ("*", ["", ""])] {
            let lines = lines.map(|line| ("user-agent", line));
            assert!(holds("user-agent", value, &lines, false, HttpVersion::Http1), "{value} {lines:?}");
        }
        assert!(!holds("user-agent", ",b", &[("user-agent", ""), ("user-agent", "b")], true, HttpVersion::Http2));
        assert!(!holds("x-team", "a", &[("x-team", "a,b")], true, HttpVersion::Http1), "one line isn't split");
    }

    #[test]
    fn names_that_stand_for_something_else() {
        let sent = [("x-envoy-internal", "true"), ("X-Team", "")];
        let holds = |key: &str, value: &str| holds(key, value, &sent, false, HttpVersion::Http1);
        assert!(holds("Host", "Web") && holds(":authority", "W*") && !holds("host", "web"));
        assert!(holds(":method", "GET") && holds(":scheme", "http") && holds(":path", "/a?b") && !holds(":path", "/a"));
        assert!(!holds("x-envoy-internal", "*"), "never visible");
        assert!(holds("x-request-id", "*") && !holds("x-request-id", "a*"));
        assert!(holds("x-forwarded-proto", "http") && !holds("x-forwarded-proto", "https"));
        assert!(holds("x-team", "*") && !holds("x-other", "*"), "an empty value is a value");
        for bad in ["", ":", "a b", "a]", "ä"] {
            assert!(HeaderName::parse(bad).is_err(), "{bad}");
        }
    }
}
