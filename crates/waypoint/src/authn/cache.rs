//! Tokens that were verified: one that comes again costs no signature check. What wasn't believed is never kept.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use ambit_policy::Claims;
use aws_lc_rs::digest::{SHA256, digest};

use super::token::Times;
use crate::limits::{CACHED_TOKEN_BYTES, CACHED_TOKENS, TOKEN_CACHE_PARTS};

/// The tokens of one waypoint's clients.
#[derive(Default)]
pub(crate) struct VerifiedTokens {
    parts: [Mutex<Part>; TOKEN_CACHE_PARTS],
}

/// A token, where it stood, and under which rules and keys it was verified.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct CacheKey {
    digest: [u8; 32],
    generation: u64,
    location: usize,
}

/// What a token said.
#[derive(Debug)]
pub(super) struct Verified {
    /// Index of the rule that believes it.
    pub(super) rule: usize,
    pub(super) claims: Arc<Claims>,
    pub(super) times: Times,
}

/// When the young ones are many, they become the old ones, and what was old and wasn't asked for since is forgotten.
#[derive(Default)]
struct Part {
    young: HashMap<CacheKey, Arc<Verified>>,
    old: HashMap<CacheKey, Arc<Verified>>,
    /// Size of the young tokens.
    bytes: usize,
}

// === impl CacheKey ===

impl CacheKey {
    /// The key of a token, in rules of this generation, found at this place.
    pub(super) fn new(token: &str, generation: u64, location: usize) -> Self {
        let mut key = Self { digest: [0; 32], generation, location };
        // INVARIANT: SHA-256 gives 32 bytes.
        key.digest.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        key
    }
}

// === impl VerifiedTokens ===

impl VerifiedTokens {
    /// What is known of a token. Whether it still holds is another matter.
    pub(super) fn get(&self, key: &CacheKey) -> Option<Arc<Verified>> {
        let mut part = self.part(key).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = part.young.get(key) {
            return Some(Arc::clone(known));
        }
        let known = part.old.remove(key)?;
        part.put(*key, &known, 0);
        Some(known)
    }

    /// Keeps what a token said.
    pub(super) fn put(&self, key: CacheKey, verified: &Arc<Verified>, bytes: usize) {
        self.part(&key).lock().unwrap_or_else(PoisonError::into_inner).put(key, verified, bytes);
    }

    fn part(&self, key: &CacheKey) -> &Mutex<Part> {
        &self.parts[usize::from(key.digest[0]) % TOKEN_CACHE_PARTS]
    }
}

impl fmt::Debug for VerifiedTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedTokens").finish_non_exhaustive()
    }
}

// === impl Part ===

impl Part {
    fn put(&mut self, key: CacheKey, verified: &Arc<Verified>, bytes: usize) {
        if self.young.len() >= CACHED_TOKENS / TOKEN_CACHE_PARTS / 2
            || self.bytes + bytes > CACHED_TOKEN_BYTES / TOKEN_CACHE_PARTS / 2
        {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        self.bytes += bytes;
        self.young.insert(key, Arc::clone(verified));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verified() -> Arc<Verified> {
        Arc::new(Verified { rule: 0, claims: Arc::default(), times: Times::default() })
    }

    #[test]
    fn a_token_is_known_only_where_it_stood_and_under_its_keys() {
        let tokens = VerifiedTokens::default();
        tokens.put(CacheKey::new("a", 1, 0), &verified(), 1);
        assert!(tokens.get(&CacheKey::new("a", 1, 0)).is_some());
        for other in [CacheKey::new("a", 2, 0), CacheKey::new("a", 1, 1), CacheKey::new("b", 1, 0)] {
            assert!(tokens.get(&other).is_none());
        }
    }

    #[test]
    fn there_are_never_more_tokens_than_the_limit_and_those_in_use_stay() {
        let tokens = VerifiedTokens::default();
        let used = CacheKey::new("used", 0, 0);
        tokens.put(used, &verified(), 1);
        for number in 0..4 * CACHED_TOKENS {
            tokens.put(CacheKey::new(&number.to_string(), 0, 0), &verified(), 1);
            assert!(tokens.get(&used).is_some(), "after {number} others");
        }
        let kept = |tokens: &VerifiedTokens| -> usize {
            tokens.parts.iter().map(|part| part.lock().expect("unpoisoned")).map(|p| p.young.len() + p.old.len()).sum()
        };
        assert!(kept(&tokens) <= CACHED_TOKENS, "{}", kept(&tokens));
        // Large ones push out others by their size.
        for number in 0..CACHED_TOKENS {
            tokens.put(CacheKey::new(&format!("large {number}"), 0, 0), &verified(), 16 * 1024);
        }
        assert!(kept(&tokens) <= 2 * CACHED_TOKEN_BYTES / (16 * 1024), "{}", kept(&tokens));
    }
}
