//! Callers that wait for a name asked for on demand.

use std::collections::HashMap;

use tokio::sync::oneshot;

use super::DemandError;
use crate::limits::{MAX_DEMANDED, MAX_WAITERS_PER_NAME};

type Caller = oneshot::Sender<Result<(), DemandError>>;

/// Callers by type and name. Bounded in both ways.
#[derive(Debug, Default)]
pub(super) struct Waiters(HashMap<(String, String), Vec<Caller>>);

// === impl Waiters ===

impl Waiters {
    /// Adds a caller, or tells it that there are too many.
    pub(super) fn add(&mut self, type_url: String, name: String, caller: Caller) {
        if self.0.len() >= MAX_DEMANDED {
            self.forget_gone();
        }
        let full = self.0.len() >= MAX_DEMANDED && !self.0.contains_key(&(type_url.clone(), name.clone()));
        if full {
            // The caller may have given up meanwhile; then nobody needs the answer.
            let _ = caller.send(Err(DemandError::Full));
            return;
        }
        let callers = self.0.entry((type_url, name)).or_default();
        callers.retain(|caller| !caller.is_closed());
        if callers.len() >= MAX_WAITERS_PER_NAME {
            let _ = caller.send(Err(DemandError::Full));
        } else {
            callers.push(caller);
        }
    }

    /// Tells those who wait for a name.
    pub(super) fn answer(&mut self, type_url: &str, name: &str, result: Result<(), DemandError>) {
        for caller in self.0.remove(&(type_url.to_owned(), name.to_owned())).into_iter().flatten() {
            let _ = caller.send(result);
        }
    }

    fn forget_gone(&mut self) {
        self.0.retain(|_, callers| callers.iter().any(|caller| !caller.is_closed()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn callers_are_bounded_and_those_who_left_make_room() {
        let mut waiters = Waiters::default();
        let add = |waiters: &mut Waiters| {
            let (caller, answer) = oneshot::channel();
            waiters.add("t".into(), "n".into(), caller);
            answer
        };
        let mut waiting: Vec<_> = (0..MAX_WAITERS_PER_NAME).map(|_| add(&mut waiters)).collect();
        assert_eq!(add(&mut waiters).await, Ok(Err(DemandError::Full)));
        drop(waiting.pop());
        let fits = add(&mut waiters);
        waiters.answer("t", "other", Ok(()));
        waiters.answer("t", "n", Err(DemandError::Absent));
        assert_eq!(fits.await, Ok(Err(DemandError::Absent)));
        assert_eq!(waiting.remove(0).await, Ok(Err(DemandError::Absent)));
        assert!(waiters.0.is_empty());
    }
}
