//! The in-process transport: an ordered, bounded queue of delta responses and their acknowledgements.
//!
//! Several responses that belong together travel as one [`Push`], so a proxy never sees a workload before the
//! policies it names.

use tokio::sync::{mpsc, oneshot};

use crate::DeltaResponse;

/// Pushes that may wait for a proxy before the control plane waits for it.
pub const MAX_QUEUED_PUSHES: usize = 64;

/// Responses to be applied together, in order.
#[derive(Debug)]
pub struct Push {
    /// The changes, policies before the workloads that name them.
    pub responses: Vec<DeltaResponse>,
    ack: oneshot::Sender<Result<(), Nack>>,
}

/// A proxy's refusal of a push: what it couldn't read, by resource name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the proxy rejected {}", .rejected.iter().map(|(name, reason)| format!("`{name}`: {reason}")).collect::<Vec<_>>().join("; "))]
pub struct Nack {
    /// Resource name and reason.
    pub rejected: Vec<(String, String)>,
}

/// The proxy went away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the proxy has stopped listening for configuration")]
pub struct Closed;

/// The control plane's end.
#[derive(Clone, Debug)]
pub struct Sender(mpsc::Sender<Push>);

/// The proxy's end.
#[derive(Debug)]
pub struct Receiver(mpsc::Receiver<Push>);

/// A connected pair.
#[must_use]
pub fn channel() -> (Sender, Receiver) {
    let (sender, receiver) = mpsc::channel(MAX_QUEUED_PUSHES);
    (Sender(sender), Receiver(receiver))
}

impl Sender {
    /// Sends the responses and waits until the proxy has applied them.
    ///
    /// # Errors
    /// [`Closed`] when the proxy is gone. The inner result is the proxy's acknowledgement.
    pub async fn push(&self, responses: Vec<DeltaResponse>) -> Result<Result<(), Nack>, Closed> {
        let (ack, acked) = oneshot::channel();
        self.0.send(Push { responses, ack }).await.map_err(|_| Closed)?;
        acked.await.map_err(|_| Closed)
    }
}

impl Receiver {
    /// The next push, or nothing when the control plane is gone.
    pub async fn next(&mut self) -> Option<Push> {
        self.0.recv().await
    }
}

impl Push {
    /// Tells the control plane how applying went.
    pub fn acknowledge(self, result: Result<(), Nack>) {
        // The control plane may have gone in between; then nobody needs the answer.
        let _ = self.ack.send(result);
    }
}
