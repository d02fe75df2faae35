//! `ambit policy`: what policies mean, without a mesh.

pub mod eval;
pub mod explain;
pub mod export;
mod service;

use std::process::ExitCode;

use super::Failure;

/// Arguments of `ambit policy`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Judge the requests of golden case files and compare with the verdicts they expect
    Eval(eval::Args),
    /// Say what happens to a request, and which policies and fields decide it
    Explain(Box<explain::Args>),
    /// Render the policies of a service as filters of another proxy
    Export(export::Args),
}

/// Runs a subcommand.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    match args.command {
        Command::Eval(args) => eval::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Export(args) => export::run(&args),
    }
}
