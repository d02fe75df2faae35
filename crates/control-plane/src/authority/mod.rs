//! Who may ask for what, and who signs it, on Kubernetes (`spec/control-plane.md` 6).
//!
//! What it does: [`Authorizer`] tells callers by their service account's token or their certificate and allows node proxies
//! the identities of the pods on their node; [`Roots`] keeps what the CA signs with, in a Secret or a mounted folder, and goes
//! over from one root to the next; [`publish`] writes the trust bundle into every namespace; [`Leadership`] says which
//! replica writes.
//! What it refuses to do: keep or log a token, let a caller know why it was refused, or sign for another trust domain.

mod account;
mod authorizer;
mod directory;
mod folder;
mod leadership;
mod lease;
mod node_id;
pub mod publish;
mod review;
mod root_secret;
mod roots;
mod start;

#[cfg(test)]
mod tests;

pub use account::{Account, BoundPod};
pub use authorizer::{AuthorizationSettings, Authorizer, ServiceAccountName};
pub use directory::{PodDirectory, PodFacts};
pub use folder::{CaFolder, FolderError};
pub use leadership::{Leadership, LeadershipSettings};
pub use review::{ApiReviewer, ReviewError, Reviewer, TokenReviews};
pub use root_secret::{RootSecret, RootSecretError, Step};
pub use roots::{RootSettings, Roots, RootsError, server_names};
pub use start::{Authority, Settings, start};
