//! A hash map that is cheap to copy and then change: snapshots share all of it but the parts that were touched since.

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    sync::Arc,
};

/// Parts of a map. A change copies one of them.
const SHARDS: usize = 256;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Shards<K, V> {
    hasher: RandomState,
    parts: Box<[Arc<HashMap<K, V>>]>,
    len: usize,
}

// === impl Shards ===

impl<K: Hash + Eq + Clone, V: Clone> Shards<K, V> {
    pub(super) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.parts[self.part(key)].get(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let part = self.part(&key);
        let before = Arc::make_mut(&mut self.parts[part]).insert(key, value);
        self.len += usize::from(before.is_none());
        before
    }

    pub(super) fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let part = self.part(key);
        if !self.parts[part].contains_key(key) {
            return None;
        }
        self.len -= 1;
        Arc::make_mut(&mut self.parts[part]).remove(key)
    }

    /// The value under this key, put there first if there is none.
    pub(super) fn entry(&mut self, key: K, default: impl FnOnce() -> V) -> &mut V {
        let part = self.part(&key);
        self.len += usize::from(!self.parts[part].contains_key(&key));
        Arc::make_mut(&mut self.parts[part]).entry(key).or_insert_with(default)
    }

    /// Changes the value under this key in place, if there is one; `keep` says if it stays.
    pub(super) fn update<Q>(&mut self, key: &Q, keep: impl FnOnce(&mut V) -> bool)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let part = self.part(key);
        if !self.parts[part].contains_key(key) {
            return;
        }
        let map = Arc::make_mut(&mut self.parts[part]);
        if map.get_mut(key).is_some_and(|value| !keep(value)) {
            map.remove(key);
            self.len -= 1;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.parts.iter().flat_map(|part| part.values())
    }

    fn part<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        // INVARIANT: below the number of parts, which fits in a usize.
        (self.hasher.hash_one(key) % SHARDS as u64) as usize
    }
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        let empty = Arc::new(HashMap::new());
        Self { hasher: RandomState::new(), parts: std::iter::repeat_n(empty, SHARDS).collect(), len: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_what_it_had_and_shares_the_rest() {
        let mut first = Shards::default();
        for number in 0..1000 {
            assert_eq!(first.insert(number, number), None);
        }
        let mut second = first.clone();
        assert_eq!(second.insert(7, 70), Some(7));
        assert_eq!(second.remove(&8), Some(8));
        assert_eq!(second.remove(&8), None);
        second.update(&9, |value| {
            *value = 90;
            true
        });
        second.update(&10, |_| false);
        *second.entry(2000, || 1) += 1;
        assert_eq!([7, 8, 9, 10].map(|key| first.get(&key).copied()), [Some(7), Some(8), Some(9), Some(10)]);
        assert_eq!([7, 8, 9, 10, 2000].map(|key| second.get(&key).copied()), [Some(70), None, Some(90), None, Some(2)]);
        assert_eq!((first.values().count(), second.values().count()), (1000, 999));
        assert_eq!((first.len(), second.len()), (1000, 999));
        let shared = first.parts.iter().zip(&second.parts).filter(|(one, other)| Arc::ptr_eq(one, other)).count();
        assert!(shared >= SHARDS - 5, "{shared} of {SHARDS} parts are shared");
    }
}
