//! What the proxies that run as processes of their own have in common ([`crate::ztunnel`], [`crate::waypoint`]): their
//! settings, their way to the control plane, readiness, log and end.

pub mod control_plane;
pub mod log;
pub mod memory;
pub mod readiness;
pub mod settings;
pub mod shutdown;

/// The version that is shown.
pub fn version() -> String {
    std::env::var("ISTIO_META_ISTIO_VERSION").unwrap_or_else(|_| env!("CARGO_PKG_VERSION").to_owned())
}
