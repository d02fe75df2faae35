//! What the connections of one workload share, beyond the limits of each: places, memory, and turns at the processor.
//! Whoever owns the workload makes the bounds and hands them in with [`Limits`](crate::Limits); by default there are none.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
};

use crate::limits::{QUANTUM_BYTES, TUNNEL_BYTES};

/// An amount that many take of: a workload's share, or the whole that shares are of. Taking is a few atomic operations.
#[derive(Debug)]
pub struct Bound {
    limit: usize,
    used: AtomicUsize,
    /// What was refused because this was used up.
    refused: AtomicU64,
    /// What was refused because a share of this was used up.
    refused_by_shares: AtomicU64,
    whole: Option<Arc<Bound>>,
}

/// An amount taken, until dropped.
#[derive(Debug)]
pub struct Permit {
    bound: Arc<Bound>,
    amount: usize,
}

/// What is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The workload's own share.
    Share,
    /// What all workloads have together.
    Whole,
}

/// What there is too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Connections and streams that are open.
    Connections,
    /// Inbound TLS handshakes under way.
    Handshakes,
    /// Outbound tunnels that are being made.
    Tunnels,
    /// Memory for what nobody has read yet.
    Memory,
    /// DNS queries that others have to answer.
    DnsQueries,
}

/// A refusal, for the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("the {} is at its limit of {}", match .scope { Scope::Share => "workload", Scope::Whole => "node proxy" }, .resource.as_str())]
pub struct OverBudget {
    /// Of what.
    pub resource: Resource,
    /// Whose.
    pub scope: Scope,
}

/// What the connections of one workload share. The default bounds nothing.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    /// Places for the connections of a [`Pool`](crate::Pool), each of which takes one for as long as it lives.
    pub connections: Option<Arc<Bound>>,
    /// Places for those of them that are being made.
    pub tunnels: Option<Arc<Bound>>,
    /// Bytes that connections hold because somebody doesn't read. Past the bound the connections take in and hold back
    /// only the little that keeps them going.
    pub memory: Option<Arc<Bound>>,
    /// Where the handshakes of connections are computed.
    pub turns: Turns,
}

/// What one connection has taken of a [`Budget`], for as long as it lives.
#[derive(Debug)]
pub(crate) struct Places {
    _connection: Option<Permit>,
    _memory: Option<Permit>,
}

/// Where TLS handshakes are computed: they keep a thread busy for long, so they are best done on threads that carry no
/// traffic, and a workload that many connect to must not make others wait there.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    place: Option<Place>,
}

#[derive(Clone, Debug)]
struct Place {
    runtimes: Arc<[Handle]>,
    /// Whose turn it is among them.
    next: Arc<AtomicUsize>,
    turns: Arc<Semaphore>,
}

/// The runtime for handshakes has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the proxy is shutting down")]
pub(crate) struct Ended;

/// Bytes held, as far as they are known to a [`Bound`]: in whole quanta, so that small messages cost nothing.
#[derive(Debug, Default)]
pub struct Charge {
    bound: Option<Arc<Bound>>,
    /// Bytes that cost nothing: they belong to what the connection took when it began.
    free: usize,
    amount: usize,
}

/// A future that is polled only in its workload's turn.
struct InTurn<F> {
    inner: Pin<Box<F>>,
    turns: Arc<Semaphore>,
    waiting: Option<Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>>,
}

struct AbortOnDrop<T>(JoinHandle<T>);

// === impl Bound ===

impl Bound {
    /// A whole of which `limit` can be taken.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self::within(limit, None))
    }

    /// A share: what is taken of it is taken of `self` too.
    #[must_use]
    pub fn share(self: &Arc<Self>, limit: usize) -> Arc<Self> {
        Arc::new(Self::within(limit, Some(Arc::clone(self))))
    }

    fn within(limit: usize, whole: Option<Arc<Self>>) -> Self {
        let (refused, refused_by_shares) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { limit, used: AtomicUsize::new(0), refused, refused_by_shares, whole }
    }

    /// Takes `amount`. INVARIANT: what permits hold is never more than the limit, of a share or of the whole.
    ///
    /// # Errors
    /// What is used up; the refusal is counted.
    pub fn take(self: &Arc<Self>, amount: usize) -> Result<Permit, Scope> {
        if !self.fits(amount) {
            let (counter, scope) = match &self.whole {
                Some(whole) => (&whole.refused_by_shares, Scope::Share),
                None => (&self.refused, Scope::Whole),
            };
            counter.fetch_add(1, Ordering::Relaxed);
            return Err(scope);
        }
        if let Some(whole) = &self.whole
            && !whole.fits(amount)
        {
            self.used.fetch_sub(amount, Ordering::AcqRel);
            whole.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Scope::Whole);
        }
        Ok(Permit { bound: Arc::clone(self), amount })
    }

    /// Whether nothing is left, here or of the whole.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        let used_up = |bound: &Self| bound.used.load(Ordering::Relaxed) >= bound.limit;
        used_up(self) || self.whole.as_deref().is_some_and(used_up)
    }

    /// What is taken now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// What can be taken.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// What was refused so far because a share was used up, and because this was.
    #[must_use]
    pub fn refused(&self) -> (u64, u64) {
        (self.refused_by_shares.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }

    fn fits(&self, amount: usize) -> bool {
        let more = |used: usize| used.checked_add(amount).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).is_ok()
    }

    /// Counts what is there already, so that the next ones are refused.
    fn add(&self, amount: usize) {
        self.used.fetch_add(amount, Ordering::AcqRel);
        if let Some(whole) = &self.whole {
            whole.add(amount);
        }
    }

    fn give_back(&self, amount: usize) {
        self.used.fetch_sub(amount, Ordering::AcqRel);
        if let Some(whole) = &self.whole {
            whole.give_back(amount);
        }
    }
}

// === impl Permit ===

impl Drop for Permit {
    fn drop(&mut self) {
        self.bound.give_back(self.amount);
    }
}

// === impl Resource ===

impl Resource {
    /// As in messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Handshakes => "TLS handshakes",
            Self::Tunnels => "tunnels being made",
            Self::Memory => "memory",
            Self::DnsQueries => "DNS queries",
        }
    }
}

// === impl Budget ===

impl Budget {
    /// What a connection takes, and what it takes only while it's being made.
    pub(crate) fn begin(&self) -> Result<(Places, Option<Permit>), OverBudget> {
        let take = |bound: &Option<Arc<Bound>>, amount, resource| match bound {
            Some(bound) => bound.take(amount).map(Some).map_err(|scope| OverBudget { resource, scope }),
            None => Ok(None),
        };
        let making = take(&self.tunnels, 1, Resource::Tunnels)?;
        let connection = take(&self.connections, 1, Resource::Connections)?;
        let memory = take(&self.memory, TUNNEL_BYTES, Resource::Memory)?;
        Ok((Places { _connection: connection, _memory: memory }, making))
    }
}

// === impl Charge ===

impl Charge {
    /// Nothing yet; up to `free` bytes are counted as nothing. Without a bound it stays so.
    #[must_use]
    pub fn new(bound: Option<Arc<Bound>>, free: usize) -> Self {
        Self { bound, free, amount: 0 }
    }

    /// Counts `bytes` as what is held now.
    pub fn hold(&mut self, bytes: usize) {
        let Some(bound) = &self.bound else { return };
        let amount = if bytes <= self.free { 0 } else { bytes.next_multiple_of(QUANTUM_BYTES) };
        if amount > self.amount {
            bound.add(amount - self.amount);
            self.amount = amount;
        } else if amount + QUANTUM_BYTES < self.amount || amount == 0 && self.amount > 0 {
            bound.give_back(self.amount - amount);
            self.amount = amount;
        }
    }

    /// Whether what is held should become less.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.bound.as_deref().is_some_and(Bound::is_used_up)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.hold(0);
    }
}

// === impl Turns ===

impl Turns {
    /// Computes each handshake on one of `runtimes`, at most `at_once` of the workload's at a time: those that wait for
    /// their peer take no turn. Others' are computed in between. Without `runtimes` they are computed where they come in.
    #[must_use]
    pub fn on(runtimes: Arc<[Handle]>, at_once: usize) -> Self {
        let turns = Arc::new(Semaphore::new(at_once.max(1)));
        let place = Place { runtimes, next: Arc::default(), turns };
        Self { place: (!place.runtimes.is_empty()).then_some(place) }
    }

    /// Runs a handshake to its end, or until this is dropped.
    pub(crate) async fn run<F>(&self, handshake: F) -> Result<F::Output, Ended>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let Some(place) = &self.place else { return Ok(handshake.await) };
        let in_turn = InTurn { inner: Box::pin(handshake), turns: Arc::clone(&place.turns), waiting: None };
        match AbortOnDrop(place.runtime().spawn(in_turn)).await {
            Ok(output) => Ok(output),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Ended),
            },
        }
    }
}

// === impl Place ===

impl Place {
    /// In turn, but of two the one with less to do. INVARIANT: there is at least one.
    fn runtime(&self) -> &Handle {
        let count = self.runtimes.len();
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        let (one, other) = (&self.runtimes[next % count], &self.runtimes[next.wrapping_add(1) % count]);
        let tasks = |runtime: &Handle| runtime.metrics().num_alive_tasks();
        if tasks(other) < tasks(one) { other } else { one }
    }
}

// === impl InTurn ===

impl<F: Future> Future for InTurn<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { inner, turns, waiting } = &mut *self;
        let turn = waiting.get_or_insert_with(|| {
            let turns = Arc::clone(turns);
            Box::pin(async move { turns.acquire_owned().await.ok() })
        });
        let _turn = ready!(turn.as_mut().poll(cx));
        *waiting = None;
        inner.as_mut().poll(cx)
    }
}

// === impl AbortOnDrop ===

impl<T> Future for AbortOnDrop<T> {
    type Output = Result<T, tokio::task::JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        pin!(&mut self.0).poll(cx)
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests;
