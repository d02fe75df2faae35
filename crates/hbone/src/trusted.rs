//! Connections that end when their peer is no longer trusted: after new revocation lists, or without the root that vouched
//! for it (`spec/ztunnel.md` 20).
//!
//! As long as nothing changes this costs an atomic load each time the connection's task runs, and nothing per byte.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use ambit_identity::{Distrust, SpiffeId, WorkloadCertificate};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::http2::Ended;

/// The changes of the trust since before a handshake.
pub(crate) struct TrustChanges(watch::Receiver<u64>);

/// The peer of a connection.
pub(crate) struct Peer {
    /// Who we are to it; knows whom to trust.
    pub(crate) certificate: Arc<WorkloadCertificate>,
    /// What it showed, leaf first.
    pub(crate) chain: Arc<[CertificateDer<'static>]>,
    /// Who it was to be, if it is the server.
    pub(crate) expected: Option<Box<[SpiffeId]>>,
}

/// A connection's driver, until it ends or its peer is no longer trusted. To be polled by one task only, which drops it
/// when it is done: that breaks the streams.
pub(crate) struct Trusted<D> {
    driver: D,
    peer: Peer,
    changes: watch::Receiver<u64>,
    /// Wakes the task at the next change. It is polled once; the task stays the same.
    alarm: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    reason: Arc<OnceLock<Distrust>>,
}

// === impl TrustChanges ===

impl TrustChanges {
    /// From now on. To be called before the handshake, so that no change is missed.
    pub(crate) fn begin(certificate: &WorkloadCertificate) -> Self {
        Self(certificate.trust_changes())
    }
}

// === impl Peer ===

impl Peer {
    fn distrust(&self) -> Option<Distrust> {
        match &self.expected {
            Some(expected) => self.certificate.distrust_of_server(&self.chain, expected),
            None => self.certificate.distrust_of_client(&self.chain),
        }
    }
}

// === impl Trusted ===

impl<D> Trusted<D> {
    /// Says in `reason` why the peer is no longer trusted, before the streams break.
    pub(crate) fn new(driver: D, peer: Peer, changes: TrustChanges, reason: Arc<OnceLock<Distrust>>) -> Self {
        Self { driver, peer, changes: changes.0, alarm: None, reason }
    }

    fn poll_distrust(&mut self, cx: &mut Context<'_>) -> Option<Distrust> {
        // No sender, no change. It can't be gone: the certificate keeps it.
        let mut changed = self.changes.has_changed().unwrap_or(false);
        if self.alarm.is_some() && !changed {
            return None;
        }
        loop {
            if changed {
                self.changes.borrow_and_update();
                if let Some(distrust) = self.peer.distrust() {
                    return Some(distrust);
                }
            }
            let mut receiver = self.changes.clone();
            let mut alarm = Box::pin(async move { drop(receiver.changed().await) });
            if alarm.as_mut().poll(cx).is_pending() {
                self.alarm = Some(alarm);
                return None;
            }
            changed = true;
        }
    }
}

impl<D> Future for Trusted<D>
where
    D: Future<Output = Ended> + Unpin,
{
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        // First, so that not a byte moves after the trust has ended.
        if let Some(distrust) = self.poll_distrust(cx) {
            tracing::warn!(own = %self.peer.certificate.identity(), %distrust, "a tunnel is closed: its peer is no longer trusted");
            let ended = Ended::Failed(Arc::from(format!("the peer is no longer trusted: {distrust}")));
            // Set once: nobody polls again after this.
            let _ = self.reason.set(distrust);
            return Poll::Ready(ended);
        }
        Pin::new(&mut self.driver).poll(cx)
    }
}
