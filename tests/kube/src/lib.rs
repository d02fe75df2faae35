//! A real Kubernetes API server for tests, and a real `kubectl` to talk to it.
//!
//! [`programs`] says where to get both: the server is built from Kubernetes' own Go packages (the folder `apiserver`), once,
//! into `target/kube`; `kubectl` is a Python package there. [`KubeServer`] runs the server on loopback for a
//! test, [`Standing`] the one of `cargo xtask kube`.
#![forbid(unsafe_code)]

mod programs;
mod server;
mod standing;

pub use programs::{Programs, folder, programs, programs_or_skip};
pub use server::{KubeServer, ServerError};
pub use standing::Standing;
