//! What a cluster needs to run the mesh: the objects of an installation, and how they get there.
//!
//! What it does: [`objects()`] makes them from [`Settings`]; [`chart`] writes the same objects as a Helm chart, whose values
//! stand where the settings are; [`Installation`] applies them by server-side apply and takes them away again.
//! What it refuses to do: change what somebody else made (objects and definitions without our label), or delete what
//! holds keys or users' objects unless told.
#![forbid(unsafe_code)]

mod apply;
pub mod chart;
mod objects;
mod settings;

pub use apply::{Action, Done, InstallError, Installation, MANAGER};
pub use objects::{Part, WEBHOOK_PATH, objects, webhook_name};
pub use settings::Settings;
