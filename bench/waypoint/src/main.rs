//! Measures the waypoint and a real Envoy side by side.
//!
//! What it does: renders one scenario for both, drives them in turn on one core with the same clients and the same backend on
//! the others, as an L7 proxy alone and as the whole HBONE waypoint, and reports what each costs. As a soak: loads one whose
//! configuration changes all the time, and looks at what it holds.
//! What it refuses to do: install an Envoy, or need anything but loopback.
#![forbid(unsafe_code)]

mod ambit;
mod arguments;
mod backend;
mod child;
mod churn;
mod codec;
mod contender;
mod cores;
mod envoy;
mod figures;
mod http2;
mod load;
#[path = "../../ztunnel/src/machine.rs"]
#[cfg_attr(not(test), expect(dead_code, reason = "the other benchmark looks at more of the machine"))]
mod machine;
mod memory;
mod place;
mod report;
mod rounds;
mod rules;
mod samples;
mod scenario;
mod soak;
mod ticker;
#[path = "../../ztunnel/src/soak/watch.rs"]
mod watch;

use std::process::ExitCode;

use arguments::{Arguments, Command};

fn main() -> ExitCode {
    let outcome = Arguments::parse(std::env::args().skip(1)).and_then(|arguments| match arguments.command {
        Command::Rounds(rounds) => rounds::run(&rounds, &arguments.place),
        Command::Soak(time) => soak::run(time, &arguments.place),
        Command::Proxy(proxy) => ambit::run(&proxy, &arguments.place),
        Command::Backend => backend::run(&arguments.place),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
