//! `ambit up`: the mesh that some files describe.

use std::{path::PathBuf, process::ExitCode};

use ambit_node::Role;

use super::{Failure, MeshArgs};
use crate::local::{self, AccessLog, AccessLogFormat, Options};

/// Arguments of `ambit up`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    mesh: MeshArgs,
    /// A YAML file, or a folder of them; may be given several times. They are watched: an edit is enforced at once
    #[arg(short, long = "filename", required = true, value_name = "PATH")]
    filename: Vec<PathBuf>,
    /// Write one JSON line per request or refused connection to FILE, or to standard output if `-`
    #[arg(long, value_name = "FILE|-")]
    access_log: Option<AccessLog>,
    /// What a line of the access log is: a decision as JSON, when it is made; or what came of a request, when it has ended,
    /// in Istio's default text format (for the node proxies, in that of ztunnel)
    #[arg(long, value_enum, default_value_t, requires = "access_log")]
    access_log_format: AccessLogFormat,
    /// Let every program on this machine ask each waypoint for metrics, configuration and decisions, and set log levels, on
    /// a loopback port that is printed
    #[arg(long)]
    waypoint_admin: bool,
}

/// Runs the mesh until Ctrl-C or SIGTERM.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    // Before anything that starts a thread: the process splits in two here.
    match launch()? {
        Role::Host(host) => Ok(host.run()),
        Role::Node(node) => {
            let options = Options {
                mesh: args.mesh.name().to_owned(),
                paths: args.filename,
                access_log: args.access_log,
                access_log_format: args.access_log_format,
                waypoint_admin: args.waypoint_admin,
            };
            local::run(options, node)
        }
    }
}

/// Makes the mesh's namespaces and ends; the error says what the kernel refuses.
pub fn check_host() -> Result<ExitCode, Failure> {
    match launch()? {
        Role::Host(host) => Ok(host.run()),
        Role::Node(node) => match ambit_node::Node::new(node.owner) {
            Ok(_) => Ok(ExitCode::SUCCESS),
            Err(error) => Err(Failure::new(error.to_string())),
        },
    }
}

fn launch() -> Result<Role, Failure> {
    ambit_node::launch().map_err(|error| Failure::new(error.to_string()))
}
