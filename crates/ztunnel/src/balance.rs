//! Which endpoint gets the next connection: the less busy of two drawn by capacity, among the nearest that haven't been
//! tried (`spec/ztunnel.md` 6). Pure but for the counters of connections in flight.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use ambit_mesh::{
    loads::Loads,
    view::{Drawn, Tiers, Workload},
};

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
    /// The workload's, known without a look at it.
    pub(crate) load_key: u32,
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
        let untried = |drawn: &Drawn<'v>| {
            let is_untried = |workload: &Arc<Workload>| !self.tried.contains(&workload.uid);
            self.tried.is_empty() || drawn.workload().is_some_and(is_untried)
        };
        let drawn = tiers.iter().find_map(|tier| {
            let draw = |salt| {
                let drawn = tier.draw(self.random(salt)).filter(untried);
                drawn.or_else(|| tier.shuffled(self.random(salt)).find(untried))
            };
            let (first, second) = (draw(1)?, draw(2)?);
            Some(if self.is_busier(&first, &second) { second } else { first })
        })?;
        let workload = drawn.workload()?;
        let reach = tiers.iter().map(|tier| tier.len()).max().unwrap_or_default();
        Some(Picked { workload, load_key: drawn.load_key(), others: reach > self.tried.len() + 1 })
    }

    /// A number for drawing among several waypoints: the same for every try.
    pub(crate) fn for_waypoint(&self) -> u64 {
        mix(self.seed)
    }

    /// True if the first has more to do than the other, each measured by its capacity.
    fn is_busier(&self, first: &Drawn<'_>, other: &Drawn<'_>) -> bool {
        let load = |drawn: &Drawn<'_>| u64::from(self.loads.of(drawn.load_key()));
        // INVARIANT: the products of numbers of 32 bits have no more than 64.
        load(first) * u64::from(other.capacity()) > load(other) * u64::from(first.capacity())
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
