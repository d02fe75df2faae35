//! From a text to the rules whose values take it.

use std::cmp::Ordering;

use super::hash::Table;

/// Rule numbers, ascending.
pub(crate) type Ids = Box<[u32]>;

/// Rules by exact text, prefix and suffix.
#[derive(Debug, Default)]
pub(crate) struct TextIndex {
    exact: Table<Box<str>, Ids>,
    prefixes: Chains,
    suffixes: Chains,
}

/// What a rule is filed under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Form {
    Exact,
    Prefix,
    Suffix,
}

/// Prefixes in order; each knows the longest other one that it starts with.
///
/// All prefixes of a text are then found from the last one that isn't after it: each is on the way up from there.
#[derive(Debug, Default)]
struct Chains {
    links: Box<[Link]>,
}

#[derive(Debug)]
struct Link {
    text: Box<[u8]>,
    parent: Option<u32>,
    ids: Ids,
}

// === impl TextIndex ===

impl TextIndex {
    /// Takes each text with the rules filed under it.
    pub(crate) fn new(filed: impl IntoIterator<Item = (Form, Box<str>, Vec<u32>)>) -> Self {
        let (mut exact, mut prefixes, mut suffixes) = (Table::default(), Vec::new(), Vec::new());
        for (form, text, ids) in filed {
            match form {
                Form::Exact => drop(exact.insert(text, ids.into())),
                Form::Prefix => prefixes.push((text.as_bytes().into(), ids)),
                Form::Suffix => suffixes.push((text.bytes().rev().collect(), ids)),
            }
        }
        Self { exact, prefixes: Chains::new(prefixes), suffixes: Chains::new(suffixes) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.prefixes.links.is_empty() && self.suffixes.links.is_empty()
    }

    /// The rules filed under this text, or a start or an end of it.
    pub(crate) fn visit(&self, text: &str, each: &mut dyn FnMut(&[u32])) {
        if let Some(ids) = self.exact.get(text) {
            each(ids);
        }
        self.visit_parts(text.as_bytes(), each);
    }

    /// The same for a text of bytes.
    pub(crate) fn visit_bytes(&self, text: &[u8], each: &mut dyn FnMut(&[u32])) {
        if !self.exact.is_empty()
            && let Ok(text) = str::from_utf8(text)
            && let Some(ids) = self.exact.get(text)
        {
            each(ids);
        }
        self.visit_parts(text, each);
    }

    fn visit_parts(&self, text: &[u8], each: &mut dyn FnMut(&[u32])) {
        self.prefixes.visit(|link| link.cmp(text), |link| text.starts_with(link), each);
        self.suffixes.visit(
            |link| link.iter().cmp(text.iter().rev()),
            |link| link.len() <= text.len() && link.iter().eq(text.iter().rev().take(link.len())),
            each,
        );
    }

    /// All rules.
    pub(crate) fn visit_all(&self, each: &mut dyn FnMut(&[u32])) {
        self.exact.values().for_each(|ids| each(ids));
        self.prefixes.links.iter().chain(&self.suffixes.links).for_each(|link| each(&link.ids));
    }
}

// === impl Chains ===

impl Chains {
    fn new(mut texts: Vec<(Box<[u8]>, Vec<u32>)>) -> Self {
        texts.sort_unstable();
        let mut links: Vec<Link> = Vec::with_capacity(texts.len());
        for (text, ids) in texts {
            let mut parent = links.len().checked_sub(1).and_then(|last| u32::try_from(last).ok());
            while let Some(link) = parent.and_then(|at| links.get(at as usize)) {
                if text.starts_with(&link.text) {
                    break;
                }
                parent = link.parent;
            }
            links.push(Link { text, parent, ids: ids.into() });
        }
        Self { links: links.into() }
    }

    fn visit(
        &self,
        compare: impl Fn(&[u8]) -> Ordering,
        is_start: impl Fn(&[u8]) -> bool,
        each: &mut dyn FnMut(&[u32]),
    ) {
        let after = self.links.partition_point(|link| compare(&link.text) != Ordering::Greater);
        let mut at = after.checked_sub(1).and_then(|at| self.links.get(at));
        while let Some(link) = at {
            if is_start(&link.text) {
                each(&link.ids);
            }
            at = link.parent.and_then(|parent| self.links.get(parent as usize));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn what_is_found_is_what_matches(
            values in proptest::collection::btree_set("[ab]{1,4}", 0..12),
            text in "[ab]{0,6}",
        ) {
            let forms = [Form::Exact, Form::Prefix, Form::Suffix];
            let filed = (0u32..).zip(values.iter().flat_map(|value| forms.map(|form| (form, value))));
            let index = TextIndex::new(filed.clone().map(|(id, (form, value))| (form, value.as_str().into(), vec![id])));
            let expected: Vec<u32> = filed.filter(|(_, (form, value))| match form {
                Form::Exact => text == **value,
                Form::Prefix => text.starts_with(value.as_str()),
                Form::Suffix => text.ends_with(value.as_str()),
            }).map(|(id, _)| id).collect();
            let mut found = Vec::new();
            index.visit(&text, &mut |ids| found.extend_from_slice(ids));
            found.sort_unstable();
            proptest::prop_assert_eq!(&found, &expected);
            let mut found = Vec::new();
            index.visit_bytes(text.as_bytes(), &mut |ids| found.extend_from_slice(ids));
            found.sort_unstable();
            proptest::prop_assert_eq!(found, expected);
        }
    }
}
