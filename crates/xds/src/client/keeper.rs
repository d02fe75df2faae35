//! When the last good state is written. Never in the way of what comes: a policy must not wait for a disk.

use tokio::{
    task::{JoinError, JoinHandle},
    time::{Instant, sleep_until},
};

use super::{
    last_good::{self, LastGood, Restored, StateError},
    session::Received,
};
use crate::{
    DeltaResponse,
    limits::{MAX_MISSED_CHANGES, STATE_MAX_DELAY, STATE_QUIET},
};

/// The last good state, and whether the file is behind.
#[derive(Debug)]
pub(super) struct Keeper {
    /// Away while it is written.
    state: Option<LastGood>,
    writing: Option<JoinHandle<(LastGood, Result<(), StateError>)>>,
    /// What came while it was away.
    missed: Vec<DeltaResponse>,
    /// When the first and the last change came that the file doesn't have.
    changed: Option<(Instant, Instant)>,
}

/// What is to be done next.
#[derive(Debug)]
pub(super) enum Turn {
    /// The file must be written.
    Due,
    /// It was.
    Written(Result<(LastGood, Result<(), StateError>), JoinError>),
}

// === impl Keeper ===

impl Keeper {
    pub(super) fn new(state: LastGood) -> Self {
        Self { state: Some(state), writing: None, missed: Vec::new(), changed: None }
    }

    /// Reads what an earlier run kept; nothing if there is nothing to be used.
    pub(super) async fn load(&mut self) -> Option<Restored> {
        let mut state = self.state.take()?;
        let loaded = tokio::task::spawn_blocking(move || {
            let restored = state.load();
            (state, restored)
        });
        match loaded.await {
            Ok((state, restored)) => {
                self.state = Some(state);
                restored.unwrap_or_else(|error| {
                    tracing::error!(%error, "the kept state is passed over; starting without");
                    None
                })
            }
            Err(error) => {
                tracing::error!(%error, "the kept state couldn't be read; starting without, and keeping none");
                None
            }
        }
    }

    /// Takes in what was said. Waits only if much came during one write.
    pub(super) async fn note(&mut self, received: &Received) {
        let delta = &received.delta;
        if delta.resources.is_empty() && delta.removed.is_empty() {
            return;
        }
        if self.missed.len() >= MAX_MISSED_CHANGES
            && let Some(writing) = self.writing.take()
        {
            self.written(writing.await);
        }
        match (&mut self.state, &self.writing) {
            (Some(state), _) => state.note(delta, |name| received.is_held(name)),
            (None, Some(_)) => {
                let mut missed = delta.clone();
                missed.resources.retain(|resource| received.is_held(&resource.name));
                self.missed.push(missed);
            }
            // Nothing is kept any more.
            (None, None) => return,
        }
        let now = Instant::now();
        self.changed = Some((self.changed.map_or(now, |(first, _)| first), now));
    }

    /// Does what is to be done.
    pub(super) fn take(&mut self, turn: Turn) {
        match turn {
            Turn::Due => self.write(),
            Turn::Written(result) => {
                self.writing = None;
                self.written(result);
            }
        }
    }

    /// Writes what the file doesn't have yet, and waits for it.
    pub(super) async fn finish(&mut self) {
        if let Some(writing) = self.writing.take() {
            self.written(writing.await);
        }
        if self.changed.is_some() {
            self.write();
        }
        if let Some(writing) = self.writing.take() {
            self.written(writing.await);
        }
    }

    fn write(&mut self) {
        self.changed = None;
        let Some(state) = self.state.take() else { return };
        self.writing = Some(tokio::task::spawn_blocking(move || {
            let result = state.image().and_then(|(path, image)| last_good::write(&path, &image));
            (state, result)
        }));
    }

    fn written(&mut self, result: Result<(LastGood, Result<(), StateError>), JoinError>) {
        match result {
            Ok((mut state, result)) => {
                if let Err(error) = result {
                    tracing::error!(%error, "the last good state isn't kept");
                }
                self.missed.drain(..).for_each(|delta| state.note(&delta, |_| true));
                self.state = Some(state);
            }
            Err(error) => {
                tracing::error!(%error, "the last good state is no longer kept");
                self.missed.clear();
            }
        }
    }
}

/// Waits until there is something to be done; for ever if nothing will be. May be dropped at any time.
pub(super) async fn turn(keeper: Option<&mut Keeper>) -> Turn {
    let Some(keeper) = keeper else { return std::future::pending().await };
    if let Some(writing) = &mut keeper.writing {
        return Turn::Written(writing.await);
    }
    match keeper.changed {
        Some((first, last)) => sleep_until((last + STATE_QUIET).min(first + STATE_MAX_DELAY)).await,
        None => std::future::pending().await,
    }
    Turn::Due
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ADDRESS_TYPE,
        client::session::Session,
        discovery::{DeltaDiscoveryResponse, Node, Resource},
        workload::Any,
    };

    #[tokio::test]
    async fn what_comes_while_the_file_is_written_is_in_the_next_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = || LastGood::new(dir.path().join("state"), "scope".into(), [ADDRESS_TYPE.to_owned()]);
        let session = Session::new(Node::default(), [(ADDRESS_TYPE.to_owned(), false)]);
        let received = |name: &str| {
            let resource = Some(Any { type_url: ADDRESS_TYPE.into(), value: Vec::new() });
            let resource = Resource { name: name.into(), version: "1".into(), resource, aliases: Vec::new() };
            session.read(DeltaDiscoveryResponse {
                type_url: ADDRESS_TYPE.into(),
                resources: vec![resource],
                ..DeltaDiscoveryResponse::default()
            })
        };
        let mut keeper = Keeper::new(state());
        keeper.note(&received("a")).await;
        keeper.take(Turn::Due);
        assert!(keeper.state.is_none(), "it is being written");
        keeper.note(&received("b")).await;
        keeper.finish().await;
        let restored = state().load().expect("good").expect("there");
        let names: Vec<_> = restored.deltas[0].resources.iter().map(|resource| resource.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
    }
}
