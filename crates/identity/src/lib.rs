//! Workload identity: SPIFFE certificates, the CA that signs them, the store that keeps and renews them, and the TLS
//! configurations made from them (`spec/ztunnel.md` 2.2, 2.3, 8; `spec/control-plane.md` 6).
//!
//! What it does: keep a root key on disk and leaf keys in memory only, hand out a valid certificate per identity, and
//! check a peer's certificate against the trust bundle and the expected identity.
//! What it refuses to do: open sockets, or decide what an identity may do.
#![forbid(unsafe_code)]

mod ca;
mod certificate;
mod clock;
pub mod limits;
mod root;
mod source;
mod store;
mod verify;

pub use ambit_api::SpiffeId;
pub use ca::{Ca, CaError};
pub use certificate::{CertificateError, WorkloadCertificate};
pub use clock::{Clock, SystemClock};
pub use source::{BoxFuture, CertificateSource, IssuedChain, SourceError};
pub use store::CertificateStore;
pub use verify::peer_identity;
