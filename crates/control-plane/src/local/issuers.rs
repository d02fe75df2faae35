//! Whose keys the cluster wants, and the pods that may serve them.

use std::net::SocketAddr;

use ambit_api::request_authentication::KeySource;
use ambit_mesh::authentication::Fetched;
use ambit_xds::DeltaResponse;

use super::cluster::Cluster;
use crate::keys::{self, Wanted};

// === impl Cluster ===

impl Cluster {
    /// What is to be fetched as things are now.
    pub(super) fn wanted_keys(&self) -> Wanted {
        let inputs = self.index.inputs();
        if inputs.request_authentications.is_empty() {
            return Wanted::default();
        }
        // Each pod that was made, and each that is ready, counts.
        keys::wanted(inputs, self.made * 1_000_000 + inputs.pods.values().filter(|pod| pod.ready).count() as u64)
    }

    /// Takes keys up, and forgets those that nobody wants any more.
    pub(super) fn set_keys(&mut self, source: KeySource, fetched: Fetched) -> Vec<DeltaResponse> {
        let changes = keys::changes(self.index.inputs(), source, fetched);
        self.index.apply(changes)
    }

    /// What to tell the user of fetched keys; nothing if it isn't news.
    pub(super) fn note_of_keys(&self, source: &KeySource, fetched: &Fetched) -> Option<String> {
        keys::note(self.index.inputs(), source, fetched)
    }

    /// The pods behind a name and port of the mesh; nothing if the name isn't the mesh's.
    pub(super) fn endpoints(&self, host: &str, port: u16) -> Option<Vec<SocketAddr>> {
        keys::endpoints(self.index.inputs(), host, port)
    }
}
