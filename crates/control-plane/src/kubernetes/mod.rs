//! The resource source for a Kubernetes API: watches every kind that the mesh is made of, and keeps what proxies are served in
//! step with it (`spec/control-plane.md` 4).
//!
//! Objects are reduced to what has a meaning as soon as they arrive, so what is held is the mesh and not the cluster. Nothing
//! is served before every kind has been listed once: a policy that hasn't been read yet would be one that doesn't hold. Later,
//! what can't be read or listed leaves what was read before in force.

mod actor;
mod convert;
mod directory;
mod kinds;
mod state;
mod watch;

#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use ambit_mesh::inputs;
use ambit_xds::server::Resources;
use kube::Client;
use tokio::{
    sync::{mpsc, watch as channel},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

pub use self::directory::Directory;
use self::{actor::Actor, kinds::Kind, state::State};
use crate::{
    authority::Leadership,
    conditions::{self, Write},
    keys::{self, OwnNetwork, Trust, Wanted, Ways},
    limits::{MAX_QUEUED_KEYS, MAX_QUEUED_OBJECTS},
};

/// What an operator says about the mesh.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Trust domain, root namespace and domain of service names.
    pub mesh: inputs::Settings,
    /// This cluster (`CLUSTER_ID`), the first part of workloads' keys.
    pub cluster_id: String,
}

/// What is kept in step with the API. Its tasks end with `stop`; see [`start`].
#[derive(Debug)]
pub struct Source {
    /// What proxies are served.
    pub resources: Arc<Resources>,
    /// The pods.
    pub directory: Arc<Directory>,
    /// The kinds that haven't been listed yet; none once there is something to serve.
    pub pending: channel::Receiver<Vec<&'static str>>,
    /// Tells objects what became of them, once it is known which replica writes.
    pub teller: Teller,
    /// Await it after `stop`.
    pub tasks: JoinSet<()>,
}

/// Tells objects what became of them: status conditions.
pub struct Teller {
    client: Client,
    differences: channel::Receiver<Arc<Vec<Write>>>,
    /// Whether conditions are wanted at all.
    writes: channel::Sender<bool>,
    stop: CancellationToken,
}

/// Starts to watch, until `stop`.
#[must_use]
pub fn start(client: &Client, settings: Settings, stop: &CancellationToken) -> Source {
    let (events, received) = mpsc::channel(MAX_QUEUED_OBJECTS);
    let mut tasks = JoinSet::new();
    for kind in Kind::ALL {
        tasks.spawn(watch::watch(client.clone(), *kind, settings.cluster_id.clone(), events.clone(), stop.clone()));
    }
    drop(events);
    let (wanted, wants) = channel::channel(Wanted::default());
    let (finds, found) = mpsc::channel(MAX_QUEUED_KEYS);
    let (asks, asked) = mpsc::channel(MAX_QUEUED_KEYS);
    let ways =
        Ways { outside: Arc::new(OwnNetwork), inside: Arc::new(actor::Endpoints(asks)), trust: Trust::default() };
    tasks.spawn(until(stop.clone(), keys::keep(ways, wants, finds)));
    let resources = Resources::new();
    let directory = Arc::new(Directory::default());
    let (lacking, pending) = channel::channel(Kind::ALL.iter().map(|kind| kind.name()).collect());
    let state = State::new(settings.mesh, Arc::clone(&directory));
    let (differing, differences) = channel::channel(Arc::default());
    let (writes, leads) = channel::channel(false);
    let actor = Actor {
        state,
        events: received,
        asked,
        found,
        wanted,
        resources: Arc::clone(&resources),
        lacking,
        differing,
        leads,
    };
    tasks.spawn(until(stop.clone(), actor.run()));
    let teller = Teller { client: client.clone(), differences, writes, stop: stop.clone() };
    Source { resources, directory, pending, teller, tasks }
}

// === impl Teller ===

impl Teller {
    /// Writes conditions while this replica leads, until the source ends.
    pub async fn run(self, leadership: Leadership) {
        let Self { client, differences, writes, stop } = self;
        let mut leads = leadership.changed();
        let follow = async {
            loop {
                writes.send_replace(*leads.borrow_and_update());
                if leads.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = conditions::keep(client, leadership, differences, stop) => {}
            () = follow => {}
        }
    }
}

impl fmt::Debug for Teller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Teller").field("differences", &self.differences.borrow().len()).finish_non_exhaustive()
    }
}

async fn until(stop: CancellationToken, task: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = task => {}
    }
}
