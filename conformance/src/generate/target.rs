//! Request targets that say the same in another way, or nearly.

use super::pattern;
use crate::random::Random;

/// What goes up or stays, or looks like it.
const DOTS: &[&str] = &[
    "/%2e%2e",
    "/%2E",
    "/..%2f",
    "/.%2e",
    "//..",
    "/x//..",
    "/..;",
    "/x/..;",
    "/.;",
    "/..;x=1",
    "/x/%2e%2e;",
    "/..%3b",
    "/...",
    "/x\\..",
    "/x%2f..",
    "/x/..%5c",
];
/// What stands for itself, what doesn't, and what escapes nothing.
const ODD: &[&str] = &[
    "%20", "%zz", "%", "%2", "%C3%A9", "é", "|", "^", "[", "\"", "~", "*", "%7E", "%41", "%61", "+", "%2B", "%25",
    "%252F",
];

/// The target with one thing about its path moved.
pub fn moved(random: &mut Random, target: &str) -> String {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let path = moved_path(random, path);
    let path = if path.starts_with('/') { path } else { format!("/{path}") };
    match query {
        Some(query) if random.percent(80) => format!("{path}?{query}"),
        None if random.percent(8) => format!("{path}?q=/admin/../x"),
        _ => path,
    }
}

fn moved_path(random: &mut Random, path: &str) -> String {
    let slashes: Vec<_> = path.match_indices('/').map(|(at, _)| at).collect();
    let slash = slashes.get(random.below(slashes.len())).copied().unwrap_or(0);
    let (front, back) = path.split_at(slash.min(path.len()));
    let insert = |text: &str| format!("{front}{text}{back}");
    match random.below(20) {
        0 => format!("{path}/"),
        1 => path.strip_suffix('/').unwrap_or(path).to_owned(),
        2 => insert("/"),
        3 => insert("/."),
        4 => insert("/x/.."),
        5 => insert("/.."),
        6 => format!("{front}{}{}", random.word(&["%2F", "%2f", "%5C", "%5c", "\\"]), back.get(1..).unwrap_or("")),
        7 | 8 => insert(&random.word(DOTS)),
        9 => format!("{path};a=b"),
        10 => insert(";v"),
        11 | 12 => escaped(random, path),
        13 => format!("{front}{}{back}", random.word(ODD)),
        14 => path.to_ascii_uppercase(),
        15 => format!("{path}/{}", random.word(&["x", "admin", "..", ".", "42"])),
        16 => front.to_owned(),
        17 => random.word(super::words::PATHS),
        _ => pattern::near(random, path),
    }
}

/// One character written as an escape.
fn escaped(random: &mut Random, path: &str) -> String {
    let at = random.below(path.len().max(1));
    let Some((byte, true)) = path.as_bytes().get(at).map(|byte| (*byte, path.is_ascii())) else {
        return path.to_owned();
    };
    let escape = if random.percent(50) { format!("%{byte:02X}") } else { format!("%{byte:02x}") };
    format!("{}{escape}{}", &path[..at], &path[at + 1..])
}
