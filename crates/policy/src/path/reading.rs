//! The ways in which a path is read, each as a change of its bytes.

use std::fmt;

use super::{PathNormalization, Target};
use crate::buffer::Buffer;

/// One way to read a path, besides the plain one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
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

/// Calls back with the path under each of its readings, the plain one first, until an answer comes.
///
/// Allocates nothing for a path of up to [`crate::limits::INLINE_PATH_BYTES`] bytes, escaped.
pub(crate) fn each_reading<R>(
    target: &Target<'_>,
    how: PathNormalization,
    mut each: impl FnMut(Option<Reading>, &[u8]) -> Option<R>,
) -> Option<R> {
    if target.has_one_reading(how) {
        return each(None, target.path.as_bytes());
    }
    let first = as_envoy_does(target.path.as_bytes(), how);
    if let Some(answer) = each(None, first.as_slice()) {
        return Some(answer);
    }
    if how != PathNormalization::AllReadings {
        return None;
    }
    // A server reads the path as it was sent, or what a proxy in front of it has made of that by resolving dot segments:
    // `/a%2Fb/../..%2Fc` is `/a/c` to the one and `/c` to the other. To Envoy `..;x` is a dot segment, to others it isn't.
    let first = first.as_slice();
    let decoded = decode_unreserved(target.path.as_bytes());
    let resolved = Reading::BASE.apply(decoded.as_slice());
    let (decoded, resolved) = (decoded.as_slice(), resolved.as_slice());
    let starts = [
        Some(decoded),
        (resolved != decoded).then_some(resolved),
        (first != decoded && first != resolved).then_some(first),
    ];
    // Most readings come out as one of the last few; a repeated one is judged again and costs only time.
    let mut last = Buffer::new();
    let mut judge = |reading: Reading, path: Buffer| {
        if path.as_slice() == first || path.as_slice() == last.as_slice() {
            return None;
        }
        let answer = each(Some(reading), path.as_slice());
        last = path;
        answer
    };
    for from in starts.into_iter().flatten() {
        let may_differ = Differences::of(from);
        for reading in Reading::all().filter(|reading| may_differ.by(*reading)) {
            if let Some(answer) = judge(reading, reading.apply(from)) {
                return Some(answer);
            }
        }
    }
    // Envoy's own ways differ from these in corners, and nothing is allowed here that would not be in an explicit mode.
    [(false, PathNormalization::MergeSlashes), (true, PathNormalization::DecodeAndMergeSlashes)].into_iter().find_map(
        |(decode_slashes, how)| {
            let reading = Reading { decode_slashes, merge: Merge::AfterDots, ..Reading::BASE };
            judge(reading, as_envoy_does(target.path.as_bytes(), how))
        },
    )
}

/// The path under the one reading that a mode names, byte for byte as Envoy has it.
fn as_envoy_does(sent: &[u8], how: PathNormalization) -> Buffer {
    let decodes_slashes = how == PathNormalization::DecodeAndMergeSlashes;
    let mut sent = Buffer::from(sent);
    if decodes_slashes {
        sent.shorten(|path| decode_slashes(path, EscapedBackslash::Decoded));
    }
    sent.shorten(strip_dot_parameters);
    let mut path = decode_unreserved(sent.as_slice());
    path.shorten(resolve_dots);
    if decodes_slashes || how == PathNormalization::MergeSlashes {
        let had_slashes = path.as_slice().len();
        path.shorten(merge_slashes);
        // Of slashes and nothing else Envoy leaves two.
        if path.as_slice() == b"/" && had_slashes > 1 {
            path.push(b'/');
        }
    }
    path
}

/// What in a path can be read differently.
struct Differences {
    escaped_slash: bool,
    parameters: bool,
    /// Two slashes in a row, or what may become two.
    slashes: bool,
}

impl Differences {
    fn of(decoded: &[u8]) -> Self {
        let escaped_slash = (0..decoded.len()).any(|at| matches!(escaped_byte(decoded, at), Some(b'/' | b'\\')));
        let parameters = decoded.contains(&b';');
        let slashes = escaped_slash || parameters || decoded.windows(2).any(|two| two == b"//");
        Self { escaped_slash, parameters, slashes }
    }

    fn by(&self, reading: Reading) -> bool {
        (self.escaped_slash || !reading.decode_slashes)
            && (self.parameters || reading.parameters == Parameters::Keep)
            && (self.slashes || reading.merge == Merge::No)
    }
}

/// Characters that never stand for themselves in a path and so are written as escapes.
fn is_escaped(byte: u8) -> bool {
    !byte.is_ascii_graphic() || b"\"<>^`{|}".contains(&byte)
}

/// Decodes escapes of unreserved characters, escapes what must be, and reads `\` as `/`. Other escapes stay byte for byte,
/// and so does a `%` that escapes nothing, except where what is decoded after it would make a new escape of it: that `%`
/// is escaped. Nothing is decoded twice.
fn decode_unreserved(path: &[u8]) -> Buffer {
    let mut decoded = Buffer::new();
    let mut at = 0;
    while let Some((byte, length)) = unreserved_at(path, at) {
        match byte {
            b'%' if escaped_byte(path, at).is_none() && becomes_an_escape(path, at + 1) => {
                push_escape(&mut decoded, byte)
            }
            b'\\' => decoded.push(b'/'),
            _ if is_escaped(byte) => push_escape(&mut decoded, byte),
            _ => decoded.push(byte),
        }
        at += length;
    }
    decoded
}

/// The byte at this place, or the unreserved character that is escaped here, and how long it is.
fn unreserved_at(path: &[u8], at: usize) -> Option<(u8, usize)> {
    match escaped_byte(path, at) {
        Some(inner) if inner.is_ascii_alphanumeric() || b"-._~".contains(&inner) => Some((inner, ESCAPE_BYTES)),
        _ => Some((*path.get(at)?, 1)),
    }
}

/// Whether, decoded, two hexadecimal digits start here.
fn becomes_an_escape(path: &[u8], at: usize) -> bool {
    let digit = |at| unreserved_at(path, at).filter(|(byte, _)| byte.is_ascii_hexdigit());
    digit(at).is_some_and(|(_, length)| digit(at + length).is_some())
}

const ESCAPE_BYTES: usize = "%41".len();

/// The byte that the escape at this place stands for.
fn escaped_byte(path: &[u8], at: usize) -> Option<u8> {
    let [b'%', high, low] = path.get(at..at + ESCAPE_BYTES)? else { return None };
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(*high)? * 16 + digit(*low)?)
}

fn push_escape(text: &mut Buffer, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    [b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]].into_iter().for_each(|b| text.push(b));
}

// Each of these works in place, since none makes a path longer. They give the new length.

#[derive(Clone, Copy, PartialEq)]
enum EscapedBackslash {
    /// To a `\`, which is read as a `/` later on.
    Decoded,
    ToSlash,
}

fn decode_slashes(path: &mut [u8], backslash: EscapedBackslash) -> usize {
    let (mut read, mut written) = (0, 0);
    while read < path.len() {
        let slash = escaped_byte(path, read).filter(|inner| matches!(inner, b'/' | b'\\'));
        path[written] = match slash {
            Some(b'\\') if backslash == EscapedBackslash::ToSlash => b'/',
            Some(inner) => inner,
            None => path[read],
        };
        read += if slash.is_some() { ESCAPE_BYTES } else { 1 };
        written += 1;
    }
    written
}

/// Takes `;` and what follows it from segments that are `.` or `..` before it, as they were sent: `/a/..;x/b` is
/// `/a/../b`. In other segments it stays.
fn strip_dot_parameters(path: &mut [u8]) -> usize {
    // How many bytes of the segment came before this one, as long as all were dots; nothing once one wasn't.
    let mut dots = None;
    let mut inside = false;
    keep(path, |byte, _| {
        inside = byte != b'/' && (inside || (byte == b';' && matches!(dots, Some(1 | 2))));
        dots = match byte {
            b'/' => Some(0),
            b'.' => dots.map(|dots: usize| dots + 1),
            _ => None,
        };
        !inside
    })
}

fn strip_parameters(path: &mut [u8]) -> usize {
    let mut inside = false;
    keep(path, |byte, _| {
        inside = byte != b'/' && (inside || byte == b';');
        !inside
    })
}

fn merge_slashes(path: &mut [u8]) -> usize {
    keep(path, |byte, before| byte != b'/' || before != Some(b'/'))
}

/// Keeps some bytes; the question knows the byte and the one last kept.
fn keep(path: &mut [u8], mut keeps: impl FnMut(u8, Option<u8>) -> bool) -> usize {
    let mut written: usize = 0;
    for read in 0..path.len() {
        let before = written.checked_sub(1).map(|at| path[at]);
        if keeps(path[read], before) {
            path[written] = path[read];
            written += 1;
        }
    }
    written
}

/// Resolves `.` and `..` as RFC 3986 5.2.4 does: an empty segment is a segment, and `..` at the root goes nowhere.
fn resolve_dots(path: &mut [u8]) -> usize {
    let (mut read, mut written) = (0, 0);
    // INVARIANT: a `/` is at `read`, and `written` is not past it.
    while read < path.len() {
        let segment = read + 1;
        let end = path[segment..].iter().position(|&b| b == b'/').map_or(path.len(), |length| segment + length);
        match &path[segment..end] {
            dots @ (b"." | b"..") => {
                if dots.len() == 2 {
                    written = path[..written].iter().rposition(|&b| b == b'/').unwrap_or(0);
                }
                if end == path.len() {
                    path[written] = b'/';
                    written += 1;
                }
            }
            _ => {
                path.copy_within(read..end, written);
                written += end - read;
            }
        }
        read = end;
    }
    written
}

// === impl Reading ===

impl Reading {
    /// Dot segments resolved where they stand without parameters.
    const BASE: Self = Self { decode_slashes: false, parameters: Parameters::Keep, merge: Merge::No };

    /// Those that change least first.
    fn all() -> impl Iterator<Item = Self> {
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
    }

    fn apply(self, decoded: &[u8]) -> Buffer {
        let mut path = Buffer::from(decoded);
        if self.parameters == Parameters::StripFirst {
            path.shorten(strip_parameters);
        }
        if self.decode_slashes {
            path.shorten(|path| decode_slashes(path, EscapedBackslash::ToSlash));
        }
        if self.parameters == Parameters::StripAfterDecoding {
            path.shorten(strip_parameters);
        }
        if self.merge == Merge::BeforeDots {
            path.shorten(merge_slashes);
        }
        path.shorten(resolve_dots);
        if self.merge == Merge::AfterDots {
            path.shorten(merge_slashes);
        }
        path
    }
}

impl serde::Serialize for Reading {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::BASE {
            return f.write_str("path parameters kept");
        }
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
