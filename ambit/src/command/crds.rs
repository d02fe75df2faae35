//! `ambit crds`: the custom resource definitions of the kinds that the mesh reads.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use ambit_install::chart;

use super::Failure;

/// Arguments of `ambit crds`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Prints them as YAML, for `kubectl apply --server-side -f -`.
pub fn run(_: &Args) -> Result<ExitCode, Failure> {
    print(&chart::definitions().map_err(|error| Failure::new(error.to_string()))?)
}

/// Prints a text; who closes the pipe has read enough.
pub fn print(text: &str) -> Result<ExitCode, Failure> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(error.to_string())),
        _ => Ok(ExitCode::SUCCESS),
    }
}
