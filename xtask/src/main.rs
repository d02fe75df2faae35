//! `cargo xtask`: the project's chores, so that cargo is the only tool a newcomer needs.
//!
//! `test [--fast]` runs every test; `lint` checks format, lints, licences and duplicate dependencies; `bench` measures the
//! policy engine, the node proxy and the waypoint; `interop` lets the node proxy talk to a real ztunnel; `soak` runs it, or the waypoint, while
//! everything around it changes; `conformance` compares it with a real Envoy; `fuzz` tries random inputs on it; `real` runs the MLflow
//! example against the real server and exporter; `kube` runs a real Kubernetes API server.
#![forbid(unsafe_code)]

mod bench;
mod conformance;
mod dependencies;
mod fuzz;
mod image;
mod interop;
mod kube;
mod real;
mod soak;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

const USAGE: &str = "usage: cargo xtask COMMAND

commands:
  test [--fast]   run all tests; --fast leaves out those that need network namespaces
  lint            format, clippy with warnings as errors, licences and duplicate dependencies
  bench policy    measure decisions; prints a table and writes target/bench/policy.json
  bench instructions [--record]
                  compare callgrind's instruction counts with bench/instructions.json, or record them
  bench ztunnel [--against PATH] [--rounds N] [--seconds S] [--patience S] [--phases P,...]
                  measure the node proxy, in turn with a real ztunnel; writes target/bench/ztunnel.json
  bench control-plane [--quick]
                  measure what a mesh of up to 100,000 workloads costs; writes target/bench/control-plane.json
  bench waypoint [--against envoy] [--quick] [--rounds N] [--seconds S] [--patience S] [--rows FILTER,...]
                  measure the waypoint, in turn with a real Envoy (needs Python); writes target/bench/waypoint.json
  bench costs     measure what bytes, exchanges and handshakes cost here at least; writes target/bench/costs.json
  interop ztunnel --binary PATH
                  let the node proxy talk to a real ztunnel, both ways
  soak ztunnel [--minutes N]
                  change workloads, policies and certificates every second while pods talk; 15 minutes if not said
  soak waypoint [--seconds N]
                  load the waypoint while policies, routes and endpoints change; 600 seconds if not said
  conformance envoy [--requests N] [--seed S]
                  compare the policy engine with a real Envoy on random policies and requests (needs Python)
  image [--profile PROFILE] [--binary PATH]
                  build the static program and write a container image (OCI layout) into target/image
  kube up|down    start or end a real Kubernetes API server on loopback, for trying things (needs Python)
  fuzz [TARGET...] [--runs N]
                  try random inputs on the policy loader and engine
  real            run examples/mlflow with a real MLflow server and a real OpenTelemetry exporter (needs Python)
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["test"] => test(false),
        ["test", "--fast"] => test(true),
        ["lint"] => lint(),
        ["bench", "policy"] => bench::policy(),
        ["bench", "instructions"] => bench::instructions(false),
        ["bench", "instructions", "--record"] => bench::instructions(true),
        ["bench", "ztunnel", arguments @ ..] => bench::ztunnel(arguments),
        ["bench", "waypoint", arguments @ ..] => bench::waypoint(arguments),
        ["bench", "control-plane", arguments @ ..] => bench::control_plane(arguments),
        ["bench", "costs"] => bench::costs(),
        ["interop", "ztunnel", arguments @ ..] => interop::ztunnel(arguments),
        ["soak", "ztunnel", arguments @ ..] => soak::ztunnel(arguments),
        ["soak", "waypoint", arguments @ ..] => soak::waypoint(arguments),
        ["conformance", arguments @ ..] => conformance::run(arguments),
        ["image", arguments @ ..] => image::run(arguments),
        ["kube", arguments @ ..] => kube::run(arguments),
        ["fuzz", arguments @ ..] => fuzz::run(arguments),
        ["real"] => real::run(),
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the tests. The whole-mesh ones start the `ambit` binary, so it is built first.
fn test(fast: bool) -> Result<(), String> {
    cargo(&["build", "--locked", "--package", "ambit"])?;
    if fast {
        return cargo(&[
            "test",
            "--locked",
            "--no-fail-fast",
            "--workspace",
            "--exclude",
            "ambit-tests",
            "--exclude",
            "ambit-node",
        ]);
    }
    cargo(&["test", "--locked", "--no-fail-fast", "--workspace"])
}

fn lint() -> Result<(), String> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    dependencies::check()
}

/// The workspace's root folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

fn cargo(arguments: &[&str]) -> Result<(), String> {
    run(&mut cargo_command(arguments))
}

/// The cargo that runs this one, in the workspace's root.
fn cargo_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Runs a command in the workspace's root; anything but success is an error that names it.
fn run(command: &mut Command) -> Result<(), String> {
    let shown = format!("{command:?}");
    let status = command.current_dir(root()).status().map_err(|error| format!("{shown}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{shown}: {status}")) }
}
