//! What all connections of one waypoint share.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use ambit_hbone::{Network, Pool};
use ambit_identity::CertificateStore;
use ambit_mesh::{Store, loads::Loads};
use ambit_telemetry::{Enforcer, Recorder};
use pin_project_lite::pin_project;
use tokio::sync::Semaphore;
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};

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
    pub(crate) refusals: Arc<Refusals>,
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

pin_project! {
    /// A task that ends with everything. An `async` block would hold the task three times: as what it captured, as the
    /// argument of what waits for it, and there again. For a connection that is tens of kilobytes.
    struct Stoppable<F> {
        #[pin]
        task: F,
        #[pin]
        stopped: WaitForCancellationFutureOwned,
    }
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
        self.tracker.spawn(Stoppable { task, stopped: self.stop.clone().cancelled_owned() });
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        self.tracker.spawn(Stoppable { task, stopped: self.stop.clone().cancelled_owned() });
    }
}

// === impl Stoppable ===

impl<F: Future> Future for Stoppable<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        // Everything ends.
        if this.stopped.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        this.task.poll(cx).map(drop)
    }
}
