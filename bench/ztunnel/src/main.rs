//! Measures node proxies side by side, and lets them talk to each other.
//!
//! What it does: makes two pods in network namespaces of their own with the mesh's redirection, starts a node proxy for
//! each, and measures what a client in one and a server in the other see, for each contender in turn; lets Ambit's proxy
//! talk to a real ztunnel; soaks it while everything around it changes; measures what bytes, exchanges and handshakes cost on this processor at least.
//! What it refuses to do: touch anything outside of the namespaces it made.
#![forbid(unsafe_code)]

mod agent;
mod arguments;
mod configuration;
mod control;
mod costs;
mod figures;
mod interop;
mod load;
mod machine;
mod phases;
mod place;
mod pods;
mod proxy;
mod report;
mod rounds;
mod soak;
mod stage;

use std::process::ExitCode;

use ambit_node::{Node, NodeProcess, host::Role};
use arguments::{Arguments, Command};

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => return fail(&message),
    };
    // Before any thread exists.
    match ambit_node::launch() {
        Ok(Role::Host(host)) => host.run(),
        Ok(Role::Node(node)) => match run(&arguments, &node) {
            Ok(()) => ExitCode::SUCCESS,
            Err(message) => fail(&message),
        },
        Err(error) => fail(&error.to_string()),
    }
}

fn run(arguments: &Arguments, process: &NodeProcess) -> Result<(), String> {
    let node = Node::new(process.owner).map_err(|error| error.to_string())?;
    match &arguments.command {
        Command::Costs => costs::run(&arguments.out),
        Command::Interop(interop) => interop::run(&node, interop, &arguments.out, process.owner.host_pid),
        Command::Soak(soak) => soak::run(&node, soak, &arguments.out, process.owner.host_pid),
        Command::Rounds(rounds) => rounds::run(&node, rounds, &arguments.out, process.owner.host_pid),
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("{message}");
    ExitCode::FAILURE
}
