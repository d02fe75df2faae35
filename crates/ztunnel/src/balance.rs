//! Which endpoint gets the next connection: the less busy of two drawn by capacity, among the nearest that haven't been
//! tried (`spec/ztunnel.md` 6). Pure but for the counters of connections in flight.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use ambit_mesh::view::{Tiers, Workload};

use crate::limits::LOAD_COUNTERS;

/// Connections in flight per endpoint, of all pods of the node, without a lock: endpoints hash to counters, and a
/// collision only makes the balance less exact.
#[derive(Debug)]
pub(crate) struct Loads {
    hasher: RandomState,
    counters: Box<[AtomicUsize]>,
}

/// One connection in flight at an endpoint, until dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    loads: Arc<Loads>,
    counter: usize,
}

/// What the choices for one connection depend on. The same choice is made as long as nothing else changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice<'a> {
    /// Random, and one for all tries of a connection.
    pub(crate) seed: u64,
    /// Uids of those that have been tried.
    pub(crate) tried: &'a [Arc<str>],
    pub(crate) loads: &'a Loads,
}

/// An endpoint, and whether there are others to turn to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Picked<'v> {
    pub(crate) workload: &'v Arc<Workload>,
    pub(crate) others: bool,
}

/// A random number for spreading load and naming traces. Not for secrets.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(0)
}

// === impl Choice ===

impl Choice<'_> {
    /// The endpoint to try next; nothing if all have been tried, or there is none.
    pub(crate) fn pick<'v>(&self, tiers: &Tiers<'v>) -> Option<Picked<'v>> {
        let untried = |workload: &&'v Arc<Workload>| !self.tried.contains(&workload.uid);
        let workload = tiers.iter().find_map(|tier| {
            let draw = |salt| {
                let drawn = tier.draw(self.random(salt)).filter(untried);
                drawn.or_else(|| tier.shuffled(self.random(salt)).find(untried))
            };
            let (first, second) = (draw(1)?, draw(2)?);
            Some(if self.loads.is_busier(first, second) { second } else { first })
        })?;
        let reach = tiers.iter().map(|tier| tier.len()).max().unwrap_or_default();
        Some(Picked { workload, others: reach > self.tried.len() + 1 })
    }

    /// A number for drawing among several waypoints: the same for every try.
    pub(crate) fn for_waypoint(&self) -> u64 {
        mix(self.seed)
    }

    fn random(&self, salt: u64) -> u64 {
        mix(self.seed ^ mix(salt + 2 * self.tried.len() as u64))
    }
}

/// The finalizer of SplitMix64: spreads the bits of a number.
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

// === impl Loads ===

impl Default for Loads {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            counters: std::iter::repeat_with(AtomicUsize::default).take(LOAD_COUNTERS).collect(),
        }
    }
}

impl Loads {
    /// Counts one more until the guard is dropped.
    pub(crate) fn add(self: &Arc<Self>, workload: &Workload) -> InFlight {
        let counter = self.counter(workload);
        self.counters[counter].fetch_add(1, Ordering::Relaxed);
        InFlight { loads: Arc::clone(self), counter }
    }

    /// True if the first has more to do than the other, each measured by its capacity.
    fn is_busier(&self, first: &Workload, other: &Workload) -> bool {
        let load = |workload| self.counters[self.counter(workload)].load(Ordering::Relaxed) as u128;
        load(first) * u128::from(other.capacity) > load(other) * u128::from(first.capacity)
    }

    fn counter(&self, workload: &Workload) -> usize {
        // INVARIANT: less than the number of counters, which fits in a usize.
        (self.hasher.hash_one(&*workload.uid) % self.counters.len() as u64) as usize
    }
}

// === impl InFlight ===

impl Drop for InFlight {
    fn drop(&mut self) {
        self.loads.counters[self.counter].fetch_sub(1, Ordering::Relaxed);
    }
}
