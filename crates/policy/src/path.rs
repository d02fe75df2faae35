//! The path of a request target and the ways in which servers read it (`spec/authorization.md` 2.12 row 7 and the
//! all-readings rule).

use std::{borrow::Cow, fmt};

use crate::limits::MAX_TARGET_BYTES;

/// How paths are read before they are compared with a policy's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathNormalization {
    /// Nobody has said how the application reads paths: a request is allowed only if it is under every reading.
    #[default]
    AllReadings,
    /// As sent.
    None,
    /// Escapes of unreserved characters decoded, `\` read as `/`, dot segments resolved.
    Base,
    /// As `Base`, then runs of `/` merged.
    MergeSlashes,
    /// `%2F` and `%5C` decoded first, then as `MergeSlashes`.
    DecodeAndMergeSlashes,
}

/// A path under each of its readings. The first is the plain one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Readings<'a> {
    /// The authority of a target in absolute form, which overrides any `Host` (RFC 9112 3.2.2).
    pub(crate) authority: Option<&'a str>,
    pub(crate) first: Cow<'a, str>,
    /// Those that differ from the first and from each other. Empty for nearly every request.
    pub(crate) others: Vec<(Reading, String)>,
}

/// Why a request target has no path that could be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    TooLong,
    Fragment,
    Nul,
    NoLeadingSlash,
}

/// One way to read a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    decode_slashes: bool,
    parameters: Parameters,
    merge: Merge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parameters {
    Keep,
    /// Before escaped slashes are decoded.
    StripFirst,
    /// After that.
    StripAfterDecoding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Merge {
    No,
    /// After dot segments are resolved: `/a//../b` is `/a/b`.
    AfterDots,
    /// Before that, as nginx does: `/a//../b` is `/b`.
    BeforeDots,
}

/// The target that a proxy has to pass on so that the application sees the path that was judged: escapes of unreserved
/// characters decoded, `\` as `/`, dot segments resolved; the query stays as it is. Nothing if it is that already.
///
/// An application that resolves no dots would otherwise take `/admin/%2e%2e/v1/traces`, judged as `/v1/traces`, for
/// something below `/admin/`.
#[must_use]
pub fn normalized_target(target: &str) -> Option<String> {
    let end = target.find('?').unwrap_or(target.len());
    let (path, query) = target.split_at(end);
    if !path.starts_with('/') || is_plain(path) {
        return None;
    }
    let mut normalized = Reading::BASE.apply(&decode_unreserved(path));
    (normalized != path).then(|| {
        normalized.push_str(query);
        normalized
    })
}

/// Reads the path of a request target.
pub(crate) fn read(target: &str, how: PathNormalization) -> Result<Readings<'_>, Unreadable> {
    let (authority, path) = split_target(target)?;
    if how == PathNormalization::None || is_plain(path) {
        return Ok(Readings { authority, first: Cow::Borrowed(path), others: Vec::new() });
    }
    let decoded = decode_unreserved(path);
    let first = match how {
        PathNormalization::MergeSlashes => Reading { merge: Merge::AfterDots, ..Reading::BASE },
        PathNormalization::DecodeAndMergeSlashes => {
            Reading { decode_slashes: true, merge: Merge::AfterDots, ..Reading::BASE }
        }
        _ => Reading::BASE,
    };
    let first = first.apply(&decoded);
    let mut others = Vec::new();
    if how == PathNormalization::AllReadings && has_readings(&decoded) {
        for reading in Reading::others() {
            let path = reading.apply(&decoded);
            if path != first && others.iter().all(|(_, known)| *known != path) {
                others.push((reading, path));
            }
        }
    }
    Ok(Readings { authority, first: Cow::Owned(first), others })
}

/// The authority of a target in absolute form, and the path without its query.
fn split_target(target: &str) -> Result<(Option<&str>, &str), Unreadable> {
    if target.len() > MAX_TARGET_BYTES {
        return Err(Unreadable::TooLong);
    }
    if target.contains('#') {
        return Err(Unreadable::Fragment);
    }
    let (authority, origin) = if target.starts_with('/') { (None, target) } else { split_authority(target)? };
    let path = origin.split_once('?').map_or(origin, |(path, _)| path);
    if path.contains("%00") { Err(Unreadable::Nul) } else { Ok((authority, path)) }
}

fn split_authority(target: &str) -> Result<(Option<&str>, &str), Unreadable> {
    let (scheme, rest) = target.split_once("://").ok_or(Unreadable::NoLeadingSlash)?;
    let end = rest.find(['/', '?', '\\']).unwrap_or(rest.len());
    let (authority, origin) = rest.split_at(end);
    let is_http = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    if !is_http || authority.is_empty() || origin.starts_with('\\') {
        return Err(Unreadable::NoLeadingSlash);
    }
    Ok((Some(authority), if origin.starts_with('/') { origin } else { "/" }))
}

/// True if the path reads the same in every way, so that it can be compared as it stands.
fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    let ends_segment = |at: usize| bytes.get(at).is_none_or(|&b| b == b'/');
    bytes.iter().enumerate().all(|(at, &byte)| match byte {
        b'/' => match bytes.get(at + 1) {
            Some(b'/') => false,
            Some(b'.') => !(ends_segment(at + 2) || (bytes.get(at + 2) == Some(&b'.') && ends_segment(at + 3))),
            _ => true,
        },
        b'%' | b';' | b'\\' => false,
        _ => !is_escaped(byte),
    })
}

/// True if readings of this path (its unreserved escapes decoded) can differ.
fn has_readings(decoded: &str) -> bool {
    decoded.contains("//") || decoded.contains(['%', ';'])
}

/// Characters that never stand for themselves in a path and so are written as escapes.
fn is_escaped(byte: u8) -> bool {
    !byte.is_ascii_graphic() || b"\"<>^`{|}".contains(&byte)
}

/// Decodes escapes of unreserved characters, escapes what must be (also a `%` that escapes nothing), and reads `\` as
/// `/`. Other escapes stay byte for byte, and no new one arises, so nothing is decoded twice.
fn decode_unreserved(path: &str) -> String {
    let mut decoded = String::with_capacity(path.len());
    let mut at = 0;
    for (index, byte) in path.bytes().enumerate() {
        if index < at {
            continue;
        }
        at = index + 1;
        match (byte, escaped_byte(path, index)) {
            (b'%', Some(inner)) if inner.is_ascii_alphanumeric() || b"-._~".contains(&inner) => {
                decoded.push(char::from(inner));
                at = index + ESCAPE_BYTES;
            }
            (b'%', None) => push_escape(&mut decoded, byte),
            (b'\\', _) => decoded.push('/'),
            _ if is_escaped(byte) => push_escape(&mut decoded, byte),
            _ => decoded.push(char::from(byte)),
        }
    }
    decoded
}

const ESCAPE_BYTES: usize = "%41".len();

/// The byte that the escape at this place stands for.
fn escaped_byte(path: &str, at: usize) -> Option<u8> {
    let digits = path.as_bytes().get(at + 1..at + ESCAPE_BYTES)?;
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(digits[0])? * 16 + digit(digits[1])?)
}

fn push_escape(text: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    text.extend(['%', char::from(DIGITS[usize::from(byte >> 4)]), char::from(DIGITS[usize::from(byte & 15)])]);
}

fn decode_slashes(path: &str) -> String {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        decoded.push_str(&rest[..at]);
        if let Some(b'/' | b'\\') = escaped_byte(rest, at) {
            decoded.push('/');
            rest = &rest[at + ESCAPE_BYTES..];
        } else {
            decoded.push('%');
            rest = &rest[at + 1..];
        }
    }
    decoded.push_str(rest);
    decoded
}

fn strip_parameters(path: &str) -> String {
    let mut stripped = String::with_capacity(path.len());
    let mut inside = false;
    for character in path.chars() {
        inside = character != '/' && (inside || character == ';');
        if !inside {
            stripped.push(character);
        }
    }
    stripped
}

fn merge_slashes(path: &str) -> String {
    let mut merged = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !merged.ends_with('/') {
            merged.push(character);
        }
    }
    merged
}

/// Resolves `.` and `..` as RFC 3986 5.2.4 does: an empty segment is a segment, and `..` at the root goes nowhere.
fn resolve_dots(path: &str) -> String {
    let mut resolved = String::with_capacity(path.len());
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    resolved.truncate(resolved.rfind('/').unwrap_or(0));
                }
                if is_last {
                    resolved.push('/');
                }
            }
            _ => {
                resolved.push('/');
                resolved.push_str(segment);
            }
        }
    }
    resolved
}

// === impl Reading ===

impl Reading {
    const BASE: Self = Self { decode_slashes: false, parameters: Parameters::Keep, merge: Merge::No };

    /// All but the plain one, those that change least first.
    fn others() -> impl Iterator<Item = Self> {
        [
            (false, Parameters::Keep),
            (false, Parameters::StripFirst),
            (true, Parameters::Keep),
            (true, Parameters::StripFirst),
            (true, Parameters::StripAfterDecoding),
        ]
        .into_iter()
        .flat_map(|(decode_slashes, parameters)| {
            [Merge::No, Merge::AfterDots, Merge::BeforeDots].map(|merge| Self { decode_slashes, parameters, merge })
        })
        .filter(|reading| *reading != Self::BASE)
    }

    fn apply(self, decoded: &str) -> String {
        let mut path = Cow::Borrowed(decoded);
        if self.parameters == Parameters::StripFirst {
            path = strip_parameters(&path).into();
        }
        if self.decode_slashes {
            path = decode_slashes(&path).into();
        }
        if self.parameters == Parameters::StripAfterDecoding {
            path = strip_parameters(&path).into();
        }
        match self.merge {
            Merge::No => resolve_dots(&path),
            Merge::AfterDots => merge_slashes(&resolve_dots(&path)),
            Merge::BeforeDots => resolve_dots(&merge_slashes(&path)),
        }
    }
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = "";
        for (applies, name) in [
            (self.decode_slashes, "escaped slashes decoded"),
            (self.parameters != Parameters::Keep, "path parameters stripped"),
            (self.merge != Merge::No, "slashes merged"),
        ] {
            if applies {
                write!(f, "{before}{name}")?;
                before = " and ";
            }
        }
        Ok(())
    }
}

// === impl Unreadable ===

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
        let Readings { first, others, .. } = read(target, how).expect("readable");
        [first.into_owned()].into_iter().chain(others.into_iter().map(|(_, path)| path)).collect()
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
            ("/a%zz%", "/a%25zz%25"),
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
    fn a_path_that_reads_one_way_is_not_copied() {
        for target in ["/v1/traces?x=1;y", "/a-b_c~d.e/.f/..g/h:i@j", "/[a]*(b)!$&',+="] {
            let readings = read(target, PathNormalization::AllReadings).expect("readable");
            assert!(matches!(readings.first, Cow::Borrowed(_)) && readings.others.is_empty(), "{target}");
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
        assert_eq!(readings("/a/..;/b"), ["/a/..;/b", "/b"]);
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
            assert_eq!(read(target, PathNormalization::AllReadings), Err(expected), "{target:.20}");
        }
        assert!(
            read(&long[1..], PathNormalization::None).is_err()
                && read(&long[..MAX_TARGET_BYTES], PathNormalization::None).is_ok()
        );
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config { cases: 8192, failure_persistence: None, ..Default::default() })]

        #[test]
        fn the_reference_reads_the_same(
            pieces in proptest::collection::vec(proptest::sample::select(PIECES), 0..10),
            how in proptest::sample::select(MODES),
        ) {
            let target = format!("/{}", pieces.concat());
            let ours = read(&target, how).ok().map(|readings| {
                let others = readings.others.into_iter().map(|(_, path)| path);
                others.chain([readings.first.into_owned()]).collect::<std::collections::BTreeSet<_>>()
            });
            proptest::prop_assert_eq!(ours, crate::reference::readings(&target, how), "{}", target);
        }
    }

    const PIECES: &[&str] = &[
        "/", "/", "a", "b", "..", "..", ".", "%2e", "%2F", "%5c", "\\", ";", ";x", "%41", "%252F", "%", "%2", "é", "{",
        "?", "%00",
    ];
    const MODES: &[PathNormalization] = &[
        PathNormalization::AllReadings,
        PathNormalization::None,
        PathNormalization::Base,
        PathNormalization::MergeSlashes,
        PathNormalization::DecodeAndMergeSlashes,
    ];
}
