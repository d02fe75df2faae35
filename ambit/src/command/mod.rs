//! One module per command: its arguments and how its outcome is shown.

pub mod client;
pub mod control_plane;
pub mod crds;
pub mod demo;
pub mod echo;
pub mod forward;
pub mod install;
pub mod manifest;
pub mod policy;
pub mod run;
pub mod status;
pub mod stop;
pub mod uninstall;
pub mod up;
pub mod waypoint;
pub mod ztunnel;

use std::fmt;

use ambit_node::control::{ControlClient, socket_path};

/// Why a command failed, in words for the person who typed it.
#[derive(Debug)]
pub struct Failure {
    message: String,
}

impl Failure {
    /// A failure with this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// Which of this user's meshes a command is about.
#[derive(Debug, clap::Args)]
pub struct MeshArgs {
    /// Name of the mesh, to tell several on one machine apart
    #[arg(long, default_value = "default", value_name = "NAME", value_parser = mesh_name)]
    mesh: String,
}

// === impl MeshArgs ===

impl MeshArgs {
    /// The name.
    pub fn name(&self) -> &str {
        &self.mesh
    }

    /// Connects to the running mesh.
    pub fn connect(&self) -> Result<ControlClient, Failure> {
        ControlClient::connect(&socket_path(&self.mesh)).map_err(|error| Failure::new(error.to_string()))
    }
}

/// The name becomes a file name, so it is kept to what is safe there.
fn mesh_name(text: &str) -> Result<String, String> {
    let fits = (1..=32).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if fits { Ok(text.to_owned()) } else { Err("a mesh name is 1 to 32 lower-case letters, digits and `-`".to_owned()) }
}

// === impl Failure ===

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
