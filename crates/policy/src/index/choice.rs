//! What each rule is filed under.

use super::{
    hash::Table,
    key::{Key, keys},
};
use crate::rule::{Clause, Group, Rule};

/// Rules with their keys.
#[derive(Debug, Default)]
pub(crate) struct Filed<'a> {
    /// Rules by key, ascending.
    pub(crate) by_key: Table<Key<'a>, Vec<u32>>,
    /// Rules without a key, ascending.
    pub(crate) always: Vec<u32>,
    /// Rules with at least one key that waits for the request, ascending.
    pub(crate) late: Vec<u32>,
}

/// Files these rules for connections and requests.
pub(crate) fn file<'a>(rules: &'a [Rule], ids: &[u32]) -> Filed<'a> {
    choose(rules, ids, |_| true)
}

/// Files these rules for connections that are judged without a request.
pub(crate) fn file_for_connections<'a>(rules: &'a [Rule], ids: &[u32]) -> Filed<'a> {
    choose(rules, ids, |key| !key.is_late())
}

/// How many groups and keys of one rule are compared. A rule with more is large whatever it is filed under.
const MAX_KEYS_COMPARED: usize = 4096;

fn choose<'a>(rules: &'a [Rule], ids: &[u32], usable: impl Fn(&Key<'a>) -> bool + Copy) -> Filed<'a> {
    let mut counts = Table::<Key<'a>, u32>::default();
    let tests = |rule: &'a Rule| rule.groups.iter().flat_map(|group| &group.clauses).flat_map(Clause::tests);
    for rule in ids.iter().filter_map(|&id| rules.get(id as usize)) {
        for key in tests(rule).filter_map(keys).flatten().filter(usable).take(MAX_KEYS_COMPARED) {
            *counts.entry(key).or_default() += 1;
        }
    }
    let mut filed = Filed::default();
    for (id, rule) in ids.iter().filter_map(|&id| Some((id, rules.get(id as usize)?))) {
        let groups = rule.groups.iter().filter_map(|group| keys_of(group, &counts, usable));
        let Some((_, mut chosen)) =
            groups.min_by_key(|(cost, keys)| (*cost, keys.iter().any(Key::is_late), keys.len()))
        else {
            filed.always.push(id);
            continue;
        };
        if chosen.iter().any(Key::is_late) {
            filed.late.push(id);
        }
        for key in chosen.drain(..) {
            let ids = filed.by_key.entry(key).or_default();
            if ids.last() != Some(&id) {
                ids.push(id);
            }
        }
    }
    filed
}

/// The keys that one of a group's clauses must have, and how many rules the most common of them finds.
fn keys_of<'a>(
    group: &'a Group,
    counts: &Table<Key<'a>, u32>,
    usable: impl Fn(&Key<'a>) -> bool + Copy,
) -> Option<(u32, Vec<Key<'a>>)> {
    let cost = |keys: &[Key<'a>]| {
        let cost = |key: &Key<'a>| counts.get(key).copied().unwrap_or(u32::MAX).saturating_mul(key.breadth());
        keys.iter().map(cost).max().unwrap_or(0)
    };
    let mut all = Vec::new();
    for clause in &group.clauses {
        let options = clause.tests().filter_map(keys).filter(|keys| keys.iter().all(usable));
        all.extend(options.min_by_key(|keys| (cost(keys), keys.iter().any(Key::is_late)))?);
    }
    Some((cost(&all), all))
}
