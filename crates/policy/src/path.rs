//! The path of a request target and the ways in which servers read it (`spec/authorization.md` 2.12 row 7 and the
//! all-readings rule).

mod reading;

use std::fmt;

pub use self::reading::Reading;
pub(crate) use self::reading::each_reading;
use crate::limits::MAX_TARGET_BYTES;

/// How paths are read before they are compared with a policy's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathNormalization {
    /// Nobody has said how the application reads paths: a request is allowed only if it is under every reading.
    #[default]
    AllReadings,
    /// As sent.
    None,
    /// Escapes of unreserved characters decoded, `\` read as `/`, dot segments resolved (`..;x` is one).
    Base,
    /// As `Base`, then runs of `/` merged.
    MergeSlashes,
    /// `%2F` and `%5C` decoded first, then as `MergeSlashes`.
    DecodeAndMergeSlashes,
}

/// A request target, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    /// The authority of a target in absolute form, which overrides any `Host` (RFC 9112 3.2.2).
    pub(crate) authority: Option<&'a str>,
    /// As sent, without the query.
    pub(crate) path: &'a str,
    /// The query with its `?`, or nothing.
    pub(crate) query: &'a str,
    /// The path reads the same in every way, so that it can be compared as it stands.
    is_plain: bool,
}

/// Why a request target has no path that could be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    TooLong,
    Fragment,
    Nul,
    NoLeadingSlash,
}

/// The target that a proxy has to pass on so that the application sees the path that was judged: escapes of unreserved
/// characters decoded, `\` as `/`, dot segments resolved; the query stays as it is. Nothing if it is that already.
///
/// An application that resolves no dots would otherwise take `/admin/%2e%2e/v1/traces`, judged as `/v1/traces`, for
/// something below `/admin/`.
#[must_use]
pub fn normalized_target(target: &str) -> Option<String> {
    let target = split(target).ok().filter(|target| target.authority.is_none() && !target.is_plain)?;
    let judged =
        each_reading(&target, PathNormalization::Base, |_, path| Some(String::from_utf8_lossy(path).into_owned()))?;
    (judged != target.path).then(|| judged + target.query)
}

/// Whether servers may read a path otherwise than as it stands.
pub(crate) fn reads_in_several_ways(path: &str) -> bool {
    split(path).is_ok_and(|target| {
        each_reading(&target, PathNormalization::AllReadings, |_, read| (read != path.as_bytes()).then_some(()))
            .is_some()
    })
}

/// Takes a request target apart.
pub(crate) fn split(target: &str) -> Result<Target<'_>, Unreadable> {
    if target.len() > MAX_TARGET_BYTES {
        return Err(Unreadable::TooLong);
    }
    if !target.starts_with('/') {
        return split_absolute(target);
    }
    split_origin(None, target)
}

/// One pass over the path, since this is where an ordinary decision spends its time.
fn split_origin<'a>(authority: Option<&'a str>, origin: &'a str) -> Result<Target<'a>, Unreadable> {
    let bytes = origin.as_bytes();
    let (mut is_plain, mut end) = (true, bytes.len());
    for (at, &byte) in bytes.iter().enumerate() {
        match KINDS[usize::from(byte)] {
            Kind::Plain => {}
            Kind::Slash => is_plain &= !matches!(bytes.get(at + 1), Some(b'/')) && !is_dot_segment(bytes, at + 1),
            Kind::Query => {
                end = at;
                break;
            }
            Kind::Fragment => return Err(Unreadable::Fragment),
            Kind::Escape if bytes[at..].starts_with(b"%00") => return Err(Unreadable::Nul),
            Kind::Escape | Kind::Special => is_plain = false,
        }
    }
    let (path, query) = origin.split_at(end);
    if query.as_bytes().contains(&b'#') {
        return Err(Unreadable::Fragment);
    }
    Ok(Target { authority, path, query, is_plain })
}

/// What a byte of a path means for reading it.
#[derive(Clone, Copy)]
enum Kind {
    /// It stands for itself in every reading.
    Plain,
    Slash,
    /// The path ends before it.
    Query,
    Fragment,
    Escape,
    /// Readings differ, or it has to be escaped.
    Special,
}

const KINDS: [Kind; 256] = {
    let mut kinds = [Kind::Special; 256];
    let mut byte = b'!';
    while byte <= b'~' {
        kinds[byte as usize] = match byte {
            b'/' => Kind::Slash,
            b'?' => Kind::Query,
            b'#' => Kind::Fragment,
            b'%' => Kind::Escape,
            b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' | b';' | b'\\' => Kind::Special,
            _ => Kind::Plain,
        };
        byte += 1;
    }
    kinds
};

/// True if a segment `.` or `..` starts here.
fn is_dot_segment(path: &[u8], at: usize) -> bool {
    let ends = |at: usize| matches!(path.get(at), None | Some(b'/' | b'?' | b'#'));
    path.get(at) == Some(&b'.') && (ends(at + 1) || (path.get(at + 1) == Some(&b'.') && ends(at + 2)))
}

fn split_absolute(target: &str) -> Result<Target<'_>, Unreadable> {
    if target.contains('#') {
        return Err(Unreadable::Fragment);
    }
    let (scheme, rest) = target.split_once("://").ok_or(Unreadable::NoLeadingSlash)?;
    let end = rest.find(['/', '?', '\\']).unwrap_or(rest.len());
    let (authority, origin) = rest.split_at(end);
    let is_http = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    if !is_http || authority.is_empty() || origin.starts_with('\\') {
        return Err(Unreadable::NoLeadingSlash);
    }
    match origin.starts_with('/') {
        true => split_origin(Some(authority), origin),
        // No path is the root.
        false => Ok(Target { authority: Some(authority), path: "/", query: origin, is_plain: true }),
    }
}

// === impl Target ===

impl Target<'_> {
    /// True if the path, as sent, is what is judged.
    pub(crate) fn has_one_reading(&self, how: PathNormalization) -> bool {
        self.is_plain || how == PathNormalization::None
    }
}

// === impl Unreadable ===

impl Unreadable {
    pub(crate) const ALL: [Self; 4] = [Self::TooLong, Self::Fragment, Self::Nul, Self::NoLeadingSlash];
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "the request target is longer than {MAX_TARGET_BYTES} bytes"),
            Self::Fragment => f.write_str("the request target holds a fragment (`#`), which clients must not send"),
            Self::Nul => f.write_str("the path holds an escaped NUL (`%00`)"),
            Self::NoLeadingSlash => f.write_str("the path doesn't start with `/`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(target: &str, how: PathNormalization) -> Vec<String> {
        let mut paths = Vec::new();
        let each = |_: Option<Reading>, path: &[u8]| {
            let path = String::from_utf8(path.to_vec()).expect("escaped");
            if !paths.contains(&path) {
                paths.push(path);
            }
            None::<()>
        };
        assert!(each_reading(&split(target).expect("readable"), how, each).is_none());
        paths
    }

    #[test]
    fn what_is_passed_on_is_what_was_judged() {
        for (target, passed_on) in [
            ("/v1/traces?x=/../y", None),
            ("/a//b%2Fc;d=1", None),
            ("*", None),
            ("/admin/%2e%2e/v1/traces?q=%2e%2e/", Some("/v1/traces?q=%2e%2e/")),
            ("/a/../v1/./traces", Some("/v1/traces")),
            ("/v1\\traces", Some("/v1/traces")),
            ("/%761/traces", Some("/v1/traces")),
            ("/a/..", Some("/")),
            ("/../..", Some("/")),
        ] {
            let normalized = normalized_target(target);
            assert_eq!(normalized.as_deref(), passed_on, "{target}");
            let passed_on = normalized.as_deref().unwrap_or(target);
            assert_eq!(normalized_target(passed_on), None, "{target} twice");
            if target.starts_with('/') {
                let judged = &paths(target, PathNormalization::Base)[0];
                assert_eq!(passed_on.split('?').next(), Some(judged.as_str()), "{target}");
            }
        }
    }

    #[test]
    fn the_plain_reading() {
        for (target, path) in [
            ("/", "/"),
            ("/a/b?x=/../y", "/a/b"),
            ("/.well-known/x..y/...", "/.well-known/x..y/..."),
            ("/a/./b/../c/..", "/a/"),
            ("/../../a/.", "/a/"),
            ("/%61%2e%2E/%2e%2e/%7Eb", "/~b"),
            ("/a%20b%2fc", "/a%20b%2fc"),
            ("/a\\..\\b", "/b"),
            ("/a\"b<>^`{|}é", "/a%22b%3C%3E%5E%60%7B%7C%7D%C3%A9"),
            ("/a%zz%", "/a%zz%"),
            ("/%2%41", "/%252A"),
            ("/%%32e", "/%252e"),
            ("/%4%31%", "/%2541%"),
            ("/%%34%31", "/%2541"),
            ("/%%41b", "/%25Ab"),
            ("/%z%41", "/%zA"),
            ("/%%41", "/%A"),
            ("/%%%341", "/%%2541"),
            ("/a/..;/b", "/b"),
            ("/a/..;x=%2f/b", "/b"),
            ("/a/.;/b", "/a/b"),
            ("/a/b/..;", "/a/"),
            ("/a/..;x\\b", "/"),
            ("/a\\..;/b", "/a/..;/b"),
            ("/a/%2e%2e;/b", "/a/..;/b"),
            ("/a/...;/b", "/a/...;/b"),
            ("/a/b..;/c;d", "/a/b..;/c;d"),
            ("/api//v1/..", "/api//"),
            ("//..", "/"),
            ("http://web:80", "/"),
            ("HTTPS://web?x", "/"),
            ("http://web/a/../b", "/b"),
        ] {
            assert_eq!(paths(target, PathNormalization::Base), [path], "{target}");
        }
    }

    #[test]
    fn readings_that_merge_slashes() {
        for (target, merged, decoded) in [
            ("/", "/", "/"),
            ("//", "//", "//"),
            ("///", "//", "//"),
            ("/%2f", "/%2f", "//"),
            ("/..//..", "/", "/"),
            ("//a//b//", "/a/b/", "/a/b/"),
            ("/a%2F%5Cb", "/a%2F%5Cb", "/a/b"),
            ("/a%5c..;/b", "/a%5c..;/b", "/a/..;/b"),
            ("/a%2f..;/b", "/a%2f..;/b", "/b"),
            ("/a%252Fb", "/a%252Fb", "/a%252Fb"),
            ("/a%2%46b", "/a%252Fb", "/a%252Fb"),
        ] {
            assert_eq!(paths(target, PathNormalization::MergeSlashes), [merged], "{target}");
            assert_eq!(paths(target, PathNormalization::DecodeAndMergeSlashes), [decoded], "{target}");
        }
    }

    #[test]
    fn a_path_that_reads_one_way_is_not_copied() {
        for target in ["/v1/traces?x=1;y", "/a-b_c~d.e/.f/..g/h:i@j", "/[a]*(b)!$&',+="] {
            let sent = split(target).expect("readable");
            let at = each_reading(&sent, PathNormalization::AllReadings, |_, path| Some(path.as_ptr()));
            assert_eq!(at, Some(sent.path.as_ptr()), "{target}");
        }
        assert_eq!(paths("/a/../b", PathNormalization::AllReadings), ["/b"]);
    }

    #[test]
    fn the_other_readings() {
        let readings = |target| paths(target, PathNormalization::AllReadings);
        assert_eq!(readings("//a"), ["//a", "/a"]);
        assert_eq!(readings("/a//../b"), ["/a/b", "/b"]);
        assert_eq!(readings("/a%2Fb"), ["/a%2Fb", "/a/b"]);
        assert_eq!(readings("/a%5cb"), ["/a%5cb", "/a/b"]);
        assert_eq!(readings("/a;x/b;y"), ["/a;x/b;y", "/a/b"]);
        assert_eq!(readings("/a/..;/b"), ["/b", "/a/..;/b"]);
        assert_eq!(readings("/a/..;x\\b"), ["/", "/a/..;x/b", "/b"]);
        assert_eq!(readings("/a/..%2fb"), ["/a/..%2fb", "/b"]);
        assert_eq!(readings("/a;x%2Fb"), ["/a;x%2Fb", "/a", "/a;x/b", "/a/b"]);
        assert_eq!(readings("/a%252Fb%41"), ["/a%252FbA"], "nothing is decoded twice");
    }

    #[test]
    fn targets_without_a_path_to_judge() {
        let long = format!("/{}", "a".repeat(MAX_TARGET_BYTES));
        for (target, expected) in [
            ("", Unreadable::NoLeadingSlash),
            ("*", Unreadable::NoLeadingSlash),
            ("a/b", Unreadable::NoLeadingSlash),
            ("web:443", Unreadable::NoLeadingSlash),
            ("http:///a", Unreadable::NoLeadingSlash),
            ("http://web\\a", Unreadable::NoLeadingSlash),
            ("/a#b", Unreadable::Fragment),
            ("/a?b#c", Unreadable::Fragment),
            ("/a%00", Unreadable::Nul),
            (long.as_str(), Unreadable::TooLong),
        ] {
            assert_eq!(split(target), Err(expected), "{target:.20}");
        }
        assert!(split(&long[1..]).is_err() && split(&long[..MAX_TARGET_BYTES]).is_ok());
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config { cases: 8192, failure_persistence: None, ..Default::default() })]

        #[test]
        fn the_reference_reads_the_same(
            pieces in proptest::collection::vec(proptest::sample::select(PIECES), 0..10),
            how in proptest::sample::select(MODES),
        ) {
            let target = format!("/{}", pieces.concat());
            let ours = split(&target).ok().map(|_| paths(&target, how).into_iter().collect::<std::collections::BTreeSet<_>>());
            proptest::prop_assert_eq!(ours, crate::reference::readings(&target, how), "{}", target);
        }
    }

    const PIECES: &[&str] = &[
        "/", "/", "a", "b", "..", "..", ".", "%2e", "%2F", "%5c", "\\", ";", ";x", "%41", "%252F", "%", "%2", "é", "{",
        "?", "%00", "..;", ".;", "%4", "1", "%31",
    ];
    const MODES: &[PathNormalization] = &[
        PathNormalization::AllReadings,
        PathNormalization::None,
        PathNormalization::Base,
        PathNormalization::MergeSlashes,
        PathNormalization::DecodeAndMergeSlashes,
    ];
}
