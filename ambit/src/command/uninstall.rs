//! `ambit uninstall`: takes an installation out of the cluster again.

use std::process::ExitCode;

use ambit_install::Installation;

use super::{Failure, install, manifest::InstallationArgs};

/// Arguments of `ambit uninstall`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    installation: InstallationArgs,
    /// Let the API server check everything and change nothing
    #[arg(long, value_parser = ["server"], value_name = "server")]
    dry_run: Option<String>,
    /// Delete the custom resource definitions, too, and with them every policy, Gateway and route of the cluster
    #[arg(long)]
    crds: bool,
}

/// Deletes what `ambit install` made. The namespace stays, with the CA's key in it.
pub async fn run(args: &Args) -> Result<ExitCode, Failure> {
    let dry_run = args.dry_run.is_some();
    let installation = Installation::new(install::client().await?, args.installation.settings(), dry_run);
    let done = installation.uninstall(args.crds).await.map_err(|error| Failure::new(error.to_string()))?;
    install::report(&done, dry_run)
}
