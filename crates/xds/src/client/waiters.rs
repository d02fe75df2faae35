//! Callers that wait for a name asked for on demand.

use std::collections::HashMap;

use tokio::sync::oneshot;

use super::DemandError;
use crate::limits::{MAX_AWAITED, MAX_WAITERS_PER_NAME};

type Caller = oneshot::Sender<Result<(), DemandError>>;

/// Callers by type and name. Bounded in both ways.
#[derive(Debug, Default)]
pub(super) struct Waiters(HashMap<(String, String), Vec<Caller>>);

// === impl Waiters ===

impl Waiters {
    /// Has a caller wait with those who wait for the name already, or tells it that there are too many of them. Gives it
    /// back if nobody waits.
    pub(super) fn join(&mut self, type_url: &str, name: &str, caller: Caller) -> Option<Caller> {
        let key = (type_url.to_owned(), name.to_owned());
        let Some(callers) = self.0.get_mut(&key) else { return Some(caller) };
        callers.retain(|caller| !caller.is_closed());
        if callers.is_empty() {
            self.0.remove(&key);
            return Some(caller);
        }
        if callers.len() >= MAX_WAITERS_PER_NAME {
            // The caller may have given up meanwhile; then nobody needs the answer.
            let _ = caller.send(Err(DemandError::Full));
        } else {
            callers.push(caller);
        }
        None
    }

    /// True if one more name may be waited for.
    pub(super) fn has_room(&mut self) -> bool {
        if self.0.len() >= MAX_AWAITED {
            self.0.retain(|_, callers| callers.iter().any(|caller| !caller.is_closed()));
        }
        self.0.len() < MAX_AWAITED
    }

    /// Adds the first caller for a name.
    pub(super) fn add(&mut self, type_url: String, name: String, caller: Caller) {
        self.0.entry((type_url, name)).or_default().push(caller);
    }

    /// True if somebody waits for a name.
    pub(super) fn is_awaited(&self, type_url: &str, name: &str) -> bool {
        let callers = self.0.get(&(type_url.to_owned(), name.to_owned()));
        callers.into_iter().flatten().any(|caller| !caller.is_closed())
    }

    /// Tells those who wait for a name.
    pub(super) fn answer(&mut self, type_url: &str, name: &str, result: Result<(), DemandError>) {
        for caller in self.0.remove(&(type_url.to_owned(), name.to_owned())).into_iter().flatten() {
            let _ = caller.send(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Answer = oneshot::Receiver<Result<(), DemandError>>;

    /// Waits for a name as the client has it done.
    fn wait(waiters: &mut Waiters, name: &str) -> Answer {
        let (caller, answer) = oneshot::channel();
        if let Some(caller) = waiters.join("t", name, caller) {
            waiters.add("t".into(), name.into(), caller);
        }
        answer
    }

    #[tokio::test]
    async fn callers_are_bounded_and_those_who_left_make_room() {
        let mut waiters = Waiters::default();
        let mut waiting: Vec<_> = (0..MAX_WAITERS_PER_NAME).map(|_| wait(&mut waiters, "n")).collect();
        assert_eq!(wait(&mut waiters, "n").await, Ok(Err(DemandError::Full)));
        drop(waiting.pop());
        let fits = wait(&mut waiters, "n");
        waiters.answer("t", "other", Ok(()));
        waiters.answer("t", "n", Err(DemandError::Absent));
        assert_eq!(fits.await, Ok(Err(DemandError::Absent)));
        assert_eq!(waiting.remove(0).await, Ok(Err(DemandError::Absent)));
        assert!(waiters.0.is_empty());
    }

    #[test]
    fn names_are_bounded_and_those_nobody_waits_for_make_room() {
        let mut waiters = Waiters::default();
        let waiting: Vec<_> = (0..MAX_AWAITED).map(|name| wait(&mut waiters, &name.to_string())).collect();
        assert!(!waiters.has_room());
        assert!(waiters.is_awaited("t", "7"));
        drop(waiting);
        assert!(!waiters.is_awaited("t", "7"));
        assert!(waiters.has_room());
        assert!(waiters.0.is_empty());
    }
}
