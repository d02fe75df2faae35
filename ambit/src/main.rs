//! `ambit`: an ambient service mesh in one binary. This crate parses arguments, wires the rooms below into one mesh
//! ([`local`]) and renders what they say; how anything works is theirs.
#![forbid(unsafe_code)]

mod command;
mod control_plane;
mod local;
mod proxy;
mod waypoint;
mod ztunnel;

use std::process::ExitCode;

use clap::Parser;

use command::{
    Failure, client, control_plane as mesh_source, crds, demo, echo, forward, install, manifest, policy, run, status,
    stop, uninstall, up, waypoint as waypoint_proxy, ztunnel as node_proxy,
};

/// An ambient service mesh: L4 proxy, L7 waypoint, control plane, CA and capture in one binary.
#[derive(Debug, Parser)]
#[command(name = "ambit", version, about, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run the mesh that these files describe, until Ctrl-C
    Up(up::Args),
    /// Run a program as a workload of the running mesh
    Run(run::Args),
    /// Open a loopback port that enters the running mesh with an identity, for a browser or curl
    Forward(forward::Args),
    /// Show the pods of the running mesh
    Status(status::Args),
    /// Stop a pod of the running mesh, to see what happens without it
    Stop(stop::Args),
    /// Run the MLflow example on real traffic and print its verdict table
    Demo(demo::Args),
    /// Serve HTTP and answer with what was asked
    Echo(echo::Args),
    /// Send the requests that standard input names
    #[command(hide = true)]
    Client(client::Args),
    /// Run the node proxy (ztunnel) of a cluster's node, or of one workload
    Ztunnel(Box<node_proxy::Args>),
    /// Run the waypoint (L7 proxy) of one Gateway
    Waypoint(Box<waypoint_proxy::Args>),
    /// Run the mesh from a Kubernetes API
    ControlPlane(Box<mesh_source::Args>),
    /// Print the custom resource definitions of the kinds that the mesh reads
    Crds(crds::Args),
    /// Print the objects of an installation
    Manifest(Box<manifest::Args>),
    /// Bring an installation into a cluster
    Install(Box<install::Args>),
    /// Take an installation out of a cluster
    Uninstall(Box<uninstall::Args>),
    /// Judge, explain and export authorization policies, without a mesh
    Policy(policy::Args),
    /// Say whether this machine lets this user run a mesh
    CheckHost,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Up(args) => up::run(args),
        Command::Run(args) => run::run(args),
        Command::Forward(args) => forward::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Stop(args) => stop::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Echo(args) => block_on(echo::run(args)).map(|()| ExitCode::SUCCESS),
        Command::Client(args) => block_on(client::run(args)).map(|()| ExitCode::SUCCESS),
        Command::Ztunnel(args) => node_proxy::run(*args),
        Command::Waypoint(args) => waypoint_proxy::run(*args),
        Command::ControlPlane(args) => mesh_source::run(*args),
        Command::Crds(args) => crds::run(&args),
        Command::Manifest(args) => manifest::run(&args),
        Command::Install(args) => block_on(install::run(&args)),
        Command::Uninstall(args) => block_on(uninstall::run(&args)),
        Command::Policy(args) => policy::run(args),
        Command::CheckHost => up::check_host(),
    };
    result.unwrap_or_else(|failure| {
        eprintln!("error: {failure}");
        ExitCode::FAILURE
    })
}

/// Runs a command that needs no namespace on a runtime of one thread.
fn block_on<T>(task: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("can't start a runtime: {error}")))?;
    runtime.block_on(task)
}
