//! `ambit control-plane`: runs the mesh from a Kubernetes API.

use std::process::ExitCode;

use super::Failure;
use crate::control_plane::{self, Settings};

/// Arguments of `ambit control-plane`. Every one is also an environment variable.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
}

/// Runs the control plane until SIGTERM or Ctrl-C.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    control_plane::run(args.settings)
}
