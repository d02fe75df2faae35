//! Certificates before they are needed: those of the node's own workloads (`spec/ztunnel.md` 8).

use std::{collections::HashSet, sync::Arc, time::Duration};

use ambit_identity::CertificateStore;
use ambit_mesh::Store;

/// Changes that come within this time are looked at together.
const QUIET: Duration = Duration::from_millis(100);

/// Has the certificates of this node's workloads fetched when they appear, and forgotten with the last one that had them.
pub async fn keep(store: Arc<Store>, certificates: Arc<CertificateStore>, node: String) {
    let mut changes = store.changes();
    changes.mark_changed();
    while changes.changed().await.is_ok() {
        tokio::time::sleep(QUIET).await;
        changes.mark_unchanged();
        let view = store.load();
        let ours =
            view.workloads().filter(|workload| *workload.node == *node && (workload.hbone || workload.native_tunnel));
        let used: HashSet<_> = ours.map(|workload| workload.identity.clone()).collect();
        for identity in &used {
            if let Err(error) = certificates.prefetch(identity) {
                tracing::warn!(%identity, %error, "a certificate can't be fetched ahead");
            }
        }
        certificates.retain(|identity| used.contains(identity));
    }
}
