//! `ambit install`: brings an installation into the cluster that `kubectl` would talk to.

use std::{process::ExitCode, time::Duration};

use ambit_install::{Action, Done, Installation};

use super::{Failure, crds, manifest::InstallationArgs};

/// Longest wait that can be asked for, in seconds.
const MAX_WAIT_SECONDS: u64 = 3_600;

/// Arguments of `ambit install`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    installation: InstallationArgs,
    /// Let the API server check everything and change nothing
    #[arg(long, value_parser = ["server"], value_name = "server")]
    dry_run: Option<String>,
    /// Wait until the control plane is ready
    #[arg(long)]
    wait: bool,
    /// How long to wait, in seconds
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=MAX_WAIT_SECONDS))]
    timeout_seconds: u64,
}

/// Applies everything, and says what was done.
pub async fn run(args: &Args) -> Result<ExitCode, Failure> {
    let dry_run = args.dry_run.is_some();
    let installation = Installation::new(client().await?, args.installation.settings(), dry_run);
    let done = installation.install().await.map_err(|error| Failure::new(error.to_string()))?;
    report(&done, dry_run)?;
    if args.wait && !dry_run {
        let patience = Duration::from_secs(args.timeout_seconds);
        installation.wait(patience).await.map_err(|error| Failure::new(error.to_string()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A client for the cluster that `KUBECONFIG`, `~/.kube/config` or the pod that this runs in names.
pub async fn client() -> Result<kube::Client, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new(format!("no cluster can be reached: {error}"));
    kube::Client::try_default().await.map_err(|error| failed(&error))
}

/// Says what was done, one object per line.
pub fn report(done: &[Done], dry_run: bool) -> Result<ExitCode, Failure> {
    let line = |done: &Done| {
        let action = match done.action {
            Action::Applied => "applied",
            Action::LeftAlone => "left as it is: it isn't part of this installation",
            Action::KindMissing => "can't be checked before the definitions and the namespace are there",
            Action::Deleted => "deleted",
            Action::Absent => "isn't there",
        };
        let dry = if dry_run { " (dry run)" } else { "" };
        format!("{} {action}{dry}\n", done.object)
    };
    crds::print(&done.iter().map(line).collect::<String>())
}
