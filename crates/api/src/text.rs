//! Users' text in messages, and the nearest of several known names.

use crate::limits::MAX_QUOTED_BYTES;

/// A user's value, fit to stand in a message: bounded, and without characters that a terminal would obey.
pub(crate) fn quoted(value: &str) -> String {
    let cut = value.floor_char_boundary(MAX_QUOTED_BYTES);
    let mut out: String = value[..cut].chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if cut < value.len() {
        out.push('…');
    }
    out
}

/// The candidate that `name` was probably meant to be.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = folded(name);
    let allowed = (wanted.len() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|candidate| (distance(&wanted, &folded(candidate)), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Letters and digits in lower case: `target_refs`, `targetrefs` and `targetRefs` are one.
fn folded(name: &str) -> Vec<char> {
    name.chars().filter(|c| c.is_alphanumeric()).take(MAX_QUOTED_BYTES).map(|c| c.to_ascii_lowercase()).collect()
}

/// Single-character edits (insert, remove, replace, swap with the neighbour) from one to the other.
fn distance(from: &[char], to: &[char]) -> usize {
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for i in 1..=from.len() {
        let mut row = vec![i];
        for j in 1..=to.len() {
            let replaced = last[j - 1] + usize::from(from[i - 1] != to[j - 1]);
            let mut least = replaced.min(row[j - 1] + 1).min(last[j] + 1);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                least = least.min(before_last[j - 2] + 1);
            }
            row.push(least);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested_and_a_far_one_is_not() {
        let known = ["principals", "notPrincipals", "namespaces"];
        assert_eq!(nearest("principal", known), Some("principals"));
        assert_eq!(nearest("not_principals", known), Some("notPrincipals"));
        assert_eq!(nearest("wehn", ["from", "to", "when"]), Some("when"));
        assert_eq!(nearest("hosts", known), None);
        assert_eq!(nearest("", known), None);
    }

    #[test]
    fn quoted_values_are_bounded_and_harmless() {
        assert_eq!(quoted("a\u{1b}[31mb"), "a\u{fffd}[31mb");
        assert!(quoted(&"é".repeat(1000)).len() <= MAX_QUOTED_BYTES + '…'.len_utf8());
    }
}
