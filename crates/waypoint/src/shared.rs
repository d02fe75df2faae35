//! What all connections of one waypoint share.

use std::{fmt, future::Future, sync::Arc};

use ambit_hbone::{Network, Pool};
use ambit_identity::CertificateStore;
use ambit_mesh::{Store, loads::Loads};
use ambit_telemetry::{Enforcer, Recorder};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Config,
    authn::VerifiedTokens,
    custom::Clients,
    destination::Clusters,
    operators::{Operators, Spans},
    random::Random,
    refusals::Refusals,
    route::Budgets,
};

/// One waypoint's state.
pub(crate) struct Shared {
    pub(crate) config: Config,
    /// `namespace/name` of the Gateway.
    pub(crate) name: Arc<str>,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) store: Arc<Store>,
    pub(crate) certificates: Arc<CertificateStore>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) recorder: Recorder,
    pub(crate) operators: Arc<Operators>,
    pub(crate) spans: Arc<Spans>,
    pub(crate) loads: Arc<Loads>,
    pub(crate) random: Random,
    pub(crate) refusals: Refusals,
    pub(crate) authorizers: Clients,
    pub(crate) verified_tokens: VerifiedTokens,
    /// What retries cost, per service.
    pub(crate) budgets: Budgets,
    /// What goes on at endpoints that are treated by a rule.
    pub(crate) clusters: Clusters,
    /// Copies of requests on their way.
    pub(crate) mirrors: Arc<Semaphore>,
    /// Requests that wait because of a fault.
    pub(crate) delayed: Semaphore,
    pub(crate) connections: Arc<Semaphore>,
    pub(crate) tunnels: Arc<Semaphore>,
    /// Nothing new; what is in flight may end.
    pub(crate) drain: CancellationToken,
    /// Half of the drain's time is over: what still waits for a request ends.
    pub(crate) close_idle: CancellationToken,
    pub(crate) tasks: Tasks,
}

/// Runs the waypoint's tasks so that all of them can be ended and waited for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    pub(crate) tracker: TaskTracker,
    /// Everything ends now.
    pub(crate) stop: CancellationToken,
}

// === impl Shared ===

impl Shared {
    /// This waypoint as the one who decided.
    pub(crate) fn enforcer(&self) -> Enforcer {
        Enforcer::Waypoint { name: Arc::clone(&self.name) }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("name", &self.name).finish_non_exhaustive()
    }
}

// === impl Tasks ===

impl Tasks {
    /// Runs it until it ends or everything does.
    pub(crate) fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            // None means that everything ends.
            let _ = stop.run_until_cancelled(task).await;
        });
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            let _ = stop.run_until_cancelled(task).await;
        });
    }
}
