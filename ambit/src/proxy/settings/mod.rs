//! What every proxy can be told, by flags or by the environment variables that Istio's proxies have for it
//! (`spec/ztunnel.md` 17). Parsed here and nowhere else: a value that can't be right ends the start.

mod control_plane;
mod operations;
pub mod proxy_config;
mod values;

pub use control_plane::ControlPlane;
pub use operations::{Draining, Operations};
pub use values::{WorkerCount, WorkloadName, cores, duration, metadata, positive_duration, prefixed};

/// Settings that contradict each other, or that are missing. What is wrong with one alone clap has told before.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(pub String);
