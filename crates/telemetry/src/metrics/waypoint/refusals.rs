//! What a waypoint refused for its form. The waypoint counts; this reads the counts at each scrape.

use std::{fmt, sync::OnceLock};

use prometheus_client::encoding::DescriptorEncoder;

use crate::metrics::encode::counter;

type Read = Box<dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync>;

/// Reads how often something was refused, by reason.
#[derive(Default)]
pub(super) struct Refusals(OnceLock<Read>);

// === impl Refusals ===

impl Refusals {
    pub(super) fn watch(&self, read: impl Fn() -> Vec<(&'static str, u64)> + Send + Sync + 'static) {
        // A waypoint has one set of counts, so a second reader would read the same.
        let _ = self.0.set(Box::new(read));
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counts = self.0.get().map(|read| read()).unwrap_or_default();
        let counts = counts.into_iter().filter(|(_, count)| *count > 0);
        let labelled = counts.map(|(reason, count)| ([("reporter", "waypoint"), ("reason", reason)], count));
        counter(encoder, "ambit_refused", "Requests and connections that were refused for their form", labelled)
    }
}

impl fmt::Debug for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusals").field("watched", &self.0.get().is_some()).finish()
    }
}
