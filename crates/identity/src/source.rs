//! Where certificates come from.

use std::{future::Future, pin::Pin};

use rustls_pki_types::CertificateDer;

use crate::{CaError, SpiffeId};

/// A boxed future, so that [`CertificateSource`] can be a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Signs certificate requests: the CA in this process, or one reached over the network.
pub trait CertificateSource: Send + Sync {
    /// Asks for a certificate for `id` over the key of `csr_pem` (PKCS#10, PEM).
    fn certificate(&self, id: &SpiffeId, csr_pem: String) -> BoxFuture<'_, Result<IssuedChain, SourceError>>;
}

/// What a CA answers.
#[derive(Clone, Debug)]
pub struct IssuedChain {
    /// The leaf, then its intermediates in order. The root is not among them.
    pub chain: Vec<CertificateDer<'static>>,
    /// The trust bundle: every root that peers may chain to.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Why a source gave no certificate.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SourceError {
    /// The CA refused or failed.
    #[error("the CA refused: {0}")]
    Ca(#[from] CaError),
    /// The CA could not be reached.
    #[error("the CA can't be reached: {reason}")]
    Unreachable {
        /// What failed.
        reason: String,
    },
}
