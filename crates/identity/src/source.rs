//! Where certificates come from.

use std::{future::Future, pin::Pin};

use crate::{CaError, ChainError, IssuedChain, SpiffeId};

/// A boxed future, so that [`CertificateSource`] can be a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Signs certificate requests: the CA in this process, or one reached over the network.
pub trait CertificateSource: Send + Sync {
    /// Asks for a certificate for `id` over the key of `csr_pem` (PKCS#10, PEM). The future is dropped unfinished when
    /// the answer takes too long, or the machine woke from sleep meanwhile; then the request is made anew.
    fn certificate(&self, id: &SpiffeId, csr_pem: String) -> BoxFuture<'_, Result<IssuedChain, SourceError>>;
}

/// Why a source gave no certificate.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SourceError {
    /// The CA in this process refused or failed.
    #[error("the CA refused: {0}")]
    Ca(#[from] CaError),
    /// The CA could not be reached.
    #[error("the CA can't be reached: {reason}")]
    Unreachable {
        /// What failed.
        reason: String,
    },
    /// A CA over the network answered with an error.
    #[error("the CA refused: {reason}")]
    Refused {
        /// What it answered.
        reason: String,
    },
    /// A CA over the network answered with something that is not a certificate chain.
    #[error("the CA's answer can't be read: {0}")]
    Answer(#[from] ChainError),
}
