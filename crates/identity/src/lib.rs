//! Workload identity: SPIFFE certificates, the CA that signs them, the store that keeps and renews them, and the TLS
//! configurations made from them (`spec/ztunnel.md` 2.2, 2.3, 8, 20; `spec/control-plane.md` 6).
//!
//! What it does: keep a root key on disk and leaf keys in memory only, hand out a valid certificate per identity, and
//! check a peer's certificate against the trust bundle, the revocation lists and the expected identity.
//! What it refuses to do: open sockets, or decide what an identity may do.
#![forbid(unsafe_code)]

mod ca;
mod certificate;
mod chain;
mod clock;
mod crl;
mod crl_file;
mod distrust;
#[doc(hidden)]
pub mod fuzzing;
mod keeper;
pub mod limits;
mod listing;
mod peer;
mod request;
mod root;
mod server;
mod signer;
mod slots;
mod source;
mod store;
pub mod tls;
mod trust;
mod verified;
mod verify;
mod wake;

pub use ambit_api::SpiffeId;
pub use ca::{Ca, CaError};
pub use certificate::{CertificateError, WorkloadCertificate};
pub use chain::{ChainError, IssuedChain};
pub use clock::{Clock, SystemClock};
pub use crl::{CrlError, Crls, Revocation};
pub use crl_file::{CrlFile, CrlFileError};
pub use distrust::Distrust;
pub use listing::{CertificateDetail, CertificateRecord, certificate_pem};
pub use peer::{expected_identity, in_trust_domain, peer_identities, peer_identity};
pub use request::CertificateRequest;
pub use server::ServerCertificate;
pub use signer::{NewRoot, Signer, SignerError, SignerFiles};
pub use source::{BoxFuture, CertificateSource, SourceError};
pub use store::CertificateStore;
pub use tls::{KeyExchange, UnknownPolicyError};
pub use trust::{Trust, TrustError};
