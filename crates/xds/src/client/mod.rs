//! The delta-ADS client (`spec/ztunnel.md` 9): one stream to the control plane, opened again for as long as it runs.
//!
//! Every response goes to [`crate::channel`], as in one process, and is answered by what became of it there. What is held
//! outlives streams, so a new one only brings what changed; and, if wanted, the process ([`Options::state_file`]).

mod backoff;
mod keeper;
mod last_good;
mod options;
mod run;
mod session;
mod stats;
mod waiters;

use tokio::sync::{mpsc, oneshot, watch};

/// What fuzzers look into.
pub(crate) mod fuzzing {
    pub(crate) use super::{
        last_good::fuzzing::kept_state,
        session::{Demand, Session},
    };
}

pub use options::{NodeIdentity, Options, OptionsError, Role, Watch};
pub use run::Client;
pub use stats::{Stats, Termination, TypeStats};

use crate::limits::DEMAND_TIMEOUT;

/// Asks a running client, and tells how it is doing.
#[derive(Clone, Debug)]
pub struct Handle {
    state: watch::Receiver<State>,
    demands: mpsc::Sender<DemandMessage>,
    stats: std::sync::Arc<Stats>,
}

/// How a client is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// A stream is open and has brought something.
    pub connected: bool,
    /// Every type that is watched as a whole has had a response that was applied whole.
    pub synced: bool,
    /// When the state that was found on disk and is in force was written. None if there was none.
    pub restored: Option<std::time::SystemTime>,
    /// Why the last stream or attempt ended. None while all is well.
    pub failure: Option<String>,
}

/// Why a name asked for on demand didn't come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DemandError {
    /// The control plane says that there is no such resource.
    #[error("the control plane has no such resource")]
    Absent,
    /// It has one that can't be read, so what that says isn't known.
    #[error("what the control plane has under this name can't be read")]
    Unreadable,
    /// It didn't answer in time.
    #[error("the control plane didn't answer within {DEMAND_TIMEOUT:?}")]
    Timeout,
    /// Too many names, or too many callers for one.
    #[error("too many names are asked for")]
    Full,
    /// The client watches this type as a whole, or not at all.
    #[error("the type isn't asked for on demand")]
    NotOnDemand,
    /// The client has ended.
    #[error("the discovery client has stopped")]
    Stopped,
}

/// A question to the running client.
#[derive(Debug)]
struct DemandMessage {
    type_url: String,
    name: String,
    /// Ask for it though it is known.
    again: bool,
    answer: oneshot::Sender<Result<(), DemandError>>,
}

// === impl Handle ===

impl Handle {
    /// How the client is doing now.
    #[must_use]
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Tells whenever [`Self::state`] changes.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// What happened so far, in numbers.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Waits for the first sync.
    ///
    /// # Errors
    /// When the client ended without one.
    pub async fn synced(&self) -> Result<(), DemandError> {
        self.wait(|state| state.synced).await
    }

    /// Waits until there is a state to serve by: a sync, or what was found on disk.
    ///
    /// # Errors
    /// When the client ended without one.
    pub async fn servable(&self) -> Result<(), DemandError> {
        self.wait(|state| state.synced || state.restored.is_some()).await
    }

    /// Subscribes to a resource and waits until it is in force. `name` is `network/ip`, `namespace/hostname` or a uid.
    ///
    /// # Errors
    /// When it doesn't exist, or isn't there after [`DEMAND_TIMEOUT`]; then it may still come.
    pub async fn demand(&self, type_url: &str, name: &str) -> Result<(), DemandError> {
        self.ask(type_url, name, false).await
    }

    /// The same, asking for what is held already too. For names that changed hands: an address of which the client knows
    /// whose it was, or a service of whose new endpoints it wasn't told.
    ///
    /// # Errors
    /// As [`Self::demand`].
    pub async fn refresh(&self, type_url: &str, name: &str) -> Result<(), DemandError> {
        self.ask(type_url, name, true).await
    }

    async fn ask(&self, type_url: &str, name: &str, again: bool) -> Result<(), DemandError> {
        let (answer, answered) = oneshot::channel();
        let message = DemandMessage { type_url: type_url.to_owned(), name: name.to_owned(), again, answer };
        let asked = async {
            self.demands.send(message).await.map_err(|_| DemandError::Stopped)?;
            answered.await.unwrap_or(Err(DemandError::Stopped))
        };
        tokio::time::timeout(DEMAND_TIMEOUT, asked).await.unwrap_or(Err(DemandError::Timeout))
    }

    async fn wait(&self, reached: impl FnMut(&State) -> bool) -> Result<(), DemandError> {
        self.state.clone().wait_for(reached).await.map(drop).map_err(|_| DemandError::Stopped)
    }
}
