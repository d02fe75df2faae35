//! Entries for measuring; nothing here is for use.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_mesh::{Store, loads::Loads, view::ServiceKey};

use crate::{balance::Choice, limits::LOAD_COUNTERS};

/// A client that chooses among a service's endpoints.
#[derive(Clone, Copy, Debug)]
pub struct Choosing<'a> {
    /// The client's uid.
    pub client: &'a str,
    /// The service's namespace.
    pub namespace: &'a str,
    /// Its hostname.
    pub hostname: &'a str,
    /// Its port.
    pub port: u16,
}

impl Choosing<'_> {
    /// How long that many choices take, each with its look-up of the endpoints and counted as a connection; nothing if
    /// there is no endpoint to choose.
    #[must_use]
    pub fn time(&self, store: &Store, rounds: u64) -> Option<Duration> {
        let loads = Arc::new(Loads::new(LOAD_COUNTERS));
        let service = ServiceKey { namespace: self.namespace.into(), hostname: self.hostname.into() };
        let view = store.load();
        let client = view.workload(self.client).map(|client| &**client);
        let started = Instant::now();
        for seed in 0..rounds {
            let choice = Choice { seed, tried: &[], loads: &loads };
            let picked = choice.pick(&view.tiers(&service, client, Some(self.port)))?;
            black_box(loads.add(picked.load_key));
        }
        Some(started.elapsed())
    }
}
