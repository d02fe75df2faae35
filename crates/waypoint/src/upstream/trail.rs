//! Who has had a request already.

use std::{net::SocketAddr, sync::Arc};

use crate::{balance::Endpoint, destination::Host};

/// The endpoints that one request was given, over all its tries: the next try prefers another. Costs nothing before there is
/// one.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    before: Vec<SocketAddr>,
    /// Who has it now, and hasn't answered yet.
    now: Option<(SocketAddr, Option<Arc<Host>>)>,
}

// === impl Trail ===

impl Trail {
    /// Another try begins.
    pub(super) fn begin(&mut self) {
        self.before.extend(self.now.take().map(|(address, _)| address));
    }

    /// Who had it in earlier tries.
    pub(super) fn before(&self) -> &[SocketAddr] {
        &self.before
    }

    /// Couldn't be reached in this try.
    pub(super) fn unreachable(&mut self, address: SocketAddr) {
        self.before.push(address);
    }

    /// Has it now.
    pub(super) fn given(&mut self, endpoint: &Endpoint) {
        self.now = Some((endpoint.address, endpoint.host.clone()));
    }

    /// Whoever has it now didn't answer in time.
    pub(crate) fn timed_out(&mut self) {
        if let Some((_, Some(host))) = &self.now {
            host.failed();
        }
    }
}
